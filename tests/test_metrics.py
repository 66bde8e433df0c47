"""Every figure of metrics.json against scikit-learn or torchmetrics, and again from the table on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from trustcxr import registry, statistics
from trustcxr.errors import NotFiniteError
from trustcxr.evaluation import gradient_masking, metrics, run_figures
from trustcxr.statistics import softmax
from trustcxr.storage import atomic
from trustcxr.storage.prediction_table import logits_of
from trustcxr.storage.schemas import Alarm, RunDocument
from trustcxr.study.verify_study import differences

NAMES = {2: ("negative", "positive"), 3: ("COVID-19", "Non-COVID", "Normal"), 5: tuple("abcde")}


def answers(classes: int, *, count: int = 200, skill: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (count, classes) as float32 and labels (count,)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    logits = random.normal(size=(count, classes))
    logits[np.arange(count), labels] += skill
    return logits.astype(np.float32), labels


def table(
    classes: int = 3, *, conditions: dict[tuple[str, float, int], float] | None = None, group: int = 1
) -> pd.DataFrame:
    """predictions.parquet as evaluation.py writes it: clean, then each (attack, epsilon, steps) with a skill."""
    skills = {("clean", 0.0, 0): 1.5, **(conditions or {})}
    tables = []
    for number, ((attack, epsilon, steps), skill) in enumerate(skills.items()):
        logits, _ = answers(classes, skill=skill, seed=number)
        _, labels = answers(classes, seed=0)
        logits = np.asarray(logits)
        logits[np.arange(200), labels] += skill if number else 0
        rows: dict[str, Any] = {"sample_id": [f"Test/{i}.png" for i in range(200)]}
        rows |= {"group": [f"patient {i // group}" for i in range(200)], "split": "Test"}
        rows |= {"class": [NAMES[classes][k] for k in labels], "label": labels, "attack": attack}
        rows |= {"epsilon": epsilon, "steps": steps, "severity": 0, "logits": list(logits)}
        tables.append(pd.DataFrame(rows))
    return pd.concat(tables, ignore_index=True)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classification_agrees_with_scikit_learn(classes: int) -> None:
    logits, labels = answers(classes)
    names = NAMES[classes]
    found = metrics.classification(logits, labels, np.arange(200), names, resamples=100).plain()
    predicted, probabilities = logits.argmax(1), softmax(logits)
    common: dict[str, Any] = {"labels": range(classes), "average": "macro", "zero_division": 0}
    assert found["accuracy"]["value"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["precision_macro"]["value"] == pytest.approx(sk.precision_score(labels, predicted, **common))
    assert found["recall_macro"]["value"] == pytest.approx(sk.recall_score(labels, predicted, **common))
    assert found["f1_macro"]["value"] == pytest.approx(sk.f1_score(labels, predicted, **common))
    areas = [sk.roc_auc_score(labels == k, probabilities[:, k]) for k in range(classes)]
    assert found["auroc_macro"]["value"] == pytest.approx(np.mean(areas))
    if classes > 2:
        assert found["auroc_macro"]["value"] == pytest.approx(
            sk.roc_auc_score(labels, probabilities, multi_class="ovr")
        )
    ece = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), classes, n_bins=15)
    assert found["ece_plug_in"] == pytest.approx(float(ece), abs=1e-6)
    assert found["confusion"] == sk.confusion_matrix(labels, predicted, labels=range(classes)).tolist()
    assert (found["n"], found["groups"]) == (200, 200)
    each = sk.precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0)
    for k, name in enumerate(names):
        own = found["per_class"][name]
        assert [own["precision"]["value"], own["recall"]["value"], own["f1"]["value"], own["n"]] == pytest.approx(
            [column[k] for column in each]
        )
        assert own["auroc"]["value"] == pytest.approx(areas[k])


def test_intervals_agree_with_resampling_by_hand() -> None:
    """The same resamples, each measured by scikit-learn."""
    logits, labels = answers(3, count=90)
    groups = np.repeat(np.arange(45), 2)
    found = metrics.classification(logits, labels, groups, NAMES[3], resamples=120).plain()
    from trustcxr.statistics import Bootstrap

    weights = Bootstrap.over(groups, resamples=120).row_weights()[1:]
    predicted, probabilities = logits.argmax(1), softmax(logits)
    by_hand: dict[str, list[float]] = {"accuracy": [], "f1_macro": [], "auroc_macro": [], "precision_macro": []}
    for weight in weights:
        rows = np.repeat(np.arange(90), weight)
        common: dict[str, Any] = {"labels": range(3), "average": "macro", "zero_division": 0}
        by_hand["accuracy"].append(sk.accuracy_score(labels[rows], predicted[rows]))
        by_hand["f1_macro"].append(sk.f1_score(labels[rows], predicted[rows], **common))
        by_hand["precision_macro"].append(sk.precision_score(labels[rows], predicted[rows], **common))
        by_hand["auroc_macro"].append(sk.roc_auc_score(labels[rows], probabilities[rows], multi_class="ovr"))
    for name, values in by_hand.items():
        assert found[name]["ci"] == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist()), name
    covid = found["per_class"]["COVID-19"]
    assert covid["recall"]["ci"][0] <= covid["recall"]["value"] <= covid["recall"]["ci"][1]


def test_an_absent_class_and_one_never_predicted() -> None:
    logits, labels = answers(3)
    labels = np.where(labels == 2, 1, labels)  # no Normal in the data
    logits[:, 1] = -9  # Non-COVID is never the answer
    found = metrics.classification(logits, labels, np.arange(200), NAMES[3], resamples=100).plain()
    common: dict[str, Any] = {"labels": range(3), "average": "macro", "zero_division": 0}
    assert found["precision_macro"]["value"] == pytest.approx(sk.precision_score(labels, logits.argmax(1), **common))
    assert found["f1_macro"]["value"] == pytest.approx(sk.f1_score(labels, logits.argmax(1), **common))
    assert (
        found["per_class"]["Non-COVID"]["precision"]["value"] == found["per_class"]["Non-COVID"]["recall"]["value"] == 0
    )
    absent = found["per_class"]["Normal"]
    assert (absent["n"], absent["recall"]["value"]) == (0, None)
    assert found["recall_macro"]["value"] == pytest.approx(sk.balanced_accuracy_score(labels, logits.argmax(1)))
    assert [absent["auroc"]["value"], *absent["auroc"]["ci"]] == [None, None, None]
    present = [found["per_class"][name]["auroc"]["value"] for name in NAMES[3][:2]]
    assert found["auroc_macro"]["value"] == pytest.approx(np.mean(present))
    assert np.isfinite(found["auroc_macro"]["ci"]).all()


def test_a_perfect_classifier_is_perfect_in_every_resample() -> None:
    """A class of three images is often not drawn: its recall is not 0 there, but not defined."""
    labels = np.repeat([0, 1, 2], [30, 30, 3])
    found = metrics.classification(20 * np.eye(3)[labels], labels, np.arange(63), NAMES[3], resamples=500).plain()
    for name in ("precision", "recall", "f1", "auroc"):
        assert found[f"{name}_macro"]["value"] == 1
        low, high = found[f"{name}_macro"]["ci"]
        assert high == 1
        assert 0.4 < low < 0.95, "no error in 63 images does not prove that there is never one"
        lows = [found["per_class"][label][name]["ci"][0] for label in NAMES[3]]
        assert lows[2] < lows[0] == lows[1] < 1, f"three images say less than thirty: {name}"
    assert found["recall_macro"] == found["balanced_accuracy"]
    ends = [found["per_class"][name]["auroc"]["ci"] for name in NAMES[3]]
    assert all(high == 1 for _, high in ends)
    assert ends[0] == pytest.approx(ends[1])
    assert ends[2][0] < ends[0][0] < 1, "three images say less than thirty"


def test_one_group_has_no_interval_of_its_calibration() -> None:
    logits, labels = answers(3)
    assert metrics.classification(logits, labels, np.zeros(200), NAMES[3], resamples=50).ece.interval is None
    assert metrics.classification(logits, labels, np.arange(200), NAMES[3], resamples=50).ece.interval is not None


def test_one_class_alone_has_no_auroc() -> None:
    logits, labels = answers(3)
    found = metrics.classification(logits, np.zeros_like(labels), np.arange(200), NAMES[3], resamples=100).plain()
    assert found["auroc_macro"]["value"] is None
    assert found["accuracy"]["value"] == pytest.approx((logits.argmax(1) == 0).mean())


def test_no_images_have_no_accuracy() -> None:
    found = metrics.classification(np.zeros((0, 3)), np.zeros(0, dtype=int), [], NAMES[3], resamples=100).plain()
    assert [found["accuracy"]["value"], *found["accuracy"]["ci"]] == [None, None, None]
    assert found["n"] == 0


@pytest.mark.parametrize("condition", ["clean", "fgsm"])
def test_logits_of_a_table_that_are_no_numbers_are_refused(condition: str) -> None:
    predictions = table(conditions=SWEEP)
    row = predictions.index[predictions["attack"] == condition][0]
    predictions.at[row, "logits"] = np.array([np.nan, 1.0, 0.0])
    with pytest.raises(NotFiniteError, match=f"1 of {len(predictions)} rows of the predictions hold NaN"):
        metrics.from_predictions(predictions, NAMES[3], resamples=100)


def test_groups_widen_every_interval() -> None:
    logits, labels = (np.repeat(part, 8, axis=0) for part in answers(3, count=40))
    alone = metrics.classification(logits, labels, np.arange(320), NAMES[3], resamples=400).plain()
    patients = metrics.classification(logits, labels, np.repeat(np.arange(40), 8), NAMES[3], resamples=400).plain()
    assert (alone["groups"], patients["groups"]) == (320, 40)
    for name in ("accuracy", "f1_macro", "auroc_macro", "ece"):
        assert np.diff(patients[name]["ci"])[0] > 1.8 * np.diff(alone[name]["ci"])[0], name
    # Of the calibration error more is chance where patients are few.
    assert patients["ece"]["value"] < alone["ece"]["value"]
    for name in ("accuracy", "f1_macro", "auroc_macro"):
        assert patients[name]["value"] == pytest.approx(alone[name]["value"])
    assert patients["ece_plug_in"] == pytest.approx(alone["ece_plug_in"])


SWEEP = {("fgsm", 0.02, 1): 0.4, ("pgd", 0.02, 20): 0.1, ("fgsm", 0.01, 1): 0.8, ("pgd", 0.01, 20): 0.5}


def ends(rows: np.ndarray, groups: pd.Series) -> list[float]:
    """The interval of a share of the rows that are not NaN, by 200 resamples of their groups."""
    bootstrap = statistics.Bootstrap.over(groups, resamples=200)
    return statistics.share_interval(bootstrap, bootstrap.means(rows), of=np.isfinite(rows.astype(float)))


def same(one: object, other: object) -> bool:
    """Whether two documents say the same, to within rounding."""
    return list(differences(one, other)) == list(differences(other, one)) == []


def test_attacks_of_a_table() -> None:
    predictions = table(conditions=SWEEP, group=4)
    found = metrics.from_predictions(predictions, NAMES[3], resamples=200).plain()
    assert found["clean"]["groups"] == 50
    assert found["corruptions"] == []
    assert "corruptions_mean" not in found
    assert [(row["attack"], row["epsilon"], row.get("steps")) for row in found["attacks"]] == [
        ("fgsm", 0.01, None),
        ("fgsm", 0.02, None),
        ("pgd", 0.01, 20),
        ("pgd", 0.02, 20),
    ]
    clean = predictions[predictions["attack"] == "clean"]
    was_right = np.stack(clean["logits"]).argmax(1) == clean["label"].to_numpy()
    assert found["clean"]["accuracy"]["value"] == pytest.approx(was_right.mean())
    for row in found["attacks"]:
        own = predictions[(predictions["attack"] == row["attack"]) & (predictions["epsilon"] == row["epsilon"])]
        right = np.stack(own["logits"]).argmax(1) == own["label"].to_numpy()
        assert row["accuracy"]["value"] == pytest.approx(right.mean())
        assert row["success_rate"]["value"] == pytest.approx((was_right & ~right).sum() / was_right.sum())
        assert row["success_rate"]["ci"] == pytest.approx(ends(np.where(was_right, ~right, np.nan), own["group"]))
        assert row["ece"]["ci"][0] <= row["ece"]["value"] <= row["ece"]["ci"][1] > row["ece"]["ci"][0]
        assert row["accuracy"]["ci"][0] < row["accuracy"]["value"] < row["accuracy"]["ci"][1]
        ece = multiclass_calibration_error(
            torch.tensor(softmax(np.stack(own["logits"]))), torch.tensor(own["label"].to_numpy()), 3, n_bins=15
        )
        assert row["ece_plug_in"] == pytest.approx(float(ece), abs=1e-6)
        assert row["n"] == 200


def test_what_a_model_does_without_the_lungs_stands_apart_from_attacks() -> None:
    """Trap 9: accuracy with the lungs blacked out, with the lungs alone and from the border."""
    views = {
        (view, 0.0, 0): skill
        for view, skill in zip(registry.VIEWS, np.linspace(0.1, 0.9, len(registry.VIEWS)), strict=True)
    }
    predictions = table(conditions=views | SWEEP, group=2)
    found = metrics.from_predictions(predictions, NAMES[3], resamples=200).plain()
    assert [row["attack"] for row in found["attacks"]] == ["fgsm", "fgsm", "pgd", "pgd"]
    assert list(found["shortcuts"]) == list(registry.VIEWS)
    for view, part in found["shortcuts"].items():
        own = predictions[predictions["attack"] == view]
        assert part["accuracy"]["value"] == pytest.approx((np.stack(own["logits"]).argmax(1) == own["label"]).mean())
        assert part["accuracy"]["ci"][0] < part["accuracy"]["value"] < part["accuracy"]["ci"][1]
        assert part["n"] == 200
    assert metrics.from_predictions(table(conditions=SWEEP), NAMES[3], resamples=100).shortcuts == {}


CORRUPTED = [("jpeg", 1), ("jpeg", 5), ("device", 5)]


def corrupted(group: int = 2) -> pd.DataFrame:
    """Clean, an attack, and corruptions in their column `severity`."""
    skills = {(name, 0.0, severity): 0.6 / severity for name, severity in CORRUPTED}  # severity stands for steps here
    predictions = table(conditions=skills | SWEEP, group=group)
    is_corruption = predictions["attack"].isin(["jpeg", "device"])
    severity = predictions["steps"].where(is_corruption, 0)
    return predictions.assign(severity=severity, steps=predictions["steps"].where(~is_corruption, 0))


def test_corruptions_stand_apart_from_attacks() -> None:
    predictions = corrupted()
    found = metrics.from_predictions(predictions, NAMES[3], resamples=200).plain()
    assert {row["attack"] for row in found["attacks"]} == {"fgsm", "pgd"}
    assert [(row["corruption"], row["severity"]) for row in found["corruptions"]] == CORRUPTED
    clean = predictions[predictions["attack"] == "clean"]
    before = np.stack(clean["logits"]).argmax(1)
    shares, flips = [], []
    for row in found["corruptions"]:
        own = predictions[(predictions["attack"] == row["corruption"]) & (predictions["severity"] == row["severity"])]
        answer = np.stack(own["logits"]).argmax(1)
        assert row["accuracy"]["value"] == pytest.approx((answer == own["label"]).mean())
        assert row["flip_rate"]["value"] == pytest.approx((answer != before).mean())
        assert row["flip_rate"]["ci"] == pytest.approx(ends(answer != before, own["group"]))
        assert row["accuracy"]["ci"][0] < row["accuracy"]["value"] < row["accuracy"]["ci"][1]
        assert row["n"] == 200
        shares.append(answer == own["label"])
        flips.append(answer != before)
    mean = found["corruptions_mean"]
    assert (mean["n"], mean["conditions"]) == (200, 3)
    assert mean["accuracy"]["value"] == pytest.approx(np.mean(shares))
    assert mean["flip_rate"]["value"] == pytest.approx(np.mean(flips))
    within = np.mean(shares, axis=0)
    by_hand = statistics.interval(statistics.Bootstrap.over(clean["group"], resamples=200).means(within))
    assert mean["accuracy"]["ci"] == pytest.approx(by_hand), "over images: conditions of one image are no new images"


def test_accuracy_by_source_beside_a_constant_answer() -> None:
    predictions = table(conditions=SWEEP)
    sources = np.where(np.arange(200) < 50, "one", "other")
    predictions["source"] = np.tile(sources, 5)
    found = metrics.from_predictions(predictions, NAMES[3], resamples=100).plain()["by_source"]
    clean = predictions[predictions["attack"] == "clean"]
    right = np.stack(clean["logits"]).argmax(1) == clean["label"]
    assert {name: part["n"] for name, part in found.items()} == {"one": 50, "other": 150}
    for name, part in found.items():
        own = clean[clean["source"] == name]
        assert part["accuracy"]["value"] == pytest.approx(right[clean["source"] == name].mean())
        assert part["constant_answer"] == pytest.approx(np.bincount(own["label"]).max() / len(own))
    alone = metrics.from_predictions(predictions.assign(source="one"), NAMES[3], resamples=100).plain()
    assert alone["by_source"] == metrics.from_predictions(table(), NAMES[3], resamples=100).plain()["by_source"] == {}


def test_the_fill_that_serves_the_claim_least_counts_without_the_lungs() -> None:
    skills = {"lungs_blacked_out": 0.1, "lungs_in_grey": 1.5, "box_in_mean": 0.4, "lungs_only": 3.0}
    found = metrics.from_predictions(
        table(conditions={(view, 0.0, 0): skill for view, skill in skills.items()}), NAMES[3], resamples=100
    ).plain()
    worst = found["without_lungs"]
    assert worst["view"] == "lungs_in_grey"
    assert worst["accuracy"]["value"] == found["shortcuts"]["lungs_in_grey"]["accuracy"]["value"]
    assert worst["accuracy"]["value"] > found["shortcuts"]["lungs_blacked_out"]["accuracy"]["value"]
    # A table from before the other fills has the one that it has; without masks there is none.
    old = metrics.from_predictions(
        table(conditions={("lungs_blacked_out", 0.0, 0): 0.1}), NAMES[3], resamples=100
    ).plain()
    assert old["without_lungs"]["view"] == "lungs_blacked_out"
    assert metrics.from_predictions(table(), NAMES[3], resamples=100).without_lungs is None


def test_parts_of_the_data_stand_apart_with_balanced_accuracy_and_the_constant_answer() -> None:
    predictions = table(conditions=SWEEP).assign(strict_external=np.tile(np.where(np.arange(200) < 80, "1", "0"), 5))
    found = metrics.from_predictions(predictions, NAMES[3], resamples=100).plain()["by_group"]["strict_external"]
    clean = predictions[predictions["attack"] == "clean"]
    assert {name: part["n"] for name, part in found.items()} == {"0": 120, "1": 80}
    for name, part in found.items():
        own = clean[clean["strict_external"] == name]
        answer = np.stack(own["logits"]).argmax(1)
        assert part["balanced_accuracy"]["value"] == pytest.approx(sk.balanced_accuracy_score(own["label"], answer))
        assert (
            part["balanced_accuracy"]["ci"][0] < part["balanced_accuracy"]["value"] < part["balanced_accuracy"]["ci"][1]
        )
        assert part["constant_answer"] == pytest.approx(np.bincount(own["label"]).max() / len(own))


def test_balanced_accuracy_stands_beside_accuracy_under_every_condition() -> None:
    found = metrics.from_predictions(
        table(conditions=SWEEP | {("lungs_only", 0.0, 0): 1}), NAMES[3], resamples=100
    ).plain()
    for part in (found["clean"], *found["attacks"], *found["shortcuts"].values()):
        low, high = part["balanced_accuracy"]["ci"]
        assert low < part["balanced_accuracy"]["value"] < high
    assert found["clean"]["balanced_accuracy"]["value"] == found["clean"]["recall_macro"]["value"]


def test_the_drop_from_internal_to_external() -> None:
    internal, external = (
        table(conditions=SWEEP, group=2),
        table(conditions={("pgd", 0.02, 20): 0.02, ("fgsm", 0.3, 1): 1}),
    )
    external = external[external["sample_id"].str.len() < 12]  # 100 images, and other ones
    found = [row.plain() for row in run_figures.compare_with_internal(internal, external, resamples=400)]
    assert [(row["attack"], row["epsilon"], row.get("steps")) for row in found] == [
        ("clean", 0.0, None),
        ("pgd", 0.02, 20),
    ]
    for row in found:
        parts = []
        for side, predictions in (("internal", internal), ("external", external)):
            own = predictions[(predictions["attack"] == row["attack"]) & (predictions["epsilon"] == row["epsilon"])]
            right = (np.stack(own["logits"]).argmax(1) == own["label"]).to_numpy()
            assert row[side] == pytest.approx(right.mean())
            assert row[f"n_{side}"] == len(own)
            parts.append((right.mean(), right.var() / len(right)))
        drop, spread = parts[0][0] - parts[1][0], np.sqrt(parts[0][1] + parts[1][1])
        assert row["drop"]["value"] == pytest.approx(drop)
        # Against the normal interval of a difference of two independent shares.
        low, high = row["drop"]["ci"]
        assert low < drop < high
        assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.3)


def test_order_of_rows_does_not_matter() -> None:
    predictions = corrupted(group=4)
    shuffled = predictions.sample(frac=1, random_state=1)
    first, second = (
        metrics.from_predictions(part, NAMES[3], resamples=100).plain() for part in (predictions, shuffled)
    )
    for part in (first, second):
        part["corruptions"].sort(key=lambda row: (row["corruption"], row["severity"]))
    for part in ("clean", "attacks", "corruptions", "corruptions_mean"):
        assert same(first[part], second[part]), part


def test_pgd_with_two_numbers_of_steps_is_two_attacks() -> None:
    predictions = table(conditions={("pgd", 0.02, 10): 0.8, ("pgd", 0.02, 20): 0.1})
    found = metrics.from_predictions(predictions, NAMES[3], resamples=100).plain()["attacks"]
    assert [(row["steps"], row["n"]) for row in found] == [(10, 200), (20, 200)]
    assert found[0]["accuracy"]["value"] > found[1]["accuracy"]["value"]


def test_metrics_on_disk_are_computed_again_exactly(tmp_path: Path) -> None:
    predictions = table(conditions=SWEEP, group=3)
    document = metrics.from_predictions(predictions, NAMES[3], resamples=300).plain()
    atomic.write_table(tmp_path / "predictions.parquet", predictions)
    atomic.write_json(tmp_path / "metrics.json", document)
    again = metrics.from_predictions(
        atomic.read_table(tmp_path / "predictions.parquet"), NAMES[3], resamples=300
    ).plain()
    assert json.loads(atomic.to_json(again)) == atomic.read_json(tmp_path / "metrics.json")


def test_logits_of_an_empty_table() -> None:
    assert logits_of(table().iloc[:0]).shape == (0, 0)


def document(clean: float, *rows: tuple[str, float, float]) -> dict[str, Any]:
    listed = [
        {"attack": attack, "epsilon": epsilon, "accuracy": {"value": accuracy}}
        | ({"steps": 20} if attack == "pgd" else {})
        for attack, epsilon, accuracy in rows
    ]
    return {"clean": {"accuracy": {"value": clean}, "n": 570}, "split": "Test", "attacks": listed}


def found(clean: float, *rows: tuple[str, float, float]) -> list[Alarm]:
    return alarms_of(document(clean, *rows))


def alarms_of(content: dict[str, Any]) -> list[Alarm]:
    made = RunDocument.model_validate(content)
    made.masking = gradient_masking.verdict(made)
    return run_figures.find_alarms(made)


def kinds(clean: float, *rows: tuple[str, float, float]) -> list[str]:
    return [alarm.kind for alarm in found(clean, *rows)]


@pytest.mark.parametrize(
    ("rows", "raised"),
    [
        ([("fgsm", 0.01, 0.6), ("fgsm", 0.02, 0.4), ("pgd", 0.01, 0.52), ("pgd", 0.02, 0.31)], []),
        ([], []),
        ([("pgd", 0.02, 0.0)], []),
        ([("fgsm", 0.02, 0.59), ("pgd", 0.02, 0.50)], []),
        ([("fgsm", 0.02, 0.61), ("pgd", 0.02, 0.50)], ["fgsm_overstates"]),
        ([("fgsm", 0.01, 0.8), ("pgd", 0.02, 0.1)], []),
        ([("fgsm", 0.02, 0.3), ("pgd", 0.02, 0.4)], ["weak_attack"]),
        ([("fgsm", 0.02, 0.3), ("pgd", 0.02, 0.31)], []),
    ],
)
def test_what_raises_an_alarm(rows: list[tuple[str, float, float]], raised: list[str]) -> None:
    assert kinds(0.9, *rows) == raised


def test_fgsm_that_overstates_is_an_alarm_in_words() -> None:
    (alarm,) = found(0.61, ("fgsm", 0.02, 0.61), ("pgd", 0.02, 0.0))
    assert alarm.kind == "fgsm_overstates"
    for part in ("epsilon 0.02", "61.0% under FGSM", "0.0% under PGD-20", "570 Test images"):
        assert part in alarm.text
    assert "\n" not in alarm.text


def test_the_strongest_pgd_is_what_counts() -> None:
    both = document(0.9, ("fgsm", 0.02, 0.6), ("pgd", 0.02, 0.58), ("pgd", 0.02, 0.2))
    both["attacks"][1]["steps"] = 2
    (alarm,) = alarms_of(both)
    assert alarm.kind == "fgsm_overstates"
    assert "under PGD-20" in alarm.text


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_accuracy_that_rises_with_epsilon_is_an_alarm_under_many_steps_alone(attack: str) -> None:
    """One step overshoots on any network: issue 19, line 8."""
    rising = [(attack, 0.05, 0.7), (attack, 0.01, 0.5), (attack, 0.02, 0.55)]
    if attack == "fgsm":
        assert kinds(0.9, *rising) == []
        return
    (alarm,) = found(0.9, *rising)
    assert alarm.kind == "rising_with_epsilon"
    assert "under PGD-20 rises from 50.0% at epsilon 0.01 to 70.0% at epsilon 0.05" in alarm.text
    assert kinds(0.9, (attack, 0.01, 0.5), (attack, 0.02, 0.51)) == []


def test_a_slow_rise_and_one_above_clean_are_seen() -> None:
    assert kinds(0.9, *[("pgd", 0.01 * k, 0.4 + 0.015 * k) for k in range(1, 6)]) == ["rising_with_epsilon"]
    (above,) = found(0.6, ("pgd", 0.02, 0.7))
    assert above.kind == "rising_with_epsilon"
    assert "from 60.0% at epsilon 0 to 70.0%" in above.text


def test_a_class_of_few_images_is_not_sure_because_all_are_right() -> None:
    labels = np.repeat([0, 1, 2], [30, 30, 3])
    found = metrics.classification(8 * np.eye(3)[labels], labels, np.arange(63), ("a", "b", "c"), resamples=200)
    rare = found.per_class["c"]
    for share in (rare.recall, rare.precision):
        assert share.value == 1
        assert share.ci == pytest.approx([stats.binomtest(3, 3).proportion_ci(method="wilson").low, 1])
    effective = 9 / (1 / 30 + 1 / 30 + 1 / 3)
    assert found.balanced_accuracy.ci == pytest.approx(statistics.wilson(1, effective))
    rows = pd.DataFrame({"label": labels, "logits": list(8.0 * np.eye(3)[labels]), "group": np.arange(63).astype(str)})
    same = metrics.accuracy(rows, metrics.Bootstraps(resamples=200))
    assert same.balanced_accuracy.ci == pytest.approx(found.balanced_accuracy.ci)


def test_a_class_that_is_predicted_once_and_rightly_has_an_interval() -> None:
    answers = np.array([0] * 59 + [1])
    labels = np.repeat([0, 1], 30)
    found = metrics.classification(8.0 * np.eye(2)[answers], labels, np.arange(60), ("a", "b"), resamples=50)
    precision = found.per_class["b"].precision
    assert precision.value == 1
    assert precision.ci == pytest.approx(statistics.wilson(1, 1))


def test_balanced_accuracy_near_one_covers_the_truth() -> None:
    covered = []
    labels = np.repeat([0, 1, 2], 20)
    for trial in range(150):
        answers = np.where(np.random.default_rng(trial).random(60) < 0.97, labels, (labels + 1) % 3)
        found = metrics.classification(8.0 * np.eye(3)[answers], labels, np.arange(60), ("a", "b", "c"), resamples=100)
        low, high = found.balanced_accuracy.ci or (1.0, 1.0)
        covered.append(low <= 0.97 <= high)
    assert np.mean(covered) >= 0.93, "by resamples alone it was 0.81"
