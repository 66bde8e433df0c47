"""Real films: the audit of a network in each format has the figures of the run that it is of."""

from pathlib import Path

import pytest
from benchmarks.findings import audits as benchmark

from test_cli import run
from trustcxr.evaluation.run import load_run
from trustcxr.study.audit import audit


@pytest.mark.slow
def test_every_format_has_the_figures_of_the_run_on_real_films(
    covidqu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(benchmark.NAMED, "")
    options = ["--model", "test_resnet", "--size", "32", "--epochs", "1", "--set", "model.weights=none"]
    run("train", "--data", covidqu, *options, "--out", tmp_path / "run")
    films = benchmark.first_images(covidqu, tmp_path / "films", load_run(tmp_path / "run", on="cpu"), 10)
    found = benchmark.rows(tmp_path / "run", films, tmp_path / "out")
    assert [name for name, _, _ in found] == [
        "the run",
        "torch.export",
        "TorchScript",
        "ONNX",
        "module:function",
        "weights",
    ]
    assert {"clean", "fgsm 0.02", "pgd 0.02", "worst-case 0.02"} <= found[0][2].keys()
    for name, (clean, attacked) in benchmark.differences(found).items():
        assert clean <= benchmark.CLEAN, name
        assert attacked <= benchmark.ATTACKED, name


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
