"""Work for other processes, which import this module for it: nothing here that takes long to import."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trustcxr.console import log
from trustcxr.errors import CannotWrite, UserError
from trustcxr.study.engines.base import Task


def note(task: Task) -> None:
    """Leave a line, or end badly."""
    if task.run == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if task.run == "full":
        raise CannotWrite("no space")
    if task.run == "wrong":
        raise UserError("cannot be done")
    if task.run == "faulty":
        raise ZeroDivisionError("of nothing")
    log(f"did {task.run}")
    with open(task.study / "log", "a") as file:
        file.write(f"{task.run} {task.step} {os.getpid()}\n")


def taken_away_once(task: Task) -> None:
    """Work that is preempted the first time."""
    begun = task.study / f"{task.run}-{task.step}-begun"
    if task.run == "a" and task.step == "train" and not begun.exists():
        begun.touch()
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(30)
    note(task)


def held_on_its_node(task: Task) -> None:
    """Work that says on which node of Ray it is, each time that it is begun, and ends once it is told to."""
    import ray

    with open(task.study / "begun", "a") as file:
        file.write(f"{task.run} {ray.get_runtime_context().get_node_id()}\n")
    while not (task.study / f"go-{task.run}").exists():
        time.sleep(0.05)


HOLD = """
import sys, time
from pathlib import Path
from trustcxr.storage.locks import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holding(folder: Path) -> Iterator[int]:
    """Let another process hold a folder, until it is killed at the end; its number."""
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline().strip() == "held"
        yield first.pid
    finally:
        first.kill()
        first.wait()
