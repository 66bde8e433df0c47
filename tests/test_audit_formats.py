"""Real films: the audit of a network in each format has the figures of the run that it is of."""

from pathlib import Path

import pytest
from benchmarks.findings import audits as benchmark

from test_cli import run
from trustcxr.evaluation.run import load_run


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
