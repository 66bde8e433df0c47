"""Make the table and the figure of time and memory at three numbers of images."""

import pandas as pd
from matplotlib.figure import Figure
from studies.build import COLOURS, Tables, markdown

STAGES = {"check": "data check", "store": "pixel store", "train": "one epoch", "audit": "audit by FGSM"}
ROWS = STAGES | {"copy": "copy of the store"}
HEAD = ("stage", "images", "s", "ms an image", "ms a further image", "system, ms an image", "peak, MiB")


def make_tables(tables: Tables) -> dict[str, str]:
    """Return a row for each stage and size, with the cost of a further image since the size before."""
    rows = []
    for stage, name in ROWS.items():
        before = None
        for _, row in select(tables["results"], stage).iterrows():
            more = ""
            if before is not None:
                more = f"{1000 * (row.seconds - before.seconds) / (row.images - before.images):.2f}"
            cells = [f"{row.images:,}", f"{row.seconds:.0f}", f"{1000 * row.seconds / row.images:.2f}", more]
            peak = f"{row.peak_mib:,}" if stage in STAGES else ""
            rows.append([name, *cells, f"{1000 * row.system_seconds / row.images:.2f}", peak])
            before = row
    return {"results": markdown(HEAD, rows)}


def select(results: pd.DataFrame, stage: str) -> pd.DataFrame:
    """Return the rows of one stage, the fewest images first."""
    return results[results["stage"] == stage].sort_values("images")


def draw_figure(tables: Tables) -> Figure:
    """Draw time of an image and peak memory against the number of images."""
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (stage, name), colour in zip(STAGES.items(), COLOURS, strict=True):
        rows = select(tables["results"], stage)
        left.plot(rows["images"], 1000 * rows["seconds"] / rows["images"], "o-", ms=4, lw=1.2, color=colour, label=name)
        right.plot(rows["images"], rows["peak_mib"], "o-", ms=4, lw=1.2, color=colour)
    for axes, text in ((left, "ms an image"), (right, "peak memory, MiB")):
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("images", fontsize=9)
        axes.set_ylabel(text, fontsize=9)
        axes.grid(color="#d1d5db", lw=0.5)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return figure
