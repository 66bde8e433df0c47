"""Stop a command by Ctrl-C or SIGTERM, and say in one line what remains."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

CODE = 130  # the exit code that shells use after Ctrl-C
_CONTINUES = "the same command goes on from here"
_REMAINS = {
    **dict.fromkeys(("", "train", "study", "demo"), f"{_CONTINUES}: finished epochs and runs are kept"),
    **dict.fromkeys(
        ("evaluate", "explain", "report"),
        "nothing was overwritten: the results from before are kept, and decoded images too",
    ),
    "audit": f"{_CONTINUES}: finished batches are kept",
    "predict": "the heatmaps written so far are kept; the same command makes the others",
    "data download": f"{_CONTINUES}: what has arrived is kept",
    "reader-study": "what the readers saved is kept; the same command opens it again",
    "serve": "nothing of any image was kept",
}


@contextmanager
def stop_on_sigterm(words: Sequence[str]) -> Iterator[None]:
    """Let SIGTERM, from `kill` or a scheduler, stop the block as Ctrl-C does.

    SIGTERM stays as it is if it is already handled or ignored, and for servers, which end in their own way. It also
    does for a study on SLURM: there Ctrl-C cancels the jobs, while SIGTERM leaves them running.
    """
    unchanged = words[:1] in (["serve"], ["reader-study"]) or any(word in ("slurm", "--engine=slurm") for word in words)
    if unchanged or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    try:
        signal.signal(signal.SIGTERM, _InterruptOnce())
    except ValueError:  # only the main thread can set signal handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _InterruptOnce:
    """Raise KeyboardInterrupt at the first signal only: `timeout` and others send several."""

    def __init__(self) -> None:
        self.process, self.interrupted = os.getpid(), False

    def __call__(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self.process:  # a forked process: default behaviour
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt


def describe_restart(words: Sequence[str]) -> str:
    """Return what remains after a stop, and what the same command does next."""
    name = " ".join(words[:2]) if words[:1] == ["data"] else words[0] if words else ""
    return _REMAINS.get(name, "files are written whole or not at all: what was finished is kept")
