"""exam-1 is one recipe that never changes under the same name; exam-quick-1 is a part of it that compares by itself."""

import inspect
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from small_runs import untrained
from trustcxr.attacks import adaptive
from trustcxr.audit import active_test, attack_runner, audit_data
from trustcxr.audit.audit_data import first_by_hash
from trustcxr.audit.compare import compare
from trustcxr.audit.run_audit import audit
from trustcxr.data import load_dataset
from trustcxr.data.phantom import render_image, write_files
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions
from trustcxr.evaluation.trained_run import ModelUnderTest
from trustcxr.recipes.evaluation_recipe import AttackRecipe
from trustcxr.recipes.protocol import ExamRecipe, load_exam
from trustcxr.registry import STOCHASTIC_DRAWS
from trustcxr.report import leaderboard
from trustcxr.storage.prediction_table import right
from trustcxr.storage.schemas import AuditDocument


def test_the_efforts_that_stand_in_the_code_are_those_of_the_published_audits() -> None:
    of_attacks = (attack_runner.THRESHOLD_STEPS, adaptive.LONGER, adaptive.CLIMBS, STOCHASTIC_DRAWS)
    distilled = (audit_data.SURROGATE_IMAGES, inspect.signature(adaptive.distil).parameters["steps"].default)
    assert (of_attacks, distilled) == ((10, 10, 6, 16), (256, 300))
    assert (active_test.STEPS, active_test.ENOUGH) == (40, 0.95)


def test_exam_1_is_what_it_was_when_audits_were_published() -> None:
    """Its attacks, radii, budgets, corruptions and seeds (a batch's number is its seed), word for word."""
    exam = load_exam("exam-1")
    assert exam.version == "exam-1"
    assert [(a.name, a.epsilons, a.steps, a.queries) for a in exam.attacks] == [
        ("fgsm", (0.01, 0.02), None, None),
        ("pgd", (0.005, 0.01, 0.02), 20, None),
        ("square", (0.02,), None, 100),
        ("worst-case", (0.02,), 20, 50),
    ]
    assert [(a.name, a.epsilons, a.steps, a.queries) for a in exam.without_gradients] == [
        ("square", (0.01,), None, 300),
        ("square", (0.02,), None, 600),
        ("worst-case", (0.02,), 20, 50),
    ]
    guards = exam.guards
    assert (guards.images, guards.queries, guards.agreement) == (64, 1000, 0.8)
    assert (guards.large_epsilon, guards.large_images, guards.large_queries) == (0.3, 16, 300)
    assert (exam.corruptions.names, exam.corruptions.severities) == ("all", (3,))
    assert (exam.entry_checks.images, exam.entry_checks.epsilon, exam.entry_checks.planted) == (120, 0.02, 16)
    assert (exam.batch_size, exam.bootstrap) == (32, 2000)


def test_the_number_of_a_batch_is_the_seed_of_its_attacks(tmp_path: Path) -> None:
    radiographs = load_dataset(write_files.write(tmp_path / "images", {"Test": 3}, size=32), "Test", 32)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 3)).eval()
    seeds = []

    def carry_out(attack: AttackRecipe, images: torch.Tensor, *options: object) -> torch.Tensor:
        seeds.append(options[-1]["seed"])  # type: ignore[index]
        return images

    asked = ModelUnderTest("net", net, radiographs.classes, torch.device("cpu"))
    pgd = AttackRecipe(name="pgd", epsilons=(0.02,), steps=1)
    predictions.predict(asked, radiographs, [pgd], views=False, batch_size=4, carry_out=carry_out, at_once=False)
    assert seeds == [0, 1, 2]


def test_other_options_are_no_version_of_it_and_must_be_known() -> None:
    assert load_exam().changed(("pgd",), (0.01,)).version is None
    assert load_exam().changed() == load_exam()
    with pytest.raises(UserError, match="--attack transfer: an audit has no surrogate to attack in its place"):
        load_exam().changed(("transfer",))
    for epsilon in (0.0, -0.01, float("nan")):
        with pytest.raises(UserError, match=f"--epsilon {epsilon:g}: an attack needs a radius above 0"):
            load_exam().changed((), (0.02, epsilon))
    with pytest.raises(UserError, match="unknown protocol 'exam-quick': did you mean exam-quick-1"):
        load_exam("exam-quick")


def test_what_it_attacks_with_is_a_part_of_exam_1() -> None:
    quick, whole = load_exam("exam-quick-1"), load_exam("exam-1")
    assert (quick.version, quick.images) == ("exam-quick-1", 192)
    assert "fewer steps" in quick.about
    for part in ("attacks", "without_gradients"):
        known = {(attack.name, epsilon): attack for attack in getattr(whole, part) for epsilon in attack.epsilons}
        for one in getattr(quick, part):
            for other in (known[one.name, epsilon] for epsilon in one.epsilons):
                assert (one.steps or 0) <= (other.steps or 0)
                assert (one.queries or 0) <= (other.queries or 0)
    assert quick.corruptions == whole.corruptions
    assert (quick.entry_checks, quick.guards) == (whole.entry_checks, whole.guards)


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
    """Two audits by exam-quick-1 with 12 images under attack."""
    folder = tmp_path_factory.mktemp("quick")
    data = write_files.write(folder / "images", {"Test": 10, "Val": 4}, size=32)
    changes = {"images": 12, "bootstrap": 100, "corruptions": {"names": ["jpeg"], "severities": [3]}}
    exam = ExamRecipe.model_validate(load_exam("exam-quick-1").model_dump(mode="json") | changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trustcxr.audit.run_audit.load_exam", lambda _: exam)
        for seed in (0, 1):
            run = untrained(folder / f"run{seed}", render_image.CLASSES, seed)
            audit(run, data, folder / f"audits/{seed}", protocol="exam-quick-1")
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
    means = [row.clean.value for row in (*document.attacks, document.corruptions_mean)]
    assert means == [pytest.approx(expected)] * len(means)
    said = next(row.text for row in document.verdict.model if row.question == "robust")
    share = f"{expected:.1%}".replace(".0%", "%")
    assert f"from {share}" in said or f"at {share}" in said
    views = table[table["attack"] == "lungs_only"]
    assert views.empty or len(views) == 30


@pytest.mark.slow
def test_two_audits_by_it_compare_and_rank_and_neither_is_replaced_by_another_protocol(audits: Path) -> None:
    pair = compare(audits / "audits/0", audits / "audits/1", resamples=100)
    assert pair.protocol == "exam-quick-1"
    assert {row.n for row in pair.rows if row.measure == "clean accuracy"} == {30}
    assert {row.n for row in pair.rows if "worst-case" in row.measure} == {12}
    board = leaderboard.gather_audits(audits / "audits")
    assert (board.protocol, len(board.entries), board.refused) == ("exam-quick-1", 2, ())
    table = leaderboard.make_table(board)
    cell = table.rows[0][table.header.index("n")]
    assert (cell.text, cell.small) == ("30", "attacks 12")
    with pytest.raises(UserError, match="holds a whole examination by exam-quick-1, which one by exam-1 would replace"):
        audit(audits / "run0", audits / "images", audits / "audits/0")
    with pytest.raises(UserError, match=r"attacks \d+ images alone. Submit images to exam-1"):
        audit(audits / "run0", audits / "images", audits / "x", protocol="exam-quick-1", adversarial=Path("x"))
