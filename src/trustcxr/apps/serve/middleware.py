"""Check host, origin and token, add security headers, and serve the files of a page."""

import hmac
import ipaddress
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from importlib.resources import files
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
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
_MEDIA = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_CODES = {401: "no-token", 404: "not-found", 405: "wrong-method", 409: "too-late", 413: "too-large", 422: "invalid"}
_BEHIND_TOKEN = ("/api/", "/metrics")


def allowed_hosts(host: str) -> tuple[str, ...] | None:
    """Return the host names that a server on a loopback address answers to; None if other machines can reach it."""
    with suppress(ValueError):
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return "localhost", "127.0.0.1", "::1", host
    return None


def error_response(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return a response with an error."""
    return JSONResponse(Problem(error=Fault(code=code, message=message)).model_dump(), status, headers)


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
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["path"])
        return await (refusal or self.app)(scope, receive, with_headers)

    def _refusal(self, headers: Headers, path: str) -> JSONResponse | None:
        host, origin = _host_of(f"//{headers.get('host', '')}"), headers.get("origin")
        if self.hosts is not None and host not in self.hosts:  # DNS rebinding
            return error_response(421, "wrong-host", "this server answers to localhost only")
        if origin is not None and _host_of(origin) != host:
            return error_response(403, "cross-site", "requests from other sites are not answered")
        right = hmac.compare_digest(bearer(headers).encode(), (self.token or "").encode())
        if self.token is not None and path.startswith(_BEHIND_TOKEN) and not right:
            message = "send the token: Authorization: Bearer TOKEN"
            return error_response(401, "no-token", message, {"www-authenticate": "Bearer"})
        return None


def _host_of(url: str) -> str:
    with suppress(ValueError):
        return (urlsplit(url).hostname or "").lower()
    return ""


def add_page(app: FastAPI, package: str, names: Sequence[str]) -> None:
    """Add files of a package's folder `page`. They are read now: the path of a request never reaches the disk."""

    def make_route(content: bytes, media: str) -> Callable[[], Response]:
        def show() -> Response:
            return Response(content, media_type=media)

        return show

    for name in names:
        content = (files(package) / "page" / name).read_bytes()
        route = make_route(content, _MEDIA[name.rpartition(".")[2]])
        app.add_api_route("/" if name == "index.html" else f"/{name}", route, include_in_schema=False)


def add_fault_handlers(app: FastAPI) -> None:
    """Answer HTTP errors, invalid requests and faults of the program with an error document."""

    @app.exception_handler(HTTPException)
    async def answer_http_error(_: Request, fault: HTTPException) -> Response:
        unknown = fault.status_code in (404, 405) and fault.detail == HTTPStatus(fault.status_code).phrase
        message = "there is nothing here; see /openapi.json" if unknown else fault.detail
        return error_response(fault.status_code, _CODES.get(fault.status_code, "refused"), message, fault.headers)

    @app.exception_handler(RequestValidationError)
    async def answer_invalid(_: Request, __: Exception) -> Response:
        return error_response(422, "invalid", "the request does not match /openapi.json")

    @app.exception_handler(Exception)
    async def answer_fault(_: Request, __: Exception) -> Response:
        return error_response(500, "fault", "a fault of the program")
