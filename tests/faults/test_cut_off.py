"""A study or an audit that is killed, or meets a full disk, anywhere: the same command goes on to the same bits."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cut_off as off
import pytest
import yaml
from cut_off import Cut, bits, broken, elsewhere, everywhere, killed, left_over
from fault_artefacts import RECIPE

from foreign_models import CLASSES, MEAN, SIDE, STD, exported, small
from trustcxr.data.phantom import write_files

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits are POSIX's")
STUDY = ("study", "{base}/tiny.yaml", "--data", "{base}/images", "--out", "{place}/out")
AUDIT = ("audit", "{base}/m.yaml", "--data", "{base}/images", "--out", "{place}/out", "--trust-code")
# How often each is killed; where the quick test kills: once in each step of a study (training, testing and explaining
# the first run, training the second), and after the rows of a batch of an audit.
KILLS = {STUDY: 60, AUDIT: 20}
COMMITS_OF_STUDY = r"(standard.*(training\.json|predictions\.parquet|saliency\.parquet)|fgsm.*last\.ckpt)"
SOME_COMMITS = {STUDY: COMMITS_OF_STUDY, AUDIT: r"\.parts/\w+/0+\.parquet"}
# Every place but those of the second run that the first has too: of that its checkpoints, training and figures.
ALL_KINDS = {STUDY: r"^(?!.*-fgsm-)|-fgsm-.*(last\.ckpt|training\.json|predictions\.parquet|metrics\.json)", AUDIT: ""}


@dataclass(frozen=True)
class Work:
    """A command, what it works on, and what it writes that nothing cuts off."""

    command: tuple[str, ...]
    base: Path

    def words(self, place: Path) -> list[str]:
        return [word.format(base=self.base, place=place) for word in self.command]

    def whole(self) -> dict[str, str]:
        place = self.base / "whole"
        return bits(place / "out") if place.is_dir() else off.uncut(self.words(place), place, self.base / "temporary")


@pytest.fixture(scope="module", params=[STUDY, AUDIT], ids=["study", "audit"])
def work(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A study of two networks of two epochs each, or an audit in several batches of somebody else's network."""
    base = tmp_path_factory.mktemp("cut-off")
    if request.param is STUDY:
        write_files.write(base / "images", {"Train": 8, "Val": 4, "Test": 4}, size=48)
        (base / "tiny.yaml").write_text(yaml.safe_dump(RECIPE | {"training": {"epochs": 2, "batch_size": 8}}))
    else:
        write_files.write(base / "images", {"Train": 4, "Val": 4, "Test": 12}, size=SIDE)
        exported(small(), base / "m.pt2")
        pixels = {"size": SIDE, "channels": 3, "mean": list(MEAN), "std": list(STD)}
        model = {"source": "m.pt2", "input": pixels, "output": {"kind": "logits", "classes": list(CLASSES)}}
        (base / "m.yaml").write_text(yaml.safe_dump(model))
    return Work(request.param, base)


@pytest.fixture
def other(work: Work) -> Iterator[Path]:
    """A folder on another file system than the images, or on the same where this machine has one only."""
    with elsewhere(work.base) as other:
        yield other or work.base / "temporary"


@pytest.mark.slow
def test_killed_at_some_commits_it_ends_with_the_same_bits(work: Work, tmp_path: Path, other: Path) -> None:
    only = f"^after first replace .*{SOME_COMMITS[work.command]}"
    places = everywhere(killed, work.words(tmp_path), work.base, tmp_path, other, only)
    assert len(places) == (4 if work.command is STUDY else 1)
    assert bits(tmp_path / "out") == (whole := work.whole())
    assert work.command is STUDY or whole.keys() > {"audit.json", "one_vs_rest.parquet", "report.html"}


def test_what_is_half_written_is_seen(tmp_path: Path) -> None:
    """The checks of this file can fail."""
    (tmp_path / "metrics.json").write_text('{"a": ')
    (tmp_path / ".metrics.123.json").touch()
    assert broken(tmp_path) == [str(tmp_path / "metrics.json")]
    assert left_over(tmp_path) == [str(tmp_path / ".metrics.123.json")]


@pytest.mark.full
def test_killed_at_every_commit_it_ends_with_the_same_bits(work: Work, tmp_path: Path, other: Path) -> None:
    places = everywhere(killed, work.words(tmp_path), work.base, tmp_path, other, ALL_KINDS[work.command])
    assert len(places) >= KILLS[work.command]
    assert bits(tmp_path / "out") == work.whole()


@pytest.mark.full
def test_killed_at_random_moments_it_ends_with_the_same_bits(work: Work, tmp_path: Path, other: Path) -> None:
    """With the results on the other file system, so that both ways round are tried."""
    # Of a study half the time at most: it is killed often before it ends. Of an audit half would get nowhere.
    kills, steps, shares = KILLS[AUDIT], set(), (0.1, 1.0)
    if work.command is STUDY:
        kills, steps, shares = KILLS[STUDY] // 2, {"train", "test", "explain"}, (0.05, 0.5)
    off.killed_at_random(work.words, other / "random", tmp_path, work.whole(), kills, steps, shares)


@pytest.mark.full
@pytest.mark.parametrize("work", [STUDY], indirect=True, ids=["study"])
@pytest.mark.parametrize("cut", [off.full, off.fills])
def test_a_disk_that_fills_at_every_file_costs_nothing(cut: Cut, work: Work, tmp_path: Path) -> None:
    """Of disks that fill at every file of an audit see test_full_disk.py."""
    place = tmp_path / "place"
    places = everywhere(cut, work.words(place), work.base, place, tmp_path / "temporary", ALL_KINDS[STUDY])
    assert len(places) >= KILLS[STUDY] // 2
    assert bits(place / "out") == work.whole()
