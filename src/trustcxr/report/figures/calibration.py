"""Draw reliability diagrams."""

from typing import TYPE_CHECKING

from trustcxr.registry import USUAL_ATTACKS
from trustcxr.report import formatting
from trustcxr.report.figures import svg
from trustcxr.report.load import Run
from trustcxr.report.ranking import Headline
from trustcxr.report.tables.robustness import list_conditions
from trustcxr.storage.schemas import Calibrated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ATTACKED = svg.attack_style(USUAL_ATTACKS[-1])[0]
LEGEND = (
    svg.Key("clean", svg.CLEAN_STYLE[0], "o"),
    svg.Key("clean, scaled", svg.CLEAN_STYLE[0], "s", dash=(0, (4, 2))),
    svg.Key("under the strongest attack", _ATTACKED, "^"),
    svg.Key("under it, scaled", _ATTACKED, "D", dash=(0, (1, 1.2))),
)


def reliability(run: Run, head: Headline) -> svg.Drawing | None:
    """Draw accuracy against confidence, with and without scaling, clean and under the strongest attack."""
    document = run.metrics.calibration
    conditions = list_conditions(document, head) if document else []
    if not conditions:
        return None
    clean = conditions[0][1]
    under = next((part for _, part in conditions[1:] if part.effort == head.strongest), Calibrated())
    series = [clean.bins, clean.bins_scaled, under.bins, under.bins_scaled]

    def plot(figure: "Figure") -> None:
        import numpy as np

        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=svg.QUIET, lw=0.9, ls=(0, (2, 2)), zorder=0)
        for bins, key in zip(series, LEGEND, strict=True):
            points = [(part.confidence, part.accuracy, part.n) for part in bins]
            complete = np.array([point for point in points if None not in point], dtype=float).reshape(-1, 3)
            x, y, counts = complete.T
            sizes = 6 + 90 * counts / max(counts.sum(), 1)
            axes.plot(x, y, color=key.colour, ls=key.dash, lw=1.3, alpha=0.8)
            marks = axes.scatter(x, y, s=sizes, color=key.colour, marker=key.mark, lw=0, clip_on=False)
            texts = (
                f"confidence {formatting.percent(c, 0)}, accuracy {formatting.percent(a, 0)} (n = {n:.0f})"
                for c, a, n in complete
            )
            svg.add_titles(marks, *(f"{key.text}: {text}" for text in texts))
        svg.format_shares(axes, "x", "y")
        svg.set_title(axes, run.label)
        axes.set(xlabel="stated confidence, %", ylabel="accuracy, %")

    alt = f"Reliability diagram of {run.label}; see the table of calibration errors."
    return svg.Drawing(f"reliability-{run.name}", 330, 300, plot, alt, LEGEND)
