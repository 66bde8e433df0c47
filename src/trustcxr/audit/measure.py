"""Compute the figures of an audit: of models that answer one class, and of models with one sigmoid a finding."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from trustcxr.attacks.adaptive import probe_gradients
from trustcxr.audit import attack_runner, declaration_check, multilabel, subgroups
from trustcxr.audit.attack_runner import AttackRunner
from trustcxr.audit.audit_data import Audit, AuditImages, ImageRows, OneFinding, load_pixels, match_scores
from trustcxr.audit.entry_checks import PROBED, Check, EntryReport, check_memory, describe_declaration
from trustcxr.audit.formats import ExternalModel
from trustcxr.audit.guards import Guards, try_guards
from trustcxr.audit.second_instance import ASKED, AskedImages
from trustcxr.audit.submitted import worst_with_submitted
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError
from trustcxr.evaluation import operating_points
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.operating_points import Threshold
from trustcxr.evaluation.predictions import OverDraws
from trustcxr.evaluation.run_figures import describe
from trustcxr.evaluation.trained_run import ModelUnderTest
from trustcxr.models.preserve_state import preserve_state
from trustcxr.recipes.evaluation_recipe import AttackRecipe
from trustcxr.storage.prediction_table import CLEAN, RIGHT_SHARE, logits_of
from trustcxr.storage.schemas import Division, Finding, OperatingPoint, RunDocument, Submitted

FEWEST_GUARDED = 8  # images of each finding for the attacks of `guards`


@dataclass(frozen=True)
class Measured:
    """The predictions and figures of an audit, and the checks that follow from them."""

    table: pd.DataFrame
    validation: pd.DataFrame | None
    figures: RunDocument
    points: list[OperatingPoint]
    divisions: list[Division]
    findings: list[Finding] = field(default_factory=list)
    checks: Sequence[Check] = ()
    submitted: list[Submitted] = field(default_factory=list)
    one_vs_rest: pd.DataFrame | None = None  # predictions under attacks on the threshold of one class each
    images: int = 0  # with predictions
    guards: Guards = field(default_factory=Guards)
    bfloat16: bool = False  # whether an attack may have searched in it


@dataclass(frozen=True)
class _Predictor:
    """Predicts the images of an audit; `shown`: those of the entry checks; `parts`: the folder of finished batches."""

    audit: Audit
    report: EntryReport
    shown: Tensor
    parts: Path
    bfloat16: list[bool] = field(default_factory=list)  # of each decision that is attacked

    @property
    def attacks(self) -> Sequence[AttackRecipe]:
        """Return the protocol's attacks on this model."""
        return self.audit.attacks(gradients=self.report.gradients)

    def under_test(self, model: nn.Module, classes: tuple[str, ...]) -> ModelUnderTest:
        """Return a form of the audited model as evaluation takes it."""
        return ModelUnderTest(self.audit.subject.name, model, classes, self.audit.subject.device)

    def predict(
        self, examined: ModelUnderTest, data: Dataset | ImageRows, attacks: Sequence[AttackRecipe] = (), **options: Any
    ) -> pd.DataFrame:
        """Predict images in the protocol's batches."""
        options |= {"batch_size": self.audit.exam.batch_size, "at_once": self.audit.parallel}
        return evaluation.predict(examined, data, attacks, **options)  # type: ignore[arg-type]

    def choose_attacked(self) -> ImageRows:
        """Return the examined images that the protocol attacks."""
        dataset = self.audit.dataset
        return ImageRows(dataset, self.audit.rows_to_attack(np.arange(len(dataset)), np.asarray(dataset.labels)))

    def predict_some_attacked(
        self, examined: ModelUnderTest, *, parts: Path, views: bool = True, **options: Any
    ) -> pd.DataFrame:
        """Predict all examined images, those that the protocol chooses with `options`: attacks and corruptions."""
        dataset, chosen = self.audit.dataset, self.choose_attacked()
        if len(chosen) == len(dataset):
            return self.predict(examined, dataset, views=views, parts=parts, **options)
        title = f"evaluating {examined.name} without attacks"
        some = self.predict(examined, chosen, views=False, parts=parts / "attacked", **options)
        whole = self.predict(examined, dataset, views=views, parts=parts / "unperturbed", title=title)
        twice = (whole["attack"] == CLEAN) & whole["sample_id"].isin(chosen.sample_ids)
        return pd.concat([whole[~twice], some], ignore_index=True)

    def predict_validation(self, examined: ModelUnderTest) -> pd.DataFrame | None:
        """Predict the clean validation images; None if there are none."""
        images, title = self.audit.images.validation, f"evaluating {examined.name} for its thresholds"
        if images is None:
            return None
        return evaluation.predict(examined, images, views=False, at_once=self.audit.parallel, title=title)

    def make_runner(self, model: nn.Module, attacks: Sequence[AttackRecipe]) -> AttackRunner:
        """Prepare attacks on one decision, with climbs that go on after it has changed."""
        traits = probe_gradients(model, self.shown[:PROBED], random=self.report.random)
        self.bfloat16.append(traits.bfloat16)
        load, gradients = self.audit.load_surrogate_images, self.report.gradients
        runner = AttackRunner(model, traits, gradients, self.shown, whole_climb=True, load_surrogate_images=load)
        return runner.prepare(attacks)


def measure_classes(audit: Audit, report: EntryReport, shown: Tensor, parts: Path) -> Measured:
    """Measure a model that answers the highest of its classes.

    `shown` are the images of the entry checks, `parts` the folder for rows of finished batches.
    """
    subject, exam, predictor = audit.subject, audit.exam, _Predictor(audit, report, shown, parts)
    model: nn.Module = report.evaluated_model or nn.Identity()
    examined = predictor.under_test(model, subject.classes)
    guards = Guards()
    if report.model is None:
        assert isinstance(subject, ExternalModel)
        table, checks = match_scores(subject, audit.dataset, audit.images.ambiguous_names)
        checks = [*checks, _check_class_order(audit, table)]
        validation = _match_validation_scores(subject, audit.images)
    else:
        assert report.traits is not None  # every model that can be queried has traits
        attacks, load = predictor.attacks, audit.load_surrogate_images
        runner = AttackRunner(report.model, report.traits, report.gradients, shown, load_surrogate_images=load)
        keep = AskedImages(parts / ASKED, len(predictor.choose_attacked()))
        options: dict[str, Any] = {"attacks": attacks, "corruptions": exam.corruptions}
        options["carry_out"] = runner.prepare(attacks)
        table = predictor.predict_some_attacked(examined, parts=parts, keep=keep, **options)
        guards = try_guards(runner, audit.dataset, table, exam.guards, subject.device)
        checks = [check for check in [_check_class_order(audit, table)] if check.remedied]
        validation = predictor.predict_validation(examined)
    table, submitted = _add_submitted(audit, table, model)
    table, divisions = _divide(audit, table, subject.classes)
    declared = subject.output.thresholds if isinstance(subject, ExternalModel) else None
    thresholds = operating_points.choose(validation, subject.classes, declared)
    attacked = _attack_thresholds(predictor, examined, thresholds)
    return Measured(
        table,
        validation,
        describe(examined, table, resamples=exam.bootstrap),
        operating_points.measure_classes(table, subject.classes, thresholds, aimed=attacked, resamples=exam.bootstrap),
        divisions,
        checks=checks,
        submitted=submitted,
        one_vs_rest=attacked,
        images=int((table["attack"] == CLEAN).sum()),
        guards=guards,
        bfloat16=any(predictor.bfloat16) or (report.traits is not None and report.traits.bfloat16),
    )


def _check_class_order(audit: Audit, table: pd.DataFrame) -> Check:
    """Check the order of the classes on all images, which notice it for a weak model too."""
    clean = table[(table["attack"] == CLEAN).to_numpy()]
    if len(clean) < declaration_check.ENOUGH:
        text = f"{len(clean)} images are too few to tell a wrong order of the classes"
        return Check("declaration", None, text, grave=True)
    answers, labels = logits_of(clean).argmax(1), clean["label"].to_numpy()
    result = declaration_check.check_order(audit.subject.classes, answers, labels, table=_score_file(audit))
    return describe_declaration(result, len(clean))


def _score_file(audit: Audit) -> str | None:
    """Return the name of the file of scores; None if the model itself is available."""
    subject = audit.subject
    if not isinstance(subject, ExternalModel) or subject.model is not None:
        return None
    return Path(subject.origin.path or subject.name).name


def _divide(
    audit: Audit, table: pd.DataFrame, classes: tuple[str, ...], findings: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[Division]]:
    """Return predictions with the data's columns that divide the images, without `findings`, and the subgroups."""
    dataset = audit.dataset
    columns = subgroups.columns_of(dataset.table, findings).set_index(pd.Index(dataset.sample_ids))
    table = table.join(columns, on="image" if "image" in table else "sample_id")
    without, clean = subgroups.left_out(dataset.table, findings), table[table["attack"] == CLEAN]
    return table, subgroups.describe(clean, classes, without=without, resamples=audit.exam.bootstrap)


def _match_validation_scores(subject: ExternalModel, images: AuditImages) -> pd.DataFrame | None:
    """Return the scores of validation images; None if there are none."""
    with suppress(UserError):
        if images.validation is not None:
            return match_scores(subject, images.validation, images.ambiguous_names)[0]
    return None


def _attack_thresholds(
    predictor: _Predictor, examined: ModelUnderTest, thresholds: Mapping[str, Threshold]
) -> pd.DataFrame | None:
    """Predict under attacks on each class at its threshold; None if the protocol has no worst-case."""
    model, gradients = predictor.report.model, predictor.report.gradients
    attacks = attack_runner.threshold_attacks(predictor.attacks, gradients=gradients)
    if model is None or not attacks:
        return None
    chosen, pieces, count = predictor.choose_attacked(), [], len(examined.classes)
    targets = examined.classes[: 1 if count == 2 else count]  # both decisions of two classes are the same
    for index, name in enumerate(targets):
        runner = predictor.make_runner(attack_runner.decision(model, index, thresholds[name]), attacks)
        options = {"carry_out": attack_runner.with_class_labels(runner, index), "views": False, "clean": False}
        options |= {"parts": predictor.parts / f"class{index}", "title": _title(name, index, len(targets))}
        table = predictor.predict(examined, chosen, attacks, **options)
        pieces.append(table.assign(target_class=name))
    return pd.concat(pieces, ignore_index=True)


def _title(name: str, index: int, count: int) -> str:
    return f"attacks on {name} at its threshold ({index + 1} of {count})"


def measure_findings(audit: Audit, report: EntryReport, shown: Tensor, parts: Path) -> Measured:
    """Measure a model with one sigmoid a finding: each finding at its own operating point."""
    subject, exam = audit.subject, audit.exam
    assert isinstance(subject, ExternalModel)
    names, predictor = subject.classes, _Predictor(audit, report, shown, parts)
    answers, validation, checks = _predict_findings(predictor)
    truth = multilabel.labelled_findings(audit.dataset.table, names)
    labelled = label_answers(audit.images.validation, validation, names)
    answered = np.isin(audit.dataset.sample_ids, answers["sample_id"].to_numpy(dtype=str))
    pieces: list[pd.DataFrame] = []
    findings: list[Finding] = []
    submitted: list[Submitted] = []
    points: list[OperatingPoint] = []
    guards = Guards()
    for index, name in enumerate(names):
        threshold = multilabel.threshold_of(subject.output, index, labelled, audit.images.why_no_threshold())
        labels = truth[:, index]
        finding = _describe_finding(name, labels[answered], threshold)
        findings.append(finding)
        if not finding.judged:
            continue
        assert threshold.value is not None
        by_image = dict(zip(audit.dataset.sample_ids, labels, strict=True))
        table = multilabel.as_decisions(answers, name, index, threshold.value, by_image)
        if report.model is not None:
            attacked, decision, tried = _attack_finding(predictor, index, threshold.value, labels, not guards.total)
            guards += tried
            table = pd.concat([table, multilabel.add_finding(attacked, name, threshold.value)], ignore_index=True)
            table, more = _add_submitted(audit, table, decision)
            submitted += [one.model_copy(update={"by": f"{one.by} ({name})"}) for one in more]
        points += operating_points.measure_finding(
            multilabel.worst_scores(table), name, threshold, resamples=exam.bootstrap
        )
        pieces.append(table)
    if not pieces:
        raise UserError(
            f"{audit.dataset.where}: no finding of {subject.name} has images with it and images without it. "
            "Say with --label which findings the images of a class have"
        )
    if audit.submitted is not None and not submitted:
        raise UserError(f"{audit.submitted.path}: holds no image of a finding that is judged on these images")
    table, divisions = _divide(audit, pd.concat(pieces, ignore_index=True), multilabel.STATES, names)
    examined = predictor.under_test(report.model or nn.Identity(), multilabel.STATES)
    figures = describe(examined, table, resamples=exam.bootstrap)
    figures.classes = list(names)
    remedies = _find_remedies(audit, report, answers, truth, findings)
    checks = [*checks, _check_findings(points, remedies, report), _check_above_constant(points)]
    if report.model is not None and not report.random:
        checks.append(_check_memory_of_findings(audit, report.model, truth, findings))
    count = int(answered.sum())
    measured = Measured(table, None, figures, points, divisions, findings, checks, submitted, images=count)
    return replace(measured, guards=guards, bfloat16=any(predictor.bfloat16))


def _check_memory_of_findings(audit: Audit, model: nn.Module, truth: np.ndarray, findings: Sequence[Finding]) -> Check:
    """Check that findings (N, F) are told as well on images that are moved by what nobody sees."""
    columns = [index for index, finding in enumerate(findings) if finding.judged]
    rows = np.flatnonzero(np.isfinite(truth[:, columns]).any(1))[: audit.exam.entry_checks.images]
    images, device = load_pixels(audit.dataset, rows, audit.subject.device), audit.subject.device
    labels = torch.from_numpy(truth[rows][:, columns]).to(device)
    cuts = torch.tensor([operating_points.cut(findings[index].threshold or 0.5) for index in columns], device=device)

    def right(moved: Tensor) -> Tensor:
        with torch.no_grad():
            logits = torch.cat([model(part)[:, columns] for part in moved.split(64)])
        return ((logits > cuts) == (labels == 1)) | labels.isnan()

    with preserve_state(model):
        return check_memory(right, images)


def _add_submitted(audit: Audit, table: pd.DataFrame, model: nn.Module) -> tuple[pd.DataFrame, list[Submitted]]:
    """Count submitted images in the worst case if they mislead the model and ours do not."""
    if audit.submitted is None:
        return table, []
    table, result = worst_with_submitted(table, audit.submitted, model, audit.subject.device)
    return table, [] if result is None else [result]


def _predict_findings(predictor: _Predictor) -> tuple[pd.DataFrame, pd.DataFrame | None, list[Check]]:
    """Return logits of all findings, clean and corrupted, those of validation images, and checks of scores."""
    audit, model = predictor.audit, predictor.report.evaluated_model
    assert isinstance(audit.subject, ExternalModel)
    if model is None:
        table, checks = match_scores(audit.subject, audit.dataset, audit.images.ambiguous_names)
        return table, _match_validation_scores(audit.subject, audit.images), checks
    examined = predictor.under_test(model, audit.subject.classes)
    keep = AskedImages(predictor.parts / ASKED, len(predictor.choose_attacked()))
    options = {"corruptions": audit.exam.corruptions, "views": False, "parts": predictor.parts / "all"}
    table = predictor.predict_some_attacked(examined, keep=keep, **options)  # type: ignore[arg-type]
    table = table.drop(columns=RIGHT_SHARE, errors="ignore")  # of the highest class, which means nothing here
    return table, predictor.predict_validation(examined), []


def label_answers(
    dataset: Dataset | None, answers: pd.DataFrame | None, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the logits of the images that have an answer, and their labels, both (N, F)."""
    if dataset is None or answers is None:
        return None
    truth = dict(zip(dataset.sample_ids, multilabel.labelled_findings(dataset.table, names), strict=True))
    return logits_of(answers), np.stack([truth[name] for name in answers["sample_id"]])


def _describe_finding(name: str, labels: np.ndarray, threshold: Threshold) -> Finding:
    labelled = int(np.isfinite(labels).sum())
    positives, why = int((labels == 1).sum()), ""
    if not labelled:
        why = "no image has a label for this finding"
    elif not 0 < positives < labelled:
        why = f"every labelled image is {'positive' if positives else 'negative'}"
    return Finding(
        name=name,
        judged=not why,
        why=why,
        threshold=threshold.value,
        origin=threshold.origin,
        n=labelled,
        positives=positives,
        unknown=len(labels) - labelled,
    )


def _attack_finding(
    predictor: _Predictor, index: int, threshold: float, labels: np.ndarray, surrogate: bool
) -> tuple[pd.DataFrame, nn.Module, Guards]:
    """Predict one finding's decision under every attack and on masked views; return it and the guards' counts too."""
    audit, report, attacks = predictor.audit, predictor.report, predictor.attacks
    assert report.model is not None
    decision, names = multilabel.Decision(report.model, index, threshold), audit.subject.classes
    evaluated = OverDraws(decision) if report.random else decision
    labelled = np.flatnonzero(np.isfinite(labels))
    rows = audit.rows_to_attack(labelled, labels[labelled])
    data, runner = OneFinding(audit.dataset, rows, labels[rows]), predictor.make_runner(decision, attacks)
    keep = AskedImages(predictor.parts / ASKED, len(rows), (index, operating_points.cut(threshold)))
    options = {
        "clean": not attacks,
        "carry_out": runner,
        "keep": keep,
        "title": _title(names[index], index, len(names)),
    }
    options["parts"] = predictor.parts / f"finding{index}"
    table = predictor.predict(predictor.under_test(evaluated, multilabel.STATES), data, attacks, **options)
    guards, few = audit.exam.guards, max(FEWEST_GUARDED, audit.exam.guards.images // len(names))
    guards = guards.model_copy(update={"images": min(few, guards.images)})
    tried = try_guards(runner, data, table, guards, audit.subject.device, surrogate=surrogate)
    return table[table["attack"] != CLEAN], evaluated, tried


def _find_remedies(
    audit: Audit, report: EntryReport, answers: pd.DataFrame, truth: np.ndarray, findings: Sequence[Finding]
) -> list[str]:
    """Return what to change in the model file, from the clean answers and, on some images, from other inputs."""
    clean = answers[(answers["attack"] == CLEAN).to_numpy()]
    labels = dict(zip(audit.dataset.sample_ids, truth, strict=True))
    cuts = np.array([operating_points.cut(finding.threshold or 0.5) for finding in findings])
    one = declaration_check.FindingAnswers(
        np.stack([labels[name] for name in clean["sample_id"]]),
        logits_of(clean).astype(float) - cuts,
        clean["group"].to_numpy(dtype=str),
    )
    remedies = [declaration_check.find_other_names(audit.subject.classes, one, table=_score_file(audit))]
    if report.model is not None:
        rows = declaration_check.select_rows(one.truth, audit.exam.entry_checks.images)
        row_of = dict(zip(audit.dataset.sample_ids, range(len(audit.dataset)), strict=True))
        chosen = np.array([row_of[name] for name in clean["sample_id"].to_numpy()[rows]])
        images = load_pixels(audit.dataset, chosen, audit.subject.device)
        with preserve_state(report.model):
            remedies.append(declaration_check.find_other_input(report.model, images, cuts, one.select(rows)))
    return [remedy for remedy in remedies if remedy is not None]


def _check_findings(points: Sequence[OperatingPoint], remedies: Sequence[str], report: EntryReport) -> Check:
    """Check whether findings are ranked below chance, or another declaration serves them better."""
    keys, tried = "output.classes, input.range,", "order, range, channel order or inversion"
    if report.model is None:
        keys, tried = "the names of the columns", "order"
    clean = [point for point in points if point.attack == CLEAN]
    inverted = [point.finding for point in clean if point.auroc.interval and point.auroc.interval[1] < 0.5]
    reasons = []
    if inverted:
        text = f"{', '.join(inverted)} {'is' if len(inverted) == 1 else 'are'} ranked worse than by chance"
        reasons.append(text + ("" if remedies else f": see {keys} and what the labels mean"))
    reasons += [f"findings are told better with another declaration: write {remedy}" for remedy in remedies]
    if reasons:
        return Check("declaration", False, "; ".join(reasons), grave=True)
    text = f"of {len(clean)} findings none is ranked worse than by chance"
    return Check("declaration", True, f"{text}; no other {tried} surely does better", grave=True)


def _check_above_constant(points: Sequence[OperatingPoint]) -> Check:
    """Check that each finding at its threshold has a higher accuracy than a constant answer."""
    flat = []
    for point in (point for point in points if point.attack == CLEAN):
        count, positives = point.n or 0, point.positives or 0
        right = (point.sensitivity.value or 0.0) * positives + (point.specificity.value or 0.0) * (count - positives)
        best = max(positives, count - positives)
        if round(right) <= best:
            always = "present" if positives > count - positives else "absent"
            flat.append(f"{point.finding} {right / count:.1%} (always {always}: {best / count:.1%})")
    if flat:
        text = f"at their thresholds no more images are told rightly than by one answer for all: {', '.join(flat)}"
        return Check("better than one answer", False, f"{text}; see output.thresholds and input.range")
    return Check("better than one answer", True, "each finding is told better than by one answer for all images")
