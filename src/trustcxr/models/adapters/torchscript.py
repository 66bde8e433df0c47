"""TorchScript (.pt), read so that nothing of it runs but operators on tensors.

`torch.jit.load` runs a class's `__setstate__` and believes sizes that the file claims, so both are looked at first, in
the archive. The graph is then run here node by node, where a gradient's way can be seen and mended, and only operators
that compute on tensors are let through (`operators`).
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trustcxr.errors import UserError
from trustcxr.models.adapters.answers import in_a_line, refused_images, sole
from trustcxr.models.adapters.archives import Archive, check_pickle
from trustcxr.models.adapters.operators import Values, aten_operator, refused

_AT_ONCE = "it has code that runs as soon as the file is read; it was not read"
_BATCHES = (1, 4, 8, 16, 32, 64)  # beside 2, of which a trace may take one alone
_LOOPS = 10_000  # the most that a loop may turn for one batch
Node = Any  # torch._C.Node has no public type


def is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive, rather than a table of tensors that shares its ending.

    Raises UserError for an archive that torch would not write.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return False
    return any(n.lower().startswith("code/") for n in Archive(path).names)


def trusted(path: Path) -> nn.Module:
    """The file as torch's own runtime runs it, unseen: for those who trust its maker."""
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as problem:
        raise UserError(f"{path}: not readable as TorchScript ({in_a_line(problem)})") from None


def fixed_batch(program: Callable[[Tensor], Any], images: Tensor) -> int | None:
    """The one size of batch that a program takes, as of a trace that wrote `len(images)` down; None for any.

    None too where it takes none of the usual sizes: then it is not for their number that it fails.
    """

    def takes(count: int) -> bool:
        try:
            with torch.no_grad():
                answer = sole(program(images[:1].repeat(count, 1, 1, 1)))
        except Exception:  # whatever it raises
            return False
        return not isinstance(answer, Tensor) or answer.ndim == 0 or len(answer) == count

    if takes(2):
        return None if takes(3) else 2
    return next((count for count in _BATCHES if takes(count)), None)


class ScriptedNet(nn.Module):
    """The `forward` of a TorchScript file: one image tensor in, whatever it answers out."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.where = str(path)
        _check_archive(path)
        try:
            scripted = torch.jit.load(str(path), map_location="cpu")
            scripted.eval()
            graph = scripted.inlined_graph
        except Exception as problem:
            raise UserError(f"{path}: not readable as TorchScript ({in_a_line(problem)})") from None
        self.scripted = scripted
        self._graph = graph
        self._calls: dict[str, Callable[..., Any]] = {}
        self.uses_gradient = False
        self._look_through(graph)
        for hook in (*scripted._c._get_forward_pre_hooks(), *scripted._c._get_forward_hooks()):
            self._look_through(hook.inlined_graph)  # they run where torch's own runtime does
        self.seen_inside = True
        arguments = scripted.forward.schema.arguments[2:]
        if missing := [a.name for a in arguments if not a.has_default_value()]:
            raise UserError(
                f"{path}: beside the images its forward wants {', '.join(missing)}; it must take images alone"
            )
        self._defaults = [a.default_value for a in arguments]

    def forward(self, images: Tensor) -> Any:
        """Images as the program wants them -> its answer, a tensor or a tuple."""
        if not self.seen_inside:
            return self._answered(images)
        names = [i.debugName() for i in self._graph.inputs()]
        env: Values = dict(zip(names, [self.scripted, images, *self._defaults], strict=True))
        answers = self._run(self._graph, env)
        return answers[0] if len(answers) == 1 else tuple(answers)

    def compare(self, images: Tensor) -> bool:
        """Whether the graph, run here, answers as torch's own runtime does; if not, that is used from now on.

        UserError where that runtime itself fails on these images, which are as they were declared.
        """
        with torch.no_grad():
            try:
                wanted = _tensor(self.scripted(images))
            except Exception as problem:  # a shape that it does not take, or an exception that is scripted
                raise refused_images(self.where, images.shape[1], images.shape[-1], problem) from None
            try:
                found = _tensor(self(images))
                # A program that draws at random differs from itself.
                self.seen_inside = torch.allclose(found, wanted, rtol=1e-4, atol=1e-4) or not torch.allclose(
                    _tensor(self.scripted(images)), wanted
                )
            # A node that is not as we think.
            except (RuntimeError, TypeError, AttributeError, KeyError, IndexError, UserError, torch.jit.Error):
                self.seen_inside = False
        return self.seen_inside

    def _answered(self, images: Tensor) -> Any:
        """What torch's own runtime answers."""
        try:
            return self.scripted(images)
        except torch.jit.Error as problem:  # one that is scripted
            raise UserError(f"{self.where}: the program refuses these images ({in_a_line(problem)})") from None

    def _look_through(self, block: Any) -> None:
        """Every node, before any of them is run."""
        for node in block.nodes():
            kind = node.kind()
            if kind.startswith("aten::"):
                name, overload = _schema(node)
                self.uses_gradient |= name in ("grad", "backward", "set_grad_enabled")
                own = _LISTS.get(name) if _on_containers(node) else None
                self._calls[f"{kind}.{overload}"] = own or aten_operator(name, overload, self.where)
            elif kind not in _NODES and kind not in ("prim::If", "prim::Loop"):
                raise refused(kind, self.where)
            for inner in node.blocks():
                self._look_through(inner)

    def _run(self, block: Any, env: Values) -> list[Any]:
        for node in block.nodes():
            kind = node.kind()
            if kind == "prim::If":
                chosen = list(node.blocks())[0 if env[node.inputsAt(0).debugName()] else 1]
                _bind(node, self._run(chosen, env), env)
            elif kind == "prim::Loop":
                _bind(node, self._loop(node, env), env)
            else:
                args = [env[i.debugName()] for i in node.inputs()]
                _bind(node, self._call(node, kind, args), env)
        return [env[o.debugName()] for o in block.outputs()]

    def _call(self, node: Node, kind: str, args: list[Any]) -> list[Any]:
        if kind in _NODES:
            return _NODES[kind](node, args)
        _, overload = _schema(node)
        call = self._calls[f"{kind}.{overload}"]
        if not hasattr(call, "_schema"):  # one of ours
            return [call(*args)]
        names = [None if a.kwarg_only is False else a.name for a in call._schema.arguments]
        positional = [a for a, name in zip(args, names, strict=False) if name is None]
        result = call(*positional, **{n: a for a, n in zip(args, names, strict=False) if n is not None})
        return list(result) if node.outputsSize() > 1 else [result]

    def _loop(self, node: Node, env: Values) -> list[Any]:
        most, going, *carried = [env[i.debugName()] for i in node.inputs()]
        (body,) = node.blocks()
        names = [i.debugName() for i in body.inputs()]
        for turn in range(min(int(most), _LOOPS)):
            if not going:
                break
            env.update(zip(names, [turn, *carried], strict=True))
            going, *carried = self._run(body, env)
        return carried


def _tensor(answer: Any) -> Tensor:
    while isinstance(answer, list | tuple | dict):
        answer = next(iter(answer.values() if isinstance(answer, dict) else answer))
    return answer


def _bind(node: Node, results: list[Any], env: Values) -> None:
    env.update(zip((o.debugName() for o in node.outputs()), results, strict=False))


def _schema(node: Node) -> tuple[str, str]:
    """The name and overload of an aten node: ("add", "Tensor")."""
    full = str(node.schema()).partition("(")[0]
    name, _, overload = full.removeprefix("aten::").partition(".")
    return name, overload


def _constant(node: Node, args: list[Any]) -> list[Any]:
    return [node.output().toIValue()]


def _attribute(node: Node, args: list[Any]) -> list[Any]:
    return [getattr(args[0], node.s("name"))]


def _raise(node: Node, args: list[Any]) -> list[Any]:
    raise UserError(f"the program refuses these images: {args[0]}")


_NODES: dict[str, Callable[[Node, list[Any]], list[Any]]] = {
    "prim::Constant": _constant,
    "prim::GetAttr": _attribute,
    "prim::ListConstruct": lambda node, args: [list(args)],
    "prim::TupleConstruct": lambda node, args: [tuple(args)],
    "prim::DictConstruct": lambda node, args: [dict(zip(args[::2], args[1::2], strict=True))],
    "prim::ListUnpack": lambda node, args: list(args[0]),
    "prim::TupleUnpack": lambda node, args: list(args[0]),
    "prim::TupleIndex": lambda node, args: [args[0][args[1]]],
    "prim::NumToTensor": lambda node, args: [torch.tensor(args[0])],
    "prim::Uninitialized": lambda node, args: [None],
    "prim::unchecked_cast": lambda node, args: [args[0]],
    "prim::unchecked_unwrap_optional": lambda node, args: [args[0]],
    "prim::isinstance": lambda node, args: _is_instance(node, args),
    "prim::RaiseException": _raise,
    "prim::dtype": lambda node, args: [args[0].dtype],
    "prim::device": lambda node, args: [args[0].device],
    "prim::layout": lambda node, args: [args[0].layout],
    "prim::requires_grad": lambda node, args: [args[0].requires_grad],
    "prim::is_cuda": lambda node, args: [args[0].is_cuda],
    "prim::data": lambda node, args: [args[0].detach()],
    "prim::min": lambda node, args: [min(*args)],
    "prim::max": lambda node, args: [max(*args)],
    "prim::ConstantChunk": lambda node, args: list(args[0].chunk(node.i("chunks"), node.i("dim"))),
}


def _set(container: Any, key: Any, value: Any) -> Any:
    container[key] = value
    return container


def _append(container: list[Any], value: Any) -> list[Any]:
    container.append(value)
    return container


def _slice(container: Any, start: int | None, end: int | None, step: int) -> Any:
    return container[start:end:step]


# Operators on lists and tables, of any kind of content, which torch cannot call with Python's.
_LISTS: dict[str, Callable[..., Any]] = {
    "format": lambda text, *values: text,  # of messages
    "warn": lambda *message: None,
    "len": len,
    "__getitem__": lambda container, key: container[key],
    "_set_item": _set,
    "append": _append,
    "slice": _slice,
    "list": list,
    "add": lambda first, second: first + second,
    "copy": lambda container: container.copy(),
    "__contains__": lambda container, key: key in container,
    "eq": lambda first, second: first == second,
    "ne": lambda first, second: first != second,
    "keys": lambda table: list(table),
    "values": lambda table: list(table.values()),
    "items": lambda table: list(table.items()),
    "__is__": lambda first, second: first is second,
    "__isnot__": lambda first, second: first is not second,
}


def _on_containers(node: Node) -> bool:
    """Whether the first argument is a list or a table, or the operator asks for identity."""
    first = next(iter(node.inputs()), None)
    kind = first.type().kind() if first is not None else ""
    return kind in ("ListType", "DictType", "StringType") or node.kind() in ("aten::__is__", "aten::__isnot__")


def _is_instance(node: Node, args: list[Any]) -> list[Any]:
    kinds = {"TensorType": Tensor, "ListType": list, "TupleType": tuple, "IntType": int, "FloatType": float}
    wanted = tuple(kinds.get(t.kind(), _Nothing) for t in node.tys("types"))
    return [isinstance(args[0], wanted)]


class _Nothing:
    """Of which nothing is an instance."""


# What torch writes; in other records, such as those of before version 1.4, code could lie that is not looked at.
_FOLDERS = ("code", "data", "constants", "traced_inputs", "bytecode", "extra", ".data")
_RECORDS = {"data.pkl", "constants.pkl", "traced_inputs.pkl", "bytecode.pkl", "mobile_debug_handles.pkl", "version"}
_RECORDS |= {"byteorder", ".format_version", ".storage_alignment"}


def _check_archive(path: Path) -> None:
    """UserError for code that would run when the file is read, and for tensors that are not in it."""
    archive = Archive(path)
    for name in archive.names:
        folder, inside, _ = name.partition("/")
        known = folder in _FOLDERS if inside else name in _RECORDS
        if not known or (folder == "code" and not name.endswith((".py", ".py.debug_pkl"))):
            raise UserError(f"{path}: '{name}' in it is no record that torch writes in TorchScript; nothing was run")
        if folder == "code" and name.endswith(".py"):
            _check_code(archive.read(name), f"{path}: {name}")
    check_pickle(archive, "data.pkl", tensors="data")
    if archive.size("constants.pkl") > 0:
        check_pickle(archive, "constants.pkl", tensors="constants")


def _check_code(source: bytes, where: str) -> None:
    try:
        tree = ast.parse(source.decode())
    except (SyntaxError, ValueError, RecursionError):
        raise UserError(f"{where}: not readable as TorchScript's code") from None
    for part in ast.walk(tree):
        if isinstance(part, ast.FunctionDef) and part.name in ("__setstate__", "__getstate__"):
            raise UserError(f"{where}: {_AT_ONCE}")
        if any(isinstance(p, ast.Call) and not isinstance(p.func, ast.Name) for p in _worked_out_at_once(part)):
            raise UserError(f"{where}: {_AT_ONCE}")
        if isinstance(part, ast.Attribute):
            dotted = ast.unparse(part)
            if dotted.startswith("ops.") and not dotted.startswith(("ops.aten", "ops.prim")):
                raise refused(dotted, where)
            if dotted.startswith(("torch.classes", "__torch__.torch.classes")):
                raise refused(dotted, where)
            if dotted in ("torch.save", "torch.from_file", "torch.load"):
                raise refused(f"aten::{dotted[6:]}", where)


def _worked_out_at_once(part: ast.AST) -> Iterator[ast.AST]:
    """What torch works out when it reads a function or a class: defaults of arguments, and the values of fields."""
    values: list[ast.expr | None] = []
    if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        values = [*part.args.defaults, *part.args.kw_defaults]
    if isinstance(part, ast.ClassDef):
        values = [field.value for field in part.body if isinstance(field, ast.Assign | ast.AnnAssign)]
    return (inner for value in values if value is not None for inner in ast.walk(value))
