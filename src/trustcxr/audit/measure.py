"""The figures of an audit: of models whose answer is the highest class, and of those with one sigmoid a finding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from trustcxr.attacks.bpda import probe_gradients
from trustcxr.audit import declaration_check as declared
from trustcxr.audit import multilabel, one_vs_rest, subgroups, submitted
from trustcxr.audit.attack_runner import AttackRunner
from trustcxr.audit.audit_data import AuditImages, pixels_of, scored
from trustcxr.audit.entry_checks import LOOKED_AT, Check, EntryReport, declaration_check
from trustcxr.audit.formats import ExternalModel
from trustcxr.audit.identity import Audit
from trustcxr.audit.subject import Subject
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError
from trustcxr.evaluation import operating_points
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.model_protocol import ModelUnderTest
from trustcxr.evaluation.operating_points import Threshold
from trustcxr.evaluation.run_figures import describe
from trustcxr.evaluation.stochastic import OverDraws
from trustcxr.models.preserve_state import preserve_state
from trustcxr.recipes.evaluation_recipe import AttackRecipe
from trustcxr.storage.prediction_table import CLEAN, RIGHT_SHARE, logits_of
from trustcxr.storage.schemas import Division, Finding, OperatingPoint, RunDocument, Submitted


@dataclass(frozen=True)
class Measured:
    """What came of it: the predictions, those on validation images, the figures, and checks that follow from them.

    aimed: predictions under attacks that were made against the threshold of one class each.
    images: how many have predictions.
    """

    table: pd.DataFrame
    validation: pd.DataFrame | None
    figures: RunDocument
    points: list[OperatingPoint]
    divisions: list[Division]
    findings: list[Finding] = field(default_factory=list)
    checks: Sequence[Check] = ()
    handed: list[Submitted] = field(default_factory=list)
    aimed: pd.DataFrame | None = None
    images: int = 0


def classes(whole: Audit, door: EntryReport, shown: Tensor, parts: Path) -> Measured:
    """A model whose answer is the highest of its classes."""
    subject, exam = whole.subject, whole.exam
    model: nn.Module = door.judged or nn.Identity()
    checks: list[Check] = []
    examined = ModelUnderTest(subject.name, model, subject.classes, subject.device)
    if door.model is None:
        assert isinstance(subject, ExternalModel)
        table, checks = scored(subject, whole.dataset, whole.images.shared)
        checks = [*checks, _declared_classes(subject, table)]
        validation = _scored_too(subject, whole.images)
    else:
        assert door.traits is not None  # of every model that can be asked
        attacks = whole.attacks(gradients=door.gradients)
        runner = AttackRunner(door.model, door.traits, door.gradients, shown, taught=whole.taught).ready(attacks)
        table = _predict(whole, examined, attacks=attacks, corruptions=exam.corruptions, carry_out=runner, parts=parts)
        checks = [check for check in [_declared_classes(subject, table)] if check.remedied]
        validation = _predict_validation(whole, examined)
    table, handed = _worse(whole, table, model)
    table = with_columns(table, whole.dataset)
    given = subject.output.thresholds if isinstance(subject, ExternalModel) else None
    thresholds = operating_points.choose(validation, subject.classes, given)
    aimed = _aimed(examined, whole, door, thresholds, shown, parts)
    points = operating_points.of_classes(table, subject.classes, thresholds, aimed=aimed, resamples=exam.bootstrap)
    divisions = _divisions(whole, table, subject.classes)
    figures = describe(examined, table, resamples=exam.bootstrap)
    images = int((table["attack"] == CLEAN).sum())
    return Measured(
        table, validation, figures, points, divisions, checks=checks, handed=handed, aimed=aimed, images=images
    )


def _declared_classes(subject: Subject, table: pd.DataFrame) -> Check:
    """Whether the classes have their right names: on all images, for few do not tell it of a model that is often wrong.

    The door has asked a model about some; of a table of scores this is all that can be asked.
    """
    clean = table[(table["attack"] == CLEAN).to_numpy()]
    if len(clean) < declared.ENOUGH:
        return Check("declaration", None, f"{len(clean)} images are too few to tell a wrong order of the classes")
    answers, labels = logits_of(clean).argmax(1), clean["label"].to_numpy()
    file = _file_of(subject) if isinstance(subject, ExternalModel) and subject.model is None else None
    return declaration_check(declared.check_order(subject.classes, answers, labels, table=file), len(clean))


def _file_of(subject: ExternalModel) -> str:
    return Path(subject.origin.path or subject.name).name


def with_columns(table: pd.DataFrame, dataset: Dataset, answers: Sequence[str] = ()) -> pd.DataFrame:
    """Predictions with the columns of the data that divide the images;

    Of a model of findings not those of `answers`.
    """
    columns = subgroups.columns_of(dataset.table, answers).set_index(pd.Index(dataset.sample_ids))
    return table.join(columns, on="image" if "image" in table else "sample_id")


def _divisions(
    whole: Audit, table: pd.DataFrame, classes: tuple[str, ...], answers: Sequence[str] = ()
) -> list[Division]:
    """For whom it is bad, from predictions `with_columns`, with the columns that are left out, and why."""
    without = subgroups.left_out(whole.dataset.table, answers)
    clean = table[table["attack"] == CLEAN]
    return subgroups.describe(clean, classes, without=without, resamples=whole.exam.bootstrap)


def _scored_too(subject: ExternalModel, images: AuditImages) -> pd.DataFrame | None:
    """Given scores of validation images; None where the table has none."""
    try:
        return None if images.validation is None else scored(subject, images.validation, images.shared)[0]
    except UserError:
        return None


def _predict(
    whole: Audit,
    examined: ModelUnderTest,
    *,
    data: Dataset | None = None,
    attacks: Sequence[AttackRecipe] = (),
    **options: Any,
) -> pd.DataFrame:
    """Predict the images of the examination (or other `data`), in its batches."""
    images = whole.dataset if data is None else data
    options |= {"batch_size": whole.exam.batch_size, "at_once": whole.at_once}
    return evaluation.predict(examined, images, attacks, **options)


def _predict_validation(whole: Audit, examined: ModelUnderTest) -> pd.DataFrame | None:
    """Predict the validation images as they are; None if the data have none."""
    held, title = whole.images.validation, f"evaluating {examined.name} for its thresholds"
    if held is None:
        return None
    return evaluation.predict(examined, held, views=False, at_once=whole.at_once, title=title)


def _runner(
    whole: Audit, door: EntryReport, decision: nn.Module, shown: Tensor, attacks: Sequence[AttackRecipe]
) -> AttackRunner:
    """Make these attacks ready for one decision: climbs go on where it has turned."""
    traits = probe_gradients(decision, shown[:LOOKED_AT], random=door.random)
    runner = AttackRunner(decision, traits, door.gradients, shown, whole_climb=True, taught=whole.taught)
    return runner.ready(attacks)


def _aimed(
    examined: ModelUnderTest,
    whole: Audit,
    door: EntryReport,
    thresholds: Mapping[str, Threshold],
    shown: Tensor,
    parts: Path,
) -> pd.DataFrame | None:
    """Predictions under attacks on each class at its threshold; None where worst-case is not asked for."""
    attacks = one_vs_rest.attacks(whole.attacks(gradients=door.gradients), gradients=door.gradients)
    if door.model is None or not attacks:
        return None
    pieces, places = [], one_vs_rest.places(len(examined.classes))
    for place in places:
        name = examined.classes[place]
        decision = one_vs_rest.decision(door.model, place, thresholds[name])
        table = _predict(
            whole,
            examined,
            attacks=attacks,
            views=False,
            clean=False,
            carry_out=one_vs_rest.against(_runner(whole, door, decision, shown, attacks), place),
            parts=parts / f"class{place}",
            title=_title(name, place, len(places)),
        )
        pieces.append(table.assign(target_class=name))
    return pd.concat(pieces, ignore_index=True)


def _title(name: str, place: int, count: int) -> str:
    return f"attacks on {name} at its threshold ({place + 1} of {count})"


def finding_figures(whole: Audit, door: EntryReport, shown: Tensor, parts: Path) -> Measured:
    """A model with one sigmoid a finding: each is judged, and attacked, at its own operating point."""
    subject, exam = whole.subject, whole.exam
    assert isinstance(subject, ExternalModel)
    names = subject.classes
    answers, validation, checks = _answers(whole, door, parts)
    truth = multilabel.labelled_findings(whole.dataset.table, names)
    held = answers_known(whole.images.validation, validation, names)
    answered = np.isin(whole.dataset.sample_ids, answers["sample_id"].to_numpy(dtype=str))
    pieces: list[pd.DataFrame] = []
    judged: list[Finding] = []
    handed: list[Submitted] = []
    points: list[OperatingPoint] = []
    for place, name in enumerate(names):
        threshold = multilabel.threshold_of(subject.output, place, held, whole.images.unchosen)
        labels = truth[:, place]
        found = _about_finding(name, labels[answered], threshold)
        judged.append(found)
        if not found.judged:
            continue
        assert threshold.value is not None
        by_image = dict(zip(whole.dataset.sample_ids, labels, strict=True))
        table = multilabel.as_decisions(answers, name, place, threshold.value, by_image)
        if door.model is not None:
            attacked, judge = _attacked(whole, door, place, threshold.value, labels, shown, parts)
            table = pd.concat([table, multilabel.marked(attacked, name, threshold.value)], ignore_index=True)
            table, judged_too = _worse(whole, table, judge)
            handed += [found.model_copy(update={"by": f"{found.by} ({name})"}) for found in judged_too]
        points += operating_points.of_finding(multilabel.worst_scores(table), name, threshold, resamples=exam.bootstrap)
        pieces.append(table)
    if not pieces:
        raise UserError(
            f"{whole.dataset.where}: no finding of {subject.name} has images with it and images without it. "
            "Say with --label which findings the images of a class have"
        )
    if whole.handed is not None and not handed:
        raise UserError(f"{whole.handed.path}: holds no image of a finding that is judged on these images")
    table = with_columns(pd.concat(pieces, ignore_index=True), whole.dataset, names)
    examined = ModelUnderTest(subject.name, door.model or nn.Identity(), multilabel.STATES, subject.device)
    figures = describe(examined, table, resamples=exam.bootstrap)
    figures.classes = list(names)
    divisions = _divisions(whole, table, multilabel.STATES, names)
    remedies = _remedies(whole, door, answers, truth, judged)
    checks = [*checks, _declaration(points, remedies, door), _above_constant(points)]
    count = int(answered.sum())
    return Measured(table, None, figures, points, divisions, judged, checks, handed, images=count)


def _worse(whole: Audit, table: pd.DataFrame, model: nn.Module) -> tuple[pd.DataFrame, list[Submitted]]:
    """The predictions with what was handed in, where that misleads the model and ours does not."""
    if whole.handed is None:
        return table, []
    table, found = submitted.worst_with_submitted(table, whole.handed, model, whole.subject.device)
    return table, [] if found is None else [found]


def _answers(whole: Audit, door: EntryReport, parts: Path) -> tuple[pd.DataFrame, pd.DataFrame | None, list[Check]]:
    """Logits of all findings, clean and corrupted; those of validation images; what was checked of given scores."""
    subject = whole.subject
    assert isinstance(subject, ExternalModel)
    if door.model is None:
        table, checks = scored(subject, whole.dataset, whole.images.shared)
        return table, _scored_too(subject, whole.images), checks
    asked = ModelUnderTest(subject.name, door.judged or door.model, subject.classes, subject.device)
    table = _predict(whole, asked, corruptions=whole.exam.corruptions, views=False, parts=parts / "all")
    table = table.drop(columns=RIGHT_SHARE, errors="ignore")  # it is of the highest class, and there is none
    return table, _predict_validation(whole, asked), []


def answers_known(
    validation: Dataset | None, answers: pd.DataFrame | None, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Logits of the validation images that have an answer, and what is known of each, both (N, F)."""
    if validation is None or answers is None:
        return None
    truth = dict(zip(validation.sample_ids, multilabel.labelled_findings(validation.table, names), strict=True))
    return logits_of(answers), np.stack([truth[name] for name in answers["sample_id"]])


def _about_finding(name: str, labels: np.ndarray, threshold: Threshold) -> Finding:
    known = np.isfinite(labels)
    positives, why = int((labels == 1).sum()), ""
    if not known.any():
        why = "of no image it is known whether it has it"
    elif not 0 < positives < known.sum():
        why = f"all images of which it is known have it{'' if positives else ' not'}"
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
    whole: Audit, door: EntryReport, place: int, threshold: float, labels: np.ndarray, shown: Tensor, parts: Path
) -> tuple[pd.DataFrame, nn.Module]:
    """Predict one finding's decision under every attack, and on the views of images that have a lung mask.

    With the decision by which it is judged.
    """
    assert door.model is not None
    decision, names = multilabel.Decision(door.model, place, threshold), whole.subject.classes
    judge = OverDraws(decision) if door.random else decision
    rows, attacks = np.flatnonzero(np.isfinite(labels)), whole.attacks(gradients=door.gradients)
    table = _predict(
        whole,
        ModelUnderTest(whole.subject.name, judge, multilabel.STATES, whole.subject.device),
        data=multilabel.OneFinding(whole.dataset, rows, labels[rows]),  # type: ignore[arg-type]
        attacks=attacks,
        clean=not attacks,
        carry_out=_runner(whole, door, decision, shown, attacks),
        parts=parts / f"finding{place}",
        title=_title(names[place], place, len(names)),
    )
    return table[table["attack"] != CLEAN], judge


def _remedies(
    whole: Audit, door: EntryReport, answers: pd.DataFrame, truth: np.ndarray, about: Sequence[Finding]
) -> list[str]:
    """What of the model file should be another, from all answers to images as they are, and other ways to read some."""
    clean = answers[(answers["attack"] == CLEAN).to_numpy()]
    known = dict(zip(whole.dataset.sample_ids, truth, strict=True))
    cuts = np.array([operating_points.cut(found.threshold or 0.5) for found in about])
    radiographs = declared.DeclarationResult(
        np.stack([known[name] for name in clean["sample_id"]]),
        logits_of(clean).astype(float) - cuts,
        clean["group"].to_numpy(dtype=str),
    )
    assert isinstance(whole.subject, ExternalModel)
    scores = _file_of(whole.subject) if door.model is None else None
    found = [declared.other_names(whole.subject.classes, radiographs, table=scores)]
    if door.model is not None:
        rows = declared.chosen(radiographs.truth, whole.exam.entry_checks.images)
        places = dict(zip(whole.dataset.sample_ids, range(len(whole.dataset)), strict=True))
        shown = np.array([places[name] for name in clean["sample_id"].to_numpy()[rows]])
        images = pixels_of(whole.dataset, shown, whole.subject.device)
        with preserve_state(door.model):
            found.append(declared.other_input(door.model, images, cuts, radiographs.at(rows)))
    return [remedy for remedy in found if remedy is not None]


def _declaration(points: Sequence[OperatingPoint], remedies: Sequence[str], door: EntryReport) -> Check:
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
    """Which findings are told at their thresholds no better than by one answer for all images."""
    flat = []
    for point in (point for point in points if point.attack == CLEAN):
        count, positives = point.n or 0, point.positives or 0
        right = (point.sensitivity.value or 0.0) * positives + (point.specificity.value or 0.0) * (count - positives)
        if round(right) <= max(positives, count - positives):
            always = "present" if positives > count - positives else "absent"
            constant = max(positives, count - positives) / count
            flat.append(f"{point.finding} {right / count:.1%} (always {always}: {constant:.1%})")
    if flat:
        text = f"at their thresholds no more images are told rightly than by one answer for all: {', '.join(flat)}"
        return Check("better than one answer", False, f"{text}; see output.thresholds and input.range")
    return Check("better than one answer", True, "each finding is told better than by one answer for all images")
