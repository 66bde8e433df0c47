"""The protocol: train, choose on validation, train robustly, test, explain, compare.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr.lazily import attach

if TYPE_CHECKING:
    from trustcxr.study.audit_pairs import compare
    from trustcxr.study.comparison import standard_against_robust
    from trustcxr.study.protocol import Study
else:
    __getattr__, __dir__, __all__ = attach(__name__)
