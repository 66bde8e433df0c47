"""What all readers said, as arrays: ranks and ratings by film, reader and arm, and their regions as masks."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from trustcxr.reader import regions
from trustcxr.reader.store import Reader, Store
from trustcxr.statistics import Floats


@dataclass(frozen=True)
class Said:
    """`ranks` and `ratings` (F films, R readers, A arms), NaN where not given.

    `marked` (F, R): whether the reader marked the film; `marks` (F, R, H, W) uint8; `masks` (F, H, W) uint8.
    """

    arms: list[str]
    readers: list[str]
    samples: list[str]
    groups: list[str]
    ranks: Floats
    ratings: Floats
    marked: np.ndarray
    marks: np.ndarray
    masks: np.ndarray

    @property
    def complete(self) -> np.ndarray:
        """Films that a reader has ranked whole, (R,)."""
        return np.asarray(np.isfinite(self.ranks).all(axis=2).sum(axis=0))


def gather(store: Store) -> Said:
    """Everything in the file. Films without a mask of their own size do not occur: all were written from one set."""
    readers, samples = store.readers(), store.samples()
    masks = np.stack([np.asarray(Image.open(io.BytesIO(mask))) for _, _, mask in samples])
    shape = (len(samples), len(readers))
    ranks, ratings = np.full((*shape, len(store.arms)), np.nan), np.full((*shape, len(store.arms)), np.nan)
    marked, marks = np.zeros(shape, bool), np.zeros((*shape, *masks.shape[1:]), np.uint8)
    for r, reader in enumerate(readers):
        for f in range(len(samples)):
            ranks[f, r], ratings[f, r] = _numbers(store, reader, f)
            mark = store.mark(reader, f)
            if mark is not None:
                marked[f, r], marks[f, r] = True, regions.pixels(mark, *masks.shape[1:])
    names, groups = [name for name, _, _ in samples], [group for _, group, _ in samples]
    told = [reader.name for reader in readers]
    return Said(store.arms, told, names, groups, ranks, ratings, marked, marks, masks)


def _numbers(store: Store, reader: Reader, film: int) -> tuple[list[float], list[float]]:
    said = store.judgements(reader, film)
    ranks = [np.nan if each.rank is None else float(each.rank) for each in said]
    return ranks, [np.nan if each.rating is None else float(each.rating) for each in said]
