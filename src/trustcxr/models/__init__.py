"""Networks from pixel space to logits, loaded on first use."""

from typing import TYPE_CHECKING

from trustcxr._lazy import attach

if TYPE_CHECKING:
    from trustcxr.models.classifier import Classifier
    from trustcxr.models.factory import (
        PAPER_MODELS,
        architecture,
        architectures,
        build,
        check_network,
        count_parameters,
        paper_models,
    )
else:
    __getattr__, __dir__, __all__ = attach(__name__)
