"""The table of what another seed does to each figure: mean, standard deviation and range over seeds."""

from trustcxr.report import formatting
from trustcxr.report.tables.table import Cell, Table
from trustcxr.storage.schemas import SeedFigure, StudyDocument

_HEADER = ["Model", "Defence", "Figure", "Mean", "Standard deviation", "Lowest", "Highest", "Seeds"]


def over_seeds(study: StudyDocument) -> Table | None:
    """A row per network, way of training and figure; None where every run has one seed."""
    rows = [
        [
            Cell(group.model),
            Cell(group.defence, formatting.variant(group.background, group.label)),
            Cell(_named(figure)),
            *(Cell(_number(figure, value), value=value) for value in _values(figure)),
            Cell(formatting.count(figure.n), formatting.join_words(map(str, group.seeds)), value=figure.n),
        ]
        for group in study.over_seeds
        for figure in group.figures
    ]
    return Table("Figures over seeds", _HEADER, rows, heads=3) if rows else None


def _named(figure: SeedFigure) -> str:
    """What a figure is, and of which saliency method: clean accuracy, %."""
    of = f", {formatting.method(figure.method)}" if figure.method else ""
    return formatting.measure(figure.measure) + of + (", %" if _is_share(figure) else "")


def _number(figure: SeedFigure, value: float | None) -> str:
    """A value of that figure: accuracies out of a hundred, others as they are."""
    return formatting.percent_number(value) if _is_share(figure) else formatting.decimal(value)


def _values(figure: SeedFigure) -> tuple[float | None, ...]:
    return figure.mean, figure.deviation, figure.lowest, figure.highest


def _is_share(figure: SeedFigure) -> bool:
    return " accuracy" in figure.measure
