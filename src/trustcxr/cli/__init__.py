"""The command line: parse, call, print. No logic.

Exit codes: 0 done, 1 a fault of the program, 2 the user's input is wrong (one line: what, where, what to do).
"""

import sys
from typing import Annotated

import typer

from trustcxr.about import NOTICE, __version__
from trustcxr.cli.data import data_app
from trustcxr.cli.runs import runs_app
from trustcxr.cli.studies import studies_app
from trustcxr.errors import UserError

app = typer.Typer(
    name="trustcxr",
    help=f"Can this chest X-ray classifier be trusted? {NOTICE}\n\nStart with: trustcxr demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (studies_app, runs_app):
    app.add_typer(commands)
app.add_typer(data_app, name="data")


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2."""
    try:
        sys.exit(app(standalone_mode=False))
    except UserError as problem:
        print(f"trustcxr: {' '.join(str(problem).split())}", file=sys.stderr)
        sys.exit(2)
    except Exception as problem:
        if not hasattr(problem, "format_message"):
            raise
        # Typer's own complaint: a missing or unknown option, a value of the wrong kind.
        at = getattr(problem, "ctx", None)
        hint = f"; see {at.command_path} --help" if at else ""
        print(f"trustcxr: {' '.join(problem.format_message().split())}{hint}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("trustcxr: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


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
