"""Counts what kills and full disks do to a small study: what stands of it after each, and what it ends as.

TMPDIR and the study are on two file systems where this machine has two. Each series cuts off the same command, at a new
place each time, until it gets to its end: `killed`, `full` and `fills` of cut_off.py; or kills it at random moments.
"""

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml
from cut_off import Cut, Journal, Starts, bits, broken, elsewhere, fills, full, killed, left_over
from fault_artefacts import RECIPE
from fault_runner import Ended

KILLS = 60
SERIES: dict[str, Cut | None] = {
    "SIGKILL before and after each renaming, removal and copy": killed,
    "SIGKILL at random moments": None,
    "the disk takes a byte of a file and no more": fills,
    "the disk has no room for a new file": full,
}
COLUMNS = {
    "n": "n",
    "half-written": "a file half-written under its name",
    "traceback": "traceback",
    "at length": "refused at length, or code 1",
    "hang": "hang",
    "left over": "temporary files left by one that was not killed",
    "same": "studies that ended as one never cut off",
}


class Cuts:
    """Films and a recipe in `base`; studies elsewhere than TMPDIR."""

    def __init__(self, base: Path, place: Path, temporary: Path, minutes: float) -> None:
        self.base, self.place, self.temporary, self.minutes = base, place, temporary, minutes
        (base / "tiny.yaml").write_text(yaml.safe_dump(RECIPE | {"training": {"epochs": 2, "batch_size": 8}}))
        films = ["data", "phantom", str(base / "films"), "--per-class", "8", "--size", "48"]
        self.starts("films").start(films).ended()
        (self.whole, self.seconds), (again, _) = self.undisturbed("one"), self.undisturbed("two")
        self.whole = {name: found for name, found in self.whole.items() if again.get(name) == found}
        self.left_out = len(again) - len(self.whole)  # files that are never the same twice

    def starts(self, name: str) -> Starts:
        return Starts(self.place / name, self.temporary)

    def words(self, starts: Starts) -> list[str]:
        out = str(starts.base / "out")
        return ["study", str(self.base / "tiny.yaml"), "--data", str(self.base / "films"), "--out", out]

    def undisturbed(self, name: str) -> tuple[dict[str, str], float]:
        """What a study leaves that nothing cuts off, and how many seconds it takes."""
        starts, began = self.starts(name), time.monotonic()
        assert (ended := starts.start(self.words(starts)).ended()) is not None
        assert ended.code == 0, ended.text
        return bits(starts.base / "out"), time.monotonic() - began

    def everywhere(self, name: str, cut: Cut) -> Counter[str]:
        """Cut off at each place once."""
        starts, journal = self.starts(name), Journal(self.base / f"{name}.journal", self.place / name)
        found: Counter[str] = Counter()
        began = time.monotonic()
        while time.monotonic() - began < 60 * self.minutes:
            before = len(journal.places())
            ended = starts.start(self.words(starts), cut, journal).ended()
            if len(journal.places()) == before:
                break
            found += self.what_stands(starts, ended)
        return found + self.ends(starts)

    def at_random(self, name: str) -> Counter[str]:
        """Kill at moments drawn evenly from the time that the study takes, in new studies as they end."""
        draw, found, number = random.Random(14), Counter[str](), 0
        began = time.monotonic()
        while found["n"] < KILLS and time.monotonic() - began < 60 * self.minutes:
            number += 1
            starts = self.starts(f"{name}-{number}")
            while found["n"] < KILLS:
                if not starts.start(self.words(starts)).killed_after(draw.uniform(0, self.seconds)):
                    break
                found += self.what_stands(starts, None)
            found += self.ends(starts)
        return found

    def what_stands(self, starts: Starts, ended: Ended | None) -> Counter[str]:
        """After a start that was cut off."""
        found = Counter({"n": 1, "half-written": int(bool(broken(starts.base)))})
        if ended is not None:
            short = ended.good or ended.traceback or ended.hang
            found += Counter(
                {
                    "traceback": int(ended.traceback),
                    "hang": int(ended.hang),
                    "at length": int(not short),
                    "left over": int(bool(left_over(starts.base))),
                }
            )
        return found

    def ends(self, starts: Starts) -> Counter[str]:
        """The same command once more, and what it leaves."""
        ended = starts.start(self.words(starts)).ended()
        left = bits(starts.base / "out")
        good = ended is not None and ended.code == 0 and self.whole.items() <= left.items()
        return Counter({"studies": 1, "same": int(good)})


def count(base: Path, titles: Iterable[str] = SERIES, *, minutes: float = 120) -> Iterator[tuple[str, dict[str, int]]]:
    """What became of each series of cuts, by COLUMNS, as it is done. None begins a new cut after so many minutes."""
    base.mkdir(parents=True, exist_ok=True)
    with elsewhere(base) as other:
        cuts = Cuts(base, base / "studies", other or base / "temporary", minutes)
        for title in titles:
            name, cut = f"series{list(SERIES).index(title)}", SERIES[title]
            found = cuts.at_random(name) if cut is None else cuts.everywhere(name, cut)
            yield title, dict(found) | {"left out": cuts.left_out}
            shutil.rmtree(base / "studies", ignore_errors=True)


def table(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]) -> list[str]:
    """Lines of Markdown: each series, before and after."""
    head = [f"{title}, {when}" for title in COLUMNS.values() for when in ("before", "after")]
    lines = [f"| cut off by | {' | '.join(head)} |", "| --- |" + " --- |" * len(head)]
    for title in SERIES:
        cells = [_cell(found.get(title), key) for key in COLUMNS for found in (before, after)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def _cell(found: dict[str, int] | None, key: str) -> str:
    if found is None:
        return "not run"
    return f"{found.get('same', 0)} of {found.get('studies', 0)}" if key == "same" else str(found.get(key, 0))
