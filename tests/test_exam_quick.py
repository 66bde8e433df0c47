"""Test exam-quick-1: a fixed part of exam-1 that compares and ranks on its own."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from small_runs import untrained
from trustcxr.audit.audit_data import first_by_hash
from trustcxr.audit.compare import compare
from trustcxr.audit.run_audit import audit
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError
from trustcxr.recipes.protocol import ExamRecipe, load_exam
from trustcxr.report import leaderboard
from trustcxr.storage.prediction_table import right
from trustcxr.storage.schemas import AuditDocument


def test_what_it_attacks_with_is_a_part_of_exam_1() -> None:
    quick, whole = load_exam("exam-quick-1"), load_exam("exam-1")
    assert (quick.version, quick.images) == ("exam-quick-1", 192)
    assert "fewer steps" in quick.about
    for part in ("attacks", "without_gradients"):
        known = {(attack.name, epsilon): attack for attack in getattr(whole, part) for epsilon in attack.epsilons}
        for attack in getattr(quick, part):
            for epsilon in attack.epsilons:
                assert (attack.steps or 0) <= (known[attack.name, epsilon].steps or 0)
                assert (attack.queries or 0) <= (known[attack.name, epsilon].queries or 0)
    assert quick.corruptions == whole.corruptions
    assert (quick.entry_checks, quick.guards) == (whole.entry_checks, whole.guards)


def test_an_unknown_protocol_is_named_with_those_there_are() -> None:
    with pytest.raises(UserError, match="unknown protocol 'exam-quick': did you mean exam-quick-1"):
        load_exam("exam-quick")


def test_the_images_are_the_first_by_their_hash_and_balanced_whatever_else_is_there() -> None:
    names, labels = np.array([f"image{i}" for i in range(90)]), np.repeat([0, 1, 2], [60, 20, 10])
    rows = first_by_hash(names, labels, 24)
    assert np.bincount(labels[rows]).tolist() == [8, 8, 8]
    order = np.random.default_rng(0).permutation(90)
    assert set(names[order][first_by_hash(names[order], labels[order], 24)]) == set(names[rows])
    assert set(rows) < set(first_by_hash(names, labels, 30)), "more images are these and others"
    assert np.bincount(labels[first_by_hash(names, labels, 40)]).tolist() == [15, 15, 10]


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two audits by exam-quick-1 with 12 images under attack, and one by options of its own."""
    folder = tmp_path_factory.mktemp("quick")
    data = write_files.write(folder / "images", {"Test": 10, "Val": 4}, size=32)
    classes = ("COVID-19", "Non-COVID", "Normal")
    content = load_exam("exam-quick-1").model_dump(mode="json")
    content |= {"images": 12, "bootstrap": 100, "corruptions": {"names": ["jpeg"], "severities": [3]}}
    exam = ExamRecipe.model_validate(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trustcxr.audit.run_audit.load_exam", lambda _: exam)
        for seed in (0, 1):
            audit(
                untrained(folder / f"run{seed}", classes, seed),
                data,
                folder / f"audits/{seed}",
                protocol="exam-quick-1",
            )
    return folder


@pytest.mark.slow
def test_attacks_are_on_some_images_and_the_rest_on_all(audits: Path) -> None:
    document = AuditDocument.model_validate_json((audits / "audits/0/audit.json").read_text())
    assert (document.protocol, document.clean.n) == ("exam-quick-1", 30)
    assert {row.n for row in (*document.attacks, *document.corruptions)} == {12}
    assert document.notes[0].startswith("exam-quick-1: attacks and corruptions on at most 192 images")
    assert {check.check for check in document.entry_checks} >= {"declaration", "gradients", "active test"}
    table = pd.read_parquet(audits / "audits/0/predictions.parquet")
    assert not table.duplicated(["sample_id", "attack", "epsilon", "severity"]).any()
    attacked = set(table.loc[table["attack"] == "pgd", "sample_id"])
    clean = table[(table["attack"] == "clean") & table["sample_id"].isin(attacked)]
    expected = float(right(clean).mean())
    assert [row.clean.value for row in document.attacks] == [pytest.approx(expected)] * len(document.attacks)
    assert document.corruptions_mean.clean.value == pytest.approx(expected)
    said = next(row.text for row in document.verdict.model if row.question == "robust")
    assert f"from {expected:.1%}".replace(".0%", "%") in said or f"at {expected:.1%}".replace(".0%", "%") in said
    views = table[table["attack"] == "lungs_only"]
    assert views.empty or len(views) == 30


@pytest.mark.slow
def test_two_audits_by_it_compare_and_rank(audits: Path) -> None:
    pair = compare(audits / "audits/0", audits / "audits/1", resamples=100)
    assert pair.protocol == "exam-quick-1"
    assert {row.n for row in pair.rows if row.measure == "clean accuracy"} == {30}
    assert {row.n for row in pair.rows if "worst-case" in row.measure} == {12}
    board = leaderboard.gather_audits(audits / "audits")
    assert (board.protocol, len(board.entries), board.refused) == ("exam-quick-1", 2, ())
    cell = leaderboard.make_table(board).rows[0][leaderboard.make_table(board).header.index("n")]
    assert (cell.text, cell.small) == ("30", "attacks 12")


@pytest.mark.slow
def test_it_never_replaces_an_audit_by_another_protocol(audits: Path) -> None:
    with pytest.raises(UserError, match="holds a whole examination by exam-quick-1, which one by exam-1 would replace"):
        audit(audits / "run0", audits / "images", audits / "audits/0")
    with pytest.raises(UserError, match=r"attacks \d+ images alone. Submit images to exam-1"):
        audit(audits / "run0", audits / "images", audits / "x", protocol="exam-quick-1", adversarial=Path("x"))
