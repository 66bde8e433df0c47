"""How sure a model is, against how often it is right."""

from typing import TYPE_CHECKING

from trustcxr.catalogue import USUAL_ATTACKS
from trustcxr.report.figures import svg
from trustcxr.report.ranking import Headline
from trustcxr.report.study_folder import Run
from trustcxr.report.tables.robustness import _conditions
from trustcxr.results.documents import Calibrated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RELIABILITY_LEGEND = (
    ("clean", svg.CLEAN_STYLE[0], "o", "solid"),
    ("clean, scaled", svg.CLEAN_STYLE[0], "s", (0, (4, 2))),
    ("under the strongest attack", svg.attack_style(USUAL_ATTACKS[-1])[0], "^", "solid"),
    ("under it, scaled", svg.attack_style(USUAL_ATTACKS[-1])[0], "D", (0, (1, 1.2))),
)


def reliability(run: Run, head: Headline, key: str) -> str | None:
    """Accuracy against stated confidence, before and after scaling, clean and under the strongest headline attack."""
    document = run.metrics.calibration
    conditions = _conditions(document, head) if document else []
    if not conditions:
        return None
    strongest = run.attacked(head.strongest or "", head.epsilon)
    key_of, clean = (strongest.attack, strongest.steps), conditions[0][1]
    under = next((part for _, part in conditions[1:] if (part.attack, part.steps) == key_of), Calibrated())
    series = [clean.bins, clean.bins_scaled, under.bins, under.bins_scaled]

    def plot(figure: "Figure") -> None:
        import numpy as np

        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=svg.QUIET, lw=0.9, ls=(0, (2, 2)), zorder=0)
        for bins, (_, colour, mark, dash) in zip(series, RELIABILITY_LEGEND, strict=True):
            points = [(part.confidence, part.accuracy, part.n) for part in bins]
            known = np.array([point for point in points if None not in point], dtype=float).reshape(-1, 3)
            x, y, counts = known.T
            sizes = 6 + 90 * counts / max(counts.sum(), 1)
            axes.plot(x, y, color=colour, ls=dash, lw=1.3, alpha=0.8)
            axes.scatter(x, y, s=sizes, color=colour, marker=mark, lw=0, clip_on=False)
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.02, 1.02)
        svg._percent_axis(axes.xaxis)
        svg._percent_axis(axes.yaxis)
        axes.grid(color=svg.RULE, lw=0.7)
        axes.set_axisbelow(True)
        axes.set_title(run.label, fontsize=12, fontweight="bold", loc="left")
        axes.set_xlabel("stated confidence, %")
        axes.set_ylabel("accuracy, %")

    alt = f"Reliability diagram of {run.label}; the calibration errors stand in the table."
    return svg.draw(330, 300, plot, alt=alt, key=key)
