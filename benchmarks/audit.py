"""What an audit costs: covidqu-mini, then synthetic films in growing numbers, each in a process of its own.

python benchmarks/audit.py [--real ../shared/data/covidqu-mini] [--films 34000] [--out out/audit-films] [--workers 2]

Writes the synthetic films to --out once (about 8 GB for 34,000 of 256 pixels) and audits the first 1/16, 1/4 and all
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


def measure(root: Path, limit: int, workers: int) -> None:
    """Audit the first `limit` samples of each class and split in equal shares; print one JSON line."""
    import numpy as np
    from joblib.externals.loky import get_reusable_executor

    from trustcxr.data import audit_findings, audit_scan, confounds, duplicates
    from trustcxr.data.layouts import read_manifest

    seconds: dict[str, float] = {}

    def timed(step: str) -> None:
        seconds[step] = round(time.perf_counter() - timed.since, 2)  # type: ignore[attr-defined]
        timed.since = time.perf_counter()  # type: ignore[attr-defined]

    timed.since = time.perf_counter()  # type: ignore[attr-defined]
    manifest = read_manifest(root)
    if limit < len(manifest.table):
        keep = np.zeros(len(manifest.table), bool)
        keep[np.random.default_rng(0).permutation(len(keep))[:limit]] = True
        manifest = manifest.select(keep)
    timed("manifest")
    scan = audit_scan.scan(manifest, workers=workers)
    timed("reading every file")
    get_reusable_executor().shutdown(wait=True)  # the memory of workers is known once they have ended
    timed.since = time.perf_counter()  # type: ignore[attr-defined]
    digests = [d if isinstance(d, str) else None for d in scan.files["pixels"]]
    pairs = duplicates.find_duplicates(digests, scan.hashes, scan.thumbs)
    timed("duplicates")
    probes = confounds.run_probes(manifest, scan)
    timed("confounds")
    audit_findings.leak_findings(manifest, pairs)
    timed("findings")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    workers_peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    views = {p.view: round(p.accuracy, 3) for p in probes}
    facts = {"images": len(manifest.table), "seconds": seconds, "total": round(sum(seconds.values()), 1)}
    facts |= {"peak_MB": round(peak), "largest_worker_MB": round(workers_peak)}
    print(json.dumps(facts | {"pairs": len(pairs), "probes": views}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, default=Path("../shared/data/covidqu-mini"))
    parser.add_argument("--films", type=int, default=34_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("out/audit-films"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "LIMIT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(Path(given.measure[0]), int(given.measure[1]), given.workers)
        return
    jobs: list[tuple[Path, int]] = [(given.real, 10**9)] if given.real.is_dir() else []
    if given.films:
        if not given.out.exists():
            from trustcxr.data import phantom

            each = {"Train": given.films * 64 // 300, "Val": given.films * 16 // 300, "Test": given.films * 20 // 300}
            started = time.perf_counter()
            phantom.write(given.out, each, size=given.size, workers=given.workers)
            print(f"wrote the films in {time.perf_counter() - started:.0f} s", flush=True)
        jobs += [(given.out, given.films // 16), (given.out, given.films // 4), (given.out, given.films)]
    for folder, limit in jobs:
        command = [sys.executable, __file__, "--workers", str(given.workers), "--measure", str(folder), str(limit)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(folder.name, done.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
