"""Collect the facts of an audit that a committee asks for: date, machine, images left out, Table 1, failures."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from trustcxr.attacks.worst_case import nearest
from trustcxr.audit import multilabel, subgroups
from trustcxr.audit.audit_data import Audit, AuditImages, balanced_rows, load_pixels
from trustcxr.audit.entry_checks import EntryReport
from trustcxr.audit.subject import is_multilabel
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError
from trustcxr.evaluation.operating_points import cut
from trustcxr.models.preserve_state import preserve_state
from trustcxr.statistics import softmax
from trustcxr.storage import layout, schemas
from trustcxr.storage.atomic import write_arrays
from trustcxr.storage.prediction_table import CLEAN, logits_of, right
from trustcxr.training.environment import hardware

FAILURES = 12  # wrong answers that are listed and shown
_TABLE_1 = {"age", "sex", "gender", "view", "source", "hospital", "site", "country", "race", "ethnicity"}
_TABLE_1 |= {"manufacturer", "scanner", "device"}
SMALLEST_CHANGES = 6  # images whose smallest change is shown, the classes in turn
HIGHEST = 0.1  # largest epsilon that is tried for it: 25 of 255 grey levels, which everybody sees
_TOLERANCE, _STEPS = 2e-4, 20  # of that search: a twentieth of a grey level; steps of PGD
_MOST_VALUES = 12  # of a column in Table 1; rarer ones are counted together


def describe_facts(images: AuditImages, answered: int, findings: tuple[str, ...] = ()) -> schemas.AuditFacts:
    """Return the facts of an audit now, on this machine. `answered`: images with predictions."""
    table = images.examined.table
    patients = table["patient"].dropna().astype(str)
    counts = {name: int((table["class"] == name).sum()) for name in images.examined.classes}
    facts = schemas.AuditFacts(
        date=datetime.now(UTC).date().isoformat(),
        versions=layout.versions(),
        hardware=hardware(),
        patients=patients.nunique() if len(patients) else None,
        without_patient=len(table) - len(patients),
        classes=counts,
        flow=_describe_flow(images, answered),
        characteristics=_describe_characteristics(images.examined, by_class=not findings),
    )
    if findings:
        truth = multilabel.labelled_findings(table, findings)
        facts.classes = {name: int((truth[:, k] == 1).sum()) for k, name in enumerate(findings)}
        facts.labelled = {name: int(np.isfinite(truth[:, k]).sum()) for k, name in enumerate(findings)}
    return facts


def _describe_flow(images: AuditImages, answered: int) -> list[schemas.FlowStep]:
    """Return how many images each step of choosing them left."""
    examined, steps = images.examined, [schemas.FlowStep(step="listed in the data", n=images.listed)]

    def leave_out(step: str, n: int, why: str) -> None:
        steps.append(schemas.FlowStep(step=step, n=n, left_out=int(steps[-1].n or 0) - n, why=why))

    if examined.split is not None and images.in_split is not None:
        leave_out(f"in the split {examined.split}", images.in_split, "in another split")
    leave_out("with a label of the model", len(examined) + len(examined.skipped), "label left out, or unlike any class")
    reasons = sorted(set(map(str, examined.skipped["reason"])))
    leave_out("readable", len(examined), "; ".join(reasons[:3]) or "file not readable")
    leave_out("with an answer of the model", answered, "no score in the table")
    return steps


def _describe_characteristics(dataset: Dataset, *, by_class: bool) -> list[schemas.Characteristic]:
    """Return Table 1: age, sex, view, source and the like, by class."""
    table, rows = dataset.table, list[schemas.Characteristic]()
    classes = dict.fromkeys(dataset.classes) if by_class else {}
    for name, values in subgroups.dividing_columns(table, (), single=True).items():
        if not _TABLE_1 & subgroups.words_of(name):
            continue
        if "age" in subgroups.words_of(name) and (years := subgroups.as_numbers(table[name])).notna().any():
            parts = {"all": years} | {key: years[table["class"] == key] for key in classes}
            ends = {key: tuple(part.quantile([0.25, 0.5, 0.75])) for key, part in parts.items() if part.notna().any()}
            count = int(years.notna().sum())
            rows.append(schemas.Characteristic(column=name, value="median", n=count, quartiles=ends))
        counts = values.value_counts()
        shown = values.where(values.isin(counts.index[:_MOST_VALUES]), subgroups.OTHERS)
        for value in sorted(set(shown), key=lambda v: (v in (subgroups.OTHERS, subgroups.UNKNOWN), v)):
            inside = shown == value
            by = {k: int((inside & (table["class"] == k)).sum()) for k in classes}
            rows.append(schemas.Characteristic(column=name, value=str(value), n=int(inside.sum()), by_class=by))
    return rows


def find_failures(table: pd.DataFrame, classes: tuple[str, ...]) -> list[schemas.Failure]:
    """Return the most confident wrong answers on unperturbed images, the most confident first."""
    clean = table[(table["attack"] == CLEAN).to_numpy()]
    probabilities, labels = softmax(logits_of(clean)), clean["label"].to_numpy(int)
    answers, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong, names = np.flatnonzero(answers != labels), clean["sample_id"].to_numpy(dtype=str)
    first = wrong[np.lexsort((names[wrong], -confidence[wrong]))][:FAILURES]
    images = (clean["image"] if "image" in clean else clean["sample_id"]).to_numpy(dtype=str)
    finding = clean["finding"].to_numpy(dtype=str) if "finding" in clean else np.full(len(clean), "")
    if "finding" in clean:  # the model's own probability, whatever the threshold
        margins = np.diff(logits_of(clean), axis=1)[:, 0] + clean["threshold"].map(cut).to_numpy()
        confidence = softmax(np.stack([-margins, margins], 1) / 2)[np.arange(len(clean)), answers]
    columns = (part[first] for part in (images, finding, labels, answers, confidence))
    return [
        schemas.Failure(sample_id=image, finding=name, label=classes[k], answer=classes[answer], probability=float(p))
        for image, name, k, answer, p in zip(*columns, strict=True)
    ]


def write_pictures(document: schemas.AuditDocument, dataset: Dataset, out: Path, *, pictures: bool) -> None:
    """Write the images of the failures into `out`; without `pictures` remove every image of a patient there."""
    path = out / layout.FAILURES_FILE
    if not pictures:
        (out / layout.SMALLEST_CHANGES_FILE).unlink(missing_ok=True)
    if not pictures or not document.failures:
        path.unlink(missing_ok=True)
        return
    names = np.array(list(dict.fromkeys(failure.sample_id for failure in document.failures)))
    rows = pd.Index(dataset.sample_ids).get_indexer(names)
    if (missing := names[rows < 0]).size:
        raise UserError(f"{out}: has a failure on {missing[0]}, which is not among these images; choose another --out")
    write_arrays(path, {"sample_id": names, "image": dataset.batch(rows)[:, 0]})


def predictive_values(
    points: list[schemas.OperatingPoint], prevalence: Mapping[str, float]
) -> list[schemas.PredictiveValue]:
    """Return PPV and NPV of each operating point whose class has a prevalence, clean and under each attack.

    By Bayes: the odds before the test times a likelihood ratio. The ends of an interval are those of the ratio's.
    """
    rows, about = [], {"finding", "attack", "epsilon", "steps", "queries", "aimed_at", "n"}
    for point in points:
        sensitivity, specificity = point.sensitivity.value, point.specificity.value
        before = prevalence.get(point.finding)
        if before is None or sensitivity is None or specificity is None:
            continue
        odds = before / (1 - before)
        hits, false = odds * sensitivity, 1 - specificity
        cleared, missed = specificity, odds * (1 - sensitivity)
        ppv = [_chance(end, odds) for end in _ratio_ends(point.likelihood_positive)] or None
        npv = [1 - _chance(end, odds) for end in reversed(_ratio_ends(point.likelihood_negative))] or None
        rows.append(
            schemas.PredictiveValue(
                **point.model_dump(include=about),
                prevalence=before,
                ppv=schemas.Share(value=hits / (hits + false) if hits + false else None, ci=ppv),
                npv=schemas.Share(value=cleared / (cleared + missed) if cleared + missed else None, ci=npv),
            )
        )
    return rows


def _ratio_ends(ratio: schemas.Share) -> list[float]:
    """Return both ends of a likelihood ratio's interval; a missing upper end is infinite."""
    low, high = ratio.ci or (None, None)
    return [] if low is None else [low, math.inf if high is None else high]


def _chance(ratio: float, odds: float) -> float:
    return 1.0 if ratio == math.inf else odds * ratio / (1 + odds * ratio)


def find_smallest_changes(
    audit: Audit, report: EntryReport, table: pd.DataFrame, out: Path
) -> list[schemas.SmallestChange]:
    """Find the smallest change that flips each of a few right answers, and write the images into `out`.

    PGD searches it, so a smaller one may exist. `epsilon` is None if nothing up to HIGHEST flips the answer.
    """
    path = out / layout.SMALLEST_CHANGES_FILE
    path.unlink(missing_ok=True)
    if report.model is None or report.traits is None or not report.gradients or is_multilabel(audit.subject):
        return []
    clean, dataset = table[(table["attack"] == CLEAN).to_numpy()], audit.dataset
    rows = pd.Index(dataset.sample_ids).get_indexer(clean["sample_id"][right(clean)])
    if not len(rows):
        return []
    rows = rows[balanced_rows(dataset.labels[rows], SMALLEST_CHANGES)]
    images = load_pixels(dataset, rows, audit.subject.device)
    labels = images.new_tensor(dataset.labels[rows]).long()
    view, precision = report.traits.variants(report.model)[-1], "bf16" if report.traits.bfloat16 else None
    sizes, changed = nearest(
        view, images, labels, highest=HIGHEST, tolerance=_TOLERANCE, steps=_STEPS, precision=precision
    )
    with preserve_state(view), torch.no_grad():
        answers = view(changed).argmax(1)
    names, classes = dataset.sample_ids[rows].tolist(), audit.subject.classes
    before, after = (part[:, 0].cpu().numpy() for part in (images, changed))
    write_arrays(path, {"sample_id": np.array(names), "image": before, "changed": after})
    return [
        schemas.SmallestChange(sample_id=name, label=classes[label], answer=classes[answer], epsilon=float(size))
        for name, label, answer, size in zip(names, labels.tolist(), answers.tolist(), sizes, strict=True)
    ]
