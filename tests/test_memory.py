"""Training and audits keep the memory that they free, where the C library lets them."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from small_runs import make_images, recipe
from trustcxr import cli
from trustcxr.storage import memory
from trustcxr.training import fit_run

FAULTS = """
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from trustcxr.storage import memory

def step():
    kept = [np.ones(megabytes << 20, np.uint8) for megabytes in (16, 40)]  # above and below what glibc maps apart

def faults():
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

in_a_thread = sys.argv[1] == "thread"
first = 0 if in_a_thread else faults()
kept = memory.keep_freed_memory()
with ThreadPoolExecutor(1) as pool:
    after = pool.submit(faults).result() if in_a_thread else faults()
print(kept, first, after)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_blocks_that_are_freed_are_not_fetched_from_the_system_again(where: str) -> None:
    words = [sys.executable, "-c", FAULTS, where]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    kept, before, after = done.stdout.split()
    assert kept == "True"
    assert int(before) > 100 or where == "thread"
    assert int(after) < (int(before) / 10 if where == "main" else 10)


def test_the_command_line_asks_for_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: asked.append(True))
    monkeypatch.setattr("sys.argv", ["trustcxr", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    assert asked == [True]


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False


def test_a_training_on_a_processor_asks_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(fit_run, "keep_freed_memory", lambda: asked.append(True))
    fit_run.fit(recipe("standard", epochs=1), *make_images(tmp_path / "images"), tmp_path / "run")
    assert asked == [True]
