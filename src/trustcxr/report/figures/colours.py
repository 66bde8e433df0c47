"""A colour of a drawing on white, and what stands for it on a dark page."""

import re
from collections.abc import Iterator, Sequence

# sRGB to CIE XYZ and back (IEC 61966-2-1), and the white of D65.
_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
_FROM_XYZ = ((3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570))
_WHITE = (0.9505, 1.0, 1.089)


def coloured(colour: str) -> str:
    """A colour as the page names it, so that it has another one on a dark page."""
    return f"var(--c{colour.lstrip('#').lower()})"


def palette(page: str) -> Iterator[tuple[str, str, str]]:
    """Every colour that the drawings of a page name: its variable, what it is on white, what on a dark page."""
    for digits in sorted(set(re.findall(r"var\(--c([0-9a-f]{6})\)", page))):
        yield f"--c{digits}", f"#{digits}", on_dark(f"#{digits}")


def on_dark(colour: str) -> str:
    """A colour for a dark page: as light as it was dark, its CIE L*a*b* otherwise kept as far as a screen can show it.

    So colours that differ on white differ as much there.
    """
    light, a, b = lab(colour)
    shown = 100 - 0.94 * light
    for kept in range(20, -1, -1):  # what no screen can show becomes paler, and keeps hue and lightness
        rgb = _rgb(shown, a * kept / 20, b * kept / 20)
        if all(-0.001 <= part <= 1.001 for part in rgb):
            break
    return "#" + "".join(f"{round(255 * min(max(part, 0.0), 1.0)):02x}" for part in rgb)


def lab(colour: str) -> tuple[float, float, float]:
    """CIE L*, a*, b* of #rrggbb, under D65."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    x, y, z = (_bent(part / white) for part, white in zip(_times(_TO_XYZ, linear), _WHITE, strict=True))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _rgb(light: float, a: float, b: float) -> list[float]:
    y = (light + 16) / 116
    bent = (y + a / 500, y, y - b / 200)
    xyz = [
        white * (f**3 if f > 6 / 29 else 3 * (6 / 29) ** 2 * (f - 4 / 29))
        for f, white in zip(bent, _WHITE, strict=True)
    ]
    linear = _times(_FROM_XYZ, xyz)
    return [12.92 * p if p <= 0.0031308 else 1.055 * p ** (1 / 2.4) - 0.055 for p in linear]


def _bent(part: float) -> float:
    return part ** (1 / 3) if part > (6 / 29) ** 3 else part / (3 * (6 / 29) ** 2) + 4 / 29


def _times(matrix: Sequence[Sequence[float]], vector: Sequence[float]) -> list[float]:
    return [sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix]
