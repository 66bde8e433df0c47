"""Print tables, and describe results and audits in sentences; rich does the layout."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from trustcxr.console import plural
from trustcxr.registry import ONE_CELL, WORST_CASE, Method, format_baseline
from trustcxr.report import formatting, html
from trustcxr.report.key_findings import SHORT, choose_headline, rank_runs
from trustcxr.report.load import Run, find_lowest, label_runs
from trustcxr.report.tables import accuracy, robustness
from trustcxr.report.tables.table import Cell, Table
from trustcxr.statistics import format_probability
from trustcxr.storage import schemas
from trustcxr.storage.layout import STEP_FILES
from trustcxr.storage.os_errors import megabytes, shell_quote
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas.zoo_entry import CERTIFIED


def print_rows(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a table on stdout without truncation."""

    def cell(value: object) -> Cell:
        return Cell(str(value), note="text" if isinstance(value, str) and not value[:1].isdigit() else "")

    print_table(Table(title, list(rows[0]), [list(map(cell, row.values())) for row in rows], heads=0))


def print_table(table: Table) -> None:
    """Print a table of the report on stdout, the small print of a cell below its figure."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Shown
    from rich.text import Text

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 200  # a file or a pipe has no width
    shown = Shown(title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column, name in enumerate(table.header):
        left = column < table.heads or table.is_text(column)
        shown.add_column(Text(name), justify="left" if left else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text("\n".join(filter(None, (cell.text, cell.small, cell.second)))) for cell in row))
    console.print(shown)


def print_study(study: schemas.StudyDocument) -> None:
    """Print alarms and main figures of each run of a study, figures over seeds, and what is proved."""
    runs = [Run(document, Path(), []) for document in study.runs]
    label_runs(runs)
    head = choose_headline(study, runs)
    runs = rank_runs(runs, head)
    for table in (accuracy.models(runs, head), accuracy.over_seeds(study), robustness.proved(runs)):
        if table is not None and table.rows:
            print_table(table)


def list_trained(entries: Sequence[schemas.ZooEntry]) -> list[dict[str, object]]:
    """Return a row for each trained model: its network, accuracy clean and at worst under attack, and the images."""

    def accuracy(entry: schemas.ZooEntry, attack: str, epsilon: float) -> str:
        figure = entry.audit.accuracy(attack, epsilon)
        return f"{formatting.percent(figure.value)} {formatting.interval(figure.ci, 1, scale=100)}".strip()

    return [
        {
            "name": entry.name,
            "network": entry.architecture,
            "pixels": entry.input.size,
            "clean": accuracy(entry, "clean", 0.0),
            "worst case at 0.02": accuracy(entry, WORST_CASE, 0.02),
            "certified at 0.02": accuracy(entry, CERTIFIED, 0.02).replace(formatting.DASH, ""),
            "images": f"{entry.audit.n} of {entry.audit.data}",
            "MB": f"{(entry.bytes or 0) / 1e6:.1f}",
        }
        for entry in entries
    ]


def describe_export(export: schemas.ExportDocument) -> list[str]:
    """Return the exported file, the largest difference from the run, and the next command."""
    kind = f"ONNX, opset {export.opset}" if export.opset else "torch.export program"
    trust = " --trust-code" if export.format == "torch-export" else ""
    return [
        f"{export.file}: {kind}, any batch of images of {export.size} x {export.size} pixels in [0, 1]",
        f"logits differ from the run by at most {export.largest:.1e} on {export.images} (limit {export.allowed:.0e})",
        f"to audit it: trustcxr audit {shell_quote(export.model_file)} --data PATH --out DIR{trust}",
        *([f"note: {export.note}"] if export.note else []),
    ]


CALIBRATED = "probabilities are calibrated on the run's validation images, which may not hold for other images"
NOT_CALIBRATED = "probabilities are not calibrated. Run `trustcxr evaluate` on the run's own data."


def describe_answer(answer: schemas.ImageAnswer) -> list[str]:
    """Return the answer for one image as lines."""
    parts = {"answer": answer, "fault": _fault(answer), "calibrated": CALIBRATED, "not_calibrated": NOT_CALIBRATED}
    parts["method"] = f"heatmap ({Method.parse(answer.method).label})" if answer.method else "heatmap"
    return html.fill_lines("answer", parts)


def describe_failures(answers: Sequence[schemas.ImageAnswer]) -> str:
    """Return the images without an answer, the first reason, and what to do; empty if all are answered."""
    failed, parts = [answer for answer in answers if answer.error is not None], []
    for unwritten, advice in ((False, ". Give chest images as PNG, JPEG, TIFF or DICOM files"), (True, "")):
        if same := [answer for answer in failed if answer.unwritten == unwritten]:
            others = f" and {len(same) - 1} more" if len(same) > 1 else ""
            parts.append(f"{same[0].image}{others}: {_fault(same[0])}{advice}")
    return "; ".join(parts)


def _fault(answer: schemas.ImageAnswer) -> str:
    return f"{'' if answer.unwritten else 'not read: '}{answer.error}"


def describe_ood_fit(fit: schemas.OodDocument) -> str:
    """Return how the out-of-distribution threshold was set, and its false alarms."""
    return (
        f"{fit.run}: fitted on {plural(fit.trained or 0, 'training image')}; the threshold accepts "
        f"{format_percent(fit.accepted)} of "
        f"{plural(fit.validated or 0, 'validation image')}; false alarms: {format_share(fit.false_alarms)} of "
        f"{plural(fit.tested or 0, 'test image')}"
    )


def describe_training(training: schemas.TrainingDocument, at: str = "") -> str:
    """Return training.json in a line; `at`: the radius of the validation attack, as " at epsilon 0.02"."""
    refit = plural(training.refit.epochs or 0, "epoch") if training.refit else ""
    again = f"; then a refit of {refit} with the validation images" if refit else ""
    epochs = plural(training.epochs or 0, "epoch")
    return f"best {training.monitor} {format_percent(training.best_value)}{at} after {epochs}{again}"


def list_accuracies(document: schemas.RunDocument) -> list[dict[str, str]]:
    """Return accuracy clean and under each attack, a row each."""
    clean, rows = document.clean, []
    parts: list[schemas.Classification | schemas.AttackResult] = [clean, *document.attacks]
    for part in parts:
        name, epsilon = "clean", ""
        if isinstance(part, schemas.AttackResult):
            name, epsilon = part.effort.name, f"{part.epsilon:g}"
            name += f" from {part.surrogate}" if part.surrogate else ""
        rows.append(
            {
                "condition": name,
                "epsilon": epsilon,
                "accuracy": format_share(part.accuracy),
                "balanced": format_percent(part.balanced_accuracy.value),
                "macro F1": _number(clean.f1_macro.value) if part is clean else "",
                "AUROC": _number(clean.auroc_macro.value) if part is clean else "",
                "calibration error": _error(part.ece),
                "n": str(part.n),
            }
        )
    return rows


def describe_metrics(document: schemas.RunDocument) -> list[str]:
    """Return the other metrics, a line each: masking, corruptions, external data, shortcuts, calibration."""
    formats = {"share": format_share, "percent": format_percent, "error": _error, "with_constant": _with_constant}
    parts = {"document": document, "worst": find_lowest(document.corruptions), "f": formatting}
    return html.fill_lines("metrics", {**parts, **formats})


def list_saliency(part: schemas.SaliencyDocument) -> list[dict[str, str]]:
    """Return the measures of one saliency method with the lead over the closest baseline map, a row each."""
    closest = {lead.measure: lead for lead in (*part.over_baselines, *part.beyond)}
    figures = part.figures | (part.faithfulness.figures if part.faithfulness else {})
    return [
        {
            "measure": name.replace("_", " "),
            "value": f"{_number(figure.value)} [{', '.join(map(_number, figure.ci))}]",
            "chance": _number(figure.chance),
            "lead over closest baseline": _format_lead(closest.get(name)),
            "random weights": _number(figure.randomised),
        }
        for name, figure in figures.items()
        if figure.ci is not None
    ]


def _format_lead(lead: schemas.Lead | None) -> str:
    if lead is None or lead.difference.value is None:
        return "-"
    ends = ", ".join(f"{end:+.3f}" for end in lead.difference.interval or ())
    return f"{lead.difference.value:+.3f} [{ends}] {format_baseline(lead.baseline)}"


def describe_saliency(part: schemas.SaliencyDocument) -> list[str]:
    """Return what a map shows, a line each: cells, why it has no hit rate, verdict, alarm."""
    random = part.random_weights or schemas.RandomWeights()
    weights = f"{plural(random.draws or 0, 'network')} on {plural(random.n or 0, 'image')}"
    lines = (
        f"{part.cells} cells" if part.cells else "",
        f"random weights: {weights}" if part.random_weights else "",
        part.withheld if part.cells == ONE_CELL or not part.withheld else f"hit rate -: {part.withheld}",
        f"it {part.verdict}" if part.verdict.startswith("says") else part.verdict,
        f"ALARM: {part.survives}" if part.survives else "",
    )
    return [line for line in lines if line]


def format_share(share: schemas.Share) -> str:
    """Return a share as percent with its 95 % interval."""
    low, high = share.ci or (None, None)
    return f"{format_percent(share.value)} [{format_percent(low)}, {format_percent(high)}]"


def format_percent(value: float | None) -> str:
    """Return 12.3%, or a dash."""
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


def _error(share: schemas.Share) -> str:
    ends = f" [{', '.join(map(_number, share.ci))}]" if share.ci else ""
    return _number(share.value) + ends


def _with_constant(part: schemas.Accuracy) -> str:
    """Return accuracy, balanced accuracy, the constant answer and the number of images."""
    balanced = part.balanced_accuracy.value
    text = "" if balanced is None else f", balanced {format_percent(balanced)}"
    return f"{format_share(part.accuracy)}{text}, constant answer {format_percent(part.constant_answer)}, n {part.n}"


_UNITS = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"))


def list_states(plan: schemas.StudyPlan) -> list[dict[str, str]]:
    """Return a row for each run: its state, and the time left if any run has an estimate, else the steps left."""
    timed = any(one.left for one in plan.runs)
    return [
        {"run": one.run, "stands": f"{one.state}: {one.at}" if one.at else str(one.state)}
        | {"left": _time_left(one) if timed else _steps_left(one)}
        for one in plan.runs
    ]


def _steps_left(one: schemas.RunPlan) -> str:
    every = f"every step, {plural(one.epochs or 0, 'epoch')}"
    return every if len(one.seconds) == len(STEP_FILES) else ", ".join(one.seconds) or formatting.DASH


def _time_left(one: schemas.RunPlan) -> str:
    if one.state == "done" or one.left is None:
        return formatting.DASH
    return next((f"{one.left / size:.1f} {unit}" for size, unit in _UNITS if one.left >= size), f"{one.left:.0f} s")


def describe_status(plan: schemas.StudyPlan) -> list[str]:
    """Return the number of runs by state, locks, failures with reasons, and the time left, a line each."""
    parts = {"plan": plan, "plural": plural, "folder": shell_quote(plan.folder or "FOLDER")}
    return html.fill_lines("status", parts)


def describe_verification(result: schemas.VerifiedDocument) -> list[str]:
    """Return the results of `verify`, a line for each figure that differs."""
    return html.fill_lines("verification", {"result": result, "plural": plural})


def list_prunable(document: schemas.PruneDocument) -> list[dict[str, str]]:
    """Return a row for each cache and checkpoint: size, age, and why it remains."""
    return [
        {
            "what": f"{one.kind}: {one.what}",
            "size": megabytes(one.bytes),
            "days": f"{one.days:.0f}",
            "": "removed" if one.removed else f"held by {one.user}" if one.user else one.why or "old",
            "where": one.path,
        }
        for one in document.entries
    ]


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


def describe_audit(document: schemas.AuditDocument) -> list[str]:
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


def describe_soundness(document: schemas.AuditDocument) -> str:
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


def split_statement(row: schemas.Statement) -> tuple[str, str, str]:
    """Return a statement's question, its figures as a sentence, and the words of its answer."""
    figures, _, word = row.text.rpartition(": ")
    return title_question(row.question), f"{figures}." if figures else "", word


def title_question(question: str) -> str:
    """Return a question of the verdict as a reader asks it, or the name of an acceptance criterion."""
    return QUESTIONS.get(question, f"Criterion “{question}”:")


def describe_model(document: schemas.AuditDocument) -> tuple[tuple[str, ...], str]:
    """Return the model with its notes, and the images with the protocol."""
    model, data = document.model, document.data
    weights = f", {model.parameters:,} parameters" if model.parameters else ""
    protocol = document.protocol or "options of its own, so it compares with no other audit"
    return (
        (f"{model.name} ({model.kind}{weights}), classes {', '.join(document.classes)}", *model.notes),
        f"{data.images} images of “{data.name}”, split {document.split}, by {protocol}",
    )


def describe_results(document: schemas.AuditDocument) -> tuple[str, ...]:
    """Return accuracy on unperturbed, attacked, submitted and corrupted images, a line each."""
    parts = {"document": document, "worst": find_lowest(document.corruptions)}
    return tuple(html.fill_lines("results", parts | {"share": format_share, "percent": format_percent}))


def _describe_operating_point(document: schemas.AuditDocument, point: schemas.OperatingPoint) -> list[str]:
    """Return sensitivity and specificity of a class or finding, clean and under the attack that leaves least."""
    first = f"  {point.finding}, {format_threshold(point)}: {format_rates(point)}"
    return [first, *(f"    {line}" for line in describe_attacked(document, point.finding))]


def describe_attacked(document: schemas.AuditDocument, finding: str) -> list[str]:
    """Return one line on the attack that leaves least of a finding, or none if nothing was measured."""
    if (worst := find_hardest(document, finding)) is None:
        return []
    target = {"": "", "answer": ", made against the answer and not against this threshold, at most"}
    against = target.get(worst.aimed_at, ", made against this threshold, at most")
    return [f"under {worst.effort.name} at epsilon {worst.epsilon:g}{against}: {format_rates(worst)}"]


def find_hardest(document: schemas.AuditDocument, finding: str) -> schemas.OperatingPoint | None:
    """Return the attack with the lowest sum of sensitivity and specificity; None without any."""

    def key(point: schemas.OperatingPoint) -> tuple[float, bool]:
        return (point.sensitivity.value or 0.0) + (point.specificity.value or 0.0), point.attack != WORST_CASE

    attacked = [p for p in document.operating_points if p.finding == finding and p.attack != CLEAN]
    measured = [p for p in attacked if (p.sensitivity.value, p.specificity.value) != (None, None)]
    return min(measured, key=key, default=None)


def format_threshold(point: schemas.OperatingPoint) -> str:
    """Return the threshold and where it comes from."""
    threshold = point.threshold
    return point.origin if threshold is None else f"from {format_probability(threshold)} on ({point.origin})"


def format_rates(point: schemas.OperatingPoint) -> str:
    """Return sensitivity, specificity, likelihood ratios and AUROC with their intervals."""
    parts = [("sensitivity", point.sensitivity), ("specificity", point.specificity), ("AUROC", point.auroc)]
    texts = [f"{name} {format_share(share)}" for name, share in parts]
    return ", ".join([*texts[:2], *_format_ratios(point), *texts[2:]])


def _format_ratios(point: schemas.OperatingPoint) -> list[str]:
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


def describe_limits(document: schemas.AuditDocument) -> tuple[str, ...]:
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


def list_pairs(pair: schemas.AuditPair) -> list[dict[str, str | int | None]]:
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


def describe_pairs(pair: schemas.AuditPair) -> list[str]:
    """Return the limits of a comparison, a line each."""
    names, open_rows = (pair.first, pair.second), [row for row in pair.rows if not row.settled]
    parts = {
        "pair": pair,
        "names": list(zip(names, pair.sound, strict=True)),
        "few": [row.measure for row in open_rows if (row.p_least or 0.0) * len(pair.rows) >= schemas.LEVEL],
        "submitted": [(name, by) for name, by in zip(names, pair.submitted, strict=False) if by],
    }
    return html.fill_lines("pairs", parts)
