"""Compare rows of the leaderboard image by image."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from trustcxr.statistics import Bootstraps, interval
from trustcxr.storage.schemas import ImageResults

Pair = dict[str, list[float] | None]


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
            pairs[f"{i} {j}"] = {name: _compare(*texts, groups, bootstraps) for name, texts in parts.items()}
    return pairs


def _compare(first: str, second: str, groups: np.ndarray, bootstraps: Bootstraps) -> list[float] | None:
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
