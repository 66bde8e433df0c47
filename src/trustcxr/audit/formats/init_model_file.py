"""The first draft of a model file: what a file says of itself, and a question where it does not."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trustcxr.audit.formats.loading import TABLES
from trustcxr.audit.formats.resolve import SUFFIXES, check_trusted
from trustcxr.audit.formats.torch_programs import ExportedNet, is_torchscript, load_torchscript
from trustcxr.errors import UserError, unknown
from trustcxr.storage.atomic import parse_yaml

_NAMES = ("classes", "class_names", "labels", "names", "findings", "id2label", "pathologies")


@dataclass
class Draft:
    """What was found out; None is a question."""

    key: str  # source, python or predictions
    value: str
    size: int | None = None
    channels: int | None = None
    outputs: int | None = None
    kind: str | None = None
    classes: list[str] | None = None
    supposed: str | None = None  # a kind that its answers to noise may have by chance: a question still
    timm: str | None = None
    seen: list[str] = field(default_factory=list)


def describe_file(model: str | Path, *, trust_code: bool = False) -> str:
    """A model file for `model`, as YAML: what could be found in it, and a comment with a question for the rest.

    `model` is a file of one of the known kinds, or "module:function", of which nothing can be found without running it.
    `trust_code` lets a torch.export program or TorchScript be loaded. Raises UserError if the file cannot be read.
    """
    path = Path(model)
    if path.is_dir():
        raise UserError(f"{path}: a folder; a trained run needs no model file, and otherwise give the model's own file")
    if not path.exists() and ":" in str(model):
        return _text(Draft("python", str(model)))
    if not path.is_file():
        raise UserError(f"{path}: no such file; give one that ends in {', '.join((*SUFFIXES, *TABLES))}")
    readers: dict[str, Callable[[Path], Draft]] = {
        ".pt2": _exported,
        ".pt": _scripted if is_torchscript(path) else _weights,
        ".onnx": _onnx,
        ".safetensors": _weights,
        ".pth": _weights,
        ".csv": _table,
        ".parquet": _table,
    }
    if path.suffix not in readers:
        raise UserError(f"{path}: {unknown('kind of model file', path.suffix, readers)}")
    if readers[path.suffix] in (_exported, _scripted):
        check_trusted(str(path), trust_code)
    return _text(readers[path.suffix](path))


def drafted(model: str | Path, *, trust_code: bool = False) -> dict[str, Any]:
    """The same draft as keys and values, its `questions` beside them: each line that has one, with what was supposed.

    Raises UserError as `describe_file` does.
    """
    text = describe_file(model, trust_code=trust_code)
    asked = [line.strip().removeprefix("# ") for line in text.splitlines() if "# ?" in line]
    return {**parse_yaml(text), "questions": asked}


def _exported(path: Path) -> Draft:
    net = ExportedNet(path)
    _, channels, size, _ = (*net.shape, None, None, None, None)[:4]
    draft = Draft("source", path.name, size, channels, seen=[f"exported with images {_shape(net.shape)}"])
    return _tried(net, draft)


def _scripted(path: Path) -> Draft:
    return _tried(load_torchscript(path), Draft("source", path.name, seen=["TorchScript"]))


def _onnx(path: Path) -> Draft:
    from trustcxr.audit.formats.onnx import OnnxNet, read_onnx

    net, model = OnnxNet(path), read_onnx(path)
    _, channels, size, _ = (*(n if isinstance(n, int) else None for n in net.shape), None, None, None, None)[:4]
    draft = Draft("source", path.name, size, channels, seen=[f"takes {net.input} {_shape(net.shape)}"])
    draft.seen += [f"has {net.outputs} outputs; the first is taken for its answer"] if net.outputs > 1 else []
    said = {entry.key.lower(): entry.value for entry in model.metadata_props}
    draft.classes = next((names for key in _NAMES if (names := _names(said.get(key)))), None)
    if model.producer_name:
        draft.seen.append(f"written by {model.producer_name} {model.producer_version}".strip())
    draft.seen += [f"says of itself {key}: {value[:100]}" for key, value in said.items() if key not in _NAMES]
    last = model.graph.node[-1].op_type
    draft.kind = {"Softmax": "probabilities", "Sigmoid": "sigmoid"}.get(last)
    return _tried(net, draft)


def _weights(path: Path) -> Draft:
    from trustcxr.audit.formats.weight_files import metadata, read_tensors

    state = read_tensors(path)
    said = metadata(path) if path.suffix == ".safetensors" else {}
    images = [t.shape[1] for t in state.values() if t.ndim == 4]
    heads = [t.shape[0] for t in state.values() if t.ndim == 2]
    draft = Draft("source", path.name, seen=[f"{len(state)} tensors, the first {next(iter(state))}"])
    draft.channels = images[0] if images and images[0] in (1, 3) else None
    draft.outputs = heads[-1] if heads else None
    draft.timm = next((said[key] for key in ("timm", "architecture", "model") if key in said), None)
    draft.classes = next((names for key in _NAMES if (names := _names(said.get(key)))), None)
    draft.seen += [f"says of itself {key}: {value[:100]}" for key, value in said.items() if key not in _NAMES]
    draft.timm = draft.timm or "?"
    return draft


def _table(path: Path) -> Draft:
    from trustcxr.audit.formats.score_table import KEYS
    from trustcxr.storage.atomic import read_table

    table = read_table(path, text=KEYS)
    numeric = [str(c) for c in table.select_dtypes("number").columns if str(c).lower() not in ("label", "fold")]
    draft = Draft("predictions", path.name, outputs=len(numeric), classes=numeric or None)
    draft.seen.append(f"{len(table)} rows, columns {', '.join(map(str, table.columns[:12]))}")
    if numeric and len(table):
        scores = table[numeric].to_numpy(dtype=float)
        if scores.min() >= 0 and scores.max() <= 1:
            draft.kind = "probabilities" if abs(scores.sum(1) - 1).max() < 0.02 and len(numeric) > 1 else "sigmoid"
        else:
            draft.kind = "logits"
    return draft


def _tried(net: Any, draft: Draft) -> Draft:
    """Ask the network itself, with noise: channels, a side that it takes, how many outputs, and of which kind."""
    import torch

    for channels in [draft.channels] if draft.channels else [3, 1]:
        for size in [draft.size] if draft.size else [224, 96, 64, 512]:
            batch = getattr(net, "batch", None) or 2
            images = torch.rand((batch, channels, size, size), generator=torch.Generator().manual_seed(0))
            try:
                with torch.no_grad():
                    answer = net(images)
            except Exception:  # it does not take these: the next
                continue
            answer = answer[0] if isinstance(answer, tuple | list) else answer
            if not isinstance(answer, torch.Tensor) or answer.ndim != 2:
                continue
            draft.channels, draft.outputs = channels, answer.shape[1]
            inside = bool(((answer >= 0) & (answer <= 1)).all())
            sums = bool(((answer.sum(1) - 1).abs() < 1e-4).all())
            # Logits of noise can lie between 0 and 1, too; they do not sum to 1, and what lies outside is a logit.
            draft.supposed = "sigmoid" if inside and not sums else None
            draft.kind = draft.kind or ("probabilities" if sums and inside else None if inside else "logits")
            if draft.size is None:
                draft.seen.append(f"takes images of {size} pixels, and perhaps of other sizes")
            return draft
    return draft


def _names(text: str | None) -> list[str] | None:
    """Class names as metadata have them: JSON, a list, or words with commas."""
    if not text:
        return None
    try:
        found = parse_yaml(text)  # JSON and Python's own way to write a dict are YAML
    except (ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict | list):
        found = [part.strip() for part in text.strip("[]{}").split(",")]
    if isinstance(found, dict):
        found = [found[key] for key in sorted(found, key=lambda k: (len(str(k)), str(k)))]
    return [str(name) for name in found] if isinstance(found, list) and len(found) else None


def _shape(shape: Any) -> str:
    return "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"


def _text(d: Draft) -> str:
    lines = ["# A model file for `trustcxr audit`. Answer what has a question mark."]
    lines += [f"# seen: {_on_one_line(line)}" for line in d.seen]
    lines.append(f"{d.key}: {json.dumps(d.value, ensure_ascii=False)}")
    if d.timm:
        question = "  # ? which timm architecture are these weights of" if d.timm == "?" else ""
        lines.append("timm:" + (question or f" {json.dumps(d.timm)}"))
    if d.key != "predictions":
        lines += ["input:", _line("size", d.size, 224, "the side of its images in pixels")]
        lines.append(_line("channels", d.channels, 1, "1 or 3"))
        lines.append("  range: [0, 1]  # ? what black and white are: [0, 1], [0, 255], [-1, 1], [-1024, 1024]")
        lines.append("  # mean: [0.485, 0.456, 0.406]  # ? if it was trained with a mean and std: of images in [0, 1]")
        lines.append("  # std: [0.229, 0.224, 0.225]")
        lines.append("  resize: squeeze  # ? how an image becomes a square: squeeze, pad or crop")
    lines.append("output:")
    why = "its answers to noise lie between 0 and 1: " if d.supposed else ""
    supposed = d.supposed or "logits"
    lines.append(_line("kind", d.kind, supposed, f"{why}logits, probabilities, or sigmoid (one a finding)"))
    names = d.classes or [f"class {n + 1}" for n in range(d.outputs or 2)]
    lines.append(f"  classes: {json.dumps(names, ensure_ascii=False)}{_about_names(d)}")
    if (d.kind or supposed) == "sigmoid":
        lines.append(f"  thresholds: {[0.5] * len(names)}  # ? the operating point of each")
    return "\n".join(lines) + "\n"


def _about_names(d: Draft) -> str:
    """The question behind the classes; none where the file itself names one for each output."""
    if d.classes is None:
        return "  # ? their names, in the order of its outputs"
    if d.outputs in (None, len(d.classes)):
        return ""
    named, has = (f"{n} {word}{'' if n == 1 else 's'}" for n, word in ((len(d.classes), "name"), (d.outputs, "output")))
    return f"  # ? the file says {named} and has {has}: one name for each, in their order"


def _on_one_line(text: str) -> str:
    """What a file says of itself, without line breaks, by which it would write keys, and without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _line(key: str, found: Any, otherwise: Any, question: str) -> str:
    return f"  {key}: {otherwise}  # ? {question}" if found is None else f"  {key}: {found}"
