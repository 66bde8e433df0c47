"""Draw ROC and precision-recall curves of an audit, clean and under the strongest attack."""

from typing import TYPE_CHECKING

from trustcxr.report.figures import svg
from trustcxr.storage.schemas import Curve, OperatingPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def curves(clean: OperatingPoint, attacked: OperatingPoint | None) -> svg.Drawing:
    """Draw both curves of one class or finding with intervals, clean and, if measured, attacked."""
    shown = [(clean, svg.CLEAN_STYLE[0], "unperturbed")]
    if attacked is not None:
        colour = svg.attack_style(attacked.attack)[0]
        shown.append((attacked, colour, f"{attacked.effort.name} {attacked.epsilon:g}"))

    def plot(figure: "Figure") -> None:
        left, right = figure.subplots(1, 2)
        for point, colour, name in shown:
            _curve(left, point.roc, colour, name)
            _curve(right, point.precision_recall, colour, name)
            if point.sensitivity.value is not None and point.specificity.value is not None:
                left.scatter([1 - point.specificity.value], [point.sensitivity.value], color=colour, s=36, zorder=3)
        left.plot([0, 1], [0, 1], color=svg.QUIET, lw=0.9, ls=(0, (2, 2)), zorder=0)
        titles = ((left, "1 - specificity, %", "sensitivity, %"), (right, "recall, %", "precision, %"))
        for axes, across, along in titles:
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1.02)
            svg.percent_axis(axes.xaxis)
            svg.percent_axis(axes.yaxis)
            axes.grid(color=svg.RULE, lw=0.7)
            axes.set_xlabel(across)
            axes.set_ylabel(along)
        svg.set_title(left, clean.finding)
        left.legend(loc="lower right", frameon=False, fontsize="small")

    alt = f"ROC and precision-recall curves of {clean.finding}; see the table."
    return svg.Drawing(f"operating-{clean.finding}", 620, 290, plot, alt)


def _curve(axes: "Axes", curve: Curve, colour: str, name: str) -> None:
    points = [p for p in zip(curve.x, curve.y, curve.low, curve.high, strict=False) if None not in p]
    if not points:
        return
    x, y, low, high = ([float(v or 0.0) for v in column] for column in zip(*points, strict=True))
    (line,) = axes.plot(x, y, color=colour, lw=1.4, label=name)
    svg.add_titles(line, name)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
