"""Compute saliency of pixels through captum: integrated gradients, SmoothGrad, occlusion. Extra `captum`.

They need many forward or backward passes. All else as `cam.grad_cam`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trustcxr.errors import UserError
from trustcxr.explain.base import Target, check_images, target_classes, to_saliency
from trustcxr.models.preserve_state import preserve_state

_ROUNDING = 1e-5  # share of the largest logit: smaller changes are rounding


def integrated_gradients(
    model: nn.Module, x: Tensor, target: Target = None, *, baseline: float = 0.0, steps: int = 32
) -> Tensor:
    """Integrated gradients (Sundararajan et al. 2017): gradients summed on the way from a flat image to this one.

    `baseline`: the grey level of the flat image, 0 for black. `steps`: points on the way, a forward and a backward pass
    each. Saliency is the absolute attribution. All else as `grad_cam`.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("resnet10t", classes=3).eval()
    >>> tx.explain.integrated_gradients(model, torch.rand(2, 1, 32, 32), steps=4).shape
    torch.Size([2, 32, 32])
    """

    _at_least("steps", steps, 1)

    def attribute(captum: Any, images: Tensor, classes: Tensor) -> Tensor:
        method = captum.IntegratedGradients(model)
        # One batch's worth of memory, however many steps.
        return method.attribute(
            images, baselines=baseline, target=classes, n_steps=steps, internal_batch_size=max(len(images), 1)
        ).abs()

    return _attribution(attribute, model, x, target)


def smooth_grad(
    model: nn.Module, x: Tensor, target: Target = None, *, noise: float = 0.1, samples: int = 16, seed: int = 0
) -> Tensor:
    """SmoothGrad (Smilkov et al. 2017): the gradient's size, after its mean over noisy copies of the image.

    `noise`: standard deviation in pixel space. `samples`: copies, a forward and a backward pass each. `seed` of the
    noise, which is the same for every image. All else as `grad_cam`.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("resnet10t", classes=3).eval()
    >>> tx.explain.smooth_grad(model, torch.rand(2, 1, 32, 32), samples=2).shape
    torch.Size([2, 32, 32])
    """

    _at_least("samples", samples, 1)
    _at_least("noise", noise, 0)

    def attribute(captum: Any, images: Tensor, classes: Tensor) -> Tensor:
        method, total = captum.Saliency(model), torch.zeros_like(images)
        # Drawn on the CPU, so that it is the same on every device.
        generator = torch.Generator().manual_seed(seed)
        for _ in range(samples):
            drawn = torch.randn(images.shape[1:], generator=generator).to(images)
            noisy = (images + noise * drawn).requires_grad_()
            total += method.attribute(noisy, target=classes, abs=False).detach()
        return total.abs()

    return _attribution(attribute, model, x, target, seed=seed)


def occlusion(
    model: nn.Module, x: Tensor, target: Target = None, *, window: int | None = None, stride: int | None = None
) -> Tensor:
    """Occlusion (Zeiler and Fergus 2014): how far the logit falls where a square of the image is hidden.

    `window`: pixels a side, by default an eighth of the shorter side. `stride`: by default half a window. The square
    has the image's mean grey. If hiding changes the logit by rounding alone, the map is null. All else as `grad_cam`.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("resnet10t", classes=3).eval()
    >>> tx.explain.occlusion(model, torch.rand(2, 1, 32, 32), window=16, stride=16).shape
    torch.Size([2, 32, 32])
    """
    check_images(x)
    shorter = min(x.shape[-2:])
    side = max(shorter // 8, 1) if window is None else window
    _at_least("window", side, 1, shorter, "the shorter side of the images")
    step = max(side // 2, 1) if stride is None else stride
    _at_least("stride", step, 1, side, "the window")

    def attribute(captum: Any, images: Tensor, classes: Tensor) -> Tensor:
        grey = images.mean(dim=(1, 2, 3), keepdim=True).expand_as(images)
        shapes = {"sliding_window_shapes": (images.shape[1], side, side), "strides": (images.shape[1], step, step)}
        falls: Tensor = captum.Occlusion(model).attribute(images, baselines=grey, target=classes, **shapes)
        with torch.no_grad():
            largest = model(images.clone()).abs().amax(1).view(-1, 1, 1, 1)
        return torch.where(falls.amax((1, 2, 3), keepdim=True) > _ROUNDING * largest, falls, 0.0)

    return _attribution(attribute, model, x, target)


def _attribution(
    attribute: Callable[[Any, Tensor, Tensor], Tensor], model: nn.Module, x: Tensor, target: Target, *, seed: int = 0
) -> Tensor:
    try:
        import captum.attr as captum
    except ImportError as problem:
        raise UserError("this saliency method comes through captum: pip install 'trustcxr[captum]'") from problem
    check_images(x)
    with preserve_state(model, seed=seed, autocast_cache=False), torch.inference_mode(False):
        # A copy: captum marks its input as requiring a gradient, and an inference tensor cannot be marked.
        images = x.detach().clone()
        with torch.no_grad():
            classes = target_classes(target, model(images.clone()))
        if not len(images):
            return images.new_zeros((0, *images.shape[-2:]), dtype=torch.float32)
        evidence = attribute(captum, images, classes).detach().float().sum(dim=1)
    return to_saliency(evidence, *x.shape[-2:])


def _at_least(name: str, value: float, least: int, most: int | None = None, what: str = "") -> None:
    """Raise UserError for an option below its least value, or above its most, which is `what`."""
    if not value >= least or (most is not None and value > most):
        bounds = f"{least} or more" if most is None else f"{least} to {most}, {what}"
        raise UserError(f"{name} must be {bounds}; got {value}")
