"""Confusion matrices: clean from the metrics, under the strongest attack again from the predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

from trustcxr.report import words
from trustcxr.report.ranking import Headline
from trustcxr.report.study_folder import Run
from trustcxr.report.tables.cells import Cell, Table

SHADE = 0.7  # the strongest: black on it can still be read


@dataclass(frozen=True)
class Entry:
    """A cell: the count, its share of the row, and how strongly it is shaded."""

    text: str
    small: str
    alpha: str
    right: bool


@dataclass(frozen=True)
class Row:
    """The answers for one true class."""

    name: str
    cells: list[Entry]


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix with its condition."""

    title: str
    classes: list[str]
    rows: list[Row]
    table: Table  # the same, for a file


@dataclass(frozen=True)
class Pair:
    """The matrices of one run."""

    title: str
    parts: list[Matrix]


def of(run: Run, head: Headline) -> Pair | None:
    """The matrices of a run; None where it has none."""
    classes = list(run.metrics.classes or head.classes)
    clean = run.clean.confusion
    parts = [_matrix("clean", classes, clean)] if _is_square(clean, len(classes)) else []
    attacked = under_attack(run, head, len(classes))
    if attacked:
        name = words.attack(head.strongest, run.attacked(head.strongest or "", head.epsilon).steps)
        parts.append(_matrix(f"{name} at {words.epsilon(head.epsilon)}", classes, attacked))
    return Pair(run.label, parts) if parts else None


def under_attack(run: Run, head: Headline, classes: int) -> list[list[int]] | None:
    """(C, C) counts, rows true, under the strongest headline attack, from predictions.parquet; None without it."""
    import numpy as np

    entry = run.attacked(head.strongest or "", head.epsilon)
    if head.epsilon is None or not entry.attack:
        return None
    table = run.predictions()
    if table is None:
        return None
    rows = table[(table["attack"] == head.strongest) & ((table["epsilon"] - head.epsilon).abs() < 1e-6)]
    rows = rows[rows["steps"] == entry.steps] if entry.steps else rows
    split = run.metrics.split
    rows = rows[rows["split"] == split] if split else rows
    if rows.empty:
        return None
    answers = np.stack(rows["logits"].to_list()).argmax(axis=1)
    found = np.zeros((classes, classes), dtype=int)
    inside = (answers < classes) & (rows["label"].to_numpy() < classes)
    np.add.at(found, (rows["label"].to_numpy()[inside], answers[inside]), 1)
    return found.tolist()


def _is_square(numbers: Sequence[Sequence[int]], side: int) -> bool:
    return side > 0 and [len(row) for row in numbers] == [side] * side


def _matrix(title: str, classes: list[str], numbers: list[list[int]]) -> Matrix:
    total = sum(map(sum, numbers))
    rows = []
    for i, (name, row) in enumerate(zip(classes, numbers, strict=True)):
        cells = []
        for j, value in enumerate(row):
            share = value / sum(row) if sum(row) else None
            alpha, small = SHADE * (share or 0.0), words.percent(share, 0)
            cells.append(Entry(words.count(value), small, f"{alpha:.3f}", i == j))
        rows.append(Row(name, cells))
    lines = [[Cell(row.name), *(Cell(e.text, e.small) for e in row.cells)] for row in rows]
    table = Table([f"True class, {title}", *classes], lines)
    return Matrix(f"{title}, n = {words.count(total)}", classes, rows, table)
