"""Audit any model on images and write audit.json: the command `trustcxr audit`, and `tx.audit.run` from Python."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from trustcxr.audit import audit_data, facts, measure, multilabel
from trustcxr.audit.attack_runner import describe_guards
from trustcxr.audit.audit_data import Audit, check_out_folder, first_images, open_images
from trustcxr.audit.criteria import apply_criteria, choose_criteria
from trustcxr.audit.entry_checks import Check, check_afterwards, compare_black_box, run_entry_checks
from trustcxr.audit.second_instance import ANOTHER_ORDER, ASKED, copy_subject, judge_again
from trustcxr.audit.subject import Subject, describe_model, is_another, is_multilabel, load_subject, open_model
from trustcxr.console import log
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import Run
from trustcxr.recipes.criteria_file import CriteriaRecipe, check_criteria
from trustcxr.recipes.exams import NEWEST
from trustcxr.recipes.protocol import ExamRecipe, load_exam
from trustcxr.recipes.run_recipe import Listing
from trustcxr.registry import BLACK_BOX, WORST_CASE
from trustcxr.runs.test_data import Source, check_out
from trustcxr.storage import atomic, layout
from trustcxr.storage.locks import LOCK_FILE, folder_lock
from trustcxr.storage.memory import keep_freed_memory
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AttackResult, AuditDocument, EntryCheck, MaskingVerdict, Share, read_schema
from trustcxr.storage.schemas.run_document import CONSTANT

PARTS = ".parts"  # rows of finished batches, until all are finished
_WRITTEN = (
    *(layout.PREDICTIONS_FILE, layout.ONE_VS_REST_FILE, layout.VALIDATION_FILE, layout.FAILURES_FILE),
    *(layout.SMALLEST_CHANGES_FILE, "report.*", "model_card.md", "checklist.md"),
)


def audit(
    model: str | Path | Subject,
    data: Path | Dataset,
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

    Arguments are as of `run`. `labels` rename the data's classes, `adversarial` is a file of submitted images
    (`audit_data.read_submitted`), `criteria` are by default those of the model file, and without `pictures` no image of
    a patient is stored. An unchanged audit is not computed again, unless the model is a Python object. Raises UserError
    if the model or the data cannot be opened, the audit cannot have a criterion's figure, or `out` is taken or locked.
    """
    exam = load_exam(protocol).changed(tuple(attacks), tuple(epsilons))
    subject = open_model(model, trust_code=trust_code) if isinstance(model, str | Path) else model
    bounds = choose_criteria(subject, criteria)
    check_criteria(bounds, exam, subject.classes, describe_model(subject).reported.model_dump())
    check_out(out, data.root if isinstance(data, Dataset) else Path(data))
    check_out_folder(out, {"results of a run": layout.METRICS_FILE})
    layout.check_foreign(out, _WRITTEN, (layout.AUDIT_FILE, PARTS, LOCK_FILE))
    images = open_images(subject, data if isinstance(data, Dataset) else Source(data, split, labels, listing))
    submitted = None if adversarial is None else _read_submitted(adversarial, subject, images.examined, exam)
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
            path_of = model.folder if isinstance(model, Run) else model
            again = path_of if isinstance(path_of, str | Path) else copy_subject(path_of)
            earlier, document = None, _compute(current, out, key, again, trust_code)
        apply_criteria(document, bounds, out, measured_before=earlier is not None)
        if document != earlier:
            atomic.write_json(path, document)
        facts.write_pictures(document, images.examined, out, pictures=pictures)
        shutil.rmtree(out / PARTS, ignore_errors=True)
        return document


def _read_submitted(path: Path, subject: Subject, images: Dataset, exam: ExamRecipe) -> audit_data.SubmittedImages:
    """Read submitted adversarial images; UserError if the protocol or the model cannot take them."""
    if exam.images is not None:
        raise UserError(f"--protocol {exam.version}: attacks {exam.images} images alone. Submit images to {NEWEST}")
    submitted = audit_data.read_submitted(path, images, subject.classes if is_multilabel(subject) else ())
    if subject.model is None:
        raise UserError(f"{path}: adversarial images need the model, but only scores of {subject.name} are here")
    radii = sorted({e for attack in exam.attacks if attack.name == WORST_CASE for e in attack.epsilons})
    if not radii or submitted.epsilon > radii[-1] + 1e-9:
        listed = ", ".join(f"{radius:g}" for radius in radii) or "no epsilon"
        raise UserError(f"{path}: images at epsilon {submitted.epsilon:g}; worst-case is tried at {listed}")
    return submitted


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


def _compute(audit: Audit, out: Path, key: str, model: str | Path | Subject | None, trust: bool) -> AuditDocument:
    """Compute an audit, whose second instance is `model`, write its tables into `out`, and return its document."""
    subject, exam = audit.subject, audit.exam
    if subject.device.type == "cpu":
        keep_freed_memory()
    shown, labels = first_images(audit.dataset, exam.entry_checks.images, subject.device)
    options = {"epsilon": exam.entry_checks.epsilon, "planted": exam.entry_checks.planted}
    report = run_entry_checks(subject, shown, labels, **options)  # type: ignore[arg-type]
    measure_all = measure.measure_findings if is_multilabel(subject) else measure.measure_classes
    measured = measure_all(audit, report, shown, out / PARTS / key)
    afterwards = check_afterwards(report, shown, **options)  # type: ignore[arg-type]
    asked_folder = out / PARTS / key / ASKED
    if report.model is not None and asked_folder.is_dir():
        afterwards.append(judge_again(model, report.subject or subject, report.model, asked_folder, trust=trust))
    elif report.model is not None and not report.random:
        afterwards.append(Check(ANOTHER_ORDER, None, "its outputs are random, so it was not asked again", grave=True))
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
    if measured.bfloat16:
        attacks = audit.attacks(gradients=report.gradients)
        document.facts.bfloat16 = [attack.entry.label for attack in attacks if attack.precision]
    document.failures = facts.find_failures(measured.table, multilabel.STATES if names else subject.classes)
    entry, later = ([c for c in part if c.check != "declaration"] for part in (report.checks, measured.checks))
    # The declaration is checked on all images, unless the entry checks found a remedy.
    if any(check.remedied for check in report.checks) or len(later) == len(measured.checks):
        checks = [*report.checks, *later]
    else:
        checks = [*entry, *measured.checks]
    learned_from = f"{len(shown)} of the images that are examined, since these data have no training images of other "
    learned_from += "patients"
    if (images := audit.images.surrogate) is not None:
        learned_from = f"{len(images)} images of the split {images.whole.split}, none of a patient who is examined"
    checks += describe_guards(measured.guards, exam.guards, learned_from, gradients=report.gradients)
    if not report.attacks_reliable:
        _withdraw(document)
    checks += [*afterwards, *compare_black_box(document)]
    document.entry_checks = [EntryCheck.model_validate(check, from_attributes=True) for check in checks]
    document.smallest_changes = facts.find_smallest_changes(audit, report, measured.table, out)
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
    effort = {"attack", "epsilon", "steps", "queries", "n"}
    for number, row in enumerate(document.attacks):
        if row.attack not in BLACK_BOX:
            values = row.model_dump(include=effort & row.model_fields_set)
            document.attacks[number] = AttackResult(**values, accuracy=Share(value=None, ci=None))
    document.operating_points = [p for p in document.operating_points if p.attack in (*BLACK_BOX, CLEAN)]
    document.masking = MaskingVerdict(masked=None, reasons=[f"withdrawn: {why}"], looked_for=[])
    document.alarms = [alarm for alarm in document.alarms if alarm.kind == CONSTANT]
    document.withdrawn = why


def run(
    model: str | Path | nn.Module | Run,
    data: str | Path | Dataset,
    *,
    out: str | Path | None = None,
    protocol: str = NEWEST,
    attacks: Sequence[str] = (),
    epsilons: Sequence[float] = (),
    **options: Any,
) -> AuditDocument:
    """Audit a model on a data set and return the document of audit.json; a notebook shows it as a table.

    Args:
        model: a trained model's name, a run or its folder, a model file (.yaml), or a torch module from images
            (B, 1, H, W) in [0, 1] to logits. A module needs `classes` and `size`, as attributes or from a Dataset.
        data: folder of images, a list (CSV), or a Dataset of the model's size and classes.
        out: folder for audit.json, report.html, tables and pictures. An interrupted audit resumes there, but not that
            of a Python object. None keeps nothing.
        protocol: exam-1, or exam-quick-1 for minutes.
        attacks: in place of the protocol's; then the audit compares with no other.
        epsilons: in place of the protocol's.
        options: split, labels, listing, trust_code, adversarial, criteria and pictures, as of `audit`.

    Raises UserError if the model or the data cannot be opened, or `out` holds other results.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import trustcxr as tx
        >>> data = tx.data.phantom.write(tempfile.mkdtemp() + "/images", {"Test": 8}, size=32)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32, 3))
        >>> images = tx.load_dataset(data, split="Test", size=32)
        >>> audit = tx.audit.run(model, images, attacks=["fgsm"], epsilons=[0.02])
        >>> print(*audit.table().condition.head(2))
        clean fgsm
    """
    subject = _as_subject(model, data) if isinstance(model, nn.Module) else model
    images = data if isinstance(data, Dataset) else Path(data)
    settings = {"protocol": protocol, "attacks": attacks, "epsilons": epsilons, **options}
    if out is not None:
        from trustcxr.report import audit_html

        document = audit(subject, images, Path(out), **settings)
        audit_html.write(document, Path(out))
        document._folder = Path(out)
        return document
    with tempfile.TemporaryDirectory() as folder:
        return audit(subject, images, Path(folder), **settings)


def _as_subject(model: nn.Module, data: str | Path | Dataset) -> Subject:
    """Return a module as the subject of an audit; UserError if its classes or size are unknown."""
    classes, size = (getattr(model, key, None) or getattr(data, key, None) for key in ("classes", "size"))
    if classes is None or size is None:
        raise UserError(
            f"{type(model).__name__}: its classes or image size are unknown. Set model.classes and model.size, or "
            "give a Dataset: tx.load_dataset(path, size=224)"
        )
    name = getattr(model, "name", None) or type(model).__name__
    return load_subject(model, classes=list(classes), size=int(size), name=str(name))
