"""How long a whole audit by `exam-1` takes: of each run, on all validation images, on the clock.

    python -m benchmarks.speed.audit_whole RUN [RUN...] --data PATH [--images N] > results/audit-times.md

Validation images, since a clock need not open Test; `--images`: the first N of each class. An audit has its parts
image by image: what it takes for so many more is in proportion, and is printed beside.
`python -m benchmarks.speed.audit_parts` says which part takes what.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from benchmarks.formats import first_images
from benchmarks.speed import serve
from trustcxr.audit.run_audit import audit
from trustcxr.evaluation.trained_run import load_run
from trustcxr.report import formatting
from trustcxr.report.tables.table import markdown_rows
from trustcxr.version import NOTICE

TEST = 570  # images of covidqu-mini's Test
HEAD = ["network", "trained", "images", "clean", "worst case", "minutes", "processor, min", f"for {TEST} images, min"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int)
    given = parser.parse_args()
    rows = [measured(run, given.data, given.images) for run in given.runs]
    which = "all" if given.images is None else f"the first {given.images} of each class of the"
    asked = "" if given.images is None else f" --images {given.images}"
    print("# How long an audit takes\n")
    print(
        f"`python -m benchmarks.speed.audit_whole RUN --data {given.data.name}{asked}`; {serve.machine()} `trustcxr "
        f"audit` by exam-1 on {which} validation images of {given.data.name}; accuracies in percent, under attack at "
        "epsilon 0.02. "
        f"The last column is in proportion to the images. {NOTICE}\n"
    )
    print(markdown_rows(HEAD, rows))


def measured(run: Path, data: Path, images: int | None) -> list[str]:
    """A row: one audit from its beginning to its end."""
    loaded = load_run(run, on="cpu")
    recipe, split = loaded.recipe, loaded.recipe.data.splits.val
    with tempfile.TemporaryDirectory() as folder:
        radiographs = first_images(data, Path(folder) / "images", loaded, images, split=split)
        before, spent = time.perf_counter(), processor()
        found = audit(run, radiographs, Path(folder) / "audit")
        minutes, worked = (time.perf_counter() - before) / 60, (processor() - spent) / 60
    count = found.clean.n or 0
    worst = next((one.accuracy for one in found.attacks if one.attack == "worst-case"), None)
    return [
        f"{recipe.model.called} at {loaded.size} pixels",
        recipe.defence.called,
        f"{count}",
        formatting.with_count(found.clean.accuracy),
        "-" if worst is None else formatting.with_count(worst),
        f"{minutes:.1f}",
        f"{worked:.1f}",
        f"{minutes * TEST / max(count, 1):.1f}",
    ]


def processor() -> float:
    """Processor seconds of this process and of the children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


if __name__ == "__main__":
    main()
