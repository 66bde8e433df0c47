"""Measure the runs of one recipe on Test, and print a row for each seed, the ensemble of the first, and the mean.

    python studies/robust/evaluate.py RUN RUN ... --recipe NAME --data covidqu-midi --out FOLDER >> results.csv

The ensemble averages the logits of the runs. It is written as a run of its own into FOLDER. Intervals of a row are over
images; those of the mean are over seeds (Student's t).
"""

import argparse
import csv
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml
from safetensors.torch import load_file, save_file
from scipy import stats

import trustcxr as tx
from trustcxr.storage import layout
from trustcxr.storage.schemas import Share


def join_runs(runs: Sequence[Path], folder: Path) -> Path:
    """Write the ensemble of runs of one network as a run, and return its folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(runs[0], folder, ignore=shutil.ignore_patterns("evaluations", layout.BEFORE_REFIT))
    document = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    model = document["recipe"]["model"]
    model |= {"members": len(runs), "label": f"{model['name']}-ensemble-of-{len(runs)}"}
    document["name"] = folder.name
    parts = [load_file(run / "model.safetensors") for run in runs]
    weights = {name: parts[0][name] for name in ("mean", "std")}
    for number, part in enumerate(parts):
        weights |= {name.replace("net.", f"net.nets.{number}.", 1): part[name] for name in part if name not in weights}
    save_file(weights, folder / "model.safetensors")
    document["checksums"] = layout.checksums(folder, document["classes"])
    (folder / "run.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    if (runs[0] / layout.BEFORE_REFIT).is_dir():
        join_runs([run / layout.BEFORE_REFIT for run in runs], folder / layout.BEFORE_REFIT)
    return folder


def measure(run: Path, data: Path, out: Path) -> dict[str, tuple[int | None, Share]]:
    """Return the count and the accuracy under each measure, the worst case at 0.02 the strongest."""
    result = tx.evaluate(
        run, data, out=out, split="Test", attacks=["worst-case"], epsilons=[0.02], steps=30, queries=300
    )
    rows = {attack.effort.name: (attack.n, attack.accuracy) for attack in result.attacks}
    return {"clean": (result.clean.n, result.clean.accuracy), **rows}


def list_rows(runs: Sequence[Path], data: Path, out: Path, members: int) -> Iterator[list[object]]:
    """Yield the rows of the table; the ensemble is of the first `members` runs."""
    measured = {f"seed {number}": measure(run, data, out / f"seed-{number}") for number, run in enumerate(runs)}
    ensemble = join_runs(runs[:members], out / f"ensemble-of-{members}")
    measured[f"ensemble of {members}"] = measure(ensemble, data, out / "ensemble")
    for network, figures in measured.items():
        for name, (n, share) in figures.items():
            yield [network, name, n, share.value, *(share.interval or (None, None))]
    for name in measured["seed 0"]:
        values = np.array([measured[f"seed {number}"][name][1].value for number in range(len(runs))], float)
        reach = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
        n = measured["seed 0"][name][0]
        yield [f"mean of {len(runs)} seeds", name, n, values.mean(), values.mean() - reach, values.mean() + reach]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--members", type=int, default=3, help="runs in the ensemble, the first")
    options = parser.parse_args()
    table = csv.writer(sys.stdout)
    for row in list_rows(options.runs, options.data, options.out, options.members):
        table.writerow([options.recipe, *(f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row)])


if __name__ == "__main__":
    main()
