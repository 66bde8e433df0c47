"""Classifier: pixel space -> logits, with normalisation inside and the last feature map at `cam_layer`."""

from collections.abc import Iterator
from copy import copy

import torch
from torch import Tensor, nn

from trustcxr.models import ensemble
from trustcxr.models.feature_maps import before_mixing
from trustcxr.models.lung_gate import LungGate
from trustcxr.models.plain import PixelScale


class Classifier(nn.Module):
    """A network from pixel space to logits; normalisation happens inside.

    `forward` takes images (B, 1, H, W), float, in [0, 1], and returns logits (B, C). The last feature map passes
    through `cam_layer`, an identity, so that any tool that hooks a layer finds the right one in every architecture.
    In a transformer that classifies from its class token `cam_layer` is a layer of the network itself.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: float,
        std: float,
        lung_gate: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.gate = LungGate() if lung_gate else nn.Identity()
        if before_mixing(net) is None:
            self._modules["cam_layer"] = nn.Identity()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))
        self.train(net.training)

    @property
    def cam_layer(self) -> nn.Module:
        """The module whose output a CAM reads."""
        return before_mixing(self.net) or self._modules["cam_layer"]  # type: ignore[return-value]

    def normalise(self, images: Tensor) -> Tensor:
        """Pixel space (B, 1, H, W) in [0, 1] -> the range that the weights were trained on."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [0, 1] -> logits (B, C)."""
        images = self.gate(images)  # without a lung gate too: saliency may be asked of this place in every model
        if isinstance(self.gate, LungGate):
            images = images + self.gate.level
        seen = self.normalise(images)
        features = self.net.forward_features(seen)  # type: ignore[operator]
        if before_mixing(self.net) is None:
            features = self.cam_layer(features)
        return self.net.forward_head(features)  # type: ignore[operator]

    def chain(self) -> Iterator[tuple[str, nn.Module]]:
        """What is run one after the other, by name: what a proof follows (`certify.contract`)."""
        scale = PixelScale(self.mean, self.std)
        yield from (("gate", self.gate), ("normalise", scale), ("net", self.net))

    def members(self) -> list["Classifier"]:
        """This model with one of its networks alone, for each of them: the same weights, not others like them."""
        if not isinstance(self.net, ensemble.Ensemble):
            return [self]
        members = []
        for net, mean, std in zip(self.net.nets, self.net.means, self.net.stds, strict=True):
            member = copy(self)
            member._modules = {**self._modules, "net": net}
            member._buffers = {"mean": torch.full_like(self.mean, mean), "std": torch.full_like(self.std, std)}
            members.append(member)
        return members
