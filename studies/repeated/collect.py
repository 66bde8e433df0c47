"""Compare runs that were trained again with the figures of the studies that they belong to.

    python studies/repeated/collect.py OUT > studies/repeated/results.csv

OUT holds a folder of `trustcxr study` for each study: OUT/certified, OUT/lesion, OUT/nine-ways, OUT/paper-in-small,
OUT/robust-training. Runs that it lacks are left out. Each row has a figure of the study with its 95 % interval (over
groups of images, where its CSV file has one) and the figure of the repeated run. For paper-in-small, whose table is of
the repeated runs, earlier.csv has the figures before.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from trustcxr.storage.schemas import RunDocument, read_schema

STUDIES = Path(__file__).parents[1]
HEAD = ("study", "run", "measure", "n", "before", "before_low", "before_high", "again")
MEASURES = ("clean", "fgsm", "pgd", "worst-case", "certified")
Figures = dict[str, tuple[float, float | None, float | None]]  # value, low, high by measure


def read_wide(study: str, rows: str, table: str = "results") -> Figures:
    """Return the figures of a CSV file with a column for each measure."""
    row = pd.read_csv(STUDIES / study / f"{table}.csv").query(rows).iloc[0]
    names = {name: name.replace("-", "_") for name in MEASURES if name.replace("-", "_") in row}
    return {name: (row[key], row.get(f"{key}_low"), row.get(f"{key}_high")) for name, key in names.items()}


def read_long(study: str, rows: str, table: str = "results") -> Figures:
    """Return the figures of a CSV file with a row for each measure."""
    found, figures = pd.read_csv(STUDIES / study / f"{table}.csv").query(rows), Figures()
    for row in found.itertuples():  # conditions are written as worst-case or as worst-case-20/50
        if name := next((name for name in MEASURES if str(row.condition).lower().startswith(name)), None):
            figures[name] = (row.value, row.low, row.high)
    return figures


def read_studies() -> Iterator[tuple[str, str, Figures]]:
    """Yield the folder of each study in OUT, a run in it, and the figures of the study's CSV file."""
    name = "resnet10t-fgsm, 30 epochs of 3616 images, seed 0"
    yield "robust-training", "resnet10t-fgsm-s0", read_wide("robust-training", f"run == '{name}'")
    for training in ("standard", "fgsm"):
        rows = f"training == '{training}' and seed == 0"
        yield "nine-ways", f"resnet10t-{training}-s0", read_long("robust-training", rows, "nine-ways")
        run = f"evidence-fullx48-{training}-s0"
        yield "lesion", run, read_wide("lesion", f"run == '{run}'")
    rows = "network == 'plain3-ibp-0.02' and seed == '0' and epsilon == 0.02"
    yield "certified", "plain3-ibp-s0", read_wide("certified", rows)
    for run in pd.read_csv(STUDIES / "repeated" / "earlier.csv")["run"].unique():
        yield "paper-in-small", run, read_long("repeated", f"run == '{run}'", "earlier")


def list_rows(out: Path) -> Iterator[list[object]]:
    """Yield the rows of the table."""
    for study, run, figures in read_studies():
        if not (path := out / study / "runs" / run / "metrics.json").is_file():
            continue
        document = read_schema(RunDocument, path)
        again = {"clean": (document.clean.n, document.clean.accuracy.value)}
        for row in (*document.attacks, *document.certified):
            if row.epsilon == 0.02:
                again[getattr(row, "attack", "certified")] = row.n, row.accuracy.value
        for measure in figures.keys() & again.keys():
            yield [study, run, measure, again[measure][0], *figures[measure], again[measure][1]]


def main() -> None:
    """Write the table."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(HEAD)
    for row in sorted(list_rows(Path(sys.argv[1])), key=lambda row: list(map(str, row[:3]))):
        table.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row])


if __name__ == "__main__":
    main()
