"""How the report writes numbers and names. A value that is missing is a dash; nothing is ever made up for it."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from trustcxr.catalogue import CORRUPTIONS, MEASURES, SALIENCY, Method, attack_said

DASH = "–"
MINUS = "−"
STANDARD = "standard"
_ABBREVIATED = {"val": "validation", "pgd": "PGD", "fgsm": "FGSM", "f1": "F1", "auroc": "AUROC"}


def finite(value: Any) -> float | None:
    """The value as a float, or None where it is no finite number."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def interval(value: Any) -> tuple[float, float] | None:
    """A (low, high) pair of finite numbers, or None."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        return None
    low, high = finite(value[0]), finite(value[1])
    return None if low is None or high is None else (low, high)


def get(document: Any, *keys: str) -> Any:
    """The value under nested keys of a JSON document, or None where any of them is missing."""
    for key in keys:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def records(value: Any) -> list[dict[str, Any]]:
    """The dictionaries of a JSON list; an empty list for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def decimal(value: Any, digits: int = 3) -> str:
    """0.123 with a true minus sign, or a dash."""
    number = finite(value)
    if number is None:
        return DASH
    return f"{number + 0.0:.{digits}f}".replace("-", MINUS) if round(number, digits) else f"{0:.{digits}f}"


def signed(value: Any, digits: int = 3) -> str:
    """+0.012 or −0.012, or a dash."""
    text = decimal(value, digits)
    return text if text == DASH or text.startswith(MINUS) or not float(text) else "+" + text


def hundred(value: Any, digits: int = 1) -> str:
    """A share of one as a figure out of a hundred, without the sign: 0.823 is 82.3."""
    number = finite(value)
    return DASH if number is None else decimal(100 * number, digits)


def percent(value: Any, digits: int = 1) -> str:
    """82.3 % (with a space that does not break), or a dash."""
    text = hundred(value, digits)
    return text if text == DASH else f"{text}\u00a0%"


def between(value: Any, digits: int = 3, *, scale: float = 1.0, reveal: bool = False) -> str:
    """An interval as medical journals write it, `0.10 to 0.20`, or an empty string.

    `reveal`: more digits where a bound that is not zero would be written as zero, and hide on which side it lies.
    """
    pair = interval(value)
    if pair is None:
        return ""
    ends = [scale * end for end in pair]
    while reveal and digits < 6 and any(end and not round(end, digits) for end in ends):
        digits += 1
    return " to ".join(decimal(end, digits) for end in ends)


def count(value: Any) -> str:
    """12,345, or a dash."""
    number = finite(value)
    return DASH if number is None else f"{number:,.0f}"


def p_value(value: Any) -> str:
    """Two significant figures, `< 0.001` below that, or a dash."""
    number = finite(value)
    if number is None:
        return DASH
    if number < 0.001:
        return "<\u00a00.001"
    return f"{number:.3f}" if number < 0.01 else f"{number:.2f}"


def epsilon(value: Any) -> str:
    """An epsilon without trailing zeros: 0.02."""
    number = finite(value)
    return DASH if number is None else f"{number:.6g}"


def seconds(value: Any) -> str:
    """As the terminal writes it: 42 s, 3 min 20 s, 2 h 5 min; or a dash."""
    from trustcxr.console import duration

    number = finite(value)
    return DASH if number is None else duration(number)


def attack(name: Any, steps: Any = None) -> str:
    """FGSM, or PGD-20 where the number of steps is known."""
    number = finite(steps)
    return attack_said(name, None if number is None else f"{number:.0f}")


def corruption(name: Any) -> str:
    """A corruption's key as words: `Gaussian noise`, `leads and tubes`."""
    entry = CORRUPTIONS.get(str(name))
    return entry.label if entry else str(name).replace("_", " ")


def method(name: Any) -> str:
    """The published name of a saliency method: Grad-CAM; `layercam@-2` is LayerCAM, stage −2."""
    said = Method.parse(str(name))
    known = SALIENCY[said.base].label if said.base in SALIENCY else said.base
    layer = said.layer
    if layer is None:
        return known
    return f"{known}, stage {layer.replace('-', MINUS)}" if layer.startswith("-") else f"{known}, {layer}"


def measure(name: Any) -> str:
    """A measure's key as words: `infection energy`; `pgd accuracy @0.02` is `PGD accuracy at 0.02`."""
    attacked = re.fullmatch(r"(\S+) accuracy @(\S+)", str(name))
    if attacked:
        return f"{attack(attacked[1])} accuracy at {attacked[2]}"
    part = re.fullmatch(r"((?:lungs|box|border|silhouette).*) accuracy", str(name))
    if part:
        return f"accuracy, {part[1]}"
    entry = MEASURES.get(str(name))
    return entry.label if entry else " ".join(_ABBREVIATED.get(word, word) for word in str(name).split("_"))


def plural(number: int, one: str, many: str | None = None) -> str:
    """`1 run`, `2 runs`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(items: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    words = list(items)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else DASH


def way(defence: object, background: object) -> str:
    """How a run was trained: its defence, and its background where that is not the whole image."""
    return str(defence) if str(background or "full") == "full" else f"{defence} (background {background})"
