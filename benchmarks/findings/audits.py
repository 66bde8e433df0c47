"""A run's network in every format that an audit takes: has each audit the figures of the run's own?

    python -m benchmarks.findings.audits RUN --data PATH --out DIR [--images N] [--validation]

Nothing is trained: RUN is a folder of `trustcxr train` of one timm network. It is written as torch.export program,
TorchScript, ONNX, weights and `module:function`, and each is audited with FGSM, PGD and worst-case of exam-1;
`--images` takes the first N images of each class, `--validation` those of validation in place of Test, which this need
not open. Written: audits.md, a row a format, with its seconds and the largest difference from the run.
"""

import argparse
import os
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from trustcxr.about import NOTICE
from trustcxr.data import load_dataset, read_manifest
from trustcxr.evaluation.run import Run, load_run
from trustcxr.results.documents import AuditDocument
from trustcxr.study.audit import audit

ATTACKS = ("fgsm", "pgd", "worst-case")
CLEAN, ATTACKED = 1e-9, 0.005  # what an audit may differ by from that of the run
NAMED = "TRUSTCXR_BENCHMARK_RUN"  # the run that `network` loads


def network() -> nn.Module:
    """The run's network, for `python: benchmarks.findings.audits:network`."""
    return load_run(os.environ[NAMED], on="cpu").model.net


def as_weights(run: Run, out: Path, *, size: int | None = None) -> Path:
    """A model file of the run's weights alone, at its own side or another."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {key: value.contiguous() for key, value in run.model.net.state_dict().items()}
    save_file(weights, out / "net.safetensors")
    return _model_file(run, out / "weights.yaml", f"source: net.safetensors\ntimm: {run.trained_by.model.name}", size)


def _model_file(run: Run, path: Path, source: str, size: int | None = None) -> Path:
    scale = f"mean: [{float(run.model.mean)!r}], std: [{float(run.model.std)!r}]"
    path.write_text(
        f"{source}\ninput: {{size: {size or run.size}, {scale}}}\n"
        f"output: {{kind: logits, classes: [{', '.join(run.classes)}]}}\n"
    )
    return path


def written(run: Run, out: Path) -> dict[str, Path]:
    """A model file for each format, of the run's network without anything of ours around it."""
    out.mkdir(parents=True, exist_ok=True)
    net, images = run.model.net.eval(), torch.rand(2, 1, run.size, run.size)
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net, (images,), dynamic_shapes=batch), out / "net.pt2")
    torch.jit.trace(net, images).save(str(out / "net.pt"))
    axes = {"x": {0: "batch"}}
    torch.onnx.export(net, (images,), out / "net.onnx", dynamo=False, input_names=["x"], dynamic_axes=axes)
    sources = {
        "torch.export": "source: net.pt2",
        "TorchScript": "source: net.pt",
        "ONNX": "source: net.onnx",
        "module:function": "python: benchmarks.findings.audits:network",
    }
    files = {name: _model_file(run, out / f"{name.replace(':', '-')}.yaml", text) for name, text in sources.items()}
    return files | {"weights": as_weights(run, out)}


def figures(document: AuditDocument) -> dict[str, float]:
    """Accuracy as films are and under each attack."""
    attacked = {f"{row.attack} {row.epsilon:g}": row.accuracy.value for row in document.attacks}
    found = {"clean": document.clean.accuracy.value} | attacked
    return {name: value for name, value in found.items() if value is not None}


def first_images(data: Path, out: Path, run: Run, count: int | None, *, split: str | None = None) -> Path:
    """A folder of the first images of each class (None: all), as links: of the test split unless said."""
    manifest = read_manifest(data)
    films = load_dataset(manifest, split or run.trained_by.data.splits.test, run.size, classes=run.classes)
    for name, rows in films.table.groupby("class"):
        (out / str(name)).mkdir(parents=True, exist_ok=True)
        for path in rows["path"][:count]:
            link = out / str(name) / Path(path).name
            if not link.is_symlink():
                link.symlink_to((manifest.root / path).resolve())
    return out


def rows(run: Path, data: Path, out: Path, *, split: str | None = None) -> list[tuple[str, float, dict[str, float]]]:
    """Of the run itself and of each format: name, seconds, figures."""
    os.environ[NAMED] = str(run.resolve())
    models = {"the run": run} | written(load_run(run, on="cpu"), out / "models")
    found = []
    for name, model in models.items():
        folder, before = out / "audits" / name.replace(":", "-").replace(" ", "-"), time.perf_counter()
        shutil.rmtree(folder, ignore_errors=True)
        document = audit(model, data, folder, split=split, attacks=ATTACKS, trust_code=not model.is_dir())
        found.append((name, time.perf_counter() - before, figures(document)))
    return found


def differences(found: list[tuple[str, float, dict[str, float]]]) -> dict[str, tuple[float, float]]:
    """Of each format how far it is from the run at most: clean, and under attack."""
    own = found[0][2]
    return {
        name: (
            abs(other["clean"] - own["clean"]),
            max(abs(other[key] - own[key]) for key in own if key != "clean"),
        )
        for name, _, other in found[1:]
    }


def main() -> None:
    """Measure, and write audits.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, help="of each class; all unless said")
    parser.add_argument("--validation", action="store_true", help="the images of validation in place of Test's")
    asked = parser.parse_args()
    run = load_run(asked.run, on="cpu")
    splits = run.trained_by.data.splits
    data, split = asked.data, str(splits.val if asked.validation else splits.test)
    if asked.images:
        data = first_images(asked.data, asked.out / "films", run, asked.images, split=split)
    found = rows(asked.run, data, asked.out, split=None if asked.images else split)
    apart = differences(found)
    names = list(found[0][2])
    lines = [f"| format | {' | '.join(names)} | seconds | furthest from the run, clean | attacked |"]
    lines += ["| --- |" + " --- |" * (len(names) + 3)]
    for name, seconds, values in found:
        clean, attacked = apart.get(name, (0.0, 0.0))
        shown = " | ".join(f"{values[key]:.4f}" for key in names)
        lines.append(f"| {name} | {shown} | {seconds:.0f} | {clean:.4f} | {attacked:.4f} |")
    films = "" if not asked.images else f"{asked.images} of each class of the "
    flag = " --validation" if asked.validation else ""
    title = (
        f"# One network in every format that an audit takes\n\n`python -m benchmarks.findings.audits RUN --data "
        f"{asked.data.name} --out DIR{flag}`; RUN: {run.trained_by.model.called} at {run.size} pixels. On {films}"
        f"{'validation' if asked.validation else 'Test'} images, shares answered rightly by attack and epsilon. "
        f"{NOTICE}\n\n"
    )
    (asked.out / "audits.md").write_text(title + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
