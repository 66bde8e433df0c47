"""Measure if a chest X-ray classifier can be trusted. Research software, not for diagnosis.

Names load on first use, so that `import trustcxr` does not import torch.
"""

from typing import TYPE_CHECKING

from trustcxr._lazy import attach
from trustcxr.version import NOTICE, __version__

if TYPE_CHECKING:
    from trustcxr import attacks as attacks
    from trustcxr import audit as audit
    from trustcxr import certify as certify
    from trustcxr import data as data
    from trustcxr import explain as explain
    from trustcxr import models as models
    from trustcxr import plot as plot
    from trustcxr.api import certify_model, compare, evaluate, explain_model, load_model, predict, train
    from trustcxr.data import load_dataset as load_dataset
    from trustcxr.evaluation.trained_run import load_run
else:
    __getattr__, __dir__, __all__ = attach(__name__)
    __all__ += ["NOTICE", "__version__"]
