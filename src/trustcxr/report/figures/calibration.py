"""How sure a model is, against how often it is right."""

from typing import TYPE_CHECKING

from trustcxr.report import words
from trustcxr.report.figures import svg
from trustcxr.report.ranking import Headline
from trustcxr.report.study_folder import Run
from trustcxr.report.tables.robustness import _conditions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RELIABILITY_LEGEND = (
    ("clean", svg.CLEAN_STYLE[0], "o", "solid"),
    ("clean, scaled", svg.CLEAN_STYLE[0], "s", (0, (4, 2))),
    ("under the strongest attack", svg.attack_style("pgd")[0], "^", "solid"),
    ("under it, scaled", svg.attack_style("pgd")[0], "D", (0, (1, 1.2))),
)


def reliability(run: Run, head: Headline, key: str) -> str | None:
    """Accuracy against stated confidence, before and after scaling, clean and under the strongest headline attack."""
    conditions = _conditions(run.metrics.get("calibration"), head)
    if not conditions:
        return None
    strongest = run.attacked(head.strongest or "", head.epsilon)
    key_of = (strongest.get("attack"), strongest.get("steps"))
    under = next((part for _, part in conditions[1:] if (part.get("attack"), part.get("steps")) == key_of), {})
    series = [conditions[0][1].get("bins"), conditions[0][1].get("bins_scaled")]
    series += [under.get("bins"), under.get("bins_scaled")]

    def plot(figure: "Figure") -> None:
        import numpy as np

        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=svg.QUIET, lw=0.9, ls=(0, (2, 2)), zorder=0)
        for bins, (_, colour, mark, dash) in zip(series, RELIABILITY_LEGEND, strict=True):
            names = ("confidence", "accuracy", "n")
            points = [[words.finite(row.get(name)) for name in names] for row in words.records(bins)]
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
