"""Grad-CAM and its relatives, a batch at a time, on the device, at little more than the cost of a forward pass."""

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from trustcxr.errors import UserError
from trustcxr.explain.base import Target, check_images, target_classes, to_saliency
from trustcxr.models.feature_maps import Layer, arrangement, find_layer
from trustcxr.models.preserve_state import preserve_state

Combine = Callable[[Tensor, Tensor], Tensor]
# Keeps half-precision gradients of the head from vanishing; taken out again before they are used.
_HALF_PRECISION_SCALE = 1024.0
_STABILISER = 1e-6
SMOOTHING = 0.02  # of the longer side: the standard deviation that Zhang et al. 2018 smooth gradients with


def grad_cam(model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017): each channel of the feature map weighted by its mean gradient.

    `x`: images (B, 1, H, W), float, in [0, 1]. `target`: the class explained; None for each image's predicted class,
    one int for all, or a (B,) integer tensor. `layer`: whose output is read; None or -1 for `model.cam_layer`, -2 for
    the last layer of the stage before (of twice the resolution), -3 and so on; a module's dotted name; or the module.
    Where a layer runs more than once, its last output is read.

    Returns saliency (B, H, W), float32, on the device of `x`: positive evidence for the target, upsampled bilinearly,
    each map divided by its own maximum. A map without positive evidence, or the same everywhere (a null map), is all
    zeros. The model runs in eval mode and is left exactly as it was found: modes, gradients, hooks, random state.
    Works inside `no_grad`, `inference_mode` and autocast.

    Raises UserError for a layer that is not in the model, or a target outside its classes.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("resnet10t", classes=3).eval()
    >>> tx.explain.grad_cam(model, torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 32, 32])
    """
    return cam_of(_grad_cam_map, model, x, target, layer)


def grad_cam_plus_plus(
    model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None, stabiliser: float = _STABILISER
) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al. 2018): positive gradients, weighted pixel by pixel (its equation 19).

    `stabiliser` is added to the equation's denominator: the grad-cam package's value, so that maps agree with it. Where
    gradients are smaller than about its square root it decides the weights; 0 gives the paper's equation as printed.
    All else as `grad_cam`.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("resnet10t", classes=3).eval()
    >>> tx.explain.grad_cam_plus_plus(model, torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 32, 32])
    """
    return cam_of(partial(_grad_cam_plus_plus_map, stabiliser=stabiliser), model, x, target, layer)


def hires_cam(model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    """HiResCAM (Draelos and Carin 2020): feature map times gradient, pixel by pixel. All else as `grad_cam`.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("resnet10t", classes=3).eval()
    >>> tx.explain.hires_cam(model, torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 32, 32])
    """
    return cam_of(_hires_cam_map, model, x, target, layer)


def layer_cam(model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    """LayerCAM (Jiang et al. 2021): feature map times positive gradient, pixel by pixel; fit for earlier layers too.

    All else as `grad_cam`.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("resnet10t", classes=3).eval()
    >>> tx.explain.layer_cam(model, torch.rand(2, 1, 32, 32), layer="net.layer3").shape
    torch.Size([2, 32, 32])
    """
    return cam_of(_layer_cam_map, model, x, target, layer)


def activation_map(model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    """The layer's positive activations, summed over its channels: a control for LayerCAM, without the gradient.

    The same map whichever class is explained and whatever the model makes of the layer. What a CAM shows beyond it is
    the model's; at a layer near the image, such as a lung gate, it is little more than how bright the image is there.
    All else as `grad_cam`; `target` is checked and changes nothing.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("resnet10t", classes=3).eval()
    >>> tx.explain.method("activation")(model, torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 32, 32])
    """
    return cam_of(_activation_map, model, x, target, layer)


def smooth_layer_cam(model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    """LayerCAM, then a Gaussian whose standard deviation is SMOOTHING of the longer side.

    Meant for layers as fine as the image, whose maps are grainy: their highest pixel is an accident of its neighbours.
    Zhang et al. 2018 (excitation backprop) smooth gradients so before they point. All else as `grad_cam`.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("resnet10t", classes=3).eval()
    >>> tx.explain.method("layercam-smooth")(model, torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 32, 32])
    """
    return smoothed(layer_cam(model, x, target, layer=layer))


def smooth_activation_map(model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    """The control for `smooth_layer_cam`: `activation_map`, then the same Gaussian.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("resnet10t", classes=3).eval()
    >>> tx.explain.method("activation-smooth")(model, torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 32, 32])
    """
    return smoothed(activation_map(model, x, target, layer=layer))


def smoothed(saliency: Tensor) -> Tensor:
    """Saliency (B, H, W) after a Gaussian of SMOOTHING of the longer side, its highest value 1 again.

    Null maps stay null, and images too small for the filter as they are.
    """
    sigma = SMOOTHING * max(saliency.shape[-2:])
    size = 2 * math.ceil(3 * sigma) + 1
    if len(saliency) == 0 or size // 2 >= min(saliency.shape[-2:]):
        return saliency
    with torch.no_grad(), torch.autocast(saliency.device.type, enabled=False):
        blurred = gaussian_blur(saliency[:, None], [size, size], [sigma, sigma])[:, 0]
    highest = blurred.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, blurred / highest.clamp(min=torch.finfo(blurred.dtype).tiny), blurred)


def _grad_cam_map(features: Tensor, gradient: Tensor) -> Tensor:
    return torch.einsum("bk,bkhw->bhw", gradient.mean(dim=(2, 3)), features)


def _grad_cam_plus_plus_map(features: Tensor, gradient: Tensor, *, stabiliser: float = _STABILISER) -> Tensor:
    total = features.sum(dim=(2, 3), keepdim=True)
    denominator = 2 * gradient**2 + total * gradient**3 + stabiliser
    alpha = torch.where((gradient != 0) & (denominator != 0), gradient**2 / denominator, 0.0)
    weights = (alpha * gradient.clamp(min=0)).sum(dim=(2, 3))
    return torch.einsum("bk,bkhw->bhw", weights, features)


def _hires_cam_map(features: Tensor, gradient: Tensor) -> Tensor:
    return (gradient * features).sum(dim=1)


def _layer_cam_map(features: Tensor, gradient: Tensor) -> Tensor:
    return (gradient.clamp(min=0) * features).sum(dim=1)


def _activation_map(features: Tensor, gradient: Tensor) -> Tensor:
    return features.clamp(min=0).sum(dim=1)


def cam_of(combine: Combine, model: nn.Module, x: Tensor, target: Target, layer: Layer) -> Tensor:
    """Saliency (B, H, W) in [0, 1] by any combination of a layer's features and gradient, (B, K, h, w) -> (B, h, w)."""
    check_images(x)
    return saliency_from(combine, model, x, *feature_map_and_gradient(model, x, target, find_layer(model, layer)))


def saliency_from(combine: Combine, model: nn.Module, x: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
    """The map that a combination makes of a layer's features and gradient, as saliency (B, H, W) in [0, 1]."""
    height, width = x.shape[-2:]
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        arrange = arrangement(features, height, width, model)
        return to_saliency(combine(arrange(features), arrange(gradient)), height, width)


def feature_map_and_gradient(model: nn.Module, x: Tensor, target: Target, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The layer's output and the gradient of the target's logit with respect to it, in the layer's own shape.

    The network up to the layer runs without gradients; the hook then hands on a fresh leaf and turns gradients on, so
    that only what comes after the layer is differentiated. A model that takes one size of batch alone is asked for one
    batch at a time.
    """
    external: Any = model
    if getattr(external, "batch", None) is None:
        return _in_one_pass(model, x, target, layer)
    batches = x.split(external.batch)
    targets: Sequence[Target] = [None] * len(batches)
    if target is not None:
        targets = target_classes(target, x.new_empty(len(x), len(external.given.classes))).split(external.batch)
    # What the model fills its last batch up with has no map.
    parts = [
        [values[: len(batch)] for values in _in_one_pass(model, batch, classes, layer)]
        for batch, classes in zip(batches, targets, strict=True)
    ]
    features, gradients = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(gradients)


def _in_one_pass(model: nn.Module, x: Tensor, target: Target, layer: nn.Module) -> tuple[Tensor, Tensor]:
    leaves: list[Tensor] = []
    caller = threading.get_ident()

    def start_gradient(_module: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
        if threading.get_ident() != caller:  # the same model at work in another thread: not our forward pass
            return None
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise UserError(
                f"the layer's output is not one feature map but {type(output).__name__}: choose another layer"
            )
        leaf = output.detach().float().requires_grad_()
        leaves[:] = [leaf]
        torch.set_grad_enabled(True)
        # A copy, because what follows may work in place.
        return leaf.to(output.dtype, copy=True)

    with preserve_state(model, autocast_cache=False), torch.inference_mode(False), torch.no_grad():
        handle = layer.register_forward_hook(start_gradient)
        try:
            # A copy: an inference tensor cannot be differentiated, and some models work in place on what they get.
            logits = model(x.clone())
        finally:
            handle.remove()
        if not leaves:
            raise UserError("the layer is not run in the model's forward pass: choose another layer")
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise UserError("the model must return logits (B, C), one row an image")
        leaf = leaves[0]
        scale = _HALF_PRECISION_SCALE if logits.dtype == torch.float16 else 1.0
        score = logits.gather(1, target_classes(target, logits)[:, None]).float().sum()
        gradient = _gradient(score, leaf, scale) if score.requires_grad else None
        if gradient is None:
            raise UserError("the logits do not depend on the layer's output: choose another layer")
        return leaf.detach(), gradient


def _gradient(score: Tensor, leaf: Tensor, scale: float) -> Tensor | None:
    """Of the score by the leaf, made `scale` times as large on the way; by itself for images where that overflows."""
    (gradient,) = torch.autograd.grad(score * scale, leaf, allow_unused=True, retain_graph=scale != 1)
    if gradient is None or scale == 1:
        return gradient
    (plain,) = torch.autograd.grad(score, leaf)
    fine = gradient.flatten(1).isfinite().all(1).view(-1, *[1] * (gradient.ndim - 1))
    return torch.where(fine, gradient / scale, plain)


def cells_of(model: nn.Module, x: Tensor, layer: nn.Module) -> tuple[int, int]:
    """Rows and columns of the map that a CAM reads at a layer, before it is brought to the images' size."""
    seen: list[Tensor] = []

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen[:] = [output]

    with preserve_state(model, autocast_cache=False), torch.no_grad():
        handle = layer.register_forward_hook(note)
        try:
            model(x[:1].clone())
        finally:
            handle.remove()
        if not seen or not isinstance(seen[0], Tensor):
            raise UserError("the layer puts out no feature map: choose another layer")
        height, width = x.shape[-2:]
        rows, columns = arrangement(seen[0], height, width, model)(seen[0]).shape[-2:]
        return rows, columns
