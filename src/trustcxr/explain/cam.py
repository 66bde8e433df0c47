"""Compute maps of a layer, a batch at a time: Grad-CAM and its relatives, and the evidence of evidence networks."""

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trustcxr.errors import UserError
from trustcxr.explain.base import Target, check_images, target_classes, to_saliency
from trustcxr.models import evidence_networks
from trustcxr.models.feature_maps import Layer, arrangement, find_layer
from trustcxr.models.preserve_state import preserve_state

Combine = Callable[[Tensor, Tensor], Tensor]
_HALF_PRECISION_SCALE = 1024.0  # keeps half-precision gradients from vanishing
_STABILISER = 1e-6
SMOOTHING = 0.02  # of the longer side: the standard deviation that Zhang et al. 2018 smooth gradients with


def grad_cam(model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017): each channel of the feature map weighted by its mean gradient.

    `x`: images (B, 1, H, W), float, in [0, 1]. `target`: the class to explain; None for each image's predicted class,
    one int for all, or a (B,) integer tensor. `layer`: None or -1 for `model.cam_layer`, -2 for the last layer of the
    stage before (of twice the resolution) and so on; a module's dotted name; or the module. Of a layer that runs more
    than once, the last output is used.

    Returns saliency (B, H, W), float32, on the device of `x`: positive evidence for the target, upsampled bilinearly,
    each map divided by its maximum. A constant map, or one without positive evidence, is all zeros (a null map). If the
    layer has a single cell, all maps are null, and a warning says so. The model runs in eval mode and its state is
    preserved. Works inside `no_grad`, `inference_mode` and autocast.

    Raises UserError for an unknown layer or class.

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

    `stabiliser` is added to the denominator, by default the grad-cam package's value; 0 gives the paper's equation. All
    else as `grad_cam`.

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


def smoothed(saliency: Tensor) -> Tensor:
    """Smooth saliency (B, H, W) by a Gaussian of SMOOTHING of the longer side, and scale its maximum to 1.

    It is for layers as fine as the image, with grainy maps (after Zhang et al. 2018). Null maps, and maps too small for
    the filter, stay unchanged.
    """
    from torchvision.transforms.functional import gaussian_blur  # importing it takes two seconds

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
    """Return saliency (B, H, W) by a combination of a layer's features and gradient, (B, K, h, w) -> (B, h, w)."""
    check_images(x)
    features, gradient = feature_map_and_gradient(model, x, target, find_layer(model, layer))
    if features.shape[2:] == (1, 1):
        warnings.warn("the layer has one cell, so the map is null: give an earlier one, such as layer=-2", stacklevel=3)
    return saliency_from(combine, model, x, features, gradient)


def saliency_from(combine: Combine, model: nn.Module, x: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
    """Combine a layer's features and gradient into saliency (B, H, W) in [0, 1]."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        arrange = arrangement(features, x.shape[-2], x.shape[-1], model)
        return to_saliency(combine(arrange(features), arrange(gradient)), *x.shape[-2:])


def feature_map_and_gradient(model: nn.Module, x: Tensor, target: Target, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the layer's output and the gradient of the target's logit, in the layer's shape.

    Gradients are computed only after the layer. A model with a fixed batch size runs one batch at a time.
    """
    external: Any = model
    if getattr(external, "batch", None) is None:
        return _in_one_pass(model, x, target, layer)
    batches = x.split(external.batch)
    targets: Sequence[Target] = [None] * len(batches)
    if target is not None:
        targets = target_classes(target, x.new_empty(len(x), len(external.output_spec.classes))).split(external.batch)
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
        if threading.get_ident() != caller:  # another thread may use the same model
            return None
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise UserError(f"the layer's output is {type(output).__name__}, not one feature map: choose another layer")
        leaf = output.detach().float().requires_grad_()
        leaves[:] = [leaf]
        torch.set_grad_enabled(True)
        # A copy, because what follows may work in place.
        return leaf.to(output.dtype, copy=True)

    with preserve_state(model, autocast_cache=False), torch.inference_mode(False), torch.no_grad():
        with layer.register_forward_hook(start_gradient):
            # A copy: an inference tensor cannot be differentiated, and some models work in place on what they get.
            logits = model(x.clone())
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
    """Return the gradient of the score, scaled on the way; unscaled for images for which that overflows."""
    (gradient,) = torch.autograd.grad(score * scale, leaf, allow_unused=True, retain_graph=scale != 1)
    if gradient is None or scale == 1:
        return gradient
    (plain,) = torch.autograd.grad(score, leaf)
    fine = gradient.flatten(1).isfinite().all(1).view(-1, *[1] * (gradient.ndim - 1))
    return torch.where(fine, gradient / scale, plain)


@contextmanager
def _record(layer: nn.Module) -> Iterator[list[tuple[Any, Any]]]:
    """Record the layer's inputs and output in this thread, pass by pass."""
    seen: list[tuple[Any, Any]] = []
    caller = threading.get_ident()

    def note(_module: nn.Module, inputs: Any, output: Any) -> None:
        if threading.get_ident() == caller:  # another thread may use the same model
            seen.append((inputs, output))

    with layer.register_forward_hook(note):
        yield seen


def cells_of(model: nn.Module, x: Tensor, layer: nn.Module) -> tuple[int, int]:
    """Return rows and columns of a layer's map, before upsampling."""
    with _record(layer) as seen, preserve_state(model, autocast_cache=False), torch.no_grad():
        model(x[:1].clone())
        output = seen[-1][1] if seen else None
        if not isinstance(output, Tensor):
            raise UserError("the layer puts out no feature map: choose another layer")
        rows, columns = arrangement(output, x.shape[-2], x.shape[-1], model)(output).shape[-2:]
        return rows, columns


def evidence_map(model: nn.Module, x: Tensor, target: Target = None) -> Tensor:
    """Return the evidence for the target as saliency (B, H, W), float32, in [0, 1]; negative evidence is 0.

    Raises UserError for other networks. All else as `grad_cam`.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("evidence-33", classes=3).eval()
    >>> tx.explain.method("evidence")(model, torch.rand(2, 1, 64, 64)).shape
    torch.Size([2, 64, 64])
    """
    return to_saliency(signed_evidence(model, x, target), *x.shape[-2:])


def features_map(model: nn.Module, x: Tensor, target: Target = None) -> Tensor:
    """Return the baseline for `evidence_map`: the positive features before the head, summed over channels.

    `target` is checked, and changes nothing. All else as `evidence_map`.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("evidence-33", classes=3).eval()
    >>> tx.explain.method("evidence-features")(model, torch.rand(2, 1, 64, 64)).shape
    torch.Size([2, 64, 64])
    """
    check_images(x)
    check_evidence(model)
    net = getattr(model, "net", model)
    heads = [one.head for one in getattr(net, "nets", [net])]
    with ExitStack() as hooked:
        seen = [hooked.enter_context(_record(head)) for head in heads]
        with preserve_state(model, autocast_cache=False), torch.no_grad():
            target_classes(target, model(x))
    features = torch.cat([passes[-1][0][0] for passes in seen], 1).float()
    return to_saliency(features.clamp(min=0).sum(1), *x.shape[-2:])


def signed_evidence(model: nn.Module, x: Tensor, target: Target = None) -> Tensor:
    """Return the signed evidence (B, h, w), float32, which sums to the target's logit."""
    check_images(x)
    check_evidence(model)
    layer: nn.Module = model.cam_layer  # type: ignore[assignment]  # an identity: what enters it leaves it
    with _record(layer) as seen, preserve_state(model, autocast_cache=False), torch.no_grad():
        classes = target_classes(target, model(x))
    evidence = evidence_networks.evidence_per_class(model, seen[-1][0][0]).float()
    return evidence[torch.arange(len(evidence), device=x.device), classes]


def check_evidence(model: nn.Module) -> None:
    """Raise UserError unless the model is an evidence network."""
    if not evidence_networks.reads_evidence(model) or not hasattr(model, "cam_layer"):
        raise UserError("saliency method evidence is of evidence networks (evidence-33 and its like); choose a CAM")
