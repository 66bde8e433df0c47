"""How many copies of real films are found, how many other films are taken for copies, and how the time grows.

python benchmarks/speed/duplicates.py [--real ../shared/data/covidqu-mini] [--copies 60] [--films 2000 8000 34000]

The films that the time is measured on are blends, four parts of one real film and one of another, each moved and scaled
at random: there are not enough real ones at hand. More pairs of blends are alike than of real films.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from trustcxr.data.checks import duplicates
from trustcxr.data.checks.registration import laid_upon
from trustcxr.data.checks.scan import THUMB, _small, _without_borders

Film = np.ndarray  # (H, W) uint8
Pictures = tuple[np.ndarray, np.ndarray]
CHANGES: Mapping[str, Callable[[Film], Film]] = {
    "mirrored": lambda film: film[:, ::-1],
    "inverted": lambda film: 255 - film,
    "moved by 3 pixels": lambda film: np.pad(film, 3)[: film.shape[0], : film.shape[1]],
    "rolled by 3 pixels": lambda film: np.roll(film, (3, 3), (0, 1)),
    "padded by 10 %": lambda film: np.pad(film, film.shape[0] // 10),
    "cropped by 2 %": lambda film: _cropped(film, 0.02),
    "gamma 0.6": lambda film: _gamma(film, 0.6),
    "gamma 1.7": lambda film: _gamma(film, 1.7),
    "mirrored, cropped, gamma": lambda film: _gamma(_cropped(film[:, ::-1], 0.02), 0.7),
    "inverted, moved, padded": lambda film: np.pad(255 - np.roll(film, 3, 1), 20),
}


def _cropped(film: Film, share: float) -> Film:
    top, left = (round(share * size) for size in film.shape)
    return film[top:-top, left:-left]


def _gamma(film: Film, exponent: float) -> Film:
    return np.round(255 * (film / 255) ** exponent).astype(np.uint8)


def pictures(films: list[Film]) -> Pictures:
    """What the audit's scan keeps of films for the search: thumbs and the same without borders, (N, 64, 64) each."""
    whole = [np.ascontiguousarray(film) for film in films]
    return np.stack([_small(f, THUMB) for f in whole]), np.stack([_small(_without_borders(f), THUMB) for f in whole])


def recalls(films: list[Film], seen: Pictures, chosen: Mapping[str, np.ndarray]) -> dict[str, tuple[float, set[int]]]:
    """Of each change the share of its copies found among all films, and the films wrongly taken for one of them.

    `chosen`: of each of CHANGES the films (rows of `films`) that a copy is made of, all looked for at once; `seen`:
    `pictures(films)`.
    """
    copies = pictures([CHANGES[name](films[i]) for name, rows in chosen.items() for i in rows])
    thumbs, trimmed = (np.concatenate(both) for both in zip(seen, copies, strict=True))
    found = duplicates.find_duplicates([str(i) for i in range(len(thumbs))], thumbs, trimmed)
    origin = np.concatenate([np.arange(len(films)), *chosen.values()])
    made_by = np.repeat(["", *chosen], [len(films), *map(len, chosen.values())])
    ends = found[["first", "second"]].to_numpy()
    pairs, same = origin[ends], np.diff(origin[ends])[:, 0] == 0
    of_change = {name: (made_by[ends] == name).any(axis=1) for name in chosen}
    return {
        name: (
            len(set(pairs[mine & same, 0])) / len(chosen[name]),
            {int(i) for i in pairs[mine & ~same].ravel()},
        )
        for name, mine in of_change.items()
    }


def blends(films: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """`count` pictures (count, 64, 64) uint8, each of two of `films`, moved and scaled by a few per cent."""
    random = np.random.default_rng(seed)
    made = np.empty((count, THUMB, THUMB), np.uint8)
    for start in range(0, count, 512):
        some = min(512, count - start)
        halves = []
        for _ in range(2):
            maps = np.tile(np.array([1, 0, 0, 0, 1, 0], np.float32), (some, 1))
            maps += random.normal(0, 0.04, maps.shape).astype(np.float32)
            halves.append(laid_upon(films[random.integers(len(films), size=some)].astype(np.float32), maps)[0])
        made[start : start + some] = 0.8 * halves[0] + 0.2 * halves[1]
    return made


def read(root: Path, *, every: int = 1) -> list[Film]:
    """The films of a data set, as they are; or every so many-th."""
    from trustcxr.data.images.read import read_image
    from trustcxr.data.layouts import read_manifest

    manifest = read_manifest(root)
    return [read_image(manifest.root / path) for path in manifest.table["path"][::every]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, default=Path("../shared/data/covidqu-mini"))
    parser.add_argument("--copies", type=int, default=60)
    parser.add_argument("--films", type=int, nargs="*", default=[2000, 8000, 34_000])
    given = parser.parse_args()
    films = read(given.real)
    seen = pictures(films)
    chosen = np.random.default_rng(0).permutation(len(films))[: given.copies]
    for name in CHANGES if given.copies else ():
        share, wrong = recalls(films, seen, {name: chosen})[name]
        print(f"{name}: {share:.1%} of {len(chosen)} found among {len(films)} films, {len(wrong)} wrongly", flush=True)
    for count in given.films:
        made = blends(seen[0], count)
        started = time.process_time()
        found = duplicates.find_duplicates([str(i) for i in range(count)], made, made)
        seconds = time.process_time() - started
        print(f"{count} films: {seconds:.1f} processor seconds, {len(found)} pairs", flush=True)


if __name__ == "__main__":
    main()
