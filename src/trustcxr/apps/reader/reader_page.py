"""The reading page and what it saves, as one ASGI application. Readers are known by token, maps by their place."""

from typing import Annotated, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from trustcxr.apps.reader.annotations import Mark
from trustcxr.apps.reader.database import RATINGS, Judgement, Reader, Store
from trustcxr.apps.serve.middleware import SecurityMiddleware, add_fault_handlers, bearer, problem, show
from trustcxr.console import log
from trustcxr.errors import CannotWrite
from trustcxr.version import NOTICE, __version__

MOST_BYTES = 1 << 20  # of what a reader sends: twenty outlines of six hundred points, every digit of them
_HERE, _SERVE = "trustcxr.apps.reader", "trustcxr.apps.serve"
PAGE = {"/": (_HERE, "index.html", "text/html"), "/reader.css": (_HERE, "reader.css", "text/css")}
PAGE |= {"/reader.js": (_HERE, "reader.js", "text/javascript"), "/page.css": (_SERVE, "page.css", "text/css")}
PAGE |= {"/icon.svg": (_SERVE, "icon.svg", "image/svg+xml")}
_CODES = {401: "no-token", 404: "not-found", 405: "wrong-method", 409: "too-late", 413: "too-large", 422: "invalid"}
_Body = TypeVar("_Body", bound=BaseModel)


class ReaderResponse(BaseModel):
    """Of the map in a place (from 0): its rank among the image's maps, its rating, or both."""

    model_config = ConfigDict(extra="forbid")
    place: int = Field(ge=0)
    rank: int | None = Field(None, ge=1)
    rating: int | None = Field(None, ge=min(RATINGS), le=max(RATINGS))


class State(BaseModel):
    """Where a reader stands: how many images and maps of each, which are done, and the next one; None at the end."""

    reader: str
    images: int
    maps: int
    ratings: list[int]
    done: list[int]
    next: int | None


class OneImage(BaseModel):
    """What a reader has said of one image so far; its maps are shown once it is marked."""

    number: int
    mark: Mark | None
    said: list[ReaderResponse]


class Desk:
    """What the requests share: the store, and who asks."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def reader(self, request: Request) -> Reader:
        """Who asks, by the token; 401 for nobody."""
        reader = self.store.known(bearer(request.headers))
        if reader is None:
            raise HTTPException(401, "open the link that you were sent: it holds your token")
        return reader

    def image(self, reader: Reader, number: int) -> int:
        """The image in a place of this reader's order; 404 where there is none."""
        if not 0 <= number < self.store.images:
            raise HTTPException(404, "there is no such image")
        return self.store.order(reader)[number]

    def arm(self, reader: Reader, image: int, slot: int) -> int:
        """Whose map stands in a place; 409 until the image is marked."""
        slots = self.store.slots(reader, image)
        if not 0 <= slot < len(slots):
            raise HTTPException(404, "there is no such map")
        if self.store.mark(reader, image) is None:
            raise HTTPException(409, "mark the finding first: the maps are shown after that")
        return slots[slot]

    def state(self, reader: Reader) -> State:
        """Where the reader stands."""
        done = set(self.store.done(reader))
        order = self.store.order(reader)
        left = [number for number, image in enumerate(order) if image not in done]
        finished = [number for number, image in enumerate(order) if image in done]
        return State(
            reader=reader.name,
            images=self.store.images,
            maps=len(self.store.arms),
            ratings=list(RATINGS),
            done=finished,
            next=left[0] if left else None,
        )

    def seen(self, reader: Reader, number: int) -> OneImage:
        """What was said of an image, the maps by place."""
        image = self.image(reader, number)
        by_arm = self.store.judgements(reader, image)
        responses = [
            ReaderResponse(place=slot, rank=by_arm[arm].rank, rating=by_arm[arm].rating)
            for slot, arm in enumerate(self.store.slots(reader, image))
        ]
        return OneImage(number=number, mark=self.store.mark(reader, image), said=responses)

    def mark(self, reader: Reader, number: int, mark: Mark) -> OneImage:
        """Save what the reader marked; 409 where the maps have been seen."""
        if not self.store.save_mark(reader, self.image(reader, number), mark):
            raise HTTPException(409, "the image is marked already: whoever has seen the maps does not mark it anew")
        return self.seen(reader, number)

    def judge(self, reader: Reader, number: int, response: ReaderResponse) -> OneImage:
        """Save a rank or a rating."""
        image = self.image(reader, number)
        if response.rank is not None and response.rank > len(self.store.arms):
            raise HTTPException(422, "a rank is at most the number of maps")
        arm = self.arm(reader, image, response.place)
        self.store.save_judgement(reader, image, arm, Judgement(response.rank, response.rating))
        return self.seen(reader, number)


def build(store: Store, *, hosts: tuple[str, ...] | None) -> FastAPI:
    """The application. `hosts`: by what names it may be called; any where None."""
    app = FastAPI(title="TrustCXR reader study", version=__version__, description=NOTICE, docs_url=None, redoc_url=None)
    _routes(app, Desk(store))
    show(app, PAGE)
    add_fault_handlers(app)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(404, _refused)
    app.add_exception_handler(405, _refused)
    app.add_exception_handler(CannotWrite, _unsaved)
    app.add_middleware(SecurityMiddleware, token=None, hosts=hosts)  # each reader has a token: the routes ask for it
    return app


def _routes(app: FastAPI, desk: Desk) -> None:
    Asking = Annotated[Reader, Depends(desk.reader)]

    @app.get("/api/v1/state")
    def state(reader: Asking) -> State:
        return desk.state(reader)

    @app.get("/api/v1/images/{number}")
    def image(reader: Asking, number: int) -> OneImage:
        return desk.seen(reader, number)

    @app.get("/api/v1/images/{number}/image.png", response_class=Response)
    def picture(reader: Asking, number: int) -> Response:
        return Response(desk.store.picture(desk.image(reader, number)), media_type="image/png")

    @app.get("/api/v1/images/{number}/maps/{place}.png", response_class=Response)
    def heatmap(reader: Asking, number: int, place: int) -> Response:
        image = desk.image(reader, number)
        return Response(desk.store.map(image, desk.arm(reader, image, place)), media_type="image/png")

    @app.put("/api/v1/images/{number}/mark")
    async def mark(reader: Asking, number: int, request: Request) -> OneImage:
        return await run_in_threadpool(desk.mark, reader, number, await _body(request, Mark))

    @app.put("/api/v1/images/{number}/said")
    async def said(reader: Asking, number: int, request: Request) -> OneImage:
        return await run_in_threadpool(desk.judge, reader, number, await _body(request, ReaderResponse))


async def _body(request: Request, kind: type[_Body]) -> _Body:
    """What was sent, read no further than MOST_BYTES."""
    body = b""
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BYTES:
                raise HTTPException(413, "more than a reader's marks can be")
        return kind.model_validate_json(body)
    except ClientDisconnect:
        raise HTTPException(400, "it was cut off on its way") from None
    except ValidationError:
        raise HTTPException(422, "not what /openapi.json says") from None


async def _refused(_: Request, fault: Exception) -> Response:
    status = getattr(fault, "status_code", 404)
    return problem(status, _CODES.get(status, "refused"), str(getattr(fault, "detail", "there is nothing here")))


async def _unsaved(_: Request, fault: Exception) -> Response:
    log(str(fault))
    return problem(503, "not-saved", "it could not be saved: tell whoever sent you the link, and keep this page open")
