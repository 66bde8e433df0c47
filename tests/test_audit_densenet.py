"""Real images: the audit of a DenseNet in each format has the figures of the run; beside the other formats' tests."""

from pathlib import Path

import pytest

from test_audit_formats import GRAPHS, compare_formats, robust


@pytest.mark.full
def test_a_densenet121_has_the_figures_of_the_run_in_every_format_of_a_graph(covidqu: Path, tmp_path: Path) -> None:
    """As TorchScript its graph is kept from the attacks, and once ended the audit in the middle."""
    own = robust("densenet121", covidqu, tmp_path / "run")
    compare_formats(own, covidqu, tmp_path, count=4, only=GRAPHS)
