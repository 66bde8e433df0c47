"""Real films: networks that only look robust are found out by a whole audit, and broken as their bare network is."""

from pathlib import Path

import pytest
from benchmarks.findings.audits import first_images
from benchmarks.findings.liars import BARE, EPSILON, POINTS, rows
from benchmarks.liars import LIARS

from test_cli import run
from trustcxr.evaluation.run import load_run

EACH = 20  # films of a class: of 60 films three points are one


@pytest.mark.slow
def test_each_liar_is_flagged_and_left_with_what_its_bare_network_has(covidqu: Path, tmp_path: Path) -> None:
    options = ["--model", "test_resnet", "--size", "32", "--epochs", "3", "--set", "model.weights=none"]
    run("train", "--data", covidqu, *options, "--out", tmp_path / "run")
    films = first_images(covidqu, tmp_path / "films", load_run(tmp_path / "run", on="cpu"), EACH, split="Val")
    (tmp_path / "out").mkdir()
    found = {str(row["network"]): row for row in rows(tmp_path / "run", films, tmp_path / "out", list(LIARS))}
    bare = found.pop(BARE)
    assert bare["flagged"] == "", "nothing honest is accused"
    assert bare["worst_case"] <= bare["plain_pgd"]
    assert bare["n"] == 3 * EACH
    fooled = 0
    for name, row in found.items():
        assert row["flagged"], name
        assert row["worst_case"] <= bare["worst_case"] + POINTS, f"{name} at {EPSILON}: {row} beside {bare}"
        fooled += row["plain_pgd"] > bare["plain_pgd"] + 10 * POINTS
    assert fooled >= 3, "plain PGD, which does not look at what it attacks, believes them"
