"""Leaderboard of audits: which of them compare, a row each, as a page that sorts, as CSV and in the terminal."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from trustcxr.errors import UserError
from trustcxr.registry import WORST_CASE, format_attack, is_linf
from trustcxr.report import formatting
from trustcxr.report.tables.table import Cell, Table, share
from trustcxr.report.terminal import format_percent
from trustcxr.storage import atomic, layout
from trustcxr.storage.os_errors import reason
from trustcxr.storage.schemas import AttackResult, AuditDocument, RunDocument, Share, Submitted, read_audit
from trustcxr.version import NOTICE

PAGE, TABLE = "leaderboard.html", "leaderboard.csv"
_IN_TERMINAL = ["model", "unreliable", "clean", "attacked", "clean reported", "attacked reported"]
_PERCENT = ("clean reported", "clean", "attacked reported", "attacked", "corrupted", "AUROC", "calibration error")


@dataclass(frozen=True)
class Board:
    """Comparable audits in rank order by folder, rejected folders with reasons, protocol and data set."""

    protocol: str
    data: str
    n: int
    classes: tuple[str, ...]
    entries: tuple[tuple[str, AuditDocument], ...]
    refused: tuple[tuple[str, str], ...]

    @property
    def title(self) -> str:
        """Say how many audits, by which protocol, on what."""
        return f"{formatting.plural(len(self.entries), 'audit')} by {self.protocol} on {self.data} ({self.n} images)"


def gather_audits(folder: Path) -> Board:
    """Gather the audits under `folder` that most of them compare with; UserError if there is none."""
    audits, refused = _find(folder)
    if not audits:
        why = f": {refused[0][0]}: {refused[0][1]}" if refused else "; `trustcxr audit` writes one into its --out"
        raise UserError(f"{folder}: no {layout.AUDIT_FILE} of a whole examination in it{why}")
    chosen = max((document for _, document in audits), key=lambda one: sum(not _why(other, one) for _, other in audits))
    kept = [(name, document) for name, document in audits if not _why(document, chosen)]
    refused += [(name, why) for name, document in audits if (why := _why(document, chosen))]
    kept.sort(key=lambda pair: _rank(pair[1]))
    first = kept[0][1]
    count = first.data.total or first.data.n or 0
    return Board(str(first.protocol), first.data.name, count, tuple(first.classes), tuple(kept), tuple(refused))


def _find(folder: Path) -> tuple[list[tuple[str, AuditDocument]], list[tuple[str, str]]]:
    """Return the whole audits under a folder by name, and what is none with the reason."""
    if not folder.is_dir():
        what = "a file, where a folder is wanted" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; give the folder that the folders of audits are in")
    audits: list[tuple[str, AuditDocument]] = []
    refused: list[tuple[str, str]] = []
    for path in sorted(_files(folder, refused)):
        name = path.parent.relative_to(folder).as_posix()
        try:
            document = read_audit(path)
        except UserError as problem:
            refused.append((name, str(problem)))
            continue
        if document.protocol is None:
            refused.append((name, "examined with other options than a protocol's"))
        elif not document.data.known:
            refused.append((name, f"unknown images: no checksum of them in its {layout.AUDIT_FILE}"))
        else:
            audits.append((name, document))
    return audits, refused


def _files(folder: Path, refused: list[tuple[str, str]]) -> Iterator[Path]:
    """Yield every audit.json under a folder, links followed; folders that may not be read go to `refused`.

    Each real folder counts once. Links wait until all else was seen, so a folder keeps its own name, and a circle ends.
    """

    def refuse(problem: OSError) -> None:
        name = Path(problem.filename).relative_to(folder).as_posix()
        refused.append((name, f"this folder cannot be read: {reason(problem.errno or 0)}"))

    seen, waiting = set[str](), [folder]
    for start in waiting:
        for here, inside, names in os.walk(start, onerror=refuse):
            real = os.path.realpath(here)
            if real in seen:
                inside.clear()
                continue
            seen.add(real)
            inside.sort()
            waiting += [path for name in inside if (path := Path(here) / name).is_symlink()]
            if layout.AUDIT_FILE in (*names, *inside):
                yield Path(here) / layout.AUDIT_FILE


def _rank(document: AuditDocument) -> tuple[bool, float, float]:
    """Most robust first; behind it what was not attacked; last what may not be relied on.

    Most robust against our own attacks: nobody stands lower since images were handed in for it and not for others.
    """
    own, clean = own_accuracy(document), document.clean.accuracy.value
    left = find_worst_attack(document).accuracy.value if own is None else own
    return bool(document.unreliable), -(-1.0 if left is None else left), -(clean or 0.0)


def _why(document: AuditDocument, others: AuditDocument) -> str:
    """Return why an audit does not compare with the others; empty if it does."""
    if document.protocol != others.protocol:
        return f"examined by {document.protocol}, the others by {others.protocol}"
    if not document.same_classes(others):
        return f"classes {', '.join(document.classes)}, the others' {', '.join(others.classes)}"
    if not document.data.same_images(others.data):
        return f"not the same images as the others {document.data.apart(others.data)}"
    if not document.data.same_truth(others.data):
        return "not the same labels of findings as the others on these images"
    return ""


def find_worst_attack(document: RunDocument) -> AttackResult:
    """Return the attack at the largest L-infinity epsilon that left least; the worst case if it was tried."""
    rows = [row for row in document.attacks if row.accuracy.value is not None and is_linf(row.attack)]
    largest = max((row.epsilon or 0.0 for row in rows), default=None)
    here = [row for row in rows if row.epsilon == largest]
    return min(here, key=lambda row: (row.accuracy.value or 0.0, row.attack != WORST_CASE), default=AttackResult())


def own_accuracy(document: AuditDocument) -> float | None:
    """Return what our own attacks leave, without images that somebody handed in; None if the audit does not tell.

    It does at the smallest radius of worst-case that the images' own fits in: there they were counted.
    """
    worst = find_worst_attack(document)
    value, more = worst.accuracy.value, _more(document)
    if value is None or not more:
        return value
    radii = [row.epsilon or 0.0 for row in document.attacks if row.attack == WORST_CASE]
    counted = [min(radius for radius in radii if radius >= (one.epsilon or 0.0) - 1e-9) for one in more]
    if not worst.n or any(radius != worst.epsilon for radius in counted):
        return None
    return (round(value * worst.n) + sum(one.found_alone or 0 for one in more)) / worst.n


def _more(document: AuditDocument) -> list[Submitted]:
    """Return the images handed in that made the worst case on the board worse."""
    worst = find_worst_attack(document)
    if worst.attack != WORST_CASE:
        return []
    within = (worst.epsilon or 0.0) + 1e-9
    return [one for one in document.misled_alone if (one.epsilon or 0.0) <= within]


def describe_submitted(document: AuditDocument) -> str:
    """Say what it was attacked with beyond our own attacks, and by what it is ranked then; empty without any."""
    more = _more(document)
    if not more:
        return ""
    who = " and ".join(f"{one.by} on {formatting.plural(one.found_alone or 0, 'image')}" for one in more)
    text = f"attacked with more than our own attacks: images handed in by {who} misled it where ours did not"
    own = own_accuracy(document)
    if own is None:
        return f"{text}; it is ranked with these, since the audit does not tell what ours alone leave at this radius"
    return f"{text}; it is ranked by ours alone, which leave {format_percent(own)}"


def list_remarks(board: Board) -> list[str]:
    """Return a line for each worst case that counts images handed in, and for each audit that stands twice."""
    names = _names(board)
    handed = [
        f"{names[folder]}: {text}" for folder, document in board.entries if (text := describe_submitted(document))
    ]
    return handed + _twice(board)


def _names(board: Board) -> dict[str, str]:
    """Return by folder what a model is called: its name, and its folder if others have that name too."""
    counts = Counter(document.model.name for _, document in board.entries)
    names = {folder: document.model.name for folder, document in board.entries}
    return {
        folder: name if counts[name] == 1 else f"{name or formatting.DASH} ({folder})" for folder, name in names.items()
    }


def find_copies(board: Board) -> list[list[str]]:
    """Return the folders of audits of one model, by its checksum, with the same figures."""
    alike: dict[tuple[str, str], list[str]] = {}
    for folder, document in board.entries:
        if which := document.model.sha256 or document.examination:
            alike.setdefault((which, repr(_shares(document))), []).append(folder)
    return [same for same in alike.values() if len(same) > 1]


def _twice(board: Board) -> list[str]:
    rows = "one model with the same figures, so one audit in {} rows"
    return [f"{formatting.join_words(same)}: {rows.format(len(same))}" for same in find_copies(board)]


def _shares(document: AuditDocument) -> dict[str, Share]:
    mean, clean = document.corruptions_mean, document.clean
    return {
        "clean": clean.accuracy,
        "attacked": find_worst_attack(document).accuracy,
        "corrupted": mean.accuracy if mean else Share(),
        "AUROC": clean.auroc_macro,
        "calibration error": clean.ece,
    }


def make_row(name: str, document: AuditDocument) -> dict[str, Cell]:
    """Return the cells of one audit, by column."""
    reported, worst = document.model.reported, find_worst_attack(document)
    by = (
        f"{format_attack(worst.attack, worst.steps)}, epsilon {worst.epsilon:g}"
        if worst.epsilon is not None
        else formatting.DASH
    )
    by += f"; {more}" if (more := describe_submitted(document)) else ""
    shares = {column: share(figure) for column, figure in _shares(document).items()}
    bad = bool(document.unreliable)
    return {
        "model": Cell(document.model.name or formatting.DASH, note="unreliable" if bad else ""),
        "unreliable": Cell("unreliable" if bad else "no", document.reasons if bad else "", note="why"),
        "kind": _text(document.model.kind),
        "clean reported": share(reported.clean),
        "clean": shares.pop("clean"),
        "attacked reported": share(reported.attacked),
        "attacked": shares.pop("attacked"),
        "by": _text(by),
        **shares,
        "threat model": _text(reported.threat_model),
        "training data": _text(reported.training_data),
        "paper": _text(reported.paper),
        "folder": _text(name),
    }


def _text(text: str) -> Cell:
    return Cell(text or formatting.DASH, note="text")


def make_table(board: Board) -> Table:
    """Return the whole leaderboard."""
    rows = [make_row(name, document) for name, document in board.entries]
    return Table("Leaderboard", list(map(_headed, rows[0])), [list(cells.values()) for cells in rows])


def _headed(column: str) -> str:
    return f"{column}, %" if column in _PERCENT else column


def terminal_table(board: Board) -> Table:
    """Return the columns that a terminal shows; models of one name with their folders."""
    names = _names(board)
    rows = [make_row(name, document) for name, document in board.entries]
    for (folder, _), cells in zip(board.entries, rows, strict=True):
        cells["model"] = replace(cells["model"], text=names[folder] or formatting.DASH)
    return Table(
        board.title, list(map(_headed, _IN_TERMINAL)), [[cells[column] for column in _IN_TERMINAL] for cells in rows]
    )


def to_json(board: Board) -> dict[str, object]:
    """Return the board as one JSON document: texts as they are written, figures as numbers with their intervals."""
    return {
        "protocol": board.protocol,
        "data": board.data,
        "n": board.n,
        "classes": list(board.classes),
        "copies": find_copies(board),
        "rows": [_plain(name, document) for name, document in board.entries],
        "refused": [{"folder": name, "why": why} for name, why in board.refused],
    }


def _plain(name: str, document: AuditDocument) -> dict[str, object]:
    values: dict[str, object] = {
        column: None if cell.text == formatting.DASH else cell.text if cell.value is None else cell.value
        for column, cell in make_row(name, document).items()
    }
    for column, figure in _shares(document).items():
        values[f"{column}_ci"] = None if figure.interval is None else list(figure.interval)
    values |= {"attacked_by_ours": own_accuracy(document), "attacked_with_more": describe_submitted(document)}
    return values | {
        "unreliable": bool(document.unreliable),
        "reasons": document.reasons if document.unreliable else "",
    }


def write(board: Board, out: Path) -> tuple[Path, Path]:
    """Write the page and the table into `out`; return their paths."""
    for path, text in ((out / PAGE, render(board)), (out / TABLE, make_table(board).csv())):
        with atomic.atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return out / PAGE, out / TABLE


def render(board: Board) -> str:
    """Return the page: one file, whole without its script."""
    from trustcxr.report import html

    names = _names(board)
    handed = [names[folder] for folder, document in board.entries if describe_submitted(document)]
    parts = {
        "board": board,
        "notice": NOTICE,
        "leaderboard": make_table(board),
        "submitted": handed,
        "twice": _twice(board),
    }
    return html.fill_template("board.html.j2", parts)
