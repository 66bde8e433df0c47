"""What the page says beyond the leaderboard: corruptions, masking, calibration, planted shortcuts, other data."""

from dataclasses import dataclass
from typing import Any

from trustcxr.errors import UserError
from trustcxr.evaluation.gradient_masking import FGSM_OVERSTATES
from trustcxr.report import words
from trustcxr.report.ranking import Headline
from trustcxr.report.study_folder import Run
from trustcxr.report.tables.cells import Cell, Table, _names, plain, share, whole
from trustcxr.report.tables.confusion import Entry, Row
from trustcxr.results import files, folders

_DEEP = 0.45  # opacity from which text on it is white


@dataclass(frozen=True)
class Heat:
    """Accuracy of one run by corruption and severity, shaded by what is lost from the clean images."""

    title: str
    caption: str
    severities: list[str]
    rows: list[Row]


def corrupted(runs: list[Run]) -> Table | None:
    """A row for each run: clean, the mean over all corruptions, flips, and the worst; None where none was tested."""
    rows = []
    for run in runs:
        mean, entries = run.metrics.get("corruptions_mean"), _corruptions(run)
        if not entries:
            continue
        worst = min(entries, key=lambda entry: float(entry["accuracy"]))
        name = f"{words.corruption(worst['corruption'])}, severity {words.count(worst.get('severity'))}"
        rows.append(
            [
                *_names(run),
                share(run.clean("accuracy"), run.clean("accuracy_ci")),
                share(words.get(mean, "accuracy"), words.get(mean, "accuracy_ci")),
                share(words.get(mean, "flip_rate"), words.get(mean, "flip_rate_ci")),
                Cell(name),
                share(worst["accuracy"], worst.get("accuracy_ci")),
                whole(words.get(mean, "n")),
            ]
        )
    titles = ["Clean, %", "Corrupted, mean, %", "Answers changed, %", "Worst", "Accuracy there, %", "n"]
    return Table(["Model", "Defence", *titles], rows, heads=2) if rows else None


def heats(runs: list[Run]) -> list[Heat]:
    """A table for each run that was tested on corruptions."""
    return [heat for heat in map(_heat, runs) if heat is not None]


def _heat(run: Run) -> Heat | None:
    entries, clean = _corruptions(run), words.finite(run.clean("accuracy"))
    if not entries:
        return None
    severities = sorted({int(entry["severity"]) for entry in entries})
    by_name: dict[str, dict[int, float]] = {}
    for entry in entries:
        by_name.setdefault(str(entry["corruption"]), {})[int(entry["severity"])] = float(entry["accuracy"])
    rows = []
    for name, accuracies in by_name.items():
        cells = []
        for severity in severities:
            accuracy = accuracies.get(severity)
            lost = (clean - accuracy) / clean if clean and accuracy is not None else 0.0
            alpha = 0.9 * min(max(lost, 0.0), 1.0)
            cells.append(Entry(words.hundred(accuracy, 0), "", f"{alpha:.3f}", alpha > _DEEP, False))
        rows.append(Row(words.corruption(name), cells))
    caption = f"clean {words.percent(clean)}, n = {words.count(entries[0].get('n'))}"
    return Heat(run.label, caption, [str(severity) for severity in severities], rows)


def _corruptions(run: Run) -> list[dict[str, Any]]:
    entries = words.records(run.metrics.get("corruptions"))
    return [
        entry
        for entry in entries
        if entry.get("corruption")
        and words.finite(entry.get("accuracy")) is not None
        and words.finite(entry.get("severity")) is not None
    ]


_VERDICTS: dict[Any, Cell] = {True: Cell("failing", note="bad"), False: Cell("no sign", note="good")}
_OVERSTATES = Cell("no sign, but FGSM overstates")


def masking(runs: list[Run]) -> Table | None:
    """The verdict on failing gradients of each run; None where none was given."""
    rows = []
    for run in runs:
        verdict = run.metrics.get("masking")
        if not isinstance(verdict, dict):
            continue
        looked = verdict.get("looked_for")
        unknown = Cell("says nothing" if looked else "not looked for", note="quiet")
        cell = _VERDICTS.get(verdict.get("masked"), unknown)
        rows.append(
            [
                *_names(run),
                _OVERSTATES if verdict.get("masked") is False and run.alarmed(FGSM_OVERSTATES) else cell,
                Cell(_sentence(verdict.get("because")), note="prose"),
                Cell(words.listed(map(str, looked)) if isinstance(looked, list) else words.DASH, note="prose"),
            ]
        )
    header = ["Model", "Defence", "Failing gradients", "Because", "What these attacks allowed to look for"]
    return Table(header, rows, heads=2) if rows else None


def _sentence(text: Any) -> str:
    found = str(text or words.DASH)
    return found[:1].upper() + found[1:]


def calibration(runs: list[Run], head: Headline) -> Table | None:
    """Calibration before and after temperature scaling, clean and under the headline's attacks; None without any."""
    rows = []
    for run in runs:
        document = run.metrics.get("calibration")
        for name, part in _conditions(document, head):
            rows.append(
                [
                    *_names(run),
                    Cell(name),
                    plain(words.get(document, "temperature"), 2),
                    plain(part.get("ece"), 3, part.get("ece_ci")),
                    plain(part.get("ece_scaled"), 3, part.get("ece_scaled_ci")),
                    share(part.get("accuracy")),
                    share(part.get("confidence")),
                    share(part.get("confidence_scaled")),
                    plain(part.get("log_loss"), 2),
                    plain(part.get("log_loss_scaled"), 2),
                    whole(part.get("n")),
                ]
            )
    header = ["Model", "Defence", "Images", "Temperature", "Calibration error", "scaled", "Accuracy, %"]
    header += ["Mean confidence, %", "scaled, %", "Log loss", "scaled", "n"]
    return Table(header, rows, heads=3) if rows else None


def _conditions(document: Any, head: Headline) -> list[tuple[str, dict[str, Any]]]:
    """Clean, and the attacks of the headline's epsilon, with their names."""
    clean = words.get(document, "clean")
    found = [("clean", clean)] if isinstance(clean, dict) else []
    for part in words.records(words.get(document, "attacks")):
        epsilon = words.finite(part.get("epsilon"))
        if epsilon is not None and head.epsilon is not None and abs(epsilon - head.epsilon) < 1e-9:
            found.append((f"{words.attack(part.get('attack'), part.get('steps'))} {words.epsilon(epsilon)}", part))
    return found


def planted(runs: list[Run]) -> Table | None:
    """Accuracy with a planted shortcut as it is, removed and moved; None where none was looked at."""
    rows = []
    for run in runs:
        document = run.metrics.get("planted_shortcuts")
        for kind, part in document.items() if isinstance(document, dict) else ():
            cells = [
                share(words.get(part, how, "accuracy"), words.get(part, how, "accuracy_ci"))
                for how in ("as_is", "removed", "moved")
            ]
            where = f"{words.measure(kind)} of {words.get(part, 'class')}, moved to {words.get(part, 'moved_to')}"
            follows = [share(words.get(part, name)) for name in ("follows_before", "follows")]
            rows.append([*_names(run), Cell(where), *cells, *follows, whole(words.get(part, "n"))])
    header = ["Model", "Defence", "Shortcut", "As it is, %", "Removed, %", "Moved, %"]
    header += ["Taken for its class before, %", "and with it, %", "n"]
    return Table(header, rows, heads=3) if rows else None


def other_data(runs: list[Run]) -> Table | None:
    """Each run on other data sets, from runs/*/evaluations, and what it loses there; None where there is none."""
    rows = []
    for run in runs:
        for file in sorted(run.folder.glob(f"evaluations/*/{folders.METRICS_FILE}")):
            try:
                document = files.read_json(file)
            except UserError:
                run.notes.append(f"{run.folder.name}/{file.parent.name}/{file.name} could not be read.")
                continue
            rows += [[*_names(run), Cell(file.parent.name), *cells] for cells in _drops(document)]
    header = ["Model", "Defence", "Data", "Images", "Own test images, %", "There, %", "Lost, points", "n"]
    return Table(header, rows, heads=4) if rows else None


def other_data_by_group(runs: list[Run]) -> Table | None:
    """Each run on other data sets, apart by source and by how external it is; None where nothing divides them."""
    rows = []
    for run in runs:
        for file in sorted(run.folder.glob(f"evaluations/*/{folders.METRICS_FILE}")):
            try:
                document = files.read_json(file)
            except UserError:  # said by other_data
                continue
            for column in ("strict_external", "source"):
                parts = words.get(document, "by_group", column)
                for name, part in parts.items() if isinstance(parts, dict) else ():
                    cells = [
                        share(words.get(part, "accuracy"), words.get(part, "accuracy_ci")),
                        share(words.get(part, "balanced_accuracy"), words.get(part, "balanced_accuracy_ci")),
                        share(words.get(part, "constant_answer")),
                        whole(words.get(part, "n")),
                    ]
                    what = Cell(f"{words.measure(column)}: {name}")
                    rows.append([*_names(run), Cell(file.parent.name), what, *cells])
    header = ["Model", "Defence", "Data", "Part", "Accuracy, %", "Balanced, %", "Constant answer, %", "n"]
    return Table(header, rows, heads=4) if rows else None


def _drops(document: Any) -> list[list[Cell]]:
    found = []
    for part in words.records(words.get(document, "drop_from_internal")):
        clean = part.get("attack") == "clean"
        attack = f"{words.attack(part.get('attack'), part.get('steps'))} {words.epsilon(part.get('epsilon'))}"
        lost = words.finite(part.get("drop"))
        cell = Cell(words.hundred(lost), words.between(part.get("drop_ci"), 1, scale=100), value=lost)
        sides = [share(part.get(side)) for side in ("internal", "external")]
        found.append([Cell("clean" if clean else attack), *sides, cell, whole(part.get("n_external"))])
    if not found and isinstance(document, dict):
        there = document.get("clean")
        n = whole(words.get(there, "n"))
        found = [[Cell("clean"), Cell(words.DASH), share(words.get(there, "accuracy")), Cell(words.DASH), n]]
    return found
