"""Evaluate a trained run: clean, attacked, corrupted, with masked lungs; each figure with an interval.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr._lazy import attach

if TYPE_CHECKING:
    from trustcxr.evaluation.predictions import predict
    from trustcxr.evaluation.run_figures import describe
    from trustcxr.evaluation.trained_run import Run, load_run
else:
    __getattr__, __dir__, __all__ = attach(__name__)
