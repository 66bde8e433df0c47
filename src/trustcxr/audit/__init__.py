"""Audit any classifier: entry checks, attacks, corruptions, subgroups, and a verdict.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr._lazy import attach

if TYPE_CHECKING:
    from trustcxr.audit.run_audit import run
else:
    __getattr__, __dir__, __all__ = attach(__name__)
