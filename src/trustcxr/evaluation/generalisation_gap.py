"""Compute the loss of accuracy on other data, against the run's own test images."""

from typing import TYPE_CHECKING, Any

from trustcxr.registry import VIEWS
from trustcxr.statistics import Bootstraps, interval
from trustcxr.storage.prediction_table import CLEAN, IMAGES, efforts_of, right, severities
from trustcxr.storage.schemas import Drop, Share

if TYPE_CHECKING:
    import pandas as pd


def from_internal(internal: "pd.DataFrame", external: "pd.DataFrame", *, resamples: int = 2000) -> list[Drop]:
    """Return the loss of accuracy from the run's own test images to others, clean and under each attack in both tables.

    The samples are different images, so each is resampled alone; the interval is that of the difference. Empty if both
    are the same images.
    """
    if IMAGES in internal and IMAGES in external and set(internal[IMAGES]) == set(external[IMAGES]):
        return []
    ours, theirs = Bootstraps(resamples=resamples, seed=0), Bootstraps(resamples=resamples, seed=1)
    drops = []
    for (attack, epsilon, _), (here, there) in _in_both(internal, external).items():
        within, outside = ours.over(here["group"]).means(right(here)), theirs.over(there["group"]).means(right(there))
        change = within - outside
        drop = Drop(
            attack=attack,
            epsilon=epsilon,
            internal=float(within[0]),
            external=float(outside[0]),
            drop=Share(value=change[0], ci=interval(change)),
            n_internal=len(here),
            n_external=len(there),
            **efforts_of(here),
        )
        drops.append(drop)
    return drops


def _in_both(first: "pd.DataFrame", second: "pd.DataFrame") -> dict[tuple[str, float, int], Any]:
    """Return the rows of both tables under the same attack, epsilon and steps; clean first."""
    parts = []
    for table in (first, second):
        rows = table[(severities(table) == 0) & ~table["attack"].isin(VIEWS)]
        parts.append({(str(a), float(e), int(s)): r for (a, e, s), r in rows.groupby(["attack", "epsilon", "steps"])})
    shared = sorted(set(parts[0]) & set(parts[1]), key=lambda key: (key[0] != CLEAN, key))
    return {key: (parts[0][key], parts[1][key]) for key in shared}
