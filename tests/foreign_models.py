"""Models as other people's scripts make them: RGB, ImageNet's mean and std, any format; and how files are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from trustcxr.audit.formats import describe_file, load
from trustcxr.errors import UserError

CLASSES = ("COVID-19", "Non-COVID", "Normal")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 32
IMAGENET: dict[str, Any] = {"size": SIDE, "channels": 3, "mean": MEAN, "std": STD}


def small(outputs: int = 3) -> nn.Module:
    """timm's own network for tests: a small ResNet with random weights, whose BatchNorm has seen something."""
    return settled(timm.create_model("test_resnet", num_classes=outputs))


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


def refused(path: Path, match: str, where: str | None = None, **options: Any) -> None:
    """Check that the file is neither loaded nor described, each in one line that names it."""
    for call in (lambda: load(path, classes=CLASSES, **IMAGENET, **options), lambda: describe_file(path)):
        with pytest.raises(UserError, match=match) as caught:
            call()
        assert (str(path) if where is None else where) in str(caught.value)
        assert "\n" not in str(caught.value)


def steepest_slopes(model: nn.Module, images: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """How the first logit rises along its gradient (B,): by the gradient itself, and by finite differences."""
    leaf = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    norm = gradient.flatten(1).norm(dim=1)
    with torch.no_grad():
        above, below = (model(images + sign * gradient / norm[:, None, None, None])[:, 0] for sign in (step, -step))
    return norm, (above - below) / (2 * step)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "test_resnet": small,
    "torchvision": lambda: settled(torchvision.models.resnet18(num_classes=3)),
    "timm": lambda: settled(timm.create_model("densenet121", num_classes=3)),
}


def normalised(images: Tensor) -> Tensor:
    """What those scripts do to a grey image (B, 1, H, W) in [0, 1]."""
    return (images.repeat(1, 3, 1, 1) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def exported(net: nn.Module, path: Path, side: int = SIDE, batch: int | None = None) -> Path:
    """Export a network for any number of images, or for one alone."""
    shapes = None if batch else ({0: torch.export.Dim("batch")},)
    images = torch.randn(batch or 2, 3, side, side)
    torch.export.save(torch.export.export(net, (images,), dynamic_shapes=shapes), path)
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


class Computes(nn.Module):
    """Answers as a function does; the networks that the function calls are its parts."""

    def __init__(self, answer: Callable[[Tensor], Any], *parts: nn.Module) -> None:
        super().__init__()
        self.answer, self.parts = answer, nn.ModuleList(parts)

    def forward(self, images: Tensor) -> Any:
        return self.answer(images)


class Sigmoids(nn.Sequential):
    """Ends in a sigmoid for each finding."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, nn.Sigmoid())


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
