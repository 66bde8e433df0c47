"""Make the table and the figure of the lesion effect and of where the map lies."""

import pandas as pd
from matplotlib.figure import Figure
from studies.build import Tables, interval_figure, markdown

HEAD = ("network", "clean", "worst case", "lungs blacked out", "hit rate", "less the closest baseline")
HEAD += ("lesion effect", "by greys drawn at random")


def mean_rows(results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are means of three seeds."""
    return results[results["seeds"] == 3]


def make_tables(tables: Tables) -> dict[str, str]:
    """Return the means of three seeds; differences with the mean of the seeds' lower ends."""
    rows = [
        [
            f"`{row['recipe']}`",
            *(f"{100 * row[name]:.1f}" for name in ("clean", "worst_case", "lungs_blacked_out")),
            f"{row['hit_rate']:.3f}",
            f"{row['hit_rate_less_control']:.3f} ({row['hit_rate_less_control_low']:.3f})",
            f"{row['lesion_effect']:.3f} ({row['lesion_effect_low']:.3f})",
            f"{row['lesion_effect_drawn']:.3f} ({row['lesion_effect_drawn_low']:.3f})",
        ]
        for _, row in mean_rows(tables["results"]).iterrows()
    ]
    return {"results": markdown(HEAD, rows)}


def draw_figure(tables: Tables) -> Figure:
    """Draw the lesion effect of every seed, with two fills."""
    effects = tables["effects"]
    series = {}
    for label, column in (("healthy grey", "lesion effect"), ("greys drawn at random", "drawn")):
        columns = [column, f"{column} low", f"{column} high"]
        series[label] = [tuple(float(row[name]) for name in columns) for _, row in effects.iterrows()]
    return interval_figure(list(effects["run"]), series, "lesion effect on 245 Test images, by fill", (-0.1, 0.5))
