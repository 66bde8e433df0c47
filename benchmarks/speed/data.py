"""Reading images, measured side by side in one run: store against ImageFolder, building, memory, startup.

    python benchmarks/speed/data.py [--data FOLDER] [--many 100000] [--out FILE.json]

`--data` is a folder of real images (any depth); without it, synthetic X-rays are written. The large data sets are hard
links to those files, so they take no room; the store of 100,000 takes 5 GB while it is measured. The goal of building
needs libpng in Pillow's place (`pip install 'trustcxr[fast]'`): which of the two decodes is printed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
SIZE, BATCH = 224, 64
CLASSES = ("COVID-19", "Non-COVID", "Normal")
TARGETS = {
    "store against ImageFolder, times": (">=", 10.0),
    "building, share of cores x one process": (">=", 0.9),
    "growth of resident memory in an epoch, MB": ("<", 300.0),
    "startup on a built store, seconds": ("<", 1.0),
}


def source_images(data: Path | None, folder: Path, count: int) -> list[Path]:
    """Up to `count` image files: real ones where a folder is given, else synthetic X-rays of 256 pixels."""
    if data is not None:
        found = [f for f in sorted(data.rglob("*.png")) if "mask" not in str(f.parent)]
        return found[:: max(len(found) // count, 1)][:count]
    from trustcxr.data.phantom import write_files

    write_files.write(folder, {"Train": -(-count // 3)}, size=256)
    return [f for f in sorted(folder.rglob("*.png")) if "mask" not in str(f.parent)][:count]


def class_folders(files: list[Path], folder: Path, count: int) -> Path:
    """A data set of `count` images in class folders: copies of the files, and then hard links to those."""
    own: list[Path] = []
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        target = folder / CLASSES[i % len(CLASSES)] / f"{i:06d}.png"
        if i < len(files):
            target.write_bytes(files[i].read_bytes())
            own.append(target)
        else:
            os.link(own[i % len(own)], target)
    return folder


def rate(batches: Callable[[], Iterable[Any]], seconds: float = 6.0) -> float:
    """Images a second over whole passes, after one pass to warm up the caches."""
    for _ in batches():
        pass
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for images, *_ in batches():
            done += len(images)
    return done / (time.perf_counter() - start)


def compare_batches(folder: Path, cache: Path, workers: int) -> tuple[float, float]:
    """Shuffled batches a second from (ImageFolder with worker processes, the store without)."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, Grayscale, Resize, ToTensor

    from trustcxr.data import load_dataset
    from trustcxr.data.loader import loader

    torch.set_num_threads(1)
    steps = Compose([Grayscale(), Resize((SIZE, SIZE)), ToTensor()])
    theirs = DataLoader(ImageFolder(str(folder), steps), BATCH, shuffle=True, num_workers=workers)
    ours = loader(load_dataset(folder, size=SIZE, cache=cache), BATCH, shuffle=True)
    return rate(lambda: theirs), rate(lambda: ours)


def decode_with_pil(files: list[Path], threads: int = 1) -> float:
    """Images a second that one process opens, turns grey and resizes with Pillow alone."""
    from PIL import Image

    def decode(file: Path) -> bytes:
        with Image.open(file) as image:
            return image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR).tobytes()

    start = time.perf_counter()
    if threads == 1:
        for file in files:
            decode(file)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(decode, files):
                pass
    return len(files) / (time.perf_counter() - start)


def build_store(folder: Path, cache: Path) -> float:
    """Images a second that building a store gets through, from a folder to an open data set."""
    from trustcxr.data import load_dataset

    start = time.perf_counter()
    count = len(load_dataset(folder, size=SIZE, cache=cache))
    return count / (time.perf_counter() - start)


def resident() -> float:
    """Resident memory of this process in MB, memory-mapped files included."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def epoch_growth(folder: Path, cache: Path) -> tuple[float, float]:
    """(MB by which an epoch of shuffled batches grows resident memory at most, its images a second)."""
    from trustcxr.data import load_dataset
    from trustcxr.data.loader import loader

    batches = loader(load_dataset(folder, size=SIZE, cache=cache), BATCH, shuffle=True)
    before = highest = resident()
    done, start = 0, time.perf_counter()
    for i, (images, *_) in enumerate(batches):
        images.sum()
        done += len(images)
        if i % 20 == 0:
            highest = max(highest, resident())
    return max(highest, resident()) - before, done / (time.perf_counter() - start)


STARTUP = """
import sys, time
start = time.perf_counter()
from trustcxr.data import load_dataset
data = load_dataset(sys.argv[1], size=int(sys.argv[2]), cache=sys.argv[3])
data.batch([0, len(data) - 1]), data.labels
print(time.perf_counter() - start, len(data))
"""


def startup(folder: Path, cache: Path) -> float:
    """Seconds of a fresh process from its first import to the first images; the best of three."""
    command = [sys.executable, "-c", STARTUP, str(folder), str(SIZE), str(cache)]
    return min(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]) for _ in range(3)
    )


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    cores, cache = len(os.sched_getaffinity(0)), work / "cache"
    files = source_images(options.data, work / "source", 2000)
    small, middle = class_folders(files, work / "small", len(files)), class_folders(files, work / "middle", 10_000)
    results: dict[str, Any] = {}
    for workers in (0, cores):
        theirs, ours = compare_batches(small, cache, workers)
        results[f"ImageFolder, {workers} workers, images/s"] = theirs
        results[f"store, {workers} workers, images/s"] = ours
        results[f"store against ImageFolder, times ({workers} workers)"] = ours / theirs
    decoded = sorted(small.rglob("*.png"))
    large = class_folders(files, work / "large", options.many)
    # PIL before, between and after, since what else a machine does changes from minute to minute.
    alone = [decode_with_pil(decoded)]
    threaded = decode_with_pil(decoded, cores)
    built = {}
    for count, folder in ((10_000, middle), (options.many, large)):
        built[count] = build_store(folder, cache)
        alone.append(decode_with_pil(decoded))
    results["one process, PIL alone, images/s"] = sum(alone) / len(alone)
    results[f"one process of {cores} threads, PIL alone, images/s"] = threaded
    for count, speed in built.items():
        results[f"building a store of {count:,}, images/s"] = speed
        results[f"building, share of cores x one process ({count:,})"] = speed / (sum(alone) / len(alone) * cores)
    results["growth of resident memory in an epoch, MB"], results["epoch, images/s"] = epoch_growth(large, cache)
    results["startup on a built store, seconds"] = startup(large, cache)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of real images (PNG)")
    parser.add_argument("--many", type=int, default=100_000, help="images of the large data set")
    parser.add_argument("--work", type=Path, help="folder for what is written (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        results = measure(options, Path(work))
    print(
        f"{SIZE} pixels, batches of {BATCH}, {len(os.sched_getaffinity(0))} cores, {options.many:,} images, "
        f"load {os.getloadavg()[0]:.1f}, PNG by {'libpng' if find_spec('imagecodecs') else 'Pillow'}"
    )
    for name, value in results.items():
        target = next((t for key, t in TARGETS.items() if name.startswith(key)), None)
        verdict = ""
        if target is not None:
            met = value >= target[1] if target[0] == ">=" else value < target[1]
            verdict = f"  {'met' if met else 'MISSED'} ({target[0]} {target[1]:g})"
        print(f"{name:58} {value:10,.2f}{verdict}")
    if options.out:
        machine = {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))}
        options.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
