"""Runs one command line in this process and says how it ended: code, lines, traceback or hang."""

import contextlib
import ctypes
import io
import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from fault_artefacts import Artefacts
from fault_commands import Case

LIMIT = 60  # seconds for one command
LINES = 3  # of a refusal
_PROGRESS = re.compile(r"^(\[|study |chosen on|going on with|trained |Decoding|Reading|explaining|testing|.*: already)")


@dataclass
class Ended:
    """How a command ended. `lines`: of a refusal, those that are not progress."""

    code: int
    lines: int
    traceback: bool
    hang: bool
    text: str

    @property
    def good(self) -> bool:
        """Done, or refused in a few lines."""
        refused_well = self.code == 0 or (self.code == 2 and 1 <= self.lines <= LINES)
        return refused_well and not self.traceback and not self.hang


class Hang(BaseException):
    """A command that took longer than LIMIT."""


def main(*words: object) -> None:
    """A command line that must succeed."""
    ended = call([str(w) for w in words], 300)
    assert not ended.code, f"{words}: {ended.text}"


def run(case: Case, artefacts: Artefacts, size: int = resource.RLIM_INFINITY) -> Ended:
    """One case, with the rights of an ordinary user over files, and with files of at most `size` bytes."""
    words, before = [fill(word, artefacts) for word in case], resource.getrlimit(resource.RLIMIT_FSIZE)
    with _ordinary_user():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            return call(words, LIMIT)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(word: str, artefacts: Artefacts) -> str:
    """A word with its braces filled."""
    if word.startswith("{recipe/"):
        return str(artefacts.recipe(word[8:-1]))

    def found(match: re.Match[str]) -> str:
        kind, _, rest = match[1].partition("/")
        if kind in ("run", "study"):
            return str(artefacts.fresh(kind, rest))
        if kind in ("data", "image") and rest:
            return str(getattr(artefacts, kind)(rest))
        base = artefacts.base
        places = {"images": artefacts.images, "image": base / "image.png", "base": base, "closed": base / "closed"}
        return str(artefacts.out() if kind == "out" else places[kind])

    return re.sub(r"\{([a-z]+(?:/[^{}]*)?)\}", found, word)


def call(words: list[str], limit: int) -> Ended:
    """One command line. A report's figures are plotted and not rendered; those of a study, the same, are left out."""
    from trustcxr import cli

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    code, fell, hang = 0, False, False

    def too_long(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, too_long)
    sys.argv = ["trustcxr", *words]
    signal.alarm(limit)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _unrendered(words[0]):
            cli.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except Hang:
        hang = True
    except BaseException:
        code, fell = 1, True
        err.write(traceback.format_exc())
    finally:
        signal.alarm(0)
        sys.argv = before
    said = err.getvalue()
    lines = [line for line in said.splitlines() if line.strip() and not _PROGRESS.match(line)]
    if code == 2 and not lines:  # predict says in its answers what it could not read
        lines = [line for line in out.getvalue().splitlines() if ": not read" in line]
    fell = fell or "Traceback (most recent call last)" in said + out.getvalue()
    text = "\n".join(lines[-4:] if not fell else said.splitlines()[-3:])
    return Ended(code, len(lines), fell, hang, text[-700:])


@contextlib.contextmanager
def _unrendered(command: str) -> Iterator[None]:
    """While it lasts a page's figures are ours alone: not what matplotlib makes of them, seconds that meet no disk."""
    from trustcxr.report.figures import svg

    def plotted(drawing: Any, key: str) -> str:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        if command != "study":
            with mpl.rc_context(svg.SETTINGS):
                size = (drawing.width / 72, drawing.height / 72)
                drawing.plot(Figure(figsize=size, layout="constrained"))
        return f'<svg role="img" id="{key}"></svg>'

    with mock.patch.object(svg, "render_inline", plotted):
        yield


@contextlib.contextmanager
def _ordinary_user() -> Iterator[None]:
    """Where root runs the list: without the right to pass over what a file's mode forbids (Linux)."""
    if os.name != "posix" or os.geteuid() != 0 or not Path("/proc/self/status").is_file():
        yield
        return
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    kept = data[0]
    data[0] = kept & ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    libc.capset(header, data)
    try:
        yield
    finally:
        data[0] = kept
        libc.capset(header, data)
