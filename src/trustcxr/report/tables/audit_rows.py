"""Build the tables and facts of an audit, and the checklist of reporting guidelines; tables of a study are reused."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from trustcxr.registry import LUNGS_HIDDEN
from trustcxr.report import formatting, html
from trustcxr.report.key_findings import Headline
from trustcxr.report.load import Run, find_lowest, find_worst_attack
from trustcxr.report.tables import accuracy, robustness
from trustcxr.report.tables.table import Cell, Table, share, whole
from trustcxr.statistics import format_probability
from trustcxr.storage import schemas
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AuditDocument, OperatingPoint

PIXELS = {None: formatting.DASH, False: "floats", True: "floats or 8-bit file, the worse"}
_PASSED = {
    True: Cell("passed", note="good text"),
    False: Cell("failed", note="bad text"),
    None: Cell("not checked", note="quiet text"),
}
_MET = {
    True: Cell("met", note="good text"),
    False: Cell("not met", note="bad text"),
    None: Cell("not settled", note="text"),
}
GUIDELINES = ("CLAIM 2024", "TRIPOD+AI", "MI-CLAIM", "DECIDE-AI", "GMLP", "AI Act, Art. 15")
MAKER, NOT_MEASURED = "asked of the maker", "not measured by this audit"


def tables(document: AuditDocument) -> dict[str, object]:
    """Return tables and facts by their names in the templates; None or an empty list if not measured."""
    run, facts = as_run(document), document.facts
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
        "criteria": _criteria(document) if document.criteria else None,
        "after": [row.name for row in document.criteria if not row.beforehand],
        "facts": _facts(document),
        "flow": _flow(document) if facts.flow else None,
        "claims": _claims(document),
        "predictive": _predictive_values(document) if document.predictive_values else None,
        "characteristics": _characteristics(document) if facts.characteristics else None,
        "checklist": build_checklist(document),
        "failures": _failures(document) if document.failures else None,
    }


def as_run(document: AuditDocument) -> Run:
    """Return the audited model as a run of a study; for findings the two answers are the classes."""
    name, classes = document.model.name, list(document.clean.per_class) if document.findings else document.classes
    return Run(document.model_copy(update={"model": name, "classes": classes}), Path(), [], label=name)


def _checks(document: AuditDocument) -> Table:
    rows = [[Cell(c.check), _PASSED[c.passed], Cell(c.text, note="prose")] for c in document.entry_checks]
    return Table("Checks", ["check", "", "result"], rows)


def _clean(document: AuditDocument) -> Table:
    clean = document.clean
    groups = "" if clean.groups in (None, clean.n) else f"{formatting.count(clean.groups)} groups"
    figures = (clean.accuracy, clean.balanced_accuracy, clean.constant_answer, clean.f1_macro, clean.auroc_macro)
    header = ["Model", "Accuracy, %", "Balanced, %", "Constant answer, %", "Macro F1, %", "AUROC, %"]
    header += ["Calibration error, %", "with bias, %", "n"]
    shares = map(share, (*figures, clean.ece, clean.ece_plug_in))
    return Table("Unperturbed images", header, [[Cell(document.model.name), *shares, whole(clean.n, groups)]])


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
        target = f"against the {p.aimed_at}" if p.aimed_at and p.attack != CLEAN else ""
        threshold = formatting.DASH if p.threshold is None else format_probability(p.threshold)
        rows.append(
            [
                Cell(p.finding),
                Cell(formatting.condition(p), target, note="text"),
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


def _ratio(figure: schemas.Share, first: float) -> Cell:
    """Return the cell of a ratio; without a value it is infinite, or undefined if its `first` share is 0."""
    low, high = figure.ci or (None, None)
    if figure.value is None and first <= 0:
        return Cell(formatting.DASH)
    ends = "" if low is None else f"{low:.3g} to {formatting.ratio(high)}"
    return Cell(formatting.ratio(figure.value), ends, value=figure.value)


def _division(division: schemas.Division) -> Table:
    rows = [
        [
            Cell(g.name),
            *map(share, (g.accuracy, g.balanced_accuracy, g.auroc_macro, g.ece, g.gap)),
            Cell(formatting.p_value(g.p_corrected), value=g.p_corrected),
            Cell("yes" if g.settled else "not settled", note="bad text" if g.settled else "quiet text"),
            whole(g.n, "" if g.findings is None else f"AUROC of {formatting.plural(g.findings, 'finding')}"),
        ]
        for g in division.groups
    ]
    header = ["group", "accuracy, %", "balanced, %", "AUROC, %", "calibration error, %", "gap to the rest, points"]
    return Table(f"By {division.column}", [*header, "p, corrected", "differs", "n"], rows)


def _findings(document: AuditDocument) -> Table:
    rows = []
    for f in document.findings:
        state = Cell("evaluated" if f.judged else f.why, note="prose")
        rows.append([Cell(f.name), state, *map(whole, (f.positives, f.n, f.unknown))])
    return Table("Findings", ["finding", "", "positive", "labelled", "unlabelled, left out"], rows)


def _criteria(document: AuditDocument) -> Table:
    rows = [
        [
            Cell(row.name, "" if row.beforehand else "written after the figures were known"),
            _MET[row.met],
            Cell(row.text, note="prose"),
            *map(whole, (row.n, row.images_needed)),
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
        [Cell(p.finding), share(p.prevalence), Cell(formatting.condition(p), note="text"), share(p.ppv), share(p.npv)]
        for p in document.predictive_values
    ]
    return Table("Predictive values", ["class or finding", "prevalence, %", "images", "PPV, %", "NPV, %"], rows)


def _characteristics(document: AuditDocument) -> Table:
    listed = document.facts.characteristics
    classes = list(listed[-1].by_class)
    rows = [[Cell(row.column), Cell(row.value, note="text"), *_cells(row, classes)] for row in listed]
    return Table("Table 1", ["column", "value", "all", *classes], rows)


def _cells(row: schemas.Characteristic, classes: list[str]) -> Iterator[Cell]:
    for name in ("all", *classes):
        if row.quartiles:
            low, middle, high = row.quartiles.get(name, (None, None, None))
            yield Cell(formatting.decimal(middle, 0), formatting.range_text((low, high), 0), value=middle)
        else:
            yield whole(row.n if name == "all" else row.by_class.get(name))


def _failures(document: AuditDocument) -> Table:
    rows = [
        [Cell(f.sample_id, f.finding), *(Cell(text, note="text") for text in (f.label, f.answer)), share(f.probability)]
        for f in document.failures
    ]
    return Table("Wrong answers", ["image", "label", "answer", "probability, %"], rows)


def build_checklist(document: AuditDocument) -> Table:
    """Return the checklist as a table: a row for each topic, with the figure of this audit, if it has one."""
    hidden = [(name, document.shortcuts[name]) for name in LUNGS_HIDDEN if name in document.shortcuts]
    divisions = [part for part in document.subgroups if part.groups]
    worse = [(g, part) for part in divisions for g in part.groups if g.settled and (g.gap.value or 0) < 0]
    parts = {
        "document": document,
        "model": document.model,
        "data": document.data,
        "facts": document.facts,
        "clean": document.clean,
        "columns": [part.column for part in divisions],
        "worse": [f"{group.name} by {part.column}" for group, part in worse],
        "worst": find_worst_attack(document),
        "worst_corruption": find_lowest(document.corruptions),
        "hidden": max(hidden, key=lambda item: item[1].accuracy.value or 0.0, default=None),
        "maker": MAKER,
        "f": formatting,
    }
    rows = []
    for row in html.read_yaml("checklist.yaml"):
        text = html.fill_text(row.get("text", ""), parts)
        absent = NOT_MEASURED if "text" in row else MAKER
        measured = Cell(text, note="prose") if text else Cell(absent, note="prose quiet")
        items = (row["where"] if text else "", *row["items"])
        rows.append([Cell(row["topic"]), measured, *(Cell(item or formatting.DASH, note="text") for item in items)])
    header = ["Topic", "What this audit measured", "Where on the page", *GUIDELINES]
    return Table("Checklist", header, rows)
