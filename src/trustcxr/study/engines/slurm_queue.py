"""Jobs of an earlier start of a study, which was killed and could not cancel them: they go on, and hold its runs."""

import subprocess
import time
from pathlib import Path

from trustcxr.console import say

EVERY = 20.0  # seconds between looks at the queue
_SUBMITTED = "_submitted.pkl"  # as submitit ends the name of what a job was given; the name is read, and nothing in it


def wait_for_earlier(folder: Path) -> None:
    """Wait until none is left of the jobs that were submitted from a study's `folder` before.

    What they do, or why it failed, is in the study's files. Cut off here, they are cancelled, as this start's own are.
    """
    left = _left(folder)
    if left:
        jobs = "1 job" if len(left) == 1 else f"{len(left)} jobs"
        say(f"waiting for {jobs} of an earlier start: {' '.join(sorted(left))} (scancel ends them)")
    try:
        while left:
            time.sleep(EVERY)
            left = _left(folder)
    except BaseException:
        subprocess.run(["scancel", *sorted(left)], check=False)
        raise


def _left(folder: Path) -> set[str]:
    """Jobs without a result that SLURM knows as waiting or at work; where it does not answer, each may be that."""
    submitted = {path.name.removesuffix(_SUBMITTED) for path in folder.glob(f"*{_SUBMITTED}")}
    ids = {job for job in submitted if not list(folder.glob(f"{job}_*_result.pkl"))}
    if not ids:
        return set()
    mine = ["squeue", "--me", "--noheader", "--array", "--format=%i"]  # a line for each job of an array
    try:
        said = subprocess.run(mine, capture_output=True, text=True, timeout=60, check=True).stdout
    except FileNotFoundError:
        return set()
    except (OSError, subprocess.SubprocessError):
        return ids
    return ids & set(said.split())
