"""Write the figures of every run of the study as one table.

    python studies/paper-in-small/collect.py out/twenty-one > studies/paper-in-small/results.csv

Each row is one figure with its 95 % interval (over groups of images) and the count of its images. `effort`: steps of an
attack, severity of a corruption. `chance`: what an even map has. `lesion_effect`: the smallest by any fill and control.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trustcxr.storage.atomic import read_yaml
from trustcxr.storage.schemas import RunDocument, read_schema

HEAD = (
    "run",
    "network",
    "training",
    "split",
    "condition",
    "epsilon",
    "effort",
    "measure",
    "value",
    "low",
    "high",
    "chance",
    "n",
)
Row = list[object]


def figure(measure: str, result: dict[str, Any], n: int) -> Row:
    """Return the columns of one figure, from `measure` on."""
    low, high = result["ci"] or (None, None)
    return [measure, result["value"], low, high, result.get("chance"), n]


def list_figures(run: RunDocument) -> Iterator[Row]:
    """Yield the columns of each figure of a run, from `condition` on."""
    document = run.model_dump(mode="json")
    clean, saliency = document["clean"], document["saliency"]
    for measure, value in clean.items():
        if isinstance(value, dict) and "ci" in value:
            yield ["clean", 0, None, *figure(measure, value, clean["n"])]
    for view, row in document["shortcuts"].items():
        yield [view, 0, None, *figure("accuracy", row["accuracy"], row["n"])]
    for row in document["attacks"]:
        yield [row["attack"], row["epsilon"], row["steps"], *figure("accuracy", row["accuracy"], row["n"])]
    for row in document["corruptions"]:
        yield [row["corruption"], None, row["severity"], *figure("accuracy", row["accuracy"], row["n"])]
    for row in document["lesions"]:
        name = f"lesion_effect_{row['fill']}_{row['control']}".replace(" ", "_")
        yield [row["condition"], row["epsilon"], None, *figure(name, row["least"], row["images"])]
    if (effect := run.lesion_effect) is not None:
        low, high = effect.least.interval or (None, None)
        yield ["clean", 0, None, "lesion_effect", effect.least.value, low, high, None, effect.images]
    for method, maps in saliency.items():
        for measure, value in maps.items():
            if isinstance(value, dict) and "ci" in value:
                yield [method, 0, None, *figure(measure, value, maps["n"])]


def main() -> None:
    """Write the table."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    study = Path(sys.argv[1])
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(HEAD)
    recipe: Any = read_yaml(study / "study.yaml")["recipe"]
    order = [model["name"].lower() for model in recipe["models"]]
    runs = [read_schema(RunDocument, path) for path in sorted(study.glob("runs/*/metrics.json"))]
    for run in sorted(runs, key=lambda run: (order.index(run.model.lower()), run.defence != "standard")):
        for row in list_figures(run):
            cells = [run.run, run.model, run.defence, run.split, *row]
            table.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in cells])


if __name__ == "__main__":
    main()
