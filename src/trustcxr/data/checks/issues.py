"""Turn the results of a scan into issues: kind, severity, text, and the files concerned."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trustcxr.data.checks.confounds import WITHOUT_LUNGS, Association, Probe
from trustcxr.data.checks.scan import Scan
from trustcxr.data.images import dicom_files, plausibility, read
from trustcxr.data.layouts.listing import Masks
from trustcxr.data.manifest import MASK_SUFFIX, Manifest, format_similar_classes
from trustcxr.storage.atomic import parse_yaml

_ISSUES = parse_yaml(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_DOUBTS = [kind.removeprefix("image_") for kind in _ISSUES if kind.startswith("image_")]
Item = dict[str, Any]  # sample_id, path, detail, mask; `other_id`, `other_path` and `members` of a pair or group
SEVERITIES = ("fault", "leak", "warning", "note")
_STRONG, _WEAK = 0.3, 0.1  # Cramér's V
_EMPTY_CLASS = 0.95  # share of empty masks from which a class is expected to have empty masks
_USUAL = 0.9  # share of images with a mask from which every image is expected to have one
_OUTSIDE = 0.2  # share of an infection mask outside the lungs that is an issue


@dataclass
class Issue:
    """An issue: `kind` is a fixed word, `text` describes it, `items` are the files concerned."""

    kind: str
    severity: str
    text: str
    count: int
    items: list[Item] = field(default_factory=list)


def make_issues(kind: str, items: Iterable[Item], *, severity: str = "", text: str = "", **parts: str) -> list[Issue]:
    """Return one issue, or none without items; severity and text are those of issues.yaml, filled with `parts`."""
    usual_severity, usual_text = _ISSUES.get(kind, ("", ""))
    listed, severity, text = list(items), severity or usual_severity, (text or usual_text).format(**parts)
    text = re.sub(r"\[(.*?)\|(.*?)\]", r"\1" if len(listed) == 1 else r"\2", text)
    text = text.replace("#", f"{len(listed):,}", 1)
    return [Issue(kind, severity, text, len(listed), listed)] if listed else []


def file_issues(manifest: Manifest, scan: Scan) -> list[Issue]:
    """Return issues of unreadable files, and of names with another format."""
    files = scan.files
    other = files["named"].notna() & files["format"].notna() & (files["named"] != files["format"])
    broken = _items(manifest.table, files["fault"].notna(), files["fault"])
    lying = _items(manifest.table, scan.readable & other, "is " + files["format"].astype(str))
    skipped = [Item(sample_id=path, path=path, detail=why) for path, why in manifest.skipped.items()]
    results = [item for item in skipped if item["detail"] in (read.HEATMAP_REASON, dicom_files.RESULT_REASON)]
    unlisted = [item for item in skipped if item not in results]
    return [
        *make_issues("passed_over", unlisted),
        *make_issues("heatmaps", results),
        *make_issues("unreadable", broken),
        *make_issues("name_lies", lying),
    ]


def class_issues(manifest: Manifest) -> list[Issue]:
    """Return issues of classes whose names differ only in capitals or blanks."""
    text = "classes differ only in capitals or blanks: "
    return [
        Issue("class_spelling", "warning", text + format_similar_classes(names), len(names))
        for names in manifest.similar_classes()
    ]


_AT_ONCE = 1024  # images whose thumbnails are in memory
_CHANCE = 0.03  # share of real images that may look unusual: up to it, a note instead of a warning


def image_issues(manifest: Manifest, scan: Scan) -> list[Issue]:
    """Return issues of images that may not be frontal chest images."""
    reasons: dict[str, dict[int, str]] = {kind: {} for kind in _DOUBTS}  # of each row
    readable = np.flatnonzero(scan.readable)
    for rows in np.split(readable, np.arange(_AT_ONCE, len(readable), _AT_ONCE)):
        colours = scan.files["colour"].iloc[rows].astype(float).tolist()
        for row, doubts in zip(rows, plausibility.find_doubts(scan.thumbs[rows], colours), strict=True):
            for kind, reason in doubts.items():
                reasons[kind][row] = reason
    issues: list[Issue] = []
    for kind, of_rows in reasons.items():
        items = _items(manifest.table, list(of_rows), pd.Series(of_rows, dtype=object))
        by_chance = kind not in ("colour", "constant") and len(items) <= _CHANCE * len(manifest.table)
        issues += make_issues(f"image_{kind}", items, severity="note" if by_chance else "")
    return issues


def mask_issues(manifest: Manifest, scan: Scan, same_image: np.ndarray) -> list[Issue]:
    """Return issues of masks: missing, unreadable, of another size, not binary, empty, full, or another image's.

    same_image: (N,) cluster of each sample's duplicates, which may share a mask.
    """
    findings: list[Issue] = []
    if manifest.layout == "covidqu":
        text = "# [mask is missing, or has|masks are missing, or have] no image"
        findings += make_issues("mask_missing", _unpaired(manifest.root), severity="fault", text=text)
    for kind, masks in scan.masks.items():
        needed = ["sample_id", "path", "class", kind + MASK_SUFFIX]  # others may have the name of a measure
        table = manifest.table[needed].join(masks)
        table = table.assign(image_width=scan.files["width"], image_height=scan.files["height"], image=same_image)
        findings += _mask_issues_of_kind(kind, table, scan.readable, manifest.layout)
    return findings


def _mask_issues_of_kind(kind: str, table: pd.DataFrame, readable: np.ndarray, layout: str) -> list[Issue]:
    column = kind + MASK_SUFFIX
    has = table[column].notna()
    result = []
    expected = bool(has.mean() > _USUAL)
    if layout != "covidqu" and (expected or kind == "lung"):
        severity, others = ("fault", "nearly all do") if expected else ("note", "others do")
        text = f"# [image has|images have] no {kind} mask, while {others}"
        result += make_issues("mask_missing", _items(table, ~has, mask=column), severity=severity, text=text)
    for name, (rows, detail) in _wrong_masks(kind, table, has, readable).items():
        result += make_issues(name, _items(table, rows, detail, mask=column), mask=kind)
    return result


def _wrong_masks(
    kind: str, table: pd.DataFrame, has: pd.Series, readable: np.ndarray
) -> dict[str, tuple[Any, pd.Series | None]]:
    """Return for each issue of a mask its rows, and their details."""
    good = has & table["fault"].isna()
    other_size = (table["width"] != table["image_width"]) | (table["height"] != table["image_height"])
    empty = good & (table["share"] == 0)
    emptiness = empty.groupby(table["class"]).transform("sum") / good.groupby(table["class"]).transform("sum")
    should_be_empty = (emptiness >= _EMPTY_CLASS) & (kind != "lung")
    wrong_size, outside = good & readable & other_size, good & (table["outside"] > _OUTSIDE) & (kind == "infection")
    twice = table["digest"].where(good & ~empty).map(lambda d: d if isinstance(d, str) else None)
    owners = table[twice.notna()].groupby(twice[twice.notna()])["image"].transform("nunique")
    return {
        "mask_unreadable": (has & ~good, table["fault"]),
        "mask_size": (wrong_size, _sizes(table[wrong_size])),
        "mask_not_binary": (good & (table["binary"] == False), None),  # noqa: E712 - the column holds None too
        "mask_empty": (empty & ~should_be_empty, None),
        "mask_unexpected": (good & ~empty & should_be_empty, None),
        "mask_full": (good & (table["share"] > 0.98), None),
        "mask_shared": (owners.index[owners > 1], None),
        "mask_outside": (outside, table["outside"][outside].map("{:.0%} outside".format)),
    }


def _items(table: pd.DataFrame, rows: Any, detail: pd.Series | None = None, *, mask: str | None = None) -> list[Item]:
    """Return an item for each of the rows (booleans, labels or a slice); `mask` is the column with the mask's path."""
    names = ["sample_id", "path", *([mask] if mask else [])]
    facts = table[names].rename(columns={mask: "mask"})
    facts = facts if detail is None else facts.assign(detail=detail)
    items: list[Any] = facts.loc[rows].to_dict("records")
    return items


def _sizes(table: pd.DataFrame) -> pd.Series:
    """Format for each row: mask 64 x 64, image 96 x 96."""
    sizes = table[["width", "height", "image_width", "image_height"]].itertuples(index=False, name=None)
    texts = ["mask {:.0f} x {:.0f}, image {:.0f} x {:.0f}".format(*numbers) for numbers in sizes]
    return pd.Series(texts, table.index, dtype=object)


def _unpaired(root: Path) -> list[Item]:
    """List images without a mask, and masks without an image, in COVID-QU-Ex's layout."""
    items = []
    for folder, names, _ in os.walk(root):
        if "images" not in names:
            continue
        relative = Path(folder).relative_to(root)
        images = Masks(root, (relative / "images").as_posix()).stems
        for masks_folder in (n for n in names if n.lower().endswith("masks")):
            masks = Masks(root, (relative / masks_folder).as_posix()).stems
            for stem in sorted(images.keys() ^ masks.keys(), key=lambda stem: (stem in masks, stem)):
                path, detail = images.get(stem), f"no file in '{masks_folder}'"
                if path is None:
                    path, detail = masks[stem], f"in '{masks_folder}', but no image"
                items.append({"sample_id": os.path.basename(path), "path": path, "detail": detail})
    return items


def leak_issues(manifest: Manifest, pairs: pd.DataFrame) -> list[Issue]:
    """Return issues of images, patients or groups in two splits, and of images twice or with two classes."""
    table = manifest.table
    split, label = table["split"].to_numpy(str), table["class"].to_numpy(str)
    first, second = pairs["first"].to_numpy(np.int64), pairs["second"].to_numpy(np.int64)
    across = split[first] != split[second]
    labels_differ = label[first] != label[second]
    exact = pairs["exact"].to_numpy(bool)

    def items(rows: np.ndarray) -> list[Item]:
        chosen = np.flatnonzero(rows)
        return [_pair(table.iloc[first[i]], table.iloc[second[i]], _describe_pair(pairs.iloc[i])) for i in chosen]

    return [
        *make_issues("leak_exact", items(across & exact)),
        *make_issues("leak_near", items(across & ~exact)),
        *make_issues("label_conflict", items(labels_differ)),
        *_tied(table, "patient"),
        *_tied(table, "group"),
        *make_issues("repeated", items(~across & ~labels_differ)),
    ]


def _pair(one: pd.Series, other: pd.Series, detail: str) -> Item:
    first = {"sample_id": one["sample_id"], "path": one["path"]}
    return first | {"other_id": other["sample_id"], "other_path": other["path"], "detail": detail}


def _describe_pair(pair: pd.Series) -> str:
    if pair["exact"]:
        return "same pixels"
    turned = [name for name in ("mirrored", "inverted") if pair[name]]
    return ", ".join([*turned, f"correlation {pair['correlation']:.3f} after alignment"])


def _tied(table: pd.DataFrame, column: str) -> list[Issue]:
    rows = table[table[column].notna()]
    if column == "group":  # a group that is a patient is reported as the patient
        rows = rows[rows["group"].to_numpy(str) != rows["patient"].fillna("").to_numpy(str)]
    splits = rows[[column, "split"]].drop_duplicates()[column].value_counts()
    items = []
    for name in sorted(map(str, splits.index[splits > 1])):
        members = rows[rows[column] == name]
        detail = f"{column} {name}: {len(members)} images in {' and '.join(sorted(set(members['split'])))}"
        one = members.iloc[0]
        other = members[members["split"] != one["split"]].iloc[0]
        items.append(_pair(one, other, detail) | {"members": members["sample_id"].tolist()})
    return make_issues(f"leak_{column}", items)


def confound_issues(probes: list[Probe], linked: list[Association]) -> list[Issue]:
    """Return issues of probes without lungs, and of columns associated with the class."""
    findings = []
    for probe in probes:
        if probe.view in WITHOUT_LUNGS and probe.above_chance:
            low, high = probe.accuracy_ci
            text = (
                f"a linear probe predicts the class from {WITHOUT_LUNGS[probe.view]}: balanced accuracy "
                f"{probe.accuracy:.2f} [{low:.2f}, {high:.2f}], chance {probe.chance:.2f}"
            )
            findings.append(Issue("confound", "warning", text, 1))
    for link in linked:
        if link.cramers_v < _WEAK or link.p_value > 0.001:
            continue
        share = "" if link.labelled == link.n else f" (known for {link.labelled:,} of {link.n:,})"
        strength = "strongly" if link.cramers_v >= _STRONG else "weakly"
        text = f"the {link.column}{share} is {strength} associated with the class: Cramér's V {link.cramers_v:.2f}"
        severity = "warning" if link.cramers_v >= _STRONG else "note"
        findings.append(Issue("association", severity, text, 1))
    return findings
