"""Format numbers and names for the report; a missing value is a dash."""

import math
import re
from collections.abc import Iterable, Sequence

from trustcxr.console import format_duration
from trustcxr.console import plural as plural
from trustcxr.registry import ATTACKS, CORRUPTIONS, MEASURES, Method
from trustcxr.registry import format_attack as attack
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import Attacked, Comparison, Share

DASH = "–"
MINUS = "−"
STANDARD = "standard"
_ABBREVIATED = {"val": "validation", "f1": "F1", "auroc": "AUROC"} | {a.name: a.label for a in ATTACKS.values()}


def finite(value: float | None) -> float | None:
    """Return the value as a float, or None if it is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def decimal(value: float | None, digits: int = 3) -> str:
    """Return 0.123 with a true minus sign, or a dash."""
    number = finite(value)
    if number is None:
        return DASH
    return f"{number + 0.0:.{digits}f}".replace("-", MINUS) if round(number, digits) else f"{0:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """Return +0.012 or −0.012, or a dash."""
    text = decimal(value, digits)
    return text if text == DASH or text.startswith(MINUS) or not float(text) else "+" + text


def percent_number(value: float | None, digits: int = 1) -> str:
    """Return a share in percent without the sign: 82.3 for 0.823."""
    return decimal(None if value is None else 100 * value, digits)


def percent(value: float | None, digits: int = 1) -> str:
    """Return 82.3 % with a no-break space, or a dash."""
    text = percent_number(value, digits)
    return text if text == DASH else f"{text}\u00a0%"


def range_text(
    ends: Sequence[float | None] | None, digits: int = 3, *, scale: float = 1.0, reveal: bool = False
) -> str:
    """Return an interval as `0.10 to 0.20`, or an empty string.

    `reveal`: use more digits if a bound near zero would be rounded to zero.
    """
    finite_ends = [number for number in map(finite, ends or ()) if number is not None]
    pair = [scale * end for end in finite_ends] if len(finite_ends) == 2 else []
    while reveal and digits < 6 and any(end and not round(end, digits) for end in pair):
        digits += 1
    return " to ".join(decimal(end, digits) for end in pair)


def interval(ends: Sequence[float | None] | None, digits: int = 3, *, scale: float = 1.0, reveal: bool = False) -> str:
    """Return ` (95 % CI 79.0 to 85.3)`, to follow a figure; empty without an interval."""
    inside = range_text(ends, digits, scale=scale, reveal=reveal)
    return f" (95\u00a0% CI {inside})" if inside else ""


def with_count(figure: Share, n: float | None = None) -> str:
    """Return `82.3 % (95 % CI 79.0 to 85.3, n = 570)`."""
    inside = range_text(figure.interval, 1, scale=100)
    parts = [f"95\u00a0% CI {inside}" if inside else "", "" if n is None else f"n\u00a0=\u00a0{count(n)}"]
    brackets = ", ".join(filter(None, parts))
    return percent(figure.value) + (f" ({brackets})" if brackets else "")


def ratio(value: float | None) -> str:
    """Return a likelihood ratio; a missing one is infinite."""
    return "∞" if value is None else f"{value:.3g}"


def count(value: float | None) -> str:
    """Return 12,345, or a dash."""
    return DASH if value is None else f"{value:,.0f}"


def p_value(value: float | None) -> str:
    """Return two significant figures, `< 0.001` below that, or a dash; more if they would hide the side of 0.05."""
    if value is None:
        return DASH
    if value < 0.001:
        return "<\u00a00.001"
    if value >= 0.1:
        return f"{value:.2f}"
    texts = (f"{value:.{digits}g}" for digits in range(2, 17))
    return next((text for text in texts if (float(text) < 0.05) == (value < 0.05)), f"{value}")


def epsilon(value: float | None) -> str:
    """Return an epsilon without trailing zeros: 0.02."""
    return DASH if value is None else f"{value:.6g}"


def seconds(value: float | None) -> str:
    """Return a time as the terminal shows it: 42 s, 3 min 20 s, 2 h 5 min; or a dash."""
    return DASH if value is None else format_duration(value)


def condition(part: Attacked) -> str:
    """Return `unperturbed`, or the attack with its epsilon: `PGD-20 0.02`."""
    return "unperturbed" if part.attack == CLEAN else f"{part.effort.name} {part.epsilon:g}"


def corruption(name: object) -> str:
    """Return a corruption's key as words: `Gaussian noise`, `leads and tubes`."""
    entry = CORRUPTIONS.get(str(name))
    return entry.label if entry else str(name).replace("_", " ")


def method(name: object) -> str:
    """Return the published name of a saliency method: Grad-CAM; LayerCAM, stage −2 for `layercam@-2`."""
    return Method.parse(str(name)).label.replace(", stage -", f", stage {MINUS}")


def measure(name: object) -> str:
    """Return a measure's key as words: `infection energy`, `PGD accuracy at 0.02`."""
    if attacked := re.fullmatch(r"(\S+) accuracy @(\S+)", str(name)):
        return f"{attack(attacked[1])} accuracy at {attacked[2]}"
    if part := re.fullmatch(r"((?:lungs|box|border|silhouette).*) accuracy", str(name)):
        return f"accuracy, {part[1]}"
    entry = MEASURES.get(str(name))
    return entry.label if entry else " ".join(_ABBREVIATED.get(word, word) for word in str(name).split("_"))


def part(name: str) -> str:
    """Return the name of a part of a network: layer4; 0.layer4 + 1.layer4 for an ensemble."""
    return name.replace("net.nets.", "").replace("net.", "")


def join_words(items: Iterable[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    words = list(items)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else DASH


def join_counts(counts: Iterable[int | None]) -> str:
    """Return the different counts as `90 and 120`, lowest first, or a dash."""
    return join_words(count(n) for n in sorted({n for n in counts if n is not None}))


def capital(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def variant(background: object, label: str = "", seed: str = "") -> str:
    """Return what differs between runs of one network and defence: label, background unless full, seed."""
    beyond = "" if str(background or "full") == "full" else f"background {background}"
    return ", ".join(part for part in (label, beyond, seed) if part)


def qualifiers(rows: Sequence[Comparison]) -> list[str]:
    """Return what tells comparisons of one network and defence apart: label, background, seed if there are several."""
    seeded = len({row.seed for row in rows}) > 1
    seeds = [f"seed {row.seed}" if seeded and row.seed is not None else "" for row in rows]
    return [variant(row.background, row.label, seed) for row, seed in zip(rows, seeds, strict=True)]
