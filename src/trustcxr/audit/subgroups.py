"""Who is a model bad for? Images divided by any column of the data's table: hospital, view, sex, age, scanner."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from trustcxr.evaluation import metrics, multilabel_metrics
from trustcxr.evaluation.calibration import debiased_error
from trustcxr.statistics import Bootstrap, Bootstraps, holm, inside_against_outside, interval
from trustcxr.storage.prediction_table import right
from trustcxr.storage.schemas import Division

if TYPE_CHECKING:
    import pandas as pd

SMALLEST = 20  # images that a group needs to stand alone
MANY = 12  # values of a column beyond which the rarer ones go together
LEVEL = 0.05
OTHERS, UNKNOWN = "others", "unknown"
PREFIX = "by_"  # of a column of the data in predictions.parquet
_NOT_ASKED = ("sample_id", "path", "class", "split", "patient", "group", "label")
_AGES = (0, 20, 40, 60, 80, 200)
_NAMES = 0.9  # distinct values as a share of a column's known ones, beyond which they are names of images
_NUMBERS = 0.9  # share of a column's known values that must be numbers for it to be cut into bands


def columns_of(table: "pd.DataFrame", answers: Iterable[str] = ()) -> "pd.DataFrame":
    """The columns that divide the images of a data set's table, as text, each by its name after PREFIX.

    `answers`: what the model is asked for, in either case: a column of that name is the truth, and no group of images.

    Numbers of more values than MANY become bands: ages of 20 years, all else quarters of the images, but for whole
    numbers of which most are of one image alone, as seeds and accession numbers are. A column that has one value, or
    one of its own for nearly every image, as names have, divides nothing; nor do those of `left_out`.
    """
    import pandas as pd

    again = left_out(table, answers)
    found = {PREFIX + name: values for name, values in _dividing(table, answers).items() if name not in again}
    return pd.DataFrame(found, index=table.index)


def left_out(table: "pd.DataFrame", answers: Iterable[str] = ()) -> dict[str, str]:
    """The columns that are no division of the images, and why: more values than half the images, or the class again.

    Of the class under another name each value belongs to one class. Where all of them are too small to stand alone, and
    more than there are classes, that is as good as chance, and what is said of the column is that they are small.
    """
    said = {}
    for name, values in _dividing(table, answers).items():
        known = values != UNKNOWN
        if (count := values[known].nunique()) > len(table) / 2:
            said[name] = f"not judged, since it has {count} values on {len(table)} images"
        if name in said or "class" not in table:
            continue
        sizes, belongs = values[known].value_counts(), table["class"][known].groupby(values[known]).nunique()
        classes = table["class"][known].nunique()
        if classes > 1 and belongs.max() == 1 and (sizes.max() >= SMALLEST or len(sizes) == classes):
            said[name] = "not judged, since each of its values belongs to one class: a gap would be one between classes"
    return said


def _dividing(table: "pd.DataFrame", answers: Iterable[str]) -> "dict[str, pd.Series]":
    """The values of every column that divides the images, as text and in bands."""
    found, asked = {}, {name.lower() for name in answers}
    for name in table.columns:
        if name in _NOT_ASKED or str(name).endswith("_mask") or str(name).lower() in asked:
            continue
        said = table[name].fillna("").astype(str).str.strip()
        if "class" in table and (said == table["class"]).all():
            continue
        values = _banded(str(name), said)
        known = values[values != UNKNOWN]
        if 1 < known.nunique() <= _NAMES * len(known):
            found[str(name)] = values
    return found


def describe(
    clean: "pd.DataFrame",
    classes: tuple[str, ...],
    *,
    without: Mapping[str, str] | None = None,
    resamples: int = 2000,
) -> list[Division]:
    """The part "subgroups" of audit.json, from clean predictions with columns of `columns_of`.

    A group's gap is its accuracy less that of all other images of the column, with a test that permutes who is in the
    group over whole patients, corrected (Holm 1979) for the groups of all columns together; a group of the same images
    counts once. Columns that divide the images exactly alike are one division. `without`: those of `left_out`.
    """
    alike: dict[bytes, list[str]] = {}
    for column in (str(name) for name in clean if str(name).startswith(PREFIX)):
        alike.setdefault(clean[column].fillna(UNKNOWN).factorize()[0].tobytes(), []).append(column)
    found = [_division(clean, columns, classes, resamples) for columns in alike.values()]
    groups = [group for division in found for group in division["groups"]]
    p_values = {group["who"]: group["p_value"] for group in groups}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    for group in groups:
        low, high = group["gap"]["ci"]
        p_value = float(corrected[group["who"]])
        group |= {"p_corrected": p_value, "settled": bool(p_value < LEVEL and not low <= 0 <= high)}
    first: dict[bytes, str] = {}
    for division in found:
        division["text"] = _text(division, len(p_values), first)
        for group in division["groups"]:
            first.setdefault(group.pop("who"), f"{group['name']} by {division['column']}")
    found += [{"column": name, "text": f"by {name}: {why}"} for name, why in (without or {}).items()]
    return [Division.model_validate(division) for division in found]


def _division(
    clean: "pd.DataFrame", columns: Sequence[str], classes: tuple[str, ...], resamples: int
) -> dict[str, Any]:
    """The images divided by columns that do so alike; without groups where none of them can stand alone."""
    images = clean["image"] if "image" in clean else clean["sample_id"]
    values, merged = _merged(clean[columns[0]].fillna(UNKNOWN).astype(str), images)
    samples, hits = Bootstraps(resamples=resamples), right(clean).astype(float)
    # Largest first, the leftovers last.
    names = sorted(values.unique(), key=lambda name: (name in (OTHERS, UNKNOWN), -int((values == name).sum()), name))
    alone = any(images[values == name].nunique() >= SMALLEST for name in names if name not in (OTHERS, UNKNOWN))
    rows = []
    for name in names if alone and len(names) > 1 else ():
        inside = (values == name).to_numpy()
        about = {"images": int(images[inside].nunique()), "who": inside.tobytes()}
        rows.append(about | _group(clean, str(name), inside, hits, classes, samples))
    kept = _eligible(rows)
    lowest = min(kept, key=lambda row: row["accuracy"]["value"]) if len(kept) > 1 else None
    worst = lowest["name"] if lowest is not None and lowest["gap"]["value"] < 0 else ""
    column, *alike = (name.removeprefix(PREFIX) for name in columns)
    return {"column": column, "alike": alike, "groups": rows, "worst": worst, "merged": merged}


def _eligible(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups that are large enough to be called the worst."""
    return [row for row in rows if row["images"] >= SMALLEST and row["name"] != OTHERS]


def _group(
    clean: "pd.DataFrame", name: str, inside: Any, hits: Any, classes: tuple[str, ...], samples: Bootstraps
) -> dict[str, Any]:
    part = clean[inside]
    found = {"name": name, "groups": int(part["group"].nunique())} | metrics.accuracy(part, samples).plain()
    bootstrap = Bootstrap.over(part["group"], resamples=samples.resamples)
    macro = metrics.macro_auroc(part, bootstrap, len(classes))
    error, ends = debiased_error(metrics.calibration_totals(part, bootstrap))
    found |= (
        {"findings": len(multilabel_metrics.has_both_labels(part))} if multilabel_metrics.has_findings(part) else {}
    )
    found["auroc_macro"] = {"value": float(macro[0]), "ci": interval(macro)}
    found["ece"] = {"value": error, "ci": ends}
    whole = samples.over(clean["group"])
    sums = whole.totals(np.stack([inside, inside * hits, ~inside, ~inside * hits], axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = sums[:, 1] / sums[:, 0] - sums[:, 3] / sums[:, 2]
    p_value = inside_against_outside(hits, inside, clean["group"])
    return found | {"gap": {"value": float(gaps[0]), "ci": interval(gaps)}, "p_value": p_value}


def _merged(values: "pd.Series", images: "pd.Series") -> "tuple[pd.Series, dict[str, int]]":
    """The values with those that too few images have made one; and which these were, with their sizes."""
    sizes = values[~images.duplicated()].value_counts()
    small = [str(name) for place, (name, n) in enumerate(sizes.items()) if n < SMALLEST or place >= MANY]
    if len(small) < 2:
        return values, {}
    return values.where(~values.isin(small), OTHERS), {name: int(sizes[name]) for name in small}


def _banded(name: str, values: "pd.Series") -> "pd.Series":
    """Text as it is and numbers in bands; what is empty is UNKNOWN."""
    import pandas as pd

    known = values[values != ""]
    numbers = pd.to_numeric(known.str.extract(r"^0*(\d+(?:\.\d+)?)Y?$")[0], errors="coerce")
    if known.nunique() <= MANY or numbers.notna().mean() < _NUMBERS:
        return values.where(values != "", UNKNOWN)
    ages = "age" in name.lower().replace("_", " ").split()
    if ages:
        edges: list[float] = list(_AGES)
    elif known.nunique() > len(known) / 2 and (numbers.dropna() % 1 == 0).all():
        return values.where(values != "", UNKNOWN)
    else:
        edges = sorted(set(np.quantile(numbers.dropna(), [0, 0.25, 0.5, 0.75, 1])))
    bands = pd.Series(UNKNOWN, index=values.index)
    digits = next((k for k in (3, 4, 6, 9) if len({f"{edge:.{k}g}" for edge in edges}) == len(edges)), 17)
    for low, high in pairwise(edges):
        last = high == edges[-1]
        inside = numbers[(numbers >= low) & ((numbers <= high) if last else (numbers < high))].index
        bands.loc[inside] = f"{low:.{digits}g} to {high - (ages and not last):.{digits}g}"
    return bands


def _text(division: dict[str, Any], tested: int, first: Mapping[bytes, str]) -> str:
    """The division in a sentence. `first`: how groups of the same images are called in a division before this one."""
    rows = {row["name"]: row for row in division["groups"]}
    alike = f", and exactly alike by {' and '.join(division['alike'])}" if division["alike"] else ""
    said = f"by {division['column']}{alike}: "
    if not division["worst"]:
        few = len(_eligible(division["groups"])) < 2
        why = f"no two groups have {SMALLEST} images" if few else f"no group of {SMALLEST} images is below all others"
        return said + why + _merged_said(division["merged"], bool(rows))
    worst = rows[division["worst"]]
    low, high = (f"{end:+.1%}" for end in worst["gap"]["ci"])
    said += f"worst is {worst['name']} with {worst['accuracy']['value']:.1%} of {_count(worst)}, "
    said += f"{worst['gap']['value']:+.1%} [{low}, {high}] against all others, "
    said += "settled" if worst["settled"] else "not settled"
    said += f" (p {worst['p_corrected']:.2g}, corrected for {tested} groups)"
    if worst["who"] in first:
        said += f"; these are the images of {first[worst['who']]}"
    return said + _merged_said(division["merged"], bool(rows))


def _count(row: dict[str, Any]) -> str:
    """How many images a group has; of a model of findings, which answers each image several times, also decisions."""
    return f"{row['n']} images" if row["n"] == row["images"] else f"{row['n']} decisions on {row['images']} images"


def _merged_said(merged: dict[str, int], judged: bool) -> str:
    """Which groups were too small, and, where any is judged, what became of them."""
    if not merged:
        return ""
    names: Iterable[str] = (f"{name} ({n})" for name, n in list(merged.items())[:6])
    more = f" and {len(merged) - 6} more" if len(merged) > 6 else ""
    together = f", taken together as {OTHERS}" if judged else ""
    return f"; too small to stand alone{together}: {', '.join(names)}{more}"
