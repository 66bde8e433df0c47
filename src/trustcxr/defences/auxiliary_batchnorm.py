"""Separate BatchNorm for clean and for adversarial batches: one network, two sets of statistics and affine weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trustcxr.errors import UserError


class AuxiliaryBatchNorm(nn.Module):
    """A view of `model` with BatchNorm layers of its own (Xie et al. 2020; Han et al. 2021).

    Every other weight is the model's. The model itself keeps its layers, its names and its state: what this view adds
    is trained beside it and left out of what is saved. `forward` takes and gives what the model does.
    Raises UserError where the model has no BatchNorm.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.places = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        if not self.places:
            raise UserError("separate_batchnorm: the network has no BatchNorm layer")
        self.layers = nn.ModuleList(copy.deepcopy(model.get_submodule(name)) for name in self.places)

    def forward(self, images: Tensor) -> Any:
        """The model's answer with this view's BatchNorm layers."""
        with self._in_place():
            return self.model(images)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        own = [self.model.get_submodule(name) for name in self.places]
        try:
            self._put(self.layers)
            yield
        finally:
            self._put(own)

    def _put(self, layers: Any) -> None:
        for name, layer in zip(self.places, layers, strict=True):
            parent, _, last = name.rpartition(".")
            setattr(self.model.get_submodule(parent), last, layer)
