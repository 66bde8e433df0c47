"""Build the tables of standard against robust runs, and of figures over seeds."""

from trustcxr.report import formatting
from trustcxr.report.tables.table import Cell, Table, plain, share, whole
from trustcxr.storage.schemas import SeedFigure, StudyDocument

_NOTES = {"better": "good", "worse": "bad", None: "quiet"}


def comparisons(study: StudyDocument) -> Table:
    """Return standard against robust on the same images: difference, interval, p, n and outcome."""
    header = ["Model", "Robust defence", "Measure", "Standard", "Robust", "Difference", "95 % CI", "p", "n", "Outcome"]
    rows = []
    seeds = {c.seed for c in study.comparisons}
    for c in study.comparisons:
        seed = f"seed {c.seed}" if len(seeds) > 1 and c.seed is not None else ""
        name, percent = c.measure or formatting.DASH, "accuracy" in c.measure
        scale, digits, cell = (100, 1, share) if percent else (1, 3, plain)
        difference, ends = c.difference.value, c.difference.interval
        signed = formatting.signed(None if difference is None else scale * difference, digits)
        corrected = "" if c.p_corrected is None else f"corrected {formatting.p_value(c.p_corrected)}"
        rows.append(
            [
                Cell(c.model or formatting.DASH),
                Cell(c.defence or formatting.DASH, formatting.variant(c.background, c.label, seed)),
                Cell(_name_measure(name, c.method, percent=percent)),
                cell(c.standard),
                cell(c.robust),
                Cell(signed, value=difference),
                Cell(formatting.range_text(ends, digits, scale=scale, reveal=True) or formatting.DASH),
                Cell(formatting.p_value(c.p_value), corrected, value=c.p_value),
                whole(c.n),
                Cell("the same" if ends == (0.0, 0.0) else c.outcome, note=f"{_NOTES[c.side]} text"),
            ]
        )
    return Table("Standard against robust", header, rows, heads=3)


def _name_measure(measure: str, method: str | None, *, percent: bool) -> str:
    """Return the measure with its saliency method and unit: clean accuracy, %."""
    return formatting.measure(measure) + (f", {formatting.method(method)}" if method else "") + ", %" * percent


def over_seeds(study: StudyDocument) -> Table | None:
    """Return a row per network, training and figure; None if every run has one seed."""
    rows = [
        [
            Cell(group.model),
            Cell(group.defence, formatting.variant(group.background, group.label)),
            *_seed_cells(figure),
            Cell(formatting.count(figure.n), formatting.join_words(map(str, group.seeds)), value=figure.n),
        ]
        for group in study.over_seeds
        for figure in group.figures
    ]
    header = ["Model", "Defence", "Figure", "Mean", "Standard deviation", "Lowest", "Highest", "Seeds"]
    return Table("Figures over seeds", header, rows, heads=3) if rows else None


def _seed_cells(figure: SeedFigure) -> list[Cell]:
    percent = " accuracy" in figure.measure
    write = formatting.percent_number if percent else formatting.decimal
    values = (figure.mean, figure.deviation, figure.lowest, figure.highest)
    name = Cell(_name_measure(figure.measure, figure.method, percent=percent))
    return [name, *(Cell(write(value), value=value) for value in values)]
