"""A command that is stopped, by Ctrl-C or by SIGTERM: it ends in one line that says what is kept."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

CODE = 130  # as a shell has it of what Ctrl-C ended; no command ends so by itself


@contextmanager
def heeded(words: Sequence[str]) -> Iterator[None]:
    """SIGTERM, by which a scheduler or `kill` ends what runs, stops the command in the block as Ctrl-C does.

    Not where it is refused or taken already; a server ends by it in its own way, and where a study's jobs are SLURM's,
    Ctrl-C would cancel them, while SIGTERM leaves them to go on.
    """
    own = words[:1] in (["serve"], ["reader"]) or any(word in ("slurm", "--engine=slurm") for word in words)
    if own or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    try:
        signal.signal(signal.SIGTERM, _Once())
    except ValueError:  # in a thread: signals are the main thread's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Once:
    """KeyboardInterrupt at the first signal; `timeout` and others send more than one, while the end is under way."""

    def __init__(self) -> None:
        self.process, self.told = os.getpid(), False

    def __call__(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self.process:  # one that was forked ends as it ever did
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.told:
            self.told = True
            raise KeyboardInterrupt


def restart_command(words: Sequence[str]) -> str:
    """What is there after a stop, by command."""
    if words and words[0] == "audit":
        return "the same command goes on from here: finished batches are kept"
    if not words or words[0] in ("train", "study", "demo"):
        return "the same command goes on from here: finished epochs and runs are kept"
    if words[0] == "reader":
        return "what the readers saved is kept; the same command opens it again"
    if words[0] == "serve":
        return "nothing of any image was kept"
    if words[0] == "predict":
        return "the heatmaps written so far are kept; the same command makes the others"
    if words[0] in ("evaluate", "explain", "report"):
        return "nothing was overwritten: the results from before are kept, and decoded images too"
    if list(words[:2]) == ["data", "download"]:
        return "the same command goes on from here: what has arrived is kept"
    return "files are written whole or not at all: what was finished is kept"
