"""The command line: parse options, call the library, print the result.

Exit codes: 0 done, 1 a fault of the program, 2 wrong input (one line: what, why, what to do), 3 a criterion that is not
met (`audit --fail`), 130 stopped by Ctrl-C or SIGTERM (one line: what remains).
"""

import errno
import gc
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import FrameType
from typing import Annotated, NoReturn

import typer

from trustcxr.cli.audit_commands import audit_app
from trustcxr.cli.data_commands import cache_app, data_app
from trustcxr.cli.run_commands import run_app, serve_app
from trustcxr.cli.study_commands import study_app
from trustcxr.errors import OUT_OF_MEMORY, UserError, is_out_of_memory
from trustcxr.storage.memory import keep_freed_memory
from trustcxr.storage.os_errors import escaped
from trustcxr.version import NOTICE, __version__

_STOPPED = 130  # the exit code that shells use after Ctrl-C
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
    in_main = threading.current_thread() is threading.main_thread()  # which alone can set signal handlers
    changed = in_main and not unchanged and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    process, interrupted = os.getpid(), threading.Event()

    def interrupt_once(number: int, _: FrameType | None) -> None:  # `timeout` and others send several signals
        if os.getpid() != process:  # a forked process: default behaviour
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    if changed:
        signal.signal(signal.SIGTERM, interrupt_once)
    try:
        yield
    finally:
        if changed:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def describe_restart(words: Sequence[str]) -> str:
    """Return what remains after a stop, and what the same command does next."""
    name = " ".join(words[:2]) if words[:1] == ["data"] else words[0] if words else ""
    return _REMAINS.get(name, "files are written whole or not at all: what was finished is kept")


_NOT_EMPTY = ("--data", "--out", "--images", "--surrogate", "--weights", "--host", "--dicom-host")

app = typer.Typer(
    name="trustcxr",
    help=f"Can this chest X-ray classifier be trusted? {NOTICE}\n\nStart with: trustcxr demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, commands in (
    ("Many models: a study", study_app),
    ("One model", run_app),
    ("Audit any model", audit_app),
    ("Web pages", serve_app),
):
    for command in commands.registered_commands:
        command.rich_help_panel = panel
    app.add_typer(commands)
app.add_typer(data_app, name="data", rich_help_panel="Data and disk")
app.add_typer(cache_app, name="cache", rich_help_panel="Data and disk")


def main() -> None:
    """Run the command; report wrong input or a disk error in one line, with exit code 2."""
    keep_freed_memory()
    gc.set_threshold(5_000, 10, 10)  # importing torch triggers seven collections with the default: 0.7 s
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name may hold bytes that are not text
            stream.reconfigure(errors="backslashreplace")
    with stop_on_sigterm(sys.argv[1:]):
        _run_command()


def _run_command() -> NoReturn:
    try:
        _check_not_empty(sys.argv[1:])
        code = app(standalone_mode=False)
        if code == _STOPPED:  # Typer returns this code instead of raising KeyboardInterrupt
            raise KeyboardInterrupt
        sys.stdout.flush()
        sys.exit(code)
    except UserError as problem:
        _exit_with(str(problem))
    except BrokenPipeError:  # the reader of stdout has closed it, such as `head`
        _discard_stdout()
        sys.exit(1)
    except OSError as problem:
        if problem.errno is None:
            raise
        if problem.filename is None and problem.errno == errno.ENOSPC:  # stdout goes to a full disk
            _discard_stdout()
        where = "" if problem.filename is None else f"{escaped(str(problem.filename))}: "
        _exit_with(f"{where}{problem.strerror or problem}: cannot read or write it. Check the path and the disk.")
    except Exception as problem:
        if is_out_of_memory(problem):
            _exit_with(OUT_OF_MEMORY)
        if not hasattr(problem, "format_message"):
            raise
        # Typer's usage errors. The message is empty if no command is given.
        context = getattr(problem, "ctx", None)
        hint = f"; see {context.command_path} --help" if context else ""
        _exit_with((problem.format_message() or "no command is given: say which") + hint)
    except KeyboardInterrupt:
        print(f"trustcxr: stopped; {describe_restart(sys.argv[1:])}", file=sys.stderr)
        sys.exit(_STOPPED)


def _check_not_empty(words: Sequence[str]) -> None:
    """Raise UserError for an empty argument: as a path it would mean the current folder, as a host every network."""
    for before, word in pairwise(["", *words]):
        option, equals, value = word.partition("=")
        if not word or (equals and not value and option in _NOT_EMPTY):
            what = option if word else f"what follows {before}" if before.startswith("-") else "one of the words"
            raise UserError(f"{what} is empty: is a variable of the shell not set?")


def _discard_stdout() -> None:
    """Drop text that is not printed yet. Otherwise Python tries again when it exits, and complains."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_with(text: str) -> NoReturn:
    line = re.sub(r"\s*[\r\n]+\s*", " ", text).strip()  # two blanks in a name stay two
    print(f"trustcxr: {escaped(line)}", file=sys.stderr)
    sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"trustcxr {__version__}")
        raise typer.Exit


_VERSION = typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")


@app.callback()
def _options(version: Annotated[bool, _VERSION] = False) -> None:
    pass
