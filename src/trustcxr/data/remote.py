"""Copy data at an fsspec address (s3://, gs://, https://, file://) into the cache, once."""

import re
import shutil
import stat
from hashlib import sha256
from pathlib import Path, PurePosixPath

from trustcxr.console import log
from trustcxr.errors import UserError
from trustcxr.storage.os_errors import escaped, file_kind, is_full, writing

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)")  # Path() removes one of the two slashes


def is_address(data: str | Path) -> bool:
    """Tell whether this is an address, and no local path."""
    return _ADDRESS.fullmatch(str(data)) is not None and not Path(data).exists()


def check_exists(data: str | Path) -> None:
    """Raise UserError unless this is an address, a folder or a regular file; early in a command."""
    advice = "Give a folder of X-rays or a list"
    if not str(data):
        raise UserError("no data: give a folder of X-rays or a list")
    try:
        mode = stat.S_IFDIR if is_address(data) else Path(data).expanduser().stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{data}: no such file or folder. {advice}") from None
    except (OSError, ValueError, RuntimeError) as fault:
        why = getattr(fault, "strerror", None) or str(fault)
        raise UserError(f"{escaped(str(data))[:200]}: cannot be read: {why}. {advice}") from None
    if not stat.S_ISDIR(mode) and (kind := file_kind(mode)) is not None:
        raise UserError(f"{data}: {kind}. {advice}")


def resolve_address(data: str | Path) -> str:
    """Return the full address, or the absolute path, for another process."""
    match = _ADDRESS.fullmatch(str(data))
    if match is None or not is_address(data):
        return str(Path(data).resolve())
    return f"{match[1]}://{'/' if match[1] == 'file' else ''}{match[2]}"


def fetch(data: str | Path) -> Path:
    """Return a local path; an address is copied into the cache first, once.

    Raises UserError if the address is empty or cannot be reached, or fsspec needs another package.
    """
    if not is_address(data):
        return Path(data)
    from filelock import FileLock

    from trustcxr.data.cache import cache_folder

    address = resolve_address(data)
    try:
        folder = cache_folder() / "images" / sha256(address.encode()).hexdigest()[:16]
        copy = folder / (PurePosixPath(address).name or "images")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                if not copy.exists():
                    log(f"{address}: copying to {copy}; delete that folder to copy it again")
                    _copy(address, copy)
    except RuntimeError as problem:  # the user's home is unknown, or the disk has no locks
        raise UserError(f"{address}: not copied ({problem}); set TRUSTCXR_CACHE to another folder") from None
    return copy


def _copy(address: str, copy: Path) -> None:
    try:
        import fsspec
    except ImportError:
        raise UserError(f"{address}: reading an address needs fsspec: pip install 'trustcxr[remote]'") from None

    partial = copy.with_name(".unfinished")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        system, path = fsspec.core.url_to_fs(address)
        if not system.exists(path):
            raise UserError(f"{address}: does not exist. Check the address")
        system.get(path, str(partial / copy.name), recursive=system.isdir(path))
    except ImportError as problem:
        raise UserError(f"{address}: {' '.join(str(problem).split())}; then start the same command again") from None
    except UserError:
        raise
    except Exception as problem:  # each kind of store has its own errors, such as for credentials
        if is_full(problem):
            raise
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise UserError(f"{address}: cannot be copied: {reason}. Check the address and your access") from None
    (partial / copy.name).rename(copy)
    partial.rmdir()
