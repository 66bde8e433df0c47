"""Describe what a training runs on: machine, versions, state of the source."""

import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

import torch

from trustcxr.storage import layout
from trustcxr.storage.schemas import Hardware
from trustcxr.training.devices import Devices

_ROOM = 5  # seconds that git is given


def record_environment(cards: Devices) -> dict[str, object]:
    """What a training runs on now, as run.yaml has it."""
    record: dict[str, object] = {"versions": layout.versions(), "hardware": hardware(), "source": source()}
    split = cards.split_batches()
    return record | ({"split_batches": split} if split else {})


def hardware() -> Hardware:
    """Return the machine and the torch threads that this process computes with."""
    return Hardware(
        processor=processor(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        interop_threads=torch.get_num_interop_threads(),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        system=platform.system(),
    )


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def source() -> dict[str, str | bool] | None:
    """The `commit` that TrustCXR ran from, and whether files were `changed` since; None where it is no checkout."""
    here = Path(__file__).resolve()
    # A checkout of something else may hold the environment that TrustCXR is installed in.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = _git(here.parent, "rev-parse", "HEAD")
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": bool(changed)} if commit else None


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=_ROOM, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
