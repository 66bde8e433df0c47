"""Train, choose on validation, train robustly, test, explain and compare. Names load on first use."""

from typing import TYPE_CHECKING

from trustcxr._lazy import attach

if TYPE_CHECKING:
    from trustcxr.study.comparison import standard_against_robust
    from trustcxr.study.run_study import Study
else:
    __getattr__, __dir__, __all__ = attach(__name__)
