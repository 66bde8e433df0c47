"""How many synthetic X-rays a second one core renders. Target: 200 at 224 pixels.

python benchmarks/speed/phantom.py [--images 300] [--size 224]
"""

import argparse
import os
import time

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

from trustcxr.data.phantom import render_image  # noqa: E402
from trustcxr.data.phantom.render_image import SHORTCUTS  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--size", type=int, default=224)
    given = parser.parse_args()
    render_image.render("Normal", 0, given.size)  # draws the vessel trees, once
    for shortcuts in ((), SHORTCUTS):
        for name in render_image.CLASSES:
            wall, processor = time.perf_counter(), time.process_time()
            for seed in range(given.images):
                render_image.render(name, seed, given.size, shortcuts)
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            print(
                f"{name:10} {'all shortcuts' if shortcuts else 'plain':14} {given.size} px: "
                f"{given.images / wall:6.0f} a second, {given.images / processor:6.0f} a second of processor time"
            )


if __name__ == "__main__":
    main()
