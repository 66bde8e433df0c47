"""What training and evaluation read: images, labels and masks of one split, memory-mapped."""

import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import file_digest, sha256
from io import FileIO
from pathlib import Path

import numpy as np
import pandas as pd

from trustcxr.data.cache import Store, open_store
from trustcxr.data.layouts import read_manifest
from trustcxr.data.manifest import MASK_SUFFIX, NO_SPLIT, SHARES, Manifest, format_alike_classes
from trustcxr.errors import UserError, nearest, unknown
from trustcxr.storage.os_errors import open_regular

_CHEAP = 2**36  # bytes of files that are read a second time to know them again: a few minutes of a disk


class Dataset:
    """The samples of one split (or of all), in the manifest's order. Pickles without its pixels.

    Attributes:
        classes: names, in the order of the labels.
        size: pixels of a side.
        root: the folder of the data.
        where: what a message names: the list that they were read from, else that folder.
        layout: how it was read.
        resize: `squeeze`, `pad` or `crop`: what became of the aspect ratio.
        notes: what reading it found worth saying.
        table: the manifest's rows, one a sample.
        skipped: DataFrame(sample_id, path, reason) of the split's unreadable images, which are left out.
        bad_masks: DataFrame(sample_id, kind, path, reason) of its unreadable masks, taken as absent.
    """

    def __init__(self, manifest: Manifest, store: Store, split: str | None, classes: Sequence[str]) -> None:
        kept = np.ones(len(manifest.table), dtype=bool)
        kept[[f["row"] for f in store.skipped]] = False
        splits = manifest.table["split"].to_numpy()
        chosen = kept if split is None else kept & (splits == split)
        rows = np.flatnonzero(chosen[kept])
        # The manifest is sorted by split, so a split is one slice of the store: a view of the map, and no copy.
        self._start, self._stop = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        self._store, self._kept = store, manifest.table.loc[kept, ["sample_id", "class", "split"]]
        self.table: pd.DataFrame = manifest.table[chosen].reset_index(drop=True)
        self.classes, self.size, self.root = tuple(classes), store.size, manifest.root
        self.split, self.layout, self.resize, self.where = split, manifest.layout, store.resize, manifest.where
        self.notes = list(manifest.notes)
        mine = [f for f in store.skipped if split is None or splits[f["row"]] == split]
        self.skipped = pd.DataFrame(mine, columns=["sample_id", "path", "reason"])
        masks = [
            f | {"kind": f["file"].removesuffix(MASK_SUFFIX)}
            for f in store.bad_masks
            if split is None or splits[f["row"]] == split
        ]
        self.bad_masks = pd.DataFrame(masks, columns=["sample_id", "kind", "path", "reason"])

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        counts = ", ".join(f"{c} {int((self.labels == i).sum())}" for i, c in enumerate(self.classes))
        return f"Dataset({self.root.name}, split={self.split}, size={self.size}, {len(self)} images: {counts})"

    def __getstate__(self) -> dict[str, object]:
        maps = ("images", "_file")  # opened again where they are needed: a memory map would pickle as its pixels
        return {k: v for k, v in self.__dict__.items() if k not in maps}

    @cached_property
    def images(self) -> np.ndarray:
        """uint8 (N, 1, size, size), memory-mapped, read-only."""
        return self._store.map("images")[self._start : self._stop, None]

    @cached_property
    def _file(self) -> FileIO:
        return FileIO(self._store.folder / "images.u8")

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The images at `indices`, copied: uint8 (B, 1, size, size).

        Read with pread, not through the memory map, so that an epoch over a large data set leaves no pages resident.
        """
        if not hasattr(os, "preadv"):  # Windows
            return np.array(self.images[np.asarray(indices)])
        out = np.empty((len(indices), 1, self.size, self.size), np.uint8)
        file, step = self._file.fileno(), self.size**2
        for image, index in zip(out, indices, strict=True):
            if not 0 <= index < len(self):
                raise IndexError(f"image {index} of {len(self)}")
            if os.preadv(file, [image.data.cast("B")], (self._start + int(index)) * step) != step:
                raise OSError(f"{self._store.folder}: the store was cut short")
        return out

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,): the place of each sample's class in `classes`."""
        place = {c: i for i, c in enumerate(self.classes)}
        return np.array([place[c] for c in self.table["class"]], dtype=np.int64)

    @property
    def sample_ids(self) -> np.ndarray:
        """(N,) array of str, unique."""
        return self.table["sample_id"].to_numpy(dtype=str)

    @property
    def groups(self) -> np.ndarray:
        """(N,) array of str: samples of one patient, or otherwise tied, share a group."""
        return self.table["group"].to_numpy(dtype=str)

    @property
    def splits(self) -> np.ndarray:
        """(N,) array of str."""
        return self.table["split"].to_numpy(dtype=str)

    @cached_property
    def image_sums(self) -> np.ndarray:
        """(N,) array of str: a checksum of each image's pixels, by which it is known again in other data."""
        return self._store.image_sums()[self._start : self._stop]

    @cached_property
    def fingerprint(self) -> str:
        """What these samples are: their names, classes and pixels at this size, as 16 hexadecimal digits."""
        return _fingerprint(self.table, self.image_sums)

    @cached_property
    def files_fingerprint(self) -> str:
        """What these samples are at any size: their names, classes and files' bytes, as 16 hexadecimal digits.

        Empty where a file cannot be read, or the files are so large that to read them once more takes long.
        """
        return self._fingerprint_of_files("path")

    @cached_property
    def lung_files_fingerprint(self) -> str:
        """The same of their lung masks' files; empty where no sample has one, too."""
        return self._fingerprint_of_files("lung_mask") if self.table["lung_mask"].notna().any() else ""

    def _fingerprint_of_files(self, column: str) -> str:
        has = self.table[column].notna().to_numpy()
        found = _file_hashes([f"{self.root}/{path}" for path in self.table.loc[has, column]])
        if found is None:
            return ""
        every = np.full(len(self), "", dtype=object)
        every[has] = found
        order = np.argsort(self.sample_ids)  # that of the table is by class, which another mapping of labels changes
        return _fingerprint(self.table.iloc[order], every[order].astype(str))

    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of every split of the data set, whichever of them this is."""
        splits, pixels = self._kept["split"].to_numpy(), self._store.image_sums()
        return {str(s): _fingerprint(self._kept[splits == s], pixels[splits == s]) for s in sorted(set(splits))}

    @property
    def mask_kinds(self) -> tuple[str, ...]:
        """The kinds of mask that the data set has."""
        return tuple(name.removesuffix(MASK_SUFFIX) for name in self._store.names[1:])

    def masks(self, kind: str) -> np.ndarray:
        """Masks of a kind (`lung`, `infection`, ...): uint8 (N, size, size) of 0 and 1; all 0 where there is none."""
        if kind not in self.mask_kinds:
            self._check_kind(kind)
            return np.broadcast_to(np.uint8(0), (len(self), self.size, self.size))
        return self._store.map(kind + MASK_SUFFIX)[self._start : self._stop]

    def has_mask(self, kind: str) -> np.ndarray:
        """bool (N,): whether a sample has a readable mask of that kind (which may be empty)."""
        self._check_kind(kind)
        has = self.table[kind + MASK_SUFFIX].notna().to_numpy(copy=True)
        broken = set(self.bad_masks["sample_id"][self.bad_masks["kind"] == kind])
        return has & ~self.table["sample_id"].isin(broken).to_numpy() if broken else has

    def _check_kind(self, kind: str) -> None:
        if kind + MASK_SUFFIX not in self.table:
            kinds = [str(c).removesuffix(MASK_SUFFIX) for c in self.table.columns if str(c).endswith(MASK_SUFFIX)]
            raise unknown("kind of mask", kind, kinds)


def has_filled_mask(images: Dataset, kind: str, rows: np.ndarray) -> np.ndarray:
    """bool (B,): which of these rows of a data set, or of a part of one, have a mask of that kind that is not empty."""
    has, masks = images.has_mask(kind)[rows], images.masks(kind)
    has[has] = [bool(masks[row].any()) for row in rows[has]]
    return np.asarray(has)


def _fingerprint(table: pd.DataFrame, pixels: np.ndarray) -> str:
    rows = zip(table["sample_id"], table["class"], pixels, strict=True)
    lines = "\n".join(f"{name}\t{label}\t{image}" for name, label, image in rows)
    return sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _file_hashes(paths: Sequence[str]) -> list[str] | None:
    """SHA-256 of each file's bytes; None if one cannot be read, or all are too much to read twice. Follows links."""
    from joblib import cpu_count

    try:
        if sum(os.stat(path).st_size for path in paths) > _CHEAP:
            return None
        with ThreadPoolExecutor(cpu_count()) as threads:
            return list(threads.map(_file_hash, paths))
    except OSError:
        return None


def _file_hash(path: str) -> str:
    with open_regular(path) as file:
        return file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # typeshed


class JoinedDataset:
    """Two splits of the same data, the second after the first: what training reads."""

    def __init__(self, first: Dataset, second: Dataset) -> None:
        self.parts = (first, second)
        self.classes, self.size, self.root, self.mask_kinds = first.classes, first.size, first.root, first.mask_kinds
        self.split, self.where = f"{first.split}+{second.split}", first.where
        self.labels = np.concatenate([part.labels for part in self.parts])
        self.fingerprint = "+".join(part.fingerprint for part in self.parts)
        self.sample_ids = np.concatenate([part.sample_ids for part in self.parts])
        self.image_sums = np.concatenate([part.image_sums for part in self.parts])

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of every split of the data set."""
        return self.parts[0].fingerprints()

    @property
    def table(self) -> pd.DataFrame:
        """The manifest's rows, one a sample."""
        return pd.concat([part.table for part in self.parts], ignore_index=True)

    @property
    def images(self) -> np.ndarray:
        """uint8 (N, 1, size, size), in memory."""
        return np.concatenate([part.images for part in self.parts])

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The images at `indices`, copied: uint8 (B, 1, size, size)."""
        places, border = np.asarray(indices), len(self.parts[0])
        second = places >= border
        out = np.empty((len(places), 1, self.size, self.size), np.uint8)
        out[~second] = self.parts[0].batch(places[~second])
        out[second] = self.parts[1].batch(places[second] - border)
        return out

    def masks(self, kind: str) -> np.ndarray:
        """Masks of a kind: uint8 (N, size, size) of 0 and 1, in memory; all 0 where there is none."""
        return np.concatenate([part.masks(kind) for part in self.parts])


def read_sources(images: Dataset | JoinedDataset, column: str) -> np.ndarray | None:
    """What each image has in a column of its data, "" for nothing: (N,); None where no column is named.

    Raises UserError where there is no such column, or nothing in it.
    """
    if not column:
        return None
    if column not in images.table:
        raise unknown("column (training.balanced_by)", column, images.table.columns)
    found = images.table[column].fillna("").astype(str).to_numpy(dtype=str)
    if not (found != "").any():
        raise UserError(
            f"{images.where}: no image of {images.split} has a value in column {column}. Leave out training.balanced_by"
        )
    return found


def _alike_note(names: Mapping[str, int]) -> str:
    first, other, *_ = names
    return (
        f"classes that differ only in capitals or blanks are taken for different ones: {format_alike_classes(names)}; "
        f"--label {shlex.quote(f'{other}={first}')} makes them one, beside a --label for each other class"
    )


def load_dataset(
    data: str | Path | Manifest,
    split: str | None = None,
    size: int = 224,
    *,
    classes: Sequence[str] | None = None,
    labels: Mapping[str, str | None] | None = None,
    layout: str = "auto",
    columns: str | Mapping[str, str | int] | None = None,
    images: str | Path | None = None,
    resize: str = "squeeze",
    split_seed: int = 0,
    cache: str | Path | None = None,
    workers: int | None = None,
    every: bool = False,
) -> Dataset:
    """Open a data set, decoding it first where that is not done yet.

    `data` is a folder, a manifest or list file, an address of one that fsspec knows, or a Manifest. `split` None is
    all of it. `classes` is the order of labels wanted (a run's classes). `labels` renames classes, `{"pneumonia":
    "Non-COVID"}`; None leaves one out. `columns` and `images` describe a list, as in `lists.read_list`. `size` is in
    pixels; `resize`, `cache`, `workers` and `every` are as in `store.open_store`.

    Where the data have no splits, asking for Train, Val or Test divides them by `split_seed`, each class alike and the
    samples of one group together (`Manifest.with_splits`); `notes` says so.
    Raises UserError for a folder that is not understood, a split that is not there, or a class not in `classes`.

    >>> import tempfile, trustcxr as tx
    >>> from trustcxr.data.phantom import write
    >>> folder = tempfile.TemporaryDirectory()
    >>> images = write(f"{folder.name}/images", {"Train": 2, "Test": 1}, size=32)
    >>> data = tx.load_dataset(images, split="Train", size=32, cache=folder.name)
    >>> data.images.shape, data.classes
    ((6, 1, 32, 32), ('COVID-19', 'Non-COVID', 'Normal'))
    """
    manifest = (
        data if isinstance(data, Manifest) else read_manifest(data, layout=layout, columns=columns, images=images)
    )
    if labels:
        manifest = manifest.with_labels(labels, known=classes or ())
    if split in SHARES and manifest.splits == (NO_SPLIT,):
        manifest = manifest.with_splits(seed=split_seed)
    if split is not None and split not in manifest.splits:
        raise manifest.no_split(split)
    strange = [c for c in manifest.classes if c not in (classes or manifest.classes)]
    if strange:
        raise UserError(
            f"{manifest.where}: classes {', '.join(manifest.classes)} do not match the expected "
            f"{', '.join(classes or ())}: {', '.join(strange)} not among them; {nearest(strange[0], classes or ())}"
            f"map the labels, as by --label '{strange[0]}=CLASS'"
        )
    store = open_store(manifest, size, cache=cache, workers=workers, resize=resize, every=every)
    dataset = Dataset(manifest, store, split, classes or manifest.classes)
    dataset.notes += map(_alike_note, manifest.alike_classes())
    if not len(dataset):
        raise UserError(f"{manifest.where}: no readable image in split '{split}' ({len(dataset.skipped)} unreadable)")
    return dataset
