"""What the page of `serve` and that of `reader` have in common: files, read once; faults, told in words."""

from collections.abc import Callable, Mapping
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError

from trustcxr.serve.doors import problem

Page = Mapping[str, tuple[str, str, str]]  # by route: a package, a file in its folder `page`, the media type


def show(app: FastAPI, page: Page) -> None:
    """Add the files of a page, read once; no path of a request ever touches the disk."""

    def route(content: bytes, media: str) -> Callable[[], Response]:
        def shown() -> Response:
            return Response(content, media_type=media)

        return shown

    for path, (package, name, media) in page.items():
        content = (files(package) / "page" / name).read_bytes()
        app.add_api_route(path, route(content, media), include_in_schema=False)


def tell_faults(app: FastAPI) -> None:
    """Answer what is not as the schema says, and faults of the program, as `problem` does."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _fault)


async def _invalid(_: Request, __: Exception) -> Response:
    return problem(422, "invalid", "the request is not as /openapi.json says")


async def _fault(_: Request, __: Exception) -> Response:
    return problem(500, "fault", "a fault of the program")
