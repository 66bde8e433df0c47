"""What training tells the C library to do with memory that it gets back."""

import ctypes
from contextlib import suppress

_TRIM, _PAD, _MAP = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD of glibc's mallopt
_KEPT, _MOST = 64 << 20, (1 << 31) - 1  # bytes


def keep_freed() -> bool:
    """Let this process keep the memory of tensors that are freed, for the next ones; whether the C library does.

    Every step of training allocates the same activations and gradients again. glibc gives blocks of this size back to
    the system and gets them anew, filled with zeros a page at a time: of a network with large layers that is a third of
    a step on a processor (VGG16 at 96 pixels). The process is then as large as it ever was until it ends. Other C
    libraries are left as they are.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        return all(mallopt(name, size) for name, size in ((_MAP, _MOST), (_TRIM, _MOST), (_PAD, _KEPT)))
    return False
