"""Build the ASGI application: the page and the API."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast, get_args

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trustcxr.apps.serve import api_models, uploads
from trustcxr.apps.serve.api_models import Kind, Part, Reply, WorkItem
from trustcxr.apps.serve.middleware import SecurityMiddleware, add_fault_handlers, add_page, error_response
from trustcxr.apps.serve.worker import RETRY_AFTER, Limits, Pool
from trustcxr.version import NOTICE, __version__

_HIGHEST = 0.3
_PROBLEMS = (400, 401, 403, 408, 413, 415, 421, 422, 500, 503)
_TIMES = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30)


class ImageApi:
    """Answer requests with an image, and count them for Prometheus, without anything about images or persons."""

    def __init__(self, pool: Pool, limits: Limits) -> None:
        self.pool, self.limits, self.inside = pool, limits, 0
        self.registry = registry = CollectorRegistry()
        gauge = partial(Gauge, registry=registry)
        gauge("trustcxr_inside", "Concurrent requests, active and queued.").set_function(lambda: self.inside)
        gauge("trustcxr_workers", "Workers that are alive.").set_function(lambda: pool.alive)
        gauge("trustcxr_worker_restarts", "Workers that were restarted.").set_function(lambda: pool.restarts)
        about = "Requests by route and status."
        self.requests = Counter("trustcxr_requests", about, ["route", "status"], registry=registry)
        about = "Seconds per request by route."
        self.seconds = Histogram("trustcxr_seconds", about, ["route"], buckets=_TIMES, registry=registry)

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
            await uploads.drain(request, self.limits)
            return _to_response(Reply(503, code="busy", message="all workers are busy: try again soon"))
        self.inside += 1
        try:
            item = self._make_item(kind, *await uploads.read_form(request, self.limits, _field_names(kind)))
            return _to_response(await (self._examine(item) if kind == "examine" else self.pool.ask(item)))
        except uploads.Refused as refused:
            return error_response(refused.status, refused.code, refused.message)
        finally:
            self.inside -= 1

    async def _examine(self, item: WorkItem) -> Reply:
        """Answer the two parts of "examine" in parallel, by two workers if both are free."""
        start = time.perf_counter()
        kinds: tuple[Part, ...] = get_args(Part)
        parts = await asyncio.gather(*(self.pool.ask(replace(item, kind=kind)) for kind in kinds))
        whole: dict[str, object] = {}
        warnings: list[str] = []
        for part in parts:
            if part.status != 200:
                return part
            whole |= json.loads(part.body)
            warnings += cast(list[str], whole["warnings"])
        whole["warnings"] = warnings
        whole["seconds"] = round(time.perf_counter() - start, 3)
        return Reply(200, json.dumps(whole).encode())

    def _make_item(self, kind: Kind, image: bytes, fields: dict[str, str]) -> WorkItem:
        names = [run.name for run in self.pool.runs]
        wanted = fields.get("run", names[0])
        if wanted not in names:
            raise uploads.Refused(422, "unknown-run", f"unknown run; valid: {', '.join(names)}")
        epsilon, anyway = _parse_epsilon(fields.get("epsilon", "0.02")), fields.get("anyway", "false")
        if anyway not in ("true", "false"):
            raise uploads.Refused(422, "invalid", "anyway: true or false")
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


def _parse_epsilon(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _HIGHEST:
        raise uploads.Refused(422, "invalid", f"epsilon: a number from 0 to {_HIGHEST:g}")
    return value


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
