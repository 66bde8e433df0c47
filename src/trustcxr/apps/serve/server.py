"""Start a server: address, token, link."""

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from trustcxr.apps.serve import dicom_node
from trustcxr.apps.serve.worker import Limits, Pool
from trustcxr.console import log, plural
from trustcxr.errors import UserError, require
from trustcxr.storage import layout

if TYPE_CHECKING:
    import uvicorn

INSTALL = "pip install 'trustcxr[serve]'"
TOKEN = "TRUSTCXR_TOKEN"


def make_link(host: str, port: int, token: str | None) -> str:
    """Return the URL to open. Browsers do not send the part after #, which holds the token."""
    host = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"#token={quote(token, safe='')}" if token else "")


def serve(
    runs: Sequence[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    dicom: dicom_node.NodeOptions | None = None,
) -> None:
    """Serve until Ctrl-C; with `dicom` also as a DICOM node that uses the first run.

    Raises UserError if a run cannot be loaded or the address is not available.
    """
    check_installed()
    from trustcxr.apps.serve import app, middleware

    for folder in runs:
        layout.check_run(folder)
    hosts = middleware.allowed_hosts(host)
    token = _read_token() or (None if hosts else secrets.token_urlsafe(24))
    with ExitStack() as stack:
        listener = stack.enter_context(open_listener(host, port))
        pool = Pool(runs, limits or Limits())
        server = make_server(app.build(pool, pool.limits, token=token, hosts=hosts))
        if dicom is not None:
            stack.enter_context(closing(dicom_node.Node(runs[0], dicom, pool.limits)))
        link = make_link(host, listener.getsockname()[1], token)
        asyncio.run(_serve_pool(server, pool, listener, link))


def _read_token() -> str | None:
    """Return the token in TRUSTCXR_TOKEN, or None. Raises UserError if no HTTP header can contain it."""
    token = os.environ.get(TOKEN)
    if token and not (token.isascii() and token.isprintable() and token == token.strip()):
        raise UserError(f"{TOKEN}: not a valid token. Use printable ASCII characters without blanks around them.")
    return token


def check_installed() -> None:
    """Raise UserError if fastapi or uvicorn is not installed."""
    require("serve needs", INSTALL, "fastapi", "prometheus_client", "uvicorn")


def make_server(api: Any) -> "uvicorn.Server":
    """Return a server of an application."""
    import uvicorn

    options: Any = {"access_log": False, "log_level": "error", "server_header": False, "lifespan": "on"}
    return uvicorn.Server(uvicorn.Config(api, timeout_keep_alive=10, **options))


async def _serve_pool(server: "uvicorn.Server", pool: Pool, listener: socket.socket, link: str) -> None:
    log(f"loading {plural(len(pool.folders), 'run')} into {plural(pool.limits.workers, 'worker')}")
    try:
        await pool.start()
        log(f"open {link}")
        if "#token=" in link:
            log("anyone with this link can use the page; on a network, put a TLS proxy in front of it")
        await server.serve(sockets=[listener])
    finally:
        await pool.stop()


def open_listener(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises UserError if the address is not available."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as problem:
        reason = problem.strerror or problem
        raise UserError(f"{host}:{port}: cannot listen there ({reason}). Choose another --port or --host.") from None
