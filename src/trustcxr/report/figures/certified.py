"""Draw certified accuracy and accuracy under attack as one bar."""

from typing import TYPE_CHECKING

from trustcxr.registry import CERTIFIED_COLOUR
from trustcxr.report import formatting
from trustcxr.report.figures import svg
from trustcxr.report.load import Run
from trustcxr.report.tables.certified import Gap, gaps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OPEN, _LOST = "#e0b252", "#eadfdd"
LEGEND = (
    svg.Key("proved", CERTIFIED_COLOUR, "s", line=False),
    svg.Key("open: neither proved nor broken", _OPEN, "s", line=False),
    svg.Key("broken by an attack", _LOST, "s", line=False),
)


def bars(runs: list[Run]) -> svg.Drawing | None:
    """Draw a bar per run and epsilon, from 0 to clean accuracy; None if nothing was certified."""
    rows = gaps(runs)
    if not rows:
        return None

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        svg.label_rows(axes, [f"{gap.run.label}, {formatting.epsilon(gap.epsilon)}" for gap in rows])
        for row, gap in enumerate(rows):
            for (start, end, colour), key in zip(parts(gap), LEGEND, strict=True):
                drawn = axes.barh(row, end - start, left=start, height=0.56, color=colour)
                svg.add_titles(list(drawn), f"{gap.run.label}: {key.text}: {formatting.percent(end - start)}")
            axes.plot([gap.certified] * 2, [row - 0.36, row + 0.36], color=svg.INK, lw=1.1)
        axes.set_xlim(0, 1)
        svg.percent_axis(axes.xaxis)
        axes.set_xlabel("accuracy, %")

    alt = "Bars of certified accuracy, open accuracy, and accuracy lost to an attack; see the table."
    return svg.Drawing("proved", 720, 70 + 26 * len(rows), plot, alt, LEGEND)


def parts(gap: Gap) -> list[tuple[float, float, str]]:
    """Return start, end and colour of each part of the bar."""
    clean = gap.run.clean.accuracy.value
    top = gap.certified if clean is None else max(clean, gap.certified)
    broken = top if gap.attacked is None else max(gap.attacked, gap.certified)
    return [(0.0, gap.certified, CERTIFIED_COLOUR), (gap.certified, broken, _OPEN), (broken, top, _LOST)]
