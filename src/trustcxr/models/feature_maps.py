"""Find the layer of a CAM in any architecture, and bring its output to (B, C, h, w)."""

import math
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from trustcxr.errors import UserError, suggest_nearest

Layer = str | int | nn.Module | None
# For timm's Xceptions feature_info names a layer inside a block, without its shortcut: the block before ends the stage.
_WITHIN = re.compile(r"^(block|blocks\.)(\d+)\.(?:rep|stack)\.\w+$")


def find_layer(model: nn.Module, layer: Layer) -> nn.Module:
    """Return the module that `grad_cam` uses for this `layer`; raise UserError, with valid ones, if there is none."""
    if isinstance(layer, nn.Module):
        if not any(layer is module for module in model.modules()):
            raise UserError(f"the layer given ({type(layer).__name__}) is not part of the model: give one of its own")
        return layer
    names = {name: module for name, module in model.named_modules() if name}
    if layer in (None, -1, "cam_layer"):
        last = before_mixing(getattr(model, "net", model)) or getattr(model, "cam_layer", None)
        if isinstance(last, nn.Module):
            return last
        raise UserError(f"the model has no cam_layer: say which layer to read, such as {_some(names)}")
    stages = stage_names(model)
    if isinstance(layer, int):
        if -len(stages) <= layer <= -2:
            return names[stages[layer]]
        numbers = f"-1 to -{len(stages)}" if stages else "-1"
        raise UserError(f"unknown layer {layer}: valid: {numbers}, or a name such as {_some(names)}")
    for name in (layer, f"net.{layer}"):
        if name in names:
            return names[name]
    valid = f"{', '.join(stages) or _some(names)}, or any name in model.named_modules()"
    raise UserError(f"unknown layer '{layer}': {suggest_nearest(layer, names)}valid: {valid}")


def before_mixing(net: nn.Module) -> nn.Module | None:
    """Return the last block's input norm of a transformer with a class token, whose output patches have no gradient.

    None for any other network.
    """
    blocks = getattr(net, "blocks", None)
    if getattr(net, "global_pool", None) != "token" or blocks is None:
        return None
    return getattr(blocks[-1], "norm1", getattr(blocks[-1], "norm_out", None))


def stage_names(model: nn.Module) -> list[str]:
    """Return the names of the modules that end each stage of a timm network; empty for other networks."""
    prefix = "net." if hasattr(model, "net") else ""
    module_names = {name for name, _ in model.named_modules()}
    listed: Any = getattr(getattr(model, "net", model), "feature_info", None) or ()
    modules = [str(stage["module"]) for stage in listed if isinstance(stage, dict) and "module" in stage]
    names = [prefix + _WITHIN.sub(_stage_end, module) for module in modules]
    return names if all(name in module_names for name in names) else []


def _stage_end(match: re.Match[str]) -> str:
    return f"{match[1]}{int(match[2]) - 1}" if int(match[2]) else "stem"


def _some(names: dict[str, nn.Module]) -> str:
    return ", ".join([name for name in names if name.count(".") < 2][:12])


def arrangement(features: Tensor, height: int, width: int, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function from the layer's shape to (B, K, h, w): channels first, channels last or patch tokens."""

    def fits(rows: int, columns: int) -> bool:  # of the images' proportions, to within one cell
        return abs(rows * width - columns * height) <= max(height, width)

    if features.ndim == 4:
        first, second, third = features.shape[1:]
        if fits(first, second) and not fits(second, third):
            return lambda t: t.permute(0, 3, 1, 2)
        return lambda t: t
    if features.ndim == 3:
        net, count = getattr(model, "net", model), features.shape[1]
        if in_place := _in_place(net, count):
            return in_place
        # CaiT and XCiT add the class token late, so also without a prefix.
        for prefix in (getattr(net, "num_prefix_tokens", 0), 0):
            patches = count - prefix
            rows = max(round((max(patches, 1) * height / width) ** 0.5), 1)
            if patches > 0 and patches % rows == 0 and fits(rows, patches // rows):
                return _as_grid(prefix, rows)
    raise UserError(
        f"the layer's output {tuple(features.shape)} is no feature map (B, K, h, w), (B, h, w, K) or (B, patches, K): "
        "choose another layer"
    )


def _as_grid(prefix: int, rows: int) -> Callable[[Tensor], Tensor]:
    """Return the function from tokens (B, prefix + h w, K) to (B, K, h, w) with this number of rows."""
    return lambda t: t[:, prefix:].transpose(1, 2).unflatten(2, (rows, -1))


def _in_place(net: Any, patches: int) -> Callable[[Tensor], Tensor] | None:
    """Return Hiera's function from its order of patches to rows and columns; None for other networks."""
    reroll: Any = getattr(net, "reroll", None)
    for block, (_, size) in getattr(reroll, "schedule", {}).items():
        if math.prod(size) == patches:
            return lambda t: reroll(t, block).permute(0, 3, 1, 2)
    return None
