"""`trustcxr audit`: the whole examination of any model on a folder of images, as audit.json."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from trustcxr.catalogue import WORST_CASE
from trustcxr.console import say
from trustcxr.errors import UserError, unknown
from trustcxr.evaluation import handed_in, reliance
from trustcxr.evaluation.carried_out import needs_surrogate
from trustcxr.evaluation.door import Check, Door, examine_at_the_door
from trustcxr.evaluation.given import Subject, load_model
from trustcxr.models.adapters import Given
from trustcxr.models.adapters.loading import TABLES
from trustcxr.models.adapters.sources import SUFFIXES
from trustcxr.recipes.exam import ExamRecipe, load_exam
from trustcxr.recipes.run import Listing
from trustcxr.results import files, folders
from trustcxr.results.disk import as_typed
from trustcxr.results.documents import AuditDocument, read
from trustcxr.results.locks import LOCK_FILE, holding
from trustcxr.study import audit_measures
from trustcxr.study.audit_data import Films, at_the_door, open_films
from trustcxr.study.audited import Audit, about, is_another, refuse_held
from trustcxr.study.films import refuse_films

PARTS = ".parts"  # rows of finished batches, until all are there
_WRITTEN = (folders.PREDICTIONS_FILE, folders.AIMED_FILE, folders.VALIDATION_FILE, "report.*", "model_card.md")


def audit(
    model: str | Path,
    data: Path,
    out: Path,
    *,
    split: str | None = None,
    attacks: Sequence[str] = (),
    epsilons: Sequence[float] = (),
    labels: Mapping[str, str | None] | None = None,
    listing: Listing | None = None,
    trust_code: bool = False,
    adversarial: Path | None = None,
) -> AuditDocument:
    """Examine a model (a run's folder, or a model file) on a data set; the document of audit.json, written into `out`.

    `adversarial`: a file of images that somebody hands in (`evaluation.handed_in`), judged beside our own attacks.
    Started again after a cut, it goes on; where the same was examined before, that is the answer.
    Raises UserError for a model or data that cannot be had, or an `out` that holds something else or that another
    process writes to.
    """
    exam = load_exam().changed(tuple(attacks), tuple(epsilons))
    subject = open_model(model, trust_code=trust_code)
    refuse_films(out, Path(data))
    refuse_held(out, {"results of a run": folders.METRICS_FILE})
    folders.refuse_foreign(out, _WRITTEN, (folders.AUDIT_FILE, PARTS, LOCK_FILE))
    films = open_films(subject, data, split, labels, listing)
    whole = Audit(subject, films, exam, None if adversarial is None else _submitted(adversarial, subject, films, exam))
    key, path = whole.key, out / folders.AUDIT_FILE
    with holding(out):
        document = read(AuditDocument, path) if path.is_file() else None
        if document is not None and document.examination == key:
            say(f"{out}: already examined")
        else:
            if document is not None:
                _check_same(document, whole, out)
                say(f"{out}: model, data or options changed: examined again")
            document = _document(whole, out, key)
            files.write_json(path, document)
        shutil.rmtree(out / PARTS, ignore_errors=True)
        return document


def _submitted(path: Path, subject: Subject, films: Films, exam: ExamRecipe) -> handed_in.Images:
    """Read adversarial images that somebody made; UserError if they say nothing of this model or examination."""
    findings = subject.classes if isinstance(subject, Given) and subject.kind == "sigmoid" else ()
    handed = handed_in.read(path, films.examined, findings)
    if subject.model is None:
        raise UserError(f"{path}: only scores of {subject.name} were given, so adversarial images say nothing")
    handed_in.check_radius(handed, exam)
    return handed


def _check_same(before: AuditDocument, whole: Audit, out: Path) -> None:
    """Raise UserError if a folder's audit is of another model or data, or a whole one that a part would replace."""
    held, now = "", whole.data(None)
    if is_another(before.model, whole.subject):
        held = f"the audit of another model, {before.model.name}"
    elif before.data.name != now.name and not before.data.same_images(now):
        held = f"the audit on {before.data.name}, not on {now.name}"
    elif whole.exam.version is None and before.protocol is not None:
        held = f"a whole examination by {before.protocol}, which one with --attack or --epsilon would replace"
    if held:
        raise UserError(f"{out}: holds {held}; choose another --out")


def open_model(model: str | Path, *, trust_code: bool = False) -> Subject:
    """A run from its folder, else what a model file names; UserError for a model itself, without such a file."""
    if Path(model).is_dir():
        return load_model(model)
    path, kinds = Path(model), (*SUFFIXES, *TABLES)
    if path.suffix in kinds and not path.exists():
        raise UserError(f"{model}: no such file")
    if _is_bare(str(model)):
        # Beside the model, of which it says the name alone.
        place = as_typed(path.with_name("model.yaml") if path.exists() else "model.yaml")
        raise UserError(f"{model}: say what it wants and answers: trustcxr audit {as_typed(model)} --init > {place}")
    if path.is_file() and path.suffix not in folders.MODEL_FILES:
        raise UserError(f"{model}: {unknown('kind of model', path.suffix, (*folders.MODEL_FILES, *kinds))}")
    return load_model(model, trust_code=trust_code)


def _is_bare(model: str) -> bool:
    """Whether this is a model itself, a file or module:function, and not the model file that describes it."""
    suffix = Path(model).suffix
    code = ":" in model and suffix not in folders.MODEL_FILES and not Path(model).exists()
    return code or suffix in (*SUFFIXES, *TABLES)


def _document(whole: Audit, out: Path, key: str) -> AuditDocument:
    subject, dataset, exam = whole.subject, whole.dataset, whole.exam
    shown, labels = at_the_door(dataset, exam.gate.films, subject.device)
    door = examine_at_the_door(subject, shown, labels, epsilon=exam.gate.epsilon, planted=exam.gate.planted)
    examine = audit_measures.of_findings if whole.of_findings else audit_measures.classes
    measured = examine(whole, door, shown, out / PARTS / key)
    document = AuditDocument.of(
        measured.figures,
        model=about(door.subject or subject),
        protocol=exam.version,
        data=whole.data(measured.films),
        examination=key,
    )
    if dataset.notes:
        document.notes = list(dataset.notes)
    document.operating_points, document.subgroups = measured.points, measured.divisions
    document.findings, document.handed_in = measured.findings, measured.handed
    checks = _on_all_films([*door.checks, *_surrogate(whole, door, len(shown))], measured.checks)
    reliance.withdraw(document, door)
    checks += reliance.compared(document)
    document.gate = [check.document() for check in checks]
    document.unreliable, document.because = reliance.verdict(document, checks, door)
    (out / folders.AUDIT_FILE).unlink(missing_ok=True)  # no table stands beside the figures of another
    tables = (measured.table, measured.aimed, measured.validation)
    for name, table in zip(
        (folders.PREDICTIONS_FILE, folders.AIMED_FILE, folders.VALIDATION_FILE), tables, strict=True
    ):
        if table is not None:
            files.write_table(out / name, table)
    return document


def _on_all_films(asked: Sequence[Check], measured: Sequence[Check]) -> list[Check]:
    """The door's checks and those of all films: what the latter say of the declaration stands in place of the door's.

    The door asks about some films, which may not tell an order of the classes; a remedy that it found stands.
    """
    later = any(check.check == "declaration" for check in measured)
    remedied = any(check.check == "declaration" and check.remedied for check in asked)
    kept = [check for check in asked if check.check != "declaration" or remedied or not later]
    return [*kept, *(check for check in measured if check.check != "declaration" or not remedied)]


def _surrogate(whole: Audit, door: Door, shown: int) -> list[Check]:
    """What a surrogate learned from, where one was made."""
    asked = any(attack.name == WORST_CASE for attack in whole.attacks(gradients=door.gradients))
    if door.traits is None or not asked or not needs_surrogate(door.traits, door.gradients):
        return []
    text = "a surrogate, whose adversarial images are tried on the model, learned to answer as it does from "
    if (taught := whole.films.taught) is not None:
        text += f"{len(taught.rows)} films of the split {taught.training.split}, none of a patient who is examined"
    else:
        text += f"{shown} of the films that are examined, since these data have no training films of other patients"
    return [Check("surrogate", True, text)]
