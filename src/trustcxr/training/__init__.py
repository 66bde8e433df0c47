"""One run trained, cut off or not.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr._lazy import attach

if TYPE_CHECKING:
    from trustcxr.training.fit_run import fit
else:
    __getattr__, __dir__, __all__ = attach(__name__)
