"""Where the figures come from: counts, selection, training."""

from typing import Any

from trustcxr.report import words
from trustcxr.report.study_folder import Run
from trustcxr.report.tables.cells import Cell, Table, _names, plain, share, whole
from trustcxr.report.tables.leaderboard import _capital


def counts(study: dict[str, Any], classes: tuple[str, ...]) -> Table | None:
    """Images per split and class, and how many have an infection mask."""
    splits = words.get(study, "data", "counts")
    if not isinstance(splits, dict) or not splits:
        return None
    names = list(classes) + sorted({str(c) for s in splits.values() if isinstance(s, dict) for c in s} - set(classes))
    rows = []
    for split, numbers in splits.items():
        values = [words.finite(words.get(numbers, name)) for name in names]
        total = sum(v for v in values if v is not None) if any(v is not None for v in values) else None
        masks = words.get(study, "data", "infection_masks", str(split))
        rows.append([Cell(str(split)), *[whole(v) for v in values], whole(total), whole(masks)])
    return Table(["Split", *names, "All", "With infection mask"], rows)


def selection(study: dict[str, Any]) -> Table | None:
    """The ranking on validation by which networks were chosen for robust training."""
    ranking = words.records(words.get(study, "selection", "ranking"))
    if not ranking:
        return None
    by = str(words.get(study, "selection", "by") or "figure")
    rows = []
    for place, entry in enumerate(ranking, start=1):
        value = share(entry.get("value")) if _is_share(entry.get("value")) else plain(entry.get("value"))
        chosen = Cell("chosen", note="good") if entry.get("chosen") else Cell("not chosen", note="quiet")
        rows.append([Cell(str(place)), Cell(str(entry.get("model") or words.DASH)), value, chosen])
    unit = ", %" if all(_is_share(e.get("value")) for e in ranking) else ""
    return Table(["Rank", "Model", f"{_capital(words.measure(by))}{unit}", ""], rows)


def _is_share(value: Any) -> bool:
    number = words.finite(value)
    return number is not None and 0 <= number <= 1


def training(runs: list[Run]) -> Table:
    """How each run was trained: epochs, what stopped it, time and size."""
    header = [
        "Model",
        "Defence",
        "Parameters",
        "Epochs",
        "Best epoch",
        "Chosen by",
        "Best value, %",
        "Stopped by",
        "Time",
    ]
    again = any(_refit_epochs(run) is not None for run in runs)
    header += ["Then on both, epochs"] if again else []
    rows = []
    for run in runs:
        document = run.metrics.get("training")
        rows.append(
            [
                *_names(run),
                whole(words.get(document, "parameters")),
                whole(words.get(document, "epochs")),
                whole(words.get(document, "best_epoch")),
                Cell(words.measure(words.get(document, "monitor") or words.DASH)),
                share(words.get(document, "best_value")),
                Cell(str(words.get(document, "stopped") or words.DASH)),
                Cell(words.seconds(words.get(document, "seconds")), value=words.finite(words.get(document, "seconds"))),
                *([whole(_refit_epochs(run))] if again else []),
            ]
        )
    return Table(header, rows, heads=2)


def _refit_epochs(run: Run) -> Any:
    """How long a run was trained once more, on training and validation images together; None where it was not."""
    return words.get(run.metrics, "training", "refit", "epochs")
