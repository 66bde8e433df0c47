"""Two commands at once on one folder: the second says who is at work there, and leaves; the first is not disturbed."""

import os
import shutil
import time
from pathlib import Path

import pytest
import yaml
from cut_off import Journal, Starts, bits, waiting_at, waits
from fault_artefacts import RECIPE, SMALL

from engine_work import holding
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError
from trustcxr.study import demo

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits are POSIX's")
COMMANDS: dict[str, tuple[str, ...]] = {
    "study": ("study", "{base}/tiny.yaml", "--data", "{base}/images", "--out", "{place}/study"),
    "train": ("train", "--data", "{base}/images", *SMALL, "--out", "{place}/new"),
    "train again": ("train", "--data", "{base}/images", *SMALL, "--out", "{place}/run"),
    "evaluate new": ("evaluate", "{place}/new", "--data", "{base}/images", "--attack", "fgsm"),
    "evaluate": ("evaluate", "{place}/run", "--data", "{base}/images", "--attack", "fgsm"),
    "explain": ("explain", "{place}/run", "--data", "{base}/images", "--sample", "0", "--method", "gradcam"),
    "audit": ("audit", "{place}/run", "--data", "{base}/images", "--attack", "fgsm", "--out", "{place}/audit"),
}
# First, second and the folder that both work on.
PAIRS = {
    "two studies": ("study", "study", "study"),
    "two trainings": ("train", "train", "new"),
    "evaluate while it trains": ("train", "evaluate new", "new"),
    "train while it is evaluated": ("evaluate", "train again", "run"),
    "explain while it is evaluated": ("evaluate", "explain", "run"),
    "two audits": ("audit", "audit", "audit"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe and a trained run."""
    base = tmp_path_factory.mktemp("two")
    write_files.write(base / "images", {"Train": 8, "Val": 4, "Test": 4}, size=48)
    (base / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    words = [word.format(base=base, place=base) for word in COMMANDS["train again"]]
    Starts(base, base / "temporary").start(words).succeeds()
    return base


@pytest.mark.sample("evaluate while it trains")
@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_the_second_says_who_is_at_work_and_leaves(pair: str, base: Path, tmp_path: Path) -> None:
    (first, second), held = (COMMANDS[name] for name in PAIRS[pair][:2]), PAIRS[pair][2]
    place, ends = tmp_path / "place", []
    for alone in (True, False):
        shutil.rmtree(place, ignore_errors=True)
        for name in ("run", "cache"):
            shutil.copytree(base / name, place / name)
        starts, journal = Starts(place, tmp_path / "temporary"), Journal(place / "journal", place / held)
        if alone:
            journal.path.touch()  # nobody to wait for
        at_work = starts.start([word.format(base=base, place=place) for word in first], waits, journal)
        if not alone:
            while not waiting_at(journal).is_file():
                assert at_work.process.is_alive()
                time.sleep(0.02)
            refused = starts.start([word.format(base=base, place=place) for word in second]).ended()
            assert refused is not None
            assert (refused.code, refused.lines) == (2, 1), refused.text
            assert f"{place / held}: in use by process {at_work.process.pid} on " in refused.text
            journal.path.touch()
        at_work.succeeds()
        ends.append(bits(place / held))
    assert ends[0] == ends[1]


def test_a_second_demo_leaves_what_the_first_is_drawing(tmp_path: Path) -> None:
    drawing = tmp_path / ".phantom-unfinished"
    drawing.mkdir()
    with holding(tmp_path) as process, pytest.raises(UserError, match=str(process)):
        demo.run(tmp_path)
    assert drawing.is_dir()
