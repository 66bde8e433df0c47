"""`trustcxr compare`: two audits of one examination on the same images, image by image."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trustcxr.errors import UserError
from trustcxr.registry import VIEWS, WORST_CASE
from trustcxr.statistics import holm, paired
from trustcxr.storage import atomic, layout
from trustcxr.storage.prediction_table import CLEAN, check_table
from trustcxr.storage.schemas import LEVEL, AuditDocument, AuditPair, PairRow, Share, read_audit
from trustcxr.study.comparison import Key, figures

if TYPE_CHECKING:
    import pandas as pd

_ROUNDING = 1e-9  # of a radius


def compare(first: Path, second: Path, *, resamples: int = 2000) -> AuditPair:
    """Accuracy of two audited models under each condition that both have, paired over images.

    `rows`: measure, first, second, difference (second less first) with its interval over groups, p_value and the same
    corrected (Holm 1979) for all rows, n, and `settled`: whether interval and corrected test both say that they differ;
    of the worst case not where images that somebody handed in made that of the worse of the two alone what it is.
    Of models of findings a row is of all decisions; behind it, as images are and under the worst case, one of each.
    Each is judged by its own classes, in whichever order, on the images at its own size; images are matched by their
    ids. Of images that were changed by other lung masks in one of them there is no row.
    Raises UserError, with the reason, unless both were examined by one protocol on the same images and classes, and
    predictions.parquet beside each is whole.
    """
    audits = [read_audit(layout.check_audit(folder) / layout.AUDIT_FILE) for folder in (first, second)]
    _check(audits, (first, second))
    gone = {f"{a.attack} accuracy @{a.epsilon:g}" for d in audits for a in d.attacks if a.accuracy.value is None}
    for document, path in zip(audits, (folder / layout.PREDICTIONS_FILE for folder in (first, second)), strict=True):
        check_table(atomic.read_table(path), path, None if document.findings else len(document.classes))
    tables = [figures(folder) for folder in (first, second)]
    _refuse_other_images(audits, tables, (first, second))
    each, rows = _decisions(audits, first), list[PairRow]()
    both = [key for key in tables[0] if key in tables[1] and not key.method]
    by_lungs = {f"{view} accuracy" for view in VIEWS} if audits[0].data.other_lungs(audits[1].data) else set()
    other_lungs = [key.measure for key in both if key.measure in by_lungs]
    for key in [key for key in both if key.measure not in gone and key.measure not in other_lungs]:
        shared = tables[0][key].index.intersection(tables[1][key].index)
        one, other = (table[key].loc[shared] for table in tables)
        rows.append(_row(key.measure, one, other, resamples))
        for finding in each if key.measure.startswith((CLEAN, WORST_CASE)) else ():
            own = shared.intersection(each[finding])
            rows.append(_row(f"{key.measure}, {finding}", one.loc[own], other.loc[own], resamples))
    p_values = [float("nan") if row.p_value is None else row.p_value for row in rows]
    for row, corrected in zip(rows, holm(p_values), strict=True):
        ends = row.difference.interval
        row.p_corrected = float(corrected)
        row.settled = bool(corrected < LEVEL and ends is not None and not ends[0] <= 0 <= ends[1])
        if attacked_more(audits, row.measure, each) not in (None, int((row.difference.value or 0.0) > 0)):
            row.settled = False  # who was attacked less may owe its lead to that
    return AuditPair(
        first=audits[0].model.name,
        second=audits[1].model.name,
        protocol=audits[0].protocol,
        data=min((document.data for document in audits), key=lambda data: data.n or 0),
        same_pixels=audits[0].data.fingerprint == audits[1].data.fingerprint,
        unreliable=[bool(document.unreliable) for document in audits],
        withdrawn=sorted(gone),
        other_lungs=other_lungs,
        submitted=[[found.by for found in document.misled_alone] for document in audits],
        rows=rows,
    )


def _row(measure: str, one: "pd.DataFrame", other: "pd.DataFrame", resamples: int) -> PairRow:
    """Two tables of value and group of the same images, in a row that is not corrected yet."""
    found = paired(one["value"], other["value"], one["group"], resamples=resamples)
    return PairRow(
        measure=measure,
        first=found.first,
        second=found.second,
        difference=Share(value=found.difference, ci=found.difference_ci),
        p_value=found.p_value,
        n=found.n,
    )


def _decisions(audits: Sequence[AuditDocument], first: Path) -> dict[str, "pd.Index[str]"]:
    """The sample ids of each finding that both models were judged on, in the first one's order; none of classes."""
    judged = [[found.name for found in document.findings if found.judged] for document in audits]
    both = [name for name in judged[0] if name in judged[1]]
    if not both:
        return {}
    table = atomic.read_table(first / layout.PREDICTIONS_FILE)
    ids = table[table["attack"] == CLEAN].set_index("sample_id")["finding"]
    return {name: ids.index[ids == name] for name in both}


def attacked_more(audits: Sequence[AuditDocument], measure: str, findings: Iterable[str] = ()) -> int | None:
    """Of which of two audits alone images that somebody handed in changed this row: its place; None: of both, or none.

    They count under the worst case from their radius on, and those for one of the `findings` in its own row. Images
    that mislead a model only where our own attacks do too change nothing, so nobody was attacked with more.
    """
    whole, _, finding = measure.partition(", ")
    name, _, radius = whole.partition(" accuracy @")
    if name != WORST_CASE:
        return None
    others = [f"({other})" for other in findings if other != finding] if finding else []
    handed = [
        any(
            (found.epsilon or 0.0) <= float(radius) + _ROUNDING and not found.by.endswith(tuple(others))
            for found in document.misled_alone
        )
        for document in audits
    ]
    return handed.index(True) if sum(handed) == 1 else None


def _check(audits: list[AuditDocument], where: tuple[Path, Path]) -> None:
    """UserError unless the two compare."""
    one, other = audits
    for document, folder in zip(audits, where, strict=True):
        if document.protocol is None:
            raise UserError(f"{folder}: examined with other options than a protocol's; audit it again without them")
    pair = f"{where[0]} and {where[1]}"
    if one.protocol != other.protocol:
        raise UserError(f"{pair}: examined by {one.protocol} and by {other.protocol}; audit the older one again")
    if not one.same_classes(other):
        raise UserError(f"{pair}: classes {', '.join(one.classes)} are not {', '.join(other.classes)}")
    if not one.data.same_images(other.data):
        raise UserError(
            f"{pair}: not the same images {one.data.apart(other.data)}; audit both on one data set and split"
        )
    if not one.data.same_truth(other.data):
        raise UserError(f"{pair}: not the same labels of findings on these images; audit both again on the same list")


def _refuse_other_images(
    audits: Sequence[AuditDocument], tables: Sequence[Mapping[Key, "pd.DataFrame"]], where: tuple[Path, Path]
) -> None:
    """UserError where the images of two tables have other names; some may lack in one that leaves out images."""
    one, other = (table[Key(f"{CLEAN} accuracy")].index for table in tables)
    partly = any(document.data.partial or document.findings for document in audits)
    if len(one.intersection(other)) < (1 if partly else max(len(one), len(other))):
        raise UserError(
            f"{where[0]} and {where[1]}: the images in {layout.PREDICTIONS_FILE} of one are named otherwise than in "
            "that of the other; audit both models again, into new folders"
        )
