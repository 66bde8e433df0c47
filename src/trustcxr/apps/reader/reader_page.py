"""Serve the page of a reader study, and save its answers. A token identifies a reader, an index a map."""

from typing import Annotated, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from trustcxr.apps.reader.annotations import Mark
from trustcxr.apps.reader.database import RATINGS, Judgement, Reader, Store
from trustcxr.apps.serve.middleware import SecurityMiddleware, add_fault_handlers, add_page, bearer, error_response
from trustcxr.console import log
from trustcxr.errors import CannotWrite
from trustcxr.version import NOTICE, __version__

MOST_BYTES = 1 << 20  # of one request: twenty outlines of six hundred points
_HERE, _SERVE = "trustcxr.apps.reader", "trustcxr.apps.serve"
PAGE = {"/": (_HERE, "index.html", "text/html"), "/reader.css": (_HERE, "reader.css", "text/css")}
PAGE |= {"/reader.js": (_HERE, "reader.js", "text/javascript"), "/page.css": (_SERVE, "page.css", "text/css")}
PAGE |= {"/icon.svg": (_SERVE, "icon.svg", "image/svg+xml")}
_CODES = {401: "no-token", 404: "not-found", 405: "wrong-method", 409: "too-late", 413: "too-large", 422: "invalid"}
_Body = TypeVar("_Body", bound=BaseModel)


class ReaderResponse(BaseModel):
    """Rank, rating or both of one map; maps are numbered from 0 in the order shown."""

    model_config = ConfigDict(extra="forbid")
    map: int = Field(ge=0)
    rank: int | None = Field(None, ge=1)
    rating: int | None = Field(None, ge=min(RATINGS), le=max(RATINGS))


class State(BaseModel):
    """Progress of a reader: finished images, and the next one (None at the end)."""

    reader: str
    images: int
    maps: int
    ratings: list[int]
    done: list[int]
    next: int | None


class OneImage(BaseModel):
    """Answers of a reader for one image; maps are shown after the mark."""

    number: int
    mark: Mark | None
    responses: list[ReaderResponse]


class ReaderApi:
    """Answer requests from the database. Raises HTTPException for what a reader may not do."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def reader(self, request: Request) -> Reader:
        """Return the reader of the token, or raise 401."""
        reader = self.store.find_reader(bearer(request.headers))
        if reader is None:
            raise HTTPException(401, "open the link that you were sent: it holds your token")
        return reader

    def image(self, reader: Reader, number: int) -> int:
        """Return the image at a position of this reader's order, or raise 404."""
        if not 0 <= number < self.store.images:
            raise HTTPException(404, "there is no such image")
        return self.store.order(reader)[number]

    def arm(self, reader: Reader, image: int, slot: int) -> int:
        """Return the arm of a shown map, or raise 409 until the image is marked."""
        slots = self.store.slots(reader, image)
        if not 0 <= slot < len(slots):
            raise HTTPException(404, "there is no such map")
        if self.store.mark(reader, image) is None:
            raise HTTPException(409, "mark the finding first: the maps are shown after that")
        return slots[slot]

    def state(self, reader: Reader) -> State:
        """Return the progress of the reader."""
        finished, order = set(self.store.done(reader)), self.store.order(reader)
        done = [number for number, image in enumerate(order) if image in finished]
        remaining = [number for number in range(len(order)) if number not in done]
        return State(
            reader=reader.name,
            images=self.store.images,
            maps=len(self.store.arms),
            ratings=list(RATINGS),
            done=done,
            next=remaining[0] if remaining else None,
        )

    def answers(self, reader: Reader, number: int) -> OneImage:
        """Return the answers of the reader for an image."""
        image = self.image(reader, number)
        by_arm = self.store.judgements(reader, image)
        responses = [
            ReaderResponse(map=slot, rank=by_arm[arm].rank, rating=by_arm[arm].rating)
            for slot, arm in enumerate(self.store.slots(reader, image))
        ]
        return OneImage(number=number, mark=self.store.mark(reader, image), responses=responses)

    def mark(self, reader: Reader, number: int, mark: Mark) -> OneImage:
        """Save a mark, or raise 409 if the maps have been seen."""
        if not self.store.save_mark(reader, self.image(reader, number), mark):
            raise HTTPException(409, "the image is marked already; after the maps are shown it cannot be marked again")
        return self.answers(reader, number)

    def judge(self, reader: Reader, number: int, response: ReaderResponse) -> OneImage:
        """Save a rank, a rating or both."""
        image = self.image(reader, number)
        if response.rank is not None and response.rank > len(self.store.arms):
            raise HTTPException(422, "a rank is at most the number of maps")
        arm = self.arm(reader, image, response.map)
        rank = 1 if len(self.store.arms) == 1 else response.rank  # one map has no rival
        self.store.save_judgement(reader, image, arm, Judgement(rank, response.rating))
        return self.answers(reader, number)


def build(store: Store, *, hosts: tuple[str, ...] | None) -> FastAPI:
    """Return the application. hosts: allowed host names, or None for any."""
    app = FastAPI(title="TrustCXR reader study", version=__version__, description=NOTICE, docs_url=None, redoc_url=None)
    _add_routes(app, ReaderApi(store))
    add_page(app, PAGE)
    add_fault_handlers(app)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_exception_handler(404, _answer_error)
    app.add_exception_handler(405, _answer_error)
    app.add_exception_handler(CannotWrite, _answer_not_saved)
    app.add_middleware(SecurityMiddleware, token=None, hosts=hosts)  # the routes check the token of each reader
    return app


def _add_routes(app: FastAPI, api: ReaderApi) -> None:
    AuthorisedReader = Annotated[Reader, Depends(api.reader)]

    @app.get("/api/v1/state")
    def state(reader: AuthorisedReader) -> State:
        return api.state(reader)

    @app.get("/api/v1/images/{number}")
    def image(reader: AuthorisedReader, number: int) -> OneImage:
        return api.answers(reader, number)

    @app.get("/api/v1/images/{number}/image.png", response_class=Response)
    def picture(reader: AuthorisedReader, number: int) -> Response:
        return Response(api.store.picture(api.image(reader, number)), media_type="image/png")

    @app.get("/api/v1/images/{number}/maps/{number_of_map}.png", response_class=Response)
    def heatmap(reader: AuthorisedReader, number: int, number_of_map: int) -> Response:
        image = api.image(reader, number)
        return Response(api.store.map(image, api.arm(reader, image, number_of_map)), media_type="image/png")

    @app.put("/api/v1/images/{number}/mark")
    async def mark(reader: AuthorisedReader, number: int, request: Request) -> OneImage:
        return await run_in_threadpool(api.mark, reader, number, await _read_body(request, Mark))

    @app.put("/api/v1/images/{number}/responses")
    async def responses(reader: AuthorisedReader, number: int, request: Request) -> OneImage:
        return await run_in_threadpool(api.judge, reader, number, await _read_body(request, ReaderResponse))


async def _read_body(request: Request, kind: type[_Body]) -> _Body:
    body = b""
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BYTES:
                raise HTTPException(413, "the request is too large")
        return kind.model_validate_json(body)
    except ClientDisconnect:
        raise HTTPException(400, "the request was cut off") from None
    except ValidationError:
        raise HTTPException(422, "the request does not match /openapi.json") from None


async def _answer_error(_: Request, fault: Exception) -> Response:
    status = getattr(fault, "status_code", 404)
    return error_response(status, _CODES.get(status, "refused"), str(getattr(fault, "detail", "there is nothing here")))


async def _answer_not_saved(_: Request, fault: Exception) -> Response:
    log(str(fault))
    return error_response(
        503, "not-saved", "not saved. Tell the person who sent you the link, and keep this page open."
    )
