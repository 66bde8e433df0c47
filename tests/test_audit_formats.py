"""Real films: the audit of a network in each format has the figures of the run that it is of."""

from pathlib import Path

import pytest
from benchmarks.findings import audits as benchmark

from test_cli import run
from trustcxr.evaluation.run import load_run
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


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet18", "densenet121"])
def test_the_two_networks_that_most_people_hold_have_the_figures_of_the_run(
    network: str, covidqu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained against FGSM, so that each attack leaves some films: where all are lost, formats agree by themselves."""
    monkeypatch.setenv(benchmark.NAMED, "")
    options = ["--model", network, "--size", "32", "--epochs", "6", "--set", "model.weights=none", "--defence", "fgsm"]
    options += ["--set", "defence.ramp=0.7", "--set", "training.learning_rate=0.001"]
    options += ["--set", "training.averaging=0.98", "--set", "training.balanced=true"]
    run("train", "--data", covidqu, *options, "--out", tmp_path / "run")
    films = benchmark.first_images(covidqu, tmp_path / "films", load_run(tmp_path / "run", on="cpu"), 10, split="Val")
    found = benchmark.rows(tmp_path / "run", films, tmp_path / "out")
    own = benchmark.figures(found[0][1])
    assert [name for name, _ in found] == FORMATS
    assert all(benchmark.figures(other).keys() == own.keys() for _, other in found)
    assert 0 < own["worst-case 0.02"] < own["clean"]
    one_film = 1 / found[0][1].clean.n  # may tip at rounding; of 201 it is half a point: results/audit-formats-*.md
    for name, (clean, attacked) in benchmark.differences(found).items():
        assert clean <= benchmark.CLEAN, name
        assert attacked <= one_film + 1e-9, name


@pytest.mark.slow
def test_a_densenet_as_torchscript_is_judged_after_it_was_attacked(covidqu: Path, tmp_path: Path) -> None:
    """Its graph is kept from the attacks, and once ended the audit in the middle."""
    options = ["--model", "densenet121", "--size", "32", "--epochs", "1", "--set", "model.weights=none"]
    run("train", "--data", covidqu, *options, "--out", tmp_path / "run")
    loaded = load_run(tmp_path / "run", on="cpu")
    films = benchmark.first_images(covidqu, tmp_path / "films", loaded, 4, split="Val")
    model = benchmark.written(loaded, tmp_path / "models")["TorchScript"]
    found = audit(model, films, tmp_path / "audit", attacks=benchmark.ATTACKS, trust_code=True)
    assert {row.attack for row in found.attacks} == set(benchmark.ATTACKS)
