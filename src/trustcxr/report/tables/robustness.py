"""What the page says beyond the leaderboard: corruptions, masking, calibration, planted shortcuts, other data."""

from trustcxr.report import formatting
from trustcxr.report.load import Run, find_lowest
from trustcxr.report.ranking import Headline
from trustcxr.report.tables.confusion import WRONG, shaded
from trustcxr.report.tables.table import Cell, Table, plain, run_cells, share, whole
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import Calibrated, Calibration, CorruptionResult, CorruptionsMean, RunDocument
from trustcxr.storage.schemas.test_figures import FGSM_OVERSTATES


def corrupted(runs: list[Run]) -> Table | None:
    """A row for each run: clean, the mean over all corruptions, flips, and the worst; None where none was tested."""
    rows = []
    for run in runs:
        mean, entries = run.metrics.corruptions_mean or CorruptionsMean(), _corruptions(run)
        if not entries:
            continue
        worst = find_lowest(entries)
        name = (
            f"{formatting.corruption(worst.corruption)}, severity {formatting.count(worst.severity)}"
            if worst
            else formatting.DASH
        )
        rows.append(
            [
                *run_cells(run),
                share(run.clean.accuracy),
                share(mean.accuracy),
                share(mean.flip_rate),
                Cell(name),
                share(worst.accuracy if worst else None),
                whole(mean.n),
            ]
        )
    titles = ["Clean, %", "Corrupted, mean, %", "Answers changed, %", "Worst", "Accuracy there, %", "n"]
    return Table("Accuracy on corrupted images", ["Model", "Defence", *titles], rows, heads=2) if rows else None


def heats(runs: list[Run]) -> list[Table]:
    """Return for each corrupted run its accuracy by corruption and severity, shaded by what is lost."""
    tables = []
    for run in runs:
        entries, clean = _corruptions(run), run.clean.accuracy.value
        if not entries:
            continue
        severities = sorted({entry.severity for entry in entries if entry.severity is not None})
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


def _corruptions(run: Run) -> list[CorruptionResult]:
    entries = run.metrics.corruptions
    return [e for e in entries if e.corruption and e.severity is not None and e.accuracy.value is not None]


_VERDICTS: dict[bool | None, Cell] = {True: Cell("failing", note="bad"), False: Cell("no sign", note="good")}
_OVERSTATES = Cell("no sign, but FGSM overstates")


def masking(runs: list[Run]) -> Table | None:
    """The verdict on failing gradients of each run; None where none was given."""
    rows = []
    for run in runs:
        verdict = run.metrics.masking
        if verdict is None:
            continue
        unknown = Cell("says nothing" if verdict.looked_for else "not looked for", note="quiet")
        cell = _VERDICTS.get(verdict.masked, unknown)
        rows.append(
            [
                *run_cells(run),
                _OVERSTATES if verdict.masked is False and run.alarmed(FGSM_OVERSTATES) else cell,
                Cell(formatting.capital(verdict.reasons or formatting.DASH), note="prose"),
                Cell(formatting.join_words(verdict.looked_for), note="prose"),
            ]
        )
    header = ["Model", "Defence", "Failing gradients", "Because", "What these attacks allowed to look for"]
    return Table("Verdict on masked gradients", header, rows, heads=2) if rows else None


def calibration(runs: list[Run], head: Headline) -> Table | None:
    """Calibration before and after temperature scaling, clean and under the headline's attacks; None without any."""
    rows = []
    for run in runs:
        document = run.metrics.calibration
        for name, part in _conditions(document, head) if document else ():
            rows.append(
                [
                    *run_cells(run),
                    Cell(name),
                    plain(document.temperature if document else None, 2),
                    plain(part.ece),
                    plain(part.ece_scaled),
                    *(
                        share(part_share.value)
                        for part_share in (part.accuracy, part.confidence, part.confidence_scaled)
                    ),
                    *(plain(part_share.value, 2) for part_share in (part.log_loss, part.log_loss_scaled)),
                    whole(part.n),
                ]
            )
    header = ["Model", "Defence", "Images", "Temperature", "Calibration error", "scaled", "Accuracy, %"]
    header += ["Mean confidence, %", "scaled, %", "Log loss", "scaled", "n"]
    return Table("Calibration", header, rows, heads=3) if rows else None


def _conditions(document: Calibration, head: Headline) -> list[tuple[str, Calibrated]]:
    """Clean, and the attacks of the headline's epsilon, with their names."""
    conditions = [(CLEAN, document.clean)] if "clean" in document.model_fields_set else []
    for part in document.attacks:
        if part.at(head.epsilon):
            conditions.append(
                (f"{formatting.attack(part.attack, part.steps)} {formatting.epsilon(part.epsilon)}", part)
            )
    return conditions


def planted(runs: list[Run]) -> Table | None:
    """Accuracy with a planted shortcut as it is, removed and moved; None where none was looked at."""
    rows = []
    for run in runs:
        for kind, part in run.metrics.planted_shortcuts.items():
            where = f"{formatting.measure(kind)} of {part.carrier}, moved to {part.moved_to}"
            cells = [share(how.accuracy) for how in (part.as_is, part.removed, part.moved)]
            follows = [share(part.follows_before), share(part.follows)]
            rows.append([*run_cells(run), Cell(where), *cells, *follows, whole(part.n)])
    header = ["Model", "Defence", "Shortcut", "As it is, %", "Removed, %", "Moved, %"]
    header += ["Taken for its class before, %", "and with it, %", "n"]
    return Table("Planted shortcuts", header, rows, heads=3) if rows else None


def other_data(runs: list[Run]) -> Table | None:
    """Each run on other data sets, from runs/*/evaluations, and what it loses there; None where there is none."""
    rows = []
    for run in runs:
        for name, document in run.evaluations.items():
            rows += [[*run_cells(run), Cell(name), *cells] for cells in _drops(document)]
    header = ["Model", "Defence", "Data", "Images", "Own test images, %", "There, %", "Lost, points", "n"]
    return Table("Other data", header, rows, heads=4) if rows else None


def other_data_by_group(runs: list[Run]) -> Table | None:
    """Each run on other data sets, apart by source and by how external it is; None where nothing divides them."""
    rows = []
    for run in runs:
        for name, document in run.evaluations.items():
            for column in ("strict_external", "source"):
                for value, part in document.by_group.get(column, {}).items():
                    cells = [share(part.accuracy), share(part.balanced_accuracy), share(part.constant_answer)]
                    what = Cell(f"{formatting.measure(column)}: {value}")
                    rows.append([*run_cells(run), Cell(name), what, *cells, whole(part.n)])
    header = ["Model", "Defence", "Data", "Part", "Accuracy, %", "Balanced, %", "Constant answer, %", "n"]
    return Table("Other data, part by part", header, rows, heads=4) if rows else None


def _drops(document: RunDocument) -> list[list[Cell]]:
    rows = []
    for part in document.drop_from_internal:
        attack = f"{formatting.attack(part.attack, part.steps)} {formatting.epsilon(part.epsilon)}"
        lost = share(part.drop)
        sides = [share(part.internal), share(part.external)]
        rows.append([Cell(CLEAN if part.attack == CLEAN else attack), *sides, lost, whole(part.n_external)])
    if not rows:
        clean = document.clean
        rows = [
            [Cell(CLEAN), Cell(formatting.DASH), share(clean.accuracy.value), Cell(formatting.DASH), whole(clean.n)]
        ]
    return rows
