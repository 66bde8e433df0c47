"""Build the leaderboard of audits: choose those that compare, rank them, write a page, a CSV file and a table."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trustcxr.errors import UserError
from trustcxr.registry import WORST_CASE
from trustcxr.report import formatting, html
from trustcxr.report.load import find_worst_attack
from trustcxr.report.tables.table import Cell, Table, guarded, share, whole
from trustcxr.report.terminal import format_percent
from trustcxr.statistics import Bootstraps, interval
from trustcxr.storage import atomic, layout, schemas
from trustcxr.storage.os_errors import reason
from trustcxr.storage.prediction_table import read_image_results
from trustcxr.storage.schemas import AuditDocument, ImageResults, LeaderboardEntry, Share

Pair = dict[str, list[float] | None]
PAGE, TABLE = "leaderboard.html", "leaderboard.csv"
_GRADIENT_CHECKS = (
    *("gradients", "same answer with gradients", "nothing stops gradients", "no gradients used inside"),
    "black box against white box",
)
_IN_TERMINAL = ["model", "measurement", "clean, %", "attacked, %", "clean reported, %", "attacked reported, %", "n"]


class Row(NamedTuple):
    """One audit: its folder, the entry of a leaderboard if it is one, and right or wrong for each image if known."""

    name: str
    audit: AuditDocument
    entry: LeaderboardEntry | None = None
    results: ImageResults | None = None


@dataclass(frozen=True)
class Board:
    """Comparable audits in rank order, rejected folders with reasons, protocol and data set.

    `others`: boards of entries of a leaderboard that do not compare.
    """

    protocol: str
    data: str
    n: int
    classes: tuple[str, ...]
    entries: tuple[Row, ...]
    refused: tuple[tuple[str, str], ...]
    others: tuple["Board", ...] = ()

    @property
    def title(self) -> str:
        """Return the number of audits, the protocol and the data."""
        audits, images = formatting.plural(len(self.entries), "audit"), formatting.plural(self.n, "image")
        return f"{audits} by {self.protocol} on {self.data} ({images})"

    @property
    def heading(self) -> str:
        """Return the heading of the page: the number of audits, with the protocol if there is one table."""
        count = len(self.entries) + sum(len(other.entries) for other in self.others)
        where = f" in {1 + len(self.others)} tables" if self.others else f" by {self.protocol}"
        return formatting.plural(count, "audit") + where

    @property
    def attack(self) -> str:
        """Return the attack with its effort, which all compared audits share; empty without attacks."""
        return next((name for row in self.entries if (name := find_worst_attack(row.audit).effort.name)), "")

    @property
    def names(self) -> dict[str, str]:
        """Return the name of each folder's model, with the folder if another model has that name too."""
        names = {row.name: row.audit.model.name or formatting.DASH for row in self.entries}
        counts = Counter(names.values())
        return {folder: name if counts[name] == 1 else f"{name} ({folder})" for folder, name in names.items()}

    @property
    def copies(self) -> list[list[str]]:
        """Return the folders of audits of the same model, by its checksum, with the same figures."""
        groups: dict[tuple[str, str], list[str]] = {}
        for folder, document, *_ in self.entries:
            if which := document.model.sha256 or document.examination:
                groups.setdefault((which, repr(_shares(document))), []).append(folder)
        return [folders for folders in groups.values() if len(folders) > 1]


def gather_audits(folder: Path) -> Board:
    """Return the largest set of comparable audits under `folder`; UserError if there is none."""
    audits, refused = _read_audits(folder)
    if not audits:
        why = f"{refused[0][0]}: {refused[0][1]}" if refused else "`trustcxr audit` writes one into its --out folder"
        raise UserError(f"{folder}: no {layout.AUDIT_FILE} of a complete audit in it: {why}")
    boards: list[Board] = []
    has_entries = any(one.entry for one in audits)
    while audits:
        attacked = [one for one in audits if find_worst_attack(one.audit).attack]  # scores compare with any effort
        chosen = max(attacked or audits, key=lambda one: sum(not _why_apart(other, one) for other in audits))
        reasons = [(one, _why_apart(one, chosen)) for one in audits]
        entries = sorted((one for one, why in reasons if not why), key=lambda one: _rank(one.audit))
        first = entries[0].audit
        count = first.data.total or first.data.n or 0
        boards.append(Board(str(first.protocol), first.data.name, count, tuple(first.classes), tuple(entries), ()))
        audits = [one for one, why in reasons if why]
        if not has_entries:
            refused += [(one.name, why) for one, why in reasons if why]
            break
    return replace(boards[0], refused=tuple(refused), others=tuple(boards[1:]))


def _read_audits(folder: Path) -> tuple[list[Row], list[tuple[str, str]]]:
    """Return the complete audits under a folder, and the names of the others with reasons."""
    if not folder.is_dir():
        why = "this is a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {why}. Give the folder that contains the folders of audits.")
    audits: list[Row] = []
    refused: list[tuple[str, str]] = []
    for path in sorted(_find_files(folder, refused)):
        is_audit = path.name == layout.AUDIT_FILE
        name = (path.parent if is_audit else path.with_suffix("")).relative_to(folder).as_posix()
        try:
            entry = None if is_audit else schemas.read_schema(LeaderboardEntry, path)
            if entry is not None and (fault := next(entry.list_faults(), "")):
                raise UserError(f"{path}: {fault}")
            document = schemas.read_audit(path) if entry is None else entry.audit
        except UserError as problem:
            refused.append((name, str(problem)))
            continue
        if document.protocol is None:
            refused.append((name, "audited with other options than a protocol's"))
        elif not (document.data.files or document.data.fingerprint):
            refused.append((name, f"unknown images: no checksum of them in its {layout.AUDIT_FILE}"))
        else:
            results = read_image_results(path.parent, document) if entry is None else entry.image_results
            audits.append(Row(name, document, entry, results))
    return audits, refused


def _find_files(folder: Path, refused: list[tuple[str, str]]) -> Iterator[Path]:
    """Yield every audit.json and entry under a folder, links included; add unreadable folders to `refused`.

    Each real folder counts once. Links are followed last, so a folder keeps its real name and a loop ends.
    """

    def refuse(problem: OSError) -> None:
        name = Path(problem.filename).relative_to(folder).as_posix()
        refused.append((name, f"this folder cannot be read: {reason(problem.errno or 0)}"))

    seen, waiting = set[str](), [folder]
    for start in waiting:
        for current, folders, files in os.walk(start, onerror=refuse):
            real = os.path.realpath(current)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            waiting += [path for name in folders if (path := Path(current) / name).is_symlink()]
            if layout.AUDIT_FILE in (*files, *folders):
                yield Path(current) / layout.AUDIT_FILE
            yield from (Path(current) / name for name in files if schemas.ENTRY_NAME.fullmatch(name))


def _rank(document: AuditDocument) -> tuple[bool, float, float]:
    """Return a sort key: sound first, then by accuracy under our attacks, then clean; of findings it is balanced."""
    accuracy, worst, clean = own_accuracy(document), find_worst_attack(document), document.clean.accuracy.value
    left = worst.accuracy.value if accuracy is None else accuracy
    if document.findings:  # "absent" for all is often right
        left = left if _counted_submissions(document) else worst.balanced_accuracy.value
        clean = document.clean.balanced_accuracy.value
    return not document.verdict.sound, -(-1.0 if left is None else left), -(clean or 0.0)


def _why_apart(one: Row, other: Row) -> str:
    """Return why an audit does not compare with the others; empty if it does."""
    document, others = one.audit, other.audit
    if document.protocol != others.protocol:
        return f"audited by {document.protocol}, the others by {others.protocol}"
    if sorted(document.classes) != sorted(others.classes):
        return f"classes {', '.join(document.classes)}, the others' {', '.join(others.classes)}"
    if not document.data.same_images(others.data):
        return f"not the same images as the others {document.data.describe_difference(others.data)}"
    if document.data.truth != others.data.truth:
        return "not the same labels of findings as the others on these images"
    efforts = [find_worst_attack(audit).effort for audit in (document, others)]
    if efforts[0] != efforts[1] and all(effort.attack for effort in efforts):
        return f"attacked by {efforts[0].name}, the others by {efforts[1].name}: audit it again"
    return ""


def own_accuracy(document: AuditDocument) -> float | None:
    """Return accuracy under our own attacks, without submitted images; None if the audit does not determine it.

    The audit counts submitted images at the smallest worst-case radius that contains them.
    """
    worst, submitted = find_worst_attack(document), _counted_submissions(document)
    value = worst.accuracy.value
    if value is None or not submitted:
        return value
    radii = [row.epsilon or 0.0 for row in document.attacks if row.attack == WORST_CASE]
    counted = [min(radius for radius in radii if radius >= (one.epsilon or 0.0) - 1e-9) for one in submitted]
    if not worst.n or any(radius != worst.epsilon for radius in counted):
        return None
    return (round(value * worst.n) + sum(one.found_alone or 0 for one in submitted)) / worst.n


def _counted_submissions(document: AuditDocument) -> list[schemas.Submitted]:
    """Return the submitted images that lowered the worst case on the board."""
    worst = document.largest_worst_case
    largest = -1.0 if worst is None else worst.epsilon or 0.0
    return [one for one in document.misled_alone if (one.epsilon or 0.0) <= largest + 1e-9]


def describe_submitted(document: AuditDocument) -> str:
    """Return whose submitted images lowered the worst case, and the basis of the rank; empty without any."""
    if not (submitted := _counted_submissions(document)):
        return ""
    names = " and ".join(f"{one.by} ({formatting.plural(one.found_alone or 0, 'image')})" for one in submitted)
    accuracy = own_accuracy(document)
    basis = "its rank includes them, since accuracy under our attacks alone is unknown"
    if accuracy is not None:
        basis = f"its rank is by our attacks alone, which leave {format_percent(accuracy)}"
    return f"images submitted by {names} mislead it but our attacks do not; {basis}"


def describe_gradients(document: AuditDocument) -> str:
    """Return why attacks could not rely on the model's gradients; empty if they could, or nothing was attacked."""
    if document.model.kind == "predictions":
        return ""
    texts = [check.text for check in document.entry_checks if check.passed is False and check.check in _GRADIENT_CHECKS]
    if document.masking is not None and document.masking.masked:
        texts += document.masking.reasons
    if not texts and document.model.gradients == "none":
        texts = ["the model gives none, so attacks did without"]
    return "; ".join(dict.fromkeys(texts))


def list_remarks(board: Board) -> list[str]:
    """Return a line for each worst case that counts submitted images, and for each audit with two rows."""
    texts = ((board.names[row.name], describe_submitted(row.audit)) for row in board.entries)
    return [f"{name}: {text}" for name, text in texts if text] + _describe_copies(board)


def _describe_copies(board: Board) -> list[str]:
    return [
        f"{formatting.join_words(folders)}: the same model with the same figures, so {len(folders)} rows are one audit"
        for folders in board.copies
    ]


def _shares(document: AuditDocument) -> dict[str, Share]:
    mean, clean = document.corruptions_mean, document.clean
    return {
        "clean": clean.accuracy,
        "attacked": find_worst_attack(document).accuracy,
        "corrupted": mean.accuracy if mean else Share(),
        "AUROC": clean.auroc_macro,
        "calibration error": clean.ece,
    }


def _record(row: Row) -> dict[str, object]:
    """Return one audit as values: shares of one with intervals, counts and texts; None if missing."""
    name, document, entry, _ = row
    reported, worst, mean = document.model.reported, find_worst_attack(document), document.corruptions_mean
    shares: dict[str, object] = {}
    for column, figure in _shares(document).items():
        shares |= {column: figure.value, f"{column}_ci": list(figure.interval) if figure.interval else None}
    return {
        "model": document.model.name or None,
        "sound": bool(document.verdict.sound),
        "reasons": document.verdict.reasons,
        "gradients fail": describe_gradients(document) or None,
        "kind": document.model.kind or None,
        "protocol": document.protocol,
        "data": document.data.name or None,
        "split": document.split or None,
        "n": document.clean.n,
        "n attacked": worst.n,
        "n corrupted": mean.n if mean else None,
        "clean reported": reported.clean,
        "attacked reported": reported.attacked,
        **shares,
        "by": _format_attack(worst) or None,
        "steps": worst.steps,
        "queries": worst.queries,
        "attacked_by_ours": own_accuracy(document),
        "attacked_with_more": describe_submitted(document),
        "threat model": reported.threat_model or None,
        "training data": reported.training_data or None,
        "paper": reported.paper or None,
        "folder": name,
        **({key: getattr(entry, key) for key in ("badge", "run_by", "licence", "source", "command")} if entry else {}),
    }


def _format_attack(worst: schemas.AttackResult) -> str:
    return "" if worst.epsilon is None else f"{worst.effort.name}, epsilon {worst.epsilon:g}"


def to_json(board: Board) -> dict[str, object]:
    """Return the board as one JSON document."""
    return {
        "protocol": board.protocol,
        "data": board.data,
        "n": board.n,
        "classes": list(board.classes),
        "copies": board.copies,
        "rows": [_record(row) for row in board.entries],
        "refused": [{"folder": name, "why": why} for name, why in board.refused],
        "others": [to_json(other) for other in board.others],
    }


def to_csv(board: Board) -> str:
    """Return the board and its others as CSV: the values of the JSON document, an interval as two columns."""
    import pandas as pd

    lines = []
    for row in (row for one in (board, *board.others) for row in one.entries):
        line: dict[str, object] = {}
        for column, value in _record(row).items():
            if column.endswith("_ci"):
                low, high = value if isinstance(value, list) else (None, None)
                line |= {f"{column[:-3]} low": low, f"{column[:-3]} high": high}
            else:
                value = "; ".join(value) if isinstance(value, list) else value
                line[column] = guarded(value) if isinstance(value, str) else value
        lines.append(line)
    return pd.DataFrame(lines).astype(object).to_csv(index=False)


def make_row(row: Row) -> dict[str, Cell]:
    """Return the cells of one audit by column."""
    name, document, *_ = row
    reported, worst = document.model.reported, find_worst_attack(document)
    sound, reasons = bool(document.verdict.sound), "; ".join(document.verdict.reasons)
    gradients = describe_gradients(document)
    verdict = ("sound" if sound else "NOT SOUND") + (", gradients fail" if gradients else "")
    shares = {f"{column}, %": share(figure) for column, figure in _shares(document).items()}
    fewer = f"attacks {formatting.count(worst.n)}" if worst.n not in (None, document.clean.n) else ""
    return {
        "model": Cell(document.model.name or formatting.DASH, document.model.kind, note="" if sound else "unsound"),
        "measurement": Cell(verdict, reasons, gradients, note="why bad" if gradients else "why"),
        "clean reported, %": share(reported.clean),
        "clean, %": shares.pop("clean, %"),
        "attacked reported, %": share(reported.attacked),
        "attacked, %": shares.pop("attacked, %"),
        "by": _text(_format_attack(worst), describe_submitted(document)),
        **shares,
        "n": whole(document.clean.n, fewer),
        "threat model": _text(reported.threat_model),
        "training data": _text(reported.training_data),
        "paper": _text(reported.paper),
        "folder": _text(name),
    }


def make_entry_row(row: Row) -> dict[str, Cell]:
    """Return the cells of an entry by column, with its badge and source; few enough for sorting on a small screen."""
    cells, (name, document, entry, _) = make_row(row), row
    for column in ("clean", "attacked"):
        reported = cells.pop(f"{column} reported, %")
        second = f"reported {reported.text}" if reported.value is not None else ""
        cells[f"{column}, %"] = replace(cells[f"{column}, %"], second=second)
    worst, epsilon = cells["attacked, %"], find_worst_attack(document).epsilon
    parts = ("" if epsilon is None else f"at {epsilon:g}", worst.second, describe_submitted(document))
    cells |= {
        "model": replace(cells["model"], second=(document.model.sha256 or "")[:8]),
        "attacked, %": replace(worst, second="; ".join(filter(None, parts))),
        "trained": replace(cells["training data"], small=cells["threat model"].text),
        "badge": _text("audit") if entry is None else _text(entry.badge, f"by {entry.run_by}"),
        "source": _text(name) if entry is None else _text(entry.source, f"licence {entry.licence}"),
    }
    columns = ("model", "badge", "measurement", "clean, %", "attacked, %", "corrupted, %", "AUROC, %")
    return {column: cells[column] for column in (*columns, "calibration error, %", "n", "trained", "source")}


def _text(text: str, small: str = "") -> Cell:
    return Cell(text or formatting.DASH, small, note="text")


def make_table(board: Board) -> Table:
    """Return the whole leaderboard."""
    has_entries = any(row.entry for row in board.entries)
    rows = list(map(make_entry_row if has_entries else make_row, board.entries))
    title = board.title if has_entries else "Leaderboard"
    return Table(title, _name_attack(board, list(rows[0])), [list(cells.values()) for cells in rows])


def terminal_table(board: Board) -> Table:
    """Return the columns for a terminal; models of one name have their folders."""
    rows = []
    for row in board.entries:
        cells = make_row(row)
        cells["model"] = replace(cells["model"], text=board.names[row.name], small="")
        rows.append([cells[column] for column in _IN_TERMINAL])
    return Table(board.title, _name_attack(board, _IN_TERMINAL), rows)


def _name_attack(board: Board, header: list[str]) -> list[str]:
    """Return a header whose column of accuracy under attack names the attack with its effort."""
    named = f"attacked by {board.attack}, %" if board.attack else "attacked, %"
    return [named if column == "attacked, %" else column for column in header]


def write(board: Board, out: Path) -> tuple[Path, Path]:
    """Write the page and the table into `out`; return their paths."""
    for path, text in ((out / PAGE, render(board)), (out / TABLE, to_csv(board))):
        atomic.write_text(path, text)
    return out / PAGE, out / TABLE


def render(board: Board) -> str:
    """Return the page as text."""
    boards = (board, *board.others)
    parts = {
        "board": board,
        "tables": [(one, make_table(one)) for one in boards],
        "submitted": [board.names[row.name] for row in board.entries if describe_submitted(row.audit)],
        "copies": _describe_copies(board),
        "has_entries": any(row.entry for row in board.entries),
        "has_results": any(row.results for one in boards for row in one.entries),
        "data": [_list_page_data(one) for one in boards],
    }
    return html.fill_template("board.html.j2", parts)


def _list_page_data(board: Board) -> dict[str, object]:
    """Return what the page's filters and its comparison of two rows need of one table."""
    rows: list[dict[str, object]] = []
    for name, document, entry, results in board.entries:
        filters = {"data": board.data, "protocol": board.protocol, "badge": "audit", "licence": "", "run by": ""}
        if entry is not None:
            filters |= {"badge": entry.badge, "licence": entry.licence, "run by": entry.run_by}
        cells = {key: share(figure) for key, figure in _shares(document).items() if key in ("clean", "attacked")}
        remarks = (
            "" if document.verdict.sound else "its measurement is not sound",
            describe_submitted(document),
            "" if results else "it has no results of single images",
        )
        rows.append(
            {
                "name": board.names[name],
                "sound": bool(document.verdict.sound),
                "remarks": [*filter(None, remarks)],
                "filters": filters,
                "figures": {key: cell.text + (f" ({cell.small})" if cell.small else "") for key, cell in cells.items()},
            }
        )
    return {"rows": rows, "pairs": compare_rows([row.results for row in board.entries]), "attack": board.attack}


def compare_rows(results: Sequence[ImageResults | None]) -> dict[str, Pair]:
    """Return the paired differences of each two rows with results of the same images, by their numbers: "0 1".

    Of clean images ("clean") and under worst case ("attacked"): second less first, both ends of its 95 % interval over
    groups, images right in the first alone, in the second alone, and all images. None without a worst case in both.
    """
    bootstraps, pairs = Bootstraps(), dict[str, Pair]()
    for (i, one), (j, other) in combinations(enumerate(results), 2):
        if one is not None and other is not None and one.same_images(other):
            groups = np.char.zfill(np.cumsum([int(new) for new in one.new_group]).astype(str), 9)
            parts = {"clean": (one.clean, other.clean), "attacked": (one.worst_case, other.worst_case)}
            pairs[f"{i} {j}"] = {name: _compare_texts(*texts, groups, bootstraps) for name, texts in parts.items()}
    return pairs


def _compare_texts(first: str, second: str, groups: np.ndarray, bootstraps: Bootstraps) -> list[float] | None:
    if not first or not second:
        return None
    a, b = (np.array([np.nan if right == "-" else float(right) for right in text]) for text in (first, second))
    both = np.isfinite(a) & np.isfinite(b)
    if not both.any():
        return None
    difference = (b - a)[both]
    ends = interval(bootstraps.over(groups[both]).means(difference))
    alone = [int((difference < 0).sum()), int((difference > 0).sum())]
    return [round(value, 6) for value in (float(difference.mean()), *ends)] + [*alone, len(difference)]
