"""Whatever is wrong, a command ends with 0 or 2, in at most three lines, within a minute, without a traceback."""

import hashlib
import os
from collections.abc import Iterator

import pytest
from fault_artefacts import Artefacts
from fault_commands import FULL, Case, cases, writers
from fault_runner import main, run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes, limits and alarms are POSIX's")
SAMPLE = 40


def sample() -> list[Case]:
    """Some cases, the same every day; those that need a whole study are left to the whole list."""
    quick = [case for case in cases() if "{study" not in (text := " ".join(case)) and "study {base}" not in text]
    return sorted(quick, key=lambda case: hashlib.blake2b(repr(case).encode()).digest())[:SAMPLE]


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artefacts]:
    base = tmp_path_factory.mktemp("faults")
    (base / "here").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base / "here")  # an empty --out is the folder that one is in
        patch.setenv("TRUSTCXR_CACHE", str(base / "cache"))
        yield Artefacts(base, main)


def told(wrong: list[tuple[Case, object]]) -> str:
    return "\n".join(f"{str(case)[:300]!r}\n    {ended}" for case, ended in wrong[:10])


def test_the_list_is_long_and_nothing_is_in_it_twice() -> None:
    everything = [repr(case) for case in cases()]
    assert len(everything) >= 400
    assert len(set(everything)) == len(everything)


@pytest.mark.slow
def test_a_sample_of_the_fault_list_ends_well(artefacts: Artefacts) -> None:
    wrong = [(case, ended) for case in sample() if not (ended := run(case, artefacts)).good]
    assert not wrong, told(wrong)


@pytest.mark.full
def test_the_whole_fault_list_ends_well(artefacts: Artefacts) -> None:
    wrong = [(case, ended) for case in cases() if not (ended := run(case, artefacts)).good]
    assert not wrong, told(wrong)


@pytest.mark.full
@pytest.mark.parametrize("size", FULL)
def test_a_disk_that_fills_ends_well(size: int, artefacts: Artefacts) -> None:
    wrong = [(case, ended) for case in writers() if not (ended := run(case, artefacts, size)).good]
    assert not wrong, told(wrong)
