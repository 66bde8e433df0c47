"""Write a run's network in every format that an audit takes, and audit each: the figures must be those of the run.

Its weights are put into the network as others hold it (torchvision's if it has one of the name, else timm's), which
takes RGB and ImageNet's normalisation.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from trustcxr.audit.run_audit import audit
from trustcxr.data import load_dataset, read_manifest
from trustcxr.evaluation.trained_run import Run, load_run
from trustcxr.storage.schemas import AuditDocument

ATTACKS = ("fgsm", "pgd", "worst-case")
CLEAN, STABILITY_ATTACK = 1e-9, 0.005  # what an audit may differ by from that of the run
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
TORCHVISION = ("resnet18", "resnet50")  # whose layers torchvision names as timm does
NAMED = "TRUSTCXR_BENCHMARK_RUN"  # the run that `network` loads


def network() -> nn.Module:
    """The network of RGB, for `python: benchmarks.formats:network`."""
    return of_rgb(load_run(os.environ[NAMED], on="cpu"))


def of_rgb(run: Run) -> nn.Module:
    """The run's network as others hold it: its first filters are spread over three channels, each with its own std."""
    name, classes = run.recipe.model.name, len(run.classes)
    made = torchvision.models.get_model if name in TORCHVISION else timm.create_model
    net = made(name, num_classes=classes)
    state, wanted = run.model.net.state_dict(), net.state_dict()
    (first,) = [key for key, value in state.items() if value.shape != wanted[key].shape]
    spread = torch.tensor(STD)[:, None, None] / (3 * float(run.model.std))
    net.load_state_dict(state | {first: state[first] * spread})
    return net.eval()


class OfBytes(nn.Module):
    """A network that wants grey levels from 0 to 255 and normalises them itself."""

    def __init__(self, net: nn.Module, mean: list[float]) -> None:
        super().__init__()
        self.net = net
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images / 255 - self.mean) / self.std)


def _mean(run: Run) -> list[float]:
    """ImageNet's mean of each channel; of a network with another mean of all three, so far beside it."""
    return [round(value + float(run.model.mean) - sum(MEAN) / 3, 6) for value in MEAN]


def as_weights(run: Run, out: Path, *, size: int | None = None) -> Path:
    """A model file of the run's weights alone, at its own side or another."""
    out.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in of_rgb(run).state_dict().items()}, out / "net.safetensors")
    return _model_file(run, out / "weights.yaml", f"source: net.safetensors\ntimm: {run.recipe.model.name}", size=size)


def _model_file(
    run: Run, path: Path, source: str, scale: str = "", kind: str = "logits", size: int | None = None
) -> Path:
    scale = scale or f"mean: {_mean(run)}, std: {list(STD)}"
    path.write_text(
        f"{source}\ninput: {{size: {size or run.size}, channels: 3, {scale}}}\n"
        f"output: {{kind: {kind}, classes: [{', '.join(run.classes)}]}}\n"
    )
    return path


def written(run: Run, out: Path) -> dict[str, Path]:
    """A model file for each format, of the run's network without anything of ours around it."""
    out.mkdir(parents=True, exist_ok=True)
    net, images = of_rgb(run), torch.rand(2, 3, run.size, run.size)
    batch = ({0: torch.export.Dim("batch")},)
    for name, kind in {
        "net": net,
        "softmax": nn.Sequential(net, nn.Softmax(1)),
        "bytes": OfBytes(net, _mean(run)),
    }.items():
        torch.export.save(torch.export.export(kind.eval(), (images,), dynamic_shapes=batch), out / f"{name}.pt2")
    torch.jit.trace(net, images).save(str(out / "net.pt"))
    axes = {"x": {0: "batch"}}
    torch.onnx.export(net, (images,), out / "net.onnx", dynamo=False, input_names=["x"], dynamic_axes=axes)
    sources = {
        "torch.export": ("source: net.pt2", "", "logits"),
        "TorchScript": ("source: net.pt", "", "logits"),
        "ONNX": ("source: net.onnx", "", "logits"),
        "module:function": ("python: benchmarks.formats:network", "", "logits"),
        "probabilities": ("source: softmax.pt2", "", "probabilities"),
        "of 0 to 255": ("source: bytes.pt2", "range: [0, 255]", "logits"),
    }
    files = {name: _model_file(run, out / f"{name.replace(':', '-')}.yaml", *said) for name, said in sources.items()}
    return files | {"weights": as_weights(run, out)}


def figures(document: AuditDocument) -> dict[str, float]:
    """Accuracy as images are and under each attack."""
    attacked = {f"{row.attack} {row.epsilon:g}": row.accuracy.value for row in document.attacks}
    found = {"clean": document.clean.accuracy.value} | attacked
    return {name: value for name, value in found.items() if value is not None}


def first_images(data: Path, out: Path, run: Run, count: int | None, *, split: str | None = None) -> Path:
    """A folder of the first images of each class (None: all), as links: of the test split unless said."""
    manifest = read_manifest(data)
    images = load_dataset(manifest, split or run.recipe.data.splits.test, run.size, classes=run.classes)
    for name, rows in images.table.groupby("class"):
        (out / str(name)).mkdir(parents=True, exist_ok=True)
        for path in rows["path"][:count]:
            link = out / str(name) / Path(path).name
            if not link.is_symlink():
                link.symlink_to((manifest.root / path).resolve())
    return out


def rows(
    run: Path, data: Path, out: Path, *, split: str | None = None, only: Sequence[str] | None = None
) -> list[tuple[str, AuditDocument]]:
    """Of the run itself and of each format, or of `only` these: name, audit.

    What an earlier start left in `out` is gone on with.
    """
    os.environ[NAMED] = str(run.resolve())
    models = {"the run": run} | written(load_run(run, on="cpu"), out / "models")
    if unknown := set(only or ()) - models.keys():
        raise ValueError(f"{', '.join(sorted(unknown))}: no format of {', '.join(models)}")
    return [
        (
            name,
            audit(
                model,
                data,
                out / "audits" / re.sub(r"\W", "-", name),
                split=split,
                attacks=ATTACKS,
                trust_code=not model.is_dir(),
            ),
        )
        for name, model in models.items()
        if only is None or name in only
    ]


def differences(found: list[tuple[str, AuditDocument]]) -> dict[str, tuple[float, float]]:
    """Of each format how far it is from the run at most: clean, and under attack."""
    own = figures(found[0][1])
    return {
        name: (
            abs(figures(other)["clean"] - own["clean"]),
            max(abs(figures(other)[key] - own[key]) for key in own if key != "clean"),
        )
        for name, other in found[1:]
    }
