"""Build what a committee asks for: criteria, facts, images left out, claims, Table 1, predictive values, failures."""

from collections.abc import Iterator
from pathlib import Path

from trustcxr.report import formatting, html
from trustcxr.report.checklist import build_checklist
from trustcxr.report.figures.heatmaps import Panel, grey_address
from trustcxr.report.leaderboard import find_worst_attack
from trustcxr.report.tables.table import Cell, Table, share, whole
from trustcxr.storage import layout
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AuditDocument, Characteristic

_MET = {
    True: Cell("met", note="good text"),
    False: Cell("not met", note="bad text"),
    None: Cell("not settled", note="text"),
}


def facts_of_page(document: AuditDocument, folder: Path | None = None) -> dict[str, object]:
    """Return the parts of audit_facts.html.j2 and audit_failures.html.j2; `folder` of the audit has the pictures."""
    facts = document.facts
    return {
        "criteria": _criteria(document) if document.criteria else None,
        "after": [row.name for row in document.criteria if not row.beforehand],
        "facts": _facts(document),
        "flow": _flow(document) if facts.flow else None,
        "claims": _claims(document),
        "predictive": _predictive_values(document) if document.predictive_values else None,
        "characteristics": _characteristics(document) if facts.characteristics else None,
        "checklist": build_checklist(document),
        "failures": _failures(document) if document.failures else None,
        "failure_panels": _panels(document, folder),
    }


def _criteria(document: AuditDocument) -> Table:
    rows = [
        [
            Cell(row.name, "" if row.beforehand else "written after the figures were known"),
            _MET[row.met],
            Cell(row.text, note="prose"),
            Cell(formatting.count(row.n), value=row.n),
            Cell(formatting.count(row.images_needed), value=row.images_needed),
        ]
        for row in document.criteria
    ]
    return Table("Acceptance criteria", ["criterion", "state", "result", "n", "images that would settle it"], rows)


def _facts(document: AuditDocument) -> dict[str, str]:
    """Return the facts with their headings; those that are not known are left out."""
    facts, model, data = document.facts, document.model, document.data
    parts = {"document": document, "facts": facts, "model": model, "data": data, "f": formatting}
    texts = {heading: html.fill_text(text, parts) for heading, text in html.read_yaml("facts.yaml").items()}
    return {heading: text for heading, text in texts.items() if text}


def _flow(document: AuditDocument) -> Table:
    rows = []
    for step in document.facts.flow:
        why = Cell(step.why if step.left_out else "", note="prose")
        rows.append([Cell(step.step), whole(step.n), whole(step.left_out), why])
    return Table("Images", ["images", "n", "left out", "why"], rows)


def _claims(document: AuditDocument) -> Table | None:
    """Return what the makers claim next to what was measured; None if they claim nothing."""
    claimed, worst = document.model.reported, find_worst_attack(document)
    rows = []
    if claimed.clean is not None:
        rows.append([Cell("accuracy"), share(claimed.clean), share(document.clean.accuracy), Cell("", note="prose")])
    if claimed.attacked is not None and worst.accuracy.value is not None:
        how = f"{worst.effort.name}, epsilon {worst.epsilon:g}"
        remark = f"claimed for {claimed.threat_model or 'an attack that is not named'}; measured under {how}"
        rows.append([Cell("under attack"), share(claimed.attacked), share(worst.accuracy), Cell(remark, note="prose")])
    return Table("Claims", ["figure", "claimed by the makers, %", "measured here, %", ""], rows) if rows else None


def _predictive_values(document: AuditDocument) -> Table:
    rows = [
        [
            Cell(p.finding),
            share(p.prevalence),
            Cell("unperturbed" if p.attack == CLEAN else f"{p.effort.name} {p.epsilon:g}", note="text"),
            share(p.ppv),
            share(p.npv),
        ]
        for p in document.predictive_values
    ]
    return Table("Predictive values", ["class or finding", "prevalence, %", "images", "PPV, %", "NPV, %"], rows)


def _characteristics(document: AuditDocument) -> Table:
    classes = list(document.facts.characteristics[-1].by_class)
    rows = [
        [Cell(row.column), Cell(row.value, note="text"), *_cells(row, classes)]
        for row in document.facts.characteristics
    ]
    return Table("Table 1", ["column", "value", "all", *classes], rows)


def _cells(row: Characteristic, classes: list[str]) -> Iterator[Cell]:
    for name in ("all", *classes):
        if row.quartiles:
            low, middle, high = row.quartiles.get(name, (None, None, None))
            yield Cell(formatting.decimal(middle, 0), formatting.range_text((low, high), 0), value=middle)
        else:
            yield whole(row.n if name == "all" else row.by_class.get(name))


def _failures(document: AuditDocument) -> Table:
    rows = [
        [
            Cell(f.sample_id, f.finding),
            Cell(f.label, note="text"),
            Cell(f.answer, note="text"),
            Cell(formatting.percent_number(f.probability), value=f.probability),
        ]
        for f in document.failures
    ]
    return Table("Wrong answers", ["image", "label", "answer", "probability, %"], rows)


def _panels(document: AuditDocument, folder: Path | None) -> list[Panel]:
    """Return the pictures of the failures; none without a file of them."""
    import numpy as np

    path = None if folder is None else folder / layout.FAILURES_FILE
    if path is None or not path.is_file():
        return []
    with np.load(path, allow_pickle=False) as arrays:
        images = dict(zip(arrays["sample_id"].tolist(), arrays["image"], strict=True))
    panels = []
    for failure in (failure for failure in document.failures if failure.sample_id in images):
        lines = (f"label: {failure.label}", f"answer: {failure.answer}, {formatting.percent(failure.probability)}")
        address, alt = grey_address(images[failure.sample_id]), f"{failure.answer} for an image of {failure.label}"
        panels.append(Panel(address, alt, failure.finding or failure.sample_id, lines))
    return panels
