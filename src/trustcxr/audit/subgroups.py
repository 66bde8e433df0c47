"""Compare accuracy across subgroups by any column of the data: hospital, view, sex, age, scanner."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from trustcxr import statistics
from trustcxr.console import plural
from trustcxr.evaluation import metrics
from trustcxr.evaluation.calibration import debiased_error
from trustcxr.statistics import Bootstrap, Bootstraps, holm, inside_against_outside, interval, is_rare
from trustcxr.storage.prediction_table import right
from trustcxr.storage.schemas import Division

SMALLEST = 20  # images of a group; smaller ones are merged
MANY = 12  # values of a column; rarer ones are merged
LEVEL = 0.05
OTHERS, UNKNOWN = "others", "unknown"
PREFIX = "by_"  # of a column of the data in predictions.parquet
_SKIPPED = ("sample_id", "path", "class", "split", "patient", "group", "label")
_AGES = (0, 20, 40, 60, 80, 200)
_SEX = {"sex", "gender"}
_NAMES = 0.9  # distinct values as a share of a column, beyond which they are names of images
_OF_MASKS = re.compile(r"mask|(lung|infection)_fraction")  # columns that tell what a mask shows, and so the class
_NUMBERS = 0.9  # share of numbers in a column that is cut into bands
_BETWEEN = ": a gap would be one between classes"


def columns_of(table: pd.DataFrame, findings: Iterable[str] = ()) -> pd.DataFrame:
    """Return the columns of a data set's table that divide its images, as text, named with PREFIX.

    Numbers with more than MANY values become bands: ages of 20 years, others quarters of the images. Columns of
    `findings` (in any case), with one value, with nearly unique values, or of `left_out` do not divide.
    """
    without, columns = left_out(table, findings), dividing_columns(table, findings)
    return pd.DataFrame({PREFIX + k: v for k, v in columns.items() if k not in without}, index=table.index)


def left_out(table: pd.DataFrame, findings: Iterable[str] = ()) -> dict[str, str]:
    """Return the columns that are no subgroups, and why: of masks, too many values, or each value within one class.

    Small groups may lie within one class by chance, unless there are as many as classes: they are not left out.
    """
    reasons = {}
    for name, values in dividing_columns(table, findings).items():
        present = values != UNKNOWN
        if _OF_MASKS.search(name):
            reasons[name] = f"not judged, since it is of the masks and so tells the class{_BETWEEN}"
        elif (count := values[present].nunique()) > len(table) / 2:
            reasons[name] = f"not judged, since it has {count} values on {len(table)} images"
        elif "class" in table:
            classes, sizes = table["class"][present], values[present].value_counts()
            one_each = classes.groupby(values[present]).nunique().max() == 1
            if classes.nunique() > 1 and one_each and (sizes.max() >= SMALLEST or len(sizes) == classes.nunique()):
                reasons[name] = f"not judged, since each of its values belongs to one class{_BETWEEN}"
    return reasons


def dividing_columns(table: pd.DataFrame, findings: Iterable[str], *, single: bool = False) -> dict[str, pd.Series]:
    """Return the values of every column that divides the images, as text and in bands, and sex crossed with age.

    `single`: also columns with one value, and without the crossed one.
    """
    columns, skipped = {}, {name.lower() for name in findings}
    for name in table.columns:
        if name in _SKIPPED or str(name).endswith("_mask") or str(name).lower() in skipped:
            continue
        text = table[name].fillna("").astype(str).str.strip()
        if "class" in table and (text == table["class"]).all():
            continue
        values = _banded(str(name), text)
        present = values[values != UNKNOWN]
        if (0 if single else 1) < present.nunique() <= max(_NAMES * len(present), single):
            columns[str(name)] = values
    sex = next((name for name in columns if words_of(name) & _SEX), None)
    age = next((name for name in columns if "age" in words_of(name)), None)
    if sex and age and not single:
        both = (columns[sex] != UNKNOWN) & (columns[age] != UNKNOWN)
        columns[f"{sex} and {age}"] = (columns[sex] + ", " + columns[age]).where(both, UNKNOWN)
    return columns


def words_of(name: str) -> set[str]:
    """Return the words of a column's name: {"patient", "age"} for "Patient_Age"."""
    return set(re.findall(r"[a-z]+", name.lower()))


def describe(
    clean: pd.DataFrame, classes: tuple[str, ...], *, without: Mapping[str, str] | None = None, resamples: int = 2000
) -> list[Division]:
    """Return the part `subgroups` of audit.json, from clean predictions with columns of `columns_of`.

    A group's gap is its accuracy less that of all other images. Its p-value permutes whole patients, and is corrected
    over all columns (Holm 1979); groups of the same images, and both of a column with two values, count once. Columns
    that divide the images in the same way are one division. `without`: the result of `left_out`.
    """
    equal: dict[bytes, list[str]] = {}
    for column in (str(name) for name in clean if str(name).startswith(PREFIX)):
        equal.setdefault(clean[column].fillna(UNKNOWN).factorize()[0].tobytes(), []).append(column)
    divisions = [_division(clean, columns, classes, resamples) for columns in equal.values()]
    groups = [group for division in divisions for group in division["groups"]]
    hits, patients = right(clean).astype(float), clean["group"]
    masks = {group["comparison"]: np.frombuffer(group["who"], dtype=bool) for group in reversed(groups)}
    p_values = [inside_against_outside(hits, inside, patients) for inside in masks.values()]
    pairs = dict(zip(masks, zip(p_values, holm(p_values), strict=True), strict=True))
    for group in groups:
        low, high = group["gap"]["ci"]
        group["p_value"], p_value = pairs[group.pop("comparison")]
        group |= {"p_corrected": float(p_value), "settled": bool(p_value < LEVEL and not low <= 0 <= high)}
    first: dict[bytes, str] = {}
    for division in divisions:
        division["text"] = _text(division, len(p_values), first)
        for group in division["groups"]:
            first.setdefault(group.pop("who"), f"{group['name']} by {division['column']}")
    divisions += [{"column": name, "text": f"by {name}: {why}"} for name, why in (without or {}).items()]
    return [Division.model_validate(division) for division in divisions]


def _division(clean: pd.DataFrame, columns: Sequence[str], classes: tuple[str, ...], resamples: int) -> dict[str, Any]:
    """Divide the images by equal columns; without groups if all are too small."""
    images = clean["image"] if "image" in clean else clean["sample_id"]
    values = clean[columns[0]].fillna(UNKNOWN).astype(str)
    sizes = values[~images.duplicated()].value_counts()
    small = [str(name) for rank, (name, n) in enumerate(sizes.items()) if n < SMALLEST or rank >= MANY]
    merged = {name: int(sizes[name]) for name in small if len(small) > 1}
    values = values.where(~values.isin(list(merged)), OTHERS)
    samples, hits = Bootstraps(resamples=resamples), right(clean).astype(float)
    # Largest first, merged and unknown last.
    names = sorted(values.unique(), key=lambda name: (name in (OTHERS, UNKNOWN), -int((values == name).sum()), name))
    alone = any(images[values == name].nunique() >= SMALLEST for name in names if name not in (OTHERS, UNKNOWN))
    rows = []
    for name in names if alone and len(names) > 1 else ():
        inside = (values == name).to_numpy()
        both = frozenset((inside.tobytes(), (~inside).tobytes()))  # a group against its rest is one comparison
        about = {"images": int(images[inside].nunique()), "who": inside.tobytes(), "comparison": both}
        rows.append(about | _group(clean, str(name), inside, hits, classes, samples))
    eligible = _eligible(rows)
    lowest = min(eligible, key=lambda row: row["accuracy"]["value"]) if len(eligible) > 1 else None
    worst = lowest["name"] if lowest is not None and lowest["gap"]["value"] < 0 else ""
    column, *others = (name.removeprefix(PREFIX) for name in columns)
    return {"column": column, "same_groups": others, "groups": rows, "worst": worst, "merged": merged}


def _eligible(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups that are large enough to be called the worst."""
    return [row for row in rows if row["images"] >= SMALLEST and row["name"] != OTHERS]


def _group(
    clean: pd.DataFrame, name: str, inside: Any, hits: Any, classes: tuple[str, ...], samples: Bootstraps
) -> dict[str, Any]:
    part = clean[inside]
    row = {"name": name, "groups": int(part["group"].nunique())} | metrics.accuracy(part, samples).plain()
    bootstrap = Bootstrap.over(part["group"], resamples=samples.resamples)
    macro = metrics.macro_auroc(part, bootstrap, len(classes))
    error, ends = debiased_error(metrics.calibration_totals(part, bootstrap))
    row |= {"findings": len(metrics.has_both_labels(part))} if metrics.has_findings(part) else {}
    row["auroc_macro"] = {"value": float(macro[0]), "ci": interval(macro)}
    row["ece"] = {"value": error, "ci": ends if bootstrap.count_groups() > 1 else None}
    whole = samples.over(clean["group"])
    sums = whole.totals(np.stack([inside, inside * hits, ~inside, ~inside * hits], axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = sums[:, [1, 3]] / sums[:, [0, 2]]
    (one, other), gaps, sides = shares[0].tolist(), shares[:, 0] - shares[:, 1], (inside, ~inside)
    ends = interval(gaps)
    if is_rare(one, whole.count_groups(inside)) or is_rare(other, whole.count_groups(~inside)):
        first, second = (statistics.share_interval(whole, shares[:, k], of=rows) for k, rows in enumerate(sides))
        ends = [*statistics.difference_interval(one, (first[0], first[1]), other, (second[0], second[1]))]
    return row | {"gap": {"value": float(gaps[0]), "ci": ends}}


def _banded(name: str, values: pd.Series) -> pd.Series:
    """Return numbers in bands and other text unchanged; empty text is UNKNOWN."""
    present, ages = values[values != ""], "age" in words_of(name)
    numbers, count = as_numbers(present), present.nunique()
    are_names = not ages and count > len(present) / 2 and (numbers.dropna() % 1 == 0).all()
    if are_names or count <= MANY or numbers.notna().mean() < _NUMBERS:
        return values.where(values != "", UNKNOWN)
    edges = _AGES if ages else sorted(set(np.quantile(numbers.dropna(), [0, 0.25, 0.5, 0.75, 1])))
    if len(edges) < 2:  # one number in many spellings
        return pd.Series(UNKNOWN, index=values.index)
    digits = next((k for k in (3, 4, 6, 9) if len({f"{edge:.{k}g}" for edge in edges}) == len(edges)), 17)
    ends = [*(high - ages for high in edges[1:-1]), edges[-1]]
    labels = [f"{low:.{digits}g} to {end:.{digits}g}" for low, end in zip(edges, ends, strict=False)]
    bands = pd.cut(numbers, [*edges[:-1], np.nextafter(edges[-1], np.inf)], right=False, labels=labels)
    return bands.astype(object).reindex(values.index).fillna(UNKNOWN).astype(str)


def as_numbers(values: pd.Series) -> pd.Series:
    """Return numbers, or ages such as 045Y, as floats; NaN for other text."""
    text = values.fillna("").astype(str).str.strip()
    return pd.to_numeric(text.str.extract(r"^0*(\d+(?:\.\d+)?)Y?$")[0], errors="coerce")


def _text(division: Mapping[str, Any], tested: int, first: Mapping[bytes, str]) -> str:
    """Describe a division in a sentence. `first`: the names of groups of the same images in earlier divisions."""
    rows = {row["name"]: row for row in division["groups"]}
    others = f", and exactly alike by {' and '.join(division['same_groups'])}" if division["same_groups"] else ""
    names = [f"{name} ({n})" for name, n in division["merged"].items()]
    more, together = f" and {len(names) - 6} more" if len(names) > 6 else "", f", taken together as {OTHERS}"
    merged = f"; too small to stand alone{together if rows else ''}: {', '.join(names[:6])}{more}" if names else ""
    text = f"by {division['column']}{others}: "
    eligible = _eligible(division["groups"])
    if not division["worst"] and len(eligible) != 1:
        none = "no group of {} images is below all others" if eligible else "no two groups have {} images"
        return text + none.format(SMALLEST) + merged
    row = rows[division["worst"]] if division["worst"] else eligible[0]
    low, high = (f"{end:+.1%}" for end in row["gap"]["ci"])
    which = "worst is" if division["worst"] else f"the only group of {SMALLEST} images is"
    decisions = "" if row["n"] == row["images"] else f"{plural(row['n'], 'decision')} on "
    text += f"{which} {row['name']} with {row['accuracy']['value']:.1%} of {decisions}"
    text += f"{plural(row['images'], 'image')}, "
    text += f"{row['gap']['value']:+.1%} [{low}, {high}] against all others, {'' if row['settled'] else 'not '}settled "
    text += f"(p {row['p_corrected']:.2g}, corrected for {plural(tested, 'comparison')})"
    return text + (f"; these are the images of {first[row['who']]}" if row["who"] in first else "") + merged
