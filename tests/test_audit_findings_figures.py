"""Audits of models with one sigmoid a finding: every figure is of each finding, held against scikit-learn's of each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import special
from sklearn import metrics as sk
from torch import Tensor, nn

from small_networks import write_onnx
from test_audit_command import _short, few_steps  # noqa: F401
from test_audit_tables import table
from trustcxr import statistics
from trustcxr.audit import audit_data, compare, multilabel
from trustcxr.audit import run_audit as audits
from trustcxr.data import load_dataset
from trustcxr.data.lung_masks import soften
from trustcxr.data.phantom import write_files
from trustcxr.evaluation import metrics, run_figures
from trustcxr.evaluation.predictions import generate_views
from trustcxr.registry import VIEWS
from trustcxr.report import audit_html, leaderboard
from trustcxr.report.terminal import describe_audit, format_percent
from trustcxr.storage import atomic
from trustcxr.storage.schemas import AuditDocument

NAMES = ("Common", "Even", "Rare")
THRESHOLDS = (0.7, 0.5, 0.2)
PATIENTS = 90
Audited = tuple[AuditDocument, Path]
Masked = tuple[AuditDocument, Path, Path]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """A list of images, two of each patient, that says of three unlike findings what is known, and each one's score."""
    root, random = tmp_path_factory.mktemp("known"), np.random.default_rng(0)
    count = 2 * PATIENTS
    rows = pd.DataFrame({"path": [f"f{n}.png" for n in range(count)], "label": "image"})
    rows["patient"] = [f"p{n // 2}" for n in range(count)]
    rows["sex"] = np.where(np.arange(count) // 2 % 3 == 0, "F", "M")
    for name, share, strength in zip(NAMES, (0.85, 0.5, 0.12), (0.4, 1.0, 2.0), strict=True):
        there = np.repeat(random.random(PATIENTS) < share, 2)
        logits = strength * (2 * there - 1) + random.standard_normal(count) + 3 * (share - 0.5)
        rows[f"{name} score"] = 1 / (1 + np.exp(-logits))
        rows[name] = np.where(random.random(count) < 0.15, "", there.astype(int).astype(str))
    for path in rows["path"]:
        Image.fromarray(random.integers(0, 255, (16, 16), dtype=np.uint8)).save(root / path)
    kept = [name for name in rows if not str(name).endswith("score")]
    rows[kept].to_csv(root / "list.csv", index=False)
    rows.attrs["list"] = str(root / "list.csv")
    return rows


def audited(known: pd.DataFrame, out: Path, change: Callable[[Any], Any] = np.asarray) -> AuditDocument:
    """The audit of the scores, after a change to each image's three."""
    scores = known[[f"{name} score" for name in NAMES]].to_numpy()
    said = {path: change(row) for path, row in zip(known["path"], scores, strict=True)}
    model = table(out / "model", said, kind="sigmoid", classes=list(NAMES), thresholds=list(THRESHOLDS))
    return audits.audit(model, Path(known.attrs["list"]), out / "audit")


@pytest.fixture(scope="module")
def whole(known: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Audited:
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch)
        return audited(known, out), out


def by_finding(rows: pd.DataFrame) -> list[tuple[Any, Any, Any]]:
    """Of each finding what is true of the images of which it is known, the scores, and what these say of it."""
    parts = [(rows[rows[name] != ""], name) for name in NAMES]
    pairs = [(part[name].astype(int).to_numpy(), part[f"{name} score"].to_numpy()) for part, name in parts]
    return [(truth, scores, scores >= at) for (truth, scores), at in zip(pairs, THRESHOLDS, strict=True)]


def constant(rows: pd.DataFrame) -> float:
    counts = [np.bincount(truth) for truth, _, _ in by_finding(rows)]
    return float(sum(c.max() for c in counts) / sum(c.sum() for c in counts))


def test_every_figure_is_the_mean_of_those_of_the_findings(known: pd.DataFrame, whole: Audited) -> None:
    clean, parts = whole[0].clean, by_finding(known)
    areas = [sk.roc_auc_score(truth, scores) for truth, scores, _ in parts]
    assert clean.auroc_macro.value == pytest.approx(np.mean(areas))
    points = [point.auroc.value for point in whole[0].operating_points]
    assert points == pytest.approx(areas), "as they stand at the operating point"
    above = [special.logit(scores) - special.logit(t) for (_, scores, _), t in zip(parts, THRESHOLDS, strict=True)]
    pooled = sk.roc_auc_score(np.concatenate([truth for truth, _, _ in parts]), np.concatenate(above))
    assert abs(pooled - np.mean(areas)) > 0.02, "another figure"
    for found, measure in (
        (clean.balanced_accuracy, sk.balanced_accuracy_score),
        (clean.recall_macro, sk.balanced_accuracy_score),
        (clean.f1_macro, lambda truth, said: sk.f1_score(truth, said, average="macro")),
        (clean.precision_macro, lambda truth, said: sk.precision_score(truth, said, average="macro")),
        (clean.per_class["present"].recall, sk.recall_score),
        (clean.per_class["present"].precision, sk.precision_score),
        (clean.per_class["present"].f1, sk.f1_score),
        (clean.per_class["absent"].recall, lambda truth, said: sk.recall_score(truth, said, pos_label=0)),
    ):
        assert found.value == pytest.approx(np.mean([measure(truth, said) for truth, _, said in parts]))
        assert found.interval[0] < found.value < found.interval[1]
    assert clean.per_class["present"].auroc == clean.per_class["absent"].auroc == clean.auroc_macro
    assert (clean.findings, clean.n) == (3, sum(len(truth) for truth, _, _ in parts))
    right = sum(int((truth == said).sum()) for truth, _, said in parts)
    assert clean.accuracy.value == pytest.approx(right / (clean.n or 0)), "a share of all decisions"
    assert np.sum(clean.confusion) == clean.n
    errors = []
    for truth, scores, _ in parts:
        sure, hits = np.maximum(scores, 1 - scores), (scores >= 0.5) == truth
        bins = np.clip(np.ceil(15 * sure), 1, 15)
        errors.append(sum(abs((sure - hits)[bins == k].sum()) for k in np.unique(bins)) / len(truth))
    assert clean.ece_plug_in == pytest.approx(np.mean(errors)), "of the probability as it is stated"
    assert (clean.ece.value or 0) < np.mean(errors), "without what chance alone makes of it"


@pytest.mark.slow
def test_the_interval_of_the_mean_is_over_patients(known: pd.DataFrame, whole: Audited) -> None:
    random, found = np.random.default_rng(1), []
    images = [rows for _, rows in known.groupby("patient")]
    for _ in range(300):
        drawn = pd.concat([images[k] for k in random.integers(PATIENTS, size=PATIENTS)])
        found.append(np.mean([sk.roc_auc_score(truth, scores) for truth, scores, _ in by_finding(drawn)]))
    assert whole[0].clean.groups == PATIENTS
    assert whole[0].clean.auroc_macro.interval == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=0.02)


def test_the_constant_answer_is_the_best_one_to_each_finding(known: pd.DataFrame, whole: Audited) -> None:
    document, out = whole
    expected = constant(known)
    assert document.clean.constant_answer == pytest.approx(expected)
    assert expected > 0.7
    page = " ".join(audit_html.render(document).split())
    said = f"always giving the commoner answer to each finding would score {format_percent(expected)}"
    for text in ("\n".join(describe_audit(document)), page):
        assert said in text
    assert "Every other figure is the mean over 3 findings" in page
    entry = leaderboard.to_json(leaderboard.gather_audits(out))["rows"][0]  # type: ignore[index]
    assert entry["AUROC"] == document.clean.auroc_macro.value


def test_who_does_no_better_than_that_is_told_so(known: pd.DataFrame, tmp_path: Path) -> None:
    document, bound = audited(known, tmp_path, lambda row: row[[0, 1, 1]]), constant(known)
    low, high = document.clean.accuracy.interval or (0, 0)
    assert 0.5 < low < bound, "more than the commoner state of all decisions, less than one answer to each"
    assert high > low
    (alarm,) = [alarm for alarm in document.alarms if alarm.kind == run_figures.CONSTANT]
    assert f"the commoner answer to each finding has {bound:.1%}" in alarm.text
    reasons = "; ".join(document.verdict.reasons)
    assert not [word for word in ("constant", "chance") if word in reasons], "it ranks images of the findings"


def test_groups_of_images_have_the_mean_within_the_group(known: pd.DataFrame, whole: Audited) -> None:
    (division,) = [division for division in whole[0].subgroups if division.column == "sex"]
    assert {group.name for group in division.groups} == {"F", "M"}
    for group in division.groups:
        parts = by_finding(known[known["sex"] == group.name])
        areas = [sk.roc_auc_score(truth, scores) for truth, scores, _ in parts]
        assert group.auroc_macro.value == pytest.approx(np.mean(areas))
        assert group.auroc_macro.interval is not None
        balanced = [sk.balanced_accuracy_score(truth, said) for truth, _, said in parts]
        assert group.balanced_accuracy.value == pytest.approx(np.mean(balanced))
        assert group.constant_answer == pytest.approx(constant(known[known["sex"] == group.name]))
        assert group.findings == 3
    assert "AUROC of 3 findings" in audit_html.render(whole[0])


def decisions(parts: dict[str, tuple[list[float], list[int]]]) -> pd.DataFrame:
    """Clean decisions on findings: their margins and what is true, an image and patient each."""
    rows = [
        (name, f"{n}#{name}", str(n), label, np.array([0.0, margin]))
        for name, (margins, labels) in parts.items()
        for n, (margin, label) in enumerate(zip(margins, labels, strict=True))
    ]
    columns = ["finding", "sample_id", "group", "label", "logits"]
    return pd.DataFrame(rows, columns=columns).assign(attack="clean", threshold=0.5)


def test_a_finding_that_all_images_of_a_group_or_resample_have_or_none_is_left_out_of_its_means() -> None:
    def areas(rows: pd.DataFrame) -> np.ndarray:
        return metrics.macro_auroc(rows, statistics.Bootstrap.over(rows["group"], resamples=300), 2)

    rows = decisions({"a": ([1, 2, 3, 0], [0, 0, 1, 1]), "b": ([-1, -1, -1, -1], [0, 0, 0, 0])})
    assert areas(rows)[0] == sk.roc_auc_score([0, 0, 1, 1], [1, 2, 3, 0])
    assert len(metrics.has_both_labels(rows)) == 1
    assert metrics.constant_answer(rows) == 6 / 8
    assert np.isnan(areas(rows[rows["finding"] == "b"])).all()
    rare = {f"f{n}": ([float(k == n) for k in range(40)], [int(k == n) for k in range(40)]) for n in range(12)}
    found = areas(decisions(rare))
    assert np.isfinite(found).all(), "of twelve findings of one image each hardly any resample has them all"
    assert found[0] == 1


class TwoMeans(nn.Module):
    """Two findings: that an image is bright, and that it is dark in its middle, from (B, 1, H, W), as probabilities."""

    def forward(self, images: Tensor) -> Tensor:
        middle = images[:, :, 8:24, 8:24].mean((1, 2, 3))
        return torch.sigmoid(torch.stack([40 * (images.mean((1, 2, 3)) - 0.35), 40 * (0.35 - middle)], dim=1))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Masked:
    """The audit of a network of two findings on images with lung masks, its folder, and the images."""
    root = tmp_path_factory.mktemp("masked")
    radiographs = write_files.write(root / "phantom", {"Train": 1, "Val": 1, "Test": 8}, size=32)
    write_onnx(TwoMeans(), root / "net.onnx", 32)
    output = "{kind: sigmoid, classes: [Ill, Severe], thresholds: [0.6, 0.4]}"
    (root / "model.yaml").write_text(f"source: net.onnx\ninput: {{size: 32}}\noutput: {output}\n")
    labels = {"COVID-19": "Ill|Severe", "Non-COVID": "Ill", "Normal": "Normal"}
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch)
        document = audits.audit(root / "model.yaml", radiographs, root / "audit", labels=labels)
    return document, root / "audit", radiographs


def test_findings_are_asked_of_images_without_their_lungs(masked: Masked) -> None:
    document, _, images = masked
    data = load_dataset(images, "Test", 32)
    assert set(document.shortcuts) == set(VIEWS)
    black = np.where(np.array(data.masks("lung"))[:, None] > 0, 0, np.array(data.images) / 255)
    with torch.no_grad():
        said = TwoMeans()(torch.from_numpy(black).float()).numpy()
    classes = data.table["class"].to_numpy()
    right = (said >= np.array([0.6, 0.4])) == np.stack([classes != "Normal", classes == "COVID-19"], axis=1)
    found = document.shortcuts["lungs_blacked_out"]
    assert (found.n, found.accuracy.value) == (2 * len(data), pytest.approx(right.mean()))
    assert found.constant_answer == pytest.approx(2 / 3), "ill: two of three images; severe: one of three"
    assert document.without_lungs is not None
    assert '<th scope="col">Image' in audit_html.render(document)


def test_the_image_behind_has_the_finding_where_the_lungs_have_it_not(masked: Masked) -> None:
    """Beside the lungs it shows an image with the other answer, not just one of another class of the data."""
    document, out, radiographs = masked
    data, table = load_dataset(radiographs, "Test", 32), atomic.read_table(out / "predictions.parquet")
    images, order = np.array(data.images)[:, 0] / 255, np.arange(len(data))
    outside = soften(torch.tensor(np.array(data.masks("lung"))).float()[:, None])[:, 0].numpy() == 0
    for name, has in (("Ill", ("COVID-19", "Non-COVID")), ("Severe", ("COVID-19",))):
        truth = data.table["class"].isin(has).to_numpy()
        one = audit_data.OneFinding(data, order, truth.astype(float))
        views = {key: view for (key, *_), _, view in generate_views(one, order, torch.tensor(images[:, None]))}
        for place, view in enumerate(views["lungs_on_another_image"][:, 0].numpy()):
            away = [np.abs(view - other)[outside[place]].sum() for other in images]
            assert truth[int(np.argmin(away))] != truth[place], name
        rows = table[(table["attack"] == "lungs_on_another_image") & (table["finding"] == name)]
        labels = dict(zip(rows["image"], rows["label"] == 1, strict=True))
        assert labels == dict(zip(data.sample_ids, truth, strict=True))
    assert document.shortcuts["lungs_on_another_image"].n == 2 * len(data)


def test_the_worst_case_counts_no_view_as_an_attack(masked: Masked) -> None:
    rows = atomic.read_table(masked[1] / "predictions.parquet")
    for name in ("Ill", "Severe"):
        own = rows[rows["finding"] == name]
        scores = [multilabel.worst_scores(part) for part in (own, own[~own["attack"].isin(VIEWS)])]
        one, other = (np.stack(part["logits"][part["attack"] == "worst-case"]) for part in scores)
        assert len(one)
        assert np.array_equal(one, other)


def test_two_models_compare_finding_by_finding(known: pd.DataFrame, whole: Audited, tmp_path: Path) -> None:
    audited(known, tmp_path, lambda row: np.array([row[0], 1 - row[1], row[2]]))
    pair = compare.compare(whole[1] / "audit", tmp_path / "audit", resamples=200)
    rows = {row.measure: row for row in pair.rows}
    assert list(rows) == ["clean accuracy", *(f"clean accuracy, {name}" for name in NAMES)]
    for (truth, _, said), name in zip(by_finding(known), NAMES, strict=True):
        row = rows[f"clean accuracy, {name}"]
        assert (row.first, row.n) == (pytest.approx((said == truth).mean()), len(truth))
        assert row.settled == (name == "Even")
        assert (row.difference.value == 0) == (name != "Even")
    values = [row.p_value for row in pair.rows]
    assert [row.p_corrected for row in pair.rows] == pytest.approx(statistics.holm(values))


def test_the_worst_case_compares_finding_by_finding_too(masked: Masked) -> None:
    document, out, _ = masked
    rows = {row.measure: row for row in compare.compare(out, out, resamples=50).rows}
    at = atomic.read_table(out / "predictions.parquet").query("attack == 'worst-case' and epsilon == 0.02")
    effort = next(row.effort for row in document.attacks if row.attack == "worst-case")
    worst = f"worst-case-{effort.steps}/{effort.queries} accuracy @0.02"
    for name in ("Ill", "Severe"):
        own = at[at["finding"] == name]
        left = (np.stack(own["logits"]).argmax(1) == own["label"]).mean()
        assert rows[f"{worst}, {name}"].second == pytest.approx(left)
        assert (rows[f"{worst}, {name}"].n, rows[worst].n) == (24, 48)
    assert not any(name.startswith(("fgsm", "pgd", "lungs")) and "," in name for name in rows)
    assert document.protocol == "exam-1"
