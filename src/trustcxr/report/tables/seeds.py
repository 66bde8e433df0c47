"""The table of what another seed does to each figure: mean, standard deviation and range over seeds."""

from collections.abc import Mapping, Sequence

from trustcxr.report import words
from trustcxr.report.tables.cells import Cell, Table
from trustcxr.results.documents import OverSeeds, SeedFigure, StudyDocument

_HEADER = ["Model", "Defence", "Figure", "Mean", "Standard deviation", "Lowest", "Highest", "Seeds"]


def over_seeds(study: StudyDocument) -> Table | None:
    """A row per network, way of training and figure; None where every run has one seed."""
    rows = [
        [
            Cell(group.model),
            Cell(group.defence, words.apart(group.background, group.label)),
            Cell(named(figure)),
            *(Cell(number(figure, value), value=value) for value in _values(figure)),
            Cell(words.count(figure.n), words.listed(map(str, group.seeds)), value=figure.n),
        ]
        for group in study.over_seeds
        for figure in group.figures
    ]
    return Table(_HEADER, rows, heads=3) if rows else None


def lines(groups: Sequence[OverSeeds]) -> list[Mapping[str, str]]:
    """The same for the terminal: a row per network and way of training, its accuracies as mean ± deviation."""
    found: list[Mapping[str, str]] = []
    for group in groups:
        cells = {named(f): f"{number(f, f.mean)} ± {number(f, f.deviation)}" for f in group.figures if _is_share(f)}
        way = words.way(group.defence, group.background, group.label)
        found.append({"Model": group.model, "Defence": way, **cells, "Seeds": str(len(group.seeds))})
    return found


def named(figure: SeedFigure) -> str:
    """What a figure is, and of which saliency method: clean accuracy, %."""
    of = f", {words.method(figure.method)}" if figure.method else ""
    return words.measure(figure.measure) + of + (", %" if _is_share(figure) else "")


def number(figure: SeedFigure, value: float | None) -> str:
    """A value of that figure: accuracies out of a hundred, others as they are."""
    return words.hundred(value) if _is_share(figure) else words.decimal(value)


def _values(figure: SeedFigure) -> tuple[float | None, ...]:
    return figure.mean, figure.deviation, figure.lowest, figure.highest


def _is_share(figure: SeedFigure) -> bool:
    return " accuracy" in figure.measure
