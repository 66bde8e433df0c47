"""Build the ASGI application: the page and the API. An image that is sent stays in memory, never on disk."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from trustcxr.apps.serve import api_models
from trustcxr.apps.serve.api_models import Kind, Reply, WorkItem
from trustcxr.apps.serve.middleware import SecurityMiddleware, add_fault_handlers, add_page, error_response
from trustcxr.apps.serve.worker import RETRY_AFTER, Limits, Pool
from trustcxr.version import NOTICE, __version__

_FIELD_BYTES = 1024
_HIGHEST = 0.3
_PROBLEMS = (400, 401, 403, 408, 413, 415, 421, 422, 500, 503)
_LABELS = ("route", "status")
_TIMES = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30)
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # its log quotes broken forms


class ImageApi:
    """Answer requests with an image, and count them for Prometheus, without anything about images or persons."""

    def __init__(self, pool: Pool, limits: Limits) -> None:
        self.pool, self.limits, self.inside = pool, limits, 0
        self.registry = registry = CollectorRegistry()
        gauge = partial(Gauge, registry=registry)
        gauge("trustcxr_inside", "Concurrent requests, active and queued.").set_function(lambda: self.inside)
        gauge("trustcxr_workers", "Workers that are alive.").set_function(lambda: pool.alive)
        gauge("trustcxr_worker_restarts", "Workers that were restarted.").set_function(lambda: pool.restarts)
        self.requests = Counter("trustcxr_requests", "Requests by route and status.", _LABELS, registry=registry)
        histogram = partial(Histogram, buckets=_TIMES, registry=registry)
        self.seconds = histogram("trustcxr_seconds", "Seconds per request by route.", _LABELS[:1])

    async def answer(self, request: Request, kind: Kind) -> Response:
        """Answer a form with one image."""
        start, status = time.perf_counter(), 500
        try:
            response = await self._answer(request, kind)
            status = response.status_code
            return response
        finally:
            self.requests.labels(kind, str(status)).inc()
            self.seconds.labels(kind).observe(time.perf_counter() - start)

    async def _answer(self, request: Request, kind: Kind) -> Response:
        if self.inside >= self.limits.workers + self.limits.waiting:
            await _drain(request, self.limits)
            return _to_response(Reply(503, code="busy", message="all workers are busy: try again soon"))
        self.inside += 1
        try:
            item = self._make_item(kind, *await _read_form(request, self.limits, _field_names(kind)))
            return _to_response(await (self._examine(item) if kind == "examine" else self.pool.ask(item)))
        except Refused as refused:
            return error_response(*refused.args)
        finally:
            self.inside -= 1

    async def _examine(self, item: WorkItem) -> Reply:
        """Answer the two parts of "examine" in parallel, by two workers if both are free."""
        start = time.perf_counter()
        kinds: tuple[Kind, ...] = ("seen", "changed")
        parts = await asyncio.gather(*(self.pool.ask(item._replace(kind=kind)) for kind in kinds))
        if failed := [part for part in parts if part.status != 200]:
            return failed[0]
        seen, changed = (json.loads(part.body) for part in parts)
        whole = seen | changed | {"warnings": seen["warnings"] + changed["warnings"]}
        whole["seconds"] = round(time.perf_counter() - start, 3)
        return Reply(200, json.dumps(whole).encode())

    def _make_item(self, kind: Kind, image: bytes, fields: dict[str, str]) -> WorkItem:
        names = [run.name for run in self.pool.runs]
        wanted = fields.get("run", names[0])
        if wanted not in names:
            raise Refused(422, "unknown-run", f"unknown run; valid: {', '.join(names)}")
        epsilon = -1.0
        with suppress(ValueError):
            epsilon = float(fields.get("epsilon", "0.02"))
        if not 0 <= epsilon <= _HIGHEST:
            raise Refused(422, "invalid", f"epsilon: a number from 0 to {_HIGHEST:g}")
        anyway = fields.get("anyway", "false")
        if anyway not in ("true", "false"):
            raise Refused(422, "invalid", "anyway: true or false")
        method = fields.get("method", "gradcam")
        return WorkItem(kind, image, names.index(wanted), epsilon, method, anyway == "true")


def build(pool: Pool, limits: Limits, *, token: str | None, hosts: tuple[str, ...] | None) -> FastAPI:
    """Return the application. token: required by the API, or None. hosts: allowed host names, or None for any."""
    api = ImageApi(pool, limits)
    app = FastAPI(title="TrustCXR", version=__version__, description=NOTICE, docs_url=None, redoc_url=None)
    secured = [Depends(HTTPBearer(auto_error=False))] if token else []
    _add_image_routes(app, api, secured)
    _add_info_routes(app, api, secured)
    add_page(app, "trustcxr.apps.serve", ("index.html", "page.css", "page.js", "icon.svg"))
    add_fault_handlers(app)
    app.add_middleware(SecurityMiddleware, token=token, hosts=hosts)
    return app


def _add_image_routes(app: FastAPI, api: ImageApi, secured: Sequence[Any]) -> None:
    for kind, model, about in (
        ("predict", api_models.Prediction, "Class probabilities, reasons for doubt, and attacks survived."),
        ("examine", api_models.Examination, "The same with maps, the smallest perturbation and corruptions."),
        ("heatmap", None, "The saliency map over the image, as a PNG."),
    ):
        responses = _error_responses()
        if model is None:
            responses[200] = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
        app.add_api_route(
            f"/api/v1/{kind}",
            _make_route(api, cast(Kind, kind)),
            methods=["POST"],
            response_model=model,
            response_class=Response if model is None else JSONResponse,
            responses=responses,
            summary=about,
            operation_id=kind,
            openapi_extra={"requestBody": _request_schema(cast(Kind, kind))},
            dependencies=secured,
        )


def _make_route(api: ImageApi, kind: Kind) -> Callable[..., object]:
    async def answer(request: Request) -> Response:
        return await api.answer(request, kind)

    return answer


def _add_info_routes(app: FastAPI, api: ImageApi, secured: Sequence[Any]) -> None:
    @app.get("/api/v1/runs", operation_id="runs", dependencies=secured, responses=_error_responses(401, 403, 421))
    async def runs() -> api_models.Served:
        """Return the runs and limits of this server."""
        most, needed = api.limits.most_bytes, bool(secured)
        return api_models.Served(version=__version__, runs=api.pool.runs, most_bytes=most, token_needed=needed)

    @app.get("/healthz", operation_id="health", responses=_error_responses(403, 421))
    async def health() -> api_models.Health:
        """Return the state of the server."""
        alive = api.pool.alive
        return api_models.Health(status="ok" if alive else "starting", workers=alive)

    @app.get(
        "/metrics",
        operation_id="metrics",
        dependencies=secured,
        response_class=Response,
        responses=_error_responses(401, 403, 421) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Return metrics for Prometheus."""
        return Response(generate_latest(api.registry), media_type="text/plain; version=0.0.4")


def _to_response(reply: Reply) -> Response:
    if reply.code:
        headers = {"retry-after": str(RETRY_AFTER)} if reply.status == 503 else {}
        return error_response(reply.status, reply.code, reply.message, headers)
    return Response(reply.body, media_type=reply.media)


def _field_names(kind: Kind) -> tuple[str, ...]:
    return ("run", "anyway", "method") if kind == "heatmap" else ("run", "anyway", "epsilon")


def _request_schema(kind: Kind) -> dict[str, object]:
    all_properties: dict[str, object] = {
        "file": {"type": "string", "format": "binary", "description": "A PNG, JPEG or DICOM image."},
        "run": {"type": "string", "description": "One of /api/v1/runs; default: the first."},
        "epsilon": {"type": "number", "minimum": 0, "maximum": _HIGHEST, "default": 0.02},
        "method": {"type": "string", "description": "A saliency method.", "default": "gradcam"},
        "anyway": {"type": "boolean", "description": "Also classify what is no chest image.", "default": False},
    }
    properties = {name: all_properties[name] for name in ("file", *_field_names(kind))}
    schema = {"type": "object", "required": ["file"], "properties": properties, "additionalProperties": False}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _error_responses(*statuses: int) -> dict[int | str, dict[str, object]]:
    return {status: {"model": api_models.Problem} for status in statuses or _PROBLEMS}


class Refused(Exception):
    """A refused request: HTTP status, a code for programs, a line for people."""


class _InMemory(MultiPartParser):
    """Starlette's parser, without temporary files on disk."""

    spool_max_size = 1 << 40


async def _read_form(request: Request, limits: Limits, allowed_fields: tuple[str, ...]) -> tuple[bytes, dict[str, str]]:
    """Return the file in `file`, and the text in the allowed fields. Raises Refused for anything else."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(415, "no-form", "send a form (multipart/form-data) with the image in the field 'file'")
    try:
        async with asyncio.timeout(limits.upload):
            parser = _InMemory(
                request.headers, _read_bounded(request, limits), max_files=1, max_fields=8, max_part_size=_FIELD_BYTES
            )
            form = await parser.parse()
    except TimeoutError:
        raise Refused(408, "slow-upload", f"the image did not arrive within {limits.upload:g} s: try again") from None
    except ClientDisconnect:
        raise Refused(400, "cut-off", "the image was cut off: send it again") from None
    except (MultiPartException, KeyError, ValueError, AssertionError):
        raise Refused(400, "broken-form", "the form cannot be read: send one image in the field 'file'") from None
    images, fields = [], {}
    for name, value in form.multi_items():
        if name == "file" and isinstance(value, UploadFile):
            images.append(await value.read())
            await value.close()
        elif name in allowed_fields and isinstance(value, str) and name not in fields:
            fields[name] = value
        else:
            allowed = ", ".join(allowed_fields)
            raise Refused(422, "unknown-field", f"a form has a file in 'file' and may have, once each: {allowed}")
    if len(images) != 1:
        raise Refused(422, "no-image", "no image: send one in the field 'file'")
    return images[0], fields


async def _drain(request: Request, limits: Limits) -> None:
    """Read and discard the body of a refused request, so that the connection stays usable."""
    with suppress(TimeoutError, Refused, ClientDisconnect):
        async with asyncio.timeout(limits.upload):
            async for _ in _read_bounded(request, limits):
                pass


async def _read_bounded(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    length = request.headers.get("content-length", "")[:20]
    _check_bytes(int(length) if length.isdecimal() else 0, limits)  # before any byte arrives
    size = 0
    async for piece in request.stream():
        size += len(piece)
        _check_bytes(size, limits)
        yield piece


def _check_bytes(size: int, limits: Limits) -> None:
    if size > limits.most_bytes + 4 * _FIELD_BYTES:
        raise Refused(413, "too-large", f"more than {limits.most_bytes >> 20} MB: send a smaller file")
