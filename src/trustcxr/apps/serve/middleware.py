"""Check host, origin and token, add security headers, and serve the files of a page."""

import hmac
import ipaddress
from collections.abc import Callable, Collection, Mapping
from importlib.resources import files
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trustcxr.apps.serve.api_models import Fault, Problem

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
Page = Mapping[str, tuple[str, str, str]]  # by route: a package, a file in its folder `page`, the media type
_LOCAL = ("localhost", "127.0.0.1", "::1")
_BEHIND_TOKEN = ("/api/", "/metrics")


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def error_response(status: int, code: str, message: str, **headers: str) -> JSONResponse:
    """Return a response with an error."""
    content = Problem(error=Fault(code=code, message=message)).model_dump()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(content, status_code=status, headers=named)


def bearer(headers: Headers) -> str:
    """Return the token of a request (RFC 6750 2.1), or ""."""
    value = headers.get("authorization", "")
    return value[7:].strip() if value[:7].lower() == "bearer " else ""


class SecurityMiddleware:
    """Refuse requests for another host name, from another site, or without the token."""

    def __init__(self, app: ASGIApp, *, token: str | None, hosts: Collection[str] | None) -> None:
        self.app, self.token, self.hosts = app, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["path"])
        await (refusal or self.app)(scope, receive, with_headers)

    def _refusal(self, headers: Headers, path: str) -> JSONResponse | None:
        host, origin = _host_of(f"//{headers.get('host', '')}"), headers.get("origin")
        if self.hosts is not None and host not in self.hosts:  # DNS rebinding
            return error_response(421, "wrong-host", "this server answers to localhost only")
        if origin is not None and _host_of(origin) != host:
            return error_response(403, "cross-site", "requests from other sites are not answered")
        right = hmac.compare_digest(bearer(headers).encode(), (self.token or "").encode())
        if self.token is not None and path.startswith(_BEHIND_TOKEN) and not right:
            return error_response(
                401, "no-token", "send the token: Authorization: Bearer TOKEN", www_authenticate="Bearer"
            )
        return None


def local_names(host: str) -> tuple[str, ...]:
    """Return the allowed host names of a server on a loopback address."""
    return (*_LOCAL, host)


def _host_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def add_page(app: FastAPI, page: Page) -> None:
    """Add the files of a page. They are read now: the path of a request never reaches the disk."""

    def route(content: bytes, media: str) -> Callable[[], Response]:
        def shown() -> Response:
            return Response(content, media_type=media)

        return shown

    for path, (package, name, media) in page.items():
        content = (files(package) / "page" / name).read_bytes()
        app.add_api_route(path, route(content, media), include_in_schema=False)


def add_fault_handlers(app: FastAPI) -> None:
    """Answer invalid requests and faults of the program with an error document."""
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(Exception, _answer_fault)


async def _answer_invalid(_: Request, __: Exception) -> Response:
    return error_response(422, "invalid", "the request does not match /openapi.json")


async def _answer_fault(_: Request, __: Exception) -> Response:
    return error_response(500, "fault", "a fault of the program")
