"""Images at an address that fsspec knows (s3://, gs://, https://, file://): brought once into this machine's cache."""

import re
import shutil
from hashlib import sha256
from pathlib import Path, PurePosixPath

from trustcxr.console import log
from trustcxr.errors import UserError
from trustcxr.storage.os_errors import is_full, writing

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)")  # a path takes one of the two strokes away


def is_address(data: str | Path) -> bool:
    """Whether this is an address, and no folder or file of this machine."""
    return _ADDRESS.fullmatch(str(data)) is not None and not Path(data).exists()


def check_exists(data: str | Path) -> None:
    """UserError where this is no address, and no file or folder of this machine: asked before what takes seconds."""
    try:
        if not is_address(data):
            Path(data).expanduser().stat()
    except FileNotFoundError:
        raise UserError(f"{data}: no such file or folder; give a folder of X-rays or a list") from None
    except (OSError, ValueError, RuntimeError):
        return  # something is wrong with it, which whoever opens it says


def resolve_address(data: str | Path) -> str:
    """An address in full, or the whole path of a folder: what another process finds the images by."""
    found = _ADDRESS.fullmatch(str(data))
    if found is None or not is_address(data):
        return str(Path(data).resolve())
    return f"{found[1]}://{'/' if found[1] == 'file' else ''}{found[2]}"


def fetch(data: str | Path) -> Path:
    """The folder or file on this machine: what is at an address is copied into the cache first, once, whole.

    UserError where nothing is there, it cannot be reached, or fsspec needs a further package for it.
    """
    if not is_address(data):
        return Path(data)
    from filelock import FileLock

    from trustcxr.data.cache import cache_folder

    address = resolve_address(data)
    folder = cache_folder() / "images" / sha256(address.encode()).hexdigest()[:16]
    copy = folder / (PurePosixPath(address).name or "images")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not copy.exists():
                log(f"{address}: brought to {copy}, once; delete that folder to have it brought anew")
                _bring(address, copy)
    return copy


def _bring(address: str, copy: Path) -> None:
    import fsspec

    partial = copy.with_name(".unfinished")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        system, path = fsspec.core.url_to_fs(address)
        if not system.exists(path):
            raise UserError(f"{address}: nothing is there; check the address")
        system.get(path, str(partial / copy.name), recursive=system.isdir(path))
    except ImportError as problem:
        raise UserError(f"{address}: {' '.join(str(problem).split())}; then the same command") from None
    except UserError:
        raise
    except Exception as problem:  # each store of the world has errors of its own, such as for missing credentials
        if is_full(problem):
            raise
        said = " ".join(str(problem).split()) or type(problem).__name__
        raise UserError(f"{address}: cannot be brought here: {said}") from None
    (partial / copy.name).rename(copy)
    partial.rmdir()
