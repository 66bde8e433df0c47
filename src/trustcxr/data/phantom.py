"""Synthetic chest X-rays that know their lesion, their masks and every shortcut planted in them.

COVID-19: several hazy patches, both lungs, towards the edge and the bases. Non-COVID: one dense focal consolidation.
Normal: neither. Exposure is drawn apart from the class, so no global grey level gives it away. Same seed and another
class: the same patient on the same day with another disease. Not a simulation of physics, and no substitute for films.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trustcxr.console import track
from trustcxr.data.phantom_anatomy import (
    CLASSES,
    Array,
    Patient,
    Thorax,
    coordinates,
    draw_patient,
    enlarge,
    lay_out,
)
from trustcxr.data.phantom_shortcuts import PLANT, SHORTCUTS, Shortcut, parse_shortcut
from trustcxr.errors import UserError, unknown

__all__ = ["CLASSES", "SHORTCUTS", "SPLITS", "Film", "Shortcut", "parse_shortcut", "render", "write"]
SPLITS = ("Train", "Val", "Test")
_COARSE = 56  # lesions and scatter are drawn on this grid and enlarged
_FILE_NAMES = {"COVID-19": "covid_{}.png", "Non-COVID": "non_COVID ({}).png", "Normal": "Normal ({}).png"}


@dataclass(frozen=True)
class Film:
    """One synthetic X-ray.

    image (H, W) uint8; lung_mask and infection_mask (H, W) uint8, 0 or 1; marks: name of a planted shortcut -> (H, W)
    uint8, 1 where it changed the film; parameters: what was drawn to make it.
    """

    image: NDArray[np.uint8]
    lung_mask: NDArray[np.uint8]
    infection_mask: NDArray[np.uint8]
    marks: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)


def render(
    class_name: str, seed: int, size: int = 224, shortcuts: Sequence[str] = (), *, conspicuity: float = 1.0
) -> Film:
    """One film of size x size pixels; every shortcut named is planted.

    `conspicuity` multiplies the density of the disease: 1 is subtle, as on real films; 2 is plain to see. UserError for
    an unknown class or shortcut.
    """
    if class_name not in CLASSES:
        raise unknown("class", class_name, CLASSES)
    for name in shortcuts:
        if name not in SHORTCUTS:
            raise unknown("shortcut", name, SHORTCUTS)
    if size < 32:
        raise UserError(f"a synthetic X-ray of {size} pixels is too small to show anything: choose 32 or more")
    anatomy, disease, exposure = (np.random.default_rng([seed, part]) for part in range(3))
    patient = draw_patient(anatomy)
    thorax = lay_out(patient, size)
    density, infected = _lesion(class_name, thorax, patient, disease, size)
    attenuation = thorax.attenuation + np.float32(conspicuity) * density
    film = _expose(attenuation, exposure, size, grain=2.5 if "scanner_noise" in shortcuts else 1.0)
    marks: dict[str, NDArray[np.uint8]] = {}
    for name in SHORTCUTS:
        if name in shortcuts:
            film, mark = PLANT[name](film, np.random.default_rng([seed, 3, SHORTCUTS.index(name)]), thorax)
            marks[name] = mark.astype(np.uint8)
    image = (np.clip(film, 0, 1) * 255 + 0.5).astype(np.uint8)
    parameters = {"class": class_name, "seed": seed, "shortcuts": list(marks), **asdict(patient)}
    return Film(image, thorax.lung.astype(np.uint8), infected.astype(np.uint8), marks, parameters)


# --- lesions ---------------------------------------------------------------------------------------------------------


def _cloud(random: np.random.Generator, cells: int, size: int) -> Array:
    """Smooth noise (size, size), about standard normal, with `cells` bumps across."""
    return enlarge(random.standard_normal((cells, cells), np.float32), size)


def _lesion(
    class_name: str, thorax: Thorax, patient: Patient, random: np.random.Generator, size: int
) -> tuple[Array, NDArray[np.bool_]]:
    """(attenuation added, (H, W) bool where the disease is: at least a quarter of its own full density)."""
    if class_name == "Normal":
        return np.zeros((size, size), np.float32), np.zeros((size, size), bool)
    u, v = coordinates(patient, _COARSE)
    covid = class_name == "COVID-19"
    spots = _covid_spots(patient, random) if covid else _focal_spot(patient, random)
    extent = np.zeros((_COARSE, _COARSE), np.float32)
    for side, along, height, radius_u, radius_v, weight in spots:
        inner, outer = thorax.borders.at(side, height)
        middle = side * (inner + along * (outer - inner))
        distance = ((u - middle) / radius_u) ** 2 + ((v - height) / radius_v) ** 2
        extent = np.maximum(extent, weight * np.exp(-0.7 * distance) * (np.sign(u) == side))
    ragged = 0.9 * _cloud(random, 9, _COARSE) + 0.6 * _cloud(random, 18, _COARSE) + 0.4 * _cloud(random, 36, _COARSE)
    extent += (0.15 if covid else 0.2) * ragged * np.minimum(extent * 4, 1)
    softness = random.uniform(0.35, 0.6) if covid else random.uniform(0.4, 0.7)
    density = np.clip((enlarge(extent, size) - 0.45) * np.float32(1 / softness) + 0.5, 0, 1)
    density *= density * (3 - 2 * density)
    infected = (density > 0.25) & thorax.lung
    grain = 1 + (0.22 if covid else 0.10) * _cloud(random, min(_COARSE, size // 4), size)
    peak = random.uniform(0.08, 0.19) if covid else random.uniform(0.14, 0.28)
    if not covid:
        grain -= 0.45 * thorax.vessels  # air in the bronchi stays dark within a consolidation
    return (peak * density * grain * thorax.inside).astype(np.float32), infected


Spot = tuple[int, float, float, float, float, float]  # side, share of the way outwards, height, radii, weight


def _covid_spots(patient: Patient, random: np.random.Generator) -> list[Spot]:
    spots: list[Spot] = []
    for side in (-1, 1):
        base = patient.dome_left if side > 0 else patient.dome_right
        for _ in range(int(random.integers(2, 5))):
            along = 1 - abs(random.normal(0.12, 0.2))
            height = base - random.triangular(0.03, 0.12, 0.75)
            radius = random.uniform(0.08, 0.19)
            spots.append((side, along, height, radius, radius * random.uniform(0.8, 1.7), random.uniform(0.75, 1.1)))
    return spots


def _focal_spot(patient: Patient, random: np.random.Generator) -> list[Spot]:
    side = 1 if random.random() < 0.5 else -1
    base = patient.dome_left if side > 0 else patient.dome_right
    along, height = random.uniform(0.25, 0.8), base - random.uniform(0.08, 0.9)
    radius = random.uniform(0.13, 0.22)
    spots = [(side, along, height, radius, radius * random.uniform(0.7, 1.3), 1.1)]
    for _ in range(3):
        shift, drop = random.normal(0, 0.3), random.normal(0, 0.11)
        spots.append((side, along + shift, height + drop, radius * 0.62, radius * random.uniform(0.4, 0.8), 0.95))
    return spots


# --- the film --------------------------------------------------------------------------------------------------------


def _soften(image: Array, share: float) -> Array:
    """Blur by the neighbours' share, as a detector does."""
    out = image * (1 - share)
    out[1:-1] += (share / 2) * (image[:-2] + image[2:])
    out[[0, -1]] += share * image[[0, -1]]
    wide = out * (1 - share)
    wide[:, 1:-1] += (share / 2) * (out[:, :-2] + out[:, 2:])
    wide[:, [0, -1]] += share * out[:, [0, -1]]
    return wide


@lru_cache(maxsize=4)
def _grain(size: int) -> Array:
    """White noise twice the film's size: each film cuts its own window, which is far cheaper than drawing it anew."""
    return np.random.default_rng(4).standard_normal((2 * size, 2 * size), np.float32)


def _expose(attenuation: Array, random: np.random.Generator, size: int, grain: float) -> Array:
    """Attenuation -> film in about [0, 1]: scatter, characteristic curve, exposure, quantum and scanner noise."""
    attenuation = attenuation + random.uniform(0.01, 0.04) * _cloud(random, 5, size)
    attenuation += random.uniform(0.006, 0.016) * _cloud(random, max(size // 3, 8), size)
    attenuation = _soften(attenuation, random.uniform(0.25, 0.5))
    # Exposure is drawn apart from the disease, and widely: a brighter film must not mean a sicker patient.
    middle, steepness = random.uniform(0.28, 0.64), random.uniform(3.0, 6.5)
    black, white = random.uniform(-0.04, 0.08), random.uniform(0.80, 1.05)
    low, high = 1 / (1 + np.exp(middle * steepness)), 1 / (1 + np.exp((middle - 1) * steepness))
    gain = (white - black) / (high - low)
    film = np.float32(gain) / (1 + np.exp((middle - attenuation) * np.float32(steepness)))
    film += np.float32(black - gain * low)
    top, left = random.integers(0, size, 2)
    film += (grain * random.uniform(0.003, 0.010)) * _grain(size)[top : top + size, left : left + size]
    return film


# --- a data set on disk ----------------------------------------------------------------------------------------------


def write(
    out: Path | str,
    counts: Mapping[str, int] | None = None,
    *,
    size: int = 256,
    seed: int = 0,
    shortcuts: Sequence[Shortcut | str] | Mapping[str, Sequence[Shortcut | str]] = (),
    conspicuity: float = 1.0,
    workers: int = 1,
) -> Path:
    """Write a data set of synthetic X-rays in COVID-QU-Ex's layout, with a manifest.csv, and return its folder.

    counts: split -> films of **each** class. shortcuts: for all splits, or split -> shortcuts. Every film is a patient
    of its own, and the same arguments give the same bytes whatever the workers. Both diseases have exact infection
    masks; those of Normal are empty. `conspicuity` is as in `render`. UserError where `out` holds something already.
    """
    import pandas as pd

    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder: choose another place for the synthetic X-rays")
    jobs = _jobs(counts or {"Train": 200, "Val": 50, "Test": 50}, seed, shortcuts, conspicuity)
    for split, class_name in {(job.split, job.class_name) for job in jobs}:
        for part, kinds in _PARTS.items():
            for kind in kinds:
                (folder / part / part / split / class_name / kind).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    chunks = [jobs[i : i + 50] for i in range(0, len(jobs), 50)]
    for done in track(_results(chunks, folder, size, workers), "Synthetic X-rays", len(chunks)):
        rows += done
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder


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


def _jobs(
    counts: Mapping[str, int],
    seed: int,
    shortcuts: Sequence[Shortcut | str] | Mapping[str, Sequence[Shortcut | str]],
    conspicuity: float,
) -> list[_Job]:
    for split in [*counts, *(shortcuts if isinstance(shortcuts, Mapping) else ())]:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
    jobs: list[_Job] = []
    started = dict.fromkeys(CLASSES, 0)
    for split, count in counts.items():
        wanted = shortcuts.get(split, ()) if isinstance(shortcuts, Mapping) else shortcuts
        plan = [parse_shortcut(s) if isinstance(s, str) else s for s in wanted]
        for place, class_name in enumerate(CLASSES):
            random = np.random.default_rng([seed, SPLITS.index(split), place])
            planted: list[list[str]] = [[] for _ in range(count)]
            for shortcut in plan:
                if shortcut.class_name == class_name:
                    for i in random.permutation(count)[: round(shortcut.share * count)]:
                        planted[i].append(shortcut.kind)
            for names in planted:
                started[class_name] += 1
                film_seed = (seed * len(CLASSES) + place) * 10_000_019 + started[class_name]
                jobs.append(_Job(split, class_name, started[class_name], film_seed, tuple(names), conspicuity))
    return jobs


def _results(chunks: list[list[_Job]], folder: Path, size: int, workers: int) -> Iterable[list[dict[str, Any]]]:
    if workers <= 1:
        for chunk in chunks:
            yield _write_films(chunk, folder, size)
        return
    import joblib

    pool = joblib.Parallel(workers, backend="loky", return_as="generator", batch_size=1, pre_dispatch=4 * workers)
    yield from pool(joblib.delayed(_write_films)(chunk, folder, size) for chunk in chunks)


def _write_films(jobs: list[_Job], folder: Path, size: int) -> list[dict[str, Any]]:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):  # the matrix products are small: a second thread only waits
        return [row for job in jobs for row in _write_film(job, folder, size)]


def _write_film(job: _Job, folder: Path, size: int) -> Iterator[dict[str, Any]]:
    from PIL import Image

    film = render(job.class_name, job.seed, size, job.shortcuts, conspicuity=job.conspicuity)
    name = _FILE_NAMES[job.class_name].format(job.number)
    masks = {"lung masks": film.lung_mask * 255, "infection masks": film.infection_mask * 255}
    pictures = {"images": film.image, **masks}
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
        yield _row(job, film, (base / "images" / name).as_posix(), part)


def _row(job: _Job, film: Film, path: str, part: str) -> dict[str, Any]:
    patient = f"phantom:{job.class_name}-{job.number}"
    return {
        "path": path,
        "set": part.split()[0].lower(),
        "split": job.split,
        "class": job.class_name,
        "source_repo": "phantom",
        "patient_id": patient,
        "view": film.parameters["view"],
        "group_id": patient,
        "conspicuity": job.conspicuity,
        "seed": job.seed,  # with it, render() gives this film, its masks and its marks again
        **{f"shortcut_{name}": int(name in film.marks) for name in SHORTCUTS},
        "lung_fraction": round(float(film.lung_mask.mean()), 5),
        "infection_fraction": round(float(film.infection_mask.mean()), 5),
    }
