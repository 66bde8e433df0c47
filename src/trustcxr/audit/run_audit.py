"""Audit any model on a folder of images and write audit.json: the command `trustcxr audit`."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from trustcxr.audit import facts, measure, multilabel, verdict
from trustcxr.audit.attack_runner import needs_surrogate
from trustcxr.audit.audit_data import Audit, check_out_folder, first_images, open_images
from trustcxr.audit.criteria import apply_criteria, choose_criteria
from trustcxr.audit.entry_checks import Check, EntryReport, compare_black_box, run_entry_checks
from trustcxr.audit.smallest_changes import find_smallest_changes
from trustcxr.audit.subject import describe_model, is_another, is_multilabel, open_model
from trustcxr.audit.submitted import check_radius, read_submitted
from trustcxr.console import log
from trustcxr.errors import UserError
from trustcxr.recipes.criteria_file import CriteriaRecipe, check_criteria
from trustcxr.recipes.exams import NEWEST
from trustcxr.recipes.protocol import load_exam
from trustcxr.recipes.run_recipe import Listing
from trustcxr.registry import BLACK_BOX, WORST_CASE
from trustcxr.runs.test_data import check_out
from trustcxr.storage import atomic, layout
from trustcxr.storage.locks import LOCK_FILE, folder_lock
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AttackResult, AuditDocument, MaskingVerdict, Share, read_schema
from trustcxr.storage.schemas.test_figures import CONSTANT

PARTS = ".parts"  # rows of finished batches, until all are finished
_WRITTEN = (
    *(layout.PREDICTIONS_FILE, layout.ONE_VS_REST_FILE, layout.VALIDATION_FILE, layout.FAILURES_FILE),
    *(layout.SMALLEST_CHANGES_FILE, "report.*", "model_card.md", "checklist.md"),
)


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
    criteria: CriteriaRecipe | None = None,
    pictures: bool = True,
    protocol: str = NEWEST,
) -> AuditDocument:
    """Audit a model on a data set, write the results into `out`, and return the document of audit.json.

    `model` is a run's folder or a model file, `protocol` a name such as exam-quick-1. `attacks` and `epsilons` replace
    the protocol's, `labels` rename the data's classes, and `adversarial` is a file of submitted images (see
    `audit.submitted`). `criteria` are acceptance
    criteria, by default those of the model file; without `pictures` no image of a patient is stored. An interrupted
    audit resumes, and an unchanged one is not computed again. Raises UserError if the model or the data cannot be
    opened, a criterion is of a figure that the audit cannot have, or `out` has other results or is locked.
    """
    exam = load_exam(protocol).changed(tuple(attacks), tuple(epsilons))
    subject = open_model(model, trust_code=trust_code)
    bounds = choose_criteria(subject, criteria)
    check_criteria(bounds, exam, subject.classes, describe_model(subject).reported.model_dump())
    check_out(out, Path(data))
    check_out_folder(out, {"results of a run": layout.METRICS_FILE})
    layout.check_foreign(out, _WRITTEN, (layout.AUDIT_FILE, PARTS, LOCK_FILE))
    images = open_images(subject, data, split, labels, listing)
    submitted = None
    if adversarial is not None and exam.images is not None:
        raise UserError(f"--protocol {protocol}: attacks {exam.images} images alone. Submit images to {NEWEST}")
    if adversarial is not None:
        submitted = read_submitted(adversarial, images.examined, subject.classes if is_multilabel(subject) else ())
        if subject.model is None:
            raise UserError(
                f"{adversarial}: adversarial images need the model, but only scores of {subject.name} are here"
            )
        check_radius(submitted, exam)
    current = Audit(subject, images, exam, submitted)
    key, path = current.key, out / layout.AUDIT_FILE
    with folder_lock(out):
        document = read_schema(AuditDocument, path) if path.is_file() else None
        earlier = None if document is None else document.model_copy(deep=True)
        if document is not None and document.examination == key:
            log(f"{out}: already examined")
        else:
            if document is not None:
                _check_same(document, current, out)
                log(f"{out}: model, data or options changed: examined again")
            earlier, document = None, _compute(current, out, key)
            atomic.write_json(path, document)
        apply_criteria(document, bounds, out, measured_before=earlier is not None)
        if document != earlier:
            atomic.write_json(path, document)
        facts.write_pictures(document, images.examined, out, pictures=pictures)
        shutil.rmtree(out / PARTS, ignore_errors=True)
        return document


def _check_same(document: AuditDocument, audit: Audit, out: Path) -> None:
    """Raise UserError if a folder's audit is of another model or data, or by a protocol that the new one changes."""
    other, data = "", audit.describe_data(None)
    if is_another(document.model, audit.subject):
        other = f"the audit of another model, {document.model.name}"
    elif document.data.name != data.name and not document.data.same_images(data):
        other = f"the audit on {document.data.name}, not on {data.name}"
    elif document.protocol is not None and audit.exam.version != document.protocol:
        new = f"one by {audit.exam.version}" if audit.exam.version else "one with --attack or --epsilon"
        other = f"a whole examination by {document.protocol}, which {new} would replace"
    if other:
        raise UserError(f"{out}: holds {other}; choose another --out")


def _compute(audit: Audit, out: Path, key: str) -> AuditDocument:
    """Compute an audit, write its tables into `out`, and return its document."""
    subject, exam = audit.subject, audit.exam
    shown, labels = first_images(audit.dataset, exam.entry_checks.images, subject.device)
    options = {"epsilon": exam.entry_checks.epsilon, "planted": exam.entry_checks.planted}
    report = run_entry_checks(subject, shown, labels, **options)  # type: ignore[arg-type]
    measure_all = measure.measure_findings if is_multilabel(subject) else measure.measure_classes
    measured = measure_all(audit, report, shown, out / PARTS / key)
    document = AuditDocument.from_figures(
        measured.figures,
        model=describe_model(report.subject or subject),
        protocol=exam.version,
        data=audit.describe_data(measured.images),
        examination=key,
    )
    if notes := [*([exam.about] if exam.about else []), *audit.dataset.notes]:
        document.notes = notes
    document.operating_points, document.subgroups = measured.points, measured.divisions
    document.findings, document.submitted = measured.findings, measured.submitted
    names = subject.classes if is_multilabel(subject) else ()
    document.facts = facts.describe_facts(audit.images, measured.images, names)
    document.failures = facts.find_failures(measured.table, multilabel.STATES if names else subject.classes)
    checks = _merge_checks([*report.checks, *_surrogate_check(audit, report, len(shown))], measured.checks)
    if not report.attacks_reliable:
        _withdraw(document)
    checks += compare_black_box(document)
    document.entry_checks = [check.document() for check in checks]
    document.verdict = verdict.judge(document)
    document.smallest_changes = find_smallest_changes(audit, report, measured.table, out)
    (out / layout.AUDIT_FILE).unlink(missing_ok=True)  # never next to the tables of another audit
    tables = {
        layout.PREDICTIONS_FILE: measured.table,
        layout.ONE_VS_REST_FILE: measured.one_vs_rest,
        layout.VALIDATION_FILE: measured.validation,
    }
    for name, table in tables.items():
        if table is not None:
            atomic.write_table(out / name, table)
    return document


def _withdraw(document: AuditDocument) -> None:
    """Remove the figures of gradient attacks, which missed planted adversarial examples."""
    why = "the attack missed adversarial examples that were planted, so its figures say nothing"
    document.attacks = [row if row.attack in BLACK_BOX else _without_figures(row) for row in document.attacks]
    document.operating_points = [p for p in document.operating_points if p.attack in (*BLACK_BOX, CLEAN)]
    document.masking = MaskingVerdict(masked=None, reasons=[f"withdrawn: {why}"], looked_for=[])
    document.alarms = [alarm for alarm in document.alarms if alarm.kind == CONSTANT]
    document.withdrawn = why


def _without_figures(row: AttackResult) -> AttackResult:
    values = row.model_dump(include={"attack", "epsilon", "steps", "n"} & row.model_fields_set)
    return AttackResult(**values, accuracy=Share(value=None, ci=None))


def _merge_checks(entry: Sequence[Check], measured: Sequence[Check]) -> list[Check]:
    """Join the entry checks and those on all images.

    The declaration on all images replaces that of the entry checks, which see fewer images, unless they have a remedy.
    """
    remedied = any(check.check == "declaration" and check.remedied for check in entry)
    repeated = any(check.check == "declaration" for check in measured)
    first = [check for check in entry if check.check != "declaration" or remedied or not repeated]
    return [*first, *(check for check in measured if check.check != "declaration" or not remedied)]


def _surrogate_check(audit: Audit, report: EntryReport, shown: int) -> list[Check]:
    """Return the check that tells the training images of the surrogate, if there is one."""
    worst_case = any(attack.name == WORST_CASE for attack in audit.attacks(gradients=report.gradients))
    if report.traits is None or not worst_case or not needs_surrogate(report.traits, report.gradients):
        return []
    text = "a surrogate, whose adversarial images are tried on the model, learned to answer as it does from "
    if (images := audit.images.surrogate) is not None:
        text += f"{len(images.rows)} images of the split {images.training.split}, none of a patient who is examined"
    else:
        text += f"{shown} of the images that are examined, since these data have no training images of other patients"
    return [Check("surrogate", True, text)]
