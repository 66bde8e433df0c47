"""Training and audits keep the memory that they free, where the C library lets them."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from small_runs import make_images, recipe
from trustcxr.evaluation import parallel
from trustcxr.training import fit_run

FAULTS = """
import resource
import numpy as np
from trustcxr.evaluation import parallel

def step():
    kept = [np.ones(megabytes << 20, np.uint8) for megabytes in (16, 40)]  # above and below what glibc maps apart

def faults():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
print(parallel.keep_freed_memory(), first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_blocks_that_are_freed_are_not_fetched_from_the_system_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=120)
    told, before, after = done.stdout.split()
    assert told == "True"
    assert int(before) > 100
    assert int(after) < int(before) / 10


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert parallel.keep_freed_memory() is False


def test_a_training_on_a_processor_asks_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(fit_run, "keep_freed_memory", lambda: asked.append(True))
    fit_run.fit(recipe("standard", epochs=1), *make_images(tmp_path / "images"), tmp_path / "run")
    assert asked == [True]
