"""The same film twice in a data set, even resized, re-compressed or at another brightness.

Candidates are films whose perceptual hashes (256 bits) agree on at least one of many small random choices of bits
(locality-sensitive hashing: Indyk and Motwani 1998), so no film is compared with all others. A candidate counts when
the hashes differ in at most 32 bits and the fine detail correlates. Films turned by more than about a degree, or
cropped by more than about 2 %, are not found.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

MAX_DISTANCE = (
    32  # bits of 256; what is re-compressed, resized or brightened differs in at most 14, others in 26 or more
)
MIN_CORRELATION = 0.9  # of local detail; the same film has at least 0.96, another patient's at most 0.87
_TABLES, _KEY_BITS, _NEIGHBOURS = 64, 24, 16
_BATCH = 1024
_POPCOUNT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.uint16)
Pairs = NDArray[np.int64]


def find_duplicates(
    digests: list[str | None], hashes: np.ndarray, thumbs: np.ndarray, *, seed: int = 0
) -> pd.DataFrame:
    """Pairs of the same film: DataFrame first, second (rows), exact, distance (bits), correlation (-1..1).

    digests: (N,) of the decoded pixels, None where a film is not to be looked at; hashes (N, 32) uint8, packed bits;
    thumbs (N, h, w) uint8. Films with the very same pixels are each paired with the first of them only.
    """
    first_of: dict[str, int] = {}
    exact: list[tuple[int, int]] = []
    for row, digest in enumerate(digests):
        if digest is not None and first_of.setdefault(digest, row) != row:
            exact.append((first_of[digest], row))
    rows = np.array(sorted(first_of.values()), dtype=np.int64)
    pairs = rows[_candidates(hashes[rows], seed)] if len(rows) > 1 else np.zeros((0, 2), np.int64)
    distance = _distances(hashes, pairs)
    pairs, distance = pairs[distance <= MAX_DISTANCE], distance[distance <= MAX_DISTANCE]
    correlation = detail_correlation(thumbs, pairs)
    near = correlation >= MIN_CORRELATION
    tables = [
        pd.DataFrame(np.array(exact, np.int64).reshape(-1, 2), columns=["first", "second"]).assign(
            exact=True, distance=0, correlation=1.0
        ),
        pd.DataFrame(pairs[near], columns=["first", "second"]).assign(
            exact=False, distance=distance[near].astype(np.int64), correlation=correlation[near]
        ),
    ]
    filled = [t for t in tables if len(t)]
    return pd.concat(filled, ignore_index=True) if filled else tables[0]


def clusters(count: int, pairs: np.ndarray) -> NDArray[np.int64]:
    """Which of `count` rows hang together over pairs (M, 2): (count,) a number for each cluster."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1].astype(np.int64)


def _candidates(hashes: np.ndarray, seed: int) -> Pairs:
    """Pairs (M, 2), first < second, that agree on all bits of one of the random keys."""
    bits = np.unpackbits(hashes, axis=1)
    share = bits.mean(axis=0)
    # Bits that nearly all chest X-rays share tell nothing: keys are drawn from the others.
    telling = np.flatnonzero(np.abs(share - 0.5) < 0.4)
    if len(telling) < _KEY_BITS:
        telling = np.arange(bits.shape[1])
    random = np.random.default_rng(seed)
    weights = (1 << np.arange(_KEY_BITS)).astype(np.int64)
    codes = np.zeros(0, np.int64)
    for _ in range(_TABLES):
        chosen = random.choice(telling, min(_KEY_BITS, len(telling)), replace=False)
        keys = bits[:, chosen] @ weights[: len(chosen)]
        codes = np.union1d(codes, _within_buckets(keys, len(hashes), hashes))
    return np.stack([codes // len(hashes), codes % len(hashes)], axis=1)


def _within_buckets(keys: NDArray[np.int64], count: int, hashes: np.ndarray) -> NDArray[np.int64]:
    """Codes first * count + second of the pairs with the same key that are near enough."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    codes: list[NDArray[np.int64]] = []
    position = np.arange(count)
    ends = np.searchsorted(ordered, ordered, side="right")
    alive = position
    # Pair each film with the next one of its bucket, then with the one after, and so on. A bucket of more holds
    # films that are all alike (blank ones, slices of one scan): they hang together without every pair being looked at.
    for step in range(1, _NEIGHBOURS + 1):
        alive = alive[alive + step < ends[alive]]
        if not len(alive):
            break
        pairs = np.sort(np.stack([order[alive], order[alive + step]], axis=1), axis=1)
        near = _distances(hashes, pairs) <= MAX_DISTANCE
        codes.append(pairs[near, 0] * count + pairs[near, 1])
    return np.concatenate(codes) if codes else np.zeros(0, np.int64)


def _distances(hashes: np.ndarray, pairs: Pairs) -> NDArray[np.uint16]:
    """(M,) bits in which the hashes of each pair differ."""
    out = np.zeros(len(pairs), np.uint16)
    for start in range(0, len(pairs), 64 * _BATCH):
        a, b = pairs[start : start + 64 * _BATCH].T
        out[start : start + len(a)] = _POPCOUNT[hashes[a] ^ hashes[b]].sum(axis=1, dtype=np.uint16)
    return out


def detail_correlation(thumbs: np.ndarray, pairs: Pairs) -> NDArray[np.float64]:
    """(M,) correlation of each pair's local detail: what is left of a thumbnail without its blur, at equal contrast.

    Dividing by the local contrast keeps a marker, a border or the exposure from deciding.
    """
    out = np.zeros(len(pairs))
    for start in range(0, len(pairs), _BATCH):
        part = pairs[start : start + _BATCH]
        rows, place = np.unique(part, return_inverse=True)
        detail = _detail(thumbs[rows])
        first, second = detail[place.reshape(part.shape)].transpose(1, 0, 2)
        out[start : start + len(part)] = np.einsum("ij,ij->i", first, second)
    return out


def _detail(thumbs: np.ndarray) -> NDArray[np.float32]:
    """(n, h * w) float32, mean 0 and length 1 each."""
    from scipy.ndimage import uniform_filter

    grey = thumbs.astype(np.float32)
    detail = grey - uniform_filter(grey, (0, 9, 9))
    detail /= np.sqrt(uniform_filter(detail**2, (0, 17, 17))) + 4
    flat = detail.reshape(len(detail), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
