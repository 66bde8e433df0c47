"""Build the tables of data, selection and training."""

from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.report.tables.table import Cell, Table, plain, run_cells, share, whole
from trustcxr.storage.schemas import DataCheck, StudyDocument


def counts(study: StudyDocument, classes: tuple[str, ...]) -> Table | None:
    """Return images per split and class, and how many have an infection mask."""
    splits = study.data.counts
    names = list(classes) + sorted({name for numbers in splits.values() for name in numbers} - set(classes))
    rows = []
    for split, numbers in splits.items():
        total, masks = sum(numbers.values()) if numbers else None, study.data.infection_masks.get(split)
        rows.append([Cell(split), *map(whole, (*map(numbers.get, names), total, masks))])
    return Table("Images per split and class", ["Split", *names, "All", "With infection mask"], rows) if rows else None


def data_check_table(check: DataCheck | None) -> Table | None:
    """Return the faults of the data, worst first; None without any or without a check."""
    rows = [
        [
            Cell(each.severity or formatting.DASH, note="bad" if each.severity in ("fault", "leak") else ""),
            Cell(formatting.capital(each.text), note="prose"),
            whole(each.count),
        ]
        for each in (check.findings if check else [])
    ]
    return Table("Faults of the data", ["Kind", "Fault", "Count"], rows) if rows else None


def probes(check: DataCheck | None) -> Table | None:
    """Return how well a linear model predicts the class from parts of the image that should not reveal it."""
    rows = [
        [
            Cell(formatting.capital(each.view)),
            *map(share, (each.accuracy, each.chance)),
            Cell(each.how or formatting.DASH, note="prose"),
            whole(each.tested_on),
        ]
        for each in (check.probes if check else [])
    ]
    header = ["Part of the image", "Balanced accuracy, %", "Chance, %", "Method", "n"]
    return Table("Class predicted by a linear model", header, rows) if rows else None


def selection(study: StudyDocument) -> Table | None:
    """Return the ranking on validation images that chose the networks for robust training."""
    ranking = study.selection.ranking
    shares = [entry.value is not None and 0 <= entry.value <= 1 for entry in ranking]
    rows = [
        [
            *(Cell(str(rank)), Cell(entry.model or formatting.DASH)),
            share(entry.value) if is_share else plain(entry.value),
            Cell("chosen", note="good") if entry.chosen else Cell("not chosen", note="quiet"),
        ]
        for rank, (entry, is_share) in enumerate(zip(ranking, shares, strict=True), start=1)
    ]
    title = formatting.capital(formatting.measure(study.selection.by or "figure")) + ", %" * all(shares)
    return Table("Ranking on validation", ["Rank", "Model", title, ""], rows) if rows else None


def training(runs: list[Run]) -> Table:
    """Return epochs, best epoch, stopping, time and size of each run; epochs count from 1."""
    refit = any(run.metrics.training.refit for run in runs)
    header = ["Model", "Defence", "Parameters", "Epochs", "Best epoch", "Chosen by", "Best value, %"]
    header += ["Stopped by", "Time"]
    rows = []
    for run in runs:
        document = run.metrics.training
        best = None if document.best_epoch is None else document.best_epoch + 1  # in training.json it counts from 0
        at = "" if document.epsilon is None else f" at {formatting.epsilon(document.epsilon)}"
        rows.append(
            [
                *run_cells(run),
                *map(whole, (document.parameters, document.epochs, best)),
                Cell(formatting.measure(document.monitor or formatting.DASH) + at),
                share(document.best_value),
                Cell(document.stopped or formatting.DASH),
                Cell(formatting.seconds(document.seconds), value=document.seconds),
                *([whole(document.refit.epochs if document.refit else None)] if refit else []),
            ]
        )
    return Table("Training", [*header, *["Refit, epochs"] * refit], rows, heads=2)
