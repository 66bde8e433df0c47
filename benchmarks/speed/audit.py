"""What an audit costs: covidqu-mini, then synthetic images in growing numbers, each in a process of its own.

python benchmarks/speed/audit.py [--real ../shared/data/covidqu-mini] [--images 34000] [--out out/audit-images]
                                 [--workers 2]

Writes the synthetic images to --out once (about 8 GB for 34,000 of 256 pixels) and audits the first 1/16, 1/4 and all
of them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")


class _Clock:
    """Wall and processor seconds of each step; those of the processor count on a machine that others use too."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.processor: dict[str, float] = {}
        self._since = self._now()

    def _now(self) -> tuple[float, float]:
        used = os.times()
        return time.perf_counter(), used.user + used.system + used.children_user + used.children_system

    def lap(self, step: str) -> None:
        now = self._now()
        self.wall[step], self.processor[step] = (round(b - a, 2) for a, b in zip(self._since, now, strict=True))
        self._since = now

    def facts(self) -> dict[str, object]:
        totals = {"wall_s": round(sum(self.wall.values()), 1), "processor_s": round(sum(self.processor.values()), 1)}
        return {**totals, "wall_by_step_s": self.wall, "processor_by_step_s": self.processor}


def measure(root: Path, limit: int, workers: int) -> None:
    """Audit the first `limit` samples of each class and split in equal shares; print one JSON line."""
    import numpy as np
    from joblib.externals.loky import get_reusable_executor

    from trustcxr.data.checks import confounds, duplicates, issues
    from trustcxr.data.checks import scan as audit_scan
    from trustcxr.data.layouts import read_manifest

    clock = _Clock()
    manifest = read_manifest(root)
    if limit < len(manifest.table):
        keep = np.zeros(len(manifest.table), bool)
        keep[np.random.default_rng(0).permutation(len(keep))[:limit]] = True
        manifest = manifest.select(keep)
    clock.lap("manifest")
    scan = audit_scan.scan(manifest, workers=workers)
    get_reusable_executor().shutdown(wait=True)  # the time and memory of workers are known once they have ended
    clock.lap("reading every file")
    digests = [d if isinstance(d, str) else None for d in scan.files["pixels"]]
    pairs = duplicates.find_duplicates(digests, scan.thumbs, scan.trimmed)
    clock.lap("duplicates")
    probes = confounds.run_probes(manifest, scan)
    clock.lap("confounds")
    issues.leak_issues(manifest, pairs)
    clock.lap("findings")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    workers_peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    views = {p.view: round(p.accuracy, 3) for p in probes}
    facts: dict[str, object] = {"images": len(manifest.table), **clock.facts()}
    facts |= {"peak_MB": round(peak), "largest_worker_MB": round(workers_peak)}
    print(json.dumps(facts | {"pairs": len(pairs), "probes": views}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, default=Path("../shared/data/covidqu-mini"))
    parser.add_argument("--images", type=int, default=34_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("out/audit-images"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "LIMIT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(Path(given.measure[0]), int(given.measure[1]), given.workers)
        return
    jobs: list[tuple[Path, int]] = [(given.real, 10**9)] if given.real.is_dir() else []
    if given.images:
        if not given.out.exists():
            from trustcxr.data.phantom import write_files

            each = {
                "Train": given.images * 64 // 300,
                "Val": given.images * 16 // 300,
                "Test": given.images * 20 // 300,
            }
            started = time.perf_counter()
            write_files.write(given.out, each, size=given.size, workers=given.workers)
            print(f"wrote the images in {time.perf_counter() - started:.0f} s", flush=True)
        jobs += [(given.out, given.images // 16), (given.out, given.images // 4), (given.out, given.images)]
    for folder, limit in jobs:
        command = [sys.executable, __file__, "--workers", str(given.workers), "--measure", str(folder), str(limit)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(folder.name, done.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
