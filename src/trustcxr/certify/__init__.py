"""Prove lower bounds of robustness, complementing the upper bounds that attacks give."""

from typing import TYPE_CHECKING

from trustcxr._lazy import attach

if TYPE_CHECKING:
    from trustcxr.certify import verify
    from trustcxr.certify.verify import Effort, Interval, effort, least_margins, prove
else:
    __getattr__, __dir__, __all__ = attach(__name__)
