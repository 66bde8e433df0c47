"""Compute the figures of an audit: of models that answer one class, and of models with one sigmoid a finding."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from trustcxr import statistics
from trustcxr.attacks.adaptive import GradientTraits, probe_gradients
from trustcxr.audit import attack_runner, declaration_check, multilabel, subgroups
from trustcxr.audit.attack_runner import AttackRunner, Guards, try_guards
from trustcxr.audit.audit_data import Audit, ImageRows, OneFinding, SubmittedImages, load_pixels, match_scores
from trustcxr.audit.entry_checks import PROBED, Check, EntryReport, check_memory, describe_declaration
from trustcxr.audit.formats import ExternalModel
from trustcxr.audit.second_instance import ASKED, AskedImages
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
from trustcxr.registry import WORST_CASE
from trustcxr.storage import atomic
from trustcxr.storage.prediction_table import CLEAN, RIGHT_SHARE, logits_of
from trustcxr.storage.schemas import Division, Finding, OperatingPoint, RunDocument, Share, Submitted

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
        self, examined: ModelUnderTest, data: Dataset, attacks: Sequence[AttackRecipe] = (), **options: Any
    ) -> pd.DataFrame:
        """Predict images in the protocol's batches."""
        options |= {"batch_size": self.audit.exam.batch_size, "at_once": self.audit.parallel}
        return evaluation.predict(examined, data, attacks, **options)

    def choose_attacked(self) -> ImageRows:
        """Return the examined images that the protocol attacks."""
        dataset = self.audit.dataset
        return ImageRows(dataset, self.audit.rows_to_attack(np.arange(len(dataset)), np.asarray(dataset.labels)))

    def predict_all(
        self, examined: ModelUnderTest, *, parts: Path, views: bool = True, **options: Any
    ) -> tuple[pd.DataFrame, pd.DataFrame | None, list[Check]]:
        """Return predictions of examined and of validation images (None without any), and checks of a table of scores.

        `options` (attacks) and corruptions are for the images that the protocol chooses.
        """
        subject, images, validation = self.audit.subject, self.audit.images, None
        if self.report.model is None:
            assert isinstance(subject, ExternalModel)
            table, checks = match_scores(subject, images.examined, images.ambiguous_names)
            with suppress(UserError):
                if images.validation is not None:
                    validation = match_scores(subject, images.validation, images.ambiguous_names)[0]
            return table, validation, checks
        chosen = self.choose_attacked()
        whole = len(chosen) == len(images.examined)
        options |= {"keep": AskedImages(self.parts / ASKED, len(chosen)), "corruptions": self.audit.exam.corruptions}
        options |= {"parts": parts if whole else parts / "attacked", "views": views and whole}
        table = self.predict(examined, images.examined if whole else chosen, **options)
        if not whole:
            title = f"evaluating {examined.name} without attacks"
            every = self.predict(examined, images.examined, views=views, parts=parts / "unperturbed", title=title)
            twice = (every["attack"] == CLEAN) & every["sample_id"].isin(chosen.sample_ids)
            table = pd.concat([every[~twice], table], ignore_index=True)
        if images.validation is not None:
            title, parallel = f"evaluating {examined.name} for its thresholds", self.audit.parallel
            validation = evaluation.predict(examined, images.validation, views=False, at_once=parallel, title=title)
        return table, validation, []

    def make_runner(
        self, model: nn.Module, attacks: Sequence[AttackRecipe], traits: GradientTraits | None = None
    ) -> AttackRunner:
        """Prepare attacks; without `traits` on one decision, with climbs that go on after it has changed."""
        whole = traits is None
        assert self.report.traits is not None  # every model that can be queried has traits
        options = {"random": self.report.random, "bfloat16": self.report.traits.bfloat16}
        traits = traits or probe_gradients(model, self.shown[:PROBED], **options)
        self.bfloat16.append(traits.bfloat16)
        runner = AttackRunner(model, traits, self.report.gradients, self.shown, whole_climb=whole)
        if (images := self.audit.images.surrogate) is not None:
            runner.load_surrogate_images = partial(load_pixels, images.whole, images.rows, self.audit.subject.device)
        return runner.prepare(attacks)


def measure_classes(audit: Audit, report: EntryReport, shown: Tensor, parts: Path) -> Measured:
    """Measure a model that answers the highest of its classes (see `_Predictor` for `shown` and `parts`)."""
    subject, exam, predictor = audit.subject, audit.exam, _Predictor(audit, report, shown, parts)
    model: nn.Module = report.evaluated_model or nn.Identity()
    examined = predictor.under_test(model, subject.classes)
    runner = None
    if report.model is not None:
        runner = predictor.make_runner(report.model, predictor.attacks, report.traits)
    table, validation, checks = predictor.predict_all(
        examined, parts=parts, attacks=predictor.attacks, carry_out=runner
    )
    guards = Guards() if runner is None else try_guards(runner, audit.dataset, table, exam.guards)
    clean = table[table["attack"] == CLEAN]  # all images notice a wrong order for a weak model too
    if len(clean) >= declaration_check.ENOUGH:
        answers, labels = logits_of(clean).argmax(1), clean["label"].to_numpy()
        result = declaration_check.check_order(subject.classes, answers, labels, table=_score_file(audit))
        checks += [describe_declaration(result, len(clean))] if runner is None or result.remedy else []
    elif runner is None:
        text = f"{len(clean)} images are too few to tell a wrong order of the classes"
        checks.append(Check("declaration", None, text, grave=True))
    table, submitted = worst_with_submitted(table, audit.submitted, model, subject.device)
    table, divisions = _divide(audit, table, subject.classes)
    declared = subject.output.thresholds if isinstance(subject, ExternalModel) else None
    thresholds = operating_points.choose(validation, subject.classes, declared)
    attacked = _attack_thresholds(predictor, examined, thresholds)
    figures, resamples = describe(examined, table, resamples=exam.bootstrap), exam.bootstrap
    points = operating_points.measure_classes(table, subject.classes, thresholds, aimed=attacked, resamples=resamples)
    counts: dict[str, Any] = {"images": len(clean), "guards": guards, "bfloat16": any(predictor.bfloat16)}
    return Measured(table, validation, figures, points, divisions, [], checks, submitted, attacked, **counts)


def _score_file(audit: Audit) -> str | None:
    """Return the name of the file of scores; None if the model itself is available."""
    subject = audit.subject
    if isinstance(subject, ExternalModel) and subject.model is None:
        return Path(subject.origin.path or subject.name).name
    return None


def _divide(
    audit: Audit, table: pd.DataFrame, classes: tuple[str, ...], findings: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[Division]]:
    """Return predictions with the data's columns that divide the images, without `findings`, and the subgroups."""
    dataset = audit.dataset
    columns = subgroups.columns_of(dataset.table, findings).set_index(pd.Index(dataset.sample_ids))
    table = table.join(columns, on="image" if "image" in table else "sample_id")
    without, clean = subgroups.left_out(dataset.table, findings), table[table["attack"] == CLEAN]
    return table, subgroups.describe(clean, classes, without=without, resamples=audit.exam.bootstrap)


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
        runner.target_class = index
        options: dict[str, Any] = {"carry_out": runner, "views": False, "clean": False}
        title = f"attacks on {name} at its threshold ({index + 1} of {len(targets)})"
        options |= {"parts": predictor.parts / f"class{index}", "title": title}
        table = predictor.predict(examined, chosen, attacks, **options)
        pieces.append(table.assign(target_class=name))
    return pd.concat(pieces, ignore_index=True)


def measure_findings(audit: Audit, report: EntryReport, shown: Tensor, parts: Path) -> Measured:
    """Measure a model with one sigmoid a finding: each finding at its own operating point."""
    subject, exam = audit.subject, audit.exam
    assert isinstance(subject, ExternalModel)
    names, predictor = subject.classes, _Predictor(audit, report, shown, parts)
    examined = predictor.under_test(report.evaluated_model or nn.Identity(), names)
    answers, validation, checks = predictor.predict_all(examined, parts=parts / "all", views=False)
    answers = answers.drop(columns=RIGHT_SHARE, errors="ignore")  # of the highest class, which means nothing here
    truth = multilabel.labelled_findings(audit.dataset.table, names)
    labelled = label_answers(audit.images.validation, validation, names)
    answered = np.isin(audit.dataset.sample_ids, answers["sample_id"].to_numpy(dtype=str))
    pieces, findings, submitted = list[pd.DataFrame](), list[Finding](), list[Submitted]()
    points, guards = list[OperatingPoint](), Guards()
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
            attacked, decision, tried = _attack_finding(predictor, index, threshold.value, labels, not guards["total"])
            guards += tried
            table = pd.concat([table, multilabel.add_finding(attacked, name, threshold.value)], ignore_index=True)
            table, more = worst_with_submitted(table, audit.submitted, decision, subject.device)
            submitted += [one.model_copy(update={"by": f"{one.by} ({name})"}) for one in more]
        worst = multilabel.worst_scores(table)
        points += operating_points.measure_finding(worst, name, threshold, resamples=exam.bootstrap)
        pieces.append(table)
    if not pieces:
        text = f"{audit.dataset.where}: no finding of {subject.name} has images with it and images without it"
        raise UserError(f"{text}. Say with --label which findings the images of a class have")
    if audit.submitted is not None and not submitted:
        raise UserError(f"{audit.submitted.path}: holds no image of a finding that is judged on these images")
    table, divisions = _divide(audit, pd.concat(pieces, ignore_index=True), multilabel.STATES, names)
    examined = predictor.under_test(report.model or nn.Identity(), multilabel.STATES)
    figures = describe(examined, table, resamples=exam.bootstrap)
    figures.classes = list(names)
    remedies = _find_remedies(audit, report, answers, truth, findings)
    checks += [_check_findings(points, remedies, report), _check_above_constant(points)]
    if report.model is not None and not report.random:
        checks.append(_check_memory_of_findings(audit, report.model, truth, findings))
    counts: dict[str, Any] = {"images": int(answered.sum()), "guards": guards, "bfloat16": any(predictor.bfloat16)}
    return Measured(table, None, figures, points, divisions, findings, checks, submitted, **counts)


def _check_memory_of_findings(audit: Audit, model: nn.Module, truth: np.ndarray, findings: Sequence[Finding]) -> Check:
    """Check that findings (N, F) are told as well on images that are moved by what nobody sees."""
    columns = [index for index, finding in enumerate(findings) if finding.judged]
    rows = np.flatnonzero(np.isfinite(truth[:, columns]).any(1))[: audit.exam.entry_checks.images]
    images, device = load_pixels(audit.dataset, rows, audit.subject.device), audit.subject.device
    labels = torch.from_numpy(truth[rows][:, columns]).to(device)
    cuts = torch.tensor([operating_points.cut(findings[index].threshold or 0.5) for index in columns], device=device)

    def right(moved: Tensor) -> Tensor:
        return ((declaration_check.predict_parts(model, moved)[:, columns] > cuts) == (labels == 1)) | labels.isnan()

    with preserve_state(model):
        return check_memory(right, images)


def worst_with_submitted(
    table: pd.DataFrame, submitted: SubmittedImages | None, model: nn.Module, device: torch.device
) -> tuple[pd.DataFrame, list[Submitted]]:
    """Replace worst-case rows by submitted images that the model misclassifies if ours did not succeed.

    They count at every worst-case radius that is not below theirs, and `broken_by` has the submitter. The table is
    unchanged, and the list empty, if no image belongs to these rows.
    """
    if submitted is None:
        return table, []
    worst = table[(table["attack"] == WORST_CASE) & (table["epsilon"] >= submitted.epsilon - 1e-9)]
    # Images submitted for one finding take precedence over those for the image.
    keys = [name if name in submitted.images else name.rpartition("#")[0] or name for name in worst["sample_id"]]
    rows = worst[np.array([key in submitted.images for key in keys])]
    if not len(rows):
        return table, []
    images = [submitted.images[key] for key in keys if key in submitted.images]
    logits, right_share = _predict_submitted(model, images, rows, device)
    wrong = logits.argmax(1) != rows["label"].to_numpy()
    ours = np.stack(rows["logits"].tolist()).argmax(1) != rows["label"].to_numpy()
    alone = wrong & ~ours
    table = table.assign(broken_by=table["broken_by"].fillna(""), logits=table["logits"].copy())
    for row in np.flatnonzero(alone):
        index = rows.index[int(row)]
        table.at[index, "logits"], table.at[index, "broken_by"] = logits[row], submitted.by
        if right_share is not None:
            table.at[index, RIGHT_SHARE] = right_share[row]
    first = rows["epsilon"].to_numpy() == rows["epsilon"].min()
    bootstrap = statistics.Bootstrap.over(rows["group"].to_numpy()[first])
    shares = bootstrap.means(~wrong[first])
    low, high = statistics.share_interval(bootstrap, shares)
    result = Submitted(
        by=submitted.by,
        sha256=atomic.checksum(submitted.path),
        epsilon=submitted.epsilon,
        n=int(first.sum()),
        accuracy=Share(value=shares[0], ci=(low, high)),
        found_alone=int(alone[first].sum()),
        missed=int((ours & ~wrong)[first].sum()),
    )
    return table, [result]


def _predict_submitted(
    model: nn.Module, images: list[torch.Tensor], rows: pd.DataFrame, device: torch.device
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return logits (N, C) as under worst-case, and for a random model the share of draws that are right (N,)."""
    logits, shares = list[np.ndarray](), list[np.ndarray]()
    for start in range(0, len(images), 64):
        batch = torch.stack(images[start : start + 64]).to(device)
        labels = torch.tensor(rows["label"].to_list()[start : start + 64], device=device)
        with torch.no_grad(), preserve_state(model):
            torch.manual_seed(start)  # the same draws each time
            output, share = evaluation.predict_logits(model, batch, labels, at_worst=True)
        logits.append(output.cpu().numpy())
        shares += [] if share is None else [share]
    return np.concatenate(logits), np.concatenate(shares) if shares else None


def label_answers(
    dataset: Dataset | None, answers: pd.DataFrame | None, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the logits of the images that have an answer, and their labels, both (N, F)."""
    if dataset is None or answers is None:
        return None
    rows = pd.Index(dataset.sample_ids).get_indexer(answers["sample_id"])
    return logits_of(answers), multilabel.labelled_findings(dataset.table, names)[rows]


def _describe_finding(name: str, labels: np.ndarray, threshold: Threshold) -> Finding:
    labelled, positives, why = int(np.isfinite(labels).sum()), int((labels == 1).sum()), ""
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
    title = f"attacks on {names[index]} at its threshold ({index + 1} of {len(names)})"
    options = {"carry_out": runner, "keep": keep, "title": title, "parts": predictor.parts / f"finding{index}"}
    examined = predictor.under_test(evaluated, multilabel.STATES)
    table = predictor.predict(examined, data, attacks, clean=not attacks, **options)
    guards, few = audit.exam.guards, max(FEWEST_GUARDED, audit.exam.guards.images // len(names))
    guards = guards.model_copy(update={"images": min(few, guards.images)})
    tried = try_guards(runner, data, table, guards, surrogate=surrogate)
    return table[table["attack"] != CLEAN], evaluated, tried


def _find_remedies(
    audit: Audit, report: EntryReport, answers: pd.DataFrame, truth: np.ndarray, findings: Sequence[Finding]
) -> list[str]:
    """Return what to change in the model file, from the clean answers and, on some images, from other inputs."""
    clean = answers[(answers["attack"] == CLEAN).to_numpy()]
    images = pd.Index(audit.dataset.sample_ids).get_indexer(clean["sample_id"])
    cuts = np.array([operating_points.cut(finding.threshold or 0.5) for finding in findings])
    margins, groups = logits_of(clean) - cuts, clean["group"].to_numpy(dtype=str)
    one = declaration_check.FindingAnswers(truth[images], margins, groups)
    remedies = [declaration_check.find_other_names(audit.subject.classes, one, table=_score_file(audit))]
    if report.model is not None:
        rows = declaration_check.select_rows(one.truth, audit.exam.entry_checks.images)
        pixels = load_pixels(audit.dataset, images[rows], audit.subject.device)
        with preserve_state(report.model):
            remedies.append(declaration_check.find_other_input(report.model, pixels, cuts, one.select(rows)))
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
    text = f"of {len(clean)} findings none is ranked worse than by chance; no other {tried} surely does better"
    return Check("declaration", True, text, grave=True)


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
