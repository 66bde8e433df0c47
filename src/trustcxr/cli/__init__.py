"""The command line: parse, call, print. No logic.

Exit codes: 0 done, 1 a fault of the program, 2 the user's input is wrong (one line: what, where, what to do), 130
stopped by Ctrl-C or SIGTERM (one line: what is kept).
"""

import errno
import gc
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, NoReturn

import typer

from trustcxr.cli import signals
from trustcxr.cli.audit_commands import audits_app
from trustcxr.cli.data_commands import data_app
from trustcxr.cli.recipe_commands import recipes_app
from trustcxr.cli.run_commands import runs_app
from trustcxr.cli.serve_commands import serving_app
from trustcxr.cli.study_commands import studies_app
from trustcxr.errors import OUT_OF_MEMORY, UserError, out_of_memory
from trustcxr.version import NOTICE, __version__

app = typer.Typer(
    name="trustcxr",
    help=f"Can this chest X-ray classifier be trusted? {NOTICE}\n\nStart with: trustcxr demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (studies_app, recipes_app, runs_app, audits_app, serving_app):
    app.add_typer(commands)
app.add_typer(data_app, name="data")


def main() -> None:
    """Entry point: a user's mistake, or a disk that refuses, is one line and exit code 2."""
    gc.set_threshold(5_000, 10, 10)  # of seven rounds through all of torch while it is imported, one is left: 0.7 s
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name that is no text is shown escaped
            stream.reconfigure(errors="backslashreplace")
    with signals.heeded(sys.argv[1:]):
        _answered()


def _answered() -> NoReturn:
    try:
        _refuse_empty(sys.argv[1:])
        code = app(standalone_mode=False)
        if code == signals.CODE:  # so Typer says that it was stopped, and keeps the KeyboardInterrupt to itself
            raise KeyboardInterrupt
        sys.stdout.flush()
        sys.exit(code)
    except UserError as problem:
        _refuse(str(problem))
    except BrokenPipeError:  # whoever reads what is printed has seen enough
        _print_no_more()
        sys.exit(1)
    except OSError as problem:
        if problem.errno is None:
            raise
        if problem.filename is None and problem.errno == errno.ENOSPC:  # of the disk that this is printed to
            _print_no_more()
        _refuse(_of_the_disk(problem))
    except Exception as problem:
        if out_of_memory(problem):
            _refuse(OUT_OF_MEMORY)
        if not hasattr(problem, "format_message"):
            raise
        # Typer's own complaint: a missing or unknown option, a value of the wrong kind; without words, help is shown.
        at = getattr(problem, "ctx", None)
        hint = f"; see {at.command_path} --help" if at else ""
        _refuse((problem.format_message() or "no command is given: say which") + hint)
    except KeyboardInterrupt:
        print(f"trustcxr: stopped; {signals.restart_command(sys.argv[1:])}", file=sys.stderr)
        sys.exit(signals.CODE)


def _refuse_empty(words: Sequence[str]) -> None:
    """UserError for a word without a letter: as a path it would be taken for this very folder."""
    for before, word in pairwise(["", *words]):
        option, given, value = word.partition("=")
        if not word or (given and not value and option in _PLACES):
            what = option if word else f"what follows {before}" if before.startswith("-") else "one of the words"
            raise UserError(f"{what} is empty: is a variable of the shell not set?")


_PLACES = ("--data", "--out", "--images", "--surrogate", "--weights")


def _print_no_more() -> None:
    """What is not printed yet is let go of, or Python would try again as it ends, and complain."""
    import os

    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(text: str) -> NoReturn:
    line = re.sub(r"\s*[\r\n]+\s*", " ", text).strip()  # two blanks in a name stay two
    print(f"trustcxr: {''.join(c if c.isprintable() else repr(c)[1:-1] for c in line)}", file=sys.stderr)
    sys.exit(2)


def _of_the_disk(problem: OSError) -> str:
    """What nothing else has caught: a file or folder that cannot be read or written."""
    from trustcxr.storage.os_errors import escaped

    where = f"{escaped(str(problem.filename))}: " if problem.filename is not None else ""
    return f"{where}{problem.strerror or problem}: it can be neither read nor written; check the path and the disk"


def _version(wanted: bool) -> None:
    if wanted:
        print(f"trustcxr {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
