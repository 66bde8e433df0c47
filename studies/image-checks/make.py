"""Make the tables of what the checks of an image recognise."""

import pandas as pd
from studies.build import Tables, join_intervals, markdown


def make_tables(tables: Tables) -> dict[str, str]:
    """Return each file as a table; of the images unlike the training images only the score that warns."""
    made = {name: join_intervals(table) for name, table in tables.items() if name != "out-of-distribution"}
    return made | {"out-of-distribution": _refusals(tables["out-of-distribution"])}


def _refusals(table: pd.DataFrame) -> str:
    """Return what the score that warns refuses, of each kind of image."""
    shown = table[table["method"] == "the score"]
    rows = [
        [row["kind"], row["n"], f"{100 * row['refused']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"]
        for _, row in shown.iterrows()
    ]
    return markdown(("images", "n", "unlike the training images, %"), rows)
