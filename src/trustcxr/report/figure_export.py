"""Write the figures of a study as files for a journal, one or two columns wide."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trustcxr.errors import unknown
from trustcxr.report import ranking, study_html
from trustcxr.report.figures import accuracy, calibration, heatmaps, saliency, svg, training_curves
from trustcxr.report.load import StudyFolder, load_report
from trustcxr.report.tables import table
from trustcxr.storage import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "figures"
FORMATS = ("pdf", "svg", "png")
WIDTHS = {"single": 89, "double": 183}  # millimetres: one and two columns of most journals
_FONT_SIZE = 7.5  # points; the smallest are 0.69 of it
_SCALE = _FONT_SIZE / 11  # the page uses 11 points
_BAR = 1.0  # line width of an interval, points
_DPI = 600  # of a PNG


def write_figures(folder: Path, *, kind: str = "pdf", width: str = "single", out: Path | None = None) -> list[Path]:
    """Write every figure of the page and its tables into `out`, by default STUDY/figures; return the paths.

    `kind`: pdf, svg or png. `width`: single (89 mm) or double (183 mm). Raises UserError for any other value, and if
    the folder has no study and no tested run.
    """
    if kind not in FORMATS:
        raise unknown("format", kind, FORMATS)
    if width not in WIDTHS:
        raise unknown("width", width, list(WIDTHS))
    study = load_report(Path(folder))
    out, paths = Path(out or study.path / FOLDER), []
    for drawing in drawings(study, narrow=width == "single"):
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in drawing.name).lstrip(".")
        path = out / f"{name}.{kind}"
        with atomic.atomic_write(path) as temporary:
            save(drawing, temporary, WIDTHS[width])
        paths.append(path)
    return paths + table.write_tables(table.find_tables(study_html.gather_parts(study)), out / table.FOLDER)


def drawings(study: StudyFolder, *, narrow: bool) -> Iterator[svg.Drawing]:
    """Yield every figure that has data, in the order of the page. `narrow`: for one column."""
    head = ranking.choose_headline(study.study, study.runs)
    runs = ranking.rank_runs(study.runs, head)
    if not runs:
        return
    yield accuracy.accuracy_dots(runs, head)
    for model, group in ranking.group_by_model([run for run in runs if run.attacks]).items():
        yield accuracy.epsilon_curves(model, group)
    results: list[svg.Drawing | None] = []
    for run in runs:
        results += [calibration.reliability(run, head), training_curves.training_curve(run)]
    results += [accuracy.proof_bars(runs), saliency.explanation_dots(runs, narrow=narrow), *saliency.sanity(runs)]
    results.append(heatmaps.draw_sheet(runs, columns=3 if narrow else 6))
    rows = study.study.comparisons
    results += [drawing for _, drawing in saliency.forests(rows, columns=2 if narrow else 4)]
    yield from filter(None, [*results, *accuracy.forests(rows)])


def save(drawing: svg.Drawing, path: Path, width: float) -> None:
    """Save a drawing in the format of the file name; `width` in millimetres."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = svg.SETTINGS | {"font.size": _FONT_SIZE, "axes.linewidth": 0.55, "pdf.fonttype": 42}
    columns = 2 if width < 120 else 4
    rows = -(-len(drawing.legend) // columns)
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width / 25.4, (drawing.height * _SCALE + 1.6 * _FONT_SIZE * rows) / 72))
        figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02)
        drawing.plot(figure)
        _scale_lines(figure)
        _legend(figure, drawing.legend, columns)
        # without a date the same study gives the same file
        dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(path.suffix[1:], {})
        figure.savefig(path, dpi=_DPI, metadata=dated)


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
            artist.set_linewidth(_BAR)


def _legend(figure: "Figure", keys: tuple[svg.Key, ...], columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=k.colour, ls=k.dash if k.line else "none", marker=k.mark, ms=3.5, lw=1.1, label=k.text)
        for k in keys
    ]
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize="small")
