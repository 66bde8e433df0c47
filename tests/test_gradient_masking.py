"""The verdict on masked gradients: each sign by itself, what could not be looked at, and sweeps of a small network."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from small_networks import Wrapped, accuracy, images_and_labels, trained
from trustcxr import attacks
from trustcxr.evaluation import gradient_masking, metrics, predictions, run_figures
from trustcxr.report import formatting, key_findings, load
from trustcxr.storage.schemas import RunDocument, StudyDocument, Verdict


def document(clean: float, *rows: tuple[Any, ...]) -> dict[str, Any]:
    """The figures of a run: attack, epsilon, accuracy and, if not the usual, the steps of each row."""
    usual = {"pgd": 20, "worst-case": 50, "square": 1000, "transfer": 10, "pgd-l2": 20}
    listed = [
        {"attack": name, "epsilon": epsilon, "accuracy": {"value": share}, "steps": (*steps, usual.get(name))[0]}
        for name, epsilon, share, *steps in rows
    ]
    return {"clean": {"accuracy": {"value": clean}}, "attacks": listed}


def read(content: dict[str, Any]) -> RunDocument:
    return RunDocument.model_validate(content)


def judge(clean: float, *rows: tuple[Any, ...]) -> Verdict:
    return gradient_masking.verdict(read(document(clean, *rows)))


def kinds(found: Verdict) -> list[str]:
    return [sign.kind for sign in found.signs]


def test_a_part_of_the_images_is_compared_with_itself_unperturbed() -> None:
    """Of 192 balanced images more are right than of all, which are mostly of the hardest class."""
    content = document(0.778, ("pgd", 0.01, 0.875), ("pgd", 0.02, 0.8))
    assert "rising_with_epsilon" in kinds(gradient_masking.verdict(read(content)))
    for row in content["attacks"]:
        row["clean"] = {"value": 0.901}
    assert "rising_with_epsilon" not in kinds(gradient_masking.verdict(read(content)))


def test_an_honest_sweep_is_not_masked() -> None:
    found = judge(
        0.8,
        *(("fgsm", 0.01, 0.6), ("fgsm", 0.02, 0.4), ("fgsm", 0.3, 0.05)),
        *(("pgd", 0.01, 0.55), ("pgd", 0.02, 0.33), ("pgd", 0.3, 0.0)),
        *(("square", 0.02, 0.5), ("transfer", 0.02, 0.7), ("worst-case", 0.02, 0.31)),
    )
    looked_for = ["one step against many", "the fall with epsilon", "about zero at 0.3", "black box against white box"]
    assert (found.masked, found.signs, found.looked_for) == (False, [], looked_for)
    assert found.sentence.startswith("No masked gradients found: no sign of it in one step against many, ")
    assert found.sentence.endswith("; not looked for: input gradients")


@pytest.mark.parametrize(
    ("rows", "kind", "reason"),
    [
        ([("fgsm", 0.02, 0.3), ("pgd", 0.02, 0.4)], "weak_attack", "30.0% under FGSM but 40.0% under PGD-20"),
        ([("pgd", 0.02, 0.3), ("pgd", 0.05, 0.36)], "rising_with_epsilon",
         "under PGD-20 rises from 30.0% at epsilon 0.02 to 36.0% at epsilon 0.05"),
        ([("pgd", 0.02, 0.9)], "rising_with_epsilon", "rises from 80.0% at epsilon 0 to 90.0% at epsilon 0.02"),
        ([("pgd", 0.02, 0.3), ("pgd", 0.3, 0.2)], "left_at_large_epsilon", "still 20.0% under PGD-20 at epsilon 0.3"),
        ([("pgd", 0.02, 0.5), ("square", 0.02, 0.3)], "black_box_wins", "30.0% under Square-1000, 50.0% under PGD-20"),
        ([("pgd", 0.02, 0.5), ("transfer", 0.02, 0.4)], "black_box_wins",
         "without gradients is the stronger at epsilon 0.02"),
        # Each of these is no more than FGSM that flatters: the stronger attack's gradients are sound.
        ([("fgsm", 0.02, 0.63), ("pgd", 0.02, 0.0)], "fgsm_overstates", "63.0% under FGSM but 0.0% under PGD-20"),
        ([("fgsm", 0.02, 0.63), ("worst-case", 0.02, 0.2)], "fgsm_overstates", "20.0% under worst-case-50"),
        ([("fgsm", 0.02, 0.6), ("apgd-ce", 0.02, 0.2, 50)], "fgsm_overstates", ""),
        ([("fgsm", 0.02, 0.6), ("pgd", 0.02, 0.55, 10), ("pgd", 0.02, 0.2, 40)], "fgsm_overstates", ""),
        ([("fgsm", 0.02, 0.6), ("pgd", 0.02, 0.55), ("worst-case", 0.02, 0.2)], "fgsm_overstates", ""),
        ([("pgd", 0.01, 0.4), ("pgd", 0.02, 0.415), ("pgd", 0.03, 0.43)], "rising_with_epsilon", ""),
        ([("fgsm", 0.01, 0.3), ("fgsm", 0.02, 0.4), ("pgd", 0.02, 0.32)], None, ""),
    ],
)  # fmt: skip
def test_each_sign_by_itself(rows: list[tuple[Any, ...]], kind: str | None, reason: str) -> None:
    found, signs = judge(0.8, *rows), [kind] if kind else []
    assert kinds(found) == signs
    assert found.masked is (kind not in ("fgsm_overstates", None))
    for part in (reason, *(sign.text for sign in found.signs)):
        assert part in "; ".join(found.reasons)
    assert "\n" not in found.sentence
    # The alarms are these signs and no others, and the report and the terminal show these.
    stored = read(document(0.8, *rows) | {"masking": found.plain()})
    stored.clean.n = 90
    made = run_figures.find_alarms(stored)
    assert [alarm.kind for alarm in made] == signs
    run = load.Run(stored.model_copy(update={"alarms": made}), Path(), [])
    shown = key_findings.gather_alarms(load.StudyFolder(Path(), StudyDocument(), [run], []), [run])
    assert [(g.kind, len(g.lines)) for g in shown["groups"]] == [(kind, 1) for kind in signs]
    assert shown["count_text"] == (formatting.plural(len(made), "alarm") if made else formatting.DASH)


def test_what_is_no_sign() -> None:
    found = judge(0.8, ("fgsm", 0.02, 0.42), ("pgd", 0.02, 0.33), ("square", 0.02, 0.32))
    assert (found.masked, found.signs) == (False, [])
    # A single step overshoots at a large radius, on any network; an L2 radius is another measure.
    rows = [("fgsm", 0.02, 0.2), ("fgsm", 0.3, 0.4), ("pgd", 0.02, 0.15), ("pgd-l2", 0.02, 0.8), ("pgd-l2", 0.3, 0.7)]
    assert judge(0.8, *rows).masked is False
    assert "about zero at 0.3" not in judge(0.8, *rows).looked_for


def test_what_could_not_be_looked_at() -> None:
    for rows in ((), (("fgsm", 0.02, 0.5),), (("square", 0.02, 0.5),)):
        found = judge(0.8, *rows)
        assert (found.masked, found.looked_for) == (None, [])
        assert "not looked for" in "; ".join(found.reasons)


@pytest.mark.parametrize(
    ("n", "share", "fails"), [(94, 5 / 94, False), (2000, 0.0532, False), (2000, 0.08, True), (1, 1, True)]
)
def test_a_few_images_that_float32_is_too_sure_of_accuse_no_network(n: int, share: float, fails: bool) -> None:
    """An undefended EfficientNetV2B0, which every attack broke, was said to have failing gradients for 5 of 94."""
    measured = document(0.68, ("fgsm", 0.02, 0.04), ("pgd", 0.02, 0.0))
    measured["input_gradients"] = {"n": n, "vanishing": share}
    assert gradient_masking.verdict(read(measured)).masked is fails


def test_attacks_that_agree_because_none_moved_are_no_proof() -> None:
    rows = [("fgsm", 0.02, 0.78), ("pgd", 0.02, 0.76)]
    assert judge(0.82, *rows).masked is None
    assert "changed almost no answer (76.0% are still right)" in judge(0.82, *rows).reasons[0]
    measured = document(0.82, *rows) | {"input_gradients": {"n": 100, "vanishing": 0.0}}
    assert gradient_masking.verdict(read(measured)).masked is False
    measured["input_gradients"]["vanishing"] = 0.9
    found = gradient_masking.verdict(read(measured))
    assert (found.masked, kinds(found)) == (True, ["vanishing_gradients"])
    still = document(0.82, *rows)
    still["attacks"][0]["unmoved"] = 0.9
    found = gradient_masking.verdict(read(still))
    assert (found.masked, kinds(found)) == (True, ["unmoved_attack"])
    assert "FGSM left 90.0% of the images unchanged at epsilon 0.02" in found.reasons[0]


def test_a_constant_network_has_no_verdict_but_an_alarm() -> None:
    fixed = document(0.39, ("fgsm", 0.02, 0.39), ("pgd", 0.02, 0.39), ("fgsm", 0.05, 0.2), ("pgd", 0.05, 0.2))
    fixed["clean"] |= {"accuracy": {"value": 0.39, "ci": [0.35, 0.43]}, "n": 90, "constant_answer": 55 / 90}
    found = gradient_masking.verdict(read(fixed))
    assert found.masked is None
    assert "better than one constant answer (61.1%)" in found.reasons[0]
    (alarm,) = run_figures.find_alarms(read(fixed | {"masking": found.plain()}))
    assert alarm.kind == "no_better_than_constant"


def test_a_sign_must_go_beyond_chance_over_the_same_images() -> None:
    """The interval of the pair decides where the table is at hand; without it, the two intervals."""
    found = document(0.8, ("fgsm", 0.02, 0.3), ("pgd", 0.02, 0.34))
    for gap, masked in ((None, True), ((0.01, 0.07), True), ((-0.01, 0.09), False)):
        assert gradient_masking.verdict(read(found), lambda *_, gap=gap: gap).masked is masked
    for row in found["attacks"]:
        share = row["accuracy"]["value"]
        row["accuracy"]["ci"] = [share - 0.04, share + 0.04]
    assert gradient_masking.verdict(read(found)).masked is False, "0.04 apart, give or take 0.057"


def test_the_pair_is_compared_image_by_image() -> None:
    """PGD breaks nothing that FGSM does not: eight images of 100, all one way, are no chance."""
    labels, parts = np.zeros(100, dtype=int), []
    for attack, steps, wrong in (("clean", 0, 5), ("fgsm", 1, 40), ("pgd", 20, 32)):
        logits = np.tile([1.0, 0.0], (100, 1))
        logits[:wrong] = [0.0, 1.0]
        columns = {"sample_id": np.arange(100).astype(str), "group": np.arange(100).astype(str), "label": labels}
        about = {"attack": attack, "epsilon": 0.0 if attack == "clean" else 0.02, "steps": steps, "severity": 0}
        parts.append(pd.DataFrame(columns | about | {"logits": list(logits)}))
    table = pd.concat(parts)
    made = metrics.from_predictions(table, ("a", "b"), resamples=300)
    made.clean.constant_answer = None  # all labels are one class
    assert gradient_masking.verdict(made).masked is False, "the two intervals overlap"
    gap = gradient_masking.paired_gap(table, resamples=300)
    fgsm, pgd = made.attacks
    low, high = gap(pgd, fgsm) or (0, 0)
    assert 0.02 < low < 0.08 < high < 0.15
    assert kinds(gradient_masking.verdict(made, gap)) == ["weak_attack"]


@pytest.mark.parametrize(
    ("n", "others", "square", "name", "masked"),
    [
        (100, {"clean": 20, "apgd-margin": 49}, 1, "square", False),
        (100, {"clean": 20, "apgd-margin": 30}, 20, "square", True),
        (30, {"clean": 3, "apgd-margin": 12}, 1, "square", False),  # one image of thirty is no more than chance
        (100, {"apgd-ce": 40}, 10, "square, 8-bit", True),
        (100, {"apgd-ce": 40}, 10, "square lab, Lyon", False),  # submitted images
    ],
)
def test_what_square_alone_breaks_counts(n: int, others: dict[str, int], square: int, name: str, masked: bool) -> None:
    content = document(0.8, ("fgsm", 0.02, 0.5), ("worst-case", 0.02, 0.3))
    content["attacks"][1] |= {"n": n, "broken_by": others | {name: square}}
    found = gradient_masking.verdict(read(content))
    assert set(kinds(found)) == {"fgsm_overstates", *(["black_box_wins"] if masked else [])}
    assert found.masked is masked
    assert (f"Square alone broke {square / n:.1%} of the images" in found.reasons[0]) is masked


def swept(model: nn.Module) -> dict[str, Any]:
    images, labels = images_and_labels(150, seed=5)
    rows = [
        (name, epsilon, accuracy(model, attacks.get(name)(model, images, labels, epsilon=epsilon), labels))
        for epsilon in predictions.SWEEP
        for name in ("fgsm", "pgd")
    ]
    return document(accuracy(model, images, labels), *rows)


def test_the_sweep_of_a_sound_network_falls_to_about_zero() -> None:
    """Trap 7: from clean accuracy at epsilon 0 it falls and reaches zero before 0.3."""
    found = swept(trained())
    pgd = [row["accuracy"]["value"] for row in found["attacks"] if row["attack"] == "pgd"]
    assert pgd[0] == pytest.approx(found["clean"]["accuracy"]["value"])
    assert pgd[0] > 0.8
    assert all(after <= before + 1e-9 for before, after in pairwise(pgd))
    assert pgd[-1] == 0
    verdict = gradient_masking.verdict(read(found))
    assert verdict.masked is False, verdict.reasons
    assert "about zero at 0.3" in verdict.looked_for


def test_a_network_that_hides_its_gradient_is_found_out() -> None:
    """Behind rounding to 12 grey levels the gradient is zero almost everywhere."""
    hidden = Wrapped(trained(), lambda net, images: net((images * 12).round() / 12 + 0 * images))
    verdict = gradient_masking.verdict(read(swept(hidden)))
    assert verdict.masked is True
    assert "at epsilon 0.3" in "; ".join(verdict.reasons)
    images, labels = images_and_labels(30, seed=5)
    sizes = gradient_masking.measure_input_gradients(hidden, images, labels, torch.ones(30, dtype=torch.bool))
    assert not sizes.any(), "and it is seen directly, too"


def test_input_gradients_are_measured_where_asked() -> None:
    images, labels = images_and_labels(30, seed=5)
    some = torch.arange(30) % 3 == 0
    sizes = gradient_masking.measure_input_gradients(trained(), images, labels, some)
    assert np.isnan(sizes[~some.numpy()]).all()
    leaf = images[some].clone().requires_grad_()
    nn.functional.cross_entropy(trained()(leaf), labels[some], reduction="sum").backward()
    assert np.allclose(sizes[some.numpy()], leaf.grad.abs().amax((1, 2, 3)), rtol=1e-4)
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(400, 3))
    nn.init.zeros_(fixed[1].weight)
    assert not gradient_masking.measure_input_gradients(fixed, images, labels, ~some)[~some.numpy()].any()
    with torch.no_grad():
        fixed[1].weight.fill_(torch.nan)
    assert np.isinf(gradient_masking.measure_input_gradients(fixed, images, labels, ~some)[~some.numpy()]).all()
