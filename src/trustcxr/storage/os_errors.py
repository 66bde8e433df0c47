"""Translate errors of the disk into one line, and open regular files only."""

import errno
import io
import os
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from trustcxr.errors import CannotWrite, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_KINDS = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))


@contextmanager
def writing(path: Path, *, needed: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Turn an OSError of the block into CannotWrite: which `path`, why, and the bytes `needed` (0: unknown)."""
    try:
        yield
    except OSError as problem:
        if problem.errno is None:
            raise
        raise CannotWrite(refusal(path, problem.errno, needed=needed()), problem.errno) from None


def check_writable(path: Path) -> None:
    """Raise CannotWrite if no file can be written at `path`. Its folder need not exist yet."""
    with writing(path):
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        if path.is_dir() or not folder.is_dir():
            raise OSError(errno.EISDIR if path.is_dir() else errno.ENOTDIR, "")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, "")


def refusal(path: Path | str, number: int, *, needed: int = 0) -> str:
    """Return one line for an error number while writing a path."""
    if number in _FULL:
        bounds = ((needed or None, "at least are needed"), (_free(Path(path)), "are free"))
        sizes = [f"{megabytes(size)} {text}" for size, text in bounds if size is not None]
        why = "a file may not become so large" if number == errno.EFBIG else "no space left on the disk"
        why += f" ({', '.join(sizes)})" if sizes else ""
        advice = "make room or choose another disk"
    else:
        why = reason(number)
        advice = "choose a folder that you may write to" if number in _FORBIDDEN else "choose another place"
    return f"{escaped(str(path))}: cannot be written: {why}; {advice}; what was there before is whole"


def reason(number: int) -> str:
    """Return an error number in words."""
    in_the_way = number in (errno.EEXIST, errno.ENOTDIR)
    return "a file is where a folder should be" if in_the_way else os.strerror(number).lower()


def is_full(problem: BaseException) -> bool:
    """Return whether the disk of this machine is full."""
    number = problem.number if isinstance(problem, CannotWrite) else getattr(problem, "errno", None)
    return number in _FULL


def _free(path: Path) -> int | None:
    for folder in (path, *path.parents):
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def megabytes(count: int) -> str:
    """Return a number of bytes as text."""
    if count < 1e5:
        return f"{count / 1e3:,.1f} kB" if count >= 1000 else f"{count} bytes"
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def escaped(text: str) -> str:
    """Escape what is no text or would move the cursor."""
    safe = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in safe)


def shell_quote(path: object) -> str:
    """Quote a path or address for a shell; "./" precedes a dash, which would begin an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def file_kind(mode: int) -> str | None:
    """Return what a file mode stands for, such as "a named pipe"; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    return next((name for test, name in _KINDS if test(mode)), "a device")


def open_regular(path: str | Path, *, most: int | None = None) -> BinaryIO:
    """Open a regular file to read. Raises OSError, without waiting for a pipe, for others or over `most` bytes."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    facts = os.fstat(number)
    what = file_kind(facts.st_mode)
    if what is None and most is not None and facts.st_size > most:
        what = f"{megabytes(facts.st_size)}, more than the {megabytes(most)} that are read"
    if what is not None:
        os.close(number)
        raise OSError(errno.EINVAL, f"{what}: expected a regular file", str(path))
    return os.fdopen(number, "rb")


def check_present(images: Iterable[Path]) -> None:
    """Raise UserError that names every image file that does not exist."""
    if missing := [str(path) for path in images if not (path.exists() or path.is_symlink())]:
        raise UserError(f"no such image file: {', '.join(missing)}; give images, or folders of DICOM studies")


Source = str | Path | bytes  # a file by its path, or its content


def open_source(source: Source, *, most: int | None = None) -> BinaryIO:
    """Open a regular file, or content in memory, as `open_regular`."""
    if not isinstance(source, bytes):
        return open_regular(source, most=most)
    if most is not None and len(source) > most:
        raise OSError(errno.EFBIG, f"{megabytes(len(source))}, more than the {megabytes(most)} that are read")
    return io.BytesIO(source)
