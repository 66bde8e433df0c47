"""Build the tables of proofs, corruptions, masked gradients, calibration, planted shortcuts and other data."""

from trustcxr.report import formatting
from trustcxr.report.key_findings import Headline
from trustcxr.report.load import Run, find_lowest
from trustcxr.report.tables.accuracy import WRONG, shaded
from trustcxr.report.tables.table import Cell, Table, plain, run_cells, share, whole
from trustcxr.storage import schemas
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas.run_document import FGSM_OVERSTATES

Proof = tuple[Run, schemas.CertifiedResult, schemas.AttackResult]  # with the strongest attack at its epsilon
SCOPE = "The proof is of the pixels that the network sees, after decoding and resizing, not of the file."


def list_proofs(runs: list[Run]) -> list[Proof]:
    """Return every run and epsilon that was certified, with the strongest attack, which is empty if none was run."""
    return [
        (run, entry, run.strongest(entry.epsilon))
        for run in runs
        for entry in run.metrics.certified
        if entry.epsilon is not None and entry.accuracy.value is not None
    ]


def by_intervals(runs: list[Run]) -> str:
    """Return the runs and epsilons that were certified without CROWN; empty without any."""
    rows = [(run, entry) for run, entry, _ in list_proofs(runs) if entry.method == "ibp"]
    return ", ".join(f"epsilon {formatting.epsilon(entry.epsilon)} of {run.name}" for run, entry in rows)


def proved(runs: list[Run]) -> Table | None:
    """Return a row per run and epsilon that was certified; None without any."""
    rows = []
    for run, entry, lowest in list_proofs(runs):
        attacked = lowest.accuracy.value
        between = share(None if attacked is None else attacked - (entry.accuracy.value or 0.0))
        accuracies = map(share, (entry.accuracy, entry.balanced_accuracy, lowest.accuracy))
        cells = [*accuracies, Cell(lowest.effort.name or formatting.DASH), between, share(run.clean.accuracy)]
        rows.append([*run_cells(run), Cell(formatting.epsilon(entry.epsilon)), *cells, whole(entry.n)])
    titles = ["Epsilon", "Certified, %", "Balanced, %", "Under attack, %", "Strongest", "Open, points", "Clean, %", "n"]
    return Table("Certified accuracy and attacks", ["Model", "Defence", *titles], rows, heads=2) if rows else None


def corrupted(runs: list[Run]) -> Table | None:
    """Return a row per run: clean, the mean over all corruptions, flips, and the worst; None without any."""
    rows = []
    for run in runs:
        mean, worst = run.metrics.corruptions_mean or schemas.CorruptionsMean(), find_lowest(run.metrics.corruptions)
        if worst is not None:
            name = f"{formatting.corruption(worst.corruption)}, severity {formatting.count(worst.severity)}"
            cells = [share(run.clean.accuracy), share(mean.accuracy), share(mean.flip_rate)]
            rows.append([*run_cells(run), *cells, Cell(name), share(worst.accuracy), whole(mean.n)])
    titles = ["Clean, %", "Corrupted, mean, %", "Answers changed, %", "Worst", "Worst accuracy, %", "n"]
    return Table("Accuracy on corrupted images", ["Model", "Defence", *titles], rows, heads=2) if rows else None


def heats(runs: list[Run]) -> list[Table]:
    """Return a table per run: accuracy by corruption and severity, shaded by the loss."""
    tables = []
    for run in runs:
        entries = [entry for entry in run.metrics.corruptions if entry.accuracy.value is not None]
        if not entries:
            continue
        clean, severities = run.clean.accuracy.value, sorted({entry.severity or 0 for entry in entries})
        accuracies = {(entry.corruption, entry.severity): entry.accuracy.value for entry in entries}
        rows = []
        for name in dict.fromkeys(entry.corruption for entry in entries):
            cells = [_heat(accuracies.get((name, severity)), clean) for severity in severities]
            rows.append([Cell(formatting.corruption(name)), *cells])
        caption = f"clean {formatting.percent(clean)}, n = {formatting.count(entries[0].n)}; accuracy in %, by severity"
        tables.append(Table(f"Corruptions, {run.label}", ["", *map(str, severities)], rows, caption=caption))
    return tables


def _heat(accuracy: float | None, clean: float | None) -> Cell:
    lost = (clean - accuracy) / clean if clean and accuracy is not None else 0.0
    return Cell(formatting.percent_number(accuracy, 0), shade=shaded(WRONG, min(max(lost, 0.0), 1.0)))


def masking(runs: list[Run]) -> Table | None:
    """Return the verdict on failing gradients of each run; None without any."""
    rows = []
    for run in runs:
        if (verdict := run.metrics.masking) is None:
            continue
        cell = Cell("no verdict" if verdict.looked_for else "not checked", note="quiet text")
        if verdict.masked is not None:
            cell = Cell("failing", note="bad text") if verdict.masked else Cell("no sign", note="good text")
        if verdict.masked is False and run.alarmed(FGSM_OVERSTATES):
            cell = Cell("no sign, but FGSM overstates", note="text")
        reasons = formatting.capital("; ".join(verdict.reasons) or formatting.DASH)
        texts = (reasons, formatting.join_words(verdict.looked_for))
        rows.append([*run_cells(run), cell, *(Cell(text, note="prose") for text in texts)])
    header = ["Model", "Defence", "Failing gradients", "Reasons", "Checked"]
    return Table("Verdict on masked gradients", header, rows, heads=2) if rows else None


def calibration(runs: list[Run], head: Headline) -> Table | None:
    """Return calibration with and without temperature, clean and under the headline's attacks; None without any."""
    rows = []
    for run in runs:
        document = run.metrics.calibration or schemas.Calibration()
        for name, part in list_conditions(document, head):
            shares = (part.accuracy, part.confidence, part.confidence_scaled)
            cells = [plain(document.temperature, 2), *map(plain, (part.ece, part.ece_scaled))]
            cells += [share(figure.value) for figure in shares]
            cells += [plain(figure.value, 2) for figure in (part.log_loss, part.log_loss_scaled)]
            rows.append([*run_cells(run), Cell(name), *cells, whole(part.n)])
    header = ["Model", "Defence", "Images", "Temperature", "Calibration error", "scaled", "Accuracy, %"]
    header += ["Mean confidence, %", "scaled, %", "Log loss", "scaled", "n"]
    return Table("Calibration", header, rows, heads=3) if rows else None


def list_conditions(document: schemas.Calibration, head: Headline) -> list[tuple[str, schemas.Calibrated]]:
    """Return clean, and the attacks at the headline's epsilon, with their names."""
    conditions = [(CLEAN, document.clean)] if "clean" in document.model_fields_set else []
    return conditions + [(_name(part), part) for part in document.attacks if part.is_at(head.epsilon)]


def _name(part: schemas.Calibrated | schemas.Drop) -> str:
    return CLEAN if part.attack == CLEAN else f"{part.effort.name} {formatting.epsilon(part.epsilon)}"


def planted(runs: list[Run]) -> Table | None:
    """Return accuracy with a planted shortcut, without it, and with it moved; None without any."""
    rows = []
    for run in runs:
        for kind, part in run.metrics.planted_shortcuts.items():
            where = f"{formatting.measure(kind)} of {part.carrier}, moved to {part.moved_to}"
            cells = [share(how.accuracy) for how in (part.as_is, part.removed, part.moved)]
            follows = [share(part.follows_before), share(part.follows)]
            rows.append([*run_cells(run), Cell(where), *cells, *follows, whole(part.n)])
    header = ["Model", "Defence", "Shortcut", "Original, %", "Removed, %", "Moved, %"]
    header += ["Predicted as its class without it, %", "with it, %", "n"]
    return Table("Planted shortcuts", header, rows, heads=3) if rows else None


def other_data(runs: list[Run]) -> Table | None:
    """Return each run on other data sets, from runs/*/evaluations, and its loss; None without any."""
    rows = []
    for run in runs:
        for name, document in run.evaluations.items():
            clean = document.clean
            parts = [(_name(p), p.internal, p.external, p.drop, p.n_external) for p in document.drop_from_internal]
            for condition, *shares, n in parts or [(CLEAN, None, clean.accuracy.value, schemas.Share(), clean.n)]:
                rows.append([*run_cells(run), Cell(name), Cell(condition), *map(share, shares), whole(n)])
    header = ["Model", "Defence", "Data", "Images", "Own test images, %", "Other data, %", "Loss, points", "n"]
    return Table("Other data", header, rows, heads=4) if rows else None


def other_data_by_group(runs: list[Run]) -> Table | None:
    """Return each run on other data sets by source and by strict external; None without groups."""
    rows = []
    for run in runs:
        for name, document in run.evaluations.items():
            for column in ("strict_external", "source"):
                for value, part in document.by_group.get(column, {}).items():
                    what = Cell(f"{formatting.measure(column)}: {value}")
                    shares = map(share, (part.accuracy, part.balanced_accuracy, part.constant_answer))
                    rows.append([*run_cells(run), Cell(name), what, *shares, whole(part.n)])
    header = ["Model", "Defence", "Data", "Part", "Accuracy, %", "Balanced, %", "Constant answer, %", "n"]
    return Table("Other data, part by part", header, rows, heads=4) if rows else None
