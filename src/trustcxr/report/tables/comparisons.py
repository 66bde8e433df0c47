"""Standard against robust, image by image, as a table."""

from trustcxr.report import words
from trustcxr.report.tables.cells import Cell, Table, plain, share, whole
from trustcxr.results.documents import Comparison, StudyDocument

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
        name = c.measure or words.DASH
        out_of_hundred = "accuracy" in name
        cell = share if out_of_hundred else plain
        scale, digits = (100, 1) if out_of_hundred else (1, 3)
        difference, ends = c.difference.value, c.difference.interval
        found = "the same" if ends == (0.0, 0.0) else c.outcome
        rows.append(
            [
                Cell(c.model or words.DASH),
                Cell(c.defence or words.DASH, words.apart(c.background, c.label, seed)),
                Cell(words.measure(name) + (", %" if out_of_hundred else ""), _method(c)),
                cell(c.standard),
                cell(c.robust),
                Cell(words.signed(None if difference is None else scale * difference, digits), value=difference),
                Cell(words.between(ends, digits, scale=scale, reveal=True) or words.DASH),
                Cell(words.p_value(c.p_value), _corrected(c), value=c.p_value),
                whole(c.n),
                Cell(found, note=_NOTES[c.side]),
            ]
        )
    return Table("Standard against robust", header, rows, heads=3)


def _method(comparison: Comparison) -> str:
    return words.method(comparison.method) if comparison.method else ""


def _corrected(comparison: Comparison) -> str:
    corrected = comparison.p_corrected
    return "" if corrected is None else f"corrected {words.p_value(corrected)}"
