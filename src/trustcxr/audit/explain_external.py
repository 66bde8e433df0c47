"""Measure the saliency maps of an external model on the images of its audit: `trustcxr explain` of a model file.

Of a model with one sigmoid a finding, one finding is explained, as a model of two classes, on the images that have it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from trustcxr.audit import measure, multilabel
from trustcxr.audit.audit_data import Audit, OneFinding, check_out_folder, first_images, open_images
from trustcxr.audit.entry_checks import check_kind
from trustcxr.audit.formats import ExternalModel
from trustcxr.audit.formats.loading import ExportedNet, verify_conversion
from trustcxr.audit.formats.wrapper import WrappedModel
from trustcxr.audit.subject import describe_model, is_multilabel, open_model
from trustcxr.console import log
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError, unknown
from trustcxr.evaluation import operating_points
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.run_figures import describe
from trustcxr.evaluation.trained_run import ModelUnderTest
from trustcxr.explain import evaluate, randomisation
from trustcxr.explain.base import LeftOut
from trustcxr.explain.lesion_effect import select_annotated
from trustcxr.explain.methods import COMBINE, parse
from trustcxr.models.feature_maps import before_mixing
from trustcxr.models.preserve_state import is_randomised
from trustcxr.recipes.evaluation_recipe import ExplanationRecipe
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.protocol import load_exam
from trustcxr.recipes.run_recipe import Listing
from trustcxr.registry import SALIENCY, Method
from trustcxr.runs import explain_run
from trustcxr.runs.provenance import Results, data_hash
from trustcxr.runs.test_data import Source
from trustcxr.statistics import format_probability
from trustcxr.storage import atomic, layout, schemas
from trustcxr.storage.locks import folder_lock
from trustcxr.storage.schemas import RunDocument

VERIFIED = 120  # images on which a conversion is compared with its original


class ExplainedFinding(NamedTuple):
    """The model and images to explain; `name` is the finding, empty for a model of classes."""

    name: str
    run: ModelUnderTest
    images: Dataset
    validation: Dataset | None
    notes: tuple[str, ...] = ()


def explain(
    model: str | Path,
    data: Path,
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    split: str | None = None,
    labels: Mapping[str, str | None] | None = None,
    listing: Listing | None = None,
    trust_code: bool = False,
    finding: str | None = None,
) -> RunDocument:
    """Measure the saliency of an external model on a data set, write into `out`, and return metrics.json.

    Images are as in an audit, thresholds are tuned on the validation split, and current results are not computed again.
    `options` are keys of ExplanationRecipe; `finding` is the one to explain of a model with one sigmoid each, else the
    only one that images with a lesion mask have. Raises UserError if the model cannot be explained so, or `out` has
    others.
    """
    recipe = validate(ExplanationRecipe, dict(options or {}), "options")
    evaluate.check_options(recipe)
    subject = open_model(model, trust_code=trust_code)
    assert isinstance(subject, ExternalModel)  # runs have their own command
    if finding is not None:
        _index(subject, finding)
    _examined(subject, recipe.methods)
    check_out_folder(out, {"an audit": layout.AUDIT_FILE})
    images = open_images(subject, Source(data, split, labels, listing))
    evaluate.find_annotated(images.examined)
    shown, _ = first_images(images.examined, VERIFIED, subject.device)
    subject, _ = verify_conversion(subject, shown)
    examined = _examined(subject, recipe.methods)
    assert isinstance(examined.model, WrappedModel)
    check_kind(examined.model, shown, subject.name)
    audit = Audit(subject, images, load_exam())
    target = ExplainedFinding("", examined, images.examined, images.validation)
    if is_multilabel(subject):
        target = select_finding(audit, examined.model, finding)
    validation, whole = target.validation, images.validation
    if validation is None or not len(select_annotated(validation, np.flatnonzero(validation.has_mask("infection")))):
        validation = whole = None  # without masks no threshold can be tuned
    key = f"{audit.key}, {target.name}" if target.name else audit.key
    with folder_lock(out):
        document = _start(audit, target, out, key)
        left_out = find_left_out(subject, examined.model)
        document.notes = [*target.notes, *images.examined.notes]
        if is_randomised(target.run.model, first_images(images.examined, 1, target.run.device)[0]):
            document.notes.append(f"{target.run.name} answers at random: each map is of one draw")
        document.notes += left_out.notes()
        right, constant = document.clean.accuracy.value, document.clean.constant_answer
        if target.name and right is not None and constant is not None and right <= constant:
            state = multilabel.STATES[int(np.mean(target.images.labels) > 0.5)]
            text = f"{target.name}: accuracy ({right:.1%}) is no better than that of a constant answer (always {state}"
            document.notes.insert(1, f"{text}: {constant:.1%}), so its maps are not informative")
        untuned = [] if validation is not None else [f"no threshold is tuned: {images.why_no_threshold('masks')}"]
        for note in [*document.notes, *untuned]:
            log(note)
        explain_run.measure(
            Results(out, key, replace=False),
            target.run,
            target.images,
            recipe,
            lambda: {} if validation is None else evaluate.tune_thresholds(target.run, validation, recipe.methods),
            data=data_hash(images.examined, "infection", "lung"),
            tuned="" if whole is None else data_hash(whole, "infection", "lung"),
            left_out=left_out,
            train=None if images.surrogate is None else images.surrogate.whole,
        )
        count = len(select_annotated(target.images, np.arange(len(target.images))))
        explain_run.add_tables(document, out, images=count, resamples=explain_run.RESAMPLES)
        atomic.write_json(out / layout.METRICS_FILE, document)
        return document


def _examined(subject: ExternalModel, methods: Sequence[str]) -> ModelUnderTest:
    """Return the model for these methods; UserError if they cannot explain it."""
    run = ModelUnderTest(subject.name, check_supported(subject, methods), subject.classes, subject.device)
    evaluate.check_methods(run, methods)
    return run


def _start(audit: Audit, target: ExplainedFinding, out: Path, key: str) -> RunDocument:
    """Return the metrics.json in `out`, or write one before any map; UserError if it is of something else."""
    path = out / layout.METRICS_FILE
    if path.is_file():
        document = schemas.read_schema(RunDocument, path)
        if document.examination != key:
            what = f"results of {document.run or 'something else'}"
            raise UserError(f"{out}: holds {what}: other model, images, finding or version; choose another --out")
        return document
    check_out_folder(out, {"maps of which nothing is known": layout.SALIENCY_FILE})
    table = evaluation.predict(target.run, target.images, views=not target.name, at_once=audit.parallel)
    document = describe(target.run, table, resamples=explain_run.RESAMPLES)
    document.images, document.examination, document.finding = audit.dataset.fingerprint, key, target.name
    document.external_model = describe_model(audit.subject)
    atomic.write_table(out / layout.PREDICTIONS_FILE, table)
    atomic.write_json(path, document)
    return document


def check_supported(subject: ExternalModel, methods: Sequence[str]) -> WrappedModel:
    """Return the model to explain; UserError if one of these methods cannot explain it."""
    name, model = subject.name, subject.model
    if model is None:
        raise UserError(f"{subject.origin.path}: only scores of {name} are available. A map needs the model: give it")
    gradient_methods = [typed for typed in methods if SALIENCY[Method.parse(typed).base].gradients]
    if subject.origin.gradients == "none" and gradient_methods:
        raise UserError(
            f"{name}: torch can follow no gradients in it, and {' and '.join(gradient_methods)} cannot do without; "
            f"name methods that can: {_pixel_methods(gradients=False)}"
        )
    cams = [typed for typed in methods if parse(typed)[0] in COMBINE and parse(typed)[1] in (None, -1, "cam_layer")]
    if cams and model.cam_call is None and before_mixing(model.net) is None:
        raise UserError(
            f"{name}: torch sees no last feature map in it, which {' and '.join(cams)} would read; name methods that "
            f"read none: {_pixel_methods(gradients=True)}"
        )
    return model


def _pixel_methods(*, gradients: bool) -> str:
    """Return the options of the methods that work pixel by pixel, with or without those that need gradients."""
    pixels = [s for s in SALIENCY.values() if s.function.startswith("attribution:")]
    return " or ".join(f"--method {s.name}" for s in pixels if gradients or not s.gradients)


def find_left_out(subject: ExternalModel, model: WrappedModel) -> LeftOut:
    """Return what cannot be measured of a model that `check_supported` accepts."""
    attacks = weights = cascade = ""
    if subject.origin.gradients == "none":
        attacks = "stability under FGSM and PGD is not measured: torch can follow no gradients in the model"
    try:
        randomisation.random_network(model)
    except UserError as problem:
        weights = f"no map is held against random weights, so none is said to show what was learnt ({problem})"
    if not weights and any(isinstance(module, torch.jit.ScriptModule | ExportedNet) for module in model.modules()):
        cascade = "maps are not followed as the network is made random part by part: its parts are not called one by "
        cascade += "one"
    return LeftOut(attacks, weights, cascade)


def select_finding(audit: Audit, model: WrappedModel, finding: str | None) -> ExplainedFinding:
    """Select a finding, by default the only one that images with a mask have; UserError if no image is known to."""
    subject, images = audit.subject, audit.images
    assert isinstance(subject, ExternalModel)
    if finding is not None:
        index = _index(subject, finding)
    else:
        labels = multilabel.labelled_findings(images.examined.table, subject.classes)
        present = np.flatnonzero((labels[evaluate.find_annotated(images.examined)] == 1).any(0))
        if len(present) != 1:
            names = " and ".join(subject.classes[k] for k in present)
            which = f"images with a mask have {names}" if names else "no image with a mask is known to have any"
            which = f"has a sigmoid for each finding, and {which}"
            raise UserError(f"{subject.name}: {which}: say which with --finding NAME")
        index = int(present[0])
    name = subject.classes[index]
    examined = _labelled(images.examined, subject, index)
    if examined is None or not len(select_annotated(examined, np.arange(len(examined)))):
        raise UserError(f"{images.examined.where}: of no image it is known that it has {name}; say so with --label")
    evaluate.find_annotated(examined)
    answers = None
    if images.validation is not None and subject.output.thresholds is None:
        full = ModelUnderTest(subject.name, model, subject.classes, subject.device)
        table = evaluation.predict(full, images.validation, views=False, at_once=audit.parallel)
        answers = measure.label_answers(images.validation, table, subject.classes)
    threshold = multilabel.threshold_of(subject.output, index, answers, images.why_no_threshold())
    assert threshold.value is not None
    decision = model.of_finding(index, operating_points.cut(threshold.value))
    run = ModelUnderTest(f"{subject.name}, {name}", decision, multilabel.STATES, subject.device)
    validation = None if images.validation is None else _labelled(images.validation, subject, index)
    note = (
        f"{name} is explained on the images that have it; it counts as there from {format_probability(threshold.value)}"
        f" on, {threshold.origin}, and probabilities are counted from there: at it they are 0.5"
    )
    return ExplainedFinding(name, run, examined, validation, (note,))


def _index(subject: ExternalModel, finding: str) -> int:
    """Return the index of a finding; UserError if the model does not have it, or answers one class of several."""
    if subject.output.kind != "sigmoid":
        raise UserError(f"--finding {finding}: {subject.name} answers with one of its classes: leave it out")
    lowered = [name.lower() for name in subject.classes]
    if finding.lower() not in lowered:
        raise unknown("finding", finding, subject.classes)
    return lowered.index(finding.lower())


def _labelled(images: Dataset, subject: ExternalModel, index: int) -> Dataset | None:
    """Return the images with a label of the finding as a data set; None without any."""
    labels = multilabel.labelled_findings(images.table, subject.classes)[:, index]
    rows = np.flatnonzero(np.isfinite(labels))
    return OneFinding(images, rows, labels[rows]) if len(rows) else None
