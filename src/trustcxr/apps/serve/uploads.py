"""Read a form with one image into memory, never to disk."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from trustcxr.apps.serve.worker import Limits

_FIELD_BYTES = 1024
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # its log quotes broken forms


class Refused(Exception):
    """A refused request: HTTP status, a code for programs, a line for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _InMemory(MultiPartParser):
    """Starlette's parser, without temporary files on disk."""

    spool_max_size = 1 << 40


async def read_form(request: Request, limits: Limits, allowed_fields: tuple[str, ...]) -> tuple[bytes, dict[str, str]]:
    """Return the file in `file`, and the text in the allowed fields. Raises Refused for anything else."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(415, "no-form", "send a form (multipart/form-data) with the image in the field 'file'")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.most_bytes + 4 * _FIELD_BYTES:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.upload):
            parser = _InMemory(
                request.headers, _read_bounded(request, limits), max_files=1, max_fields=8, max_part_size=_FIELD_BYTES
            )
            form = await parser.parse()
            return await _parse_fields(form.multi_items(), allowed_fields)
    except TimeoutError:
        raise Refused(408, "slow-upload", f"the image did not arrive within {limits.upload:g} s: try again") from None
    except ClientDisconnect:
        raise Refused(400, "cut-off", "the image was cut off: send it again") from None
    except (MultiPartException, KeyError, ValueError, AssertionError):
        raise Refused(400, "broken-form", "the form cannot be read: send one image in the field 'file'") from None


async def drain(request: Request, limits: Limits) -> None:
    """Read and discard the body of a refused request, so that the connection stays usable."""
    with suppress(TimeoutError, Refused, ClientDisconnect):
        async with asyncio.timeout(limits.upload):
            async for _ in _read_bounded(request, limits):
                pass


async def _read_bounded(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limits.most_bytes + 4 * _FIELD_BYTES:
            raise _too_large(limits)
        yield piece


async def _parse_fields(
    items: list[tuple[str, UploadFile | str]], allowed_fields: tuple[str, ...]
) -> tuple[bytes, dict[str, str]]:
    images, fields = [], {}
    for name, value in items:
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


def _too_large(limits: Limits) -> Refused:
    return Refused(413, "too-large", f"more than {limits.most_bytes >> 20} MB: send a smaller file")
