"""Render synthetic chest X-rays with masks of their lungs, lesions and planted shortcuts.

COVID-19: several hazy patches in both lungs, towards the edge and the bases. Non-COVID: one dense focal consolidation.
Normal: neither. Exposure is independent of the class, so no global grey level reveals it. The same seed with another
class gives the same patient with another disease. This is no physical simulation, and no substitute for real images.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trustcxr.data.phantom.anatomy import (
    CLASSES,
    Array,
    Patient,
    Thorax,
    coordinates,
    draw_patient,
    enlarge,
    enlarger,
    lay_out,
)
from trustcxr.errors import UserError, unknown

SHORTCUTS = ("marker", "border", "brightness", "scanner_noise", "tube")
_COARSE = 56  # lesions and scatter are drawn on this grid and enlarged


@dataclass(frozen=True)
class Phantom:
    """A synthetic X-ray.

    image (H, W) uint8; lung_mask and infection_mask (H, W) uint8, 0 or 1; marks: name of a planted shortcut -> (H, W)
    uint8, 1 where it changed the image; parameters: the values drawn.
    """

    image: NDArray[np.uint8]
    lung_mask: NDArray[np.uint8]
    infection_mask: NDArray[np.uint8]
    marks: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)


def render(
    class_name: str, seed: int, size: int = 224, shortcuts: Sequence[str] = (), *, conspicuity: float = 1.0
) -> Phantom:
    """Render an image of size x size pixels, with all `shortcuts`.

    `conspicuity` multiplies the density of the disease: 1 is subtle, as on real images; 2 is obvious. Raises UserError
    for an unknown class or shortcut.
    """
    if class_name not in CLASSES:
        raise unknown("class", class_name, CLASSES)
    for name in shortcuts:
        if name not in SHORTCUTS:
            raise unknown("shortcut", name, SHORTCUTS)
    if size < 32:
        raise UserError(f"size {size}: too small for a synthetic X-ray. Choose 32 or more")
    anatomy, disease, exposure = (np.random.default_rng([seed, part]) for part in range(3))
    patient = draw_patient(anatomy)
    thorax = lay_out(patient, size)
    density, infected = draw_lesion(class_name, thorax, patient, disease, size)
    attenuation = thorax.attenuation + np.float32(conspicuity) * density
    radiograph = _expose(attenuation, exposure, size, grain=2.5 if "scanner_noise" in shortcuts else 1.0)
    marks: dict[str, NDArray[np.uint8]] = {}
    for name in SHORTCUTS:
        if name in shortcuts:
            radiograph, mark = PLANT[name](radiograph, np.random.default_rng([seed, 3, SHORTCUTS.index(name)]), thorax)
            marks[name] = mark.astype(np.uint8)
    image = (np.clip(radiograph, 0, 1) * 255 + 0.5).astype(np.uint8)
    parameters = {"class": class_name, "seed": seed, "shortcuts": list(marks), **asdict(patient)}
    return Phantom(image, thorax.lung.astype(np.uint8), infected.astype(np.uint8), marks, parameters)


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
    """Return white noise of twice the image's size; each image takes a window, which is faster than new noise."""
    return np.random.default_rng(4).standard_normal((2 * size, 2 * size), np.float32)


def _expose(attenuation: Array, random: np.random.Generator, size: int, grain: float) -> Array:
    """Convert attenuation to an image in about [0, 1]: scatter, characteristic curve, exposure, noise."""
    attenuation = attenuation + random.uniform(0.01, 0.04) * draw_cloud(random, 5, size)
    attenuation += random.uniform(0.006, 0.016) * draw_cloud(random, max(size // 3, 8), size)
    attenuation = _soften(attenuation, random.uniform(0.25, 0.5))
    # Independent of the disease, and wide: a brighter image must not mean a sicker patient.
    middle, steepness = random.uniform(0.28, 0.64), random.uniform(3.0, 6.5)
    black, white = random.uniform(-0.04, 0.08), random.uniform(0.80, 1.05)
    low, high = 1 / (1 + np.exp(middle * steepness)), 1 / (1 + np.exp((middle - 1) * steepness))
    gain = (white - black) / (high - low)
    image = np.float32(gain) / (1 + np.exp((middle - attenuation) * np.float32(steepness)))
    image += np.float32(black - gain * low)
    top, left = random.integers(0, size, 2)
    image += (grain * random.uniform(0.003, 0.010)) * _grain(size)[top : top + size, left : left + size]
    return image


# Lesions --------------------------------------------------------------------------------------------------------------


def draw_cloud(random: np.random.Generator, cells: int, size: int) -> Array:
    """Draw smooth noise (size, size), about standard normal, with `cells` bumps across."""
    return enlarge(random.standard_normal((cells, cells), np.float32), size)


def draw_lesion(
    class_name: str, thorax: Thorax, patient: Patient, random: np.random.Generator, size: int
) -> tuple[Array, NDArray[np.bool_]]:
    """Return the added attenuation and the lesion mask (H, W) bool: at least a quarter of its full density."""
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
    ragged = (
        0.9 * draw_cloud(random, 9, _COARSE)
        + 0.6 * draw_cloud(random, 18, _COARSE)
        + 0.4 * draw_cloud(random, 36, _COARSE)
    )
    extent += (0.15 if covid else 0.2) * ragged * np.minimum(extent * 4, 1)
    softness = random.uniform(0.35, 0.6) if covid else random.uniform(0.4, 0.7)
    density = np.clip((enlarge(extent, size) - 0.45) * np.float32(1 / softness) + 0.5, 0, 1)
    density *= density * (3 - 2 * density)
    infected = (density > 0.25) & thorax.lung
    grain = 1 + (0.22 if covid else 0.10) * draw_cloud(random, min(_COARSE, size // 4), size)
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


# Shortcuts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shortcut:
    """A shortcut `kind` on `share` (0..1) of the images of one class, and on no others."""

    kind: str
    share: float
    class_name: str = CLASSES[0]


def parse_shortcut(text: str) -> Shortcut:
    """Parse "marker=0.9" or "marker:Normal=0.9"; the default class is COVID-19. Raises UserError."""
    name, equals, number = text.partition("=")
    kind, colon, class_name = name.strip().partition(":")
    if kind not in SHORTCUTS:
        raise unknown("shortcut", kind, SHORTCUTS)
    if colon and class_name not in CLASSES:
        raise unknown("class", class_name, CLASSES)
    try:
        share = float(number) if equals else 1.0
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"shortcut '{text}': the share is not a number from 0 to 1. Write it as in {kind}=0.9")
    return Shortcut(kind, share, class_name if colon else CLASSES[0])


_GLYPHS = {
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
}
Planted = tuple[Array, NDArray[np.bool_]]


def _marker(image: Array, random: np.random.Generator, _: Thorax) -> Planted:
    size = image.shape[0]
    glyph = np.array([[int(c) for c in row] for row in _GLYPHS["R" if random.random() < 0.5 else "L"]], np.float32)
    height = max(int(size * random.uniform(0.065, 0.09)), 7)
    width = max(height * 5 // 7, 5)
    letter = enlarger(height, 7) @ glyph @ enlarger(width, 5).T > 0.5
    top = int(size * random.uniform(0.03, 0.08))
    left = int(size * random.uniform(0.03, 0.08))
    mark = np.zeros(image.shape, bool)
    mark[top : top + height, left : left + width] = letter
    return np.where(mark, np.float32(random.uniform(0.92, 1.0)), image), mark


def _border(image: Array, random: np.random.Generator, _: Thorax) -> Planted:
    size = image.shape[0]
    mark = np.ones(image.shape, bool)
    top, bottom, left, right = (max(int(size * random.uniform(0.02, 0.06)), 1) for _ in range(4))
    mark[top : size - bottom, left : size - right] = False
    return np.where(mark, np.float32(0.0), image), mark


def _brightness(image: Array, random: np.random.Generator, _: Thorax) -> Planted:
    return image + np.float32(random.uniform(0.12, 0.18)), np.ones(image.shape, bool)


def _scanner_noise(image: Array, random: np.random.Generator, _: Thorax) -> Planted:
    """Add the scanner's line pattern; _expose adds the grain."""
    lines = random.normal(0, 0.012, (1, image.shape[1])).astype(np.float32)
    return image + lines, np.ones(image.shape, bool)


def _tube(image: Array, random: np.random.Generator, thorax: Thorax) -> Planted:
    """Add a catheter from the neck down along the spine, bent at its tip."""
    size = image.shape[0]
    side = 1 if random.random() < 0.5 else -1
    end, bend = random.uniform(-0.1, 0.5), random.uniform(-0.25, 0.25)
    height = np.clip(thorax.v + 1.0, 0, None)
    path = side * (0.05 + 0.06 * np.sin(2.2 * height)) + bend * np.clip(thorax.v - end + 0.3, 0, None) ** 2
    off = np.abs(thorax.u - path)
    width = max(0.013, 1.2 / size)
    mark = (off < width) & (thorax.v < end)
    strength = np.where(off < width * 0.45, np.float32(0.05), np.float32(0.12))  # denser walls, lighter lumen
    return image + strength * mark, mark


PLANT: dict[str, Callable[[Array, np.random.Generator, Thorax], Planted]] = {
    "marker": _marker,
    "border": _border,
    "brightness": _brightness,
    "scanner_noise": _scanner_noise,
    "tube": _tube,
}
