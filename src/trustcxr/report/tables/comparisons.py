"""Standard against robust, image by image, as a table."""

from trustcxr.report import formatting
from trustcxr.report.tables.table import Cell, Table, plain, share, whole
from trustcxr.storage.schemas import Comparison, StudyDocument

_NOTES = {"better": "good", "worse": "bad", None: "quiet"}


def comparisons(study: StudyDocument) -> Table:
    """Standard against robust on the same images: difference, interval, p and n, and what follows."""
    header = [
        "Model",
        "Robust defence",
        "Measure",
        "Standard",
        "Robust",
        "Difference",
        "95 % CI",
        "p",
        "n",
        "Robust is",
    ]
    rows = []
    seeds = {c.seed for c in study.comparisons}
    for c in study.comparisons:
        seed = f"seed {c.seed}" if len(seeds) > 1 and c.seed is not None else ""
        name = c.measure or formatting.DASH
        out_of_hundred = "accuracy" in name
        cell = share if out_of_hundred else plain
        scale, digits = (100, 1) if out_of_hundred else (1, 3)
        difference, ends = c.difference.value, c.difference.interval
        outcome = "the same" if ends == (0.0, 0.0) else c.outcome
        rows.append(
            [
                Cell(c.model or formatting.DASH),
                Cell(c.defence or formatting.DASH, formatting.variant(c.background, c.label, seed)),
                Cell(formatting.measure(name) + (", %" if out_of_hundred else ""), _method(c)),
                cell(c.standard),
                cell(c.robust),
                Cell(formatting.signed(None if difference is None else scale * difference, digits), value=difference),
                Cell(formatting.range_text(ends, digits, scale=scale, reveal=True) or formatting.DASH),
                Cell(formatting.p_value(c.p_value), _corrected(c), value=c.p_value),
                whole(c.n),
                Cell(outcome, note=_NOTES[c.side]),
            ]
        )
    return Table("Standard against robust", header, rows, heads=3)


def _method(comparison: Comparison) -> str:
    return formatting.method(comparison.method) if comparison.method else ""


def _corrected(comparison: Comparison) -> str:
    corrected = comparison.p_corrected
    return "" if corrected is None else f"corrected {formatting.p_value(corrected)}"
