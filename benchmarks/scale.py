"""Measure time and memory of the data's way through the package, at several numbers of images.

    python -m benchmarks.scale --work FOLDER [--images 2000 8000 33920] [--rounds 3] > studies/scale/results.csv

Draws synthetic images of 224 pixels, then runs each stage in a process of its own on one core: the data check, the
pixel store, a copy of its files, one epoch of training with its validation, and an audit of the Test images by FGSM.
The copy shows what the system alone needs for as many bytes. A round runs every stage at every size. A row of the
result has the least processor seconds of the rounds, of the program and of the system, and the highest peak memory.
Finished runs are kept in `FOLDER/runs.csv`, so it can be started again.
"""

import argparse
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pandas as pd

SIZE, NETWORK, SHARES = 224, "mobilenetv3_small_050", 1 + 1 / 4 + 1 / 3  # images for each one of Train
STAGES = ("draw", "check", "store", "copy", "train", "audit")
RUN = ("round", "size", "stage", "images", "seconds", "system_seconds", "peak_mib")
_STORE = (
    "import sys; from trustcxr.data import load_dataset, read_manifest; m = read_manifest(sys.argv[1]);"
    f"[load_dataset(m, split, {SIZE}) for split in ('Train', 'Val', 'Test')]"
)

# In a process of its own: the peak memory of a stage includes that of the process that starts it.
_COUNT = (
    "import sys; from trustcxr.data import read_manifest;"
    "print(read_manifest(sys.argv[1]).table['split'].isin({splits}).sum())"
)


def command_of(stage: str, folder: Path, count: int) -> list[str]:
    """Return the command of a stage on `count` images in `folder`/images."""
    program, images, run = [sys.executable, "-m", "trustcxr"], str(folder / "images"), str(folder / "run")
    if stage == "draw":
        each = round(count / 3 / SHARES)
        return [*program, "data", "phantom", images, "--per-class", str(each), "--size", str(SIZE)]
    if stage == "check":
        return [*program, "data", "check", images, "--no-probes"]
    if stage == "store":
        return [sys.executable, "-c", _STORE, images]
    if stage == "copy":
        return ["cp", "-r", "--reflink=never", str(folder / "cache"), str(folder / "copy")]
    if stage == "train":
        options = ["--model", NETWORK, "--weights", "none", "--size", str(SIZE), "--epochs", "1", "--out", run]
        return [*program, "train", "--data", images, *options]
    options = ["--attack", "fgsm", "--epsilon", "0.02", "--no-pictures", "--out", str(folder / "audit")]
    return [*program, "audit", run, "--data", images, *options]


def images_of(stage: str, folder: Path, count: int) -> int:
    """Return how many images a stage works on: Test alone for an audit, Train and Val for training."""
    if stage not in ("train", "audit"):
        return count
    splits = "['Test']" if stage == "audit" else "['Train', 'Val']"
    counted = subprocess.check_output([sys.executable, "-c", _COUNT.format(splits=splits), str(folder / "images")])
    return int(counted)


def run_stage(stage: str, folder: Path, count: int) -> tuple[float, float, float]:
    """Run a stage without what its last run left: seconds of the program and of the system, and peak memory in MiB."""
    if left := {"store": "cache", "copy": "copy", "train": "run", "audit": "audit"}.get(stage):
        shutil.rmtree(folder / left, ignore_errors=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TRUSTCXR_CACHE": str(folder / "cache")}
    with (folder / f"{stage}.log").open("wb") as log:
        process = subprocess.Popen(command_of(stage, folder, count), stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):  # the data check ends with 1 if it found faults
        sys.exit(f"{stage} on {count} images failed: see {folder / f'{stage}.log'}")
    return usage.ru_utime, usage.ru_stime, usage.ru_maxrss / 1024


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each stage and size: the least seconds of its rounds, the highest peak memory."""
    groups = runs[runs["stage"] != "draw"].groupby(["size", "stage"], sort=False)
    table = groups[["seconds", "system_seconds"]].min().round(1)
    table.insert(0, "images", groups["images"].first())
    peak = groups["peak_mib"].max().round().astype(int)
    return table.assign(peak_mib=peak, rounds=groups["round"].nunique()).reset_index().drop(columns="size")


def main() -> None:
    """Run all stages at all sizes in rounds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 8000, 33920])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the processes that it starts run there too
    kept = options.work / "runs.csv"
    runs = pd.read_csv(kept).to_dict("records") if kept.is_file() else []
    for number, size, stage in product(range(options.rounds), options.images, STAGES):
        folder = options.work / str(size)
        folder.mkdir(parents=True, exist_ok=True)
        done = [run["round"] for run in runs if (run["size"], run["stage"]) == (size, stage)]
        if number in done or (stage == "draw" and done):
            continue
        used = run_stage(stage, folder, size)
        run = (number, size, stage, images_of(stage, folder, size), *used)
        runs.append(dict(zip(RUN, run, strict=True)))
        pd.DataFrame(runs).to_csv(kept, index=False)
    summarise(pd.DataFrame(runs)).to_csv(sys.stdout, index=False)


if __name__ == "__main__":
    main()
