"""`trustcxr audit`: the whole examination of any model on a folder of images, as audit.json."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from trustcxr.audit import measure, reliability, submitted
from trustcxr.audit.attack_runner import needs_surrogate
from trustcxr.audit.audit_data import AuditImages, first_images, open_images
from trustcxr.audit.entry_checks import Check, EntryReport, run_entry_checks
from trustcxr.audit.formats import ExternalModel
from trustcxr.audit.formats.loading import TABLES
from trustcxr.audit.formats.resolve import SUFFIXES
from trustcxr.audit.identity import Audit, about, check_empty, is_another
from trustcxr.audit.subject import Subject, load_model
from trustcxr.console import log
from trustcxr.errors import UserError, unknown
from trustcxr.recipes.protocol import ExamRecipe, load_exam
from trustcxr.recipes.run_recipe import Listing
from trustcxr.registry import WORST_CASE
from trustcxr.runs.test_data import check_out
from trustcxr.storage import atomic, layout
from trustcxr.storage.locks import LOCK_FILE, folder_lock
from trustcxr.storage.os_errors import shell_quote
from trustcxr.storage.schemas import AuditDocument, read_schema

PARTS = ".parts"  # rows of finished batches, until all are there
_WRITTEN = (layout.PREDICTIONS_FILE, layout.ONE_VS_REST_FILE, layout.VALIDATION_FILE, "report.*", "model_card.md")


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

    `adversarial`: a file of images that somebody hands in (`evaluation.submitted`), judged beside our own attacks.
    Started again after a cut, it goes on; where the same was examined before, that is the answer.
    Raises UserError for a model or data that cannot be had, or an `out` that holds something else or that another
    process writes to.
    """
    exam = load_exam().changed(tuple(attacks), tuple(epsilons))
    subject = open_model(model, trust_code=trust_code)
    check_out(out, Path(data))
    check_empty(out, {"results of a run": layout.METRICS_FILE})
    layout.check_foreign(out, _WRITTEN, (layout.AUDIT_FILE, PARTS, LOCK_FILE))
    images = open_images(subject, data, split, labels, listing)
    whole = Audit(
        subject, images, exam, None if adversarial is None else _submitted(adversarial, subject, images, exam)
    )
    key, path = whole.key, out / layout.AUDIT_FILE
    with folder_lock(out):
        document = read_schema(AuditDocument, path) if path.is_file() else None
        if document is not None and document.examination == key:
            log(f"{out}: already examined")
        else:
            if document is not None:
                _check_same(document, whole, out)
                log(f"{out}: model, data or options changed: examined again")
            document = _document(whole, out, key)
            atomic.write_json(path, document)
        shutil.rmtree(out / PARTS, ignore_errors=True)
        return document


def _submitted(path: Path, subject: Subject, images: AuditImages, exam: ExamRecipe) -> submitted.Images:
    """Read adversarial images that somebody made; UserError if they say nothing of this model or examination."""
    findings = subject.classes if isinstance(subject, ExternalModel) and subject.kind == "sigmoid" else ()
    handed = submitted.read_submitted(path, images.examined, findings)
    if subject.model is None:
        raise UserError(f"{path}: only scores of {subject.name} were given, so adversarial images say nothing")
    submitted.check_radius(handed, exam)
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
        place = shell_quote(path.with_name("model.yaml") if path.exists() else "model.yaml")
        raise UserError(f"{model}: say what it wants and answers: trustcxr audit {shell_quote(model)} --init > {place}")
    if path.is_file() and path.suffix not in layout.MODEL_FILES:
        raise UserError(f"{model}: {unknown('kind of model', path.suffix, (*layout.MODEL_FILES, *kinds))}")
    return load_model(model, trust_code=trust_code)


def _is_bare(model: str) -> bool:
    """Whether this is a model itself, a file or module:function, and not the model file that describes it."""
    suffix = Path(model).suffix
    code = ":" in model and suffix not in layout.MODEL_FILES and not Path(model).exists()
    return code or suffix in (*SUFFIXES, *TABLES)


def _document(whole: Audit, out: Path, key: str) -> AuditDocument:
    subject, dataset, exam = whole.subject, whole.dataset, whole.exam
    shown, labels = first_images(dataset, exam.entry_checks.images, subject.device)
    door = run_entry_checks(
        subject, shown, labels, epsilon=exam.entry_checks.epsilon, planted=exam.entry_checks.planted
    )
    examine = measure.finding_figures if whole.of_findings else measure.classes
    measured = examine(whole, door, shown, out / PARTS / key)
    document = AuditDocument.of(
        measured.figures,
        model=about(door.subject or subject),
        protocol=exam.version,
        data=whole.data(measured.images),
        examination=key,
    )
    if dataset.notes:
        document.notes = list(dataset.notes)
    document.operating_points, document.subgroups = measured.points, measured.divisions
    document.findings, document.submitted = measured.findings, measured.handed
    checks = _on_all_images([*door.checks, *_surrogate(whole, door, len(shown))], measured.checks)
    reliability.withdraw(document, door)
    checks += reliability.compared(document)
    document.entry_checks = [check.document() for check in checks]
    document.unreliable, document.reasons = reliability.verdict(document, checks, door)
    (out / layout.AUDIT_FILE).unlink(missing_ok=True)  # no table stands beside the figures of another
    tables = (measured.table, measured.aimed, measured.validation)
    for name, table in zip(
        (layout.PREDICTIONS_FILE, layout.ONE_VS_REST_FILE, layout.VALIDATION_FILE), tables, strict=True
    ):
        if table is not None:
            atomic.write_table(out / name, table)
    return document


def _on_all_images(asked: Sequence[Check], measured: Sequence[Check]) -> list[Check]:
    """The door's checks and those of all images: what the latter say of the declaration stands in place of the door's.

    The door asks about some images, which may not tell an order of the classes; a remedy that it found stands.
    """
    later = any(check.check == "declaration" for check in measured)
    remedied = any(check.check == "declaration" and check.remedied for check in asked)
    kept = [check for check in asked if check.check != "declaration" or remedied or not later]
    return [*kept, *(check for check in measured if check.check != "declaration" or not remedied)]


def _surrogate(whole: Audit, door: EntryReport, shown: int) -> list[Check]:
    """What a surrogate learned from, where one was made."""
    asked = any(attack.name == WORST_CASE for attack in whole.attacks(gradients=door.gradients))
    if door.traits is None or not asked or not needs_surrogate(door.traits, door.gradients):
        return []
    text = "a surrogate, whose adversarial images are tried on the model, learned to answer as it does from "
    if (taught := whole.images.taught) is not None:
        text += f"{len(taught.rows)} images of the split {taught.training.split}, none of a patient who is examined"
    else:
        text += f"{shown} of the images that are examined, since these data have no training images of other patients"
    return [Check("surrogate", True, text)]
