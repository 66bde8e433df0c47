"""`trustcxr explain` of a model file: what is measured of a run's maps, of any model, on the films of its audit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trustcxr.console import say
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.door import check_kind
from trustcxr.evaluation.given import Examined
from trustcxr.evaluation.summary import describe
from trustcxr.explain import given, scores
from trustcxr.explain.lesions import asked_of
from trustcxr.models.adapters import Given
from trustcxr.models.adapters.adapted import Adapted
from trustcxr.models.adapters.loading import held_on
from trustcxr.models.untouched import is_randomised
from trustcxr.recipes.exam import load_exam
from trustcxr.recipes.run import Listing
from trustcxr.recipes.testing import ExplanationRecipe
from trustcxr.recipes.validation import validate
from trustcxr.results import documents, files, folders
from trustcxr.results.documents import RunDocument
from trustcxr.results.locks import holding
from trustcxr.study import beside, explaining, made
from trustcxr.study.audit import open_model
from trustcxr.study.audit_data import at_the_door, open_films
from trustcxr.study.audited import Audit, about, refuse_held
from trustcxr.study.explained_finding import OfFinding, check_finding, no_better, of_finding

GATE = 120  # films on which a conversion is held against what it was made from


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

    The films are those that an audit examines; thresholds are tuned on the data's validation split where it has one.
    `options`: keys of ExplanationRecipe. `finding`: of a model with a sigmoid for each the one to explain, on the films
    that have it; the one that films with a lesion mask have unless said. Other methods measured in `out` before are
    kept. Raises UserError for a model that these methods cannot explain, films without masks, or an `out` that holds
    something else.
    """
    wanted = validate(ExplanationRecipe, dict(options or {}), "options")
    scores.check_options(wanted)
    subject = open_model(model, trust_code=trust_code)
    assert isinstance(subject, Given)  # a run's folder goes to run_folder.explain
    check_finding(subject, finding)
    _explained(subject, wanted)
    refuse_held(out, {"an audit": folders.AUDIT_FILE})
    films = open_films(subject, data, split, labels, listing)
    scores.annotated(films.examined)
    shown, _ = at_the_door(films.examined, GATE, subject.device)
    subject, _ = held_on(subject, shown)
    check_kind(_explained(subject, wanted).model, shown, subject.name)
    whole = Audit(subject, films, load_exam())
    asked = _asked(whole, _explained(subject, wanted), finding)
    run, held = asked.run, asked.validation
    if held is not None and not len(asked_of(held, np.flatnonzero(held.has_mask("infection")))):
        held = None  # no threshold can be tuned on them
    with holding(out):
        document = _begun(whole, asked, out)
        left_out = given.left_out(subject, given.check(subject, wanted.methods))
        document.notes = [*asked.notes, *_notes(run, films.examined), *left_out.notes()]
        if asked.name:
            document.notes[1:1] = no_better(asked.name, asked.films, document)
        untuned = "validation images are the films looked at" if films.of_validation else "no validation film has masks"
        for note in [*document.notes, *([] if held is not None else [f"no threshold is tuned: {untuned}"])]:
            say(note)
        explaining.measure(
            out,
            run,
            asked.films,
            wanted,
            lambda: {} if held is None else scores.tune(run, held, wanted.methods),
            tuned=held is not None,
            left_out=left_out,
            train=None if films.taught is None else films.taught.training,
        )
        images = len(asked_of(asked.films, np.arange(len(asked.films))))
        beside.describe(document, out, images=images, resamples=made.RESAMPLES)
        files.write_json(out / folders.METRICS_FILE, document)
        made.note_metrics(out, document, made.RESAMPLES)
        return document


def _explained(subject: Given, options: ExplanationRecipe) -> Examined:
    """What was given as these methods explain it; UserError where they cannot."""
    run = Examined(subject.name, given.check(subject, options.methods), subject.classes, subject.device)
    scores.check(run, options.methods)
    return run


def _asked(whole: Audit, run: Examined, finding: str | None) -> OfFinding:
    subject, films = whole.subject, whole.films
    assert isinstance(subject, Given)
    if subject.kind != "sigmoid":
        return OfFinding("", run, films.examined, films.validation)
    assert isinstance(run.model, Adapted)
    return of_finding(subject, run.model, films, finding, at_once=whole.at_once)


def _begun(whole: Audit, asked: OfFinding, out: Path) -> RunDocument:
    """metrics.json as it stands in `out`, else as films are without any map; UserError where it is of something else.

    It is there before any map is, so that no map of another model or of other films is ever beside these.
    """
    path, key = out / folders.METRICS_FILE, f"{whole.key}, {asked.name}" if asked.name else whole.key
    if path.is_file():
        before = documents.read(RunDocument, path)
        if before.examination != key:
            what = (
                f"results of {before.run or 'something else'}, of which the model, the films, the finding or the "
                "version are others"
            )
            raise UserError(f"{out}: holds {what}; choose another --out")
        return before
    refuse_held(out, {"maps of which nothing is known": folders.SALIENCY_FILE})
    table = evaluation.predict(asked.run, asked.films, views=not asked.name, at_once=whole.at_once)
    document = describe(asked.run, table, resamples=made.RESAMPLES)
    document.films, document.examination, document.finding = whole.dataset.fingerprint, key, asked.name
    document.given = about(whole.subject)
    files.write_table(out / folders.PREDICTIONS_FILE, table)
    files.write_json(path, document)
    return document


def _notes(run: Examined, films: Dataset) -> list[str]:
    """What a reader must know first: of the films as they were read, and of how the model answers."""
    notes = [*films.notes]
    if is_randomised(run.model, at_the_door(films, 1, run.device)[0]):
        notes.append(f"{run.name} answers at random: each map is of one draw")
    return notes
