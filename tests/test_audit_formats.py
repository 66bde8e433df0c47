"""Real films: the audit of a network in each format has the figures of the run that it is of."""

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.findings import audits as benchmark
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from foreign_models import DropoutLeftOn
from test_cli import run
from trustcxr.evaluation.run import load_run
from trustcxr.results import files
from trustcxr.study.audit import audit

FORMATS = [
    "the run",
    "torch.export",
    "TorchScript",
    "ONNX",
    "module:function",
    "probabilities",
    "of 0 to 255",
    "weights",
]


@pytest.mark.slow
def test_every_format_has_the_figures_of_the_run_on_real_films(
    covidqu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(benchmark.NAMED, "")
    options = ["--model", "test_resnet", "--size", "32", "--epochs", "1", "--set", "model.weights=none"]
    run("train", "--data", covidqu, *options, "--out", tmp_path / "run")
    films = benchmark.first_images(covidqu, tmp_path / "films", load_run(tmp_path / "run", on="cpu"), 10)
    found = benchmark.rows(tmp_path / "run", films, tmp_path / "out")
    assert [name for name, _ in found] == FORMATS
    assert {"clean", "fgsm 0.02", "pgd 0.02", "worst-case 0.02"} <= benchmark.figures(found[0][1]).keys()
    for name, (clean, attacked) in benchmark.differences(found).items():
        assert clean <= benchmark.CLEAN, name
        assert attacked <= benchmark.ATTACKED, name


def robust(network: str, data: Path, folder: Path) -> Path:
    """A network trained against FGSM, so that each attack leaves some films: where all are lost, all audits agree."""
    options = ["--model", network, "--size", "32", "--epochs", "6", "--set", "model.weights=none"]
    options += ["--defence", "fgsm", "--set", "defence.ramp=0.7", "--set", "training.learning_rate=0.001"]
    options += ["--set", "training.averaging=0.98", "--set", "training.balanced=true"]
    run("train", "--data", data, *options, "--out", folder)
    return folder


def every_format_has_the_figures_of(own_run: Path, data: Path, folder: Path, *, count: int) -> None:
    """The audits of a run in each format, on the first films of each class of validation, hold together."""
    films = benchmark.first_images(data, folder / "films", load_run(own_run, on="cpu"), count, split="Val")
    found = benchmark.rows(own_run, films, folder / "out")
    own = benchmark.figures(found[0][1])
    assert [name for name, _ in found] == FORMATS
    assert all(benchmark.figures(other).keys() == own.keys() for _, other in found)
    assert 0 < own["worst-case 0.02"] < own["clean"]
    one_film = 1 / (found[0][1].clean.n or 1)  # may tip at rounding; of 201 it is half a point: results/audit-formats-*
    for name, (clean, attacked) in benchmark.differences(found).items():
        assert clean <= benchmark.CLEAN, name
        assert attacked <= one_film + 1e-9, name


@pytest.fixture(scope="module")
def resnet18(covidqu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return robust("resnet18", covidqu, tmp_path_factory.mktemp("robust") / "run")


@pytest.mark.slow
def test_a_resnet18_has_the_figures_of_the_run_in_every_format(
    resnet18: Path, covidqu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(benchmark.NAMED, "")
    every_format_has_the_figures_of(resnet18, covidqu, tmp_path, count=10)


class Findings(nn.Module):
    """Fourteen sigmoids: each class against the others, and eleven findings that nobody has."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits = self.net(images)
        others = [logits[:, [j for j in range(3) if j != k]].logsumexp(1) for k in range(3)]
        rest = torch.full((len(logits), 11), -4.0).to(logits)
        return torch.cat([logits - torch.stack(others, 1), rest], 1).sigmoid()


def findings() -> nn.Module:
    """For `python: test_audit_formats:findings`."""
    return Findings(benchmark.network()).eval()


def dropping() -> nn.Module:
    """For `python: test_audit_formats:dropping`."""
    return DropoutLeftOn(benchmark.network(), 0.002).eval()


@pytest.mark.slow
def test_fourteen_sigmoids_and_dropout_left_on_have_the_figures_of_the_run(
    resnet18: Path, covidqu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(benchmark.NAMED, str(resnet18))
    loaded = load_run(resnet18, on="cpu")
    films = benchmark.first_images(covidqu, tmp_path / "films", loaded, 10, split="Val")
    bare = audit(resnet18, films, tmp_path / "own", attacks=("pgd",), epsilons=(0.02,))
    wanted = f"input: {{size: 32, channels: 3, mean: {list(benchmark.MEAN)}, std: {list(benchmark.STD)}}}\n"
    names = [f"finding {k}" for k in range(14)]
    for name, kind, classes in (("findings", "sigmoid", names), ("dropping", "logits", loaded.classes)):
        about = (
            f"python: test_audit_formats:{name}\n{wanted}output: {{kind: {kind}, classes: [{', '.join(classes)}]}}\n"
        )
        (tmp_path / f"{name}.yaml").write_text(about)
    options = {"attacks": ("pgd",), "epsilons": (0.02,), "trust_code": True}

    labels = dict(zip(loaded.classes, names, strict=False))
    found = audit(tmp_path / "findings.yaml", films, tmp_path / "many", labels=labels, **options)
    assert [finding.name for finding in found.findings if finding.judged] == names[:3]
    points = {(point.finding, point.attack): point.auroc.value for point in found.operating_points}
    table = files.read_table(tmp_path / "own" / "predictions.parquet")
    clean = table[table["attack"] == "clean"]
    shares = torch.tensor(np.stack(clean["logits"].tolist())).softmax(1).numpy()
    for k, name in enumerate(names[:3]):
        assert points[name, "clean"] == pytest.approx(roc_auc_score(clean["label"] == k, shares[:, k]), abs=1e-6)
        assert points[name, "pgd"] < points[name, "clean"]

    found = audit(tmp_path / "dropping.yaml", films, tmp_path / "drops", **options)
    assert [check.passed for check in found.gate if check.check == "same answer twice"] == [False]
    own, other = benchmark.figures(bare), benchmark.figures(found)
    assert found.clean.draws is not None
    assert other["clean"] == pytest.approx(own["clean"], abs=0.1)  # the mean of draws, of 30 films
    assert other["pgd 0.02"] == pytest.approx(own["pgd 0.02"], abs=0.1)
