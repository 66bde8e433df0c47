"""Draw lesions of synthetic images: clouds at the pleura, or one focus in a lobe."""

import numpy as np
from numpy.typing import NDArray

from trustcxr.data.phantom.anatomy import Array, Patient, Thorax, coordinates, enlarge

_COARSE = 56  # lesions and scatter are drawn on this grid and enlarged


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
