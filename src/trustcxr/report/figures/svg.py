"""Matplotlib drawings as inline SVG, in the page's own colours and type."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trustcxr.catalogue import ATTACKS, DEFENCES

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

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
    """The figure alone: without metadata, namespaces and style sheet, its ids its own, named for who cannot see it."""
    from xml.etree import ElementTree

    root = ElementTree.fromstring(svg)  # its comments stay behind
    for parent in list(root.iter()):
        for child in [child for child in parent if _local(child.tag) in ("metadata", "style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(name): value for name, value in element.attrib.items()}
    used = {name for element in root.iter() for value in element.attrib.values() for name in _REFERENCE.findall(value)}
    for element in root.iter():
        _tidy(element, used, key)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag == "defs" and not len(child)]:
            parent.remove(child)
    root.attrib = {"role": "img", "aria-label": alt, "width": f"{width:g}", "height": f"{height:g}"}
    root.attrib["viewBox"] = f"0 0 {width:g} {height:g}"
    title = ElementTree.Element("title")
    title.text = alt
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")


_REFERENCE = re.compile(r"(?:^|url\()#([^)]+)")  # `#name` as a whole, or url(#name)


def _local(name: str) -> str:
    """A name of XML without its namespace."""
    return name.rpartition("}")[2]


def _tidy(element: "Element", used: set[str], key: str) -> None:
    """Ids that are referred to become the figure's own, others go; the font is the page's; no blanks between lines."""
    own = element.attrib.pop("id", None)
    for name, value in element.attrib.items():
        element.attrib[name] = _REFERENCE.sub(lambda found: found[0].replace(found[1], f"{key}-{found[1]}"), value)
    if own in used:
        element.attrib = {"id": f"{key}-{own}", **element.attrib}
    if "style" in element.attrib:
        parts = [part.strip() for part in element.attrib["style"].split(";")]
        element.attrib["style"] = "; ".join(part for part in parts if not part.startswith("font-family"))
    element.text = element.text if (element.text or "").strip() else None
    element.tail = "\n"


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
