"""Write synthetic images in COVID-QU-Ex's layout."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trustcxr.console import track
from trustcxr.data.phantom.render_image import CLASSES, SHORTCUTS, Shortcut, parse_shortcut, render
from trustcxr.data.worker_pool import pool
from trustcxr.errors import UserError, unknown
from trustcxr.storage.locks import is_left
from trustcxr.storage.os_errors import writing

Shortcuts = Sequence[Shortcut | str] | Mapping[str, Sequence[Shortcut | str]]  # of all splits, or of each
SPLITS = ("Train", "Val", "Test")
SIZES = (32, 4096)  # pixels of a side
_MOST_IMAGES = 1_000_000  # of a class in a split
_FILE_NAMES = {"COVID-19": "covid_{}.png", "Non-COVID": "non_COVID ({}).png", "Normal": "Normal ({}).png"}


def write(
    out: Path | str,
    counts: Mapping[str, int] | None = None,
    *,
    size: int = 256,
    seed: int = 0,
    shortcuts: Shortcuts = (),
    conspicuity: float = 1.0,
    workers: int = 1,
) -> Path:
    """Write a data set of synthetic X-rays in COVID-QU-Ex's layout, with a manifest.csv, and return its folder.

    counts: split -> images of **each** class. shortcuts: for all splits, or split -> shortcuts. Every image is another
    patient; the same arguments give the same bytes with any `workers`. Both diseases have exact infection masks; those
    of Normal are empty. `conspicuity`: as in `render`. Raises UserError if `out` is not empty.
    """
    folder, counts = Path(out), counts or {"Train": 200, "Val": 50, "Test": 50}
    _check_options(counts, size, seed)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not an empty folder. Choose another folder for the synthetic X-rays")
    jobs = _jobs(counts, seed, shortcuts, conspicuity)
    # Each image is written twice, with its masks: more than a byte for each pixel in all, as PNG.
    with writing(folder, needed=lambda: len(jobs) * size**2), _atomic_folder(folder) as building:
        _write_all(jobs, building, size, workers)
    return folder


def _check_options(counts: Mapping[str, int], size: int, seed: int) -> None:
    for split, count in counts.items():
        if not 0 <= count <= _MOST_IMAGES:
            raise UserError(f"{count} images of each class in {split}: out of range. Choose 1 to {_MOST_IMAGES:,}")
    if not sum(counts.values()):
        raise UserError("no images: choose at least one of each class")
    for name, value, (low, high) in (("size", size, SIZES), ("seed", seed, (0, 2**32 - 1))):
        if not low <= value <= high:
            raise UserError(f"{name} {value}: out of range. Choose {low} to {high}")


@contextmanager
def _atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; rename it to `folder` at the end, or remove it after an error."""
    prefix = f".{folder.absolute().name}."
    building = folder.absolute().with_name(f"{prefix}{os.getpid()}.building")
    try:
        for left in building.parent.iterdir() if building.parent.is_dir() else ():
            if left.name.startswith(prefix) and left.suffix == ".building" and is_left(left.name):
                shutil.rmtree(left, ignore_errors=True)
        building.mkdir(parents=True)
        yield building
        if folder.is_dir():
            folder.rmdir()
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_all(jobs: "list[_Job]", folder: Path, size: int, workers: int) -> None:
    import pandas as pd
    from joblib import delayed

    for split, class_name in {(job.split, job.class_name) for job in jobs}:
        for part, kinds in _PARTS.items():
            for kind in kinds:
                (folder / part / part / split / class_name / kind).mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    chunks = [jobs[i : i + 50] for i in range(0, len(jobs), 50)]
    results = pool(max(workers, 1))(delayed(_write_images)(chunk, folder, size) for chunk in chunks)
    for written in track(results, "Synthetic X-rays", len(chunks)):
        rows += written
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)


Row = dict[str, str | int | float]  # of the manifest
_PARTS = {
    "Lung Segmentation Data": ("images", "lung masks"),
    "Infection Segmentation Data": ("images", "lung masks", "infection masks"),
}


@dataclass(frozen=True)
class _Job:
    split: str
    class_name: str
    number: int  # within its class, from 1
    seed: int
    shortcuts: tuple[str, ...]
    conspicuity: float


def _jobs(counts: Mapping[str, int], seed: int, shortcuts: Shortcuts, conspicuity: float) -> list[_Job]:
    for split in [*counts, *(shortcuts if isinstance(shortcuts, Mapping) else ())]:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
    jobs: list[_Job] = []
    started = dict.fromkeys(CLASSES, 0)
    for split, count in counts.items():
        wanted = shortcuts.get(split, ()) if isinstance(shortcuts, Mapping) else shortcuts
        plan = [parse_shortcut(s) if isinstance(s, str) else s for s in wanted]
        for label, class_name in enumerate(CLASSES):
            random = np.random.default_rng([seed, SPLITS.index(split), label])
            planted: list[list[str]] = [[] for _ in range(count)]
            for shortcut in plan:
                if shortcut.class_name == class_name:
                    for i in random.permutation(count)[: round(shortcut.share * count)]:
                        planted[i].append(shortcut.kind)
            for names in planted:
                started[class_name] += 1
                image_seed = (seed * len(CLASSES) + label) * 10_000_019 + started[class_name]
                jobs.append(_Job(split, class_name, started[class_name], image_seed, tuple(names), conspicuity))
    return jobs


def _write_images(jobs: list[_Job], folder: Path, size: int) -> list[Row]:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):  # the matrix products are too small for threads
        return [row for job in jobs for row in _write_image(job, folder, size)]


def _write_image(job: _Job, folder: Path, size: int) -> Iterator[Row]:
    from PIL import Image

    image = render(job.class_name, job.seed, size, job.shortcuts, conspicuity=job.conspicuity)
    name = _FILE_NAMES[job.class_name].format(job.number)
    patient = f"phantom:{job.class_name}-{job.number}"
    masks = {"lung masks": image.lung_mask * 255, "infection masks": image.infection_mask * 255}
    pictures = {"images": image.image, **masks}
    saved: dict[str, Path] = {}
    for part, kinds in _PARTS.items():
        base = Path(part, part, job.split, job.class_name)
        for kind in kinds:
            path = folder / base / kind / name
            if kind in saved:
                path.write_bytes(saved[kind].read_bytes())
            else:
                Image.fromarray(pictures[kind]).save(path, compress_level=1)
                saved[kind] = path
        yield {
            "path": (base / "images" / name).as_posix(),
            "set": part.split()[0].lower(),
            "split": job.split,
            "class": job.class_name,
            "source_repo": "phantom",
            "patient_id": patient,
            "view": image.parameters["view"],
            "group_id": patient,
            "conspicuity": job.conspicuity,
            "seed": job.seed,  # render() reproduces the image, its masks and its marks from it
            **{f"shortcut_{name}": int(name in image.marks) for name in SHORTCUTS},
            "lung_fraction": round(float(image.lung_mask.mean()), 5),
            "infection_fraction": round(float(image.infection_mask.mean()), 5),
        }
