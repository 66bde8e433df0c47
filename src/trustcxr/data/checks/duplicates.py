"""Find images that occur twice in a data set: mirrored, inverted, shifted, padded, slightly cropped or brightened.

The descriptor of an image is the low frequencies of its grey levels' ranks, which brightness and gamma do not change,
with and without its uniform borders. Mirroring and inversion only change its signs. Candidates share a bucket of
random planes (locality-sensitive hashing: Indyk and Motwani 1998; Charikar 2002), so not all pairs are compared. Most
candidates are rejected by tangent distance (Simard, LeCun and Denker 1993): no small affine map makes one descriptor
the other. The rest are duplicates if their fine detail correlates after alignment by an affine map. Crops of more than
about 5 %, or rotations of more than about three degrees, are missed.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trustcxr.data.checks.row_file import RowFile

MIN_COSINE = 0.74  # of descriptors: an image shifted or cropped by 2 % keeps 0.84 or more
MIN_TANGENT_COSINE = 0.96  # after the best small affine map; copies in real data have at least 0.969, 8 % of others
MIN_CORRELATION = 0.9  # of aligned local detail; the same image has at least 0.91, another patient's at most 0.86
ORDER, LOWEST = 10, 6  # frequencies of a descriptor, and of its tangents, in half waves across the image
_ROUNDS, _TABLES, _NEIGHBOURS, _NEAREST = 12, 8, 16, 3
_BATCH = 128
_TYPICAL = 50  # weight, in images, of the prior spectrum
Pairs = NDArray[np.int64]
Floats = NDArray[np.float32]
Rows = np.ndarray | RowFile
Maps = NDArray[np.float32]  # (N, 6): x' = a x + b y + c and y' = d x + e y + f, as rows a b c d e f

STEPS = 3  # of alignment, after the map that the tangents give
_RIDGE = 1e-3
_down, _across = np.meshgrid(np.arange(ORDER), np.arange(ORDER), indexing="ij")
_USED = (_down + _across > 0) & (_down + _across <= ORDER)
_LOW = (_down + _across)[_USED] <= LOWEST
_MIRRORED_MAP = np.array([1, -1, -1, -1, 1, 1], np.float32)  # sign of each number of a map after mirroring
_ODD = np.where(_across[_USED] % 2 == 1, -1, 1).astype(np.float32)  # sign of each frequency after mirroring


def find_duplicates(digests: list[str | None], thumbs: Rows, trimmed: Rows) -> pd.DataFrame:
    """Find pairs of the same image: DataFrame first, second (rows), exact, mirrored, inverted, correlation (-1 to 1).

    digests: (N,) of the decoded pixels, None to skip an image; thumbs: (N, 64, 64) uint8; trimmed: likewise without
    uniform borders. Images with identical pixels are paired with the first of them only. Each image is compared with
    its most similar candidates only.
    """
    first_of: dict[str, int] = {}
    exact: list[tuple[int, int]] = []
    for row, digest in enumerate(digests):
        if digest is not None and first_of.setdefault(digest, row) != row:
            exact.append((first_of[digest], row))
    same = pd.DataFrame(np.array(exact, np.int64).reshape(-1, 2), columns=["first", "second"])
    same = same.assign(exact=True, mirrored=False, inverted=False, correlation=1.0)
    rows = np.array(sorted(first_of.values()), dtype=np.int64)
    near = _near(rows, thumbs, trimmed) if len(rows) > 1 else same[:0]
    filled = [table for table in (same, near) if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else same


def find_clusters(count: int, pairs: np.ndarray) -> NDArray[np.int64]:
    """Return the cluster number (count,) of each row, from pairs (M, 2) of linked rows."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1].astype(np.int64)


def equalise(thumbs: np.ndarray) -> Floats:
    """Replace each pixel by its rank in the image, -0.5 to 0.5: (N, H, W) float32."""
    flat = thumbs.reshape(len(thumbs), -1)
    levels = flat + 256 * np.arange(len(flat))[:, None]
    counts = np.bincount(levels.ravel(), minlength=256 * len(flat)).reshape(-1, 256)
    ranks = (np.cumsum(counts, axis=1) - counts / 2) / flat.shape[1] - 0.5
    return ranks.astype(np.float32).ravel()[levels].reshape(thumbs.shape)


def _near(rows: NDArray[np.int64], thumbs: Rows, trimmed: Rows) -> pd.DataFrame:
    """Find pairs of rows of the same image with other pixels, each once with its best correlation."""
    bordered = [part[(thumbs[part] != trimmed[part]).any(axis=(1, 2))] for part in _batches(rows)]
    image = np.concatenate([rows, *bordered])  # row of each entry: all images, then those cut at their borders

    def pictures(entries: NDArray[np.int64]) -> Floats:
        whole = (entries < len(rows))[:, None, None]
        return equalise(np.where(whole, thumbs[image[entries]], trimmed[image[entries]]))

    described = np.empty((len(image), len(_LOW)), np.float32)
    tangents = RowFile(len(image), (6, _LOW.sum()), np.float32)
    for part in _batches(np.arange(len(image))):
        described[part], of_part = _describe(pictures(part))
        tangents.write(part[0], of_part)
    tables = []
    for change, pairs in _candidates(described, image):
        cosines, maps = _compare(described, tangents, change, pairs)
        close = cosines >= MIN_TANGENT_COSINE
        pairs, maps = pairs[close], maps[close]
        correlation = np.zeros(len(pairs))
        for part in _batches(np.arange(len(pairs)), _BATCH // 4):  # the slopes of more do not fit the processor's cache
            first, second = (pictures(entries) for entries in pairs[part].T)
            correlation[part] = correlate(_turned(first, *change), second, maps[part])
        ends = np.sort(image[pairs].reshape(-1, 2), axis=1)
        table = pd.DataFrame({"first": ends[:, 0], "second": ends[:, 1], "exact": False})
        tables.append(table.assign(mirrored=change[0], inverted=change[1], correlation=correlation))
    table = pd.concat(tables, ignore_index=True)
    table = table[table["correlation"] >= MIN_CORRELATION].sort_values("correlation", ascending=False, kind="stable")
    return table.drop_duplicates(["first", "second"]).sort_values(["first", "second"])


def _batches(numbers: NDArray[np.int64], size: int = _BATCH) -> list[NDArray[np.int64]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _turned(pictures: Floats, mirrored: bool, inverted: bool) -> Floats:
    pictures = pictures[:, :, ::-1] if mirrored else pictures
    return np.ascontiguousarray(-pictures if inverted else pictures)


def _signs(mirrored: bool, inverted: bool) -> Floats:
    """Return the sign (63,) that a change gives each frequency."""
    signs = _ODD if mirrored else np.ones_like(_ODD)
    return np.asarray(-signs if inverted else signs)


def _describe(pictures: Floats) -> tuple[Floats, Floats]:
    """Return descriptors (N, 63) of equalised images (N, S, S), and how an affine map changes the lowest (N, 6, 27).

    A descriptor is the low frequencies of the orthonormal DCT-II.
    """
    side = pictures.shape[-1]
    waves = np.cos(np.pi / side * np.outer(np.arange(ORDER), np.arange(side) + 0.5)) * np.sqrt(2 / side)
    waves[0] /= np.sqrt(2)
    basis = waves.astype(np.float32)
    slopes = _slopes(pictures).reshape(-1, 6, side, side)
    return (basis @ pictures @ basis.T)[:, _USED], (basis @ slopes @ basis.T)[:, :, _USED][:, :, _LOW]


def _compare(
    described: Floats, tangents: Floats | RowFile, change: tuple[bool, bool], pairs: Pairs
) -> tuple[Floats, Maps]:
    """Return each pair's best small affine map (M, 6), and the cosine (M,) of the lowest frequencies after it.

    The map is found along the mean of both images' tangents, which is accurate to the second order (Benhimane and
    Malis 2004). Each image goes half of the way.
    """
    mean, spread = (values[_LOW] for values in _usual(described))
    lowest, scale, signs = described[:, _LOW], np.sqrt(spread), _signs(*change)[_LOW]
    map_signs = _MIRRORED_MAP[:, None] if change[0] else 1
    cosines, maps = np.zeros(len(pairs), np.float32), _unmoved(len(pairs))
    for part in _batches(np.arange(len(pairs)), 4 * _BATCH):
        first, second = pairs[part].T
        one, other = (lowest[first] * signs - mean) / scale, (lowest[second] - mean) / scale
        its = tangents[first] * (map_signs * signs / scale)
        others = tangents[second] / scale
        step = _step((its + others) / 2, other - one)
        maps[part] += step
        one, other = one + (step[:, None] @ its)[:, 0] / 2, other - (step[:, None] @ others)[:, 0] / 2
        cosines[part] = np.einsum("ij,ij->i", _unit(one), _unit(other))
    return cosines, maps


def _unmoved(count: int) -> Maps:
    return np.tile(np.array([1, 0, 0, 0, 1, 0], np.float32), (count, 1))


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6))


def _directions(described: Floats, signs: Floats, usual: tuple[Floats, Floats]) -> Floats:
    """Return unit vectors (N, 64): each descriptor, with changed signs, standardised by the usual one."""
    mean, spread = usual
    about = np.ones((len(described), len(signs) + 1), np.float32)
    for part in _batches(np.arange(len(described))):
        about[part, :-1] = (described[part] * signs - mean) / spread
        about[part] = _unit(about[part])
    return about


def _usual(described: Floats) -> tuple[Floats, Floats]:
    """Return mean and spread (63,) of descriptors, regularised by a prior spectrum if images are few or equal."""
    prior = 1 / (_down[_USED] ** 2 + _across[_USED] ** 2).astype(np.float32)
    prior *= (described**2).sum() / len(described) / prior.sum()
    weight = len(described) / (len(described) + _TYPICAL)
    mean = weight * described.mean(0)
    variance = weight * described.var(0) + (1 - weight) * prior
    return mean, np.sqrt(np.maximum(variance, prior / 100) + 1e-9)


def _candidates(described: Floats, image: NDArray[np.int64]) -> Iterator[tuple[tuple[bool, bool], Pairs]]:
    """Yield for each change (mirrored, inverted) the pairs (M, 2) of entries whose changed first may be the second."""
    for mirrored, inverted in product((False, True), repeat=2):
        yield (mirrored, inverted), _pairs_in_a_bucket(described, image, _signs(mirrored, inverted))


def _pairs_in_a_bucket(described: Floats, image: NDArray[np.int64], signs: Floats) -> Pairs:
    """Return pairs (M, 2) of entries that share a bucket if the first has the signs (63,), among each one's nearest."""
    count, usual = len(described), _usual(described)
    index, query = (_directions(described, s, usual) for s in (np.ones_like(signs), signs))
    bits = max(8, int(np.ceil(np.log2(count))) + 1)  # few images in each bucket
    random = np.random.default_rng(0)
    pairs = np.zeros((0, 2), np.int64)
    for _ in range(_ROUNDS):
        planes = random.standard_normal((_TABLES, index.shape[1], bits)).astype(np.float32)
        near = []
        for plane in planes:
            same = _same_bucket(_keys(index, plane), _keys(query, plane), random.permutation(count))
            near.append(same[_cosines(query, index, same) >= MIN_COSINE])
        pairs = _once(np.concatenate([pairs, *near]), count)
        pairs = pairs[image[pairs[:, 0]] != image[pairs[:, 1]]]
        # In each round, so that many similar images do not give all pairs.
        pairs = pairs[_among_nearest(pairs, _cosines(query, index, pairs))]
    return pairs


def _once(pairs: Pairs, count: int) -> Pairs:
    """Return each pair (M, 2) of numbers below `count` once, the smaller number first."""
    codes = np.sort(np.sort(pairs, axis=1) @ np.array([count, 1]))
    codes = codes[np.diff(codes, prepend=-1) > 0]
    return np.stack([codes // count, codes % count], axis=1)


def _keys(vectors: Floats, planes: Floats) -> NDArray[np.int64]:
    """Return each vector's bucket (N,): its side of each plane (D, bits)."""
    sides = (vectors @ planes > 0).astype(np.int64)
    return np.sum(sides << np.arange(planes.shape[1]), axis=1, dtype=np.int64)


def _same_bucket(index: NDArray[np.int64], query: NDArray[np.int64], order: NDArray[np.int64]) -> Pairs:
    """Return pairs (M, 2) of query and index in the same bucket; of a full bucket the next few in `order`."""
    order = order[np.argsort(index[order], kind="stable")]
    ordered = index[order]
    start, end = np.searchsorted(ordered, query, side="left"), np.searchsorted(ordered, query, side="right")
    size = end - start
    asking = np.flatnonzero(size)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    # A full bucket has similar images (blank ones, slices of a scan): a few pairs suffice to link them.
    pairs = []
    for step in range(1, _NEIGHBOURS + 1):
        asking = asking[size[asking] >= step]
        if not len(asking):
            break
        chosen = start[asking] + (rank[asking] + step) % size[asking]
        pairs.append(np.stack([asking, order[chosen]], axis=1))
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)


def _cosines(query: Floats, index: Floats, pairs: Pairs) -> Floats:
    """Return the cosine of each pair's query and index: (M,)."""
    parts = [np.einsum("ij,ij->i", query[part[:, 0]], index[part[:, 1]]) for part in _batches(pairs, 4 * _BATCH)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _among_nearest(pairs: Pairs, cosines: Floats) -> NDArray[np.bool_]:
    """Return bool (M,): the pair is among the nearest of either entry."""
    nearest = np.zeros(len(pairs), bool)
    for entry in pairs.T:
        order = np.lexsort((-cosines, entry))
        ordered = entry[order]
        rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
        nearest[order[rank < _NEAREST]] = True
    return nearest


# Alignment: Gauss-Newton on the squared difference (Lucas and Kanade 1981), for all pairs in parallel.
# Images are grey float32 (N, H, W) of one size, with coordinates from -1 to 1.


def correlate(first: Floats, second: Floats, maps: Maps) -> NDArray[np.float64]:
    """Correlate the local detail of each pair (N, H, W), -1 to 1, after aligning `first` to `second` from `maps`: (N,).

    Detail is the image minus its blur, at equal contrast, so that a marker, border or exposure matters little. Pixels
    outside `first` are ignored.
    """
    return _correlate_detail(first, second, _optimise(_blurred(first, 1.0), _blurred(second, 1.0), maps))


def _correlate_detail(first: Floats, second: Floats, maps: Maps) -> NDArray[np.float64]:
    from scipy.ndimage import uniform_filter

    warped, inside = warp(first, maps)
    inside = uniform_filter(inside.astype(np.float32), (0, 5, 5)) > 0.99  # the blur mixes the rim with the outside
    return _correlate_inside(_detail(warped), _detail(second), inside)


def warp(pictures: Floats, maps: Maps) -> tuple[Floats, NDArray[np.bool_]]:
    """Sample each image at its map's coordinates, bilinearly; return also which are inside: both (N, H, W)."""
    import torch
    import torch.nn.functional as F

    images = torch.from_numpy(np.ascontiguousarray(pictures))[:, None]
    places = F.affine_grid(torch.from_numpy(maps).view(-1, 2, 3), list(images.shape), align_corners=True)
    sampled = F.grid_sample(images, places, padding_mode="border", align_corners=True)[:, 0]
    return sampled.numpy(), (places.abs() <= 1).all(-1).numpy()


def _optimise(first: Floats, second: Floats, maps: Maps) -> Maps:
    for _ in range(STEPS):
        warped, inside = warp(first, maps)
        weight = inside.astype(np.float32).reshape(len(first), -1)
        current, target = (_centred(p.reshape(weight.shape), weight) for p in (warped, second))
        gain = np.linalg.norm(target, axis=1, keepdims=True) / (np.linalg.norm(current, axis=1, keepdims=True) + 1e-6)
        maps = maps + _step(_slopes(warped) * (gain * weight)[:, None], target - gain * current)
    return maps


def _slopes(pictures: Floats) -> Floats:
    """Return how each number of a map changes the pixels of images (N, H, W): (N, 6, H W)."""
    count, height, width = pictures.shape
    lines = (np.linspace(-1, 1, n, dtype=np.float32) for n in (height, width))
    y, x = (side.ravel() for side in np.meshgrid(*lines, indexing="ij"))
    across = np.gradient(pictures, 2 / (width - 1), axis=2).reshape(count, -1)
    down = np.gradient(pictures, 2 / (height - 1), axis=1).reshape(count, -1)
    return np.stack([across * x, across * y, across, down * x, down * y, down], axis=1)


def _step(slopes: Floats, error: Floats) -> Maps:
    """Return the least-squares step (N, 6) from slopes (N, 6, P) and errors (N, P)."""
    normal = slopes @ slopes.transpose(0, 2, 1)
    # A ridge keeps blank images in place.
    size = np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6
    normal += np.eye(6, dtype=np.float32) * (_RIDGE * size + 1e-6)
    return np.asarray(np.linalg.solve(normal, slopes @ error[..., None])[..., 0])


def _centred(rows: Floats, weight: Floats) -> Floats:
    """Centre rows (N, P) on their mean over weight 1; 0 elsewhere."""
    mean = (rows * weight).sum(1, keepdims=True) / np.maximum(weight.sum(1, keepdims=True), 1)
    return np.asarray((rows - mean) * weight)


def _correlate_inside(first: Floats, second: Floats, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    weight = inside.astype(np.float32).reshape(len(first), -1)
    one, other = (_centred(p.reshape(weight.shape), weight) for p in (first, second))
    sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.einsum("ij,ij->i", one, other).astype(np.float64) / np.maximum(sizes, 1e-6)


def _detail(pictures: Floats) -> Floats:
    from scipy.ndimage import uniform_filter

    detail = pictures - uniform_filter(pictures, (0, 9, 9))
    power = np.maximum(uniform_filter(detail**2, (0, 17, 17)), 0)  # rounding makes it negative on even areas
    return np.asarray(detail / (np.sqrt(power) + 0.02))


def _blurred(pictures: Floats, sigma: float) -> Floats:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(pictures, (0, sigma, sigma))
