"""The figures of an audit: of models whose answer is the highest class, and of those with one sigmoid a finding."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from trustcxr.attacks.adaptive import JUDGED
from trustcxr.attacks.stand_ins import Attackable, look
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError
from trustcxr.evaluation import findings, handed_in, operating_points, subgroups
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.carried_out import CarriedOut
from trustcxr.evaluation.door import LOOKED_AT, Check, Door
from trustcxr.evaluation.given import Examined
from trustcxr.evaluation.operating_points import Threshold
from trustcxr.evaluation.summary import describe
from trustcxr.models.adapters import Given
from trustcxr.results.documents import Division, Finding, HandedIn, OperatingPoint, RunDocument
from trustcxr.results.tables import CLEAN, logits_of
from trustcxr.study.audit_data import scored
from trustcxr.study.audited import Audit


@dataclass(frozen=True)
class Measured:
    """What came of it: the predictions, those on validation images, the figures, and checks that follow from them.

    films: how many have predictions.
    """

    table: pd.DataFrame
    validation: pd.DataFrame | None
    figures: RunDocument
    points: list[OperatingPoint]
    divisions: list[Division]
    findings: list[Finding] = field(default_factory=list)
    checks: Sequence[Check] = ()
    handed: list[HandedIn] = field(default_factory=list)
    films: int = 0


def classes(whole: Audit, door: Door, shown: Tensor, parts: Path) -> Measured:
    """A model whose answer is the highest of its classes."""
    subject, exam = whole.subject, whole.exam
    model: nn.Module = door.judged or nn.Identity()
    checks: list[Check] = []
    examined = Examined(subject.name, model, subject.classes, subject.device)
    if door.model is None:
        assert isinstance(subject, Given)
        table, checks = scored(subject, whole.dataset)
        validation = _scored_too(subject, whole.films.validation)
    else:
        table = _predicted(examined, whole, door, shown, parts)
        held = whole.films.validation
        validation = None if held is None else evaluation.predict(examined, held, views=False, at_once=whole.at_once)
    table, handed = _worse(whole, table, model)
    table = with_columns(table, whole.dataset)
    thresholds = operating_points.choose(validation, subject.classes)
    points = operating_points.of_classes(table, subject.classes, thresholds, resamples=exam.bootstrap)
    divisions = subgroups.describe(table[table["attack"] == CLEAN], subject.classes, resamples=exam.bootstrap)
    figures = describe(examined, table, resamples=exam.bootstrap)
    films = int((table["attack"] == CLEAN).sum())
    return Measured(table, validation, figures, points, divisions, checks=checks, handed=handed, films=films)


def with_columns(table: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """Predictions with the columns of the data that divide the films."""
    columns = subgroups.columns_of(dataset.table).set_index(pd.Index(dataset.sample_ids))
    return table.join(columns, on="film" if "film" in table else "sample_id")


def _scored_too(subject: Given, validation: Dataset | None) -> pd.DataFrame | None:
    """Given scores of validation images; None where the table has none."""
    try:
        return None if validation is None else scored(subject, validation)[0]
    except UserError:
        return None


def _predicted(examined: Examined, whole: Audit, door: Door, films: Tensor, parts: Path) -> pd.DataFrame:
    exam = whole.exam
    assert door.model is not None
    assert door.traits is not None  # of every model that can be asked
    attacks = exam.attacks if door.gradients else exam.without_gradients
    return evaluation.predict(
        examined,
        whole.dataset,
        attacks,
        corruptions=exam.corruptions,
        batch_size=exam.batch_size,
        carry_out=CarriedOut(door.model, door.traits, door.gradients, films).ready(attacks),
        parts=parts,
        at_once=whole.at_once,
    )


def of_findings(whole: Audit, door: Door, shown: Tensor, parts: Path) -> Measured:
    """A model with one sigmoid a finding: each is judged, and attacked, at its own operating point."""
    subject, exam = whole.subject, whole.exam
    assert isinstance(subject, Given)
    names = subject.classes
    answers, validation, checks = _answers(whole, door, parts)
    truth = findings.known(whole.dataset.table, names)
    answered = np.isin(whole.dataset.sample_ids, answers["sample_id"].to_numpy(dtype=str))
    held = None if whole.films.validation is None else findings.known(whole.films.validation.table, names)
    pieces: list[pd.DataFrame] = []
    judged: list[Finding] = []
    handed: list[HandedIn] = []
    points: list[OperatingPoint] = []
    for place, name in enumerate(names):
        threshold = _threshold(subject, place, validation, held)
        labels = truth[:, place]
        found = _about_finding(name, labels[answered], threshold)
        judged.append(found)
        if not found.judged:
            continue
        assert threshold.value is not None
        by_film = dict(zip(whole.dataset.sample_ids, labels, strict=True))
        table = findings.as_decisions(answers, name, place, threshold.value, by_film)
        if door.model is not None:
            decision = findings.Decision(door.model, place, threshold.value)
            random = door.traits is not None and door.traits.random
            judge = Attackable(decision, draws=JUDGED) if random else decision
            attacked = _attacked(whole, door, (decision, judge), labels, shown, parts / f"finding{place}")
            table = pd.concat([table, findings.marked(attacked, name)], ignore_index=True)
            table, judged_too = _worse(whole, table, judge)
            handed += [found.model_copy(update={"by": f"{found.by} ({name})"}) for found in judged_too]
        points += operating_points.of_finding(findings.worst_scores(table), name, threshold, resamples=exam.bootstrap)
        pieces.append(table)
    if not pieces:
        raise UserError(
            f"{whole.dataset.root}: of no finding of {subject.name} are films known that have it and films that have "
            "it not; say with --label which findings the films of a class have"
        )
    if whole.handed is not None and not handed:
        raise UserError(f"{whole.handed.path}: holds no image of a finding that is judged on these films")
    table = with_columns(pd.concat(pieces, ignore_index=True), whole.dataset)
    examined = Examined(subject.name, door.model or nn.Identity(), findings.STATES, subject.device)
    figures = describe(examined, table, resamples=exam.bootstrap)
    figures.classes = list(names)
    divisions = subgroups.describe(table[table["attack"] == CLEAN], findings.STATES, resamples=exam.bootstrap)
    checks = [*checks, *_order(points)]
    return Measured(table, None, figures, points, divisions, judged, checks, handed, int(answered.sum()))


def _worse(whole: Audit, table: pd.DataFrame, model: nn.Module) -> tuple[pd.DataFrame, list[HandedIn]]:
    """The predictions with what was handed in, where that misleads the model and ours does not."""
    if whole.handed is None:
        return table, []
    table, found = handed_in.worse_of_both(table, whole.handed, model, whole.subject.device)
    return table, [] if found is None else [found]


def _answers(
    whole: Audit, door: Door, parts: Path
) -> tuple[pd.DataFrame, tuple[np.ndarray, Dataset] | None, list[Check]]:
    """Logits of all findings, clean and corrupted; those of validation images; what was checked of given scores."""
    subject, exam, held = whole.subject, whole.exam, whole.films.validation
    assert isinstance(subject, Given)
    if door.model is None:
        table, checks = scored(subject, whole.dataset)
        return table, None, checks
    asked = Examined(subject.name, door.judged or door.model, subject.classes, subject.device)
    table = evaluation.predict(
        asked,
        whole.dataset,
        corruptions=exam.corruptions,
        views=False,
        batch_size=exam.batch_size,
        parts=parts / "all",
        at_once=whole.at_once,
    )
    if held is None:
        return table, None, []
    return table, (logits_of(evaluation.predict(asked, held, views=False, at_once=whole.at_once)), held), []


def _threshold(subject: Given, place: int, validation: Any, held: np.ndarray | None) -> Threshold:
    given = subject.output.thresholds
    points = subject.output.operating_points
    assert points is not None  # of kind sigmoid
    known = None
    if validation is not None and held is not None:
        rows = np.isfinite(held[:, place])
        known = (validation[0][rows, place], held[rows, place])
    return findings.threshold_of(subject.classes[place], points[place] if given else None, known, points[place])


def _about_finding(name: str, labels: np.ndarray, threshold: Threshold) -> Finding:
    known = np.isfinite(labels)
    positives, why = int((labels == 1).sum()), ""
    if not known.any():
        why = "of no film it is known whether it has it"
    elif not 0 < positives < known.sum():
        why = f"all films of which it is known have it{'' if positives else ' not'}"
    return Finding(
        name=name,
        judged=not why,
        why=why,
        threshold=threshold.value,
        origin=threshold.origin,
        n=int(known.sum()),
        positives=positives,
        unknown=int((~known).sum()),
    )


def _attacked(
    whole: Audit,
    door: Door,
    seen: tuple[nn.Module, nn.Module],
    labels: np.ndarray,
    shown: Tensor,
    parts: Path,
) -> pd.DataFrame:
    """Predictions of one finding's decision under every attack; climbs go on where the decision has turned.

    `seen`: the decision as attacks see it, and as what they find is judged on it.
    """
    decision, judge = seen
    exam, rows = whole.exam, np.flatnonzero(np.isfinite(labels))
    traits = look(decision, shown[:LOOKED_AT])
    attacks = exam.attacks if door.gradients else exam.without_gradients
    table = evaluation.predict(
        Examined(whole.subject.name, judge, findings.STATES, whole.subject.device),
        findings.OneFinding(whole.dataset, rows, labels[rows]),  # type: ignore[arg-type]
        attacks,
        views=False,
        batch_size=exam.batch_size,
        carry_out=CarriedOut(decision, traits, door.gradients, shown, whole_climb=True).ready(attacks),
        parts=parts,
        at_once=whole.at_once,
    )
    return table[table["attack"] != CLEAN]


def _order(points: Sequence[OperatingPoint]) -> list[Check]:
    """Whether findings are answered the wrong way round, or have each other's names."""
    clean = [point for point in points if point.attack == CLEAN]
    turned = [point.finding for point in clean if point.auroc.interval and point.auroc.interval[1] < 0.5]
    if not turned:
        return [Check("declaration", True, f"of {len(clean)} findings none is ranked worse than by chance")]
    text = f"{', '.join(turned)} {'is' if len(turned) == 1 else 'are'} ranked worse than by chance: see output.classes"
    return [Check("declaration", False, f"{text}, input.range, and what the labels mean")]
