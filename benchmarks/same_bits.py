"""Run one small study with two versions of the source and compare the results bit by bit: weights and tables.

python benchmarks/same_bits.py BEFORE/src AFTER/src [--keep FOLDER]

Both versions draw the same synthetic images, train a standard and an FGSM-trained network of two kinds with fixed seeds
and one thread, and measure them. Tables are compared row by row, on the columns that both versions have.
Exit code 1 and the names of the differing files if any bit differs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

RECIPE = """\
name: bits
data: {size: 32}
models:
  - {name: test_resnet, weights: none}
  - {name: resnet10t, weights: none}
training: {epochs: 2, batch_size: 16, warmup_epochs: 0, label_smoothing: 0.1, balanced: true}
selection: {count: 1}
defences:
  - {name: fgsm, epsilon: 0.02, ramp: 0.5}
evaluation:
  attacks:
    - {name: fgsm, epsilons: [0.01, 0.02]}
    - {name: pgd, epsilons: [0.02], steps: 5}
    - {name: worst-case, epsilons: [0.02], steps: 3, queries: 20}
  corruptions: {names: [gaussian_noise, jpeg], severities: [1, 5]}
explanation: {methods: [gradcam, hirescam]}
"""
RENAMED = {"lungs_on_another_film": "lungs_on_another_image"}  # a condition's name before and after
TABLES = {
    "predictions": ("predictions.parquet",),
    "validation": ("validation.parquet",),
    "saliency": ("saliency.parquet",),
    "lesion effects": ("lesion_effects.parquet", "lesions.parquet"),
}


def run_study(source: Path, folder: Path) -> None:
    """Draw the images and run the study with the package in `source`."""
    folder.mkdir(parents=True)
    (folder / "bits.yaml").write_text(RECIPE)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = os.environ | threads | {"PYTHONPATH": str(source.resolve()), "TRUSTCXR_CACHE": str(folder / "cache")}
    for command in (
        ["data", "phantom", "images", "--per-class", "24", "--size", "48"],
        ["study", "bits.yaml", "--data", "images", "--out", "out"],
    ):
        subprocess.run([sys.executable, "-m", "trustcxr", *command], cwd=folder, env=environment, check=True)


def compare_weights(before: Path, after: Path) -> bool:
    """Return whether two files of weights hold the same bits under the same names."""
    first, second = load_file(before), load_file(after)
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def read_rows(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read a table with its rows in a fixed order and arrays as bytes."""
    table = pd.read_parquet(path)[columns]
    if "attack" in columns:
        table["attack"] = table["attack"].replace(RENAMED)
    for name in columns:
        if table[name].map(lambda value: isinstance(value, np.ndarray)).any():
            table[name] = table[name].map(lambda value: np.asarray(value).tobytes())
    return table.sort_values([name for name in columns if table[name].dtype.kind != "f"], ignore_index=True)


def compare_tables(before: Path, after: Path) -> bool:
    """Return whether two tables hold the same rows, on the columns that both have."""
    shared = [name for name in pd.read_parquet(before).columns if name in pd.read_parquet(after).columns]
    first, second = read_rows(before, shared), read_rows(after, shared)
    return len(first) == len(second) and first.equals(second)


def find_table(run: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first of these files that the run has."""
    return next((run / name for name in names if (run / name).is_file()), None)


def compare_runs(before: Path, after: Path) -> Iterator[tuple[str, bool]]:
    """Yield each compared file of a run and whether it is the same."""
    yield "weights", compare_weights(before / "model.safetensors", after / "model.safetensors")
    for label, names in TABLES.items():
        first, second = find_table(before, names), find_table(after, names)
        if first is None and second is None:
            continue
        yield label, first is not None and second is not None and compare_tables(first, second)


def main() -> None:
    """Run both versions and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for both studies; a finished one in it is used again")
    options = parser.parse_args()
    home = options.keep or Path(tempfile.mkdtemp())
    for name, source in (("before", options.before), ("after", options.after)):
        if not (home / name / "out" / "study.json").is_file():
            run_study(source, home / name)
    same, runs = True, sorted(path.name for path in (home / "before/out/runs").iterdir() if path.is_dir())
    for run in runs:
        for label, equal in compare_runs(home / "before/out/runs" / run, home / "after/out/runs" / run):
            print(f"{run:28} {label:16} {'the same bits' if equal else 'DIFFERENT'}")
            same = same and equal
    sys.exit(0 if same and runs else 1)


if __name__ == "__main__":
    main()
