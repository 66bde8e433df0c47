"""A disk that fills, under every command that writes: one line, what was there stays whole, the same command ends."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from cut_off import Starts, bits, everywhere, fills, uncut
from fault_artefacts import SMALL

from test_audit_command import CLASSES, write_greys
from trustcxr.data.phantom import write_files

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits are POSIX's")
PLAIN = ("--model", "plain3", "--weights", "none", "--size", "32", "--epochs", "1", "--batch-size", "8")
SCORES = "predictions: {}.csv\ninput: {{size: 32}}\noutput: {{kind: probabilities, classes: [dark, grey, bright]}}\n"
REFUSED = r"cannot be written: .* \(.*are needed, .* are free\); .*what was there before is whole"
NOT_DECODED = r"^(?!.*cache/)"  # decoding is cut off in the tests of a study

COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "--data", "{images}", *SMALL, "--out", "{place}/out"),
    "evaluate": ("evaluate", "{place}/run", "--data", "{images}", "--attack", "pgd", "--steps", "2"),
    "explain": ("explain", "{place}/run", "--data", "{images}", "--sample", "0", "--method", "gradcam"),
    "certify": ("certify", "{place}/plain", "--data", "{images}", "--epsilon", "0.01"),
    "predict": ("predict", "{place}/run", "{image}", "--out", "{place}/out"),
    "report": ("report", "{place}/run", "--tables"),
    "audit": ("audit", "{place}/run", "--data", "{images}", "--attack", "fgsm", "--out", "{place}/out"),
    "audit of scores": ("audit", "{base}/b.yaml", "--data", "{greys}", "--out", "{place}/out"),
    "compare": ("compare", "{place}/audits/a", "{place}/audits/b"),
    "leaderboard": ("leaderboard", "{place}/audits", "--out", "{place}/out"),
    "data phantom": ("data", "phantom", "{place}/out", "--per-class", "1", "--size", "32"),
    "data corruptions": ("data", "corruptions", "{place}/out.png", "--size", "32"),
    "data check": ("data", "check", "{greys}", "--no-probes", "--html", "{place}/o.html", "--clean", "{place}/o.csv"),
}


@dataclass
class Things:
    """What the commands work on, made once."""

    base: Path
    starts: Starts

    def words(self, name: str, place: Path) -> list[str]:
        image = next(self.base.rglob("Test/COVID-19/images/*.png"))
        paths = {"images": self.base / "images", "greys": self.base / "greys", "image": image, "base": self.base}
        return [word.format(place=place, **paths) for word in COMMANDS[name]]

    def place(self, to: Path) -> Path:
        """A copy of what commands write to, and of the decoded images."""
        for name in ("run", "plain", "audits", "cache"):
            if (self.base / name).is_dir():
                shutil.copytree(self.base / name, to / name)
        return to

    def make(self, *words: object) -> None:
        self.starts.start([str(word) for word in words]).succeeds()


def scores(root: Path) -> None:
    """Two tables of scores of grey images: right of all, and of all but the last."""
    rows = [
        f"{name}{number}.png," + ",".join("0.8" if name == answer else "0.1" for answer in CLASSES)
        for name, number in product(CLASSES, range(12))
    ]
    last = rows[-1].replace("0.1,0.1,0.8", "0.8,0.1,0.1")
    for name, lines in (("a", rows), ("b", [*rows[:-1], last])):
        (root / f"{name}.csv").write_text("\n".join(["image," + ",".join(CLASSES), *lines]))
        (root / f"{name}.yaml").write_text(SCORES.format(name))


@pytest.fixture(scope="module")
def cheap(tmp_path_factory: pytest.TempPathFactory) -> Things:
    """Audits of scores, which need no network."""
    base = tmp_path_factory.mktemp("full-disk")
    things = Things(base, Starts(base, base / "temporary"))
    write_files.write(base / "images", {"Train": 8, "Val": 4, "Test": 4}, size=48)
    write_greys(base / "greys")
    scores(base)
    for name in ("a", "b"):
        things.make("audit", base / f"{name}.yaml", "--data", base / "greys", "--out", base / "audits" / name)
    return things


@pytest.fixture(scope="module")
def things(cheap: Things) -> Things:
    """And runs: one tested, one that can be certified."""
    base = cheap.base
    cheap.make("train", "--data", base / "images", *SMALL, "--out", base / "run")
    cheap.make("evaluate", base / "run", "--data", base / "images", "--attack", "fgsm")
    defence = ("--defence", "ibp", "--epsilon", "0.01")
    cheap.make("train", "--data", base / "images", *PLAIN, *defence, "--out", base / "plain")
    return cheap


def refused_everywhere(things: Things, name: str, tmp_path: Path) -> list[str]:
    """Let the disk refuse at each place once; where that was. In the end all is as where it never refused."""
    place = things.place(tmp_path / "place")
    whole = uncut(things.words(name, place), place, tmp_path / "temporary", ".")
    shutil.rmtree(place)
    words = things.words(name, things.place(place))
    places = everywhere(fills, words, tmp_path, place, tmp_path / "temporary", NOT_DECODED, REFUSED)
    assert bits(place) == whole
    return places


@pytest.mark.slow
def test_a_disk_that_fills_costs_a_line_and_nothing_else(cheap: Things, tmp_path: Path) -> None:
    assert refused_everywhere(cheap, "leaderboard", tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_disk_that_fills_at_every_file_of_every_command(name: str, things: Things, tmp_path: Path) -> None:
    assert bool(refused_everywhere(things, name, tmp_path)) == (name != "compare")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is full is Linux's")
def test_what_is_printed_to_a_full_disk_is_one_line() -> None:
    command = [sys.executable, "-m", "trustcxr", "--version"]
    with open("/dev/full", "w") as nowhere:
        done = subprocess.run(command, stdout=nowhere, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "o space left" in done.stderr
