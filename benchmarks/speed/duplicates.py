"""How many copies of real images are found, how many other images are taken for copies, and how the time grows.

python benchmarks/speed/duplicates.py [--real ../shared/data/covidqu-mini] [--copies 60] [--images 2000 8000 34000]

The images that the time is measured on are blends, four parts of one real image and one of another, each moved and
scaled at random: there are not enough real ones at hand. More pairs of blends are alike than of real images.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from trustcxr.data.checks import duplicates
from trustcxr.data.checks.duplicates import warp
from trustcxr.data.checks.scan import THUMB, _without_borders
from trustcxr.data.images.read import resize_image

Pixels = np.ndarray  # (H, W) uint8
Pictures = tuple[np.ndarray, np.ndarray]
CHANGES: Mapping[str, Callable[[Pixels], Pixels]] = {
    "mirrored": lambda image: image[:, ::-1],
    "inverted": lambda image: 255 - image,
    "moved by 3 pixels": lambda image: np.pad(image, 3)[: image.shape[0], : image.shape[1]],
    "rolled by 3 pixels": lambda image: np.roll(image, (3, 3), (0, 1)),
    "padded by 10 %": lambda image: np.pad(image, image.shape[0] // 10),
    "cropped by 2 %": lambda image: _cropped(image, 0.02),
    "gamma 0.6": lambda image: _gamma(image, 0.6),
    "gamma 1.7": lambda image: _gamma(image, 1.7),
    "mirrored, cropped, gamma": lambda image: _gamma(_cropped(image[:, ::-1], 0.02), 0.7),
    "inverted, moved, padded": lambda image: np.pad(255 - np.roll(image, 3, 1), 20),
}


def _cropped(image: Pixels, share: float) -> Pixels:
    top, left = (round(share * size) for size in image.shape)
    return image[top:-top, left:-left]


def _gamma(image: Pixels, exponent: float) -> Pixels:
    return np.round(255 * (image / 255) ** exponent).astype(np.uint8)


def pictures(images: list[Pixels]) -> Pictures:
    """What the audit's scan keeps of images for the search: thumbs and the same without borders, (N, 64, 64) each."""
    whole = [np.ascontiguousarray(image) for image in images]
    return np.stack([resize_image(f, THUMB) for f in whole]), np.stack(
        [resize_image(_without_borders(f), THUMB) for f in whole]
    )


def recalls(
    images: list[Pixels], seen: Pictures, chosen: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, set[int]]]:
    """Of each change the share of its copies found among all images, and the images wrongly taken for one of them.

    `chosen`: of each of CHANGES the images (rows of `images`) that a copy is made of, all looked for at once; `seen`:
    `pictures(images)`.
    """
    copies = pictures([CHANGES[name](images[i]) for name, rows in chosen.items() for i in rows])
    thumbs, trimmed = (np.concatenate(both) for both in zip(seen, copies, strict=True))
    found = duplicates.find_duplicates([str(i) for i in range(len(thumbs))], thumbs, trimmed)
    origin = np.concatenate([np.arange(len(images)), *chosen.values()])
    made_by = np.repeat(["", *chosen], [len(images), *map(len, chosen.values())])
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


def blends(images: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """`count` pictures (count, 64, 64) uint8, each of two of `images`, moved and scaled by a few per cent."""
    random = np.random.default_rng(seed)
    made = np.empty((count, THUMB, THUMB), np.uint8)
    for start in range(0, count, 512):
        some = min(512, count - start)
        halves = []
        for _ in range(2):
            maps = np.tile(np.array([1, 0, 0, 0, 1, 0], np.float32), (some, 1))
            maps += random.normal(0, 0.04, maps.shape).astype(np.float32)
            halves.append(warp(images[random.integers(len(images), size=some)].astype(np.float32), maps)[0])
        made[start : start + some] = 0.8 * halves[0] + 0.2 * halves[1]
    return made


def read(root: Path, *, every: int = 1) -> list[Pixels]:
    """The images of a data set, as they are; or every so many-th."""
    from trustcxr.data.images.read import read_image
    from trustcxr.data.layouts import read_manifest

    manifest = read_manifest(root)
    return [read_image(manifest.root / path) for path in manifest.table["path"][::every]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, default=Path("../shared/data/covidqu-mini"))
    parser.add_argument("--copies", type=int, default=60)
    parser.add_argument("--images", type=int, nargs="*", default=[2000, 8000, 34_000])
    given = parser.parse_args()
    images = read(given.real)
    seen = pictures(images)
    chosen = np.random.default_rng(0).permutation(len(images))[: given.copies]
    for name in CHANGES if given.copies else ():
        share, wrong = recalls(images, seen, {name: chosen})[name]
        print(
            f"{name}: {share:.1%} of {len(chosen)} found among {len(images)} images, {len(wrong)} wrongly", flush=True
        )
    for count in given.images:
        made = blends(seen[0], count)
        started = time.process_time()
        found = duplicates.find_duplicates([str(i) for i in range(count)], made, made)
        seconds = time.process_time() - started
        print(f"{count} images: {seconds:.1f} processor seconds, {len(found)} pairs", flush=True)


if __name__ == "__main__":
    main()
