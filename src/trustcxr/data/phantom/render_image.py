"""Draw synthetic chest X-rays with masks of their lungs, lesions and planted shortcuts.

COVID-19: several hazy patches in both lungs, towards the edge and the bases. Non-COVID: one dense focal consolidation.
Normal: neither. Exposure is independent of the class, so no global grey level reveals it. The same seed with another
class gives the same patient with another disease. This is no physical simulation, and no substitute for real images.

Lengths are in patient units: the image is about 2 x 2 with centre (0, 0), u grows to the image's right (the patient's
left), v downwards. Attenuation is relative to the image's range before exposure: air 0, lung 0.3, heart 0.75. It is a
sum of line integrals, as in a radiograph, so ribs show through lung and heart.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trustcxr.errors import UserError, lookup, unknown

Array = NDArray[np.float32]
_SPAN, _STEPS = 2.0, 512  # curves are tables over [-2, 2], with this many entries for each unit
_AXIS = np.arange(int(2 * _SPAN * _STEPS)) / _STEPS - _SPAN
_TREE_SCALE = 110  # pixels of a vessel tree for each patient unit
_TREES = 24
CLASSES = ("COVID-19", "Non-COVID", "Normal")
_COARSE = 56  # lesions and scatter are drawn on this grid and enlarged


def _drawn(index: int, low: float, high: float, *, bedside: float = 0.0, least: float = -np.inf) -> Any:
    """Declare a field drawn from `low` to `high` by random number `index`; in bed plus `bedside`; at least `least`."""
    return field(metadata={"index": index, "low": low, "high": high, "bedside": bedside, "least": least})


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A patient in front of the detector. Angles in degrees, lengths in patient units."""

    width: float = _drawn(2, 0.86, 1.2)
    height: float = _drawn(3, 0.88, 1.16)
    shift_x: float = _drawn(4, -0.09, 0.09)
    shift_y: float = _drawn(5, -0.12, 0.10)
    rotation: float
    view: str  # "PA" or "AP"
    lung_width: float = _drawn(6, 0.58, 0.74)
    apex: float = _drawn(7, -0.86, -0.72)
    dome_right: float
    dome_left: float
    dome_curve: float = _drawn(9, 0.10, 0.26)
    mediastinum: float = _drawn(10, 0.085, 0.15, bedside=0.02)
    heart_x: float = _drawn(11, 0.07, 0.15)
    heart_width: float = _drawn(12, 0.20, 0.30, bedside=0.035)
    heart_height: float = _drawn(13, 0.27, 0.36)
    aorta: float = _drawn(14, 0.02, 0.08)
    rib_spacing: float = _drawn(15, 0.115, 0.155)
    rib_phase: float = _drawn(16, 0, 1)
    rib_slope: float = _drawn(17, 0.25, 0.55)
    rib_density: float = _drawn(18, 0.055, 0.12)
    clavicle: float = _drawn(19, -0.74, -0.58)
    clavicle_tilt: float = _drawn(20, -0.02, 0.16)
    chest_wall: float = _drawn(21, 0.10, 0.28)
    shoulder: float = _drawn(22, -1.02, -0.80)
    breast: float = _drawn(23, -0.10, 0.13, least=0.0)
    breast_height: float = _drawn(24, 0.16, 0.34)
    stomach: float = _drawn(25, -0.12, 0.16, least=0.0)
    vessels: float = _drawn(26, 0.12, 0.22)
    tree_right: int
    tree_left: int
    arm_gap: float = _drawn(29, 1.0, 1.5)


def draw_patient(random: np.random.Generator) -> Patient:
    """Draw a patient at random: size, rotation, inspiration, heart, bones, soft tissue."""
    r = random.random(32)

    def between(index: int, low: float, high: float) -> float:
        return float(low + (high - low) * r[index])

    bedside = r[0] < 0.35  # an AP image in bed: larger heart, shallower breath, more rotation
    dome = between(1, 0.24, 0.46) if bedside else between(1, 0.34, 0.60)
    values: dict[str, Any] = {
        "rotation": float(random.normal(0, 3.2 if bedside else 1.8)),
        "view": "AP" if bedside else "PA",
        "dome_right": dome,
        "dome_left": dome + between(8, 0.0, 0.09),
        "tree_right": int(r[27] * _TREES),
        "tree_left": int(r[28] * _TREES),
    }
    for name, how in ((part.name, part.metadata) for part in fields(Patient) if part.metadata):
        value = between(how["index"], how["low"], how["high"])
        values[name] = max(how["least"], value + how["bedside"] * bedside if how["bedside"] else value)
    return Patient(**values)


@dataclass(frozen=True)
class Thorax:
    """A patient on an image of (H, W) pixels. Every array is (H, W) float32."""

    u: Array  # patient's coordinate to the image's right
    v: Array  # patient's coordinate downwards
    inside: Array  # 0 outside the lungs, rising to 1 well inside them
    lung: NDArray[np.bool_]
    vessels: Array  # 0..1: bronchi and vessels branching from the hila
    attenuation: Array  # without any lesion
    borders: "Borders"


@lru_cache(maxsize=32)
def enlarger(size: int, coarse: int) -> Array:
    """Return weights (size, coarse) of linear interpolation between the centres of coarse cells."""
    position = np.clip((np.arange(size) + 0.5) * coarse / size - 0.5, 0, coarse - 1)
    low = np.minimum(position.astype(int), coarse - 2)
    weights = np.zeros((size, coarse), np.float32)
    weights[np.arange(size), low] = 1 - (position - low)
    weights[np.arange(size), low + 1] = position - low
    return weights


def enlarge(grid: Array, size: int) -> Array:
    """Enlarge a coarse grid (h, w) to (size, size), linear between the centres of its cells."""
    return np.asarray(enlarger(size, grid.shape[0]) @ grid @ enlarger(size, grid.shape[1]).T, np.float32)


@lru_cache(maxsize=8)
def _image_grid(size: int) -> tuple[Array, Array]:
    line = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    return np.broadcast_to(line, (size, size)).copy(), np.broadcast_to(line[:, None], (size, size)).copy()


def coordinates(patient: Patient, size: int) -> tuple[Array, Array]:
    """Return the patient's (u, v) at each pixel of an image of size x size."""
    x, y = _image_grid(size)
    angle = np.deg2rad(patient.rotation)
    c, s = float(np.cos(angle)), float(np.sin(angle))
    u = x * (c / patient.width) + (y * (s / patient.width) - patient.shift_x)
    v = y * (c / patient.height) - (x * (s / patient.height) + patient.shift_y)
    return u.astype(np.float32, copy=False), v.astype(np.float32, copy=False)


def _index(values: Array) -> NDArray[np.intp]:
    return ((values + _SPAN) * _STEPS).astype(np.intp)


def _look(table: NDArray[np.float64], index: NDArray[np.intp]) -> Array:
    return table.astype(np.float32).take(index, mode="clip")


def _ramp(distance: Array, width: float) -> Array:
    """Return 0 up to zero, 1 from `width` on, smooth at the top."""
    t = distance * np.float32(1 / width)
    np.maximum(t, 0, out=t)
    np.minimum(t, 1, out=t)
    rest = np.float32(2) - t
    return np.multiply(t, rest, out=rest)


def _bump(values: NDArray[np.float64], middle: float, width: float) -> NDArray[np.float64]:
    return np.exp(-(((values - middle) / width) ** 2))


@dataclass(frozen=True)
class Borders:
    """Distances of the lungs' borders from the midline, as tables over v."""

    lateral: NDArray[np.float64]
    medial_right: NDArray[np.float64]
    medial_left: NDArray[np.float64]

    def at(self, side: int, v: float) -> tuple[float, float]:
        """Return (medial, lateral) of the lung on the image's left (-1) or right (1) at height v."""
        row = int((v + _SPAN) * _STEPS)
        return float((self.medial_left if side > 0 else self.medial_right)[row]), float(self.lateral[row])


def lung_borders(p: Patient) -> Borders:
    """Compute the lungs' borders: an arch laterally, the mediastinum and the heart medially."""
    v = _AXIS
    widest = 0.12
    q = np.clip((widest - v) / (widest - p.apex), 0, 1)
    top = 0.27
    lateral = top + (p.lung_width - top) * np.sqrt(1 - q**2.4) + 0.05 * np.clip(v - widest, 0, 1)
    lateral[v < p.apex] = 0
    medial = p.mediastinum * (0.8 + 0.2 * _bump(v, -0.1, 0.3)) + (top - p.mediastinum) * q**9
    apex_of_heart = p.dome_left - 0.10
    above = np.clip((apex_of_heart - v) / (2.1 * p.heart_height), 0, 1)
    left_heart = np.cos(above * np.pi / 2) ** 1.5 * (1 - 0.5 * np.clip(v - apex_of_heart, 0, 1))
    left = medial + p.aorta * _bump(v, -0.36, 0.09) + 0.5 * p.aorta * _bump(v, -0.17, 0.09)
    left += (p.heart_x + p.heart_width - p.mediastinum) * left_heart
    atrium = p.dome_right - 0.8 * p.heart_height
    right = medial + 0.4 * p.aorta * _bump(v, -0.2, 0.16)
    right += max(0.62 * p.heart_width - p.mediastinum, 0.02) * _bump(v, atrium, 0.75 * p.heart_height)
    return Borders(lateral, right, left)


def lay_out(p: Patient, size: int) -> Thorax:
    """Place the patient's parts on an image and sum their attenuation."""
    u, v = coordinates(p, size)
    across, iu, iv = np.abs(u), _index(u), _index(v)
    is_left = u > 0
    borders = lung_borders(p)
    lateral = _look(borders.lateral, iv)
    from_lateral = lateral - across
    from_medial = across - np.where(is_left, _look(borders.medial_left, iv), _look(borders.medial_right, iv))
    from_dome = _look(_dome(p), iu) - v
    lung = (from_lateral > 0) & (from_medial > 0) & (from_dome > 0)
    inside = _ramp(from_lateral, 0.07) * _ramp(from_medial, 0.05) * _ramp(from_dome, 0.04)
    depth = inside * (0.72 + 0.28 * _ramp(from_lateral, 0.3))

    body, wall = _body(p, v, across, iu, iv, borders.lateral)
    below = _ramp(-from_dome, 0.05) * _ramp(lateral + 0.05 - across, 0.1)
    column = 0.50 + 0.12 * _bump(_AXIS, 0.01, 0.16) + 0.12 * _bump(_AXIS, 0.06, 0.36)
    level = 0.08 * np.tanh((_AXIS - 0.3) / 0.4) - 0.10 * np.clip(-_AXIS - 0.6, 0, 1)
    attenuation = body * (_look(column, iu) + _look(level, iv)) + 0.20 * below * body
    attenuation -= (0.33 * body) * depth
    vessels = _vessels(p, u, v, across, is_left)
    attenuation += p.vessels * vessels * inside
    attenuation += _ribs(p, v, across, iu, lateral, below) * wall
    attenuation += _spine_and_airway(p, iu, iv)
    _add_clavicles(p, attenuation, u, v, across)
    _add_soft_tissue(p, attenuation, u, v, from_dome, body)
    return Thorax(u, v, inside, lung, vessels, attenuation, borders)


def _dome(p: Patient) -> NDArray[np.float64]:
    """Return the diaphragm's height over u: two domes, deep at the costophrenic angles, shallow at the heart."""
    u = _AXIS
    t = (np.abs(u) - 0.30) / 0.36
    shape = p.dome_curve * np.where(t > 0, np.abs(t) ** 2.6, 0.5 * t**2)
    left = 1 / (1 + np.exp(-u / 0.04))
    return p.dome_right + (p.dome_left - p.dome_right) * left + shape


def _body(
    p: Patient, v: Array, across: Array, iu: NDArray[np.intp], iv: NDArray[np.intp], lateral: NDArray[np.float64]
) -> tuple[Array, Array]:
    """Return the thickness of the body, 0..1, and of the rib cage, 0..1."""
    cage = np.where(_AXIS < 0.1, np.maximum(lateral, 0.3), lateral)
    side = np.maximum(cage, p.lung_width * 0.97) + p.chest_wall + 1.4 / (1 + np.exp((_AXIS + 0.42) * 14))
    beyond = np.clip(np.abs(_AXIS) - 0.22, 0, None)
    neck = 0.5 * np.clip(0.34 - np.abs(_AXIS), 0, None)
    below_shoulder = v - _look(p.shoulder - 0.04 + 0.30 * beyond + 0.16 * beyond * beyond - neck, iu)
    torso = np.minimum(_look(side, iv) - across, np.maximum(below_shoulder, np.float32(0.30) - across))
    body = 0.8 * _ramp(torso, 0.24) + np.float32(0.2) * (torso > 0)
    if p.arm_gap < 1.25:
        np.maximum(body, 0.75 * _ramp(np.minimum(across - p.arm_gap, below_shoulder), 0.16), out=body)
    return body, _ramp(_look(cage, iv) + 0.035 - across, 0.03)


def _ribs(p: Patient, v: Array, across: Array, iu: NDArray[np.intp], lateral: Array, below: Array) -> Array:
    """Return posterior ribs, falling outwards, and fainter anterior ribs, falling inwards."""
    axis = np.abs(_AXIS)
    outward = across / np.maximum(lateral, np.float32(0.2))
    np.minimum(outward, 1.1, out=outward)
    outward *= outward
    fall = _look(p.rib_slope * (axis - 0.2) ** 2, iu) + 0.10 * outward * outward * outward
    phase = (v - fall) * (1 / p.rib_spacing) + p.rib_phase
    posterior = _rib_profile(0.44).take((phase * 256).astype(np.int16) & 255)
    phase = (v + 0.55 * across) * (0.92 / p.rib_spacing) + 1.7 * p.rib_phase
    anterior = _rib_profile(0.5).take((phase * 256).astype(np.int16) & 255)
    anterior *= _look(0.45 * np.clip(axis * 3 - 0.7, 0, 1), iu)
    anterior += posterior
    anterior *= _look(p.rib_density * np.clip((axis - 0.06) * 6, 0, 1), iu)
    anterior *= 1 - 0.65 * below
    return anterior


@lru_cache(maxsize=4)
def _rib_profile(share: float) -> Array:
    """Return the profile of a rib and the next gap: dense edges (cortex) about a lighter middle."""
    t = (np.arange(256) / 256 - 0.5) / (share / 2)
    core = 0.62 / (1 + np.exp((np.abs(t) - 1) * 14))
    return (core + 0.45 * np.exp(-(((np.abs(t) - 0.85) / 0.17) ** 2))).astype(np.float32)


def _spine_and_airway(p: Patient, iu: NDArray[np.intp], iv: NDArray[np.intp]) -> Array:
    width = 0.078
    across_spine = 0.06 / (1 + np.exp((np.abs(_AXIS) - width) * 60)) + 0.03 * _bump(np.abs(_AXIS), width, 0.014)
    discs = 0.72 + 0.28 * np.tanh(3 * np.cos(2 * np.pi * (_AXIS / (p.rib_spacing * 0.98) + p.rib_phase)) + 1.5)
    spine = _look(across_spine, iu) * _look(discs, iv)
    tube = -0.17 * _bump(_AXIS - 0.012, 0.0, 0.040)
    along = 1 / (1 + np.exp((_AXIS + 0.27) * 30))
    return spine + _look(tube, iu) * _look(along, iv)


def _add_clavicles(p: Patient, attenuation: Array, u: Array, v: Array, across: Array) -> None:
    rows = slice(0, int(len(v) * 0.5))
    a, height = across[rows], v[rows]
    tilt = np.float32(p.clavicle_tilt)
    centre = p.clavicle - tilt * a - 0.05 * np.sin(4.2 * (a - 0.1)) + 0.08
    centre += np.where(u[rows] > 0, np.float32(0.012), np.float32(-0.012))
    off = np.abs(height - centre) * np.float32(1 / 0.038)
    band = np.clip(1.6 - 1.6 * off, 0, 1) * (0.7 + 0.5 * np.clip(off - 0.2, 0, 1))
    band *= np.clip((a - 0.07) * 14, 0, 1) * np.clip((0.92 - a) * 6, 0, 1)
    head = 1 - ((a - 0.98) / 0.17) ** 2 - ((height - p.clavicle - 0.05) / 0.17) ** 2
    blade = np.abs(a - (p.lung_width + 0.06 + 0.25 * (p.clavicle + 0.25 - height)))
    scapula = np.clip(1 - blade * 30, 0, 1) * np.clip((height - p.clavicle - 0.06) * 8, 0, 1)
    scapula *= np.clip((0.62 + p.clavicle - height) * 6 + 0.5, 0, 1)
    attenuation[rows] += 0.13 * band + 0.15 * np.sqrt(np.clip(head, 0, 1)) + 0.06 * scapula


def _add_soft_tissue(p: Patient, attenuation: Array, u: Array, v: Array, from_dome: Array, body: Array) -> None:
    """Add breasts over the lower zones, and gas in the stomach and bowel under the left dome."""
    if p.breast > 0:
        rows = slice(int(len(v) * 0.35), None)
        shape = ((np.abs(u[rows]) - 0.42) / 0.36) ** 2 + ((v[rows] - p.breast_height) / 0.34) ** 2
        edge = np.clip((1 - shape) * 1.6, 0, 1)
        attenuation[rows] += p.breast * edge * np.clip(1.2 + (v[rows] - p.breast_height) * 2, 0.2, 1.3)
    if p.stomach > 0:
        rows = slice(int(len(v) * 0.5), None)
        middle = p.dome_left + 0.17
        gas = 1 - ((u[rows] - 0.34) / (0.13 + p.stomach)) ** 2 - ((v[rows] - middle) / (0.07 + 0.4 * p.stomach)) ** 2
        attenuation[rows] -= 0.22 * np.sqrt(np.clip(gas * 1.5, 0, 1)) * (from_dome[rows] < -0.012) * body[rows]


def _vessels(p: Patient, u: Array, v: Array, across: Array, is_left: NDArray[np.bool_]) -> Array:
    trees = _vessel_trees()
    _, height, width = trees.shape
    column = ((across - 0.07) * _TREE_SCALE).astype(np.intp)
    row = ((v + 0.08) * _TREE_SCALE).astype(np.intp) + height // 2
    np.clip(column, 0, width - 1, out=column)
    np.clip(row, 0, height - 1, out=row)
    which = np.where(is_left, p.tree_left * height, p.tree_right * height)
    return trees.reshape(-1, width)[which + row, column]


@lru_cache(maxsize=1)
def _vessel_trees() -> Array:
    """Return (_TREES, H, W) branching vessels from a hilum in the middle of the left edge, 0..1."""
    random = np.random.default_rng(20231114)
    height, width = int(1.7 * _TREE_SCALE), int(0.8 * _TREE_SCALE)
    trees = np.zeros((_TREES, height, width), np.float32)
    for tree in trees:
        start = (height / 2 + random.normal(0, 3), 4.0)
        count = int(random.integers(7, 10))
        angles = np.linspace(-1.45, 1.45, count) + random.normal(0, 0.13, count)
        pending = [(start, a, random.uniform(2.0, 3.4), random.uniform(14, 26)) for a in angles]
        stamps: list[tuple[float, float, float]] = []
        while pending:
            (y, x), angle, thick, length = pending.pop()
            for _ in range(int(length)):
                angle += random.normal(0, 0.07)
                y, x = y + np.sin(angle), x + np.cos(angle)
                thick *= 0.988
                stamps.append((y, x, thick))
            if thick > 0.55:
                fork = random.uniform(0.2, 0.55)
                for turn in (fork, -random.uniform(0.1, 0.45)):
                    pending.append(((y, x), angle + turn, thick * random.uniform(0.62, 0.85), random.uniform(9, 20)))
        _stamp(tree, np.array(stamps))
    return np.minimum(trees, 1)


def _stamp(tree: Array, stamps: NDArray[np.float64]) -> None:
    """Draw blobs at (N, 3) row, column, thickness; overlaps keep the maximum."""
    y, x, thick = (part[:, None, None] for part in stamps.T)
    reach = np.arange(-4, 5)
    rows, columns = y.astype(np.intp) + reach[:, None], x.astype(np.intp) + reach
    apart = (rows - y) ** 2 + (columns - x) ** 2
    blobs = np.minimum(1.0, 0.35 + 0.22 * thick) * np.exp(-apart / (0.45 * thick * thick + 0.25))
    inside = (rows >= 0) & (rows < tree.shape[0]) & (columns >= 0) & (columns < tree.shape[1])
    pixels = (rows * tree.shape[1] + columns)[inside]
    np.maximum.at(tree.reshape(-1), pixels, blobs[inside].astype(np.float32))


# Pictures -------------------------------------------------------------------------------------------------------------


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
        lookup(PLANT, "shortcut", name)
    if size < 32:
        raise UserError(f"size {size}: too small for a synthetic X-ray. Choose 32 or more")
    anatomy, disease, exposure = (np.random.default_rng([seed, part]) for part in range(3))
    patient = draw_patient(anatomy)
    thorax = lay_out(patient, size)
    density, infected = draw_lesion(class_name, thorax, patient, disease, size)
    attenuation = thorax.attenuation + np.float32(conspicuity) * density
    radiograph = _expose(attenuation, exposure, size, grain=2.5 if "scanner_noise" in shortcuts else 1.0)
    marks: dict[str, NDArray[np.uint8]] = {}
    for number, (name, plant) in enumerate(PLANT.items()):
        if name in shortcuts:
            radiograph, mark = plant(radiograph, np.random.default_rng([seed, 3, number]), thorax)
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
    ragged = sum(share * draw_cloud(random, cells, _COARSE) for share, cells in ((0.9, 9), (0.6, 18), (0.4, 36)))
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
    lookup(PLANT, "shortcut", kind)
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
    return image + random.normal(0, 0.012, (1, image.shape[1])).astype(np.float32), np.ones(image.shape, bool)


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
    plant.__name__.removeprefix("_"): plant for plant in (_marker, _border, _brightness, _scanner_noise, _tube)
}
SHORTCUTS = tuple(PLANT)
