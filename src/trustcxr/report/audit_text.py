"""Describe audit.json in sentences: model, data, results and limits."""

from trustcxr.registry import WORST_CASE
from trustcxr.report import formatting, html
from trustcxr.report.key_findings import SHORT
from trustcxr.report.load import find_lowest
from trustcxr.report.terminal import format_percent, format_share
from trustcxr.statistics import format_probability
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import LEVEL, AuditDocument, AuditPair, OperatingPoint, Statement

_MARKS = {True: "passed", False: "FAILED", None: "not checked"}
_MET = {True: "yes", False: "NO", None: "open"}
QUESTIONS = {
    "accurate": "Is it accurate?",
    "robust": "Is it robust?",
    "stable": "Is it stable under ordinary damage?",
    "lungs": "Does it look at the lungs?",
    "subgroups": "For whom is it worse?",
    "calibrated": "Is it calibrated?",
}


def describe_audit(document: AuditDocument) -> list[str]:
    """Return an audit as lines for the terminal: whether the measurement is sound, then the model, then the figures."""
    (model, *notes), images = describe_model(document)
    points = [point for point in document.operating_points if point.attack == CLEAN]
    return [
        f"Is the measurement sound? {describe_soundness(document)}",
        *(f"  - {reason}" for reason in document.verdict.reasons),
        "Is the model good enough?",
        *(f"  {_MET[row.met]}: {title_question(row.question)} {row.text}" for row in document.verdict.model),
        "",
        f"Model: {model}",
        f"Tested on: {images}",
        *(f"  note: {note}" for note in notes),
        *(f"  {_MARKS[check.passed]}: {check.check}: {check.text}" for check in document.entry_checks),
        "Results:",
        *(f"  {line}" for line in describe_results(document)),
        *(["At the operating point:"] if points else []),
        *(line for point in points for line in _describe_operating_point(document, point)),
        "Limits:",
        *(f"  {line}" for line in describe_limits(document)),
    ]


def describe_soundness(document: AuditDocument) -> str:
    """Return the answer about the measurement in a sentence."""
    if not document.verdict.sound:
        return "NO: do not rely on the figures of this audit."
    if not document.attacks:
        return "Yes, but robustness was not measured."
    lesser = [
        f"{check.check} {'not checked' if check.passed is None else 'failed'}"
        for check in document.entry_checks
        if check.passed is not True
    ]
    return "Yes: no important check failed." + (f" Minor checks: {', '.join(lesser)}." if lesser else "")


def split_statement(row: Statement) -> tuple[str, str, str]:
    """Return a statement's question, its figures as a sentence, and the words of its answer."""
    figures, _, word = row.text.rpartition(": ")
    return title_question(row.question), f"{figures}." if figures else "", word


def title_question(question: str) -> str:
    """Return a question of the verdict as a reader asks it, or the name of an acceptance criterion."""
    return QUESTIONS.get(question, f"Criterion “{question}”:")


def describe_model(document: AuditDocument) -> tuple[tuple[str, ...], str]:
    """Return the model with its notes, and the images with the protocol."""
    model, data = document.model, document.data
    weights = f", {model.parameters:,} parameters" if model.parameters else ""
    protocol = document.protocol or "options of its own, so it compares with no other audit"
    return (
        (f"{model.name} ({model.kind}{weights}), classes {', '.join(document.classes)}", *model.notes),
        f"{data.images} images of “{data.name}”, split {document.split}, by {protocol}",
    )


def describe_results(document: AuditDocument) -> tuple[str, ...]:
    """Return accuracy on unperturbed, attacked, submitted and corrupted images, a line each."""
    parts = {"document": document, "worst": find_lowest(document.corruptions)}
    return tuple(html.fill_lines("results", parts | {"share": format_share, "percent": format_percent}))


def _describe_operating_point(document: AuditDocument, point: OperatingPoint) -> list[str]:
    """Return sensitivity and specificity of a class or finding, clean and under the attack that leaves least."""
    first = f"  {point.finding}, {format_threshold(point)}: {format_rates(point)}"
    return [first, *(f"    {line}" for line in describe_attacked(document, point.finding))]


def describe_attacked(document: AuditDocument, finding: str) -> list[str]:
    """Return one line on the attack that leaves least of a finding, or none if nothing was measured."""
    worst = find_hardest(document, finding)
    if worst is None:
        return []
    target = {"": "", "answer": ", made against the answer and not against this threshold, at most"}
    against = target.get(worst.aimed_at, ", made against this threshold, at most")
    return [f"under {worst.effort.name} at epsilon {worst.epsilon:g}{against}: {format_rates(worst)}"]


def find_hardest(document: AuditDocument, finding: str) -> OperatingPoint | None:
    """Return the attack with the lowest sum of sensitivity and specificity; None without any."""
    attacked = [p for p in document.operating_points if p.finding == finding and p.attack != CLEAN]
    measured = [p for p in attacked if (p.sensitivity.value, p.specificity.value) != (None, None)]

    def key(point: OperatingPoint) -> tuple[float, bool]:
        return (point.sensitivity.value or 0.0) + (point.specificity.value or 0.0), point.attack != WORST_CASE

    return min(measured, key=key, default=None)


def format_threshold(point: OperatingPoint) -> str:
    """Return the threshold and where it comes from."""
    if point.threshold is None:
        return point.origin
    return f"from {format_probability(point.threshold)} on ({point.origin})"


def format_rates(point: OperatingPoint) -> str:
    """Return sensitivity, specificity, likelihood ratios and AUROC with their intervals."""
    parts = [("sensitivity", point.sensitivity), ("specificity", point.specificity), ("AUROC", point.auroc)]
    texts = [f"{name} {format_share(share)}" for name, share in parts]
    return ", ".join([*texts[:2], *_format_ratios(point), *texts[2:]])


def _format_ratios(point: OperatingPoint) -> list[str]:
    """Return the likelihood ratios that are defined, each with its interval; what is missing of them is infinite."""
    sensitivity, specificity = point.sensitivity.value, point.specificity.value
    if sensitivity is None or specificity is None:
        return []
    texts = []
    for name, ratio, infinite in (
        ("LR+", point.likelihood_positive, sensitivity > 0 and specificity == 1),
        ("LR-", point.likelihood_negative, sensitivity < 1 and specificity == 0),
    ):
        low, high = ratio.ci or (None, None)
        inside = "" if low is None else f" [{low:.3g}, {formatting.ratio(high)}]"
        texts += [f"{name} {formatting.ratio(ratio.value)}{inside}"] if infinite or ratio.value is not None else []
    return texts


def describe_limits(document: AuditDocument) -> tuple[str, ...]:
    """Return what the figures do not show, and alarms that are no reason of the verdict."""
    reasons = "\n".join(document.verdict.reasons)
    parts = {
        "document": document,
        "withdrawn": sorted({row.effort.name for row in document.attacks if row.accuracy.value is None}),
        "short": SHORT,
        # Every sign of failing gradients is a reason of the verdict.
        "alarms": [a for a in document.alarms if a.text not in reasons and SHORT.get(a.kind) != "gradients fail"],
    }
    return tuple(html.fill_lines("limits", parts))


def list_pairs(pair: AuditPair) -> list[dict[str, str | int | None]]:
    """Return two audits side by side, a row for each measure."""

    def signed(value: float | None) -> str:
        return "-" if value is None else f"{value:+.1%}"

    return [
        {
            "measure": row.measure,
            "A": format_percent(row.first),
            "B": format_percent(row.second),
            "B less A": f"{signed(row.difference.value)} [{', '.join(map(signed, row.difference.ci or ()))}]",
            "p, corrected": "-" if row.p_corrected is None else f"{row.p_corrected:.2g}",
            "differ": "yes" if row.settled else "not settled",
            "n": row.n,
        }
        for row in pair.rows
    ]


def describe_pairs(pair: AuditPair) -> list[str]:
    """Return the limits of a comparison, a line each."""
    names, by = (pair.first, pair.second), zip((pair.first, pair.second), pair.submitted, strict=False)
    few = [row.measure for row in pair.rows if not row.settled and (row.p_least or 0.0) * len(pair.rows) >= LEVEL]
    parts = {"pair": pair, "names": list(zip(names, pair.sound, strict=True)), "few": few}
    return html.fill_lines("pairs", parts | {"submitted": [part for part in by if part[1]]})
