"""What a second review found, before and after: the rows of `statistics_before_after` for it.

"Before" is what stood at commit c194518, written again here in a few lines. Of films validation masks alone are read,
and no network is asked.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from trustcxr.data import load_dataset
from trustcxr.data.batches import to_pixels
from trustcxr.explain import margins, references, summary
from trustcxr.statistics import Bootstrap, interval, mean_share_interval

Row = tuple[str, str, str]
RESULTS = Path(__file__).parents[2] / "results"
BEFORE_ELSEWHERE = "21.9 [14.4, 28.7]"  # of the page at that commit, whose networks are gone


def rows(data: Path, trials: int) -> Iterator[Row]:
    """All of them."""
    yield from means_of_shares(4 * trials)
    yield from random_networks(10 * trials)
    yield from sharpness(data)
    yield from elsewhere()


def means_of_shares(trials: int) -> Iterator[Row]:
    """How often the interval of balanced accuracy holds the truth: few films a class, nearly all answered rightly."""
    for count, truth in ((20, 0.97), (40, 0.95), (60, 0.80)):
        random, held = np.random.default_rng(count), np.zeros(2)
        labels = np.repeat(np.arange(3), count)
        of = labels[:, None] == np.arange(3)
        for trial in range(trials):
            right = random.random(len(labels)) < truth
            bootstrap = Bootstrap.over(np.arange(len(labels)), resamples=500, seed=trial)
            totals = bootstrap.totals(np.stack([of & right[:, None], of], axis=1).astype(float))
            with np.errstate(invalid="ignore"):
                shares = totals[:, 0] / totals[:, 1]
            ends = interval(shares.mean(1)), mean_share_interval(bootstrap, shares, of)
            held += [low - 1e-9 <= truth <= high + 1e-9 for low, high in ends]
        what = f"balanced accuracy of {count} films a class, each right with {truth:.0%}: 95 % interval holds that"
        yield what, f"{held[0] / trials:.1%}", f"{held[1] / trials:.1%}"


def random_networks(trials: int) -> Iterator[Row]:
    """How often one more network with random weights is "above random weights", where images are many."""
    random, above = np.random.default_rng(0), np.zeros(2)
    of_images = 0.01  # half an interval over images; networks lie five times as far apart
    for _ in range(trials):
        own, *draws = random.normal(0.3, 0.05, 1 + len(references.DRAWS))
        before = own - np.mean(draws[:3])  # three networks, once and for all
        after = own - np.mean(draws)
        ends = [after - of_images, after + of_images]
        low, _ = summary.over_draws(after, ends, float(np.std(draws, ddof=1)))
        above += [before - of_images > 0, low > 0]
    yield (
        "one more network with random weights, called above random weights (2.5 % at most are meant)",
        f"{above[0] / trials:.1%}",
        f"{above[1] / trials:.1%}",
    )


def sharpness(data: Path) -> Iterator[Row]:
    """What a power of the film's own brightness has over brightness, which is the same place said more sharply."""
    films = load_dataset(data, "Val", 64)
    ill = np.flatnonzero(films.masks("infection").any((1, 2)) & films.masks("lung").any((1, 2)))
    images = to_pixels(torch.from_numpy(films.batch(ill)))
    lesion, lung = (torch.from_numpy(np.array(films.masks(kind)[ill])) != 0 for kind in ("infection", "lung"))
    masks, groups = margins.Lesions(lesion, lung), films.groups[ill]
    bright = margins.film_controls(images, lung)["brightness"]
    for power in (2, 6):
        maps = bright**power
        own, beside = margins.measured(maps, masks), margins.beside({"brightness": bright}, masks, maps)
        table = margins.margins(own, beside, groups).set_index(["measure", "control"])
        plain, sharp = (_led(table.loc[("infection_energy", f"brightness{how}")]) for how in ("", ", as sharp"))
        yield f"brightness to the power of {power}, Val, n {len(ill)}: infection energy over brightness", plain, sharp


def elsewhere() -> Iterator[Row]:
    """The fall on other hospitals: at home a network counted for classes that the hospital never sent."""
    with (RESULTS / "elsewhere-external-cxr.csv").open() as file:
        (row,) = [r for r in csv.DictReader(file) if r["run"].startswith("robust, chosen") and r["films"] == "all"]
    after = [100 * float(row[key]) for key in ("fall", "fall_low", "fall_high")]
    what = "fall of robust networks on hospitals that chose nothing, points (classes not sent counted at home, before)"
    yield what, BEFORE_ELSEWHERE, f"{after[0]:.1f} [{after[1]:.1f}, {after[2]:.1f}]"


def _led(row: object) -> str:
    values = [float(getattr(row, key)) for key in ("difference", "low", "high")]
    return f"{values[0]:+.3f} [{values[1]:+.3f}, {values[2]:+.3f}]"
