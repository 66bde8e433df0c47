"""TrustCXR: can this chest X-ray classifier be trusted? Research software, not for diagnosis.

The names below are loaded on first use, so that `import trustcxr` does not import torch.
"""

from typing import TYPE_CHECKING

from trustcxr.about import NOTICE as NOTICE
from trustcxr.about import __version__ as __version__
from trustcxr.lazily import attach

if TYPE_CHECKING:
    from trustcxr import attacks as attacks
    from trustcxr import data as data
    from trustcxr import explain as explain
    from trustcxr import models as models
    from trustcxr.data import load_dataset as load_dataset
    from trustcxr.evaluation.given import load_model as load_model
    from trustcxr.evaluation.run import load_run as load_run
else:
    __getattr__, __dir__, __all__ = attach(__name__)
    __all__ += ["NOTICE", "__version__"]
