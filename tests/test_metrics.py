"""Every figure of metrics.json against scikit-learn or torchmetrics, and again from the table on disk."""

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
from trustcxr.statistics import Bootstrap, softmax
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


def table(classes: int = 3, *, conditions: dict[Any, float] | None = None, group: int = 1) -> pd.DataFrame:
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


def classified(logits: np.ndarray, labels: np.ndarray, groups: Any = None, *, resamples: int = 100) -> dict[str, Any]:
    """What classification says of images that are each a patient's of its own, unless `groups` says otherwise."""
    groups, names = np.arange(len(labels)) if groups is None else groups, NAMES[logits.shape[1]]
    return metrics.classification(logits, labels, groups, names, resamples=resamples).plain()


def measured(predictions: pd.DataFrame, resamples: int = 100) -> dict[str, Any]:
    return metrics.from_predictions(predictions, NAMES[3], resamples=resamples).plain()


def right(rows: pd.DataFrame) -> np.ndarray:
    """Whether the answer of each row is its label."""
    return np.stack(rows["logits"]).argmax(1) == rows["label"].to_numpy()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classification_agrees_with_scikit_learn(classes: int) -> None:
    logits, labels = answers(classes)
    names = NAMES[classes]
    found = classified(logits, labels)
    predicted, probabilities = logits.argmax(1), softmax(logits)
    common: dict[str, Any] = {"labels": range(classes), "average": "macro", "zero_division": 0}
    areas = [sk.roc_auc_score(labels == k, probabilities[:, k]) for k in range(classes)]
    theirs = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "precision_macro": sk.precision_score(labels, predicted, **common),
        "recall_macro": sk.recall_score(labels, predicted, **common),
        "f1_macro": sk.f1_score(labels, predicted, **common),
        "auroc_macro": np.mean(areas),
    }
    assert {name: found[name]["value"] for name in theirs} == pytest.approx(theirs)
    if classes > 2:
        assert np.mean(areas) == pytest.approx(sk.roc_auc_score(labels, probabilities, multi_class="ovr"))
    ece = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), classes, n_bins=15)
    assert found["ece_plug_in"] == pytest.approx(float(ece), abs=1e-6)
    assert found["confusion"] == sk.confusion_matrix(labels, predicted, labels=range(classes)).tolist()
    assert (found["n"], found["groups"]) == (200, 200)
    each = sk.precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0)
    for k, name in enumerate(names):
        own = found["per_class"][name]
        values = [own["precision"]["value"], own["recall"]["value"], own["f1"]["value"], own["n"]]
        assert values == pytest.approx([column[k] for column in each])
        assert own["auroc"]["value"] == pytest.approx(areas[k])


def test_intervals_agree_with_resampling_by_hand() -> None:
    """The same resamples, each measured by scikit-learn."""
    logits, labels = answers(3, count=90)
    groups = np.repeat(np.arange(45), 2)
    found = classified(logits, labels, groups, resamples=120)
    weights = Bootstrap.over(groups, resamples=120).row_weights()[1:]
    predicted, probabilities = logits.argmax(1), softmax(logits)
    common: dict[str, Any] = {"labels": range(3), "average": "macro", "zero_division": 0}
    for name, measure in (
        ("accuracy", lambda rows: sk.accuracy_score(labels[rows], predicted[rows])),
        ("f1_macro", lambda rows: sk.f1_score(labels[rows], predicted[rows], **common)),
        ("precision_macro", lambda rows: sk.precision_score(labels[rows], predicted[rows], **common)),
        ("auroc_macro", lambda rows: sk.roc_auc_score(labels[rows], probabilities[rows], multi_class="ovr")),
    ):
        values = [measure(np.repeat(np.arange(90), weight)) for weight in weights]
        assert found[name]["ci"] == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist()), name
    recall = found["per_class"]["COVID-19"]["recall"]
    assert recall["ci"][0] <= recall["value"] <= recall["ci"][1]


def test_an_absent_class_and_one_never_predicted() -> None:
    logits, labels = answers(3)
    labels = np.where(labels == 2, 1, labels)  # no Normal in the data
    logits[:, 1] = -9  # Non-COVID is never the answer
    found = classified(logits, labels)
    common: dict[str, Any] = {"labels": range(3), "average": "macro", "zero_division": 0}
    assert found["precision_macro"]["value"] == pytest.approx(sk.precision_score(labels, logits.argmax(1), **common))
    assert found["f1_macro"]["value"] == pytest.approx(sk.f1_score(labels, logits.argmax(1), **common))
    never, absent = (found["per_class"][name] for name in NAMES[3][1:])
    assert never["precision"]["value"] == never["recall"]["value"] == 0
    assert (absent["n"], absent["recall"]["value"]) == (0, None)
    assert found["recall_macro"]["value"] == pytest.approx(sk.balanced_accuracy_score(labels, logits.argmax(1)))
    assert [absent["auroc"]["value"], *absent["auroc"]["ci"]] == [None, None, None]
    present = [found["per_class"][name]["auroc"]["value"] for name in NAMES[3][:2]]
    assert found["auroc_macro"]["value"] == pytest.approx(np.mean(present))
    assert np.isfinite(found["auroc_macro"]["ci"]).all()
    once = 8.0 * np.eye(2)[[0] * 59 + [1]]  # the second class is predicted once, and rightly
    precision = classified(once, np.repeat([0, 1], 30), resamples=50)["per_class"]["positive"]["precision"]
    assert precision == {"value": 1, "ci": pytest.approx(statistics.wilson(1, 1))}


def test_a_perfect_classifier_is_perfect_in_every_resample_and_not_sure() -> None:
    """A class of three images is often not drawn: its recall is not 0 there, but not defined."""
    labels = np.repeat([0, 1, 2], [30, 30, 3])
    logits = 20.0 * np.eye(3)[labels]
    found = classified(logits, labels, resamples=500)
    for name in ("precision", "recall", "f1", "auroc"):
        assert found[f"{name}_macro"]["value"] == 1
        low, high = found[f"{name}_macro"]["ci"]
        assert high == 1
        assert 0.4 < low < 0.95, "no error in 63 images does not prove that there is never one"
        common, other, rare = (found["per_class"][label][name]["ci"] for label in NAMES[3])
        assert common[1] == other[1] == rare[1] == 1
        assert common == pytest.approx(other)
        assert rare[0] < common[0] < 1, f"three images say less than thirty: {name}"
    for name in ("precision", "recall"):
        ci = found["per_class"]["Normal"][name]["ci"]
        assert ci == pytest.approx([stats.binomtest(3, 3).proportion_ci(method="wilson").low, 1])
    assert found["recall_macro"] == found["balanced_accuracy"]
    balanced = pytest.approx(statistics.wilson(1, 9 / (1 / 30 + 1 / 30 + 1 / 3)))
    assert found["balanced_accuracy"]["ci"] == balanced
    rows = pd.DataFrame({"label": labels, "logits": list(logits), "group": np.arange(63).astype(str)})
    assert metrics.accuracy(rows, metrics.Bootstraps(resamples=200)).balanced_accuracy.ci == balanced


def test_what_cannot_be_measured_has_no_value() -> None:
    logits, labels = answers(3)
    assert classified(logits, labels)["ece"]["ci"][0] is not None
    assert classified(logits, labels, np.zeros(200))["ece"].get("ci") is None, "of one group there are no resamples"
    one_class = classified(logits, np.zeros_like(labels))
    assert one_class["auroc_macro"]["value"] is None
    assert one_class["accuracy"]["value"] == pytest.approx((logits.argmax(1) == 0).mean())
    nothing = classified(logits[:0], labels[:0])
    assert [nothing["accuracy"]["value"], *nothing["accuracy"]["ci"]] == [None, None, None]
    assert nothing["n"] == 0


@pytest.mark.parametrize("condition", ["clean", "fgsm"])
def test_logits_of_a_table_that_are_no_numbers_are_refused(condition: str) -> None:
    predictions = table(conditions=SWEEP)
    row = predictions.index[predictions["attack"] == condition][0]
    predictions.at[row, "logits"] = np.array([np.nan, 1.0, 0.0])
    with pytest.raises(NotFiniteError, match=f"1 of {len(predictions)} rows of the predictions hold NaN"):
        metrics.from_predictions(predictions, NAMES[3], resamples=100)
    assert logits_of(predictions.iloc[:0]).shape == (0, 0)


def test_groups_widen_every_interval() -> None:
    logits, labels = (np.repeat(part, 8, axis=0) for part in answers(3, count=40))
    alone = classified(logits, labels, resamples=400)
    patients = classified(logits, labels, np.repeat(np.arange(40), 8), resamples=400)
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
    bootstrap = Bootstrap.over(groups, resamples=200)
    return statistics.share_interval(bootstrap, bootstrap.means(rows), of=np.isfinite(rows.astype(float)))


def test_attacks_of_a_table() -> None:
    predictions = table(conditions=SWEEP | {("pgd", 0.02, 10): 0.3}, group=4)
    found = measured(predictions, 200)
    assert found["clean"]["groups"] == 50
    assert found["corruptions"] == []
    assert "corruptions_mean" not in found
    listed = [(row["attack"], row["epsilon"], row.get("steps")) for row in found["attacks"]]
    assert listed == [
        ("fgsm", 0.01, None),
        ("fgsm", 0.02, None),
        ("pgd", 0.01, 20),
        ("pgd", 0.02, 10),
        ("pgd", 0.02, 20),
    ]
    was_right = right(predictions[predictions["attack"] == "clean"])
    assert found["clean"]["accuracy"]["value"] == pytest.approx(was_right.mean())
    for row in found["attacks"]:
        condition = [row["attack"], row["epsilon"], row.get("steps", 1)]
        own = predictions[(predictions[["attack", "epsilon", "steps"]] == condition).all(axis=1)]
        is_right = right(own)
        assert row["accuracy"]["value"] == pytest.approx(is_right.mean())
        assert row["success_rate"]["value"] == pytest.approx((was_right & ~is_right).sum() / was_right.sum())
        assert row["success_rate"]["ci"] == pytest.approx(ends(np.where(was_right, ~is_right, np.nan), own["group"]))
        assert row["ece"]["ci"][0] <= row["ece"]["value"] <= row["ece"]["ci"][1] > row["ece"]["ci"][0]
        assert row["accuracy"]["ci"][0] < row["accuracy"]["value"] < row["accuracy"]["ci"][1]
        probabilities, labels = torch.tensor(softmax(np.stack(own["logits"]))), torch.tensor(own["label"].to_numpy())
        ece = multiclass_calibration_error(probabilities, labels, 3, n_bins=15)
        assert row["ece_plug_in"] == pytest.approx(float(ece), abs=1e-6)
        assert row["n"] == 200


def test_what_a_model_does_without_the_lungs_stands_apart_from_attacks() -> None:
    """Trap 9: accuracy with the lungs blacked out, with the lungs alone and from the border; balanced, too."""
    views = {(view, 0.0, 0): 0.1 + 0.1 * number for number, view in enumerate(registry.VIEWS)}
    predictions = table(conditions=views | SWEEP, group=2)
    found = measured(predictions, 200)
    assert [row["attack"] for row in found["attacks"]] == ["fgsm", "fgsm", "pgd", "pgd"]
    assert list(found["shortcuts"]) == list(registry.VIEWS)
    for view, part in found["shortcuts"].items():
        assert part["accuracy"]["value"] == pytest.approx(right(predictions[predictions["attack"] == view]).mean())
        assert part["n"] == 200
    for part in (found["clean"], *found["attacks"], *found["shortcuts"].values()):
        for share in (part["accuracy"], part["balanced_accuracy"]):
            assert share["ci"][0] < share["value"] < share["ci"][1]
    assert found["clean"]["balanced_accuracy"]["value"] == found["clean"]["recall_macro"]["value"]


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
    found = measured(predictions, 200)
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
    by_hand = statistics.interval(Bootstrap.over(clean["group"], resamples=200).means(within))
    assert mean["accuracy"]["ci"] == pytest.approx(by_hand), "over images: conditions of one image are no new images"


def test_sources_and_parts_of_the_data_stand_apart_beside_a_constant_answer() -> None:
    sources, external = np.where(np.arange(200) < 50, "one", "other"), np.where(np.arange(200) < 80, "1", "0")
    predictions = table(conditions=SWEEP).assign(source=np.tile(sources, 5), strict_external=np.tile(external, 5))
    found, clean = measured(predictions), predictions[predictions["attack"] == "clean"]
    by_part = found["by_group"]["strict_external"]
    assert {name: part["n"] for name, part in found["by_source"].items()} == {"one": 50, "other": 150}
    assert {name: part["n"] for name, part in by_part.items()} == {"0": 120, "1": 80}
    for column, parts in (("source", found["by_source"]), ("strict_external", by_part)):
        for name, part in parts.items():
            own = clean[clean[column] == name]
            assert part["accuracy"]["value"] == pytest.approx(right(own).mean())
            assert part["constant_answer"] == pytest.approx(np.bincount(own["label"]).max() / len(own))
            balanced = sk.balanced_accuracy_score(own["label"], np.stack(own["logits"]).argmax(1))
            assert part["balanced_accuracy"]["value"] == pytest.approx(balanced)
            assert part["balanced_accuracy"]["ci"][0] < balanced < part["balanced_accuracy"]["ci"][1]
    assert measured(predictions.assign(source="one"))["by_source"] == measured(table())["by_source"] == {}


def test_the_fill_that_serves_the_claim_least_counts_without_the_lungs() -> None:
    skills = {"lungs_blacked_out": 0.1, "lungs_in_grey": 1.5, "box_in_mean": 0.4, "lungs_only": 3.0}
    found = measured(table(conditions={(view, 0.0, 0): skill for view, skill in skills.items()}))
    worst = found["without_lungs"]
    assert worst["view"] == "lungs_in_grey"
    assert worst["accuracy"]["value"] == found["shortcuts"]["lungs_in_grey"]["accuracy"]["value"]
    assert worst["accuracy"]["value"] > found["shortcuts"]["lungs_blacked_out"]["accuracy"]["value"]
    # A table of one fill has that one; without masks there is none.
    alone = measured(table(conditions={("lungs_blacked_out", 0.0, 0): 0.1}))
    assert alone["without_lungs"]["view"] == "lungs_blacked_out"
    assert metrics.from_predictions(table(), NAMES[3], resamples=100).without_lungs is None


def test_the_drop_from_internal_to_external() -> None:
    internal = table(conditions=SWEEP, group=2)
    external = table(conditions={("pgd", 0.02, 20): 0.02, ("fgsm", 0.3, 1): 1})
    external = external[external["sample_id"].str.len() < 12]  # 100 images, and other ones
    found = [row.plain() for row in run_figures.compare_with_internal(internal, external, resamples=400)]
    listed = [(row["attack"], row["epsilon"], row.get("steps")) for row in found]
    assert listed == [("clean", 0.0, None), ("pgd", 0.02, 20)]
    for row in found:
        parts = []
        for side, predictions in (("internal", internal), ("external", external)):
            own = predictions[(predictions["attack"] == row["attack"]) & (predictions["epsilon"] == row["epsilon"])]
            share, count = right(own).mean(), len(own)
            assert row[side] == pytest.approx(share)
            assert row[f"n_{side}"] == count
            parts.append((share, share * (1 - share) / count))
        drop, spread = parts[0][0] - parts[1][0], np.sqrt(parts[0][1] + parts[1][1])
        assert row["drop"]["value"] == pytest.approx(drop)
        # Against the normal interval of a difference of two independent shares.
        low, high = row["drop"]["ci"]
        assert low < drop < high
        assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.3)


def test_order_of_rows_does_not_matter() -> None:
    predictions = corrupted(group=4)
    shuffled = predictions.sample(frac=1, random_state=1)
    first, second = measured(predictions), measured(shuffled)
    for part in (first, second):
        part["corruptions"].sort(key=lambda row: (row["corruption"], row["severity"]))
    for part in ("clean", "attacks", "corruptions", "corruptions_mean"):
        one, other = first[part], second[part]
        assert list(differences(one, other)) == list(differences(other, one)) == [], part


def alarms(clean: float, *rows: tuple[Any, ...]) -> list[Alarm]:
    """The alarms of a run with these rows: attack, epsilon, accuracy and, of PGD, steps if they are not 20."""
    attacks: list[dict[str, Any]] = [
        {"attack": attack, "epsilon": epsilon, "accuracy": {"value": accuracy}}
        | ({"steps": (*steps, 20)[0]} if attack == "pgd" else {})
        for attack, epsilon, accuracy, *steps in rows
    ]
    content = {"clean": {"accuracy": {"value": clean}, "n": 570}, "split": "Test", "attacks": attacks}
    document = RunDocument.model_validate(content)
    document.masking = gradient_masking.verdict(document)
    return run_figures.find_alarms(document)


SLOW_RISE = [("pgd", 0.01 * k, 0.4 + 0.015 * k) for k in range(1, 6)]
RISES = [("pgd", 0.05, 0.7), ("pgd", 0.01, 0.5), ("pgd", 0.02, 0.55)]
OVERSTATES = ["epsilon 0.02", "61.0% under FGSM", "0.0% under PGD-20", "570 Test images"]


@pytest.mark.parametrize(
    ("clean", "rows", "raised"),
    [
        (0.9, [("fgsm", 0.01, 0.6), ("fgsm", 0.02, 0.4), ("pgd", 0.01, 0.52), ("pgd", 0.02, 0.31)], []),
        (0.9, [], []),
        (0.9, [("pgd", 0.02, 0.0)], []),
        (0.9, [("fgsm", 0.02, 0.59), ("pgd", 0.02, 0.50)], []),
        (0.9, [("fgsm", 0.02, 0.61), ("pgd", 0.02, 0.50)], ["fgsm_overstates"]),
        (0.9, [("fgsm", 0.01, 0.8), ("pgd", 0.02, 0.1)], []),
        (0.9, [("fgsm", 0.02, 0.3), ("pgd", 0.02, 0.4)], ["weak_attack"]),
        (0.9, [("fgsm", 0.02, 0.3), ("pgd", 0.02, 0.31)], []),
        (0.9, [("pgd", 0.01, 0.5), ("pgd", 0.02, 0.51)], []),
        # One step overshoots on any network: a rise is an alarm under many steps alone.
        (0.9, [("fgsm", 0.05, 0.7), ("fgsm", 0.01, 0.5), ("fgsm", 0.02, 0.55)], []),
        (0.9, SLOW_RISE, ["rising_with_epsilon"]),
    ],
)
def test_what_raises_an_alarm(clean: float, rows: list[tuple[Any, ...]], raised: list[str]) -> None:
    assert [alarm.kind for alarm in alarms(clean, *rows)] == raised


TWO_PGDS = [("fgsm", 0.02, 0.6), ("pgd", 0.02, 0.58, 2), ("pgd", 0.02, 0.2)]


@pytest.mark.parametrize(
    ("kind", "clean", "rows", "parts"),
    [
        ("fgsm_overstates", 0.61, [("fgsm", 0.02, 0.61), ("pgd", 0.02, 0.0)], OVERSTATES),
        ("fgsm_overstates", 0.9, TWO_PGDS, ["under PGD-20"]),
        ("rising_with_epsilon", 0.9, RISES, ["under PGD-20 rises from 50.0% at epsilon 0.01 to 70.0% at epsilon 0.05"]),
        ("rising_with_epsilon", 0.6, [("pgd", 0.02, 0.7)], ["from 60.0% at epsilon 0 to 70.0%"]),
    ],
    ids=["FGSM overstates", "the strongest PGD counts", "rises", "above clean"],
)
def test_an_alarm_says_its_figures(kind: str, clean: float, rows: list[tuple[Any, ...]], parts: list[str]) -> None:
    (alarm,) = alarms(clean, *rows)
    assert alarm.kind == kind
    assert [part for part in parts if part not in alarm.text] == []
    assert "\n" not in alarm.text


def test_balanced_accuracy_near_one_covers_the_truth() -> None:
    covered = []
    labels = np.repeat([0, 1, 2], 20)
    for trial in range(150):
        answers = np.where(np.random.default_rng(trial).random(60) < 0.97, labels, (labels + 1) % 3)
        found = metrics.classification(8.0 * np.eye(3)[answers], labels, np.arange(60), ("a", "b", "c"), resamples=100)
        low, high = found.balanced_accuracy.ci or (1.0, 1.0)
        covered.append(low <= 0.97 <= high)
    assert np.mean(covered) >= 0.93, "by resamples alone it was 0.81"
