"""Define evidence networks: their logits are the sums of their maps of evidence for each class.

A cell of `evidence-33` sees 33 x 33 pixels (a bag of local features: Brendel and Bethge 2019), one of `evidence-full`
the whole image; `evidence-resnet10t` reads every stage of a ResNet (a feature pyramid: Lin et al. 2017). Every fourth
pixel has a cell, weighted by a learnt gate. Evidence that is the same for all classes is removed.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIELDS = (17, 25, 33, 41, 49)  # pixels of a side that a cell sees
WHOLE = "full"
BACKBONES = ("resnet10t", "resnet18", "resnet34", "resnet50")  # whose stages a cell may read
KINDS = (*map(str, FIELDS), WHOLE, *BACKBONES)  # what stands behind evidence-
STRIDE = 4  # pixels from cell to cell
WIDTH = 48  # channels; evidence-33x96 has 96
_FIRST, _STEP = 9, 8  # the field of the stem, and what each block adds to it
_WHOLE_BLOCKS, _DEEP_BLOCKS = 2, 3
SCALE = 16.0  # of the map: many cells are summed
_NAME = re.compile(rf"evidence-({'|'.join(KINDS)})(?:x([2-9]|[1-9]\d+))?")  # the stem has half of the width


def convolve(channels: int, out: int, kernel: int, stride: int = 1, *, act: bool = True) -> list[nn.Module]:
    """Make a convolution with its norm and its rectifier: (B, channels, h, w) -> (B, out, h / stride, w / stride)."""
    layers = [nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out)]
    return [*layers, nn.ReLU()] if act else layers


class Block(nn.Module):
    """A 3 x 3 and a 1 x 1 convolution beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*convolve(width, width, 3), *convolve(width, width, 1, act=False))
        self.act = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, K, h, w) -> the same shape."""
        return self.act(features + self.body(features))


class EvidenceNet(nn.Module):
    """Normalised pixels (B, 1, H, W) -> evidence (B, C, H/4, W/4) -> logits (B, C), its sum.

    `field`: pixels of a side that a cell sees, one of FIELDS; None for the whole image. `backbone`: one of BACKBONES
    instead. Only BatchNorm is used: other norms would let each cell see the whole image.
    """

    def __init__(
        self, classes: int, *, field: int | None = 33, width: int = WIDTH, backbone: str | None = None
    ) -> None:
        super().__init__()
        self.field, self.num_features = None if backbone else field, classes
        blocks = _WHOLE_BLOCKS if field is None else (field - _FIRST) // _STEP
        stem = [] if backbone else [*convolve(1, width // 2, 5, 2), *convolve(width // 2, width, 3, 2)]
        self.stem = nn.Sequential(*stem)
        self.body = _Pyramid(backbone, width) if backbone else nn.Sequential(*[Block(width) for _ in range(blocks)])
        self.around = _Around(width) if field is None and not backbone else None
        self.act = nn.ReLU()
        self.head = nn.Conv2d(width, classes + 1, 1)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 1, H, W) -> evidence (B, C, h, w), whose sum over places is the logits."""
        if self.around is not None:
            pixels = pixels - pixels.mean((1, 2, 3), keepdim=True)
            pixels = pixels / (pixels.square().mean((1, 2, 3), keepdim=True) + 0.01).sqrt()
        features = self.body(self.stem(pixels))
        if self.around is not None:
            features = self.act(features + self.around(features))
        return self.weighed(self.head(features))[0]

    @staticmethod
    def weighed(outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Split the head's output (B, C + 1, h, w) into evidence (B, C, h, w) and the gate's logits (B, 1, h, w)."""
        evidence, gate = outputs[:, :-1], outputs[:, -1:]
        # Evidence for all classes alike changes no prediction.
        evidence = evidence - evidence.mean(1, keepdim=True)
        return evidence * gate.sigmoid() / SCALE, gate

    def forward_head(self, evidence: Tensor) -> Tensor:
        """Evidence (B, C, h, w) -> logits (B, C)."""
        return evidence.sum((2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 1, H, W) -> logits (B, C)."""
        return self.forward_head(self.forward_features(pixels))


class _Around(nn.Module):
    """Context of the whole image: blocks on a quarter of the cells, upsampled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Sequential(*convolve(width, 2 * width, 3, 2))
        self.deep = nn.Sequential(*[Block(2 * width) for _ in range(_DEEP_BLOCKS)])
        self.up = nn.Conv2d(2 * width, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        coarse = self.up(self.deep(self.down(features)))
        return F.interpolate(coarse, size=features.shape[-2:], mode="bilinear", align_corners=False)


class _Pyramid(nn.Module):
    """The stages of a ResNet from a quarter of the side down, each brought to one width and to the first's cells."""

    def __init__(self, backbone: str, width: int) -> None:
        super().__init__()
        import timm  # it takes seconds, and networks without a backbone do not need it

        self.stages = timm.create_model(backbone, features_only=True, in_chans=1, out_indices=(1, 2, 3, 4))
        channels: list[int] = self.stages.feature_info.channels()  # type: ignore[operator, union-attr]
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.mixed = nn.Sequential(*convolve(width, width, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        pairs = zip(self.lateral, self.stages(pixels), strict=True)
        finest, *coarser = [lateral(features) for lateral, features in pairs]
        for features in coarser:
            finest = finest + F.interpolate(features, size=finest.shape[-2:], mode="bilinear", align_corners=False)
        return self.mixed(finest)


def is_evidence_network(name: str) -> bool:
    """Return True for the name of an evidence network."""
    return _NAME.fullmatch(name) is not None


def build_network(name: str, classes: int) -> EvidenceNet:
    """Build an untrained network by its name, such as evidence-33x96 (`is_evidence_network`)."""
    match = _NAME.fullmatch(name)
    assert match is not None
    kind, width = match[1], int(match[2] or WIDTH)
    if kind in BACKBONES:
        return EvidenceNet(classes, width=width, backbone=kind)
    return EvidenceNet(classes, field=None if kind == WHOLE else int(kind), width=width)


def reads_evidence(model: nn.Module) -> bool:
    """Return True for an evidence network or an ensemble of them."""
    return all(isinstance(net, EvidenceNet) for net in _members(model))


def evidence_per_class(model: nn.Module, features: Tensor) -> Tensor:
    """Convert the output of `cam_layer` to evidence (B, C, h, w), the mean over an ensemble."""
    return torch.stack(features.chunk(len(_members(model)), 1)).mean(0)


def _members(model: nn.Module) -> list[nn.Module]:
    net = getattr(model, "net", model)
    return list(getattr(net, "nets", [net]))
