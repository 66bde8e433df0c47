"""`trustcxr explain` of a model file: what is measured of a run's maps, of any model, on the images of its audit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trustcxr.audit import saliency_support
from trustcxr.audit.audit_data import first_images, open_images
from trustcxr.audit.entry_checks import check_kind
from trustcxr.audit.explain_multilabel import ExplainedFinding, check_finding, no_better, select_finding
from trustcxr.audit.formats import ExternalModel
from trustcxr.audit.formats.loading import open_on
from trustcxr.audit.formats.wrapper import WrappedModel
from trustcxr.audit.identity import Audit, about, check_empty
from trustcxr.audit.run_audit import open_model
from trustcxr.console import log
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.model_protocol import ModelUnderTest
from trustcxr.evaluation.run_figures import describe
from trustcxr.explain import evaluate
from trustcxr.explain.lesion_effect import select_annotated
from trustcxr.models.preserve_state import is_randomised
from trustcxr.recipes.evaluation_recipe import ExplanationRecipe
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.protocol import load_exam
from trustcxr.recipes.run_recipe import Listing
from trustcxr.runs import explain_run
from trustcxr.runs.provenance import Results, data_hash
from trustcxr.storage import atomic, layout, schemas
from trustcxr.storage.locks import folder_lock
from trustcxr.storage.schemas import RunDocument

GATE = 120  # images on which a conversion is held against what it was made from


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
    """Saliency of what a model file names, measured on a data set: the document of metrics.json, written into `out`.

    The images are those that an audit examines; thresholds are tuned on the data's validation split where it has one.
    `options`: keys of ExplanationRecipe. `finding`: of a model with a sigmoid for each the one to explain, on the
    images that have it; the one that images with a lesion mask have unless said. Asked again, `out` is found current.
    UserError
    for a model that these methods cannot explain, images without masks, or an `out` that holds something else.
    """
    wanted = validate(ExplanationRecipe, dict(options or {}), "options")
    evaluate.check_options(wanted)
    subject = open_model(model, trust_code=trust_code)
    assert isinstance(subject, ExternalModel)  # a run's folder goes to run_folder.explain
    check_finding(subject, finding)
    _explained(subject, wanted)
    check_empty(out, {"an audit": layout.AUDIT_FILE})
    radiographs = open_images(subject, data, split, labels, listing)
    evaluate.annotated(radiographs.examined)
    shown, _ = first_images(radiographs.examined, GATE, subject.device)
    subject, _ = open_on(subject, shown)
    check_kind(_explained(subject, wanted).model, shown, subject.name)
    whole = Audit(subject, radiographs, load_exam())
    asked = _asked(whole, _explained(subject, wanted), finding)
    run, held = asked.run, asked.validation
    if held is not None and not len(select_annotated(held, np.flatnonzero(held.has_mask("infection")))):
        held = None  # no threshold can be tuned on them
    with folder_lock(out):
        document = _begun(whole, asked, out)
        left_out = saliency_support.left_out(subject, saliency_support.check_supported(subject, wanted.methods))
        document.notes = [*asked.notes, *_notes(run, radiographs.examined), *left_out.notes()]
        if asked.name:
            document.notes[1:1] = no_better(asked.name, asked.images, document)
        untuned = (
            "validation images are the images looked at"
            if radiographs.of_validation
            else "no validation image has masks"
        )
        for note in [*document.notes, *([] if held is not None else [f"no threshold is tuned: {untuned}"])]:
            log(note)
        explain_run.measure(
            Results(out, _key(whole, asked), replace=False),
            run,
            asked.images,
            wanted,
            lambda: {} if held is None else evaluate.tune(run, held, wanted.methods),
            data=data_hash(radiographs.examined, "infection", "lung"),
            tuned=""
            if held is None or radiographs.validation is None
            else data_hash(radiographs.validation, "infection", "lung"),
            left_out=left_out,
            train=None if radiographs.taught is None else radiographs.taught.training,
        )
        images = len(select_annotated(asked.images, np.arange(len(asked.images))))
        explain_run.add_tables(document, out, images=images, resamples=explain_run.RESAMPLES)
        atomic.write_json(out / layout.METRICS_FILE, document)
        return document


def _explained(subject: ExternalModel, options: ExplanationRecipe) -> ModelUnderTest:
    """What was given as these methods explain it; UserError where they cannot."""
    run = ModelUnderTest(
        subject.name, saliency_support.check_supported(subject, options.methods), subject.classes, subject.device
    )
    evaluate.check_methods(run, options.methods)
    return run


def _asked(whole: Audit, run: ModelUnderTest, finding: str | None) -> ExplainedFinding:
    subject, images = whole.subject, whole.images
    assert isinstance(subject, ExternalModel)
    if subject.kind != "sigmoid":
        return ExplainedFinding("", run, images.examined, images.validation)
    assert isinstance(run.model, WrappedModel)
    return select_finding(subject, run.model, images, finding, at_once=whole.at_once)


def _key(whole: Audit, asked: ExplainedFinding) -> str:
    """Return a checksum of the model and the images, and the finding."""
    return f"{whole.key}, {asked.name}" if asked.name else whole.key


def _begun(whole: Audit, asked: ExplainedFinding, out: Path) -> RunDocument:
    """metrics.json as it stands in `out`, else as images are without any map; UserError where it is of something else.

    It is there before any map is, so that no map of another model or of other images is ever beside these.
    """
    path, key = out / layout.METRICS_FILE, _key(whole, asked)
    if path.is_file():
        before = schemas.read_schema(RunDocument, path)
        if before.examination != key:
            what = (
                f"results of {before.run or 'something else'}, of which the model, the images, the finding or the "
                "version are others"
            )
            raise UserError(f"{out}: holds {what}; choose another --out")
        return before
    check_empty(out, {"maps of which nothing is known": layout.SALIENCY_FILE})
    table = evaluation.predict(asked.run, asked.images, views=not asked.name, at_once=whole.at_once)
    document = describe(asked.run, table, resamples=explain_run.RESAMPLES)
    document.images, document.examination, document.finding = whole.dataset.fingerprint, key, asked.name
    document.given = about(whole.subject)
    atomic.write_table(out / layout.PREDICTIONS_FILE, table)
    atomic.write_json(path, document)
    return document


def _notes(run: ModelUnderTest, images: Dataset) -> list[str]:
    """What a reader must know first: of the images as they were read, and of how the model answers."""
    notes = [*images.notes]
    if is_randomised(run.model, first_images(images, 1, run.device)[0]):
        notes.append(f"{run.name} answers at random: each map is of one draw")
    return notes
