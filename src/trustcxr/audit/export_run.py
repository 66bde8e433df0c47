"""A run written as ONNX or torch.export, held against the run on images before it gets its name;

With its model file.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trustcxr.attacks import preserve_state
from trustcxr.audit import formats
from trustcxr.audit.formats import ExternalModel
from trustcxr.audit.formats.onnx import OnnxNet
from trustcxr.data.loader import to_pixels
from trustcxr.data.phantom import CLASSES, render
from trustcxr.errors import UserError, lookup
from trustcxr.evaluation import hub
from trustcxr.evaluation.trained_run import Run, load_run
from trustcxr.models import export as exporting
from trustcxr.runs import test_data as tested
from trustcxr.runs.test_data import Source
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import ExportDocument

ALLOWED = 1e-4  # that a logit may differ, of the largest or of 1
IMAGES = 12  # on which it is held against the run
NAMES = {"onnx": "model.onnx", "torch-export": "program.pt2"}  # unlike, since a model file stands beside each
_SMALLEST = 32  # pixels of a synthetic image


def export(run: str | Path, kind: str, out: Path | None = None, *, data: Path | None = None) -> ExportDocument:
    """Write a run's model to `out` (unless said, into its folder), and beside it the model file that an audit takes.

    `kind`: onnx or torch-export. The written file's answers, one image at a time and several at once, must be the run's
    to within ALLOWED, on images of `data` (its test split) or, without, on synthetic ones; else nothing is left. Raises
    UserError then, where a package is missing, and where another file has the model file's name (a run's run.yaml).
    """
    out = out or _within(run, kind)
    exporting.check_export(kind, out)
    declared = _declared(out)
    loaded = load_run(run, on="cpu")
    images, which = _images(loaded, data)
    with atomic.atomic_write(out) as temporary:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        exporting.write(loaded.model, loaded.size, temporary, kind)
        # Read as an audit would read it, from the file alone.
        given = formats.load(
            temporary,
            classes=loaded.classes,
            size=loaded.size,
            channels=1,
            resize=loaded.trained_by.data.resize,
            trust_code=True,  # the file was written here
            on="cpu",
        )
        largest = _apart(loaded, given, temporary, images, kind)
        if not largest <= ALLOWED:
            raise UserError(f"{out}: not written: its answers differ from the run's by {largest:.1e} on {which}")
    atomic.write_yaml(declared, _model_file(loaded, out))
    return ExportDocument(
        run=loaded.name,
        format=kind,
        file=str(out),
        model_file=str(declared),
        opset=exporting.OPSET if kind == "onnx" else None,
        size=loaded.size,
        bytes=out.stat().st_size,
        sha256=atomic.checksum(out),
        images=which,
        n=len(images),
        largest=largest,
        allowed=ALLOWED,
        gradients=given.origin.gradients,
        note="; ".join(given.origin.notes),
    )


def _within(run: str | Path, kind: str) -> Path:
    """Where a run's file goes unless said: its folder. UserError for a run that is on a hub."""
    name = lookup(NAMES, "format", kind)
    if hub.is_address(str(run)):
        raise UserError(f"{run}: it has no folder here: say --out FILE, such as --out {name}")
    return layout.check_run(Path(run)) / name


def _declared(out: Path) -> Path:
    """Where the model file of `out` goes; UserError where that is taken by anything but an older one of it."""
    path = out.with_suffix(".yaml")
    if out.exists() and not path.exists():
        raise UserError(f"{out}: is there, and no model file beside it says that it was exported; choose another --out")
    if path.exists() and atomic.read_yaml(path).get("source") != out.name:
        raise UserError(
            f"{path}: is there, and the model file of {out.name} would take its place; choose another --out"
        )
    return path


def _images(run: Run, data: Path | None) -> tuple[Tensor, str]:
    """Images (B, 1, H, W) in pixel space, and in words which they are."""
    if data is not None:
        radiographs = tested.load(run, Source(data))
        rows = np.unique(np.linspace(0, len(radiographs) - 1, min(IMAGES, len(radiographs))).astype(int))
        return to_pixels(torch.from_numpy(radiographs.batch(rows))), f"{len(rows)} images of {radiographs.root.name}"
    size = max(run.size, _SMALLEST)
    drawn = np.stack([render(CLASSES[k % len(CLASSES)], seed=k, size=size).image for k in range(IMAGES)])
    images = to_pixels(torch.from_numpy(drawn[:, None, : run.size, : run.size].copy()))
    return images, f"{len(images)} synthetic images"


def _apart(run: Run, given: ExternalModel, path: Path, images: Tensor, kind: str) -> float:
    """The most by which answers differ, of the largest of the run's or of 1: one by one, and all in one batch."""
    with torch.no_grad(), preserve_state(run.model):
        wanted = run.model(images)
    scale = max(1.0, float(wanted.abs().max()))
    nets: list[Callable[[Tensor], Tensor]] = [given.model] if given.model is not None else []
    nets += [OnnxNet(path)] if kind == "onnx" else []
    with torch.no_grad():
        answers = [
            answer for net in nets for answer in (net(images), torch.cat([net(image[None]) for image in images]))
        ]
    return float(torch.stack([(answer - wanted).abs().max() for answer in answers]).max()) / scale  # of NaN too


def _model_file(run: Run, out: Path) -> dict[str, object]:
    """What a model file says of it, with what its recipe says in the place of its makers."""
    recipe, defence = run.trained_by, run.trained_by.defence
    kept = atomic.section(atomic.read_yaml(run.folder / "run.yaml"), "data")
    against = f"L-infinity {defence.epsilon:g}, {defence.name}" if defence.attacks or defence.certifies else ""
    return {
        "source": out.name,
        "name": run.name,
        "input": {"size": run.size, "channels": 1, "range": [0, 1], "resize": recipe.data.resize},
        "output": {"kind": "logits", "classes": list(run.classes)},
        "reported": {
            "threat_model": against,
            "training_data": f"{kept.get('root_name', '')}, {kept.get('images', '')} images of {kept.get('split', '')}",
        },
    }
