"""Compare two audits by one protocol, image by image: the command `trustcxr compare`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from trustcxr.errors import UserError
from trustcxr.registry import VIEWS, WORST_CASE
from trustcxr.statistics import holm, paired
from trustcxr.storage import atomic, layout
from trustcxr.storage.prediction_table import CLEAN, check_table
from trustcxr.storage.schemas import LEVEL, AuditDocument, AuditPair, PairRow, Share, read_audit
from trustcxr.study.comparison import Key, figures

_ROUNDING = 1e-9  # of a radius


def compare(first: Path, second: Path, *, resamples: int = 2000) -> AuditPair:
    """Compare the accuracy of two audited models under each condition that both have, paired over images.

    Each row has the difference (second less first), its interval over groups, and a p-value, also corrected for all
    rows (Holm 1979). `settled`: both agree that they differ, and not because submitted images attacked the worse model
    alone. Masked views are left out if the lung masks differ. Raises UserError unless both used one protocol on the
    same images and classes, and have a whole predictions.parquet.
    """
    audits = [read_audit(layout.check_audit(folder) / layout.AUDIT_FILE) for folder in (first, second)]
    return compare_documents(audits, (first, second), resamples=resamples)


def compare_documents(audits: list[AuditDocument], folders: tuple[Path, Path], *, resamples: int = 2000) -> AuditPair:
    """Compare two audits whose tables are in `folders`, as `compare` does."""
    first, second = folders
    _check_comparable(audits, folders)
    lost = [row for document in audits for row in document.attacks if row.accuracy.value is None]
    withdrawn = {f"{a.effort.name if a.attack == WORST_CASE else a.attack} accuracy @{a.epsilon:g}" for a in lost}
    paths = [folder / layout.PREDICTIONS_FILE for folder in folders]
    predictions = [atomic.read_table(path) for path in paths]
    for document, path, table in zip(audits, paths, predictions, strict=True):
        check_table(table, path, None if document.findings else len(document.classes))
    tables = [figures(folder) for folder in (first, second)]
    ids = [table[Key(f"{CLEAN} accuracy")].index for table in tables]
    partly = any(document.data.partial or document.findings for document in audits)
    if len(ids[0].intersection(ids[1])) < (1 if partly else max(map(len, ids))):
        named = "images of one are named otherwise than in that of the other"
        raise UserError(f"{first} and {second}: {named}; audit both again")
    judged = [[one.name for one in document.findings if one.judged] for document in audits]
    clean = predictions[0][predictions[0]["attack"] == CLEAN].set_index("sample_id")
    each = {name: clean.index[clean["finding"] == name] for name in judged[0] if name in judged[1]}  # ids of both
    rows = list[PairRow]()
    both = [key for key in tables[0] if key in tables[1] and not key.method]
    by_lungs = {f"{view} accuracy" for view in VIEWS} if audits[0].data.other_lungs(audits[1].data) else set()
    other_lungs = [key.measure for key in both if key.measure in by_lungs]
    for key in [key for key in both if key.measure not in withdrawn and key.measure not in other_lungs]:
        shared = tables[0][key].index.intersection(tables[1][key].index)
        one, other = (table[key].loc[shared] for table in tables)
        rows.append(_row(key.measure, one, other, resamples))
        for finding in each if key.measure.startswith((CLEAN, WORST_CASE)) else ():
            part = shared.intersection(each[finding])
            rows.append(_row(f"{key.measure}, {finding}", one.loc[part], other.loc[part], resamples))
    p_values = [float("nan") if row.p_value is None else row.p_value for row in rows]
    for row, corrected in zip(rows, holm(p_values), strict=True):
        ends = row.difference.interval
        row.p_corrected = float(corrected)
        row.settled = bool(corrected < LEVEL and ends is not None and not ends[0] <= 0 <= ends[1])
        if attacked_more(audits, row.measure, each) not in (None, int((row.difference.value or 0.0) > 0)):
            row.settled = False  # the lead may be due to fewer attacks
    return AuditPair(
        first=audits[0].model.name,
        second=audits[1].model.name,
        protocol=audits[0].protocol,
        data=min((document.data for document in audits), key=lambda data: data.n or 0),
        same_pixels=audits[0].data.fingerprint == audits[1].data.fingerprint,
        sound=[bool(document.verdict.sound) for document in audits],
        withdrawn=sorted(withdrawn),
        other_lungs=other_lungs,
        submitted=[[one.by for one in document.misled_alone] for document in audits],
        rows=rows,
    )


def _row(measure: str, one: pd.DataFrame, other: pd.DataFrame, resamples: int) -> PairRow:
    """Return the row of two tables of value and group of the same images, not corrected yet."""
    result = paired(one["value"], other["value"], one["group"], resamples=resamples)
    difference = Share(value=result.difference, ci=result.difference_ci)
    same = {name: getattr(result, name) for name in ("first", "second", "p_value", "p_least", "n")}
    return PairRow(measure=measure, difference=difference, **same)


def attacked_more(audits: Sequence[AuditDocument], measure: str, findings: Iterable[str] = ()) -> int | None:
    """Return the index of the only audit of two with a row that submitted images changed; None for both or neither.

    They count under the worst case from their radius on, and those for one of the `findings` in its own row.
    """
    whole, _, finding = measure.partition(", ")
    name, _, radius = whole.partition(" accuracy @")
    if not name.startswith(WORST_CASE):
        return None
    others = [f"({other})" for other in findings if other != finding] if finding else []
    changed = {
        index
        for index, document in enumerate(audits)
        for one in document.misled_alone
        if (one.epsilon or 0.0) <= float(radius) + _ROUNDING and not one.by.endswith(tuple(others))
    }
    return changed.pop() if len(changed) == 1 else None


def _check_comparable(audits: list[AuditDocument], folders: tuple[Path, Path]) -> None:
    """Raise UserError unless the two audits are comparable."""
    one, other = audits
    for document, folder in zip(audits, folders, strict=True):
        if document.protocol is None:
            raise UserError(f"{folder}: examined with other options than a protocol's; audit it again without them")
    pair = f"{folders[0]} and {folders[1]}"
    if one.protocol != other.protocol:
        raise UserError(f"{pair}: examined by {one.protocol} and by {other.protocol}; audit the older one again")
    if sorted(one.classes) != sorted(other.classes):
        raise UserError(f"{pair}: classes {', '.join(one.classes)} are not {', '.join(other.classes)}")
    if not one.data.same_images(other.data):
        difference = one.data.describe_difference(other.data)
        raise UserError(f"{pair}: not the same images {difference}; audit both on one data set and split")
    if one.data.truth != other.data.truth:
        raise UserError(f"{pair}: not the same labels of findings on these images; audit both again on the same list")
