"""Draw with Matplotlib, and convert drawings to inline SVG with the colours and font of the page."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trustcxr.registry import ATTACKS, DEFENCES

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, RULE = "#1b2430", "#566273", "#d5dbe3"
CLEAN_STYLE = ("#1f4e79", "o")
BETTER, WORSE = "#007a5e", "#b3261e"
SIDES = {"better": BETTER, "worse": WORSE, None: QUIET}
_MARKS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "|": "|", "": ""}
_OTHER_STYLE = ("#b268f1", "D", (0, (1, 1.5)))
_NARROW = 4.0  # inches
_TITLE_WIDTH = 34  # letters in the narrowest figure
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trustcxr",
    "text.parse_math": False,  # a class may be called $x$
    "font.family": "DejaVu Sans",  # wide, so that the reader's font fits into the same space
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


@dataclass(frozen=True)
class Key:
    """An entry of a legend: text, line and mark."""

    text: str
    colour: str
    mark: str = ""
    line: bool = True
    dash: Any = "solid"


@dataclass(frozen=True)
class Drawing:
    """A figure before drawing: size in CSS pixels, plot function, description, legend."""

    name: str  # of a file
    width: float
    height: float
    plot: "Callable[[Figure], None]"
    alt: str
    legend: tuple[Key, ...] = ()


OUTCOMES = (
    Key("robust is better", BETTER, "o"),
    Key("robust is worse", WORSE, "o"),
    Key("not settled, or neither", QUIET, "o"),
)


def legend(drawings: "Iterable[Drawing | None]") -> "list[Markup]":
    """Return the legend of several drawings for the page, each entry once."""
    from markupsafe import Markup

    entries = []
    for key in dict.fromkeys(key for drawing in drawings if drawing is not None for key in drawing.legend):
        line = ("┅" if isinstance(key.dash, tuple) else "━") * key.line
        sample = Markup('<b style="{}" aria-hidden="true">{}</b> {}')
        entries.append(sample.format(page_colour(f"color:{key.colour}"), f"{line}{_MARKS[key.mark]}{line}", key.text))
    return entries


def attack_style(name: str) -> tuple[str, str, Any]:
    """Return colour, marker and dash of an attack."""
    entry = ATTACKS.get(name)
    return (entry.style if entry else None) or _OTHER_STYLE


def defence_colour(name: str) -> str:
    """Return the colour of a defence, the same in every figure."""
    return DEFENCES[name].colour if name in DEFENCES else "#333333"


def page_colour(style: str) -> str:
    """Return a style with #rrggbb colours as variables, for light and dark pages."""
    return _COLOUR.sub(lambda match: f"var(--c{match[1].lower()})", style)


def add_titles(artists: Any, *texts: str) -> None:
    """Set the tooltip of a mark, or of each mark of a line."""
    if isinstance(artists, list | tuple):  # an error bar is several, in tuples
        for artist in artists:
            add_titles(artist, *texts)
    else:
        artists.set_gid(_TITLED + "\n".join(texts))


def set_title(axes: "Axes", text: str) -> None:
    """Set a title, wrapped if it is too long."""
    import textwrap

    lines = textwrap.wrap(text, _TITLE_WIDTH) or [""]
    axes.set_title("\n".join(lines), fontsize="large", fontweight="bold", loc="left")


def render_inline(drawing: Drawing, key: str) -> str:
    """Return an inline SVG element. `key`, unique in the page, makes its ids unique."""
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(drawing.width / 72, drawing.height / 72))
        figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)
        drawing.plot(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue(), drawing, key)


def _inline(svg: str, drawing: Drawing, key: str) -> str:
    """Return the SVG without metadata, namespaces and style sheet, with unique ids and a description."""
    from xml.etree import ElementTree

    root = ElementTree.fromstring(svg)  # drops comments
    for parent in list(root.iter()):
        for child in [child for child in parent if _local(child.tag) in ("metadata", "style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(name): value for name, value in element.attrib.items()}
    used = {name for element in root.iter() for value in element.attrib.values() for name in _REFERENCE.findall(value)}
    for element in list(root.iter()):
        _tidy(element, used, key)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag == "defs" and not len(child)]:
            parent.remove(child)
    root.attrib = {"role": "img", "aria-label": drawing.alt}
    root.attrib |= {"width": f"{drawing.width:g}", "height": f"{drawing.height:g}"}
    root.attrib["viewBox"] = f"0 0 {drawing.width:g} {drawing.height:g}"
    return ElementTree.tostring(root, encoding="unicode")


_TITLED = "title:"  # prefix of the id of a mark with titles
_REFERENCE = re.compile(r"(?:^|url\()#([^)]+)")  # `#name` as a whole, or url(#name)
_COLOUR = re.compile(r"#([0-9a-fA-F]{6})\b")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _tidy(element: "Element", used: set[str], key: str) -> None:
    """Make referenced ids unique, drop other ids, fonts and blanks, and use the colours of the page."""
    identifier = element.attrib.pop("id", None)
    for name, value in element.attrib.items():
        element.attrib[name] = _REFERENCE.sub(lambda match: match[0].replace(match[1], f"{key}-{match[1]}"), value)
    if identifier in used:
        element.attrib = {"id": f"{key}-{identifier}", **element.attrib}
    if "style" in element.attrib:
        parts = [part.strip() for part in element.attrib["style"].split(";")]
        style = "; ".join(part for part in parts if not part.startswith("font-family"))
        element.attrib["style"] = page_colour(style)
    element.text = element.text if (element.text or "").strip() else None
    element.tail = "\n"
    if identifier and identifier.startswith(_TITLED):
        _add_tooltips(element, identifier.removeprefix(_TITLED).split("\n"))


def _add_tooltips(element: "Element", texts: list[str]) -> None:
    """Add titles to a group: one per mark if the numbers agree, else one for the group."""
    from xml.etree import ElementTree

    marks = [part for part in element.iter() if part.tag == "use"]
    for mark, text in zip(marks, texts, strict=True) if len(marks) == len(texts) else [(element, "; ".join(texts))]:
        mark.attrib["class"] = "titled"
        title = ElementTree.Element("title")
        title.text = text
        mark.insert(0, title)


def format_shares(axes: "Axes", *names: str) -> None:
    """Show the axes of these names ("x", "y") from 0 to 100 %; a y axis has grid lines, with x those of both."""
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    for axis in (axes.xaxis if name == "x" else axes.yaxis for name in names):
        axis.set_major_locator(MultipleLocator(0.25))
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    if "x" in names:
        axes.set_xlim(0, 1)
    if "y" in names:
        axes.set_ylim(-0.02, 1.02)
        axes.grid(axis="both" if "x" in names else "y", color=RULE, lw=0.7)
        axes.set_axisbelow(True)


def error_bars(value: float, ends: tuple[float, float] | None) -> "list[list[float]] | None":
    """Return the distances of an interval below and above its value for matplotlib; None without any."""
    return None if ends is None else [[max(value - ends[0], 0.0)], [max(ends[1] - value, 0.0)]]


def label_rows(axes: "Axes", labels: Sequence[str]) -> None:
    """Draw a label and a faint line at each row, the first on top."""
    axes.set_ylim(len(labels) - 0.5, -0.5)
    from matplotlib.figure import Figure

    figure = axes.get_figure()
    if isinstance(figure, Figure) and figure.get_figwidth() < _NARROW:  # two lines in one column
        labels = [label.replace(" · ", "\n· ", 1) for label in labels]
    axes.set_yticks(range(len(labels)), labels, color=INK, fontsize="small")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for row in range(len(labels)):
        axes.axhline(row, color=RULE, linewidth=0.7, zorder=0)
