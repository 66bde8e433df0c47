"""The same image twice in a data set: mirrored, inverted, moved, padded, cropped a little, at another brightness.

An image is described by low frequencies of its grey levels' ranks, so that brightness and gamma do not matter, once as
it
is and once without its even borders. Mirrored or inverted it has the same description but for signs, so that these are
looked up too. Candidates are descriptions on the same side of as many random planes as the data call for
(locality-sensitive hashing: Indyk and Motwani 1998; Charikar 2002), so no image is compared with all others. A
candidate
counts when its fine detail correlates once it is laid upon the other (`alignment`). Images cropped by more than about
5 %, or turned by more than about three degrees, are not found.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trustcxr.data.checks import registration

MIN_COSINE = 0.74  # of descriptions: an image moved or cropped by 2 % keeps 0.84 or more, by more often less
MIN_CORRELATION = 0.9  # of local detail, aligned; the same image has at least 0.91, another patient's at most 0.86
ORDER = 10  # frequencies, in half waves across the image
_ROUNDS, _TABLES, _NEIGHBOURS, _NEAREST = 12, 8, 16, 5
_BATCH = 512
_TYPICAL = 50  # images that the usual spectrum counts for, where the data have few of their own
Pairs = NDArray[np.int64]
Floats = NDArray[np.float32]
_down, _across = np.meshgrid(np.arange(ORDER), np.arange(ORDER), indexing="ij")
_KEPT = (_down + _across > 0) & (_down + _across <= ORDER)
_ODD = np.where(_across[_KEPT] % 2 == 1, -1, 1).astype(np.float32)  # what mirroring does to each frequency


class _Turn(NamedTuple):
    """What may have been done to one image of a pair."""

    mirrored: bool
    inverted: bool

    @property
    def signs(self) -> Floats:
        """What it does to a description."""
        signs = _ODD if self.mirrored else np.ones_like(_ODD)
        return -signs if self.inverted else signs

    def apply(self, pictures: Floats) -> Floats:
        """The same of equalised pictures (N, H, W)."""
        turned = pictures[:, :, ::-1] if self.mirrored else pictures
        return np.ascontiguousarray(-turned if self.inverted else turned)


_TURNS = tuple(_Turn(mirrored, inverted) for mirrored, inverted in product((False, True), repeat=2))


def find_duplicates(
    digests: list[str | None], thumbs: np.ndarray, trimmed: np.ndarray, *, seed: int = 0
) -> pd.DataFrame:
    """Pairs of the same image: DataFrame first, second (rows), exact, mirrored, inverted, correlation (-1 to 1).

    digests: (N,) of the decoded pixels, None where an image is not to be looked at; thumbs (N, 64, 64) uint8, the
    image;
    trimmed likewise, the image without its even borders. Images with the very same pixels are each paired with the
    first of them only; of images that are alike by the dozen, each is compared with those most like it.
    """
    first_of: dict[str, int] = {}
    exact: list[tuple[int, int]] = []
    for row, digest in enumerate(digests):
        if digest is not None and first_of.setdefault(digest, row) != row:
            exact.append((first_of[digest], row))
    same = pd.DataFrame(np.array(exact, np.int64).reshape(-1, 2), columns=["first", "second"])
    same = same.assign(exact=True, mirrored=False, inverted=False, correlation=1.0)
    rows = np.array(sorted(first_of.values()), dtype=np.int64)
    near = _near(rows, thumbs, trimmed, seed) if len(rows) > 1 else same[:0]
    filled = [table for table in (same, near) if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else same


def find_clusters(count: int, pairs: np.ndarray) -> NDArray[np.int64]:
    """Which of `count` rows hang together over pairs (M, 2): (count,) a number for each cluster."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1].astype(np.int64)


def equalise(thumbs: np.ndarray) -> Floats:
    """(N, H, W) float32: each pixel's rank in its image, -0.5 to 0.5, whatever the brightness and gamma."""
    flat = thumbs.reshape(len(thumbs), -1)
    places = flat + 256 * np.arange(len(flat))[:, None]
    counts = np.bincount(places.ravel(), minlength=256 * len(flat)).reshape(-1, 256)
    ranks = (np.cumsum(counts, axis=1) - counts / 2) / flat.shape[1] - 0.5
    return ranks.astype(np.float32).ravel()[places].reshape(thumbs.shape)


def _near(rows: NDArray[np.int64], thumbs: np.ndarray, trimmed: np.ndarray, seed: int) -> pd.DataFrame:
    """The pairs among these rows that are the same image with other pixels, each once, as it correlates best."""
    bordered = rows[(thumbs[rows] != trimmed[rows]).any(axis=(1, 2))]
    image = np.concatenate([rows, bordered])  # of each entry: every image, then once more without its borders

    def pictures(entries: NDArray[np.int64]) -> Floats:
        whole = (entries < len(rows))[:, None, None]
        return equalise(np.where(whole, thumbs[image[entries]], trimmed[image[entries]]))

    described = np.concatenate([_described(pictures(part)) for part in _batches(np.arange(len(image)))])
    tables = []
    for turn, pairs in _candidates(described, image, seed):
        correlation = np.zeros(len(pairs))
        for part in _batches(np.arange(len(pairs))):
            first, second = pairs[part].T
            correlation[part] = registration.correlate(turn.apply(pictures(first)), pictures(second))
        ends = np.sort(image[pairs].reshape(-1, 2), axis=1)
        table = pd.DataFrame({"first": ends[:, 0], "second": ends[:, 1], "exact": False})
        tables.append(table.assign(mirrored=turn.mirrored, inverted=turn.inverted, correlation=correlation))
    found = pd.concat(tables, ignore_index=True)
    found = found[found["correlation"] >= MIN_CORRELATION].sort_values("correlation", ascending=False, kind="stable")
    return found.drop_duplicates(["first", "second"]).sort_values(["first", "second"])


def _batches(numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [numbers[start : start + _BATCH] for start in range(0, len(numbers), _BATCH)]


def _described(pictures: Floats) -> Floats:
    """Descriptions (N, 63) of equalised pictures (N, S, S): their low frequencies (DCT-II, orthonormal)."""
    side = pictures.shape[-1]
    waves = np.cos(np.pi / side * np.outer(np.arange(ORDER), np.arange(side) + 0.5)) * np.sqrt(2 / side)
    waves[0] /= np.sqrt(2)
    basis = waves.astype(np.float32)
    found: Floats = (basis @ pictures @ basis.T)[:, _KEPT]
    return found


def _directions(described: Floats, signs: Floats, usual: tuple[Floats, Floats]) -> Floats:
    """Unit vectors (N, 64): how each description, turned, differs from the usual.

    The last number is the same for all, so that images that are all the usual one are near each other and not at
    random.
    """
    mean, spread = usual
    about = np.hstack([(described * signs - mean) / spread, np.ones((len(described), 1), np.float32)])
    unit: Floats = about / np.linalg.norm(about, axis=1, keepdims=True)
    return unit


def _usual(described: Floats) -> tuple[Floats, Floats]:
    """Mean and spread (63,) of descriptions, held to a usual spectrum where images are few or all alike."""
    usual = 1 / (_down[_KEPT] ** 2 + _across[_KEPT] ** 2).astype(np.float32)
    usual *= (described**2).sum() / len(described) / usual.sum()
    own = len(described) / (len(described) + _TYPICAL)
    mean = own * described.mean(0)
    variance = own * described.var(0) + (1 - own) * usual
    return mean, np.sqrt(np.maximum(variance, usual / 100) + 1e-9)


def _candidates(described: Floats, image: NDArray[np.int64], seed: int) -> Iterator[tuple[_Turn, Pairs]]:
    """For each turn, pairs (M, 2) of entries of which the first, turned, may be the second."""
    count, usual = len(described), _usual(described)
    index = _directions(described, np.ones_like(_ODD), usual)
    bits = max(8, int(np.ceil(np.log2(count))) + 1)  # buckets hold few images, however many there are
    for turn in _TURNS:
        query = _directions(described, turn.signs, usual)
        random = np.random.default_rng(seed)
        pairs = np.zeros((0, 2), np.int64)
        for _ in range(_ROUNDS):
            planes = random.standard_normal((_TABLES, index.shape[1], bits)).astype(np.float32)
            found = [_same_bucket(_keys(index, p), _keys(query, p), random.permutation(count)) for p in planes]
            near = [p[_cosines(query, index, p) >= MIN_COSINE] for p in found]
            pairs = _once(np.concatenate([pairs, *near]), count)
            pairs = pairs[image[pairs[:, 0]] != image[pairs[:, 1]]]
            # As it goes, so that images which are all alike do not make pairs of each with every other.
            pairs = pairs[_among_nearest(pairs, _cosines(query, index, pairs))]
        yield turn, pairs


def _once(pairs: Pairs, count: int) -> Pairs:
    """Each pair (M, 2) of numbers below `count` once, the smaller number first."""
    codes = np.sort(np.sort(pairs, axis=1) @ np.array([count, 1]))
    codes = codes[np.diff(codes, prepend=-1) > 0]
    return np.stack([codes // count, codes % count], axis=1)


def _keys(vectors: Floats, planes: Floats) -> NDArray[np.int64]:
    """The number of each vector's bucket (N,): on which side of each plane (D, bits) it lies."""
    sides = (vectors @ planes > 0).astype(np.int64)
    return np.sum(sides << np.arange(planes.shape[1]), axis=1, dtype=np.int64)


def _same_bucket(index: NDArray[np.int64], query: NDArray[np.int64], order: NDArray[np.int64]) -> Pairs:
    """Pairs (M, 2), query and index, of the same key; of a full bucket some in `order` after one's own place."""
    order = order[np.argsort(index[order], kind="stable")]
    ordered = index[order]
    start, end = np.searchsorted(ordered, query, side="left"), np.searchsorted(ordered, query, side="right")
    size = end - start
    asking = np.flatnonzero(size)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    # A bucket of more than a few holds images that are all alike (blank ones, slices of one scan): they hang together
    # without every pair being looked at.
    found = []
    for step in range(1, _NEIGHBOURS + 1):
        asking = asking[size[asking] >= step]
        if not len(asking):
            break
        chosen = start[asking] + (place[asking] + step) % size[asking]
        found.append(np.stack([asking, order[chosen]], axis=1))
    return np.concatenate(found) if found else np.zeros((0, 2), np.int64)


def _cosines(query: Floats, index: Floats, pairs: Pairs) -> Floats:
    """(M,) of each pair, whichever way round is more alike."""
    found = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), 128 * _BATCH):
        a, b = pairs[start : start + 128 * _BATCH].T
        there = np.einsum("ij,ij->i", query[a], index[b])
        found[start : start + len(a)] = np.maximum(there, np.einsum("ij,ij->i", query[b], index[a]))
    return found


def _among_nearest(pairs: Pairs, cosines: Floats) -> NDArray[np.bool_]:
    """(M,): the pair is among the few nearest of either of its entries."""
    kept = np.zeros(len(pairs), bool)
    for entry in pairs.T:
        order = np.lexsort((-cosines, entry))
        ordered = entry[order]
        rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
        kept[order[rank < _NEAREST]] = True
    return kept
