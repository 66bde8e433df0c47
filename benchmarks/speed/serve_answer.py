"""How long the page's answer takes: images one after the other through `trustcxr serve`, each with all its pictures.

python -m benchmarks.speed.serve_answer RUN [RUN...] [--images 10] > serve-answer.md

Beside the time that a clock shows, the processor seconds of the server and its workers, which other work on the machine
does not lengthen: on 2 cores an answer takes no longer than those, if it has the cores to itself.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np

from benchmarks.speed import serve
from trustcxr.version import NOTICE

IMAGE = 1024  # pixels of a side of what is sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=10)
    given = parser.parse_args()
    rows = [row for run in given.runs for row in measured(run, given.images)]
    print("# How long the answer of the page takes\n")
    print(
        f"`python -m benchmarks.speed.serve_answer RUN`; {serve.machine()} "
        f"Synthetic images of {IMAGE} x {IMAGE} pixels, "
        "PNG, one after the other, all answered with 200. `processor`: seconds of the server and its workers an image. "
        f"{NOTICE}\n"
    )
    print("| network | asked | images | processor, s | median, s | slowest, s |\n| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))


def measured(run: Path, images: int) -> list[str]:
    """A row for each kind of answer. RuntimeError where an image is not answered."""
    rows = []
    with serve.served(run, Path(os.devnull)) as server:
        for kind in ("predict", "examine"):
            uploads = [serve.form(serve.image(seed, IMAGE), "image") for seed in range(images + 2)]
            for upload in uploads[:2]:  # a worker's first image waits for what is done once
                _asked(server.url, kind, upload)
            began = _processor(server.process.pid)
            seconds = [_asked(server.url, kind, upload) for upload in uploads[2:]]
            spent = (_processor(server.process.pid) - began) / images
            values = f"{spent:.2f} | {np.median(seconds):.2f} | {max(seconds):.2f}"
            rows.append(f"| {run.name}: {serve.network(run)} | {kind} | {images} | {values} |")
    return rows


def _asked(url: str, kind: str, upload: serve.Upload) -> float:
    began = time.monotonic()
    status, _, body = serve.ask(url, "POST", f"/api/v1/{kind}", upload.body, upload.kind)
    if status != 200:
        raise RuntimeError(f"{kind}: {status} {body[:200]!r}")
    return time.monotonic() - began


def _processor(pid: int) -> float:
    """Seconds of processor time of a process and those that it started."""
    total = 0.0
    for one in (pid, *serve.children(pid)):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


if __name__ == "__main__":
    main()
