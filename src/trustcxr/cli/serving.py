"""One film on a page: `serve`."""

from pathlib import Path
from typing import Annotated

import typer

serving_app = typer.Typer()


@serving_app.command(epilog="Example: trustcxr serve out/quick/runs/resnet18-fgsm-s0")
def serve(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of trained runs; two are compared.")],
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine a token is demanded.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Processes that answer.")] = None,
    most_megabytes: Annotated[int, typer.Option(min=1, max=1024, help="The largest file that is taken.")] = 64,
) -> None:
    """A page on which a film is dropped, and its API: answers, heatmaps, what flips them. Nothing is kept.

    Beyond 127.0.0.1 a token is demanded: the one in TRUSTCXR_TOKEN, or one that is made up and printed.
    """
    from trustcxr.serve import server
    from trustcxr.serve.limits import Limits

    own = {} if workers is None else {"workers": workers}
    server.serve(runs, host=host, port=port, limits=Limits(most_bytes=most_megabytes << 20, **own))
