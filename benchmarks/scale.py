"""Measure time and memory of the data's way through the package, at several numbers of images.

    python -m benchmarks.scale --work FOLDER [--images 2000 8000 33920] [--stage check ...] > studies/scale/results.csv

Draws synthetic images of 224 pixels, then runs each stage in a process of its own with one thread: the data check, the
pixel store, one epoch of training with its validation, and an audit of the Test images by FGSM. A row has the seconds
of the whole process and its peak memory: the median of three runs, or the first run if it took two minutes or more.
Finished rows of `FOLDER/rows.csv` are kept, so it can be started again.
"""

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from trustcxr.data import read_manifest

SIZE, NETWORK, SHARES = 224, "mobilenetv3_small_050", 1 + 1 / 4 + 1 / 3  # images for each one of Train
STAGES = ("draw", "check", "store", "train", "audit")
LONG = 120  # seconds: a stage that takes longer runs once
HEAD = ("stage", "images", "seconds", "peak_mib", "runs")
_STORE = (
    "import sys; from trustcxr.data import load_dataset, read_manifest; m = read_manifest(sys.argv[1]);"
    f"[load_dataset(m, split, {SIZE}) for split in ('Train', 'Val', 'Test')]"
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
    if stage == "train":
        options = ["--model", NETWORK, "--weights", "none", "--size", str(SIZE), "--epochs", "1", "--out", run]
        return [*program, "train", "--data", images, *options]
    options = ["--attack", "fgsm", "--epsilon", "0.02", "--no-pictures", "--out", str(folder / "audit")]
    return [*program, "audit", run, "--data", images, *options]


def images_of(stage: str, folder: Path, count: int) -> int:
    """Return how many images a stage works on: Test alone for an audit, Train and Val for training."""
    if stage not in ("train", "audit"):
        return count
    splits = read_manifest(folder / "images").table["split"]
    return int(splits.isin(["Test"] if stage == "audit" else ["Train", "Val"]).sum())


def run_stage(stage: str, folder: Path, count: int) -> tuple[float, float]:
    """Run a stage, without what its last run left; return its seconds and its peak memory in MiB."""
    for name in {"store": ("cache",), "train": ("run",), "audit": ("audit",)}.get(stage, ()):
        shutil.rmtree(folder / name, ignore_errors=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TRUSTCXR_CACHE": str(folder / "cache")}
    with (folder / f"{stage}.log").open("wb") as log:
        start = time.monotonic()
        process = subprocess.Popen(command_of(stage, folder, count), stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if os.waitstatus_to_exitcode(status) not in (0, 1):  # the data check ends with 1 if it found faults
        sys.exit(f"{stage} on {count} images failed: see {folder / f'{stage}.log'}")
    used = usage.ru_utime + usage.ru_stime
    return min(seconds, used), usage.ru_maxrss / 1024


def measure(stage: str, folder: Path, count: int) -> dict[str, object]:
    """Return the row of a stage: the median of three runs, or its first run if that was long."""
    runs = [run_stage(stage, folder, count)]
    while stage != "draw" and runs[0][0] < LONG and len(runs) < 3:
        runs.append(run_stage(stage, folder, count))
    seconds, peak = (statistics.median(values) for values in zip(*runs, strict=True))
    row: dict[str, object] = {"stage": stage, "images": images_of(stage, folder, count)}
    return row | {"seconds": round(seconds, 1), "peak_mib": round(peak), "runs": len(runs)}


def main() -> None:
    """Measure all stages at all sizes, smallest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 8000, 33920])
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=STAGES)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "rows.csv"
    rows = list(csv.DictReader(kept.open())) if kept.is_file() else []
    for count in options.images:
        folder = options.work / str(count)
        folder.mkdir(exist_ok=True)
        for stage in options.stage:
            if any(row["stage"] == stage and row["folder"] == str(count) for row in rows):
                continue
            rows.append({"folder": str(count)} | measure(stage, folder, count))
            with kept.open("w", newline="") as file:
                table = csv.DictWriter(file, ("folder", *HEAD))
                table.writeheader()
                table.writerows(rows)
        shutil.rmtree(folder / "images", ignore_errors=True)
    table = csv.DictWriter(sys.stdout, HEAD, extrasaction="ignore")
    table.writeheader()
    table.writerows(rows)


if __name__ == "__main__":
    main()
