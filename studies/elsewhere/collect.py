"""Write the share of images that networks of several seeds recognise, by collection and class.

    python studies/elsewhere/collect.py --home OUT/home-s* --away OUT/away-s* > studies/elsewhere/classes.csv

Each folder is the output of `trustcxr evaluate` for one seed. A share is the mean over the seeds; its 95 % interval is
over groups of images. The class "mean" is the mean over classes. Of "same shares" the classes at home have the shares
that they have elsewhere.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from trustcxr.statistics import Bootstrap, difference_interval, interval, share_interval

HEAD = ("collection", "class", "n", "seeds", "condition", "value", "value_low", "value_high")
HOME, FEWEST = "at home", 10
Figure = tuple[float, tuple[float, float]]


def read_right(folders: Sequence[Path], attack: str) -> pd.DataFrame:
    """Return the images with the share of the seeds whose answer is right under one condition."""
    parts = []
    for folder in folders:
        table = pd.read_parquet(folder / "predictions.parquet").query("attack == @attack")
        parts.append(np.stack(table["logits"].to_list()).argmax(1) == table["label"].to_numpy())
    columns = table[["sample_id", "group", "source", "class"]].reset_index(drop=True)
    return columns.assign(right=np.mean(parts, axis=0))


def share(rows: pd.DataFrame) -> Figure:
    """Return the share that is right, and its interval."""
    bootstrap = Bootstrap.over(rows["group"])
    means = bootstrap.means(rows["right"].to_numpy(float))
    low, high = share_interval(bootstrap, means)
    return float(means[0]), (low, high)


def weighted(rows: pd.DataFrame, weights: pd.Series) -> Figure:
    """Return the mean of the shares of the classes by weights that sum to 1, and its interval."""
    bootstrap, right = Bootstrap.over(rows["group"]), rows["right"].to_numpy(float)
    members = np.stack([(rows["class"] == name).to_numpy(float) for name in weights.index], 1)
    shares = np.stack([bootstrap.means(right * part) / bootstrap.means(part) for part in members.T], 1)
    means = shares @ weights.to_numpy()
    low, high = interval(means)
    return float(means[0]), (low, high)


def list_rows(home: Sequence[Path], away: Sequence[Path]) -> Iterator[list[object]]:
    """Yield the rows of the table."""
    figures: dict[str, Figure] = {}
    for condition in ("clean", "pgd"):
        rows = read_right(away, condition)
        weights = rows["class"].value_counts(normalize=True).sort_index()
        tables = {"all": rows} | {str(name): part for name, part in rows.groupby("source")}
        tables |= {HOME: read_right(home, condition)} if condition == "clean" else {}
        for name, table in tables.items():
            cells = {str(label): (len(part), share(part)) for label, part in table.groupby("class")}
            if name in ("all", HOME):
                cells["mean"] = (len(table), weighted(table, weights * 0 + 1 / len(weights)))
                figures[f"{name} {condition}"] = weighted(table, weights) if name == HOME else share(table)
                cells["same shares"] = (len(table), figures[f"{name} {condition}"])
            for label, (n, (value, ends)) in cells.items():
                if n >= FEWEST:
                    yield [name, label, n, len(away), condition, value, *ends]
    before, after = figures[f"{HOME} clean"], figures["all clean"]
    yield ["fall", "same shares", "", len(away), "clean", before[0] - after[0], *difference_interval(*before, *after)]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--home", "--away"):
        parser.add_argument(name, type=Path, nargs="+", required=True)
    options = parser.parse_args()
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(HEAD)
    for row in list_rows(options.home, options.away):
        table.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])


if __name__ == "__main__":
    main()
