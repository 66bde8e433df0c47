"""Convert grey levels of any depth to 8 bits; limit the size of images."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

MAX_PIXELS = 64_000_000  # detectors give up to 20 million, film digitisers 60; more is an error or an attack
_ROWS = 512
_DEPTHS = (8, 10, 12, 14, 16)


class UnreadableImage(Exception):
    """A file that cannot be read as one grey image. The message gives the reason, without the file's name."""


def scale_depth(values: np.ndarray, *, invert: bool = False) -> np.ndarray:
    """Scale whole numbers from 0 to 65535, shape (H, W), to uint8 by the smallest usual depth that holds them."""
    brightest = int(values.max())
    top = next(2**d - 1 for d in _DEPTHS if brightest < 2**d)
    shades = np.rint(np.arange(top + 1, dtype=np.float32) * (255 / top)).astype(np.uint8)
    shades = 255 - shades if invert else shades
    grey = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), _ROWS):  # in parts, to save memory
        grey[row : row + _ROWS] = shades[values[row : row + _ROWS]]
    return grey


@contextmanager
def quiet() -> Iterator[None]:
    """Silence decoders' warnings about odd metadata; only in the main thread, since filters are not thread-safe."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
