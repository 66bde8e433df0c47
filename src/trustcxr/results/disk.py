"""The disk says no: what that means in one line, and files that are opened only where they are files."""

import errno
import io
import os
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from trustcxr.errors import CannotWrite, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_KINDS = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))
_WORDS = {  # in what a library says that keeps no error number
    "no space left": errno.ENOSPC,
    "storagefull": errno.ENOSPC,
    "os error 28": errno.ENOSPC,
    "file too large": errno.EFBIG,
    "filetoolarge": errno.EFBIG,
    "os error 27": errno.EFBIG,
    "permission denied": errno.EACCES,
    "read-only file system": errno.EROFS,
    "pytorchstreamwriter failed": errno.ENOSPC,
    "filewriter": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "readonly database": errno.EACCES,
    "disk i/o error": errno.EIO,
    "database is locked": errno.EBUSY,
}


@contextmanager
def writing(path: Path, *, needed: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Turn the disk's refusal into CannotWrite: what could not be written, how much is needed, that the old is whole.

    `path` is the file or folder that is written in the block; `needed` says its bytes at least, 0 where nobody knows.
    Other errors pass as they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as problem:
        if (number := _number(problem)) is None:
            raise
        raise CannotWrite(refusal(path, number, needed=needed()), number) from None


def refuse_unwritable(path: Path) -> None:
    """CannotWrite where no file can be made at `path`, as far as can be told without making it: before hours of work.

    Its folder need not be there yet.
    """
    with writing(path):
        place = next(folder for folder in path.absolute().parents if folder.exists())
        if path.is_dir() or not place.is_dir():
            raise OSError(errno.EISDIR if path.is_dir() else errno.ENOTDIR, "")
        if not os.access(place, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, "")


def refusal(path: Path | str, number: int, *, needed: int = 0) -> str:
    """One line for an error number at a path that was to be written."""
    where = escaped(str(path))
    if number in _FULL:
        room = _room(Path(path))
        amount = f"{megabytes(needed)} at least are needed, " if needed else ""
        left = f" ({amount}{megabytes(room)} are free)" if room is not None else ""
        limit = "a file may not become so large" if number == errno.EFBIG else "no space left on the disk"
        return f"{where}: cannot be written: {limit}{left}; make room or choose another disk; {_WHOLE}"
    advice = "choose a folder that you may write to" if number in _FORBIDDEN else "choose another place"
    return f"{where}: cannot be written: {reason(number)}; {advice}; {_WHOLE}"


def reason(number: int) -> str:
    """An error number in words."""
    in_the_way = number in (errno.EEXIST, errno.ENOTDIR)
    return "a file is where a folder should be" if in_the_way else os.strerror(number).lower()


_WHOLE = "what was there before is whole"


def _number(problem: Exception) -> int | None:
    """The error number of a disk's refusal; None where it is another error."""
    if isinstance(problem, OSError) and problem.errno is not None:
        return problem.errno
    text = str(problem).lower()
    return next((number for words, number in _WORDS.items() if words in text), None)


def is_full(problem: BaseException) -> bool:
    """Whether it is this machine's disk that has no room, whatever else was being done."""
    if isinstance(problem, CannotWrite):
        return problem.number in _FULL
    return isinstance(problem, OSError) and problem.errno in _FULL


def _room(path: Path) -> int | None:
    """Free bytes where `path` is or would be."""
    for place in (path, *path.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def megabytes(count: int) -> str:
    """Bytes as a person reads them."""
    if count < 1e5:
        return f"{count / 1e3:,.1f} kB" if count >= 1000 else f"{count} bytes"
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def escaped(text: str) -> str:
    """A name as it can be shown: what is no text, and what would move the cursor, as escapes."""
    safe = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in safe)


def as_typed(place: object) -> str:
    """A path, or an address, as a command has it that is pasted into a shell: the shell gives the command that path.

    One that begins with a dash, which would be taken for an option, begins with ./ instead.
    """
    text = str(place)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def kind_of(mode: int) -> str | None:
    """What a thing in a folder is, by its mode, where it is not a regular file; None for a file."""
    if stat.S_ISREG(mode):
        return None
    return next((name for test, name in _KINDS if test(mode)), "a device")


def open_regular(path: str | Path, *, most: int | None = None) -> BinaryIO:
    """Open a regular file to read; never waits for a pipe. OSError where it is none, or has more than `most` bytes."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    facts = os.fstat(number)
    what = kind_of(facts.st_mode)
    if what is None and most is not None and facts.st_size > most:
        what = f"{megabytes(facts.st_size)}, more than the {megabytes(most)} that are read"
    if what is not None:
        os.close(number)
        raise OSError(errno.EINVAL, f"{what}: expected a regular file", str(path))
    return os.fdopen(number, "rb")


def refuse_missing(films: Iterable[Path]) -> None:
    """UserError that names all of the films at whose place nothing is, not even a link that leads nowhere."""
    if missing := [str(path) for path in films if not (path.exists() or path.is_symlink())]:
        raise UserError(f"no such image file: {', '.join(missing)}; give films, or folders of DICOM studies")


Source = str | Path | bytes  # a file by its place, or its content, which is never written anywhere


def open_source(source: Source, *, most: int | None = None) -> BinaryIO:
    """Open a regular file, or its content in memory, to read. OSError where it is none, or has more than `most`."""
    if not isinstance(source, bytes):
        return open_regular(source, most=most)
    if most is not None and len(source) > most:
        raise OSError(errno.EFBIG, f"{megabytes(len(source))}, more than the {megabytes(most)} that are read")
    return io.BytesIO(source)


def read_text(path: Path, *, most: int) -> str:
    """The text of a regular file of at most `most` bytes, as UTF-8."""
    with open_regular(path, most=most) as file:
        return file.read().decode("utf-8")
