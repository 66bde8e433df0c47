"""Draw localisation, comparisons of heatmaps, and the randomisation check."""

from typing import TYPE_CHECKING

from trustcxr.registry import MEASURES
from trustcxr.report import formatting
from trustcxr.report.figures import svg
from trustcxr.report.figures.accuracy import draw_forest
from trustcxr.report.load import Run
from trustcxr.report.ranking import list_defences, main_method
from trustcxr.report.tables.saliency import documents
from trustcxr.storage.schemas import Comparison, SaliencyDocument

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def explanation_dots(runs: list[Run], *, narrow: bool = False) -> svg.Drawing | None:
    """Draw infection energy, IoU and hit rate of each run's first method with intervals and chance.

    `narrow`: the three panels in one column.
    """
    measured = [(run, next(iter(run.metrics.saliency.values()))) for run in runs if run.metrics.saliency]
    names = ("infection_energy", "infection_iou", "pointing_hit_rate")
    if not any(document.figure(name).value is not None for _, document in measured for name in names):
        return None

    def plot(figure: "Figure") -> None:
        shape = (len(names), 1) if narrow else (1, len(names))
        panels = figure.subplots(*shape, sharey=True)
        for axes, name in zip(panels, names, strict=True):
            svg.label_rows(axes, [run.label for run, _ in measured])
            axes.set_title(formatting.measure(name), fontsize="medium", loc="left")
            for row, (run, document) in enumerate(measured):
                measure = document.figure(name)
                if measure.chance is not None:
                    axes.plot([measure.chance] * 2, [row - 0.34, row + 0.34], color=svg.INK, lw=1.6)
                if measure.value is not None:
                    error, colour = svg.error_bars(measure.value, measure.interval), svg.defence_colour(run.defence)
                    drawn = axes.errorbar(measure.value, row, xerr=error, fmt="o", color=colour, ms=5.5, lw=1.5)
                    text = formatting.decimal(measure.value) + formatting.interval(measure.interval)
                    svg.add_titles(drawn, f"{run.label}: {text}, chance {formatting.decimal(measure.chance)}")
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=3)

    alt = f"Dot plot of localisation and chance for {len(measured)} runs; see the table."
    height = (74 + 24 * len(measured)) * (len(names) if narrow else 1)
    keys = [svg.Key(name, svg.defence_colour(name), "o") for name in list_defences([run for run, _ in measured])]
    chance = svg.Key("chance", svg.INK, "|", line=False)
    return svg.Drawing("localisation", 760, height, plot, alt, (*keys, chance))


_SHOWN = tuple(measure.name for measure in MEASURES.values() if measure.charted)


def forests(rows: list[Comparison], *, columns: int = 4) -> list[tuple[str, svg.Drawing]]:
    """Return the name and forest plot of each saliency method, with `columns` panels a row."""
    results = []
    for method in dict.fromkeys(row.method for row in rows if row.method):
        compared = [row for row in rows if row.method == method and row.difference.value is not None]
        if measures := [name for name in _SHOWN if any(row.measure == name for row in compared)]:
            drawing = draw_forest(method, compared, measures, columns=columns, width=760)
            results.append((formatting.method(method), drawing))
    return results


def sanity(runs: list[Run]) -> list[svg.Drawing]:
    """Draw for each run the similarity with the trained map as layers become random from the logits down."""
    tested = [(run, [(m, d) for _, m, d in documents([run], baseline_maps=False) if d.sanity]) for run in runs]
    return [_cascade(run, methods) for run, methods in tested if methods]


def _cascade(run: Run, methods: list[tuple[str, SaliencyDocument]]) -> svg.Drawing:
    dashes = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
    main = main_method(dict(methods))
    parts = [formatting.part(stage.part) for stage in dict(methods)[main].sanity]

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for (name, document), dash in zip(methods, dashes, strict=False):
            values = [stage.figure("ssim").value for stage in document.sanity]
            heights = [1.0, *(float("nan") if v is None else v for v in values)]
            axes.plot(range(len(heights)), heights, color=svg.defence_colour(run.defence), ls=dash, marker="o", ms=3.5)
            axes.annotate(formatting.method(name), (len(heights) - 1, heights[-1]), fontsize="small", color=svg.INK)
        axes.set_xticks(range(len(parts) + 1), ["trained", *parts], rotation=45, ha="right", fontsize="small")
        axes.axhline(0, color=svg.RULE, lw=0.7)
        axes.set_ylim(-0.1, 1.05)
        svg.set_title(axes, run.label)
        axes.set_ylabel("SSIM with the trained map")

    alt = f"SSIM of the heatmaps of {run.label} as its layers become random; the table gives the ends."
    return svg.Drawing(f"sanity-{run.name}", 330, 250, plot, alt)
