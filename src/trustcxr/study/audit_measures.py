"""The figures of an audit: of models whose answer is the highest class, and of those with one sigmoid a finding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor, nn

from trustcxr.attacks.stand_ins import look
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError
from trustcxr.evaluation import class_decisions, declared_findings, findings, handed_in, operating_points, subgroups
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.carried_out import CarriedOut
from trustcxr.evaluation.declared import ENOUGH, check_order
from trustcxr.evaluation.door import LOOKED_AT, Check, Door, declaration_check
from trustcxr.evaluation.draws import OverDraws
from trustcxr.evaluation.given import Examined, Subject
from trustcxr.evaluation.operating_points import Threshold
from trustcxr.evaluation.summary import describe
from trustcxr.models.adapters import Given
from trustcxr.models.untouched import undisturbed
from trustcxr.results.documents import Division, Finding, HandedIn, OperatingPoint, RunDocument
from trustcxr.results.tables import CLEAN, RIGHT_SHARE, logits_of
from trustcxr.study import audit_stages
from trustcxr.study.audit_data import Films, pixels_of, scored
from trustcxr.study.audited import Audit


@dataclass(frozen=True)
class Measured:
    """What came of it: the predictions, those on validation images, the figures, and checks that follow from them.

    aimed: predictions under attacks that were made against the threshold of one class each.
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
    aimed: pd.DataFrame | None = None
    films: int = 0


def classes(whole: Audit, door: Door, shown: Tensor, parts: Path) -> Measured:
    """A model whose answer is the highest of its classes."""
    subject, exam = whole.subject, whole.exam
    model: nn.Module = door.judged or nn.Identity()
    checks: list[Check] = []
    examined = Examined(subject.name, model, subject.classes, subject.device)
    if door.model is None:
        assert isinstance(subject, Given)
        table, checks = scored(subject, whole.dataset, whole.films.shared)
        checks = [*checks, _declared_classes(subject, table)]
        validation = _scored_too(subject, whole.films)
    else:
        whole.stages.begin(audit_stages.CONDITIONS)
        table = _predicted(examined, whole, door, shown, parts)
        checks = [check for check in [_declared_classes(subject, table)] if check.remedied]
        held = whole.films.validation
        whole.stages.begin(audit_stages.VALIDATION)
        validation = None if held is None else evaluation.predict(examined, held, views=False, at_once=whole.at_once)
    table, handed = _worse(whole, table, model)
    table = with_columns(table, whole.dataset)
    given = subject.output.thresholds if isinstance(subject, Given) else None
    thresholds = operating_points.choose(validation, subject.classes, given)
    aimed = _aimed(examined, whole, door, thresholds, shown, parts)
    whole.stages.begin(audit_stages.FIGURES)
    points = operating_points.of_classes(table, subject.classes, thresholds, aimed=aimed, resamples=exam.bootstrap)
    divisions = _divisions(whole, table, subject.classes)
    figures = describe(examined, table, resamples=exam.bootstrap)
    films = int((table["attack"] == CLEAN).sum())
    return Measured(
        table, validation, figures, points, divisions, checks=checks, handed=handed, aimed=aimed, films=films
    )


def _declared_classes(subject: Subject, table: pd.DataFrame) -> Check:
    """Whether the classes have their right names: on all films, for few do not tell it of a model that is often wrong.

    The door has asked a model about some; of a table of scores this is all that can be asked.
    """
    clean = table[(table["attack"] == CLEAN).to_numpy()]
    if len(clean) < ENOUGH:
        return Check("declaration", None, f"{len(clean)} films are too few to tell a wrong order of the classes")
    answers, labels = logits_of(clean).argmax(1), clean["label"].to_numpy()
    file = _file_of(subject) if isinstance(subject, Given) and subject.model is None else None
    return declaration_check(check_order(subject.classes, answers, labels, table=file), len(clean))


def _file_of(subject: Given) -> str:
    return Path(subject.origin.path or subject.name).name


def with_columns(table: pd.DataFrame, dataset: Dataset, answers: Sequence[str] = ()) -> pd.DataFrame:
    """Predictions with the columns of the data that divide the films; of a model of findings not those of `answers`."""
    columns = subgroups.columns_of(dataset.table, answers).set_index(pd.Index(dataset.sample_ids))
    return table.join(columns, on="film" if "film" in table else "sample_id")


def _divisions(
    whole: Audit, table: pd.DataFrame, classes: tuple[str, ...], answers: Sequence[str] = ()
) -> list[Division]:
    """For whom it is bad, from predictions `with_columns`, with the columns that are left out, and why."""
    without = subgroups.left_out(whole.dataset.table, answers)
    clean = table[table["attack"] == CLEAN]
    return subgroups.describe(clean, classes, without=without, resamples=whole.exam.bootstrap)


def _scored_too(subject: Given, films: Films) -> pd.DataFrame | None:
    """Given scores of validation images; None where the table has none."""
    try:
        return None if films.validation is None else scored(subject, films.validation, films.shared)[0]
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
        carry_out=CarriedOut(door.model, door.traits, door.gradients, films, taught=whole.taught).ready(attacks),
        parts=parts,
        at_once=whole.at_once,
    )


def _aimed(
    examined: Examined,
    whole: Audit,
    door: Door,
    thresholds: Mapping[str, Threshold],
    films: Tensor,
    parts: Path,
) -> pd.DataFrame | None:
    """Predictions under attacks on each class at its threshold; None where worst-case is not asked for."""
    exam, pieces = whole.exam, []
    asked = exam.attacks if door.gradients else exam.without_gradients
    attacks = class_decisions.attacks(asked, gradients=door.gradients)
    if door.model is None or not attacks:
        return None
    for place in class_decisions.places(len(examined.classes)):
        name, kept = examined.classes[place], parts / f"class{place}"
        whole.stages.begin(audit_stages.at_threshold(name), timed=not kept.exists())
        decision = class_decisions.decision(door.model, place, thresholds[name])
        traits = look(decision, films[:LOOKED_AT], random=door.random)
        carried = CarriedOut(decision, traits, door.gradients, films, whole_climb=True, taught=whole.taught)
        table = evaluation.predict(
            examined,
            whole.dataset,
            attacks,
            views=False,
            clean=False,
            batch_size=exam.batch_size,
            carry_out=class_decisions.against(carried.ready(attacks), place),
            parts=kept,
            at_once=whole.at_once,
        )
        pieces.append(table.assign(aimed_at=name))
    return pd.concat(pieces, ignore_index=True)


def of_findings(whole: Audit, door: Door, shown: Tensor, parts: Path) -> Measured:
    """A model with one sigmoid a finding: each is judged, and attacked, at its own operating point."""
    subject, exam = whole.subject, whole.exam
    assert isinstance(subject, Given)
    names = subject.classes
    answers, validation, checks = _answers(whole, door, parts)
    truth = findings.known(whole.dataset.table, names)
    held = answers_known(whole.films.validation, validation, names)
    answered = np.isin(whole.dataset.sample_ids, answers["sample_id"].to_numpy(dtype=str))
    pieces: list[pd.DataFrame] = []
    judged: list[Finding] = []
    handed: list[HandedIn] = []
    points: list[OperatingPoint] = []
    for place, name in enumerate(names):
        threshold = threshold_of(subject, place, held, whole.films.unchosen)
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
            judge = OverDraws(decision) if door.random else decision
            kept = parts / f"finding{place}"
            whole.stages.begin(audit_stages.at_threshold(name), timed=not kept.exists())
            attacked = _attacked(whole, door, (decision, judge), labels, shown, kept)
            table = pd.concat([table, findings.marked(attacked, name, threshold.value)], ignore_index=True)
            table, judged_too = _worse(whole, table, judge)
            handed += [found.model_copy(update={"by": f"{found.by} ({name})"}) for found in judged_too]
        points += operating_points.of_finding(findings.worst_scores(table), name, threshold, resamples=exam.bootstrap)
        pieces.append(table)
    if not pieces:
        raise UserError(
            f"{whole.dataset.where}: of no finding of {subject.name} are films known that have it and films that have "
            "it not; say with --label which findings the films of a class have"
        )
    if whole.handed is not None and not handed:
        raise UserError(f"{whole.handed.path}: holds no image of a finding that is judged on these films")
    whole.stages.begin(audit_stages.FIGURES)
    table = with_columns(pd.concat(pieces, ignore_index=True), whole.dataset, names)
    examined = Examined(subject.name, door.model or nn.Identity(), findings.STATES, subject.device)
    figures = describe(examined, table, resamples=exam.bootstrap)
    figures.classes = list(names)
    divisions = _divisions(whole, table, findings.STATES, names)
    declared = _declared(whole, door, answers, truth, judged)
    checks = [*checks, _declaration(points, declared, door), _above_constant(points)]
    count = int(answered.sum())
    return Measured(table, None, figures, points, divisions, judged, checks, handed, films=count)


def _worse(whole: Audit, table: pd.DataFrame, model: nn.Module) -> tuple[pd.DataFrame, list[HandedIn]]:
    """The predictions with what was handed in, where that misleads the model and ours does not."""
    if whole.handed is None:
        return table, []
    table, found = handed_in.worse_of_both(table, whole.handed, model, whole.subject.device)
    return table, [] if found is None else [found]


def _answers(whole: Audit, door: Door, parts: Path) -> tuple[pd.DataFrame, pd.DataFrame | None, list[Check]]:
    """Logits of all findings, clean and corrupted; those of validation images; what was checked of given scores."""
    subject, exam, held = whole.subject, whole.exam, whole.films.validation
    assert isinstance(subject, Given)
    if door.model is None:
        table, checks = scored(subject, whole.dataset, whole.films.shared)
        return table, _scored_too(subject, whole.films), checks
    asked = Examined(subject.name, door.judged or door.model, subject.classes, subject.device)
    whole.stages.begin(audit_stages.WITHOUT_ATTACKS)
    table = evaluation.predict(
        asked,
        whole.dataset,
        corruptions=exam.corruptions,
        views=False,
        batch_size=exam.batch_size,
        parts=parts / "all",
        at_once=whole.at_once,
    )
    table = table.drop(columns=RIGHT_SHARE, errors="ignore")  # it is of the highest class, and there is none
    if held is None:
        return table, None, []
    whole.stages.begin(audit_stages.VALIDATION)
    return table, evaluation.predict(asked, held, views=False, at_once=whole.at_once), []


def answers_known(
    validation: Dataset | None, answers: pd.DataFrame | None, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Logits of the validation images that have an answer, and what is known of each, both (N, F)."""
    if validation is None or answers is None:
        return None
    truth = dict(zip(validation.sample_ids, findings.known(validation.table, names), strict=True))
    return logits_of(answers), np.stack([truth[name] for name in answers["sample_id"]])


def threshold_of(subject: Given, place: int, held: tuple[np.ndarray, np.ndarray] | None, unchosen: str) -> Threshold:
    """A finding's operating point: that of the model file, else chosen on the validation images `held`, else 0.5.

    `unchosen`: why there are no such images.
    """
    given = subject.output.thresholds
    points = subject.output.operating_points
    assert points is not None  # of kind sigmoid
    known = None
    if held is not None:
        rows = np.isfinite(held[1][:, place])
        known = (held[0][rows, place], held[1][rows, place])
    own = points[place] if given else None
    return findings.threshold_of(subject.classes[place], own, known, points[place], unchosen)


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
    """Predictions of one finding's decision under every attack, and on the views of films that have a lung mask.

    Climbs go on where the decision has turned.

    `seen`: the decision as attacks see it, and as what they find is judged on it.
    """
    decision, judge = seen
    exam, rows = whole.exam, np.flatnonzero(np.isfinite(labels))
    traits = look(decision, shown[:LOOKED_AT], random=door.random)
    attacks = exam.attacks if door.gradients else exam.without_gradients
    carried = CarriedOut(decision, traits, door.gradients, shown, whole_climb=True, taught=whole.taught)
    table = evaluation.predict(
        Examined(whole.subject.name, judge, findings.STATES, whole.subject.device),
        findings.OneFinding(whole.dataset, rows, labels[rows]),  # type: ignore[arg-type]
        attacks,
        clean=not attacks,
        batch_size=exam.batch_size,
        carry_out=carried.ready(attacks),
        parts=parts,
        at_once=whole.at_once,
    )
    return table[table["attack"] != CLEAN]


def _declared(
    whole: Audit, door: Door, answers: pd.DataFrame, truth: np.ndarray, about: Sequence[Finding]
) -> list[str]:
    """What of the model file should be another, from all answers to films as they are, and other ways to read some."""
    clean = answers[(answers["attack"] == CLEAN).to_numpy()]
    known = dict(zip(whole.dataset.sample_ids, truth, strict=True))
    cuts = np.array([operating_points.cut(found.threshold or 0.5) for found in about])
    films = declared_findings.Judged(
        np.stack([known[name] for name in clean["sample_id"]]),
        logits_of(clean).astype(float) - cuts,
        clean["group"].to_numpy(dtype=str),
    )
    assert isinstance(whole.subject, Given)
    scores = _file_of(whole.subject) if door.model is None else None
    found = [declared_findings.other_names(whole.subject.classes, films, table=scores)]
    if door.model is not None:
        rows = declared_findings.chosen(films.truth, whole.exam.gate.films)
        places = dict(zip(whole.dataset.sample_ids, range(len(whole.dataset)), strict=True))
        shown = np.array([places[name] for name in clean["sample_id"].to_numpy()[rows]])
        images = pixels_of(whole.dataset, shown, whole.subject.device)
        with undisturbed(door.model):
            found.append(declared_findings.other_input(door.model, images, cuts, films.at(rows)))
    return [remedy for remedy in found if remedy is not None]


def _declaration(points: Sequence[OperatingPoint], remedies: Sequence[str], door: Door) -> Check:
    """Whether findings are answered the wrong way round, have each other's names, or want other images."""
    wrong, tried = "output.classes, input.range,", "order, range, channel order or inversion"
    if door.model is None:
        wrong, tried = "the names of the columns", "order"
    clean = [point for point in points if point.attack == CLEAN]
    turned = [point.finding for point in clean if point.auroc.interval and point.auroc.interval[1] < 0.5]
    said = []
    if turned:
        text = f"{', '.join(turned)} {'is' if len(turned) == 1 else 'are'} ranked worse than by chance"
        said.append(text + ("" if remedies else f": see {wrong} and what the labels mean"))
    said += [f"findings are told better with another declaration: write {remedy}" for remedy in remedies]
    if said:
        return Check("declaration", False, "; ".join(said))
    text = f"of {len(clean)} findings none is ranked worse than by chance"
    return Check("declaration", True, f"{text}; no other {tried} surely does better")


def _above_constant(points: Sequence[OperatingPoint]) -> Check:
    """Which findings are told at their thresholds no better than by one answer for all films."""
    flat = []
    for point in (point for point in points if point.attack == CLEAN):
        count, positives = point.n or 0, point.positives or 0
        right = (point.sensitivity.value or 0.0) * positives + (point.specificity.value or 0.0) * (count - positives)
        if round(right) <= max(positives, count - positives):
            always = "present" if positives > count - positives else "absent"
            constant = max(positives, count - positives) / count
            flat.append(f"{point.finding} {right / count:.1%} (always {always}: {constant:.1%})")
    if flat:
        text = f"at their thresholds no more films are told rightly than by one answer for all: {', '.join(flat)}"
        return Check("better than one answer", False, f"{text}; see output.thresholds and input.range")
    return Check("better than one answer", True, "each finding is told better than by one answer for all films")
