"""An audit that is killed anywhere: the same command goes on and ends with the same bits."""

import os
import random
import time
from pathlib import Path

import pytest
from cut_off import Starts, bits, broken, everywhere, killed, left_over, uncut

from foreign_models import CLASSES, MEAN, SIDE, STD, exported, small
from trustcxr.data.phantom import write_files

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits are POSIX's")
KILLS = 20
ONE = r"^after first replace .*\.parts/"  # a batch's rows are kept, and no more


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in several batches, and somebody else's network."""
    base = tmp_path_factory.mktemp("cut-off")
    write_files.write(base / "images", {"Train": 4, "Val": 4, "Test": 12}, size=SIDE)
    exported(small(), base / "m.pt2")
    (base / "m.yaml").write_text(
        f"source: m.pt2\ninput: {{size: {SIDE}, channels: 3, mean: {list(MEAN)}, std: {list(STD)}}}\n"
        f"output: {{kind: logits, classes: [{', '.join(CLASSES)}]}}\n"
    )
    return base


@pytest.fixture(scope="module")
def whole(base: Path) -> dict[str, str]:
    """What exam-1 writes that nothing cuts off."""
    found = uncut(audit(base, base / "whole"), base / "whole", base / "temporary")
    assert {"audit.json", "predictions.parquet", "one_vs_rest.parquet", "report.html"} <= set(found)
    return found


def audit(base: Path, place: Path) -> list[str]:
    return ["audit", str(base / "m.yaml"), "--data", str(base / "images"), "--out", str(place / "out"), "--trust-code"]


@pytest.mark.slow
def test_killed_after_a_batch_the_audit_goes_on_from_it(whole: dict[str, str], base: Path, tmp_path: Path) -> None:
    (at,) = everywhere(killed, audit(base, tmp_path), base, tmp_path, base / "temporary", rf"{ONE}\w+/0+\.parquet")
    assert bits(tmp_path / "out") == whole, at


@pytest.mark.full
def test_killed_at_every_file_the_audit_ends_with_the_same_bits(
    whole: dict[str, str], base: Path, tmp_path: Path
) -> None:
    """Of disks that fill at every file of an audit see test_full_disk.py."""
    place = tmp_path / "killed"
    places = everywhere(killed, audit(base, place), base, place, tmp_path / "temporary")
    assert len(places) >= KILLS
    assert bits(place / "out") == whole


@pytest.mark.full
def test_killed_at_random_moments_audits_end_with_the_same_bits(
    whole: dict[str, str], base: Path, tmp_path: Path
) -> None:
    draw, kills, seconds, number = random.Random(15), 0, 0.0, 0
    while kills < KILLS:
        number += 1
        starts = Starts(tmp_path / str(number), base / "temporary")
        while True:
            began = time.monotonic()
            start = starts.start(audit(base, starts.base))
            # The first is not killed: so long it takes here, now. Half of that, and none would get anywhere.
            if not start.killed_after(draw.uniform(0.1, 1.0) * seconds if seconds else 600):
                break
            kills += 1
            assert broken(starts.base) == []
        seconds = seconds or time.monotonic() - began
        assert bits(starts.base / "out") == whole
        assert left_over(starts.base) == []
        assert number < 10 * KILLS
