"""A study that is killed, or meets a full disk, anywhere: the same command goes on and ends with the same bits."""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cut_off as off
import pytest
import yaml
from cut_off import Cut, Journal, Starts, bits, broken, elsewhere, everywhere, killed, left_over
from fault_artefacts import RECIPE

from trustcxr.data.phantom import write_files

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits are POSIX's")
KILLS = 60
# One in each step: training, testing and explaining the first run, training the second.
SOME_COMMITS = (
    r"^after first replace .*(standard.*(training\.json|predictions\.parquet|saliency\.parquet)|fgsm.*last\.ckpt)"
)
# Every place but those of the second run that the first has too: of that its checkpoints, training and figures.
ALL_KINDS = r"^(?!.*-fgsm-)|-fgsm-.*(last\.ckpt|training\.json|predictions\.parquet|metrics\.json)"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and a recipe: two networks of two epochs each, in seconds."""
    base = tmp_path_factory.mktemp("cut-off")
    write_files.write(base / "images", {"Train": 8, "Val": 4, "Test": 4}, size=48)
    (base / "tiny.yaml").write_text(yaml.safe_dump(RECIPE | {"training": {"epochs": 2, "batch_size": 8}}))
    return base


@pytest.fixture(scope="module")
def whole(base: Path) -> dict[str, str]:
    """What the study writes that nothing cuts off."""
    return off.uncut(study(base, base / "whole"), base / "whole", base / "temporary")


@pytest.fixture
def other(base: Path) -> Iterator[Path]:
    """A folder on another file system than the images and, where a test does not say otherwise, the results."""
    with elsewhere(base) as other:
        if other is None:
            pytest.skip("this machine has one file system only")
        yield other


def study(base: Path, place: Path) -> list[str]:
    return ["study", str(base / "tiny.yaml"), "--data", str(base / "images"), "--out", str(place / "out")]


def cut_off_everywhere(cut: Cut, base: Path, place: Path, temporary: Path, only: str = "") -> list[str]:
    """Cut the study off at each place that matches, once; where that was."""
    return everywhere(cut, study(base, place), base, place, temporary, only)


def killed_at_random(base: Path, place: Path, temporary: Path, kills: int, whole: dict[str, str]) -> Counter[str]:
    """Kill studies at random until so many were killed, in every step; each ends as one that was not. Kills by step."""
    draw, found, number, seconds = random.Random(14), Counter[str](), 0, 0.0
    while sum(found.values()) < kills or not {"train", "test", "explain"} <= set(found):
        number += 1
        starts = Starts(place / str(number), temporary)
        while True:
            steps = Journal(base / f"{place.name}-{number}-{sum(found.values())}.steps", starts.base)
            began = time.monotonic()
            start = starts.start(study(base, starts.base), off.noted, steps)
            # The first is not killed: how long it takes on this machine, now, is how long kills may wait. Half of it
            # gets anywhere, after what was killed before, and a study is killed often before it ends.
            if not start.killed_after(draw.uniform(0.05, 0.5) * seconds if seconds else 600):
                break
            found[(steps.places() or ["read"])[-1]] += 1
            assert broken(starts.base) == []
        seconds = seconds or time.monotonic() - began
        assert bits(starts.base / "out") == whole
        assert left_over(starts.base) == []
        assert number < 10 * kills
    return found


@pytest.mark.slow
def test_killed_at_some_commits_the_study_ends_with_the_same_bits(
    whole: dict[str, str], base: Path, tmp_path: Path
) -> None:
    with elsewhere(base) as other:
        temporary = other or base / "temporary"
        assert len(cut_off_everywhere(killed, base, tmp_path, temporary, SOME_COMMITS)) == 4
    assert bits(tmp_path / "out") == whole


def test_what_is_half_written_is_seen(tmp_path: Path) -> None:
    """The checks of this file can fail."""
    (tmp_path / "metrics.json").write_text('{"a": ')
    (tmp_path / ".metrics.123.json").touch()
    assert broken(tmp_path) == [str(tmp_path / "metrics.json")]
    assert left_over(tmp_path) == [str(tmp_path / ".metrics.123.json")]


@pytest.mark.full
def test_killed_at_every_commit_the_study_ends_with_the_same_bits(
    whole: dict[str, str], base: Path, tmp_path: Path, other: Path
) -> None:
    assert len(cut_off_everywhere(killed, base, tmp_path, other, ALL_KINDS)) >= KILLS
    assert bits(tmp_path / "out") == whole


@pytest.mark.full
def test_killed_at_random_moments_studies_end_with_the_same_bits(
    whole: dict[str, str], base: Path, tmp_path: Path, other: Path
) -> None:
    """With the results on the other file system, so that both ways round are tried."""
    assert sum(killed_at_random(base, other, tmp_path, KILLS // 2, whole).values()) >= KILLS // 2


@pytest.mark.full
@pytest.mark.parametrize("cut", [off.full, off.fills])
def test_a_disk_that_fills_at_every_file_costs_nothing(
    cut: Cut, whole: dict[str, str], base: Path, tmp_path: Path
) -> None:
    places = cut_off_everywhere(cut, base, tmp_path / "place", tmp_path / "temporary", ALL_KINDS)
    assert len(places) >= KILLS // 2
    assert bits(tmp_path / "place" / "out") == whole
