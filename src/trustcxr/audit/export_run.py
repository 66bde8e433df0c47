"""Export a run as ONNX or torch.export with its model file, after comparing its answers with the run's."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trustcxr.attacks import preserve_state
from trustcxr.audit import formats
from trustcxr.audit.formats.onnx import OnnxNet
from trustcxr.data.loader import to_pixels
from trustcxr.data.phantom import CLASSES, render
from trustcxr.errors import UserError, lookup
from trustcxr.evaluation import hub, trained_models
from trustcxr.evaluation.trained_run import Run, load_run
from trustcxr.models import export as exporting
from trustcxr.runs import test_data as tested
from trustcxr.runs.test_data import Source
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import ExportDocument

ALLOWED = 1e-4  # difference of a logit, relative to the largest or 1
IMAGES = 12  # to compare the file with the run
NAMES = {"onnx": "model.onnx", "torch-export": "program.pt2"}  # different stems: each has its own model file
_SMALLEST = 32  # pixels of a synthetic image


def export(run: str | Path, kind: str, out: Path | None = None, *, data: Path | None = None) -> ExportDocument:
    """Write a run's model to `out`, by default into its folder, with the model file that an audit takes.

    `kind`: onnx or torch-export. The file's answers, one by one and in a batch, are compared with the run's on images
    of `data` (its test split), by default on synthetic ones. Raises UserError, and writes nothing, if they differ by
    more than ALLOWED, a package is missing, or another file has the model file's name.
    """
    name = lookup(NAMES, "format", kind)
    if out is None and hub.is_address(str(run)):
        raise UserError(f"{run}: it has no folder here: say --out FILE, such as --out {name}")
    out = out or trained_models.results_folder(layout.check_run(trained_models.resolve(run))) / name
    exporting.check_export(kind, out)
    model_file = out.with_suffix(".yaml")
    if out.exists() and not model_file.exists():
        raise UserError(f"{out}: is there, and no model file beside it says that it was exported; choose another --out")
    if model_file.exists() and atomic.read_yaml(model_file).get("source") != out.name:
        what = f"is there, and the model file of {out.name} would take its place; use another --out"
        raise UserError(f"{model_file}: {what}")
    loaded = load_run(run, on="cpu")
    images, description = _images(loaded, data)
    with atomic.atomic_write(out) as temporary:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        exporting.write(loaded.model, loaded.size, temporary, kind)
        external = formats.load(
            temporary,
            classes=loaded.classes,
            size=loaded.size,
            channels=1,
            resize=loaded.recipe.data.resize,
            trust_code=True,  # the file was written here
            on="cpu",
        )
        with torch.no_grad(), preserve_state(loaded.model):
            expected = loaded.model(images)
        nets: list[Any] = [external.model, OnnxNet(temporary)] if kind == "onnx" else [external.model]
        with torch.no_grad():
            answers = [torch.stack([net(images), torch.cat([net(image[None]) for image in images])]) for net in nets]
        # One by one and in a batch, relative to the largest or 1; NaN stays NaN.
        largest = float((torch.stack(answers) - expected).abs().max()) / max(1.0, float(expected.abs().max()))
        if not largest <= ALLOWED:
            raise UserError(f"{out}: not written: its answers differ from the run's by {largest:.1e} on {description}")
    atomic.write_yaml(model_file, _model_file(loaded, out))
    return ExportDocument(
        run=loaded.name,
        format=kind,
        file=str(out),
        model_file=str(model_file),
        opset=exporting.OPSET if kind == "onnx" else None,
        size=loaded.size,
        bytes=out.stat().st_size,
        sha256=atomic.checksum(out),
        images=description,
        n=len(images),
        largest=largest,
        allowed=ALLOWED,
        gradients=external.origin.gradients,
        note="; ".join(external.origin.notes),
    )


def _images(run: Run, data: Path | None) -> tuple[Tensor, str]:
    """Return images (B, 1, H, W) in pixel space and their description."""
    if data is not None:
        radiographs = tested.load(run, Source(data))
        rows = np.unique(np.linspace(0, len(radiographs) - 1, min(IMAGES, len(radiographs))).astype(int))
        return to_pixels(torch.from_numpy(radiographs.batch(rows))), f"{len(rows)} images of {radiographs.root.name}"
    size = max(run.size, _SMALLEST)
    drawn = np.stack([render(CLASSES[k % len(CLASSES)], seed=k, size=size).image for k in range(IMAGES)])
    images = to_pixels(torch.from_numpy(drawn[:, None, : run.size, : run.size].copy()))
    return images, f"{len(images)} synthetic images"


def _model_file(run: Run, out: Path) -> dict[str, object]:
    """Return the content of its model file, with claims from its recipe."""
    recipe, defence = run.recipe, run.recipe.defence
    data = atomic.section(atomic.read_yaml(run.folder / "run.yaml"), "data")
    against = f"L-infinity {defence.epsilon:g}, {defence.name}" if defence.attacks or defence.certifies else ""
    return {
        "source": out.name,
        "name": run.name,
        "input": {"size": run.size, "channels": 1, "range": [0, 1], "resize": recipe.data.resize},
        "output": {"kind": "logits", "classes": list(run.classes)},
        "reported": {
            "threat_model": against,
            "training_data": f"{data.get('root_name', '')}, {data.get('images', '')} images of {data.get('split', '')}",
        },
    }
