"""Many audits, side by side: which of them compare, and a row each, as a page that sorts and as a table."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from trustcxr.about import NOTICE
from trustcxr.catalogue import WORST_CASE, attack_said, is_linf
from trustcxr.errors import UserError
from trustcxr.report import found_audits, words
from trustcxr.report.tables import cells as cells_
from trustcxr.report.terminal import percent
from trustcxr.report.written import guarded
from trustcxr.results import files, folders
from trustcxr.results.documents import AttackResult, AuditDocument, HandedIn, RunDocument, Share

PAGE, TABLE = "leaderboard.html", "leaderboard.csv"
COLUMNS = (
    "model",
    "unreliable",
    "kind",
    "clean reported",
    "clean",
    "attacked reported",
    "attacked",
    "by",
    "corrupted",
    "AUROC",
    "calibration error",
    "threat model",
    "training data",
    "paper",
    "folder",
)


class Cell(NamedTuple):
    """What is written, what it sorts by, and its interval."""

    text: str
    value: float | str | None
    interval: str = ""


@dataclass(frozen=True)
class Board:
    """The audits that compare, in the order of `_rank`; those that do not, and why; by what and on what."""

    protocol: str
    data: str
    n: int
    classes: tuple[str, ...]
    entries: tuple[tuple[str, AuditDocument], ...]
    refused: tuple[tuple[str, str], ...]


def gather(folder: Path) -> Board:
    """The audits under `folder` that most of them compare with; UserError where there is none."""
    found, refused = found_audits.found(folder)
    if not found:
        why = f": {refused[0][0]}: {refused[0][1]}" if refused else "; `trustcxr audit` writes one into its --out"
        raise UserError(f"{folder}: no {folders.AUDIT_FILE} of a whole examination in it{why}")
    chosen = max((document for _, document in found), key=lambda one: sum(not _why(other, one) for _, other in found))
    kept = [(name, document) for name, document in found if not _why(document, chosen)]
    refused += [(name, why) for name, document in found if (why := _why(document, chosen))]
    kept.sort(key=lambda pair: _rank(pair[1]))
    first = kept[0][1]
    count = first.data.total or first.data.n or 0
    return Board(str(first.protocol), first.data.name, count, tuple(first.classes), tuple(kept), tuple(refused))


def _rank(document: AuditDocument) -> tuple[bool, float, float]:
    """Most robust first; what was not attacked behind it, and behind all others what may not be relied on.

    Most robust against our own attacks: nobody stands lower since images were handed in for it and not for others.
    """
    own, clean = by_ours(document), document.clean.accuracy.value
    left = attacked(document).accuracy.value if own is None else own
    return bool(document.unreliable), -(-1.0 if left is None else left), -(clean or 0.0)


def _why(document: AuditDocument, others: AuditDocument) -> str:
    """Why an audit does not compare with the others; empty where it does."""
    if document.protocol != others.protocol:
        return f"examined by {document.protocol}, the others by {others.protocol}"
    if not document.same_classes(others):
        return f"classes {', '.join(document.classes)}, the others' {', '.join(others.classes)}"
    if not document.data.same_images(others.data):
        return f"not the same images as the others {document.data.apart(others.data)}"
    if not document.data.same_truth(others.data):
        return "not the same labels of findings as the others on these images"
    return ""


def attacked(document: RunDocument) -> AttackResult:
    """The attack at the largest L-infinity epsilon that left least; the worst case where it was tried."""
    rows = [row for row in document.attacks if row.accuracy.value is not None and is_linf(row.attack)]
    largest = max((row.epsilon or 0.0 for row in rows), default=None)
    here = [row for row in rows if row.epsilon == largest]
    least = sorted(here, key=lambda row: (row.accuracy.value or 0.0, row.attack != WORST_CASE))
    return least[0] if least else AttackResult()


def by_ours(document: AuditDocument) -> float | None:
    """What our own attacks leave, without images that somebody handed in; None where the audit does not tell.

    It does at the smallest radius of worst-case that the images' own fits in: there they were counted.
    """
    worst = attacked(document)
    value, more = worst.accuracy.value, _more(document)
    if value is None or not more:
        return value
    radii = [row.epsilon or 0.0 for row in document.attacks if row.attack == WORST_CASE]
    counted = [min(radius for radius in radii if radius >= (found.epsilon or 0.0) - 1e-9) for found in more]
    if not worst.n or any(radius != worst.epsilon for radius in counted):
        return None
    return (round(value * worst.n) + sum(found.found_alone or 0 for found in more)) / worst.n


def _more(document: AuditDocument) -> list[HandedIn]:
    """Images handed in that made the worst case which stands on the board worse."""
    worst = attacked(document)
    if worst.attack != WORST_CASE:
        return []
    within = (worst.epsilon or 0.0) + 1e-9
    return [found for found in document.misled_alone if (found.epsilon or 0.0) <= within]


def with_more(document: AuditDocument) -> str:
    """What it was attacked with beyond our own attacks, and by what it is ranked then; empty without any."""
    more = _more(document)
    if not more:
        return ""
    films = [f"{found.found_alone} {'film' if found.found_alone == 1 else 'films'}" for found in more]
    who = " and ".join(f"{found.by} on {count}" for found, count in zip(more, films, strict=True))
    said = f"attacked with more than our own attacks: images handed in by {who} misled it where ours did not"
    own = by_ours(document)
    if own is None:
        return f"{said}; it is ranked with these, since the audit does not tell what ours alone leave at this radius"
    return f"{said}; it is ranked by ours alone, which leave {percent(own)}"


def remarks(board: Board) -> list[str]:
    """What must be known beside the rows, a line each: whose worst case counts images handed in, what stands twice.

    Of the former: whose images, how many, and how it is ranked.
    """
    names = called(board)
    handed = [f"{names[folder]}: {said}" for folder, document in board.entries if (said := with_more(document))]
    return handed + [_twice(found) for found in copies(board)]


def called(board: Board) -> dict[str, str]:
    """By folder what a model is called on the board: its name, and its folder where others have that name too."""
    counts = Counter(document.model.name for _, document in board.entries)
    names = {folder: document.model.name for folder, document in board.entries}
    return {folder: name if counts[name] == 1 else f"{name or '-'} ({folder})" for folder, name in names.items()}


def copies(board: Board) -> list[list[str]]:
    """The folders of audits of one model, by its checksum, that have the same figures: one audit in several rows."""
    alike: dict[tuple[str, str], list[str]] = {}
    for folder, document in board.entries:
        if which := document.model.sha256 or document.examination:
            alike.setdefault((which, repr(shares(document))), []).append(folder)
    return [found for found in alike.values() if len(found) > 1]


def _twice(found: Sequence[str]) -> str:
    return f"{words.listed(found)}: one model with the same figures, so one audit in {len(found)} rows"


def shares(document: AuditDocument) -> dict[str, Share]:
    """What was measured of one audit, by column."""
    mean, clean = document.corruptions_mean, document.clean
    pooled = bool(document.findings) and clean.findings is None  # of audits from before, of no finding
    return {
        "clean": clean.accuracy,
        "attacked": attacked(document).accuracy,
        "corrupted": mean.accuracy if mean else Share(),
        "AUROC": Share() if pooled else clean.auroc_macro,
        "calibration error": Share() if pooled else clean.ece,
    }


def row(name: str, document: AuditDocument) -> list[Cell]:
    """One audit's cells, in the order of COLUMNS."""
    said, worst = document.model.reported, attacked(document)
    by = f"{attack_said(worst.attack, worst.steps)}, epsilon {worst.epsilon:g}" if worst.epsilon is not None else "-"
    by += f"; {more}" if (more := with_more(document)) else ""
    cells = {column: _share(share) for column, share in shares(document).items()} | {
        "model": _text(document.model.name),
        "unreliable": Cell(
            "unreliable" if document.unreliable else "no", "1" if document.unreliable else "0", _flag(document)
        ),
        "kind": _text(document.model.kind),
        "clean reported": _number(said.clean),
        "attacked reported": _number(said.attacked),
        "by": _text(by),
        "threat model": _text(said.threat_model),
        "training data": _text(said.training_data),
        "paper": _text(said.paper),
        "folder": _text(name),
    }
    return [cells[column] for column in COLUMNS]


def _flag(document: AuditDocument) -> str:
    return document.because if document.unreliable else ""


def _text(text: str) -> Cell:
    return Cell(text or "-", text.lower())


def _number(value: float | None) -> Cell:
    return Cell(percent(value), value)


def _share(share: Share) -> Cell:
    low, high = share.interval or (None, None)
    return Cell(percent(share.value), share.value, "" if low is None else f"{percent(low)} to {percent(high)}")


def shown(board: Board) -> list[dict[str, object]]:
    """The columns that a terminal shows, what was measured with its interval; models of one name with their folders."""
    figures = ("clean", "attacked", "clean reported", "attacked reported")
    kept = ("model", "unreliable", *figures, "threat model", "training data")
    names = called(board)
    rows = [(name, dict(zip(COLUMNS, row(name, document), strict=True))) for name, document in board.entries]
    shown = [cells | {"model": _text(names[name])} for name, cells in rows]
    return [{column: _with_ends(column, cells[column]) for column in kept} for cells in shown]


def _with_ends(column: str, cell: Cell) -> str:
    return f"{cell.text} [{cell.interval}]" if cell.interval and column in ("clean", "attacked") else cell.text


def plain(board: Board) -> dict[str, object]:
    """The board as one JSON document: texts as they are written, figures as numbers with their intervals."""
    return {
        "protocol": board.protocol,
        "data": board.data,
        "n": board.n,
        "classes": list(board.classes),
        "copies": copies(board),
        "rows": [_plain(name, document) for name, document in board.entries],
        "refused": [{"folder": name, "why": why} for name, why in board.refused],
    }


def _plain(name: str, document: AuditDocument) -> dict[str, object]:
    found: dict[str, object] = {}
    for column, cell in zip(COLUMNS, row(name, document), strict=True):
        found[column] = cell.value if isinstance(cell.value, float) else None if cell.text == "-" else cell.text
    for column, share in shares(document).items():
        found[f"{column}_ci"] = None if share.interval is None else list(share.interval)
    found |= {"attacked_by_ours": by_ours(document), "attacked_with_more": with_more(document)}
    return found | {"unreliable": bool(document.unreliable), "because": _flag(document)}


def write(board: Board, out: Path) -> tuple[Path, Path]:
    """Write the page and the table into `out`; their paths."""
    rows = [row(name, document) for name, document in board.entries]
    for path, text in ((out / PAGE, page(board, rows)), (out / TABLE, table(board, rows))):
        with files.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return out / PAGE, out / TABLE


def table(board: Board, rows: Sequence[Sequence[Cell]]) -> str:
    """The rows as CSV: a figure as a number, its interval in the column behind it; of how many images, by what."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    names = [name for column in COLUMNS for name in (column, f"{column} interval")[: 1 + (column in _SHARES)]]
    writer.writerow([*names, *_EXAMINED])
    for cells, (_, document) in zip(rows, board.entries, strict=True):
        line: list[object] = []
        for column, cell in zip(COLUMNS, cells, strict=True):
            exact = column in _SHARES or column.endswith("reported")
            line.append(("" if cell.value is None else cell.value) if exact else cell.text)
            line += [cell.interval] if column in _SHARES else []
        writer.writerow(guarded([*line, document.data.n, board.data, board.protocol]))
    return lines.getvalue()


_EXAMINED = ("images", "data", "protocol")
_SHARES = ("clean", "attacked", "corrupted", "AUROC", "calibration error")


def page(board: Board, rows: Sequence[Sequence[Cell]]) -> str:
    """The page: one file, whole without its script."""
    from trustcxr.report import single_page

    lines = [[_shown(column, cell) for column, cell in zip(COLUMNS, cells, strict=True)] for cells in rows]
    for cells, line in zip(rows, lines, strict=True):
        if cells[_FLAG].value == "1":
            line[0] = replace(line[0], note="unreliable")
    names = called(board)
    handed = [names[folder] for folder, document in board.entries if with_more(document)]
    rows_shown = cells_.Table(list(COLUMNS), lines)
    parts = {"board": board, "notice": NOTICE, "leaderboard": rows_shown, "handed_in": handed}
    parts["twice"] = [_twice(found) for found in copies(board)]
    return single_page.filled("board.html.j2", parts)


_FLAG = COLUMNS.index("unreliable")


def _shown(column: str, cell: Cell) -> cells_.Cell:
    """A cell of the page: figures sort as numbers, words may wrap."""
    number = cell.value if isinstance(cell.value, float) else None
    note = "why" if column == COLUMNS[_FLAG] else "" if column in _SHARES or number is not None else "text"
    return cells_.Cell(cell.text, cell.interval, value=number, note=note)
