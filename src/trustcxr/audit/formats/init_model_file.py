"""Draft a model file: what a model's own file says about itself, and questions for the rest."""

import json
import re
import zipfile
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

from trustcxr.audit.formats.loading import KEYS, SUFFIXES, TABLES, ExportedNet, is_torchscript, load_torchscript
from trustcxr.audit.formats.outputs import check_trusted
from trustcxr.errors import UserError, unknown
from trustcxr.storage.atomic import parse_yaml, read_table

_SIZES = [224, 96, 64, 512]  # pixels to try, if the file does not tell its size
_LABELS = 1 << 16  # largest size of a file of class names, in bytes
_NAMES = ("classes", "class_names", "labels", "names", "findings", "id2label", "pathologies")

_RANGE = "  range: [0, 1]  # ? what black and white are: [0, 1], [0, 255], [-1, 1], [-1024, 1024]"
_MEAN = """  # mean: [0.485, 0.456, 0.406]  # ? if it was trained with a mean and std: of images in [0, 1]
  # std: [0.229, 0.224, 0.225]"""
_OWN = """# python: module:function  # of a network of its own, in place of source and timm: a function that builds it
#                          # and loads these weights; audit with --trust-code"""
_RESIZE = "  resize: squeeze  # ? how an image becomes a square: squeeze, pad or crop"


@dataclass
class Draft:
    """The draft of a model file; None is a question."""

    key: str  # source, python or predictions
    value: str
    size: int | None = None
    channels: int | None = None
    range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    outputs: int | None = None
    kind: str | None = None
    classes: list[str] | None = None
    guess: str | None = None  # a kind that the outputs on noise may have by chance: still a question
    timm: str | None = None
    remarks: list[str] = field(default_factory=list)
    table: list[str] = field(default_factory=list)  # lines with the accuracy of each declaration
    doubts: dict[str, str] = field(default_factory=dict)  # questions about values that are filled in: range, classes

    def add_metadata(self, metadata: dict[str, str]) -> None:
        """Take the class names out of a file's metadata, and add the rest as remarks."""
        self.classes = next((names for key in _NAMES if (names := _parse_names(metadata.get(key)))), None)
        self.remarks += [f"says of itself {k}: {v[:100]}" for k, v in metadata.items() if k not in _NAMES]


def describe_file(model: str | Path, *, trust_code: bool = False) -> str:
    """Return a model file for `model` as YAML, with a comment at each line that is still a question (`draft_model`)."""
    return format_draft(draft_model(model, trust_code=trust_code))


def draft_model(model: str | Path, *, trust_code: bool = False) -> Draft:
    """Draft a model file from what a model's own file tells; "module:function" is not run.

    `trust_code` allows loading a torch.export program or TorchScript. Raises UserError if the file cannot be read.
    """
    path = Path(model)
    if path.is_dir():
        raise UserError(f"{path}: a folder; a trained run needs no model file, and otherwise give the model's own file")
    if not path.exists() and ":" in str(model):
        return Draft("python", str(model))
    if not path.is_file():
        raise UserError(f"{path}: no such file; give one that ends in {', '.join((*SUFFIXES, *TABLES))}")
    if path.suffix == ".pt2" or (path.suffix == ".pt" and is_torchscript(path)):
        check_trusted(str(path), trust_code)
        draft = _draft_program(path)
    elif path.suffix == ".onnx":
        draft = _draft_onnx(path)
    elif path.suffix in (".keras", ".h5", ".tflite"):
        draft = _draft_layers(path)
    elif path.suffix in TABLES:
        draft = _draft_table(path)
    elif path.suffix in SUFFIXES:
        draft = _draft_weights(path)
    else:
        raise UserError(f"{path}: {unknown('kind of model file', path.suffix, (*SUFFIXES, *TABLES))}")
    if draft.key == "source" and draft.classes is None:
        draft.classes = _read_labels(path)
    return draft


def parse_draft(text: str) -> dict[str, Any]:
    """Return a draft's text as keys and values, with its open lines under `questions`."""
    questions = [line.strip().removeprefix("# ") for line in text.splitlines() if "# ?" in line]
    return {**parse_yaml(text), "questions": questions}


def _draft_program(path: Path) -> Draft:
    if path.suffix == ".pt":
        return _probe(load_torchscript(path), Draft("source", path.name, remarks=["TorchScript"]))
    net = ExportedNet(path)
    _, channels, size, _ = (*net.shape, None, None, None, None)[:4]
    remarks = [f"exported with images {_shape_text(net.shape)}"]
    return _probe(net, Draft("source", path.name, size, channels, remarks=remarks))


def _draft_onnx(path: Path) -> Draft:
    from trustcxr.audit.formats.onnx import OnnxNet, read_onnx

    net, model = OnnxNet(path), read_onnx(path)
    _, channels, size, _ = (*(n if isinstance(n, int) else None for n in net.shape), None, None, None, None)[:4]
    draft = Draft("source", path.name, size, channels, remarks=[f"takes {net.input} {_shape_text(net.shape)}"])
    if model.producer_name:
        draft.remarks.append(f"written by {model.producer_name} {model.producer_version}".strip())
    draft.add_metadata({entry.key.lower(): entry.value for entry in model.metadata_props})
    draft.kind = {"Softmax": "probabilities", "Sigmoid": "sigmoid"}.get(model.graph.node[-1].op_type)
    return _probe(net, draft)


def _draft_layers(path: Path) -> Draft:
    """Draft what the first and the last layers of a Keras or TFLite model tell, and what it answers to noise."""
    net: Any
    if path.suffix == ".tflite":
        from trustcxr.audit.formats.tflite import TfliteNet

        net, format_name = TfliteNet(path), "TFLite"
    else:
        from trustcxr.audit.formats.keras import KerasNet

        net, format_name = KerasNet(path), "Keras"
    remarks = [format_name, *net.notes]
    if net.range is not None:
        remarks.append(f"the file tells what black and white are: {net.range[0]:g} and {net.range[1]:g}")
    draft = Draft("source", path.name, net.size, net.channels, net.range, kind=net.kind, remarks=remarks)
    return _probe(net, draft)


def _read_labels(path: Path) -> list[str] | None:
    """Read class names, a line each ("0 Normal"), from the labels.txt next to a model or inside a TFLite file."""
    beside, text = path.with_name("labels.txt"), ""
    if beside.is_file() and beside.stat().st_size < _LABELS:
        text = beside.read_text(encoding="utf-8", errors="replace")
    elif path.suffix == ".tflite" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            texts = [r for r in archive.infolist() if r.filename.endswith(".txt") and r.file_size < _LABELS]
            text = archive.read(texts[0]).decode("utf-8", "replace") if texts else ""
    names = [re.sub(r"^\d+[\s:]+", "", line).strip() for line in text.splitlines() if line.strip()]
    return [_printable(name) for name in names] or None


def _draft_weights(path: Path) -> Draft:
    from trustcxr.models.factory import read_tensors

    state = read_tensors(path)
    channels = [t.shape[1] for t in state.values() if t.ndim == 4]
    heads = [t.shape[0] for t in state.values() if t.ndim == 2]
    draft = Draft("source", path.name, remarks=[f"{len(state)} tensors, the first {next(iter(state))}"])
    draft.channels = channels[0] if channels and channels[0] in (1, 3) else None
    draft.outputs = heads[-1] if heads else None
    draft.timm = "?"
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
        draft.timm = next((metadata[key] for key in ("timm", "architecture", "model") if metadata.get(key)), "?")
        draft.add_metadata(metadata)
    return draft


def _draft_table(path: Path) -> Draft:
    table = read_table(path, text=KEYS)
    numeric = [str(c) for c in table.select_dtypes("number").columns if str(c).lower() not in ("label", "fold")]
    draft = Draft("predictions", path.name, outputs=len(numeric), classes=numeric or None)
    draft.remarks.append(f"{len(table)} rows, columns {', '.join(map(str, table.columns[:12]))}")
    if numeric and len(table):
        draft.kind = _likely_kind(table[numeric].to_numpy(dtype=float), 0.02)
    return draft


def _likely_kind(outputs: Any, tolerance: float) -> str:
    """Return the kind that outputs (N, C) look like, by their range and the sums of their rows."""
    if not ((outputs >= 0) & (outputs <= 1)).all():
        return "logits"
    sums_to_1 = outputs.shape[1] > 1 and (abs(outputs.sum(1) - 1) < tolerance).all()
    return "probabilities" if sums_to_1 else "sigmoid"


def _probe(net: Any, draft: Draft) -> Draft:
    """Run the network on noise to find its channels, a size that it takes, its outputs and their kind."""
    outputs = getattr(net, "outputs", 1)  # a count, of a network of ours
    if isinstance(outputs, int) and outputs > 1 and not isinstance(net, torch.jit.ScriptModule):
        draft.remarks.append(f"has {outputs} outputs; the first is taken for its answer")
    every_channels, sizes = [draft.channels] if draft.channels else [3, 1], [draft.size] if draft.size else _SIZES
    for channels, size in product(every_channels, sizes):
        batch = getattr(net, "batch", None) or 2
        images = torch.rand((batch, channels, size, size), generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                output = net(images)
        except Exception:  # it does not take these: try the next
            continue
        output = output[0] if isinstance(output, tuple | list) else output
        if not isinstance(output, torch.Tensor) or output.ndim != 2:
            continue
        draft.channels, draft.outputs = channels, output.shape[1]
        # Logits of noise can lie in [0, 1] too, but do not sum to 1; a value outside is a logit.
        kind = _likely_kind(output, 1e-4)
        draft.guess = "sigmoid" if kind == "sigmoid" else None
        draft.kind = draft.kind or (None if kind == "sigmoid" else kind)
        if draft.size is None:
            draft.remarks.append(f"takes images of {size} pixels, and perhaps of other sizes")
        return draft
    return draft


def _parse_names(text: str | None) -> list[str] | None:
    """Return the class names in a metadata text: JSON, a list, or words with commas."""
    if not text:
        return None
    try:
        names = parse_yaml(text)  # JSON and a printed Python dict are YAML
    except (ValueError, yaml.YAMLError):
        names = None
    if not isinstance(names, dict | list):
        names = [part.strip() for part in text.strip("[]{}").split(",")]
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=lambda k: (len(str(k)), str(k)))]
    return [str(name) for name in names] or None


def _shape_text(shape: list[Any]) -> str:
    return f"({', '.join('any' if n is None else str(n) for n in shape)})"


def format_draft(draft: Draft) -> str:
    """Return a draft as YAML, with a comment at each line that is still a question."""
    where = f" Keep it in the folder of {_printable(draft.value)}." if draft.key == "source" else ""
    lines = [f"# A model file for `trustcxr audit`. Answer what has a question mark.{where}"]
    lines += [f"# seen: {_printable(line)}" for line in draft.remarks]
    lines += [f"#   {_on_one_line(line)}" for line in draft.table]
    lines.append(f"{draft.key}: {json.dumps(draft.value, ensure_ascii=False)}")
    if draft.timm:
        question = "  # ? which timm architecture are these weights of" if draft.timm == "?" else ""
        lines.append("timm:" + (question or f" {json.dumps(draft.timm)}"))
        lines += [_OWN] if question else []
    if draft.key != "predictions":
        lines += ["input:", _line("size", draft.size, 224, "the side of its images in pixels")]
        lines.append(_line("channels", draft.channels, 1, "1 or 3"))
        if draft.range is None:
            lines += [_RANGE, _MEAN]
        else:
            lines.append(f"  range: [{draft.range[0]:g}, {draft.range[1]:g}]{draft.doubts.get('range', '')}")
            lines += [f"  mean: {list(draft.mean)}", f"  std: {list(draft.std or ())}"] if draft.mean else []
        lines.append(_RESIZE)
    lines.append("output:")
    why = "its answers to noise lie between 0 and 1: " if draft.guess else ""
    guess = draft.guess or "logits"
    lines.append(_line("kind", draft.kind, guess, f"{why}logits, probabilities, or sigmoid (one a finding)"))
    names = draft.classes or [f"class {n + 1}" for n in range(draft.outputs or 2)]
    lines.append(f"  classes: {json.dumps(names, ensure_ascii=False)}{_names_question(draft)}")
    if (draft.kind or guess) == "sigmoid":
        lines.append(f"  thresholds: {[0.5] * len(names)}  # ? the operating point of each")
    return "\n".join(lines) + "\n"


def _names_question(draft: Draft) -> str:
    """Return the question after the classes; empty if the file names one for each output."""
    if "classes" in draft.doubts:
        return draft.doubts["classes"]
    if draft.classes is None:
        return "  # ? their names, in the order of its outputs"
    if draft.outputs in (None, len(draft.classes)):
        return ""
    pairs = ((len(draft.classes), "name"), (draft.outputs, "output"))
    names, outputs = (f"{n} {word}{'' if n == 1 else 's'}" for n, word in pairs)
    return f"  # ? the file says {names} and has {outputs}: one name for each, in their order"


def _printable(text: str) -> str:
    """Return a file's text without line breaks, which could write keys, and without control characters."""
    return " ".join(_on_one_line(text).split())


def _on_one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _line(key: str, value: Any, default: Any, question: str) -> str:
    return f"  {key}: {default}  # ? {question}" if value is None else f"  {key}: {value}"
