"""How the report writes numbers and names. A value that is missing is a dash; nothing is ever made up for it."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import SupportsFloat

from trustcxr.registry import ATTACKS, CORRUPTIONS, MEASURES, SALIENCY, Method, format_attack
from trustcxr.storage.schemas import Share

DASH = "–"
MINUS = "−"
STANDARD = "standard"
_ABBREVIATED = {"val": "validation", "f1": "F1", "auroc": "AUROC"} | {a.name: a.label for a in ATTACKS.values()}
Value = SupportsFloat | str | None  # a number as a document or a table has it


def finite(value: Value) -> float | None:
    """The value as a float, or None where it is no finite number."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _interval(ends: Sequence[float | None] | None) -> tuple[float, float] | None:
    """A (low, high) pair of finite numbers, or None."""
    low, high = map(finite, ends or (None, None))
    return None if low is None or high is None else (low, high)


def decimal(value: Value, digits: int = 3) -> str:
    """0.123 with a true minus sign, or a dash."""
    number = finite(value)
    if number is None:
        return DASH
    return f"{number + 0.0:.{digits}f}".replace("-", MINUS) if round(number, digits) else f"{0:.{digits}f}"


def signed(value: Value, digits: int = 3) -> str:
    """+0.012 or −0.012, or a dash."""
    text = decimal(value, digits)
    return text if text == DASH or text.startswith(MINUS) or not float(text) else "+" + text


def percent_number(value: Value, digits: int = 1) -> str:
    """A share of one as a figure out of a hundred, without the sign: 0.823 is 82.3."""
    number = finite(value)
    return DASH if number is None else decimal(100 * number, digits)


def percent(value: Value, digits: int = 1) -> str:
    """82.3 % (with a space that does not break), or a dash."""
    text = percent_number(value, digits)
    return text if text == DASH else f"{text}\u00a0%"


def range_text(
    ends: Sequence[float | None] | None, digits: int = 3, *, scale: float = 1.0, reveal: bool = False
) -> str:
    """An interval as medical journals write it, `0.10 to 0.20`, or an empty string.

    `reveal`: more digits where a bound that is not zero would be written as zero, and hide on which side it lies.
    """
    pair = [scale * end for end in _interval(ends) or ()]
    while reveal and digits < 6 and any(end and not round(end, digits) for end in pair):
        digits += 1
    return " to ".join(decimal(end, digits) for end in pair)


def interval(ends: Sequence[float | None] | None, digits: int = 3, *, scale: float = 1.0, reveal: bool = False) -> str:
    """` (95 % CI 79.0 to 85.3)`, to stand behind a figure; empty where there is no interval."""
    inside = range_text(ends, digits, scale=scale, reveal=reveal)
    return f" (95\u00a0% CI {inside})" if inside else ""


def with_count(found: Share, n: Value = None) -> str:
    """82.3 % (95 % CI 79.0 to 85.3, n = 570)."""
    inside = range_text(found.interval, 1, scale=100)
    told = [f"95\u00a0% CI {inside}" if inside else "", "" if n is None else f"n\u00a0=\u00a0{count(n)}"]
    brackets = ", ".join(filter(None, told))
    return percent(found.value) + (f" ({brackets})" if brackets else "")


def count(value: Value) -> str:
    """12,345, or a dash."""
    number = finite(value)
    return DASH if number is None else f"{number:,.0f}"


def p_value(value: Value) -> str:
    """Two significant figures, `< 0.001` below that, or a dash."""
    number = finite(value)
    if number is None:
        return DASH
    if number < 0.001:
        return "<\u00a00.001"
    return f"{number:.3f}" if number < 0.01 else f"{number:.2f}"


def epsilon(value: Value) -> str:
    """An epsilon without trailing zeros: 0.02."""
    number = finite(value)
    return DASH if number is None else f"{number:.6g}"


def seconds(value: Value) -> str:
    """As the terminal writes it: 42 s, 3 min 20 s, 2 h 5 min; or a dash."""
    from trustcxr.console import duration

    number = finite(value)
    return DASH if number is None else duration(number)


def attack(name: object, steps: Value = None) -> str:
    """FGSM, or PGD-20 where the number of steps is known."""
    number = finite(steps)
    return format_attack(name, None if number is None else f"{number:.0f}")


def corruption(name: object) -> str:
    """A corruption's key as words: `Gaussian noise`, `leads and tubes`."""
    entry = CORRUPTIONS.get(str(name))
    return entry.label if entry else str(name).replace("_", " ")


def method(name: object) -> str:
    """The published name of a saliency method: Grad-CAM; `layercam@-2` is LayerCAM, stage −2."""
    said = Method.parse(str(name))
    known = SALIENCY[said.base].label if said.base in SALIENCY else said.base
    layer = said.layer
    if layer is None:
        return known
    return f"{known}, stage {layer.replace('-', MINUS)}" if layer.startswith("-") else f"{known}, {layer}"


def measure(name: object) -> str:
    """A measure's key as words: `infection energy`; `pgd accuracy @0.02` is `PGD accuracy at 0.02`."""
    attacked = re.fullmatch(r"(\S+) accuracy @(\S+)", str(name))
    if attacked:
        return f"{attack(attacked[1])} accuracy at {attacked[2]}"
    part = re.fullmatch(r"((?:lungs|box|border|silhouette).*) accuracy", str(name))
    if part:
        return f"accuracy, {part[1]}"
    entry = MEASURES.get(str(name))
    return entry.label if entry else " ".join(_ABBREVIATED.get(word, word) for word in str(name).split("_"))


def part(name: str) -> str:
    """A part of a network as its table says it: layer4; of networks side by side 0.layer4 + 1.layer4."""
    return name.replace("net.nets.", "").replace("net.", "")


def plural(number: int, one: str, many: str | None = None) -> str:
    """`1 run`, `2 runs`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def join_words(items: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    words = list(items)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else DASH


def capital(text: str) -> str:
    """The text with its first letter large."""
    return text[:1].upper() + text[1:]


def training_name(defence: object, background: object, label: str = "") -> str:
    """How a run was trained: its defence, its label where it has one, its background where not the whole image."""
    parts = variant(background, label)
    return f"{defence} ({parts})" if parts else str(defence)


def variant(background: object, label: str = "", seed: str = "") -> str:
    """What tells runs of one network and defence apart: label, background where not the whole image, seed."""
    beyond = "" if str(background or "full") == "full" else f"background {background}"
    return ", ".join(part for part in (label, beyond, seed) if part)
