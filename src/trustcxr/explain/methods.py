"""Every saliency method by name, several at once: `layercam`, or at a layer, `layercam@gate`."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from trustcxr.errors import UserError, unknown
from trustcxr.explain.cam import (
    _COMBINE,
    _feature_map_and_gradient,
    _saliency,
    activation_map,
    grad_cam,
    grad_cam_plus_plus,
    hires_cam,
    layer_cam,
    smoothed,
)
from trustcxr.explain.contract import SaliencyMethod, Target, check_images
from trustcxr.explain.controls import centre_saliency, random_saliency
from trustcxr.explain.evidence import evidence_map
from trustcxr.explain.layers import Layer, find_layer
from trustcxr.explain.pixels import integrated_gradients, occlusion, smooth_grad


def smooth_layer_cam(model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    """LayerCAM, then a Gaussian whose standard deviation is SMOOTHING of the longer side.

    Meant for layers as fine as the image, whose maps are grainy: their highest pixel is an accident of its neighbours.
    Zhang et al. 2018 (excitation backprop) smooth gradients so before they point. All else as `grad_cam`.
    """
    return smoothed(layer_cam(model, x, target, layer=layer))


def smooth_activation_map(model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    """The control for `smooth_layer_cam`: `activation_map`, then the same Gaussian."""
    return smoothed(activation_map(model, x, target, layer=layer))


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
    "evidence": evidence_map,
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
