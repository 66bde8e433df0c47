"""Collect what is known of the trained models, from `trustcxr evaluate` and `explain`.

    python studies/trained-models/collect.py EVALUATIONS > studies/trained-models/results.csv

EVALUATIONS holds the folders NAME-worst and NAME-explain with metrics.json. The figures of exam-1 are those of the
leaderboard's entries. Every row is a figure with its 95 % interval.
"""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from trustcxr.storage.schemas import RunDocument, Share, read_schema

NAMES = ("covid-robust", "covid-certified", "covid-evidence", "covid-standard")
HEAD = ("model", "measure", "fill", "n", "value", "low", "high")
ZOO = Path(__file__).parents[2] / "src" / "trustcxr" / "zoo"


def make_row(model: str, measure: str, n: int | None, share: Share, fill: str = "") -> list[object]:
    """Return a row of the table."""
    low, high = share.interval or (None, None)
    return [model, measure, fill, n, *(None if v is None else f"{v:.6g}" for v in (share.value, low, high))]


def list_rows(name: str, folder: Path) -> Iterator[list[object]]:
    """Yield the rows of one model."""
    for row in json.loads((ZOO / f"{name}.json").read_text(encoding="utf-8"))["audit"]["figures"]:
        if row["attack"] == "clean" or (row["attack"] in ("worst-case", "certified") and row["epsilon"] == 0.02):
            yield make_row(name, f"{row['attack']}, exam-1", row["n"], Share.model_validate(row["accuracy"]))
    if (folder / f"{name}-worst").is_dir():
        for result in read_schema(RunDocument, folder / f"{name}-worst" / "metrics.json").attacks:
            yield make_row(name, result.effort.name, result.n, result.accuracy)
    if (folder / f"{name}-explain").is_dir():
        for lesion in read_schema(RunDocument, folder / f"{name}-explain" / "metrics.json").lesions:
            if lesion.condition != "clean" or lesion.control != "lung":
                continue
            yield make_row(name, "lesion effect", lesion.images, lesion.least, lesion.fill)
            if lesion.without_control is not None:
                part = lesion.without_control
                yield make_row(name, "fall without a control", part.images, part.fall, lesion.fill)


def main() -> None:
    """Write the table."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    table = csv.writer(sys.stdout)
    table.writerow(HEAD)
    for name in NAMES:
        table.writerows(list_rows(name, Path(sys.argv[1])))


if __name__ == "__main__":
    main()
