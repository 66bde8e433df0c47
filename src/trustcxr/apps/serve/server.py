"""From a command to a server that listens: the address, the token, the link."""

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from trustcxr.apps.serve.worker import Limits
from trustcxr.console import log
from trustcxr.errors import UserError
from trustcxr.storage import layout

if TYPE_CHECKING:
    import uvicorn

    from trustcxr.apps.serve import dicom_node
    from trustcxr.apps.serve.pool import Pool

INSTALL = "pip install '.[serve]'"
TOKEN = "TRUSTCXR_TOKEN"


@dataclass(frozen=True)
class Address:
    """Where the server listens, and the token that it demands there."""

    host: str
    port: int
    token: str | None

    @property
    def link(self) -> str:
        """What to open: behind the # a browser keeps the token to itself. On every address, by this machine's name."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        name = f"[{host}]" if ":" in host else host
        return f"http://{name}:{self.port}/" + (f"#token={quote(self.token, safe='')}" if self.token else "")


def serve(
    runs: Sequence[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    dicom: "dicom_node.NodeOptions | None" = None,
) -> None:
    """Answer until Ctrl-C; with `dicom` also as a DICOM node, by the first run.

    UserError where a run cannot be loaded, or an address cannot be had.
    """
    try:
        from trustcxr.apps.serve import app, dicom_node, middleware
        from trustcxr.apps.serve.pool import Pool
    except ImportError as problem:
        raise UserError(f"serve needs {problem.name}: {INSTALL}") from None
    for folder in runs:
        layout.check_run(folder)
    local = middleware.is_loopback(host)
    token = _chosen() or (None if local else secrets.token_urlsafe(24))
    with ExitStack() as stack:
        listener = stack.enter_context(listening(host, port))
        where = Address(host, listener.getsockname()[1], token)
        pool = Pool(runs, limits or Limits())
        house = app.build(pool, pool.limits, token=token, hosts=middleware.local_names(host) if local else None)
        if dicom is not None:
            stack.enter_context(dicom_node.listening(runs[0], dicom, pool.limits))
        asyncio.run(_serving(_server(house), pool, listener, where))


def _chosen() -> str | None:
    """The token that the environment names; UserError for one that no header of HTTP can bring."""
    token = os.environ.get(TOKEN)
    if token and not (token.isascii() and token.isprintable() and token == token.strip()):
        raise UserError(f"{TOKEN}: letters, digits and signs of ASCII alone, without blanks around them")
    return token


def run(house: object, listener: socket.socket) -> None:
    """Have an application answer until Ctrl-C."""
    _server(house).run(sockets=[listener])


def check_installed() -> None:
    """UserError, saying what to install, where nothing can be served."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as problem:
        raise UserError(f"a page needs {problem.name}: {INSTALL}") from None


def _server(house: Any) -> "uvicorn.Server":
    import uvicorn

    config = uvicorn.Config(
        house, access_log=False, log_level="error", server_header=False, timeout_keep_alive=10, lifespan="on"
    )
    return uvicorn.Server(config)


async def _serving(server: "uvicorn.Server", pool: "Pool", listener: socket.socket, where: Address) -> None:
    log(f"loading {len(pool.folders)} run(s) into {pool.limits.workers} workers")
    try:
        await pool.start()
        log(f"open {where.link}")
        if where.token:
            log("whoever has this link may use the page; on a network put a proxy with TLS before it")
        await server.serve(sockets=[listener])
    finally:
        await pool.stop()


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. UserError where it cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as problem:
        reason = problem.strerror or problem
        raise UserError(f"{host}:{port}: cannot listen there ({reason}); choose another --port or --host") from None
