"""Find saliency methods by name (`layercam`, or at a layer `layercam@gate`) and run several together."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from trustcxr import registry
from trustcxr.errors import UserError, unknown
from trustcxr.explain import baselines, cam
from trustcxr.explain.base import Target, check_images
from trustcxr.models.feature_maps import Layer, find_layer
from trustcxr.registry import SALIENCY, Method

SaliencyMethod = Callable[..., Tensor]  # (model, images (B, C, H, W), target) -> saliency (B, H, W) in [0, 1]
# CAMs by name: combinations of a layer's features and their gradient.
COMBINE: dict[str, cam.Combine] = {
    name: registry.load_function("explain", entry.combine) for name, entry in SALIENCY.items() if entry.combine
}


def _cam(name: str, model: nn.Module, x: Tensor, target: Target = None, *, layer: Layer = None) -> Tensor:
    saliency = cam.cam_of(COMBINE[name], model, x, target, layer)
    return cam.smoothed(saliency) if name.endswith("-smooth") else saliency


METHODS: dict[str, SaliencyMethod] = {
    name: registry.load_function("explain", entry.function) if entry.function else partial(_cam, name)
    for name, entry in SALIENCY.items()
}


def method(name: str) -> SaliencyMethod:
    """Return the saliency method of this name, such as "gradcam" or, of an earlier layer, "layercam@-2".

    Raises UserError, with the nearest names, for an unknown one; the layer is checked with the model.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("resnet10t", classes=3).eval()
    >>> tx.explain.method("layercam@-2")(model, torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 32, 32])
    """
    base, layer = parse(name)
    return METHODS[base] if layer is None else partial(METHODS[base], layer=layer)


def parse(name: str) -> tuple[str, Layer]:
    """Split "layercam@-2" into ("layercam", -2); without a layer, ("layercam", None)."""
    parsed = Method.parse(name)
    if parsed.base not in METHODS:
        raise unknown("saliency method", parsed.base, METHODS)
    if parsed.layer is None:
        return parsed.base, None
    if parsed.base not in COMBINE:
        raise UserError(f"'{name}': {parsed.base} reads no layer; those that do are {', '.join(COMBINE)}")
    if not parsed.layer:
        raise UserError(f"'{name}': a layer's name or a number from -1 down follows the @, as in {parsed.base}@-2")
    try:
        return parsed.base, int(parsed.layer)
    except ValueError:
        return parsed.base, parsed.layer


def maps(model: nn.Module, x: Tensor, target: Target, names: Sequence[str]) -> dict[str, Tensor]:
    """Return saliency (B, H, W) of several methods by name; CAMs of one layer share a forward and a backward pass."""
    check_images(x)
    saliency_maps: dict[str, Tensor] = {}
    shared: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    for name in names:
        base, layer = parse(name)
        if base in COMBINE:
            module = find_layer(model, layer)
            if module not in shared:
                shared[module] = cam.feature_map_and_gradient(model, x, target, module)
            saliency = cam.saliency_from(COMBINE[base], model, x, *shared[module])
            saliency_maps[name] = cam.smoothed(saliency) if base.endswith("-smooth") else saliency
        else:
            saliency_maps[name] = METHODS[base](model, x, target)
    return saliency_maps


def cells(model: nn.Module, x: Tensor, name: str) -> tuple[int, int] | None:
    """Return rows and columns of a method's map before upsampling; None if it has every pixel."""
    base, layer = parse(name)
    if base == registry.RANDOM_MAP:
        return baselines.CELLS
    if METHODS[base] is cam.evidence_map:
        cam.check_evidence(model)
        return cam.cells_of(model, x, model.cam_layer)  # type: ignore[arg-type]
    return cam.cells_of(model, x, find_layer(model, layer)) if base in COMBINE else None
