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
from trustcxr.results.documents import AuditDocument, AuditedModel, read
from trustcxr.results.locks import LOCK_FILE, holding
from trustcxr.study import audit_measures, audit_stages
from trustcxr.study.audit_data import at_the_door, open_films
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
    _refuse_another(out, subject, exam)
    films = open_films(subject, data, split, labels, listing)
    findings = subject.classes if isinstance(subject, Given) and subject.kind == "sigmoid" else ()
    handed = None if adversarial is None else handed_in.read(adversarial, films.examined, findings)
    if handed is not None and subject.model is None:
        raise UserError(f"{adversarial}: only scores of {subject.name} were given, so adversarial images say nothing")
    if handed is not None:
        handed_in.check_radius(handed, exam)
    whole = Audit(subject, films, exam, handed)
    key, path = whole.key, out / folders.AUDIT_FILE
    with holding(out):
        if path.is_file() and (before := read(AuditDocument, path)).examination == key:
            say(f"{out}: already examined")
            shutil.rmtree(out / PARTS, ignore_errors=True)  # killed before they were removed
            return _known_by_files(before, whole, path)
        _refuse_other_films(path, whole)
        document = _document(whole, out, key)
        files.write_json(path, document)
        shutil.rmtree(out / PARTS, ignore_errors=True)
        return document


def _refuse_other_films(path: Path, whole: Audit) -> None:
    """UserError where an audit that is there is of another data set; of the same, changed since, it is made anew."""
    if not path.is_file():
        return
    before, now = read(AuditDocument, path).data, whole.data(None)
    if before.name not in ("", now.name) and not before.same_images(now):
        raise UserError(f"{path.parent}: holds the audit on {before.name}, not on {now.name}; choose another --out")
    say(f"{path.parent}: the model, the films or what is asked are others since: examined anew")


def _known_by_files(before: AuditDocument, whole: Audit, path: Path) -> AuditDocument:
    """An earlier audit of the same pixels, with the checksums of the films' files as they are now, written if new."""
    now = whole.data(before.data.n)
    if (now.files, now.lungs) != (before.data.files, before.data.lungs):
        before.data = now
        files.write_json(path, before)
    return before


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


def _refuse_another(out: Path, subject: Subject, exam: ExamRecipe) -> None:
    """UserError where `out` holds anything but an earlier audit of this model, or a whole one and this is a part."""
    refuse_held(out, {"results of a run": folders.METRICS_FILE})
    folders.refuse_foreign(out, _WRITTEN, (folders.AUDIT_FILE, PARTS, LOCK_FILE))
    path = out / folders.AUDIT_FILE
    if not path.is_file():
        return
    document = read(AuditDocument, path)
    if is_another(before := document.model, subject):
        raise UserError(f"{out}: holds the audit of another model, {before.name or before.path}; choose another --out")
    if exam.version is None and document.protocol is not None:
        raise UserError(
            f"{out}: holds a whole examination by {document.protocol}, which one with --attack or --epsilon would "
            "replace; choose another --out"
        )


def _is_bare(model: str) -> bool:
    """Whether this is a model itself, a file or module:function, and not the model file that describes it."""
    suffix = Path(model).suffix
    code = ":" in model and suffix not in folders.MODEL_FILES and not Path(model).exists()
    return code or suffix in (*SUFFIXES, *TABLES)


def _document(whole: Audit, out: Path, key: str) -> AuditDocument:
    subject, dataset, exam = whole.subject, whole.dataset, whole.exam
    shown, labels = at_the_door(dataset, exam.gate.films, subject.device)
    say(f"{subject.name}: {audit_stages.GATE}, on {len(shown)} images; what it finds says what follows")
    door = examine_at_the_door(subject, shown, labels, epsilon=exam.gate.epsilon, planted=exam.gate.planted)
    whole.stages.plan = audit_stages.planned(whole, door)
    sigmoids = isinstance(subject, Given) and subject.kind == "sigmoid"
    examine = audit_measures.of_findings if sigmoids else audit_measures.classes
    measured = examine(whole, door, shown, out / PARTS / key)
    document = AuditDocument.of(
        measured.figures,
        model=AuditedModel.model_validate(about(door.subject or subject)),
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
    files.write_table(out / folders.PREDICTIONS_FILE, measured.table)
    if measured.aimed is not None:
        files.write_table(out / folders.AIMED_FILE, measured.aimed)
    if measured.validation is not None:
        files.write_table(out / folders.VALIDATION_FILE, measured.validation)
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
    asked = whole.exam.attacks if door.gradients else whole.exam.without_gradients
    if door.traits is None or not any(attack.name == WORST_CASE for attack in asked):
        return []
    if not needs_surrogate(door.traits, door.gradients):
        return []
    text = "a surrogate, whose adversarial images are tried on the model, learned to answer as it does from "
    if (taught := whole.films.taught) is not None:
        text += f"{len(taught.rows)} films of the split {taught.training.split}, none of a patient who is examined"
    else:
        text += f"{shown} of the films that are examined, since these data have no training films of other patients"
    return [Check("surrogate", True, text)]
