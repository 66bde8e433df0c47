"""Draw the figures of an audit: ROC and precision-recall curves, and the smallest changes that flip answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trustcxr.registry import GREY_LEVELS
from trustcxr.report import formatting
from trustcxr.report.figures import svg
from trustcxr.report.figures.heatmaps import grey_address
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import AuditDocument, Curve, OperatingPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Change:
    """Three pictures as data: addresses, what they show, and the lines under them."""

    pictures: tuple[tuple[str, str], ...]  # address and description
    size: str
    answers: str


def draw_smallest_changes(document: AuditDocument, folder: Path | None) -> list[Change]:
    """Return the smallest changes with their pictures; none if the audit's folder has no pictures of them."""
    import numpy as np

    path = None if folder is None else folder / layout.SMALLEST_CHANGES_FILE
    if path is None or not atomic.is_readable(path):
        return []
    with np.load(path, allow_pickle=False) as arrays:
        pairs = zip(arrays["image"], arrays["changed"], strict=True)
        pictures = dict(zip(arrays["sample_id"].tolist(), pairs, strict=True))
    changes = []
    for row in document.smallest_changes:
        if row.sample_id not in pictures:
            continue
        image, changed = pictures[row.sample_id]
        if row.epsilon:
            factor = 0.5 / row.epsilon
            size = f"{GREY_LEVELS * row.epsilon:.2g} of {GREY_LEVELS} grey levels"
            answers = f"{row.label} → {row.answer}"
        else:
            factor, size, answers = 1.0, "No change found", f"{row.label} stays"
        shown = (image, changed, 0.5 + factor * (changed - image))
        texts = (
            f"image of {row.label}",
            f"the image changed: {row.answer}",
            f"the change, {factor:.0f} times magnified",
        )
        addresses = [grey_address(np.rint(np.clip(one, 0, 1) * 255).astype(np.uint8)) for one in shown]
        changes.append(Change(tuple(zip(addresses, map(formatting.capital, texts), strict=True)), size, answers))
    return changes


def draw_curves(clean: OperatingPoint, attacked: OperatingPoint | None) -> svg.Drawing:
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
            svg.format_shares(axes, "x", "y")
            axes.set(xlabel=across, ylabel=along)
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
