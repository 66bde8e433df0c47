"""One image laid upon another before the two are compared: shifted, scaled, turned a little, as the other is.

Pictures are grey, of one size, as float32 (N, H, W); places run from -1 to 1 across a picture. The affine map of each
pair is found by Gauss-Newton on the squared difference (Lucas and Kanade 1981), coarse first; all pairs at once.
"""

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.float32]
Maps = NDArray[np.float32]  # (N, 6): x' = a x + b y + c and y' = d x + e y + f, as rows a b c d e f

COARSE_STEPS, FINE_STEPS = 6, 3
HOPELESS = 0.97  # correlation of the coarse pictures, aligned: the same image has 0.99 or more
SURE = 0.95  # of detail, not aligned: the same image beyond doubt
_RIDGE = 1e-3


def correlate(first: Pictures, second: Pictures) -> NDArray[np.float64]:
    """(N,) correlation of local detail of each pair (N, H, W) once `first` is laid upon `second`, -1 to 1.

    Detail is what is left without the blur, at equal contrast: a marker, a border or the exposure do not decide. What
    `first` does not cover is left out. Pairs that agree as they lie are left so; those that are hopeless at half the
    size keep what they have as they lie, without a closer look.
    """
    found = _correlated(_detail(first), _detail(second), np.ones(first.shape, bool))
    doubtful = np.flatnonzero(found < SURE)
    if len(doubtful):
        found[doubtful] = np.maximum(found[doubtful], _aligned(first[doubtful], second[doubtful]))
    return found


def _aligned(first: Pictures, second: Pictures) -> NDArray[np.float64]:
    found = np.full(len(first), -1.0)
    maps, alike = _coarse(first, second)
    near = np.flatnonzero(alike >= HOPELESS)
    if len(near):
        one, other = first[near], second[near]
        maps = _climb(_blurred(one, 1.0), _blurred(other, 1.0), maps[near], FINE_STEPS)
        laid, inside = warp(one, maps)
        found[near] = _correlated(_detail(laid), _detail(other), _well_inside(inside))
    return found


def warp(pictures: Pictures, maps: Maps) -> tuple[Pictures, NDArray[np.bool_]]:
    """Each picture read at its map's places, bilinearly, and where these lie within it: both (N, H, W)."""
    count, height, width = pictures.shape
    places = maps.reshape(count, 2, 3) @ _grid(height, width)
    x, y = (places[:, 0] + 1) * (width - 1) / 2, (places[:, 1] + 1) * (height - 1) / 2
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y = np.clip(x, 0, width - 1.001), np.clip(y, 0, height - 1.001)
    left, top = x.astype(np.int64), y.astype(np.int64)
    right, low = (x - left).astype(np.float32), (y - top).astype(np.float32)
    flat, corner = pictures.reshape(count, -1), top * width + left

    def at(offset: int) -> Pictures:
        return np.take_along_axis(flat, corner + offset, axis=1)

    upper = at(0) * (1 - right) + at(1) * right
    lower = at(width) * (1 - right) + at(width + 1) * right
    read = (upper * (1 - low) + lower * low).astype(np.float32)
    return read.reshape(pictures.shape), inside.reshape(pictures.shape)


def _grid(height: int, width: int) -> Pictures:
    """(3, H * W): x, y and 1 of each pixel."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in (height, width)), indexing="ij")
    return np.stack([x.ravel(), y.ravel(), np.ones(x.size, np.float32)])


def _coarse(first: Pictures, second: Pictures) -> tuple[Maps, NDArray[np.float64]]:
    """Maps (N, 6) found at half the size, and the correlation (N,) of the grey there."""
    one, other = (_blurred(_halved(p), 1.5) for p in (first, second))
    maps = np.tile(np.array([1, 0, 0, 0, 1, 0], np.float32), (len(one), 1))
    maps = _climb(one, other, maps, COARSE_STEPS)
    laid, inside = warp(one, maps)
    return maps, _correlated(laid, other, inside)


def _climb(first: Pictures, second: Pictures, maps: Maps, steps: int) -> Maps:
    height, width = first.shape[1:]
    x, y, one = _grid(height, width)
    for _ in range(steps):
        laid, inside = warp(first, maps)
        weight = inside.astype(np.float32).reshape(len(first), -1)
        across = np.gradient(laid, 2 / (width - 1), axis=2).reshape(weight.shape)
        down = np.gradient(laid, 2 / (height - 1), axis=1).reshape(weight.shape)
        own, wanted = (_centred(p.reshape(weight.shape), weight) for p in (laid, second))
        gain = np.linalg.norm(wanted, axis=1, keepdims=True) / (np.linalg.norm(own, axis=1, keepdims=True) + 1e-6)
        slopes = np.stack([across * x, across * y, across * one, down * x, down * y, down * one], axis=1)
        maps = maps + _step(slopes * (gain * weight)[:, None], wanted - gain * own)
    return maps


def _step(slopes: Pictures, error: Pictures) -> Maps:
    """The least-squares step (N, 6) from slopes (N, 6, P) and what is to be made up for (N, P)."""
    normal = slopes @ slopes.transpose(0, 2, 1)
    # A ridge, so that a blank picture stays where it is.
    size = np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6
    normal += np.eye(6, dtype=np.float32) * (_RIDGE * size + 1e-6)
    step: Maps = np.linalg.solve(normal, slopes @ error[..., None])[..., 0]
    return step


def _centred(rows: Pictures, weight: Pictures) -> Pictures:
    """Rows (N, P) about their mean where `weight` is 1, and 0 elsewhere."""
    mean = (rows * weight).sum(1, keepdims=True) / np.maximum(weight.sum(1, keepdims=True), 1)
    centred: Pictures = (rows - mean) * weight
    return centred


def _correlated(first: Pictures, second: Pictures, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    weight = inside.astype(np.float32).reshape(len(first), -1)
    one, other = (_centred(p.reshape(weight.shape), weight) for p in (first, second))
    sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.einsum("ij,ij->i", one, other).astype(np.float64) / np.maximum(sizes, 1e-6)


def _detail(pictures: Pictures) -> Pictures:
    from scipy.ndimage import uniform_filter

    detail = pictures - uniform_filter(pictures, (0, 9, 9))
    even: Pictures = detail / (np.sqrt(uniform_filter(detail**2, (0, 17, 17))) + 0.02)
    return even


def _well_inside(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without a rim, where the blur reads what is not there."""
    from scipy.ndimage import uniform_filter

    return uniform_filter(inside.astype(np.float32), (0, 5, 5)) > 0.99


def _blurred(pictures: Pictures, sigma: float) -> Pictures:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(pictures, (0, sigma, sigma))


def _halved(pictures: Pictures) -> Pictures:
    count, height, width = pictures.shape
    return pictures.reshape(count, height // 2, 2, width // 2, 2).mean((2, 4), dtype=np.float32)
