"""Define the classifier (pixel space to logits, the last feature map at `cam_layer`), its lung gate, and ensembles.

The lung gate is a segmenter in front of the network that removes the background. Cutting the lungs out before
classification is common (Tahir et al. 2021). Here the segmenter is part of the model: attacks meet it, saliency passes
through it, and a trained model needs no mask.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.errors import UserError
from trustcxr.models.feature_maps import before_mixing

LEVEL = 0.5  # grey of the background: black would give attacks on the edge of the lungs a large step
WIDTHS = (16, 32, 64, 96)  # channels of the levels, each half the side of the previous


class Ensemble(nn.Module):
    """Networks whose logits are averaged (Hansen and Salamon 1990).

    `means` and `stds` normalise the pixels for each network; images arrive normalised for the first.
    """

    def __init__(self, nets: Sequence[nn.Module], means: Sequence[float], stds: Sequence[float]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.means, self.stds = tuple(means), tuple(stds)

    def normalise_for(self, index: int, images: Tensor) -> Tensor:
        """Images (B, 1, H, W), normalised for the first network, as the one at `index` was made for."""
        if (self.means[index], self.stds[index]) == (self.means[0], self.stds[0]):
            return images
        return (images * self.stds[0] + self.means[0] - self.means[index]) / self.stds[index]

    def forward_features(self, images: Tensor) -> Tensor:
        """Concatenate the networks' last feature maps (B, K, h, w): (B, sum of K, h, w)."""
        maps = [net.forward_features(self.normalise_for(i, images)) for i, net in enumerate(self.nets)]  # type: ignore[operator]
        for net, features in zip(self.nets, maps, strict=True):
            if features.ndim != 4 or features.shape[1] != net.num_features or features.shape[2:] != maps[0].shape[2:]:
                shapes = " and ".join(str(tuple(each.shape)) for each in maps)
                needed = "last feature maps (B, K, h, w) of the same h and w"
                raise UserError(f"the members of an ensemble need {needed}, not {shapes}")
        return torch.cat(maps, 1)

    def forward_head(self, features: Tensor) -> Tensor:
        """Map the output of `forward_features` to logits (B, C)."""
        parts = features.split([net.num_features for net in self.nets], 1)
        logits = [net.forward_head(p) for net, p in zip(self.nets, parts, strict=True)]  # type: ignore[operator]
        return torch.stack(logits).mean(0)


class Classifier(nn.Module):
    """A network from pixel space to logits; normalisation happens inside.

    `forward` takes images (B, 1, H, W), float, in [0, 1], and returns logits (B, C). The last feature map passes
    through `cam_layer`, an identity, so that any tool that hooks a layer finds the right one in every architecture.
    In a transformer that classifies from its class token `cam_layer` is a layer of the network itself.
    """

    def __init__(self, net: nn.Module, *, mean: float, std: float, lung_gate: bool = False) -> None:
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
        """Return the module whose output a CAM reads."""
        return before_mixing(self.net) or self._modules["cam_layer"]  # type: ignore[return-value]

    def normalise(self, images: Tensor) -> Tensor:
        """Map pixel space (B, 1, H, W) in [0, 1] to the range that the weights were trained on."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 1, H, W) in [0, 1] to logits (B, C)."""
        images = self.gate(images)  # also without a lung gate: every model has this layer for saliency
        if isinstance(self.gate, LungGate):
            images = images + self.gate.level
        seen = self.normalise(images)
        features = self.net.forward_features(seen)  # type: ignore[operator]
        if before_mixing(self.net) is None:
            features = self.cam_layer(features)
        return self.net.forward_head(features)  # type: ignore[operator]

    def chain(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules in the order they run, by name, for a proof."""
        scale = PixelScale(self.mean, self.std)
        yield from (("gate", self.gate), ("normalise", scale), ("net", self.net))

    def members(self) -> list["Classifier"]:
        """Return for each network this model with that network alone, sharing the weights."""
        if not isinstance(self.net, Ensemble):
            return [self]
        members = []
        for net, mean, std in zip(self.net.nets, self.net.means, self.net.stds, strict=True):
            member = copy(self)
            member._modules = {**self._modules, "net": net}
            member._buffers = {"mean": torch.full_like(self.mean, mean), "std": torch.full_like(self.std, std)}
            members.append(member)
        return members


class PixelScale(nn.Module):
    """Normalise pixels: (x - mean) / std."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images (B, 1, H, W)."""
        return (images - self.mean) / self.std


class LungGate(nn.Module):
    """A small U-Net (Ronneberger et al. 2015) that fades an image to mid-grey outside its estimate of the lungs.

    `forward`: images (B, 1, H, W) in [0, 1] -> their difference from `level`. GroupNorm works alike in training.
    """

    level: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.tensor(LEVEL))  # with the weights: they are trained for it
        self.down = nn.ModuleList(_block(a, b, stride=2) for a, b in pairwise((1, *WIDTHS)))
        self.up = nn.ModuleList(_block(a + b, a, stride=1) for a, b in reversed(list(pairwise(WIDTHS))))
        self.out = nn.Conv2d(WIDTHS[0], 1, 3, padding=1)

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, 1, H, W) of being inside the lungs, of images (B, 1, H, W) in [0, 1]."""
        x, levels = images - self.level, []
        for block in self.down:
            x = block(x)
            levels.append(x)
        for block, level in zip(self.up, levels[-2::-1], strict=True):
            x = block(torch.cat([_resized(x, level), level], 1))
        return _resized(self.out(x), images)

    def forward(self, images: Tensor) -> Tensor:
        """Return the difference of images (B, 1, H, W) in [0, 1] from `level`, near 0 in the background."""
        return (images - self.level) * self.logits(images).sigmoid()


def _block(inputs: int, outputs: int, *, stride: int) -> nn.Module:
    layers: list[nn.Module] = []
    for channels, step in ((inputs, stride), (outputs, 1)):
        layers += [nn.Conv2d(channels, outputs, 3, step, 1, bias=False), nn.GroupNorm(outputs // 8, outputs), nn.SiLU()]
    return nn.Sequential(*layers)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
