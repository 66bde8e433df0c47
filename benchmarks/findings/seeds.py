"""What several findings share: runs of one recipe under several seeds, and what was measured of each, kept on disk."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from trustcxr.data.dataset import Dataset
from trustcxr.evaluation import predictions
from trustcxr.evaluation.run import Run
from trustcxr.recipes.testing import AttackRecipe
from trustcxr.results import files
from trustcxr.results.tables import right
from trustcxr.statistics import Bootstrap, interval

Held = Mapping[str, np.ndarray]  # by measure, whether each film is answered rightly, (N,)


@dataclass(frozen=True)
class Tested:
    """One run, and what it answers rightly."""

    name: str  # of the row; runs of one row are of one recipe
    seed: str
    run: Run
    held: Held


def kept(run: Run, data: Dataset, place: Path, conditions: Iterable[AttackRecipe]) -> pd.DataFrame:
    """Predictions of a run, from `place` where they were made before: images are opened once."""
    if not place.is_file():
        table = predictions.predict(run, data, tuple(conditions), views=False)
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write_table(place, table)
    return files.read_table(place)


def held(table: pd.DataFrame, data: Dataset) -> dict[str, np.ndarray]:
    """By condition (`clean`, `pgd`, `worst_case`) whether each film is answered rightly, in the order of the data."""
    found = {}
    for name, rows in table.groupby("attack"):
        answered = pd.Series(right(rows), index=rows["sample_id"])
        found[str(name).replace("-", "_")] = answered.loc[data.sample_ids].to_numpy(dtype=bool)
    return found


def by_row(tested: Sequence[Tested]) -> dict[str, list[Tested]]:
    """The runs of each row, in the order in which rows first appear."""
    found: dict[str, list[Tested]] = {}
    for each in tested:
        found.setdefault(each.name, []).append(each)
    return found


def summary(seeds: Sequence[Held], measures: Sequence[str], labels: np.ndarray, groups: Bootstrap) -> dict[str, object]:
    """The mean over seeds of each measure, its 95 % interval over groups of films, its mean over classes, its spread.

    Spread: the largest less the smallest of the seeds.
    """
    row: dict[str, object] = {}
    for measure in measures:
        values = np.mean([one[measure] for one in seeds], axis=0)
        row[measure] = float(values.mean())
        row[f"{measure}_low"], row[f"{measure}_high"] = interval(groups.means(values))
        row[f"balanced_{measure}"] = balanced(values, labels)
        alone = [float(one[measure].mean()) for one in seeds]
        row[f"{measure}_spread"] = max(alone) - min(alone)
    return row | {"seeds": len(seeds), "n": len(labels)}


def balanced(values: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes of the mean of each."""
    return float(np.mean([values[labels == k].mean() for k in np.unique(labels)]))


def percent(value: float | np.floating) -> str:
    """A share as a figure out of a hundred."""
    return f"{100 * float(value):.1f}"


def between(row: Mapping[str, object] | pd.Series, measure: str) -> str:
    """A measure of a row with its interval, out of a hundred."""
    low, high = (float(row[f"{measure}_{end}"]) for end in ("low", "high"))  # type: ignore[arg-type]
    return f"{percent(row[measure])} [{percent(low)}, {percent(high)}]"  # type: ignore[arg-type]
