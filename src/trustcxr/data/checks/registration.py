"""Align pairs of images by an affine map before they are compared.

Images are grey float32 (N, H, W) of one size, with coordinates from -1 to 1. Gauss-Newton on the squared difference
(Lucas and Kanade 1981), coarse to fine, solves all pairs in parallel.
"""

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.float32]
Maps = NDArray[np.float32]  # (N, 6): x' = a x + b y + c and y' = d x + e y + f, as rows a b c d e f

COARSE = ((2, 0.95), (4, 0.97))  # steps, and the correlation that must follow: copies of covidqu-mini have 0.973, 0.988
FINE_STEPS, LIKELY = 3, 0.5  # steps, and the correlation of detail before them: copies of covidqu-mini have 0.51
SURE = 0.95  # correlation of detail without alignment that needs no alignment
_RIDGE = 1e-3


def correlate(first: Pictures, second: Pictures) -> NDArray[np.float64]:
    """Correlate the local detail of each pair (N, H, W), -1 to 1, after aligning `first` to `second`: (N,).

    Detail is the image minus its blur, at equal contrast, so that a marker, border or exposure matters little. Pixels
    outside `first` are ignored. Pairs with a high correlation before alignment keep it. Alignment stops early if the
    images differ too much.
    """
    correlation = _correlate_inside(_detail(first), _detail(second), np.ones(first.shape, bool))
    doubtful = np.flatnonzero(correlation < SURE)
    if len(doubtful):
        correlation[doubtful] = np.maximum(correlation[doubtful], _align(first[doubtful], second[doubtful]))
    return correlation


def _align(first: Pictures, second: Pictures) -> NDArray[np.float64]:
    """Return the correlation of detail (N,): -1 if coarse images differ, and that of the coarse map if it is low."""
    correlation, rows = np.full(len(first), -1.0), np.arange(len(first))
    maps = np.tile(np.array([1, 0, 0, 0, 1, 0], np.float32), (len(first), 1))
    one, other = (_blurred(_halved(p), 1.5) for p in (first, second))
    for steps, least in COARSE:
        maps[rows] = _optimise(one[rows], other[rows], maps[rows], steps)
        warped, inside = warp(one[rows], maps[rows])
        rows = rows[_correlate_inside(warped, other[rows], inside) >= least]
        if not len(rows):
            return correlation
    correlation[rows] = _correlate_detail(first[rows], second[rows], maps[rows])
    rows = rows[correlation[rows] >= LIKELY]
    if len(rows):
        maps = _optimise(_blurred(first[rows], 1.0), _blurred(second[rows], 1.0), maps[rows], FINE_STEPS)
        correlation[rows] = _correlate_detail(first[rows], second[rows], maps)
    return correlation


def _correlate_detail(first: Pictures, second: Pictures, maps: Maps) -> NDArray[np.float64]:
    warped, inside = warp(first, maps)
    return _correlate_inside(_detail(warped), _detail(second), _well_inside(inside))


def warp(pictures: Pictures, maps: Maps) -> tuple[Pictures, NDArray[np.bool_]]:
    """Sample each image at its map's coordinates, bilinearly; return also which are inside: both (N, H, W)."""
    import torch
    import torch.nn.functional as F

    images = torch.from_numpy(np.ascontiguousarray(pictures))[:, None]
    places = F.affine_grid(torch.from_numpy(maps).view(-1, 2, 3), list(images.shape), align_corners=True)
    sampled = F.grid_sample(images, places, padding_mode="border", align_corners=True)[:, 0]
    return sampled.numpy(), (places.abs() <= 1).all(-1).numpy()


def _grid(height: int, width: int) -> Pictures:
    """Return x, y and 1 of each pixel: (3, H * W)."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in (height, width)), indexing="ij")
    return np.stack([x.ravel(), y.ravel(), np.ones(x.size, np.float32)])


def _optimise(first: Pictures, second: Pictures, maps: Maps, steps: int) -> Maps:
    height, width = first.shape[1:]
    x, y, one = _grid(height, width)
    for _ in range(steps):
        warped, inside = warp(first, maps)
        weight = inside.astype(np.float32).reshape(len(first), -1)
        across = np.gradient(warped, 2 / (width - 1), axis=2).reshape(weight.shape)
        down = np.gradient(warped, 2 / (height - 1), axis=1).reshape(weight.shape)
        current, target = (_centred(p.reshape(weight.shape), weight) for p in (warped, second))
        gain = np.linalg.norm(target, axis=1, keepdims=True) / (np.linalg.norm(current, axis=1, keepdims=True) + 1e-6)
        slopes = np.stack([across * x, across * y, across * one, down * x, down * y, down * one], axis=1)
        maps = maps + _step(slopes * (gain * weight)[:, None], target - gain * current)
    return maps


def _step(slopes: Pictures, error: Pictures) -> Maps:
    """Return the least-squares step (N, 6) from slopes (N, 6, P) and errors (N, P)."""
    normal = slopes @ slopes.transpose(0, 2, 1)
    # A ridge keeps blank images in place.
    size = np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6
    normal += np.eye(6, dtype=np.float32) * (_RIDGE * size + 1e-6)
    step: Maps = np.linalg.solve(normal, slopes @ error[..., None])[..., 0]
    return step


def _centred(rows: Pictures, weight: Pictures) -> Pictures:
    """Centre rows (N, P) on their mean over weight 1; 0 elsewhere."""
    mean = (rows * weight).sum(1, keepdims=True) / np.maximum(weight.sum(1, keepdims=True), 1)
    centred: Pictures = (rows - mean) * weight
    return centred


def _correlate_inside(first: Pictures, second: Pictures, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    weight = inside.astype(np.float32).reshape(len(first), -1)
    one, other = (_centred(p.reshape(weight.shape), weight) for p in (first, second))
    sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.einsum("ij,ij->i", one, other).astype(np.float64) / np.maximum(sizes, 1e-6)


def _detail(pictures: Pictures) -> Pictures:
    from scipy.ndimage import uniform_filter

    detail = pictures - uniform_filter(pictures, (0, 9, 9))
    power = np.maximum(uniform_filter(detail**2, (0, 17, 17)), 0)  # rounding makes it negative on even areas
    even: Pictures = detail / (np.sqrt(power) + 0.02)
    return even


def _well_inside(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Shrink the inside by a rim, which the blur mixes with the outside."""
    from scipy.ndimage import uniform_filter

    return uniform_filter(inside.astype(np.float32), (0, 5, 5)) > 0.99


def _blurred(pictures: Pictures, sigma: float) -> Pictures:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(pictures, (0, sigma, sigma))


def _halved(pictures: Pictures) -> Pictures:
    count, height, width = pictures.shape
    return pictures.reshape(count, height // 2, 2, width // 2, 2).mean((2, 4), dtype=np.float32)
