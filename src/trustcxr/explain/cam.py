"""Grad-CAM and its relatives, a batch at a time, on the device, at little more than the cost of a forward pass."""

import math
import threading
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from trustcxr.errors import UserError, unknown
from trustcxr.explain.contract import SaliencyMethod, Target, check_images, target_classes, to_saliency
from trustcxr.explain.controls import centre_saliency, random_saliency
from trustcxr.explain.pixels import integrated_gradients, occlusion, smooth_grad
from trustcxr.models.untouched import as_found

Layer = str | int | nn.Module | None
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
    """
    return _cam(_grad_cam_map, model, x, target, layer)


def grad_cam_plus_plus(
    model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None, stabiliser: float = _STABILISER
) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al. 2018): positive gradients, weighted pixel by pixel (its equation 19).

    `stabiliser` is added to the equation's denominator: the grad-cam package's value, so that maps agree with it. Where
    gradients are smaller than about its square root it decides the weights; 0 gives the paper's equation as printed.
    All else as `grad_cam`.
    """
    return _cam(partial(_grad_cam_plus_plus_map, stabiliser=stabiliser), model, x, target, layer)


def hires_cam(model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    """HiResCAM (Draelos and Carin 2020): feature map times gradient, pixel by pixel. All else as `grad_cam`."""
    return _cam(_hires_cam_map, model, x, target, layer)


def layer_cam(model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    """LayerCAM (Jiang et al. 2021): feature map times positive gradient, pixel by pixel; fit for earlier layers too.

    All else as `grad_cam`.
    """
    return _cam(_layer_cam_map, model, x, target, layer)


def smooth_layer_cam(model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    """LayerCAM, then a Gaussian whose standard deviation is SMOOTHING of the longer side.

    Meant for layers as fine as the image, whose maps are grainy: their highest pixel is an accident of its neighbours.
    Zhang et al. 2018 (excitation backprop) smooth gradients so before they point. All else as `grad_cam`.
    """
    return smoothed(layer_cam(model, x, target, layer=layer))


def activation_map(model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    """The layer's positive activations, summed over its channels: a control for LayerCAM, without the gradient.

    The same map whichever class is explained and whatever the model makes of the layer. What a CAM shows beyond it is
    the model's; at a layer near the image, such as a lung gate, it is little more than how bright the film is there.
    All else as `grad_cam`; `target` is checked and changes nothing.
    """
    return _cam(_activation_map, model, x, target, layer)


def smooth_activation_map(model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    """The control for `smooth_layer_cam`: `activation_map`, then the same Gaussian."""
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
        found = gaussian_blur(saliency[:, None], [size, size], [sigma, sigma])[:, 0]
    highest = found.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, found / highest.clamp(min=torch.finfo(found.dtype).tiny), found)


# Every method by the name that commands and tables use; the last two are the controls that are always there, the
# activations those of a layer. A CAM may name the layer that it reads: "layercam@-2", "gradcam@layer3".
METHODS: dict[str, SaliencyMethod] = {
    "gradcam": grad_cam,
    "gradcam++": grad_cam_plus_plus,
    "hirescam": hires_cam,
    "layercam": layer_cam,
    "layercam-smooth": smooth_layer_cam,
    "activation": activation_map,
    "activation-smooth": smooth_activation_map,
    "integrated-gradients": integrated_gradients,
    "smoothgrad": smooth_grad,
    "occlusion": occlusion,
    "random": random_saliency,
    "centre": centre_saliency,
}


WITHOUT_MODEL = ("random", "centre")  # maps that are the same for every model


def method(name: str) -> SaliencyMethod:
    """The saliency method of this name, such as "gradcam" or, of an earlier layer, "layercam@-2".

    Raises UserError, with the nearest names, where there is none; a layer is looked for when the model is there.
    """
    base, layer = parse(name)
    return METHODS[base] if layer is None else partial(METHODS[base], layer=layer)  # type: ignore[call-arg]


def parse(name: str) -> tuple[str, Layer]:
    """ "layercam@-2" -> ("layercam", -2); the layer is None where the name has none."""
    base, at, layer = name.strip().partition("@")
    if base.lower() not in METHODS:
        raise unknown("saliency method", base, METHODS)
    if not at:
        return base.lower(), None
    if base.lower() not in _COMBINE:
        raise UserError(f"'{name}': {base} reads no layer; those that do are {', '.join(_COMBINE)}")
    if not layer:
        raise UserError(f"'{name}': a layer's name or a number from -1 down follows the @, as in {base}@-2")
    try:
        return base.lower(), int(layer)
    except ValueError:
        return base.lower(), layer


def maps(model: nn.Module, x: Tensor, target: Target, names: Sequence[str]) -> dict[str, Tensor]:
    """Saliency (B, H, W) of several methods by name; CAMs of one layer share one forward and one backward pass."""
    check_images(x)
    found: dict[str, Tensor] = {}
    shared: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    for name in names:
        base, layer = parse(name)
        if base in _COMBINE:
            module = find_layer(model, layer)
            if module not in shared:
                shared[module] = _feature_map_and_gradient(model, x, target, module)
            saliency = _saliency(_COMBINE[base], model, x, *shared[module])
            found[name] = smoothed(saliency) if base.endswith("-smooth") else saliency
        else:
            found[name] = METHODS[base](model, x, target)
    return found


# From a feature map and its gradient, both (B, K, h, w), to a map (B, h, w) whose sign still tells for from against.


def _grad_cam_map(features: Tensor, gradient: Tensor) -> Tensor:
    return torch.einsum("bk,bkhw->bhw", gradient.mean(dim=(2, 3)), features)


def _grad_cam_plus_plus_map(features: Tensor, gradient: Tensor, *, stabiliser: float) -> Tensor:
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


_COMBINE: dict[str, Combine] = {
    "gradcam": _grad_cam_map,
    "gradcam++": partial(_grad_cam_plus_plus_map, stabiliser=_STABILISER),
    "hirescam": _hires_cam_map,
    "layercam": _layer_cam_map,
    "layercam-smooth": _layer_cam_map,
    "activation": _activation_map,
    "activation-smooth": _activation_map,
}


def _cam(combine: Combine, model: nn.Module, x: Tensor, target: Target, layer: Layer) -> Tensor:
    check_images(x)
    return _saliency(combine, model, x, *_feature_map_and_gradient(model, x, target, find_layer(model, layer)))


def _saliency(combine: Combine, model: nn.Module, x: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        arrange = _arrangement(features, height, width, model)
        return to_saliency(combine(arrange(features), arrange(gradient)), height, width)


def _feature_map_and_gradient(model: nn.Module, x: Tensor, target: Target, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The layer's output and the gradient of the target's logit with respect to it, in the layer's own shape.

    The network up to the layer runs without gradients; the hook then hands on a fresh leaf and turns gradients on, so
    that only what comes after the layer is differentiated.
    """
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

    with as_found(model, x.device), torch.inference_mode(False), torch.no_grad():
        handle = layer.register_forward_hook(start_gradient)
        try:
            logits = model(x.clone() if x.is_inference() else x)
        finally:
            handle.remove()
        if not leaves:
            raise UserError("the layer is not run in the model's forward pass: choose another layer")
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise UserError("the model must return logits (B, C), one row an image")
        leaf = leaves[0]
        scale = _HALF_PRECISION_SCALE if logits.dtype == torch.float16 else 1.0
        score = logits.gather(1, target_classes(target, logits)[:, None]).float().sum() * scale
        gradient = torch.autograd.grad(score, leaf, allow_unused=True)[0] if score.requires_grad else None
        if gradient is None:
            raise UserError("the logits do not depend on the layer's output: choose another layer")
        return leaf.detach(), gradient / scale


def find_layer(model: nn.Module, layer: Layer) -> nn.Module:
    """The module that `grad_cam` reads for this `layer`. Raises UserError, with valid ones, where there is none."""
    if isinstance(layer, nn.Module):
        if not any(layer is module for module in model.modules()):
            raise UserError(f"the layer given ({type(layer).__name__}) is not part of the model: give one of its own")
        return layer
    names = {name: module for name, module in model.named_modules() if name}
    if layer is None or layer == -1:
        return _last_map(model, names)
    stages = _stages(model)
    if isinstance(layer, int):
        if -len(stages) <= layer <= -2:
            return names[stages[layer]]
        numbers = f"-1 to -{len(stages)}" if stages else "-1"
        raise UserError(f"unknown layer {layer}: valid: {numbers}, or a name such as {_some(names)}")
    for name in (layer, f"net.{layer}"):
        if name in names:
            return names[name]
    near = get_close_matches(layer, list(names), n=5, cutoff=0.5)
    raise UserError(
        f"unknown layer '{layer}': {'did you mean ' + ' or '.join(near) + '? ' if near else ''}"
        f"valid: {', '.join(stages) or _some(names)}, or any name in model.named_modules()"
    )


def _last_map(model: nn.Module, names: dict[str, nn.Module]) -> nn.Module:
    net = getattr(model, "net", model)
    blocks = getattr(net, "blocks", None)
    # A transformer that classifies from its class token gives its last patches no gradient: read before they mix.
    if getattr(net, "global_pool", None) == "token" and blocks is not None and hasattr(blocks[-1], "norm1"):
        return blocks[-1].norm1
    if isinstance(getattr(model, "cam_layer", None), nn.Module):
        return model.cam_layer  # type: ignore[return-value]
    raise UserError(f"the model has no cam_layer: say which layer to read, such as {_some(names)}")


def _stages(model: nn.Module) -> list[str]:
    """Names of the modules that end each stage of a timm network, the last stage last; empty for other networks."""
    prefix = "net." if hasattr(model, "net") else ""
    known = {name for name, _ in model.named_modules()}
    listed: Any = getattr(getattr(model, "net", model), "feature_info", None) or ()
    names = [f"{prefix}{stage['module']}" for stage in listed if isinstance(stage, dict) and "module" in stage]
    return names if all(name in known for name in names) else []


def _some(names: dict[str, nn.Module]) -> str:
    return ", ".join([name for name in names if name.count(".") < 2][:12])


def _arrangement(features: Tensor, height: int, width: int, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """What turns the layer's shape into (B, K, h, w): channels first, channels last (Swin) or patch tokens (ViT)."""

    def fits(rows: int, columns: int) -> bool:  # of the images' proportions, to within one cell
        return abs(rows * width - columns * height) <= max(height, width)

    if features.ndim == 4:
        first, second, third = features.shape[1:]
        if fits(first, second) and not fits(second, third):
            return lambda t: t.permute(0, 3, 1, 2)
        return lambda t: t
    if features.ndim == 3:
        prefix = getattr(getattr(model, "net", model), "num_prefix_tokens", 0)
        patches = features.shape[1] - prefix
        rows = max(round((max(patches, 1) * height / width) ** 0.5), 1)
        if patches > 0 and patches % rows == 0 and fits(rows, patches // rows):
            return lambda t: t[:, prefix:].transpose(1, 2).unflatten(2, (rows, patches // rows))
    raise UserError(
        f"the layer's output {tuple(features.shape)} is no feature map (B, K, h, w), (B, h, w, K) or (B, patches, K): "
        "choose another layer"
    )
