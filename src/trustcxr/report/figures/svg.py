"""Matplotlib drawings as inline SVG, in the page's own colours and type."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trustcxr.catalogue import ATTACKS, DEFENCES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, RULE = "#1b2430", "#566273", "#d5dbe3"
CLEAN_STYLE = ("#1f4e79", "o")
_OTHER_STYLE = ("#6f4aa8", "D", (0, (1, 1.5)))
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trustcxr",
    "text.parse_math": False,  # a class may be called $x$
    "font.family": "DejaVu Sans",  # wide, so that text set in the reader's own font fits where this one did
    "font.size": 11,
    "axes.edgecolor": "#8793a3",
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
}


def attack_style(name: str) -> tuple[str, str, Any]:
    """Colour, marker and dash of an attack."""
    entry = ATTACKS.get(name)
    return (entry.style if entry else None) or _OTHER_STYLE


def defence_colour(name: str) -> str:
    """The colour of a defence, the same in every figure."""
    return DEFENCES[name].colour if name in DEFENCES else "#333333"


def draw(width: float, height: float, plot: "Callable[[Figure], None]", *, alt: str, key: str) -> str:
    """Draw into a figure of width x height CSS pixels and return it as an inline SVG element.

    `key` is unique in the page: it keeps this figure's ids apart from the others'.
    """
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width / 72, height / 72))
        figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)
        plot(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue(), width, height, alt, key)


def _inline(svg: str, width: float, height: float, alt: str, key: str) -> str:
    """Take out the XML prolog, metadata, namespaces and style, and make the ids the figure's own."""
    from html import escape

    body = svg[svg.index("<svg") :]
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<style\b.*?</style>", "", body, flags=re.S)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    body = body.replace("xlink:href=", "href=")
    used = set(re.findall(r"url\(#([^)]+)\)", body)) | set(re.findall(r'href="#([^"]+)"', body))
    body = re.sub(r'(<\w[^<>]*?) id="([^"]*)"', lambda m: m[0] if m[2] in used else m[1], body)
    for name in used:
        body = body.replace(f'id="{name}"', f'id="{key}-{name}"').replace(f"(#{name})", f"(#{key}-{name})")
        body = body.replace(f'href="#{name}"', f'href="#{key}-{name}"')
    body = re.sub(r" font-family: [^;\"]*;", "", body)  # the style sheet sets the page's own
    body = re.sub(r"<defs>\s*</defs>", "", body)
    body = re.sub(r"\n\s*", "\n", body)
    head = (
        f'<svg role="img" aria-label="{escape(alt)}" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}"><title>{escape(alt)}</title>'
    )
    return head + body


def _percent_axis(axis: Any, low: float = 0.0, high: float = 1.0) -> None:
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    axis.set_major_locator(MultipleLocator(0.25 if high - low > 0.5 else 0.1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))


def _error(value: float, ends: tuple[float, float] | None) -> "list[list[float]] | None":
    return None if ends is None else [[max(value - ends[0], 0.0)], [max(ends[1] - value, 0.0)]]


def _rows(axes: "Axes", labels: Sequence[str]) -> None:
    """Put a label and a faint line at each row, the first on top."""
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), labels, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for row in range(len(labels)):
        axes.axhline(row, color=RULE, linewidth=0.7, zorder=0)
