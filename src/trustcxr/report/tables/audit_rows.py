"""Build the tables of an audit; those of a study are reused."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.report.ranking import Headline
from trustcxr.report.tables import accuracy, robustness
from trustcxr.report.tables.table import Cell, Table, share, whole
from trustcxr.statistics import format_probability
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AuditDocument, Division, OperatingPoint, RunDocument, Share

PIXELS = {None: formatting.DASH, False: "floats", True: "floats or 8-bit file, the worse"}
_PASSED = {
    True: Cell("passed", note="good text"),
    False: Cell("failed", note="bad text"),
    None: Cell("not checked", note="quiet text"),
}


def tables(document: AuditDocument) -> dict[str, object]:
    """Return the tables by their names in the template; None or an empty list if not measured."""
    run = as_run(document)
    head = Headline(None, (), document.split, tuple(run.metrics.classes))
    return {
        "entry_checks": _checks(document),
        "clean": None if document.clean.accuracy.value is None else _clean(document),
        "matrices": accuracy.matrices(run, head),
        "per_class": accuracy.per_class(run, head.classes) if run.clean.per_class else None,
        "points": operating_points(document.operating_points),
        "findings": _findings(document) if document.findings else None,
        "attacks": _attacks(document),
        "masking": _without_defence(robustness.masking([run])) if document.attacks else None,
        "corruptions": _corruptions(document),
        "shortcuts": _shortcuts(run) if accuracy.masked_views(run) else None,
        "divisions": [(division, _division(division)) for division in document.subgroups],
    }


def as_run(document: AuditDocument) -> Run:
    """Return the audited model as a run of a study; for findings the two answers are the classes."""
    fields = {name: getattr(document, name) for name in document.model_fields_set & RunDocument.model_fields.keys()}
    classes = list(document.clean.per_class) if document.findings else document.classes
    metrics = RunDocument(**(fields | {"model": document.model.name, "classes": classes}))
    return Run(metrics, Path(), [], label=document.model.name)


def _checks(document: AuditDocument) -> Table:
    rows = [[Cell(c.check), _PASSED[c.passed], Cell(c.text, note="prose")] for c in document.entry_checks]
    return Table("Checks", ["check", "", "result"], rows)


def _clean(document: AuditDocument) -> Table:
    clean = document.clean
    groups = "" if clean.groups in (None, clean.n) else f"{formatting.count(clean.groups)} groups"
    figures = (clean.accuracy, clean.balanced_accuracy, clean.constant_answer, clean.f1_macro, clean.auroc_macro)
    n = Cell(formatting.count(clean.n), groups, value=clean.n)
    header = ["Model", "Accuracy, %", "Balanced, %", "Constant answer, %", "Macro F1, %", "AUROC, %"]
    header += ["Calibration error, %", "with bias, %", "n"]
    cells = [Cell(document.model.name), *map(share, (*figures, clean.ece, clean.ece_plug_in)), n]
    return Table("Unperturbed images", header, [cells])


def _shortcuts(run: Run) -> Table:
    parts = {formatting.measure(name): part for name, part in accuracy.masked_views(run).items()}
    rows = [
        [Cell(formatting.capital(name)), *map(share, (p.accuracy, p.balanced_accuracy, p.constant_answer)), whole(p.n)]
        for name, p in ({"whole image": run.clean} | parts).items()
    ]
    return Table("Shortcuts", ["Image", "Accuracy, %", "Balanced, %", "Constant answer, %", "n"], rows)


def _without_defence(table: Table | None) -> Table | None:
    if table is None:
        return None
    rows = [[row[0], *row[2:]] for row in table.rows]
    return Table(table.title, [table.header[0], *table.header[2:]], rows, table.heads - 1)


def _attacks(document: AuditDocument) -> Table:
    rows = [
        [
            Cell(a.effort.name),
            Cell(formatting.epsilon(a.epsilon), value=a.epsilon),
            Cell(PIXELS[a.rounded], note="text"),
            *map(share, (a.accuracy, a.balanced_accuracy, a.ece)),
            whole(a.n),
            Cell(", ".join(f"{name} {count}" for name, count in a.broken_by.items()) or formatting.DASH, note="prose"),
        ]
        for a in document.attacks
    ]
    header = ["attack", "epsilon", "pixels", "accuracy, %", "balanced, %", "calibration error, %", "n", "broken by"]
    return Table("Attacks", header, rows)


def _corruptions(document: AuditDocument) -> Table:
    rows = [
        [Cell(c.corruption.replace("_", " ")), Cell(str(c.severity)), share(c.accuracy), share(c.flip_rate), whole(c.n)]
        for c in document.corruptions
    ]
    return Table("Corruptions", ["corruption", "severity", "accuracy, %", "answers changed, %", "n"], rows)


def operating_points(points: Iterable[OperatingPoint]) -> Table:
    """Return a row per class or finding, unperturbed and under each attack."""
    rows = []
    for p in points:
        attack = f"{p.effort.name} {p.epsilon:g}" if p.attack != CLEAN else "unperturbed"
        target = f"against the {p.aimed_at}" if p.aimed_at and p.attack != CLEAN else ""
        threshold = formatting.DASH if p.threshold is None else format_probability(p.threshold)
        rows.append(
            [
                Cell(p.finding),
                Cell(attack, target, note="text"),
                Cell(threshold, p.origin, value=p.threshold, note="text"),
                *map(share, (p.sensitivity, p.specificity)),
                _ratio(p.likelihood_positive, p.sensitivity.value or 0.0),
                _ratio(p.likelihood_negative, 1 - (1.0 if p.sensitivity.value is None else p.sensitivity.value)),
                *map(share, (p.auroc, p.average_precision, p.sensitivity_at_specificity)),
                Cell(f"{p.positives} of {p.n}"),
            ]
        )
    header = ["class or finding", "images", "threshold", "sensitivity, %", "specificity, %", "LR+", "LR-", "AUROC, %"]
    header += ["average precision, %", "sensitivity at 90 % specificity", "positive"]
    return Table("Operating points", header, rows)


def _ratio(figure: Share, first: float) -> Cell:
    """Return the cell of a ratio; without a value it is infinite, or undefined if its `first` share is 0."""
    low, high = figure.ci or (None, None)
    if figure.value is None and first <= 0:
        return Cell(formatting.DASH)
    ends = "" if low is None else f"{low:.3g} to {'∞' if high is None else f'{high:.3g}'}"
    return Cell("∞" if figure.value is None else f"{figure.value:.3g}", ends, value=figure.value)


def _division(division: Division) -> Table:
    rows = [
        [
            Cell(g.name),
            *map(share, (g.accuracy, g.balanced_accuracy, g.auroc_macro, g.ece, g.gap)),
            Cell(formatting.p_value(g.p_corrected), value=g.p_corrected),
            Cell("yes" if g.settled else "not settled", note="bad text" if g.settled else "quiet text"),
            replace(
                whole(g.n), small="" if g.findings is None else f"AUROC of {formatting.plural(g.findings, 'finding')}"
            ),
        ]
        for g in division.groups
    ]
    header = ["group", "accuracy, %", "balanced, %", "AUROC, %", "calibration error, %", "gap to the rest, points"]
    return Table(f"By {division.column}", [*header, "p, corrected", "differs", "n"], rows)


def _findings(document: AuditDocument) -> Table:
    rows = [
        [
            Cell(f.name),
            Cell("evaluated" if f.judged else f.why, note="prose"),
            *map(whole, (f.positives, f.n, f.unknown)),
        ]
        for f in document.findings
    ]
    return Table("Findings", ["finding", "", "positive", "labelled", "unlabelled, left out"], rows)
