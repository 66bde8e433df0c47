"""Models as other people's scripts make them: RGB, ImageNet's mean and std, any format. Nothing of our package."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = ("COVID-19", "Non-COVID", "Normal")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 32
IMAGENET: dict[str, Any] = {"size": SIDE, "channels": 3, "mean": MEAN, "std": STD}


def small(outputs: int = 3) -> nn.Module:
    """timm's own network for tests: a small ResNet with random weights, whose BatchNorm has seen something."""
    import timm

    return settled(timm.create_model("test_resnet", num_classes=outputs))


def resnet18() -> nn.Module:
    import torchvision

    return settled(torchvision.models.resnet18(num_classes=3))


def densenet121() -> nn.Module:
    import timm

    return settled(timm.create_model("densenet121", num_classes=3))


def settled(net: nn.Module) -> nn.Module:
    random = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, generator=random)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    with torch.no_grad():
        net.train()(torch.randn((8, 3, SIDE, SIDE), generator=random))
    return net.eval()


def normalised(images: Tensor) -> Tensor:
    """What those scripts do to a grey image (B, 1, H, W) in [0, 1]."""
    return (images.repeat(1, 3, 1, 1) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def exported(net: nn.Module, path: Path, side: int = SIDE) -> Path:
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net, (torch.randn(2, 3, side, side),), dynamic_shapes=batch), path)
    return path


def traced(net: nn.Module, path: Path) -> Path:
    torch.jit.trace(net, torch.randn(2, 3, SIDE, SIDE)).save(str(path))
    return path


def scripted(net: nn.Module, path: Path) -> Path:
    torch.jit.script(net).save(str(path))
    return path


def onnx(net: nn.Module, path: Path) -> Path:
    images = torch.randn(2, 3, SIDE, SIDE)
    torch.onnx.export(net, (images,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}})
    return path


FORMATS = {"torch.export": (exported, "m.pt2"), "traced": (traced, "m.pt"), "scripted": (scripted, "m.pt")}
FORMATS |= {"onnx": (onnx, "m.onnx")}


class Probabilities(nn.Module):
    """Ends in a softmax."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).softmax(1)


class Sigmoids(nn.Module):
    """Ends in a sigmoid for each finding."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.net(images))


class DropoutLeftOn(nn.Module):
    """Drops some of the pixels, in evaluation too."""

    def __init__(self, net: nn.Module, share: float = 0.2) -> None:
        super().__init__()
        self.net, self.share = net, share

    def forward(self, images: Tensor) -> Tensor:
        return self.net(nn.functional.dropout(images, self.share, training=True))


class WritesAFile(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        torch.save(images, "written")
        return images.mean((2, 3))


class RunsWhenRead(nn.Module):
    @torch.jit.export
    def __getstate__(self) -> int:
        return 1

    @torch.jit.export
    def __setstate__(self, state: int) -> None:
        torch.save(torch.zeros(1), "written")

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def a_network() -> nn.Module:
    """For python: foreign_models:a_network."""
    return small()


def scores(images: Tensor) -> Any:
    """A function from images to scores, in numpy."""
    return images.mean((2, 3)).detach().numpy()
