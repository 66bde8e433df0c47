"""Which operators a foreign program may use: those of torch that take tensors and numbers and touch nothing else."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from trustcxr.errors import UserError

Values = dict[str, Any]  # of a program that runs, by the names that it has for them: tensors, numbers, lists

# aten::save and aten::from_file write and map files; the others print, or start what outlives the call.
_REFUSED = {"save", "load", "from_file", "_print", "open", "fork", "wait", "manual_seed"}
_PYTHON = {name: getattr(operator, name) for name in ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod")}
_PYTHON |= {
    name: getattr(operator, name) for name in ("pow", "neg", "eq", "ne", "lt", "le", "gt", "ge", "not_", "and_")
}
_SYMBOLIC = {"sym_int": int, "sym_float": float, "sym_max": max, "sym_min": min, "sym_not": operator.not_}
_MATH = {"ceil": math.ceil, "floor": math.floor, "trunc": math.trunc}


def exported_operator(target: str, where: str) -> Callable[..., Any]:
    """The operator that a torch.export program calls `target`; UserError where it could do more than compute."""
    head, _, name = target.rpartition(".")
    simple = {"_operator": _PYTHON, "torch": _SYMBOLIC, "math": _MATH}.get(head, {})
    if name in simple:
        return simple[name]
    parts = target.split(".")
    if len(parts) == 5 and parts[:3] == ["torch", "ops", "aten"]:
        return aten_operator(parts[3], parts[4], where)
    raise refused(target, where)


def aten_operator(name: str, overload: str, where: str) -> Callable[..., Any]:
    """torch.ops.aten.NAME.OVERLOAD; UserError for one that is not there or touches files."""
    if name in _REFUSED:
        raise refused(f"aten::{name}", where)
    try:
        found = getattr(getattr(torch.ops.aten, name), overload or "default")
        arguments = [argument.name for argument in found._schema.arguments]
    except (AttributeError, RuntimeError):
        raise refused(f"aten::{name}.{overload}", where) from None
    if "filename" in arguments:
        raise refused(f"aten::{name}", where)
    return found


def refused(what: str, where: str) -> UserError:
    """The error for an operator that is not one of those."""
    return UserError(
        f"{where}: it uses {what}, which is not an operator that only computes on tensors: nothing was run. Ask for an "
        "export with torch's own operators alone, or for ONNX"
    )
