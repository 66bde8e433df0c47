"""Fill a checklist from an audit: which items of reporting guidelines each measurement answers, and with which figure.

Item numbers: CLAIM 2024 (Tejani et al. 2024), TRIPOD+AI (Collins et al. 2024), MI-CLAIM (Norgeot et al. 2020),
DECIDE-AI (Vasey et al. 2022), Good Machine Learning Practice (FDA, Health Canada, MHRA 2021), Regulation (EU)
2024/1689. The words are ours: read the guidelines for theirs.
"""

from collections.abc import Callable
from typing import NamedTuple

from trustcxr.registry import LUNGS_HIDDEN
from trustcxr.report import formatting
from trustcxr.report.leaderboard import find_worst_attack
from trustcxr.report.load import find_lowest
from trustcxr.report.tables.table import Cell, Table
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AuditDocument

CHECKLIST_FILE = "checklist.md"
GUIDELINES = ("CLAIM 2024", "TRIPOD+AI", "MI-CLAIM", "DECIDE-AI", "GMLP", "AI Act, Art. 15")
MAKER, NOT_MEASURED = "asked of the maker", "not measured by this audit"
_NONE = formatting.DASH


class Row(NamedTuple):
    """A topic, its items in each of GUIDELINES, a function that tells what was measured, and a heading of the page."""

    topic: str
    items: tuple[str, str, str, str, str, str]
    describe: Callable[[AuditDocument], str]
    where: str


def build_checklist(document: AuditDocument) -> Table:
    """Return the checklist as a table: a row for each topic, with the figure of this audit, if it has one."""
    rows = []
    for row in _ROWS:
        text = row.describe(document)
        absent = MAKER if row.describe is _nothing else NOT_MEASURED
        measured = Cell(text, note="prose") if text else Cell(absent, note="prose quiet")
        where = Cell(row.where if text else _NONE, note="text")
        rows.append([Cell(row.topic), measured, where, *(Cell(item or _NONE, note="text") for item in row.items)])
    header = ["Topic", "What this audit measured", "Where on the page", *GUIDELINES]
    return Table("Checklist", header, rows)


def _model(document: AuditDocument) -> str:
    model, size = document.model, document.model.parameters
    parts = [f"{model.name}, {model.kind}", f"{size:,} parameters" if size else ""]
    parts.append(f"SHA-256 {model.sha256[:12]}…" if model.sha256 else "no file to identify it by")
    return f"{', '.join(filter(None, parts))}. Classes: {', '.join(document.classes)}."


def _data(document: AuditDocument) -> str:
    data, facts = document.data, document.facts
    if not data.name:
        return ""
    patients = "patients are not named" if facts.patients is None else formatting.plural(facts.patients, "patient")
    text = f"{data.images} images of {data.name}, split {document.split}, {patients}, fingerprint {data.fingerprint}."
    return f"{text} The command trustcxr data check finds duplicates."


def _reference(document: AuditDocument) -> str:
    names = list(document.facts.classes)
    labels = f"Labels of the data were taken as they are: {', '.join(names)}." if names else ""
    return labels and f"{labels} How they were made is {MAKER} of the data."


def _counts(document: AuditDocument) -> str:
    flow = document.facts.flow
    left_out = "; ".join(f"{step.left_out:,} {step.why}" for step in flow if step.left_out)
    return f"{flow[-1].n:,} of {flow[0].n:,} images were examined. Left out: {left_out or 'none'}." if flow else ""


def _accuracy(document: AuditDocument) -> str:
    clean = document.clean
    if clean.accuracy.value is None:
        return ""
    auroc = f" AUROC {formatting.with_count(clean.auroc_macro)}." if clean.auroc_macro.value is not None else ""
    return f"Accuracy {formatting.with_count(clean.accuracy, clean.n)}.{auroc}"


def _operating_points(document: AuditDocument) -> str:
    points = [point for point in document.operating_points if point.attack == CLEAN]
    text = "; ".join(
        f"{p.finding}: sensitivity {formatting.percent(p.sensitivity.value)}, specificity "
        f"{formatting.percent(p.specificity.value)}"
        for p in points
    )
    error = document.clean.ece
    calibration = f" Calibration error {formatting.with_count(error)}." if error.value is not None else ""
    return f"{text}.{calibration}" if text else calibration.strip()


def _subgroups(document: AuditDocument) -> str:
    divisions = [part for part in document.subgroups if part.groups]
    if not divisions:
        return ""
    settled = [
        f"{g.name} by {part.column}" for part in divisions for g in part.groups if g.settled and (g.gap.value or 0) < 0
    ]
    result = f"Settled to be worse for {', '.join(settled)}." if settled else "No group is settled to be worse."
    return f"Groups by {formatting.join_words(part.column for part in divisions)}. {result}"


def _elsewhere(document: AuditDocument) -> str:
    reported, clean = document.model.reported, document.clean.accuracy.value
    claim = reported.clean
    if clean is None or (claim is None and not reported.training_data):
        return ""
    if claim is None:
        here = f"{formatting.percent(clean)} on {document.data.name}"
        return f"Trained on {reported.training_data}, accuracy {here}. Accuracy at home is {MAKER}."
    change = formatting.signed(100 * (clean - claim), 1)
    return f"The makers report {formatting.percent(claim)}, here it is {formatting.percent(clean)}: {change} points."


def _corruptions(document: AuditDocument) -> str:
    mean = document.corruptions_mean
    worst = find_lowest(document.corruptions)
    if mean is None or worst is None:
        return ""
    name = formatting.corruption(worst.corruption)
    return (
        f"Mean accuracy under {mean.conditions} corruptions {formatting.with_count(mean.accuracy, mean.n)}. "
        f"Lowest: {name}, {formatting.percent(worst.accuracy.value)}."
    )


def _attacks(document: AuditDocument) -> str:
    worst = find_worst_attack(document)
    if worst.accuracy.value is None:
        return ""
    name = worst.effort.name
    left = formatting.with_count(worst.accuracy, worst.n)
    text = f"Under {name} at epsilon {worst.epsilon:g} accuracy is at most {left}."
    proved = [row for row in document.certified if row.accuracy.value is not None]
    floor = "; ".join(f"{formatting.percent(row.accuracy.value)} at {row.epsilon:g}" for row in proved)
    return text + (f" Proved: at least {floor}." if floor else " Nothing was proved.")


def _lungs(document: AuditDocument) -> str:
    hidden = {name: document.shortcuts[name] for name in LUNGS_HIDDEN if name in document.shortcuts}
    if not hidden:
        return ""
    name, part = max(hidden.items(), key=lambda item: item[1].accuracy.value or 0.0)
    left = formatting.with_count(part.accuracy, part.n)
    return f"Accuracy with {formatting.measure(name)}: {left}. The command trustcxr explain adds saliency maps."


def _failures(document: AuditDocument) -> str:
    failures = document.failures
    if not failures:
        return ""
    first = failures[0]
    return (
        f"The {formatting.plural(len(failures), 'most confident wrong answer')} listed; the first: {first.answer} with "
        f"{formatting.percent(first.probability)} for {first.label}."
    )


def _code(document: AuditDocument) -> str:
    facts = document.facts
    if not facts.date:
        return ""
    by = (
        f"TrustCXR {facts.versions.get('trustcxr')}, protocol {document.protocol or 'options of its own'}, {facts.date}"
    )
    return f"{by}. Every answer is in predictions.parquet, from which each figure can be computed again."


def _nothing(_: AuditDocument) -> str:
    return ""


_ROWS = (
    Row("Model: version, checksum, input", ("22, 23", "12c, 22", "9", "4", "6, 9", "(3)"), _model, "Facts"),
    Row(
        "Data: splits, duplicates, patients",
        ("7, 8, 10, 19, 20", "5, 6, 12a, 20b", "3, 4, 8", "", "3, 4", ""),
        _data,
        "Facts",
    ),
    Row("Reference standard", ("14–18", "8", "", "", "5", ""), _reference, "Facts"),
    Row("Number of images, and those left out", ("12, 21", "10, 11, 21", "5", "9", "3", "(4)"), _counts, "Images"),
    Row(
        "Accuracy with intervals over patients",
        ("28, 29, 37, 38", "12e, 23a", "11, 13", "", "8", "(1), (3)"),
        _accuracy,
        "Unperturbed images",
    ),
    Row(
        "Thresholds and calibration",
        ("28, 38", "12e, 12g, 15", "11, 12", "", "9", "(3)"),
        _operating_points,
        "Operating points",
    ),
    Row("Subgroups: age, sex, view, source", ("36, 39", "14, 23a", "17", "VIII", "3", ""), _subgroups, "Subgroups"),
    Row("Another hospital: the drop", ("33", "12d, 16, 23b", "18", "", "8", "(1)"), _elsewhere, "Claims"),
    Row("Damaged images", ("30", "27a", "18", "9, 13", "8", "(4)"), _corruptions, "Corrupted images"),
    Row("Attacks, and what is proved", ("30", "", "15, 18", "13", "8", "(5) evasion"), _attacks, "Under attack"),
    Row("Planted triggers, training data's origin", ("", "", "", "", "", "(5) poisoning"), _nothing, ""),
    Row("Does it read the lungs?", ("31", "", "14–17", "12", "7", ""), _lungs, "Shortcuts"),
    Row("Failures and limits", ("39, 40", "26, 27a", "17", "6, 13, 16", "9", "(3)"), _failures, "Wrong answers"),
    Row("Code, data, how to repeat it", ("42, 43", "18c–f", "19", "17", "", ""), _code, "Facts"),
    Row("Changes after release", ("", "12f, 24", "", "11", "10", "(4) feedback"), _nothing, ""),
    Row(
        "Intended use, training, and what else only the maker knows",
        ("2, 13, 24–27, 34, 41, 44", "7, 13, 18", "", "", "", ""),
        _nothing,
        "",
    ),
)
