"""The page and the API as one ASGI application."""

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
from trustcxr.apps.serve.middleware import SecurityMiddleware, add_fault_handlers, problem, show
from trustcxr.apps.serve.pool import Pool
from trustcxr.apps.serve.worker import PNG, RETRY_AFTER, Kind, Limits, Part, Reply, WorkItem
from trustcxr.version import NOTICE, __version__

_HERE = "trustcxr.apps.serve"
PAGE = {"/": (_HERE, "index.html", "text/html"), "/page.css": (_HERE, "page.css", "text/css")}
PAGE |= {"/page.js": (_HERE, "page.js", "text/javascript"), "/icon.svg": (_HERE, "icon.svg", "image/svg+xml")}
_HIGHEST = 0.3
_CODES = {404: "not-found", 405: "wrong-method"}
_PROBLEMS = (400, 401, 403, 408, 413, 415, 421, 422, 500, 503)


class Measures:
    """Count requests for Prometheus; nothing of any image or person is among it."""

    def __init__(self) -> None:
        times = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30)
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "trustcxr_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "trustcxr_seconds", "Seconds to answer, by route.", ["route"], buckets=times, registry=registry
        )
        self.inside = Gauge("trustcxr_inside", "Requests that are answered or wait.", registry=registry)
        self.workers = Gauge("trustcxr_workers", "Workers that can answer.", registry=registry)
        self.restarts = Gauge("trustcxr_worker_restarts", "Workers that were replaced.", registry=registry)

    def done(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class House:
    """What the requests share: the workers, the counts, who is inside."""

    def __init__(self, pool: Pool, limits: Limits, *, token: str | None) -> None:
        self.pool, self.limits, self.token = pool, limits, token
        self.measures, self.inside = Measures(), 0

    async def answer(self, request: Request, kind: Kind) -> Response:
        """Answer a form with one image, or say why not."""
        start, status = time.perf_counter(), 500
        try:
            response = await self._answer(request, kind)
            status = response.status_code
            return response
        finally:
            self.measures.done(kind, status, time.perf_counter() - start)

    async def _answer(self, request: Request, kind: Kind) -> Response:
        if self.inside >= self.limits.at_once:
            await uploads.drain(request, self.limits)
            return busy("all workers are busy: try again in a moment")
        self.inside += 1
        try:
            form = await uploads.read_form(request, self.limits, _fields(kind))
            item = self._asked(kind, form)
            return _said(await (self._examined(item) if kind == "examine" else self.pool.ask(item)))
        except uploads.Refused as refused:
            return problem(refused.status, refused.code, refused.message)
        finally:
            self.inside -= 1

    async def _examined(self, item: WorkItem) -> Reply:
        """A closer look, of which two workers do a part each where both are free."""
        start = time.perf_counter()
        kinds: tuple[Part, ...] = get_args(Part)
        parts = await asyncio.gather(*(self.pool.ask(replace(item, kind=kind)) for kind in kinds))
        whole: dict[str, object] = {}
        for part in parts:
            if part.status != 200:
                return part
            whole |= json.loads(part.body)
        whole["seconds"] = round(time.perf_counter() - start, 3)
        return Reply(200, json.dumps(whole).encode())

    def _asked(self, kind: Kind, form: uploads.Form) -> WorkItem:
        names = [run.name for run in self.pool.runs]
        wanted = form.fields.get("run", names[0])
        if wanted not in names:
            raise uploads.Refused(422, "unknown-run", f"no such run here; there is: {', '.join(names)}")
        epsilon = _epsilon(form.fields.get("epsilon", "0.02"))
        return WorkItem(kind, form.image, names.index(wanted), epsilon, form.fields.get("method", "gradcam"))

    def metrics(self) -> bytes:
        """The counts as they are now."""
        self.measures.inside.set(self.inside)
        self.measures.workers.set(self.pool.alive)
        self.measures.restarts.set(self.pool.restarts)
        return self.measures.text()


def build(pool: Pool, limits: Limits, *, token: str | None, hosts: tuple[str, ...] | None) -> FastAPI:
    """The application. `token`: demanded of all that answers for images; `hosts`: by what names it may be called."""
    house = House(pool, limits, token=token)

    @asynccontextmanager
    async def working(_: FastAPI) -> AsyncGenerator[None, None]:
        if not pool.runs:
            await pool.start()
        yield
        await pool.stop()

    app = FastAPI(
        title="TrustCXR", version=__version__, description=NOTICE, docs_url=None, redoc_url=None, lifespan=working
    )
    _images(app, house)
    _about(app, house)
    show(app, PAGE)
    add_fault_handlers(app)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(SecurityMiddleware, token=token, hosts=hosts)
    return app


def _images(app: FastAPI, house: House) -> None:
    """The routes that take an image."""
    for kind, model, about in (
        ("predict", api_models.Prediction, "Classes with probabilities, warnings, and whether the answer stays."),
        ("examine", api_models.Examination, "The same with pictures: maps, the smallest perturbation, corruptions."),
        ("heatmap", None, "The map of the predicted class over the image, as a PNG."),
    ):
        responses = _problems()
        if model is None:
            responses[200] = {"content": {PNG: {"schema": {"type": "string", "format": "binary"}}}}
        app.add_api_route(
            f"/api/v1/{kind}",
            _route(house, cast(Kind, kind)),
            methods=["POST"],
            response_model=model,
            response_class=Response if model is None else JSONResponse,
            responses=responses,
            summary=about,
            operation_id=kind,
            openapi_extra={"requestBody": _body(cast(Kind, kind))},
            dependencies=[Depends(HTTPBearer(auto_error=False))] if house.token else [],
        )


def _route(house: House, kind: Kind) -> Callable[..., object]:
    async def answer(request: Request) -> Response:
        return await house.answer(request, kind)

    return answer


def _about(app: FastAPI, house: House) -> None:
    """The routes that say what there is, and how it does."""
    secured = [Depends(HTTPBearer(auto_error=False))] if house.token else []

    @app.get("/api/v1/runs", operation_id="runs", dependencies=secured, responses=_problems(401, 403, 421))
    async def runs() -> api_models.Served:
        """What answers here."""
        runs_ = [
            api_models.ServedRun(name=r.name, classes=list(r.classes), size=r.size, calibrated=r.calibrated)
            for r in house.pool.runs
        ]
        most, needed = house.limits.most_bytes, house.token is not None
        return api_models.Served(version=__version__, runs=runs_, most_bytes=most, token_needed=needed)

    @app.get("/healthz", operation_id="health", responses=_problems(403, 421))
    async def health() -> api_models.Health:
        """Whether it can answer."""
        alive = house.pool.alive
        return api_models.Health(status="ok" if alive else "starting", workers=alive)

    @app.get(
        "/metrics",
        operation_id="metrics",
        dependencies=secured,
        response_class=Response,
        responses=_problems(401, 403, 421) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(house.metrics(), media_type="text/plain; version=0.0.4")


def busy(message: str) -> Response:
    """Turned away for now; when to come again."""
    return problem(503, "busy", message, retry_after=str(RETRY_AFTER))


def _said(reply: Reply) -> Response:
    if reply.status == 503:
        return busy(reply.message)
    if reply.code:
        return problem(reply.status, reply.code, reply.message)
    return Response(reply.body, media_type=reply.media)


def _fields(kind: Kind) -> tuple[str, ...]:
    return ("run", "method") if kind == "heatmap" else ("run", "epsilon")


def _epsilon(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _HIGHEST:
        raise uploads.Refused(422, "invalid", f"epsilon: a number from 0 to {_HIGHEST:g}")
    return value


def _body(kind: Kind) -> dict[str, object]:
    """What a form may hold, for the schema."""
    described: dict[str, object] = {
        "file": {"type": "string", "format": "binary", "description": "A PNG, JPEG or DICOM image."},
        "run": {"type": "string", "description": "One of /api/v1/runs; the first unless said."},
        "epsilon": {"type": "number", "minimum": 0, "maximum": _HIGHEST, "default": 0.02},
        "method": {"type": "string", "description": "A saliency method.", "default": "gradcam"},
    }
    properties = {name: described[name] for name in ("file", *_fields(kind))}
    schema = {"type": "object", "required": ["file"], "properties": properties, "additionalProperties": False}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _problems(*statuses: int) -> dict[int | str, dict[str, object]]:
    return {status: {"model": api_models.Problem} for status in statuses or _PROBLEMS}


async def _http(_: Request, fault: Exception) -> Response:
    status = fault.status_code if isinstance(fault, HTTPException) else 500
    headers = dict(getattr(fault, "headers", None) or {})
    response = problem(status, _CODES.get(status, "refused"), "there is nothing here; see /openapi.json")
    response.headers.update(headers)
    return response
