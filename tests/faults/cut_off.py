"""Commands in processes of their own that are cut off: killed where they commit, or refused by a disk that fills.

Each start is forked from a process that has imported everything, so that hundreds take minutes, and finds what the one
before left. A journal keeps where it was cut off: the next is cut off at the next new place, until one gets to the end.
"""

import errno
import gc
import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml
from fault_runner import LIMIT, LINES, Ended, call

# Keys of documents that no two starts share: when, how long, and what it cost.
TIMES = ("created", "seconds", "when")
_IMPORTED = ("trustcxr.cli", "trustcxr.study.run_study", "trustcxr.explain.examples")
_IMPORTED += ("trustcxr.report.study_html", "trustcxr.report.model_card", "trustcxr.training.fit_run", "timm", "joblib")
_IMPORTED += ("trustcxr.data.checks.check", "trustcxr.data.phantom.write_files", "jinja2")
_IMPORTED += ("pyarrow.dataset", "pyarrow.csv", "pytorch_lightning", "matplotlib.pyplot", "imagecodecs")
_IMPORTED += ("tests.faults.warmed",)  # last; left out, and no more than slower, where tests are not run from the root
_LASTED = rb"(?:<data value=\"[\d.e-]+\">)?\b[\d.]+ (?:s|min|h)(?: \d+ (?:s|min))?\b"
_SPENT = rb"[Aa]bout [\d.e+-]+ kWh[^\n<]*"
_CLOCK = re.compile(rb"\d{4}-\d\d-\d\d[T ]?[\d:.+]*|" + _SPENT + b"|" + _LASTED)  # in pages, likewise
_PROCESS = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True)
class Journal:
    """The places where starts were cut off. `only`: a pattern that a place must match to be one."""

    path: Path
    base: Path
    only: str = ""

    def is_new(self, what: str, place: object) -> bool:
        """Whether nothing was cut off there before; it then stands in the journal, even if this process is killed."""
        if not self.is_here(place):
            return False
        line = f"{what} {_PROCESS.sub('', os.fsdecode(place).removeprefix(f'{self.base}/'))}"
        if not re.search(self.only, line) or line in self.places():
            return False
        with open(self.path, "a") as file:
            file.write(line + "\n")
        return True

    def is_here(self, place: Any) -> bool:
        """Whether a path is one that the command writes to."""
        name = os.fsdecode(place) if isinstance(place, str | bytes | os.PathLike) else ""
        return bool(name) and (not os.path.isabs(name) or name.startswith(f"{self.base}/"))

    def places(self) -> list[str]:
        """All of them, in order."""
        return self.path.read_text().splitlines() if self.path.is_file() else []


def killed(journal: Journal) -> None:
    """Kill this process at the next new renaming, removal or copy: once before it, once after it."""

    def cut(name: str) -> None:
        real: Callable[..., object] = getattr(os, name)

        def at(*given: Any, **options: Any) -> object:
            place = given[-1] if name != "sendfile" else os.readlink(f"/proc/self/fd/{given[0]}")
            if name == "unlink" and Path(os.fsdecode(place)).name.startswith("."):
                return real(*given, **options)  # a temporary file, or a note of who holds a folder
            again = "again" if options or os.path.lexists(place) else "first"
            kill_if_new(f"before {again} {name}", place)
            done = real(*given, **options)
            kill_if_new(f"after {again} {name}", place)
            return done

        setattr(os, name, at)

    def kill_if_new(what: str, place: object) -> None:
        if journal.is_new(what, place):
            os.kill(os.getpid(), signal.SIGKILL)

    copies = ("sendfile",) if Path("/proc/self/fd").is_dir() else ()  # how shutil copies a file there
    for name in ("replace", "rename", "unlink", *copies):
        cut(name)


def full(journal: Journal) -> None:
    """From the next new file, folder or renaming on, the disk has no room for any."""
    state = {"full": False}

    def hear(event: str, given: tuple[Any, ...]) -> None:
        place = _written(event, given)
        if place is None or not ((state["full"] and journal.is_here(place)) or journal.is_new(event, place)):
            return
        state["full"] = True
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)

    sys.addaudithook(hear)


def fills(journal: Journal) -> None:
    """From the next new file on, the disk takes one byte of each and no more: writes fail within, compiled ones too."""
    state = {"full": False}

    def limit_where_new(what: str, place: object) -> None:
        if not state["full"] and journal.is_new(what, place):  # the journal grows no more either
            state["full"] = True
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def hear(event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and (place := _written(event, given)) is not None:
            limit_where_new(event, place)

    sys.addaudithook(hear)
    from trustcxr.storage import atomic

    real = atomic.writing

    def writing(path: Path, **options: Any) -> Any:
        limit_where_new("write", path)
        return real(path, **options)

    atomic.writing = writing  # type: ignore[assignment]


def waits(journal: Journal) -> None:
    """Wait at the first renaming of a result until the journal is there: whoever makes it was at work meanwhile."""
    real = os.replace

    def at(*given: Any, **options: Any) -> object:
        held = journal.is_here(given[-1]) and not Path(os.fsdecode(given[-1])).name.startswith(".")
        if held and not journal.path.is_file():
            waiting_at(journal).touch()
            while not journal.path.is_file():
                time.sleep(0.02)
        return real(*given, **options)

    os.replace = at  # type: ignore[assignment]


def waiting_at(journal: Journal) -> Path:
    """There while a process waits for the journal."""
    return journal.path.with_suffix(".waits")


def noted(journal: Journal) -> None:
    """The steps of a study stand in the journal as they are begun."""
    from trustcxr.study import run_study

    real = run_study.carry_out

    def carry_out(task: Any) -> None:
        with open(journal.path, "a") as file:
            file.write(f"{task.step}\n")
        real(task)

    run_study.carry_out = carry_out


def _written(event: str, given: tuple[Any, ...]) -> Any:
    """The path that an audited event would write to; None where it writes nothing."""
    if event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR) and not isinstance(given[0], int):
        return given[0]
    if event == "os.mkdir":
        return given[0]
    return given[1] if event == "os.rename" else None


Cut = Callable[[Journal], None]


class Starts:
    """Starts one command again and again, with images and results in `base` and TMPDIR elsewhere."""

    def __init__(self, base: Path, temporary: Path) -> None:
        self.base, self.temporary = base, temporary
        for folder in (base, temporary):
            folder.mkdir(parents=True, exist_ok=True)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(_IMPORTED))

    def start(self, words: list[str], cut: Cut | None = None, journal: Journal | None = None) -> "Start":
        """One process that carries out a command line."""
        here, there = self._context.Pipe(duplex=False)
        environment = {"TRUSTCXR_CACHE": str(self.base / "cache"), "TMPDIR": str(self.temporary)}
        process = self._context.Process(target=_carry_out, args=(words, environment, cut, journal, there))
        process.start()
        there.close()
        return Start(process, here)


class Start:
    """A process under way."""

    def __init__(self, process: Any, answer: Connection) -> None:
        self.process, self.answer = process, answer

    def ended(self) -> Ended | None:
        """How it ended; None where it was killed."""
        found: Ended | None = None
        with suppress(EOFError):
            found = self.answer.recv()
        self.process.join()
        return found

    def succeeds(self) -> None:
        """Wait until it has ended, with 0."""
        ended = self.ended()
        assert ended is not None
        assert ended.code == 0, ended.text

    def killed_after(self, seconds: float) -> bool:
        """Kill it some seconds from now; False where it had ended by itself before."""
        if self.answer.poll(seconds):
            self.ended()
            return False
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        return True


def _carry_out(words: list[str], environment: dict[str, str], cut: Any, journal: Any, answer: Connection) -> None:
    import torch

    gc.freeze()  # else the first collection copies every page of what was imported: 0.3 s
    os.environ.update(environment)
    tempfile.tempdir = None  # looked up again
    torch.set_num_threads(1)
    if cut is not None:
        cut(journal)
    answer.send(call(words, 10 * LIMIT))  # on a machine that does much else, too


def uncut(words: list[str], place: Path, temporary: Path, folder: str = "out") -> dict[str, str]:
    """What a command that writes to `place` has in that folder of it where nothing cuts it off."""
    Starts(place, temporary).start(words).succeeds()
    return bits(place / folder)


def everywhere(
    cut: Cut, words: list[str], base: Path, place: Path, temporary: Path, only: str = "", refusal: str = ""
) -> list[str]:
    """Cut a command off at each place that matches, once; where that was. What is left can be read, nothing is lost."""
    starts, journal = Starts(place, temporary), Journal(base / f"{place.name}.journal", place, only)
    before = [place / name for name in bits(place)]
    for _ in range(1000):
        passed = len(journal.places())
        ended = starts.start(words, cut, journal).ended()
        if len(journal.places()) == passed:
            assert ended is not None, "killed, and not by the journal"
            assert ended.code == 0, ended.text
            break
        at = journal.places()[-1]
        if cut is killed:
            assert ended is None, at
        else:
            assert ended is not None, at
            assert (ended.code, ended.traceback, ended.hang) == (2, False, False), f"{at}: {ended.text}"
            assert 1 <= ended.lines <= LINES, f"{at}: {ended.text}"
            assert re.search(refusal, " ".join(ended.text.split())), f"{at}: {ended.text}"
            assert left_over(place) == [], at
        assert broken(place) == [], at
        assert all(path.is_file() for path in before), at
    else:
        raise AssertionError("no end")
    assert left_over(place) == []
    assert list(temporary.iterdir()) == []
    return journal.places()


def killed_at_random(
    words: Callable[[Path], list[str]], base: Path, temporary: Path, whole: dict[str, str], kills: int, steps: set[str],
    shares: tuple[float, float],
) -> Counter[str]:  # fmt: skip
    """Kill commands at random until so many were killed, in every step; each ends as `whole`. Kills by step of a study.

    The first is not killed: how long it takes on this machine, now, is that of which `shares` are how long kills wait.
    """
    draw, found, number, seconds = random.Random(14), Counter[str](), 0, 0.0
    while sum(found.values()) < kills or not steps <= set(found):
        number += 1
        starts = Starts(base / str(number), temporary)
        while True:
            journal = Journal(base / f"{number}-{sum(found.values())}.steps", starts.base)
            began = time.monotonic()
            start = starts.start(words(starts.base), noted, journal)
            if not start.killed_after(draw.uniform(*shares) * seconds if seconds else 600):
                break
            found[(journal.places() or ["read"])[-1]] += 1
            assert broken(starts.base) == []
        seconds = seconds or time.monotonic() - began
        assert bits(starts.base / "out") == whole
        assert left_over(starts.base) == []
        assert number < 10 * kills
    return found


def bits(folder: Path) -> dict[str, str]:
    """Checksum of every file that a command wrote, without the times in its documents and pages."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and path.name != "timings.json":
            content = path.read_bytes()
            if path.suffix in (".json", ".yaml"):
                load = json.loads if path.suffix == ".json" else yaml.safe_load
                content = json.dumps(_timeless(load(content))).encode()
            if path.name == "history.csv":
                content = b"\n".join(line.rpartition(b",")[0] for line in content.splitlines())
            if path.suffix in (".html", ".md"):
                content = _CLOCK.sub(b"", content)
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def _timeless(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: _timeless(value) for key, value in document.items() if key not in TIMES}
    return [_timeless(value) for value in document] if isinstance(document, list) else document


def left_over(folder: Path) -> list[str]:
    """Temporary files that lie about."""
    return [str(path) for path in folder.rglob(".*") if re.fullmatch(r"\..+\.\d+(\.\w+)?", path.name)]


def broken(folder: Path) -> list[str]:
    """Files under their final name, in folders that have theirs, that cannot be read."""
    there = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".building/" not in str(path)]
    return [str(path) for path in there if not _is_whole(path)]


def _is_whole(path: Path) -> bool:
    """Whether a file can be read by its format alone: nothing of ours could mend it first."""
    import pandas as pd
    from PIL import Image
    from safetensors.numpy import load_file

    read: dict[str, Callable[[Path], object]] = {
        ".json": lambda path: json.loads(path.read_text()),
        ".yaml": lambda path: yaml.safe_load(path.read_text()) is not None,
        ".parquet": pd.read_parquet,
        ".csv": pd.read_csv,
        ".safetensors": load_file,
        ".ckpt": lambda path: zipfile.ZipFile(path).testzip() is None,
        ".npz": lambda path: zipfile.ZipFile(path).testzip() is None,
        ".png": lambda path: Image.open(path).load(),
        ".html": lambda path: path.read_text().rstrip().endswith("</html>"),
    }
    try:
        return path.name.startswith(".") or read.get(path.suffix, bool)(path) is not False
    except Exception:
        return False


@contextmanager
def elsewhere(base: Path) -> Iterator[Path | None]:
    """A folder on another file system than `base`, empty again in the end; None where this machine has none."""
    for place in (Path("/dev/shm"), Path.home(), Path("/var/tmp"), Path.cwd()):
        if place.is_dir() and os.access(place, os.W_OK) and place.stat().st_dev != base.stat().st_dev:
            with tempfile.TemporaryDirectory(dir=place, prefix="trustcxr-tests-") as folder:
                yield Path(folder)
            return
    yield None
