"""Let the C library keep freed memory."""

import ctypes
from contextlib import suppress

_LARGEST = (1 << 31) - 1
# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD and M_ARENA_MAX of glibc's mallopt: bytes, and the number of heaps
_OPTIONS = ((-3, _LARGEST), (-1, _LARGEST), (-2, 64 << 20), (-8, 1))


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors for the next ones; return whether this C library can.

    Else it returns large blocks to the system, and gets them back filled with zeros: ReLU takes eight times as long.
    Threads have heaps of their own, too small for large blocks. They share the main heap if this is called before
    the first of them starts.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        return all(mallopt(option, value) for option, value in _OPTIONS)
    return False
