"""Define masked models: each only looks robust or accurate, and each knows its truth."""

import os
from pathlib import Path

import torch
from torch import nn

from benchmarks.masked_models import context, gradients, inputs, memory, pitfalls
from benchmarks.masked_models.base import Images, MaskedModel, SmallNetwork, Truth, fit_network, measure_truth
from benchmarks.masked_models.pitfalls import EveryNoise, EveryResizing, FewerNoises, Jpeg, SomeResizings

PITFALLS = pitfalls.MODELS
MASKED_MODELS = PITFALLS | memory.MODELS | gradients.MODELS | context.MODELS | inputs.MODELS
# A mean over random draws may truly be more robust than the bare network. So the fair reference is the mean over fixed
# draws, which hides nothing.
TWINS: dict[str, type[MaskedModel]] = {"noise": FewerNoises, "random resizing": SomeResizings}
WEIGHTS, NAME = "TRUSTCXR_BENCHMARK_WEIGHTS", "TRUSTCXR_BENCHMARK_MASKED_MODEL"

__all__ = [
    "MASKED_MODELS",
    "PITFALLS",
    "TWINS",
    "EveryNoise",
    "EveryResizing",
    "Images",
    "Jpeg",
    "MaskedModel",
    "SmallNetwork",
    "Truth",
    "fit_network",
    "load_masked_model",
    "measure_truth",
    "save_network",
]


def save_network(net: SmallNetwork, known: Images, side: int, path: Path) -> None:
    """Write the undefended network and the images that a masked model may know, for `load_masked_model`."""
    torch.save({"side": side, "net": net.state_dict(), "images": known[0], "labels": known[1]}, path)


def load_masked_model() -> nn.Module:
    """Load the model that the environment names, for `python: benchmarks.masked_models:load_masked_model`.

    Without a name it is the undefended network.
    """
    saved = torch.load(os.environ[WEIGHTS], weights_only=True)
    net = SmallNetwork(saved["side"], len(saved["net"]["head.bias"])).eval()
    net.load_state_dict(saved["net"])
    name = os.environ.get(NAME)
    return MASKED_MODELS[name](net, (saved["images"], saved["labels"])) if name else net
