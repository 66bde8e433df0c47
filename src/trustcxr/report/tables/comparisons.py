"""Standard against robust, image by image, as a table."""

from typing import Any

from trustcxr.report import words
from trustcxr.report.summary import verdict
from trustcxr.report.tables.cells import Cell, Table, plain, share, whole


def comparisons(study: dict[str, Any]) -> Table:
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
    seeds = {c.get("seed") for c in words.records(study.get("comparisons"))}
    for c in words.records(study.get("comparisons")):
        seed = f"seed {c['seed']}" if len(seeds) > 1 and "seed" in c else ""
        name = str(c.get("measure") or words.DASH)
        out_of_hundred = "accuracy" in name
        cell = share if out_of_hundred else plain
        scale, digits = (100, 1) if out_of_hundred else (1, 3)
        difference = words.finite(c.get("difference"))
        found = "the same" if words.interval(c.get("difference_ci")) == (0.0, 0.0) else verdict(c)
        rows.append(
            [
                Cell(str(c.get("model") or words.DASH)),
                Cell(str(c.get("defence") or words.DASH), _apart(c, seed)),
                Cell(words.measure(name) + (", %" if out_of_hundred else ""), _method(c)),
                cell(c.get("standard")),
                cell(c.get("robust")),
                Cell(words.signed(None if difference is None else scale * difference, digits), value=difference),
                Cell(words.between(c.get("difference_ci"), digits, scale=scale, reveal=True) or words.DASH),
                Cell(words.p_value(c.get("p_value")), _corrected(c), value=words.finite(c.get("p_value"))),
                whole(c.get("n")),
                Cell(found, note=_note(c, found)),
            ]
        )
    return Table(header, rows, heads=3)


def _apart(comparison: dict[str, Any], seed: str) -> str:
    background = str(comparison.get("background") or "full")
    return ", ".join(part for part in ("" if background == "full" else f"background {background}", seed) if part)


def _method(comparison: dict[str, Any]) -> str:
    return words.method(comparison["method"]) if comparison.get("method") else ""


def _corrected(comparison: dict[str, Any]) -> str:
    corrected = words.finite(comparison.get("p_corrected"))
    return "" if corrected is None else f"corrected {words.p_value(corrected)}"


def _note(comparison: dict[str, Any], found: str) -> str:
    """Green where the robust run is better, red where it is worse; of some measures less is better."""
    better = comparison.get("better", "higher")
    if found not in ("higher", "lower") or better is None:
        return "quiet"
    return "good" if found == better else "bad"
