"""Draw accuracy against epoch."""

from typing import TYPE_CHECKING

from trustcxr.registry import ATTACKS, CERTIFIED_COLOUR, USUAL_ATTACKS
from trustcxr.report import formatting
from trustcxr.report.figures import svg
from trustcxr.report.load import Run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_HISTORY = (
    ("train_accuracy", "training", "#8793a3", "solid"),
    ("val_accuracy", "validation, clean", svg.CLEAN_STYLE[0], "solid"),
    *(
        (f"val_{name}_accuracy", f"validation, {ATTACKS[name].label}", svg.attack_style(name)[0], dash)
        for name, dash in zip(USUAL_ATTACKS, ((0, (4, 2)), (0, (1, 1.2))), strict=True)
    ),
    ("val_certified_accuracy", "validation, certified", CERTIFIED_COLOUR, (0, (6, 1.5))),
)
LEGEND = tuple(svg.Key(label, colour, dash=dash) for _, label, colour, dash in _HISTORY)


def training_curve(run: Run) -> svg.Drawing | None:
    """Draw accuracy against epoch, from 1, with the best epoch marked; None without a history."""
    table = run.history
    if table is None or "epoch" not in table:
        return None
    drawn = [name for name, *_ in _HISTORY if name in table and _numeric(table[name]).notna().any()]
    if not drawn:
        return None
    best = run.metrics.training.best_epoch

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for name, label, colour, dash in _HISTORY:
            if name in drawn:
                rows = table[["epoch", name]].apply(_numeric).dropna()
                size = 4 if len(rows) == 1 else 1.8
                (line,) = axes.plot(rows["epoch"] + 1, rows[name], color=colour, ls=dash, lw=1.7, clip_on=False)
                line.set(marker="o", markersize=size)
                pairs = zip(rows["epoch"], rows[name], strict=True)
                svg.add_titles(
                    line, *(f"{label}, epoch {epoch + 1:.0f}: {formatting.percent(value)}" for epoch, value in pairs)
                )
        if best is not None:
            axes.axvline(best + 1, color=svg.QUIET, lw=0.9, ls=(0, (2, 2)), zorder=0)
        svg.format_shares(axes, "y")
        axes.locator_params(axis="x", integer=True)
        if table["epoch"].nunique() == 1:
            axes.set_xticks(table["epoch"] + 1)
        svg.set_title(axes, run.label)
        axes.set(xlabel="epoch", ylabel="accuracy, %")

    legend = tuple(key for (name, *_), key in zip(_HISTORY, LEGEND, strict=True) if name in drawn)
    alt = f"Accuracy against epoch while training {run.label}."
    return svg.Drawing(f"training-{run.name}", 330, 230, plot, alt, legend)


def _numeric(column: "pd.Series") -> "pd.Series":
    import pandas as pd

    return pd.to_numeric(column, errors="coerce")
