"""Plant shortcuts in synthetic X-rays, with their masks, for a model to learn instead of the disease."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trustcxr.data.phantom.anatomy import CLASSES, Array, Thorax, enlarger
from trustcxr.errors import UserError, unknown

SHORTCUTS = ("marker", "border", "brightness", "scanner_noise", "tube")


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
