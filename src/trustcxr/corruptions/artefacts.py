"""Draw artefacts on images: letters, arrows, the collimator's border, leads and tubes, a device.

Each artefact draws onto a layer of opacity, in shares of the side, and returns its brightness [0, 1]. `random` gives
the same draws at every severity.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import ceil, cos, pi, sin

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trustcxr.corruptions.acquisition import ImageRandom

Point = Sequence[float] | NDArray[np.float64]  # across and down, shares of the side
DRAWN = 0.05  # least opacity of a pixel of the artefact
_FINE = 448  # pixels of a layer's side at least, before it is reduced to the image

WORDS = (("PORTABLE", "ICU", "SITTING"), ("AP SUPINE", "AP ERECT", "AP"), ("08:15", "14:20", "22:40"))
LETTER = (0.055, 0.065, 0.08, 0.095, 0.115)  # height of a side marker
WORD_COUNT = (0, 1, 1, 2, 3)
ARROW = (0.09, 0.11, 0.13, 0.15, 0.18)  # length
ARROW_COUNT = (1, 1, 2, 3, 4)
BORDER = (0.02, 0.045, 0.075, 0.105, 0.14)  # mean width on each edge
LEADS = (1, 2, 3, 4, 5)
TUBES = (0, 1, 1, 2, 2)
LEAD_OPACITY = (0.4, 0.5, 0.6, 0.7, 0.8)
DEVICE = (0.07, 0.085, 0.105, 0.125, 0.15)  # width
DEVICE_LEADS = (1, 1, 2, 2, 3)


class Layer:
    """A layer of opacity, drawn larger than the image; coordinates and widths are shares of the side."""

    def __init__(self, height: int, width: int) -> None:
        self.enlarged = max(2, ceil(_FINE / min(height, width)))
        self.sheet = Image.new("L", (width * self.enlarged, height * self.enlarged))
        self.pen = ImageDraw.Draw(self.sheet)

    def at(self, points: Sequence[Point]) -> list[tuple[float, float]]:
        """Convert shares of the sides to pixels of the sheet."""
        width, height = self.sheet.size
        return [(x * width, y * height) for x, y in points]

    def length(self, share: float) -> float:
        """Convert a share of the side to pixels of the sheet."""
        return share * min(self.sheet.size)

    def line(self, points: Sequence[Point], width: float, opacity: float) -> None:
        """Draw a line through points with round joints."""
        self.pen.line(self.at(points), round(255 * opacity), max(round(self.length(width)), 1), joint="curve")

    def disc(self, middle: Point, radius: float, opacity: float) -> None:
        """Draw a filled circle."""
        (x, y), r = self.at([middle])[0], self.length(radius)
        self.pen.ellipse((x - r, y - r, x + r, y + r), round(255 * opacity))

    def polygon(self, points: Sequence[Point], opacity: float) -> None:
        """Draw a filled polygon."""
        self.pen.polygon(self.at(points), round(255 * opacity))

    def write(self, text: str, middle: Point, height: float, angle: float = 0.0) -> None:
        """Draw opaque text centred on a point, moved inwards if it would leave the image; `angle` in degrees."""
        font = _font(max(round(self.length(height)), 4))
        left, top, right, bottom = font.getbbox(text)
        tile = Image.new("L", (ceil(right - left) + 2, ceil(bottom - top) + 2))
        ImageDraw.Draw(tile).text((1 - left, 1 - top), text, fill=255, font=font)
        tile = tile.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        corner = [
            round(min(max(m - size / 2, 0.02 * whole), 0.98 * whole - size))
            for m, size, whole in zip(self.at([middle])[0], tile.size, self.sheet.size, strict=True)
        ]
        self.sheet.paste(255, (corner[0], corner[1]), tile)

    def opacity(self) -> Tensor:
        """Return the layer at the image's size, (H, W) in [0, 1]."""
        return torch.from_numpy(np.array(self.sheet.reduce(self.enlarged), dtype=np.float32)).div_(255)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # comes with Pillow: the same on every machine


Drawing = Callable[[Layer, np.random.Generator, int], float]


def paint(drawing: Drawing, images: Tensor, severity: int, draws: ImageRandom) -> tuple[Tensor, Tensor]:
    """Paint a drawing on each image (B, 1, H, W); return the images and its masks (B, H, W) bool."""
    height, width = images.shape[-2:]
    opacities, tones = torch.zeros(len(images), height, width), torch.zeros(len(images))
    for i, random in enumerate(draws.numpy()):
        layer = Layer(height, width)
        tones[i] = drawing(layer, random, severity)
        opacities[i] = layer.opacity()
    opacities = opacities.to(images.device)
    tone = tones.to(images.device)[:, None, None, None]
    return images.lerp(tone.expand_as(images), opacities[:, None]), opacities > DRAWN


def letters(layer: Layer, random: np.random.Generator, severity: int) -> float:
    """Draw L or R in an upper corner, and words along the edges."""
    tone, left = random.uniform(0.88, 1.0), random.random() < 0.5
    x, y, angle = random.uniform(0.05, 0.14), random.uniform(0.05, 0.16), random.normal(0, 6)
    # The patient's right is on the left of the image.
    layer.write("R" if left else "L", (x if left else 1 - x, y), LETTER[severity - 1], angle)
    chosen = [str(random.choice(words)) for words in WORDS]
    points = [(1 - x if left else x, random.uniform(0.04, 0.1)), (random.uniform(0.1, 0.3), 0.95), (0.82, 0.95)]
    for text, point in list(zip(chosen, points, strict=False))[: WORD_COUNT[severity - 1]]:
        layer.write(text, point, 0.6 * LETTER[severity - 1])
    return tone


def arrows(layer: Layer, random: np.random.Generator, severity: int) -> float:
    """Draw arrows with tips over the lungs; white, sometimes black."""
    tone = 1.0 if random.random() < 0.8 else 0.0
    long = ARROW[severity - 1]
    for _ in range(ARROW_COUNT[severity - 1]):
        tip = np.array([random.choice([0.3, 0.7]) + random.uniform(-0.1, 0.1), random.uniform(0.25, 0.7)])
        direction = random.uniform(0, 2 * pi)
        along = np.array([cos(direction), sin(direction)])
        across = np.array([-along[1], along[0]])
        head = tip + 0.42 * long * along
        layer.line([tip + long * along, head], 0.13 * long, 1.0)
        layer.polygon([tip, *(head + side * 0.19 * long * across for side in (1, -1))], 1.0)
    return tone


def collimation_border(layer: Layer, random: np.random.Generator, severity: int) -> float:
    """Draw black outside a window that is slightly tilted."""
    mean, tone = BORDER[severity - 1], random.uniform(0.0, 0.03)
    left, top, right, bottom = mean * random.uniform(0.5, 1.5, 4)
    tilt = random.uniform(-0.35, 0.35) * mean
    window = [(left, top + tilt), (1 - right - tilt, top), (1 - right, 1 - bottom - tilt), (left + tilt, 1 - bottom)]
    layer.polygon([(0, 0), (1, 0), (1, 1), (0, 1)], 1.0)
    layer.polygon(window, 0.0)
    return tone


def leads_and_tubes(layer: Layer, random: np.random.Generator, severity: int) -> float:
    """Draw wires from electrodes on the skin out of the image, and tubes from the neck down."""
    opacity = LEAD_OPACITY[severity - 1]
    # Electrodes on the shoulders and along the ribs, and the edge where each wire leaves.
    spots = [(0.22, 0.22), (0.78, 0.22), (0.2, 0.78), (0.8, 0.76), (0.56, 0.62)]
    edges = [(0.0, 0.1), (1.0, 0.08), (0.0, 0.95), (1.0, 0.97), (0.66, 1.0)]
    order, shifts = random.permutation(len(spots)), random.uniform(-1, 1, (len(spots), 3, 2))
    tone, tubes = random.uniform(0.9, 1.0), random.uniform(0, 1, (max(TUBES), 3))
    for number in order[: LEADS[severity - 1]]:
        start = np.array(spots[number]) + 0.05 * shifts[number, 0]
        out = np.clip(np.array(edges[number]) + 0.06 * shifts[number, 1], -0.02, 1.02)
        bend = (start + out) / 2 + 0.16 * shifts[number, 2]
        layer.line(draw_curve([start, bend, out]), 0.008, opacity)
        layer.disc(start, 0.026, 0.35 * opacity)
        layer.disc(start, 0.011, min(1.25 * opacity, 1.0))
    for number, (sideways, aside, depth) in enumerate(tubes[: TUBES[severity - 1]]):
        side = 0.04 * (sideways - 0.5)
        end = (0.46 + side + 0.12 * aside, 0.4 + 0.12 * depth if number == 0 else 0.98)
        path = draw_curve([(0.5 + side, -0.02), (0.5 - side + 0.02 * number, 0.3), end])
        layer.line(path, 0.02, 0.55 * opacity)
        layer.line(path, 0.011, 0.25 * opacity)  # its lumen is lighter than its walls
    return tone


def device(layer: Layer, random: np.random.Generator, severity: int) -> float:
    """Draw a pacemaker below a collar bone, most often the left, and its leads to the heart."""
    wide = DEVICE[severity - 1]
    side = 1 if random.random() < 0.8 else -1  # the patient's left is on the right of the image
    x, y = 0.5 + side * random.uniform(0.24, 0.3), random.uniform(0.2, 0.27)
    turn, tone = random.uniform(-0.4, 0.4), random.uniform(0.93, 1.0)
    for number in range(DEVICE_LEADS[severity - 1]):
        tip = (0.5 + random.uniform(0.0, 0.16), random.uniform(0.56, 0.72) - 0.1 * (number == 1))
        inlet = (0.5 + side * random.uniform(0.02, 0.06), 0.24 + 0.03 * number)
        loop = (x - side * random.uniform(0.02, 0.08), y - random.uniform(0.06, 0.12))
        path = draw_curve([(x, y), loop, inlet, (0.47, 0.42), tip])
        layer.line(path, 0.008, 0.85)
        layer.line(path[-6:], 0.014, 0.95)  # the electrode at its tip
    shape = rounded_box(wide / 2, 0.42 * wide, turn)
    inside = rounded_box(0.4 * wide, 0.24 * wide, turn)
    layer.polygon([(x + a, y + b) for a, b in shape], 0.95)
    layer.polygon([(x + a, y + b + 0.06 * wide) for a, b in inside], 0.78)
    return tone


def draw_curve(points: Sequence[Point], count: int = 40) -> list[Point]:
    """Return a Bézier curve of these control points."""
    rest = np.array(points, dtype=float)[:, None]
    t = np.linspace(0, 1, count)[None, :, None]
    while len(rest) > 1:  # de Casteljau
        rest = (1 - t) * rest[:-1] + t * rest[1:]
    return [(float(x), float(y)) for x, y in rest[0]]


def rounded_box(half_width: float, half_height: float, turn: float) -> list[Point]:
    """Return a box with very round corners about (0, 0), rotated by `turn` in radians."""
    around = np.linspace(0, 2 * pi, 48, endpoint=False)
    corners = [
        (half_width * np.sign(cos(a)) * abs(cos(a)) ** 0.5, half_height * np.sign(sin(a)) * abs(sin(a)) ** 0.5)
        for a in around
    ]
    return [(x * cos(turn) - y * sin(turn), x * sin(turn) + y * cos(turn)) for x, y in corners]
