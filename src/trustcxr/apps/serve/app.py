"""Build the ASGI application: the page and the API."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast, get_args

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException

from trustcxr.apps.serve import api_models, uploads
from trustcxr.apps.serve.limits import Limits
from trustcxr.apps.serve.middleware import SecurityMiddleware, add_fault_handlers, add_page, error_response
from trustcxr.apps.serve.pool import Pool
from trustcxr.apps.serve.worker import PNG, RETRY_AFTER, Kind, Part, Reply, WorkItem
from trustcxr.version import NOTICE, __version__

_HERE = "trustcxr.apps.serve"
PAGE = {"/": (_HERE, "index.html", "text/html"), "/page.css": (_HERE, "page.css", "text/css")}
PAGE |= {"/page.js": (_HERE, "page.js", "text/javascript"), "/icon.svg": (_HERE, "icon.svg", "image/svg+xml")}
_HIGHEST = 0.3
_CODES = {404: "not-found", 405: "wrong-method"}
_PROBLEMS = (400, 401, 403, 408, 413, 415, 421, 422, 500, 503)


class Metrics:
    """Count requests for Prometheus, without anything about images or persons."""

    def __init__(self) -> None:
        times = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30)
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "trustcxr_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "trustcxr_seconds", "Seconds per request by route.", ["route"], buckets=times, registry=registry
        )
        self.inside = Gauge("trustcxr_inside", "Concurrent requests, active and queued.", registry=registry)
        self.workers = Gauge("trustcxr_workers", "Workers that are alive.", registry=registry)
        self.restarts = Gauge("trustcxr_worker_restarts", "Workers that were restarted.", registry=registry)

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class ImageApi:
    """Answer requests with an image, and count them."""

    def __init__(self, pool: Pool, limits: Limits, *, token: str | None) -> None:
        self.pool, self.limits, self.token = pool, limits, token
        self.counts, self.inside = Metrics(), 0

    async def answer(self, request: Request, kind: Kind) -> Response:
        """Answer a form with one image."""
        start, status = time.perf_counter(), 500
        try:
            response = await self._answer(request, kind)
            status = response.status_code
            return response
        finally:
            self.counts.count(kind, status, time.perf_counter() - start)

    async def _answer(self, request: Request, kind: Kind) -> Response:
        if self.inside >= self.limits.workers + self.limits.waiting:
            await uploads.drain(request, self.limits)
            return busy_response("all workers are busy: try again soon")
        self.inside += 1
        try:
            form = await uploads.read_form(request, self.limits, _field_names(kind))
            item = self._make_item(kind, form)
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

    def _make_item(self, kind: Kind, form: uploads.Form) -> WorkItem:
        names = [run.name for run in self.pool.runs]
        wanted = form.fields.get("run", names[0])
        if wanted not in names:
            raise uploads.Refused(422, "unknown-run", f"unknown run; valid: {', '.join(names)}")
        epsilon = _parse_epsilon(form.fields.get("epsilon", "0.02"))
        method, anyway = form.fields.get("method", "gradcam"), _parse_anyway(form.fields.get("anyway", "false"))
        return WorkItem(kind, form.image, names.index(wanted), epsilon, method, anyway)

    def metrics(self) -> bytes:
        """Return the current metrics for Prometheus."""
        self.counts.inside.set(self.inside)
        self.counts.workers.set(self.pool.alive)
        self.counts.restarts.set(self.pool.restarts)
        return self.counts.text()


def build(pool: Pool, limits: Limits, *, token: str | None, hosts: tuple[str, ...] | None) -> FastAPI:
    """Return the application. token: required by the API, or None. hosts: allowed host names, or None for any."""
    api = ImageApi(pool, limits, token=token)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        if not pool.runs:
            await pool.start()
        yield
        await pool.stop()

    app = FastAPI(
        title="TrustCXR", version=__version__, description=NOTICE, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    _add_image_routes(app, api)
    _add_info_routes(app, api)
    add_page(app, PAGE)
    add_fault_handlers(app)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_middleware(SecurityMiddleware, token=token, hosts=hosts)
    return app


def _add_image_routes(app: FastAPI, api: ImageApi) -> None:
    for kind, model, about in (
        ("predict", api_models.Prediction, "Class probabilities, reasons for doubt, and attacks survived."),
        ("examine", api_models.Examination, "The same with maps, the smallest perturbation and corruptions."),
        ("heatmap", None, "The saliency map over the image, as a PNG."),
    ):
        responses = _error_responses()
        if model is None:
            responses[200] = {"content": {PNG: {"schema": {"type": "string", "format": "binary"}}}}
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
            dependencies=[Depends(HTTPBearer(auto_error=False))] if api.token else [],
        )


def _make_route(api: ImageApi, kind: Kind) -> Callable[..., object]:
    async def answer(request: Request) -> Response:
        return await api.answer(request, kind)

    return answer


def _add_info_routes(app: FastAPI, api: ImageApi) -> None:
    secured = [Depends(HTTPBearer(auto_error=False))] if api.token else []

    @app.get("/api/v1/runs", operation_id="runs", dependencies=secured, responses=_error_responses(401, 403, 421))
    async def runs() -> api_models.Served:
        """Return the runs and limits of this server."""
        served = [
            api_models.ServedRun(name=r.name, classes=list(r.classes), size=r.size, calibrated=r.calibrated)
            for r in api.pool.runs
        ]
        most, needed = api.limits.most_bytes, api.token is not None
        return api_models.Served(version=__version__, runs=served, most_bytes=most, token_needed=needed)

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
        return Response(api.metrics(), media_type="text/plain; version=0.0.4")


def busy_response(message: str) -> Response:
    """Return a response 503 with the time to wait."""
    return error_response(503, "busy", message, retry_after=str(RETRY_AFTER))


def _to_response(reply: Reply) -> Response:
    if reply.status == 503:
        return busy_response(reply.message)
    if reply.code:
        return error_response(reply.status, reply.code, reply.message)
    return Response(reply.body, media_type=reply.media)


def _field_names(kind: Kind) -> tuple[str, ...]:
    return ("run", "anyway", "method") if kind == "heatmap" else ("run", "anyway", "epsilon")


def _parse_anyway(text: str) -> bool:
    if text not in ("true", "false"):
        raise uploads.Refused(422, "invalid", "anyway: true or false")
    return text == "true"


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


async def _answer_http_error(_: Request, fault: Exception) -> Response:
    status = fault.status_code if isinstance(fault, HTTPException) else 500
    headers = dict(getattr(fault, "headers", None) or {})
    response = error_response(status, _CODES.get(status, "refused"), "there is nothing here; see /openapi.json")
    response.headers.update(headers)
    return response
