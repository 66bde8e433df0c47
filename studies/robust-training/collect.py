"""Collect the accuracies of all runs of the study from its study.json.

    python studies/robust-training/collect.py out/nine-ways > studies/robust-training/nine-ways.csv

A row is a condition at an epsilon, of one seed with its 95 % interval over images.
"""

import csv
import sys
from pathlib import Path

from trustcxr.storage.schemas import StudyDocument, read_schema

HEAD = ("training", "seed", "condition", "epsilon", "n", "value", "low", "high")


def main() -> None:
    """Write the table."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    table = csv.writer(sys.stdout)
    table.writerow(HEAD)
    for run in read_schema(StudyDocument, Path(sys.argv[1]) / "study.json").runs:
        rows = [("clean", 0.0, run.clean.n, run.clean.accuracy)]
        rows += [(attack.effort.name, attack.epsilon, attack.n, attack.accuracy) for attack in run.attacks]
        for condition, epsilon, n, share in rows:
            ends = share.interval or (None, None)
            figures = [None if value is None else f"{value:.6g}" for value in (share.value, *ends)]
            table.writerow([run.defence, run.seed, condition, epsilon, n, *figures])


if __name__ == "__main__":
    main()
