"""Figures of the comparison of heatmaps and of their sanity check, drawn as those of figures.py."""

from typing import TYPE_CHECKING

from trustcxr.catalogue import MEASURES
from trustcxr.report import words
from trustcxr.report.figures.svg import INK, QUIET, RULE, _error, _rows, defence_colour, draw
from trustcxr.report.study_folder import Run
from trustcxr.report.summary import main_method
from trustcxr.report.tables.saliency import documents
from trustcxr.results.documents import Comparison, SaliencyDocument

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def explanation_dots(runs: list[Run]) -> str | None:
    """Infection energy, IoU and hit rate of every run (first method) as dots with intervals, chance as a tick."""
    measured = [(run, next(iter(run.saliency_methods().values()))) for run in runs if run.saliency_methods()]
    names = ("infection_energy", "infection_iou", "pointing_hit_rate")
    if not any(document.figure(name).value is not None for _, document in measured for name in names):
        return None

    def plot(figure: "Figure") -> None:
        panels = figure.subplots(1, len(names), sharey=True)
        for axes, name in zip(panels, names, strict=True):
            _rows(axes, [run.label for run, _ in measured])
            axes.set_title(words.measure(name), fontsize=11, loc="left")
            for row, (run, document) in enumerate(measured):
                found = document.figure(name)
                if found.chance is not None:
                    axes.plot([found.chance] * 2, [row - 0.34, row + 0.34], color=INK, lw=1.6)
                if found.value is not None:
                    error, colour = _error(found.value, found.interval), defence_colour(run.defence)
                    axes.errorbar(found.value, row, xerr=error, fmt="o", color=colour, ms=5.5, lw=1.5, clip_on=False)
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=3)

    alt = f"Dot plot of localisation beside chance for {len(measured)} runs; the numbers stand in the table."
    return draw(760, 74 + 24 * len(measured), plot, alt=alt, key="localisation")


_SHOWN = tuple(measure.name for measure in MEASURES.values() if measure.charted)
_COLUMNS = 4
_COLOURS = {"better": "#00664a", "worse": "#b3261e", "not settled": QUIET}


def forests(rows: list[Comparison]) -> list[tuple[str, str]]:
    """For each saliency method its name and one forest plot over models and measures."""
    found = []
    methods = list(dict.fromkeys(row.method for row in rows if row.method))
    for number, method in enumerate(methods):
        mine = [row for row in rows if row.method == method and row.difference.value is not None]
        drawn = forest(method, mine, f"forests{number}")
        if drawn:
            found.append((words.method(method), drawn))
    return found


def forest(method: str, rows: list[Comparison], key: str) -> str | None:
    """Robust minus standard with intervals: a panel for each measure, a row for each comparison, zero marked."""
    names = [name for name in _SHOWN if any(row.measure == name for row in rows)]
    if not names:
        return None
    labels = list(dict.fromkeys(_label(row) for row in rows))
    lines = -(-len(names) // _COLUMNS)

    def plot(figure: "Figure") -> None:
        grid = list(figure.subplots(lines, _COLUMNS, sharey=True, squeeze=False).flat)
        for axes, name in zip(grid, names, strict=False):
            _rows(axes, labels)
            axes.axvline(0, color=INK, lw=1)
            for row in (row for row in rows if row.measure == name):
                value, place = row.difference.value or 0.0, labels.index(_label(row))
                colour = _COLOURS[_side(row)]
                error = _error(value, row.difference.interval)
                axes.errorbar(value, place, xerr=error, fmt="o", color=colour, ms=5, lw=1.5)
            reach = max(max(abs(edge) for edge in axes.get_xlim()), 1e-3)
            axes.set_xlim(-reach, reach)
            axes.locator_params(axis="x", nbins=3)
            axes.set_title(words.measure(name), fontsize=10, loc="left")
        for axes in grid[len(names) :]:
            axes.set_axis_off()

    alt = (
        f"Forest plot of {words.method(method)}, robust minus standard, over models and measures; numbers in the table."
    )
    return draw(860, lines * (70 + 24 * len(labels)), plot, alt=alt, key=key)


def _label(row: Comparison) -> str:
    background = row.background or "full"
    parts = [row.model or words.DASH, row.defence or words.DASH]
    return " · ".join([*parts, *([row.label] if row.label else []), *([background] if background != "full" else [])])


def _side(row: Comparison) -> str:
    if row.outcome == "not settled":
        return row.outcome
    return "better" if row.outcome == (row.better or "higher") else "worse"


def sanity(runs: list[Run]) -> list[str]:
    """For each run how like the trained model's map is left as the network is made random, from the logits down."""
    found = []
    for number, run in enumerate(runs):
        methods = [(m, d) for r, m, d in documents([run], control=False) if d.sanity]
        if methods:
            found.append(_cascade(run, methods, f"sanity{number}"))
    return found


def _cascade(run: Run, methods: list[tuple[str, SaliencyDocument]], key: str) -> str:
    dashes = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
    main = main_method(dict(methods))
    parts = [words.part(stage.part) for stage in dict(methods)[main].sanity]

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for (name, document), dash in zip(methods, dashes, strict=False):
            values = [stage.figure("ssim").value for stage in document.sanity]
            heights = [1.0, *(float("nan") if v is None else v for v in values)]
            axes.plot(range(len(heights)), heights, color=defence_colour(run.defence), ls=dash, marker="o", ms=3.5)
            axes.annotate(words.method(name), (len(heights) - 1, heights[-1]), fontsize=8, color=INK)
        axes.set_xticks(range(len(parts) + 1), ["trained", *parts], rotation=45, ha="right", fontsize=9)
        axes.axhline(0, color=RULE, lw=0.7)
        axes.set_ylim(-0.1, 1.05)
        axes.set_title(run.label, fontsize=12, fontweight="bold", loc="left")
        axes.set_ylabel("SSIM with the map before")

    alt = f"SSIM of the heatmaps of {run.label} as its layers are made random; the ends stand in the table."
    return draw(330, 250, plot, alt=alt, key=key)
