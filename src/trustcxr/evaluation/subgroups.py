"""Who is a model bad for? Films divided by any column of the data's table: hospital, view, sex, age, scanner."""

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from trustcxr.evaluation import each_finding, metrics
from trustcxr.evaluation.calibration import debiased_error
from trustcxr.results.documents import Division
from trustcxr.results.tables import right
from trustcxr.statistics import Bootstrap, Bootstraps, holm, inside_against_outside, interval

if TYPE_CHECKING:
    import pandas as pd

SMALLEST = 20  # films that a group needs to stand alone
MANY = 12  # values of a column beyond which the rarer ones go together
LEVEL = 0.05
OTHERS, UNKNOWN = "others", "unknown"
PREFIX = "by_"  # of a column of the data in predictions.parquet
_NOT_ASKED = ("sample_id", "path", "class", "split", "patient", "group", "label")
_AGES = (0, 20, 40, 60, 80, 200)
_NUMBERS = 0.9  # share of a column's known values that must be numbers for it to be cut into bands


def columns_of(table: "pd.DataFrame", answers: Iterable[str] = ()) -> "pd.DataFrame":
    """The columns that divide the films of a data set's table, as text, each by its name after PREFIX.

    `answers`: what the model is asked for, in either case: a column of that name is the truth, and no group of films.

    Numbers of more values than MANY become bands: ages of 20 years, all else quarters of the films. A column that has
    one value, or one of its own for nearly every film, divides nothing and is left out; so do whole numbers that are
    names, as seeds and accession numbers are, and the class by another name.
    """
    import pandas as pd

    found: dict[str, Any] = {}
    asked = {name.lower() for name in answers}
    for name in table.columns:
        if name in _NOT_ASKED or str(name).endswith("_mask") or str(name).lower() in asked:
            continue
        said = table[name].fillna("").astype(str).str.strip()
        if "class" in table and (said == table["class"]).all():
            continue
        values = _banded(str(name), said)
        sizes = values[values != UNKNOWN].value_counts()
        if len(sizes) > 1 and (sizes >= min(SMALLEST, len(table) // 2)).any() and len(sizes) <= len(table) / 2:
            found[PREFIX + str(name)] = values.to_numpy()
    return pd.DataFrame(found, index=table.index)


def describe(clean: "pd.DataFrame", classes: tuple[str, ...], *, resamples: int = 2000) -> list[Division]:
    """The part "subgroups" of audit.json, from clean predictions with columns of `columns_of`.

    A group's gap is its accuracy less that of all other films of the column, with a test that permutes who is in the
    group over whole patients, corrected (Holm 1979) for the groups of all columns together.
    """
    found = [_division(clean, column, classes, resamples) for column in map(str, clean) if column.startswith(PREFIX)]
    groups = [group for division in found for group in division["groups"]]
    for group, corrected in zip(groups, holm([group["p_value"] for group in groups]), strict=True):
        low, high = group["gap_ci"]
        group |= {"p_corrected": float(corrected), "settled": bool(corrected < LEVEL and not low <= 0 <= high)}
    for division in found:
        division["text"] = _text(division, len(groups))
    return [Division.model_validate(division) for division in found]


def _division(clean: "pd.DataFrame", column: str, classes: tuple[str, ...], resamples: int) -> dict[str, Any]:
    films = clean["film"] if "film" in clean else clean["sample_id"]
    values, merged = _merged(clean[column].fillna(UNKNOWN).astype(str), films)
    samples, hits = Bootstraps(resamples=resamples), right(clean).astype(float)
    # Largest first, the leftovers last.
    names = sorted(values.unique(), key=lambda name: (name in (OTHERS, UNKNOWN), -int((values == name).sum()), name))
    rows = []
    for name in names if len(names) > 1 else ():
        inside = (values == name).to_numpy()
        about = {"films": int(films[inside].nunique())}
        rows.append(about | _group(clean, str(name), inside, hits, classes, samples))
    kept = _eligible(rows)
    lowest = min(kept, key=lambda row: row["accuracy"]) if len(kept) > 1 else None
    worst = lowest["name"] if lowest is not None and lowest["gap"] < 0 else ""
    return {"column": column.removeprefix(PREFIX), "groups": rows, "worst": worst, "merged": merged, "text": ""}


def _eligible(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups that are large enough to be called the worst."""
    return [row for row in rows if row["films"] >= SMALLEST and row["name"] != OTHERS]


def _group(
    clean: "pd.DataFrame", name: str, inside: Any, hits: Any, classes: tuple[str, ...], samples: Bootstraps
) -> dict[str, Any]:
    part = clean[inside]
    found = {"name": name, "groups": int(part["group"].nunique())} | metrics.accuracy(part, samples).plain()
    bootstrap = Bootstrap.over(part["group"], resamples=samples.resamples)
    macro = metrics.macro_auroc(part, bootstrap, len(classes))
    error, ends = debiased_error(metrics.calibration_totals(part, bootstrap))
    found |= {"findings": len(each_finding.told_apart(part))} if each_finding.are_in(part) else {}
    found |= {"auroc_macro": float(macro[0]), "auroc_macro_ci": interval(macro), "ece": error, "ece_ci": ends}
    whole = samples.over(clean["group"])
    sums = whole.totals(np.stack([inside, inside * hits, ~inside, ~inside * hits], axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = sums[:, 1] / sums[:, 0] - sums[:, 3] / sums[:, 2]
    p_value = inside_against_outside(hits, inside, clean["group"])
    return found | {"gap": float(gaps[0]), "gap_ci": interval(gaps), "p_value": p_value}


def _merged(values: "pd.Series", films: "pd.Series") -> "tuple[pd.Series, dict[str, int]]":
    """The values with those that too few films have made one; and which these were, with their sizes."""
    sizes = values[~films.duplicated()].value_counts()
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


def _text(division: dict[str, Any], tested: int) -> str:
    """The division in a sentence."""
    rows = {row["name"]: row for row in division["groups"]}
    said = f"by {division['column']}: "
    if not division["worst"]:
        few = len(_eligible(division["groups"])) < 2
        why = f"no two groups have {SMALLEST} films" if few else f"no group of {SMALLEST} films is below all others"
        return said + why + _merged_said(division["merged"])
    worst = rows[division["worst"]]
    low, high = (f"{end:+.1%}" for end in worst["gap_ci"])
    said += f"worst is {worst['name']} with {worst['accuracy']:.1%} of {_count(worst)}, {worst['gap']:+.1%} "
    said += f"[{low}, {high}] against all others, "
    said += "settled" if worst["settled"] else "not settled"
    said += f" (p {worst['p_corrected']:.2g}, corrected for {tested} groups)"
    return said + _merged_said(division["merged"])


def _count(row: dict[str, Any]) -> str:
    """How many films a group has; of a model of findings, which answers each film several times, also decisions."""
    return f"{row['n']} films" if row["n"] == row["films"] else f"{row['n']} decisions on {row['films']} films"


def _merged_said(merged: dict[str, int]) -> str:
    if not merged:
        return ""
    names: Iterable[str] = (f"{name} ({n})" for name, n in list(merged.items())[:6])
    more = f" and {len(merged) - 6} more" if len(merged) > 6 else ""
    return f"; too small to stand alone, taken together as {OTHERS}: {', '.join(names)}{more}"
