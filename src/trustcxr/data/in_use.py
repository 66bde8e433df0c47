"""Which pixel stores a process reads: marked by a lock of the system's that ends with the process however that ends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

MARK = "index.json"  # the file of a store that is locked: shared by all who read, alone by whoever removes
_MOST = 64  # stores that are marked at a time; each takes an open file
_read: dict[tuple[int, Path], int] = {}  # by process, since a fork has its parent's: the open file of each store


def mark(folder: Path) -> None:
    """Keep a store from being pruned for as long as this process lives, and note that it was used now.

    Where the system has no such locks, or the cache is another's, nothing.
    """
    with contextlib.suppress(OSError):
        os.utime(folder / MARK)
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        key = (os.getpid(), folder)
        if key not in _read:
            file = os.open(folder / MARK, os.O_RDONLY)
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            _read[key] = file
            if len(_read) > _MOST:  # of a process that goes through many data sets, the oldest is read no more
                os.close(_read.pop(next(iter(_read))))


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether nobody reads a store, and nobody can begin to for the length of the block.

    False where that cannot be known: the system has no such locks, or the mark cannot be opened.
    """
    try:
        import fcntl

        file = os.open(folder / MARK, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError:  # somebody reads it, or the disk is a network's and has no such locks
        free = False
    try:
        yield free
    finally:
        os.close(file)
