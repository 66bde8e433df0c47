"""Images a second of our corruptions and of medmnistc's, on those that both have. Goal: at least 5 times theirs.

python benchmarks/speed/corruptions.py [--size 224] [--batch 64] [--rounds 5] [--threads 1] [--theirs FOLDER]

medmnistc pins an old scikit-image, so it is no dependency of ours. Put it somewhere else, and name the place:
pip install --no-deps --target FOLDER medmnistc wand opencv-python-headless  (and ImageMagick for its motion blur).
Their motion blur needs NumPy before 2.3 as well. Without medmnistc our own speed is printed alone.

Both start from what they take, in memory: ours a float batch, theirs PIL images; both end in a float batch in [0, 1].
Theirs takes an image at a time. The two take turns, severities 1 to 5 each, and the round of the least processor time
counts.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trustcxr import corruptions
from trustcxr.data.phantom import render_image
from trustcxr.data.phantom.render_image import render

# Ours -> theirs: the names of their table for chest X-rays, or of another table where that has none. Their defocus_blur
# takes three channels only, so their Gaussian blur stands for it.
PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "gaussian_noise": (("chestmnist", "gaussian_noise"),),
    "poisson_noise": (("chestmnist", "shot_noise"),),
    "defocus_blur": (("chestmnist", "gaussian_blur"),),
    "motion_blur": (("bloodmnist", "motion_blur"),),
    "resolution": (("chestmnist", "pixelate"),),
    "jpeg": (("chestmnist", "jpeg_compression"),),
    "contrast": (("chestmnist", "contrast_up"), ("chestmnist", "contrast_down")),
    "exposure": (("chestmnist", "brightness_up"), ("chestmnist", "brightness_down")),
    "gamma": (("chestmnist", "gamma_corr_up"), ("chestmnist", "gamma_corr_down")),
}


def registry(folder: Path | None) -> dict[str, dict[str, Any]]:
    """medmnistc's table of corruptions, empty where it is not there."""
    if folder is not None:
        sys.path.append(str(folder))
    try:
        from medmnistc.corruptions.registry import CORRUPTIONS_DS  # type: ignore[import-not-found]
    except ImportError as problem:
        print(f"medmnistc is not here ({problem}): our own speed alone; see the head of this file")
        return {}
    return CORRUPTIONS_DS


def theirs(table: dict[str, dict[str, Any]], name: str, pictures: list[Image.Image]) -> Callable[[], None] | None:
    """All pictures at all severities by medmnistc: half of them each way where it has two."""
    found: list[Any] = [table.get(data, {}).get(key) for data, key in PAIRS.get(name, ())]
    if not found or None in found:
        return None
    try:
        found[0].apply(pictures[0], 0)
    except Exception as problem:  # theirs alone: written for colour, or without ImageMagick
        print(f"{name}: medmnistc's does not run on a grey image here ({type(problem).__name__}: {problem})")
        return None

    def work() -> None:
        batch = torch.empty(len(pictures), 1, pictures[0].height, pictures[0].width)
        for severity in range(5):
            for place, picture in enumerate(pictures):
                changed = np.array(found[place % len(found)].apply(picture, severity))
                grey = changed if changed.ndim == 2 else changed[..., 0]  # their motion blur makes it three
                torch.div(torch.from_numpy(grey), 255, out=batch[place, 0])

    return work


def seconds(work: Callable[[], None]) -> float:
    """Processor time of one go: what else the machine does counts less."""
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--theirs", type=Path, help="folder into which medmnistc was installed")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images = [render(render_image.CLASSES[i % 3], i, given.size).image for i in range(given.batch)]
    pixels = torch.from_numpy(np.stack(images)).float().div(255)[:, None]
    pictures, table = [Image.fromarray(image) for image in images], registry(given.theirs)
    count = 5 * given.batch
    spent: dict[str, np.ndarray] = {}
    print(f"{given.size} pixels, batch {given.batch}, {given.threads} thread(s), torch {torch.__version__}")
    print(f"{'images a second':20} {'ours':>8} {'medmnistc':>10} {'ratio':>6}")
    for name in corruptions.CORRUPTIONS:

        def ours(name: str = name) -> None:
            for severity in corruptions.SEVERITIES:
                corruptions.corrupt(pixels, name, severity)

        other = theirs(table, name, pictures)
        times = [(seconds(ours), seconds(other) if other else 0.0) for _ in range(given.rounds)]
        mine, their = (min(column) for column in zip(*times, strict=True))
        if not other:
            print(f"{name:20} {count / mine:8,.0f} {'-':>10} {'-':>6}")
            continue
        spent[name] = np.array([mine, their])
        print(f"{name:20} {count / mine:8,.0f} {count / their:10,.0f} {their / mine:6.1f}")
    chest = {name for name, found in PAIRS.items() if found[0][0] == "chestmnist"}
    for title, names in (("all that both have", set(spent)), ("those of their table for chest X-rays", chest)):
        if names & set(spent):
            ours_all, theirs_all = np.sum([spent[name] for name in names & set(spent)], axis=0)
            print(f"{title}: theirs takes {theirs_all / ours_all:.1f} times as long")


if __name__ == "__main__":
    main()
