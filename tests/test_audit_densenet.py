"""Real films: the audit of a DenseNet in each format has the figures of the run; beside the other formats' tests."""

from pathlib import Path

import pytest
from benchmarks.findings import audits as benchmark

from test_audit_formats import every_format_has_the_figures_of, robust


@pytest.mark.slow
def test_a_densenet121_has_the_figures_of_the_run_in_every_format(
    covidqu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TorchScript its graph is kept from the attacks, and once ended the audit in the middle."""
    monkeypatch.setenv(benchmark.NAMED, "")
    every_format_has_the_figures_of(robust("densenet121", covidqu, tmp_path / "run"), covidqu, tmp_path, count=4)
