"""Where the figures come from: counts, selection, training."""

from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.report.tables.table import Cell, Table, plain, run_cells, share, whole
from trustcxr.storage.schemas import DataCheck, StudyDocument

_SEVERE = ("fault", "leak")


def counts(study: StudyDocument, classes: tuple[str, ...]) -> Table | None:
    """Images per split and class, and how many have an infection mask."""
    splits = study.data.counts
    if not splits:
        return None
    names = list(classes) + sorted({name for numbers in splits.values() for name in numbers} - set(classes))
    rows = []
    for split, numbers in splits.items():
        values = [numbers.get(name) for name in names]
        total = sum(numbers[name] for name in names if name in numbers) if numbers else None
        masks = study.data.infection_masks.get(split)
        rows.append([Cell(split), *map(whole, values), whole(total), whole(masks)])
    return Table("Images per split and class", ["Split", *names, "All", "With infection mask"], rows)


def data_check_table(check: DataCheck | None) -> Table | None:
    """What was found wrong with the data, worst first; None where nothing was, or nobody looked."""
    rows = [
        [
            Cell(each.severity or formatting.DASH, note="bad" if each.severity in _SEVERE else ""),
            Cell(formatting.capital(each.text), note="prose"),
            whole(each.count),
        ]
        for each in (check.findings if check else [])
    ]
    return Table("What was found in the data", ["Kind", "What was found", "How many"], rows) if rows else None


def probes(check: DataCheck | None) -> Table | None:
    """How much of the class a linear model reads off parts of the picture that a network should not need."""
    rows = [
        [
            Cell(formatting.capital(each.view)),
            share(each.accuracy),
            share(each.chance),
            Cell(each.how or formatting.DASH, note="prose"),
            whole(each.tested_on),
        ]
        for each in (check.probes if check else [])
    ]
    header = ["What a linear model was shown", "Balanced accuracy, %", "Chance, %", "How", "n"]
    return Table("What gives the class away", header, rows) if rows else None


def selection(study: StudyDocument) -> Table | None:
    """The ranking on validation by which networks were chosen for robust training."""
    ranking = study.selection.ranking
    if not ranking:
        return None
    by = study.selection.by or "figure"
    rows = []
    for rank, entry in enumerate(ranking, start=1):
        value = share(entry.value) if _is_share(entry.value) else plain(entry.value)
        chosen = Cell("chosen", note="good") if entry.chosen else Cell("not chosen", note="quiet")
        rows.append([Cell(str(rank)), Cell(entry.model or formatting.DASH), value, chosen])
    unit = ", %" if all(_is_share(entry.value) for entry in ranking) else ""
    return Table(
        "Ranking on validation", ["Rank", "Model", f"{formatting.capital(formatting.measure(by))}{unit}", ""], rows
    )


def _is_share(value: float | None) -> bool:
    return value is not None and 0 <= value <= 1


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
        document = run.metrics.training
        rows.append(
            [
                *run_cells(run),
                *map(whole, (document.parameters, document.epochs, _counted(document.best_epoch))),
                Cell(formatting.measure(document.monitor or formatting.DASH) + _at(document.epsilon)),
                share(document.best_value),
                Cell(document.stopped or formatting.DASH),
                Cell(formatting.seconds(document.seconds), value=document.seconds),
                *([whole(_refit_epochs(run))] if again else []),
            ]
        )
    return Table("Training", header, rows, heads=2)


def _at(epsilon: float | None) -> str:
    return "" if epsilon is None else f" at {formatting.epsilon(epsilon)}"


def _counted(epoch: int | None) -> int | None:
    """An epoch as people count, from 1; in training.json and history.csv the first is 0."""
    return None if epoch is None else epoch + 1


def _refit_epochs(run: Run) -> int | None:
    """How long a run was trained once more, on training and validation images together; None where it was not."""
    refit = run.metrics.training.refit
    return refit.epochs if refit else None
