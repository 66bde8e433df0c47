"""Describe and set what a training computes with: machine, versions, source, threads, precision."""

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from trustcxr import attacks
from trustcxr.errors import UserError
from trustcxr.storage.schemas import Hardware

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
_NEEDS = {"16-mixed": "a GPU", "bf16-mixed": "a processor that computes in bfloat16"}
_DTYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_GIT_SECONDS = 5  # limit of one call of git


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
    """Return the processor's name as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def source() -> dict[str, str | bool] | None:
    """Return the git `commit` of TrustCXR and if files are `changed` since; None if it is no checkout."""
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
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@contextmanager
def use_threads(number: int | None) -> Iterator[None]:
    """Compute with this number of torch threads; None leaves it. Another number gives other bits.

    Raises UserError if it is below 1.
    """
    if number is not None and number < 1:
        raise UserError(f"--threads {number}: a run needs a thread. Give 1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_kind() -> str:
    """Return the kind of device that trains here: cuda or cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def supported_precision(precision: Precision, device: str) -> Precision:
    """Return the precision that a kind of device ("cpu", "cuda") computes in.

    float16 needs a GPU. A processor that only imitates bfloat16 is far slower than in float32.
    """
    if precision == "32-true" or device == "cuda":
        return precision
    return "bf16-mixed" if attacks.computes_in_bfloat16(device) else "32-true"


def autocast_dtype(precision: Precision, device: str) -> torch.dtype | None:
    """Return the dtype of autocast on a kind of device; None for float32."""
    return _DTYPES[supported_precision(precision, device)]


def describe_substitute(precision: Precision, device: str) -> str:
    """Return a line on the precision used instead; empty if the device supports this one."""
    actual = supported_precision(precision, device)
    return "" if actual == precision else f"{precision} needs {_NEEDS[precision]}: using {actual} instead"
