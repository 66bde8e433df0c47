"""Serve the page of a reader study, and save its answers. A token identifies a reader, an index a map."""

from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from trustcxr.apps.reader.database import RATINGS, Judgement, Mark, Reader, Store
from trustcxr.apps.serve.middleware import SecurityMiddleware, add_fault_handlers, add_page, bearer, error_response
from trustcxr.console import log
from trustcxr.errors import CannotWrite
from trustcxr.version import NOTICE, __version__

MOST_BYTES = 1 << 20  # of one request: twenty outlines of six hundred points
_Body = TypeVar("_Body", bound=BaseModel)
router = APIRouter(prefix="/api/v1")


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


def build(store: Store, *, hosts: tuple[str, ...] | None) -> FastAPI:
    """Return the application. hosts: allowed host names, or None for any."""
    app = FastAPI(title="TrustCXR reader study", version=__version__, description=NOTICE, docs_url=None, redoc_url=None)
    app.state.store = store
    app.include_router(router)
    add_page(app, "trustcxr.apps.reader", ("index.html", "reader.css", "reader.js"))
    add_page(app, "trustcxr.apps.serve", ("page.css", "icon.svg"))
    add_fault_handlers(app)
    app.add_exception_handler(CannotWrite, _answer_not_saved)
    app.add_middleware(SecurityMiddleware, token=None, hosts=hosts)  # the routes check the token of each reader
    return app


async def _find_store(request: Request) -> Store:
    return request.app.state.store


OneStore = Annotated[Store, Depends(_find_store)]


def _find_reader(store: OneStore, request: Request) -> Reader:
    reader = store.find_reader(bearer(request.headers))
    if reader is None:
        raise HTTPException(401, "open the link that you were sent: it holds your token")
    return reader


OneReader = Annotated[Reader, Depends(_find_reader)]


def _find_image(store: OneStore, reader: OneReader, number: int) -> int:
    """Return the image at a position of this reader's order."""
    if not 0 <= number < store.images:
        raise HTTPException(404, "there is no such image")
    return store.order(reader)[number]


ImageNumber = Annotated[int, Depends(_find_image)]


def _find_arm(store: Store, reader: Reader, image: int, slot: int) -> int:
    """Return the arm of a shown map, if the image is marked."""
    slots = store.slots(reader, image)
    if not 0 <= slot < len(slots):
        raise HTTPException(404, "there is no such map")
    if store.mark(reader, image) is None:
        raise HTTPException(409, "mark the finding first: the maps are shown after that")
    return slots[slot]


@router.get("/state")
def _show_state(store: OneStore, reader: OneReader) -> State:
    finished = set(store.done(reader))
    done = [number for number, image in enumerate(store.order(reader)) if image in finished]
    return State(
        reader=reader.name,
        images=store.images,
        maps=len(store.arms),
        ratings=list(RATINGS),
        done=done,
        next=next((number for number in range(store.images) if number not in done), None),
    )


@router.get("/images/{number}")
def _show_answers(store: OneStore, reader: OneReader, image: ImageNumber, number: int) -> OneImage:
    by_arm = store.judgements(reader, image)
    responses = [
        ReaderResponse(map=slot, rank=by_arm[arm].rank, rating=by_arm[arm].rating)
        for slot, arm in enumerate(store.slots(reader, image))
    ]
    return OneImage(number=number, mark=store.mark(reader, image), responses=responses)


@router.get("/images/{number}/image.png", response_class=Response)
def _show_picture(store: OneStore, image: ImageNumber) -> Response:
    return Response(store.picture(image), media_type="image/png")


@router.get("/images/{number}/maps/{slot}.png", response_class=Response)
def _show_map(store: OneStore, reader: OneReader, image: ImageNumber, slot: int) -> Response:
    return Response(store.map(image, _find_arm(store, reader, image, slot)), media_type="image/png")


@router.put("/images/{number}/mark")
async def _save_mark(store: OneStore, reader: OneReader, image: ImageNumber, number: int, request: Request) -> OneImage:
    mark = await _read_body(request, Mark)
    if not await run_in_threadpool(store.save_mark, reader, image, mark):
        raise HTTPException(409, "the image is marked already; after the maps are shown it cannot be marked again")
    return await run_in_threadpool(_show_answers, store, reader, image, number)


@router.put("/images/{number}/responses")
async def _save_response(
    store: OneStore, reader: OneReader, image: ImageNumber, number: int, request: Request
) -> OneImage:
    response = await _read_body(request, ReaderResponse)
    if response.rank is not None and response.rank > len(store.arms):
        raise HTTPException(422, "a rank is at most the number of maps")
    arm = await run_in_threadpool(_find_arm, store, reader, image, response.map)
    rank = 1 if len(store.arms) == 1 else response.rank  # one map has no rival
    await run_in_threadpool(store.save_judgement, reader, image, arm, Judgement(rank, response.rating))
    return await run_in_threadpool(_show_answers, store, reader, image, number)


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


async def _answer_not_saved(_: Request, fault: Exception) -> Response:
    log(str(fault))
    message = "not saved. Tell the person who sent you the link, and keep this page open."
    return error_response(503, "not-saved", message)
