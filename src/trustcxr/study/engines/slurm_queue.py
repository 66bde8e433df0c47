"""Jobs of an earlier start of a study, which was killed and could not cancel them: they go on, and hold its runs."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from trustcxr.console import say
from trustcxr.study.engines.contract import Task
from trustcxr.study.engines.slurm_jobs import FOLDER

EVERY = 20.0  # seconds between looks at the queue
_SUBMITTED = "_submitted.pkl"  # as submitit ends the name of what a job was given; the name is read, and nothing in it


def wait_for_earlier(tasks: Sequence[Task]) -> None:
    """Wait until none is left of the jobs that were submitted for the study of these tasks before.

    What they do, or why it failed, is in the study's files. Cut off here, they are cancelled, as this start's own are.
    """
    folders = {task.study / FOLDER for task in tasks}
    left = _left(folders)
    if left:
        jobs = "1 job" if len(left) == 1 else f"{len(left)} jobs"
        say(f"waiting for {jobs} of an earlier start: {' '.join(sorted(left))} (scancel ends them)")
    try:
        while left:
            time.sleep(EVERY)
            left = _left(folders)
    except BaseException:
        subprocess.run(["scancel", *sorted(left)], check=False)
        raise


def _left(folders: set[Path]) -> set[str]:
    """Jobs without a result that SLURM knows as waiting or at work; where it does not answer, each may be that."""
    submitted = [path for folder in folders for path in folder.glob(f"*{_SUBMITTED}")]
    jobs = [(path.parent, path.name.removesuffix(_SUBMITTED)) for path in submitted]
    ids = {job for folder, job in jobs if not list(folder.glob(f"{job}_*_result.pkl"))}
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
