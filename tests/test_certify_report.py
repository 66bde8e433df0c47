"""What is proved, on the page of a study: a table and a bar between proof and attack."""

from pathlib import Path
from typing import Any

import pytest

from trustcxr.report.figures import charts as figure
from trustcxr.report.figures import svg
from trustcxr.report.load import Run
from trustcxr.report.tables import robustness as table
from trustcxr.storage.schemas import RunDocument


def run(certified: Any = None, attacks: Any = None) -> Run:
    content = {"model": "plain3", "defence": "ibp", "clean": {"accuracy": {"value": 0.8}}, "certified": certified or []}
    document = RunDocument.model_validate(content | {"attacks": attacks or []})
    return Run(document, Path("runs/a"), [], label="plain3 ibp")


ENTRY = {"epsilon": 0.02, "accuracy": {"value": 0.6, "ci": [0.5, 0.7]}, "balanced_accuracy": {"value": 0.55}, "n": 100}
ATTACKS = [
    {"attack": "fgsm", "epsilon": 0.02, "accuracy": {"value": 0.7}},
    {"attack": "worst-case", "epsilon": 0.02, "accuracy": {"value": 0.65, "ci": [0.6, 0.7]}},
    {"attack": "pgd", "epsilon": 0.05, "accuracy": {"value": 0.1}},
    {"attack": "pgd-l2", "epsilon": 0.02, "accuracy": {"value": 0.0}},
]


def test_beside_a_proof_stands_the_lowest_attack_of_the_same_ball() -> None:
    found = table.proved([run([ENTRY], ATTACKS)])
    assert found is not None
    (row,) = found.rows
    shown = dict(zip(found.header, row, strict=True))
    assert (shown["Certified, %"].value, shown["Under attack, %"].value) == (0.6, 0.65)
    assert shown["Strongest"].text == "worst-case"
    assert shown["Open, points"].text == "5.0"


def test_the_bar_goes_from_proof_by_the_open_part_to_what_is_lost() -> None:
    (gap,) = table.list_proofs([run([ENTRY], ATTACKS)])
    assert figure.proof_parts(gap) == [(0.0, 0.6), (0.6, 0.65), (0.65, 0.8)]
    (alone,) = table.list_proofs([run([ENTRY])])
    assert figure.proof_parts(alone) == [(0.0, 0.6), (0.6, 0.8), (0.8, 0.8)]
    drawn = figure.proof_bars([run([ENTRY], ATTACKS)])
    assert drawn is not None
    assert svg.render_inline(drawn, "k").startswith("<svg role")


@pytest.mark.parametrize("missing", [[], [{"epsilon": 0.1}]])
def test_what_is_missing_leaves_the_part_out(missing: Any) -> None:
    assert table.proved([run(missing)]) is None
    assert figure.proof_bars([run(missing)]) is None
