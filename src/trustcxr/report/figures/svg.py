"""Draw with Matplotlib: inline SVG with the colours and font of the page, and files for a journal."""

import io
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustcxr.registry import ATTACKS, DEFENCES
from trustcxr.storage.schemas import Share

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from markupsafe import Markup
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure

INK, QUIET, RULE = "#1b2430", "#566273", "#d5dbe3"
CLEAN_STYLE = ("#1f4e79", "o")
BETTER, WORSE = "#007a5e", "#b3261e"
SIDES = {"better": BETTER, "worse": WORSE, None: QUIET}
_MARKS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "|": "|", "": ""}
_OTHER_STYLE = ("#b268f1", "D", (0, (1, 1.5)))
_NARROW = 4.0  # inches
_TITLE_WIDTH = 34  # letters in the narrowest figure
_FONT_SIZE = 7.5  # points; the smallest are 0.69 of it
_SCALE = _FONT_SIZE / 11  # the page uses 11 points
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


def legend(drawings: "Iterable[Drawing]") -> "list[Markup]":
    """Return the legend of several drawings for the page, each entry once."""
    from markupsafe import Markup

    entries, sample = [], Markup('<b style="{}" aria-hidden="true">{}</b> {}')
    for key in dict.fromkeys(key for drawing in drawings for key in drawing.legend):
        line = ("┅" if isinstance(key.dash, tuple) else "━") * key.line
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
    axes.set_title(textwrap.fill(text, _TITLE_WIDTH), fontsize="large", fontweight="bold", loc="left")


def render_all(name: str, drawings: "Iterable[Drawing | None]") -> dict[str, "list[Markup]"]:
    """Return drawings for a template, as NAME, with their legend, as NAME_legend."""
    shown = [drawing for drawing in drawings if drawing is not None]
    marks = [render_inline(drawing, f"{name}{number}") for number, drawing in enumerate(shown)]
    return {name: marks, f"{name}_legend": legend(shown)}


def render_inline(drawing: Drawing, key: str) -> "Markup":
    """Return an inline SVG element. `key`, unique in the page, makes its ids unique. Its texts are escaped."""
    import matplotlib as mpl
    from markupsafe import Markup

    with mpl.rc_context(SETTINGS):
        buffer = io.StringIO()
        figure = _plot(drawing, drawing.width / 72, drawing.height / 72, pad=0.03)
        figure.savefig(buffer, format="svg", transparent=True)
    return Markup(_inline(buffer.getvalue(), drawing, key))


def _inline(svg: str, drawing: Drawing, key: str) -> str:
    """Return the SVG without metadata, namespaces and style sheet, with unique ids and a description."""
    from xml.etree import ElementTree

    root = ElementTree.fromstring(svg)  # drops comments
    for element in reversed(list(root.iter())):  # parts before the whole
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        for child in list(element):
            if child.tag in ("metadata", "style") or (child.tag == "defs" and not len(child)):
                element.remove(child)
    used = {name for element in root.iter() for value in element.attrib.values() for name in _REFERENCE.findall(value)}
    for element in list(root.iter()):
        _tidy(element, used, key)
    root.attrib = {"role": "img", "aria-label": drawing.alt}
    root.attrib |= {"width": f"{drawing.width:g}", "height": f"{drawing.height:g}"}
    root.attrib["viewBox"] = f"0 0 {drawing.width:g} {drawing.height:g}"
    return ElementTree.tostring(root, encoding="unicode")


_TITLED = "title:"  # prefix of the id of a mark with titles
_REFERENCE = re.compile(r"(?:^|url\()#([^)]+)")  # `#name` as a whole, or url(#name)
_COLOUR = re.compile(r"#([0-9a-fA-F]{6})\b")


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


def draw_interval(
    axes: "Axes", figure: Share, y: float, title: str, colour: str, *, scale: float = 1.0, **style: Any
) -> None:
    """Draw a value, if there is one, with its interval as an error bar and a tooltip."""
    if figure.value is not None:
        value, ends = scale * figure.value, [scale * end for end in figure.interval or ()]
        error = [[max(value - ends[0], 0.0)], [max(ends[1] - value, 0.0)]] if ends else None
        add_titles(axes.errorbar(value, y, xerr=error, color=colour, **style), title)


def label_rows(axes: "Axes", labels: Sequence[str]) -> None:
    """Draw a label and a faint line at each row, the first on top."""
    axes.set_ylim(len(labels) - 0.5, -0.5)
    figure: Any = axes.get_figure()
    if figure.get_figwidth() < _NARROW:  # two lines in one column
        labels = [label.replace(" · ", "\n· ", 1) for label in labels]
    axes.set_yticks(range(len(labels)), labels, color=INK, fontsize="small")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for row in range(len(labels)):
        axes.axhline(row, color=RULE, linewidth=0.7, zorder=0)


def save(drawing: Drawing, path: Path, width: float) -> None:
    """Save a drawing in the format of the file name; `width` in millimetres."""
    import matplotlib as mpl
    from matplotlib.lines import Line2D

    columns = 2 if width < 120 else 4
    rows = -(-len(drawing.legend) // columns)
    height = (drawing.height * _SCALE + 1.6 * _FONT_SIZE * rows) / 72
    with mpl.rc_context(SETTINGS | {"font.size": _FONT_SIZE, "axes.linewidth": 0.55, "pdf.fonttype": 42}):
        figure = _plot(drawing, width / 25.4, height, pad=0.02)
        _scale_lines(figure)
        handles = [
            Line2D([], [], color=k.colour, ls=k.dash if k.line else "none", marker=k.mark, ms=3.5, lw=1.1, label=k.text)
            for k in drawing.legend
        ]
        if handles:
            figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize="small")
        # without a date the same study gives the same file
        dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(path.suffix[1:], {})
        figure.savefig(path, dpi=600, metadata=dated)


def _plot(drawing: Drawing, width: float, height: float, *, pad: float) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=pad, h_pad=pad)
    drawing.plot(figure)
    return figure


def _scale_lines(figure: "Figure") -> None:
    from matplotlib.collections import LineCollection, PathCollection
    from matplotlib.lines import Line2D

    for artist in figure.findobj():
        if isinstance(artist, Line2D):
            artist.set_linewidth(artist.get_linewidth() * _SCALE)
            artist.set_markersize(artist.get_markersize() * _SCALE)
        elif isinstance(artist, PathCollection):
            artist.set_sizes(artist.get_sizes() * _SCALE**2)
        elif isinstance(artist, LineCollection):
            artist.set_linewidth(1.0)  # of an interval, points
