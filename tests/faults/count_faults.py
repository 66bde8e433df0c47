"""Counts how the fault list ends, in one process (started anew after one that hangs), and what cuts do to a study.

It prints both as tables.

python tests/faults/count_faults.py --save before.json        # with PYTHONPATH at the tree that is counted
python tests/faults/count_faults.py --table before.json after.json > results/faults-before-after.md
"""

import argparse
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import count_cuts
from fault_artefacts import Artefacts
from fault_commands import Case, cases
from fault_runner import LIMIT, MEMORY, main, run

ENDS = ("done", "refused in a few lines", "refused at length", "code 1", "traceback", "hang")


def kind(ended: dict[str, Any]) -> str:
    """One of ENDS."""
    if ended["hang"]:
        return "hang"
    if ended["traceback"]:
        return "traceback"
    if ended["code"] == 2:
        return "refused in a few lines" if ended["good"] else "refused at length"
    return "done" if ended["code"] == 0 else "code 1"


def part(case: Case) -> str:
    """The kind of fault a case is of."""
    words = " ".join(case.words)
    if case.full is not None:
        return "disk full"
    if "{run/" in words or "{study/" in words:
        return "damaged run or study"
    if "{recipe/" in words and "{recipe/{}}" not in words:
        return "recipe"
    if "{data/" in words or "{image/" in words:
        return "data and images"
    return "values, names, places"


def worker(base: Path, start: int) -> None:
    """Runs the cases from `start` on, a line of JSON each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    artefacts = Artefacts(base, main)
    for number, case in list(enumerate(cases()))[start:]:
        print(json.dumps([number, run(case, artefacts).to_dict()]), file=answers, flush=True)


def count(base: Path) -> list[dict[str, Any]]:
    """How every case ended; a process that hangs is killed and the rest goes on in another."""
    everything, found = cases(), []
    while len(found) < len(everything):
        command = [sys.executable, __file__, "--worker", str(len(found)), "--base", str(base)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            waiting = LIMIT * 10
            while len(found) < len(everything) and select.select([process.stdout], [], [], waiting)[0]:
                line = process.stdout.readline()
                if not line:
                    break
                found.append(json.loads(line)[1])
                waiting = 2 * LIMIT
                print(f"\r{len(found)}/{len(everything)}", end="", file=sys.stderr, flush=True)
            process.kill()
        if len(found) < len(everything):
            ended = {
                "code": -1,
                "lines": 0,
                "seconds": LIMIT,
                "traceback": False,
                "hang": True,
                "text": "",
                "good": False,
            }
            found.append(ended)
    return found


def table(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The page, from what --save wrote: the parts that both have."""
    page = [commands(before["commands"], after["commands"])] if "commands" in before and "commands" in after else []
    if "cuts" in after:
        page += ["", *_CUTS, "", *count_cuts.table(before.get("cuts", {}), after["cuts"])]
    return "\n".join(page)


_CUTS = (
    "## A study that is killed, or whose disk fills",
    "",
    "The same script (`count_cuts.py`): two runs of two epochs of a small network, each trained, tested and explained, "
    "with the study and `TMPDIR` on two file systems. What the kernel is told to do is cut off, not the power: what a "
    "disk forgets is not seen.",
)


def commands(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str:
    """Markdown: counts by kind of fault and by how it ended, before and after."""
    everything = cases()
    parts = list(dict.fromkeys(part(case) for case in everything))
    lines = [
        "# How the fault list ends, before and after",
        "",
        f"`python tests/faults/count_faults.py` on {len(everything)} command lines with something wrong in them, in "
        "one process, started anew after one that hangs (60 s, and longer where a thread waits). A refusal is good "
        "where it has exit code 2 and at most three lines; code 1 is a study with a run that failed. Before is commit "
        "c10a193. Research software, not for diagnosis.",
        "",
        f"| fault | n | {' | '.join(f'{end}, {when}' for end in ENDS for when in ('before', 'after'))} |",
        "| --- | --- |" + " --- |" * (2 * len(ENDS)),
    ]
    for name in [*parts, "all"]:
        rows = [i for i, case in enumerate(everything) if name in ("all", part(case))]
        counts = [Counter(kind(found[i]) for i in rows) for found in (before, after)]
        cells = [str(count[end]) for end in ENDS for count in counts]
        lines.append(f"| {name} | {len(rows)} | {' | '.join(cells)} |")
    longest = max(after, key=lambda ended: ended["seconds"])["seconds"]
    lines += [
        "",
        f"After, the longest command took {longest:.0f} s, all of them {sum(e['seconds'] for e in after):.0f} s.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", type=int)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--series", type=int, nargs="+", help="of the cuts, these alone, and no command lines")
    parser.add_argument("--minutes", type=float, default=120, help="for each series of cuts, at most")
    parser.add_argument("--table", type=Path, nargs=2)
    given = parser.parse_args()
    if given.worker is not None:
        worker(given.base, given.worker)
    elif given.table:
        print(table(*(json.loads(path.read_text()) for path in given.table)))
    else:
        found = json.loads(given.save.read_text()) if given.save.is_file() else {}
        with tempfile.TemporaryDirectory() as folder:
            if not given.series:
                found["commands"] = count(given.base or Path(folder))
                given.save.write_text(json.dumps(found, indent=0))
            titles = [list(count_cuts.SERIES)[number] for number in given.series or range(len(count_cuts.SERIES))]
            for title, counted in count_cuts.count(Path(folder) / "cuts", titles, minutes=given.minutes):
                found.setdefault("cuts", {})[title] = counted
                given.save.write_text(json.dumps(found, indent=0))
                print(title, counted)
