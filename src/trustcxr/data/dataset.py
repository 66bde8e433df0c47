"""Load the images, labels and masks of a split, memory-mapped, and compare them with those of a training."""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import sha256
from io import FileIO
from pathlib import Path

import numpy as np
import pandas as pd

from trustcxr.data.cache import Store, open_store
from trustcxr.data.layouts import read_manifest
from trustcxr.data.manifest import MASK_SUFFIX, NO_SPLIT, SHARES, Manifest, format_similar_classes
from trustcxr.errors import UserError, suggest_nearest, unknown
from trustcxr.storage import atomic
from trustcxr.storage.layout import RUN_FILE

_MAX_HASHED = 2**36  # bytes of files that are read again for their hashes: a few minutes of a disk


class Dataset:
    """The samples of one split (or of all), in the manifest's order. Pickles without its pixels.

    Attributes:
        classes: names, in the order of the labels.
        size: pixels of a side.
        root: the folder of the data.
        where: the path for messages: the list, if any, else the folder.
        layout: the layout by which it was read.
        resize: `squeeze`, `pad` or `crop`.
        notes: remarks about the data for the user.
        table: the manifest's rows, one for each sample.
        all_splits: sample_id, path, class and split of every readable image of the data set.
        skipped: DataFrame(sample_id, path, reason) of the split's unreadable images, which are left out.
        bad_masks: DataFrame(sample_id, kind, path, reason) of its unreadable masks, treated as absent.

    >>> import tempfile, trustcxr as tx
    >>> folder = tempfile.mkdtemp()
    >>> images = tx.data.phantom.write(folder + "/images", {"Test": 2}, size=32)
    >>> data = tx.load_dataset(images, "Test", size=32)
    >>> data.images[:].shape, data.classes
    ((6, 1, 32, 32), ('COVID-19', 'Non-COVID', 'Normal'))
    """

    def __init__(self, manifest: Manifest, store: Store, split: str | None, classes: Sequence[str]) -> None:
        readable = np.ones(len(manifest.table), dtype=bool)
        readable[[f["row"] for f in store.skipped]] = False
        splits = manifest.table["split"].to_numpy()
        chosen = readable if split is None else readable & (splits == split)
        rows = np.flatnonzero(chosen[readable])
        # The manifest is sorted by split, so a split is one slice of the store.
        self._start, self._stop = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        self._store = store
        self.all_splits: pd.DataFrame = manifest.table.loc[readable, ["sample_id", "path", "class", "split"]]
        self.table: pd.DataFrame = manifest.table[chosen].reset_index(drop=True)
        self.classes, self.size, self.root = tuple(classes), store.size, manifest.root
        self.split, self.layout, self.resize, self.where = split, manifest.layout, store.resize, manifest.where
        self.notes = list(manifest.notes)
        # The store may be of another manifest of the same files: the names are this one's.
        names, paths = manifest.table["sample_id"].tolist(), manifest.files
        skipped, masks = (
            [
                (names[f["row"]], f["file"].removesuffix(MASK_SUFFIX), paths[f["file"]][f["row"]], f["reason"])
                for f in files
                if split in (None, splits[f["row"]])
            ]
            for files in (store.skipped, store.bad_masks)
        )
        self.bad_masks = pd.DataFrame(masks, columns=["sample_id", "kind", "path", "reason"])
        self.skipped = pd.DataFrame(skipped, columns=self.bad_masks.columns).drop(columns="kind")

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        counts = ", ".join(f"{c} {int((self.labels == i).sum())}" for i, c in enumerate(self.classes))
        return f"Dataset({self.root.name}, split={self.split}, size={self.size}, {len(self)} images: {counts})"

    def __getstate__(self) -> dict[str, object]:
        maps = ("images", "_file")  # opened again on use: a memory map would pickle as its pixels
        return {k: v for k, v in self.__dict__.items() if k not in maps}

    @cached_property
    def images(self) -> np.ndarray:
        """uint8 (N, 1, size, size), memory-mapped, read-only."""
        return self._store.map("images")[self._start : self._stop, None]

    @cached_property
    def _file(self) -> FileIO:
        return FileIO(self._store.folder / "images.u8")

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Copy the images at `indices`: uint8 (B, 1, size, size).

        pread, unlike the memory map, leaves no pages resident after an epoch.
        """
        if not hasattr(os, "preadv"):  # Windows
            return np.array(self.images[np.asarray(indices)])
        out = np.empty((len(indices), 1, self.size, self.size), np.uint8)
        file, step = self._file.fileno(), self.size**2
        for image, index in zip(out, indices, strict=True):
            if not 0 <= index < len(self):
                raise IndexError(f"image {index} of {len(self)}")
            if os.preadv(file, [image.data.cast("B")], (self._start + int(index)) * step) != step:
                raise OSError(f"{self._store.folder}: the store is too short")
        return out

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,): the index of each sample's class in `classes`."""
        index = {c: i for i, c in enumerate(self.classes)}
        return np.array([index[c] for c in self.table["class"]], dtype=np.int64)

    @property
    def sample_ids(self) -> np.ndarray:
        """(N,) array of str, unique."""
        return self.table["sample_id"].to_numpy(dtype=str)

    @property
    def groups(self) -> np.ndarray:
        """(N,) array of str: samples of one patient, or related otherwise, share a group."""
        return self.table["group"].to_numpy(dtype=str)

    @property
    def splits(self) -> np.ndarray:
        """(N,) array of str."""
        return self.table["split"].to_numpy(dtype=str)

    @cached_property
    def image_sums(self) -> np.ndarray:
        """(N,) array of str: a checksum of each image's pixels, to recognise it in other data."""
        return self._store.image_sums()[self._start : self._stop]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the samples' names, classes and pixels at this size, as 16 hexadecimal digits."""
        return _fingerprint(self.table, self.image_sums)

    @cached_property
    def files_fingerprint(self) -> str:
        """Hash of the samples' names, classes and files' bytes, the same at any size, as 16 hexadecimal digits.

        Empty if a file cannot be read, or reading the files again would take minutes.
        """
        return self._fingerprint_of_files("path")

    @cached_property
    def lung_files_fingerprint(self) -> str:
        """The same for the files of their lung masks; also empty if there are none."""
        return self._fingerprint_of_files("lung_mask") if self.table["lung_mask"].notna().any() else ""

    def _fingerprint_of_files(self, column: str) -> str:
        has = self.table[column].notna().to_numpy()
        digests = _hash_files([Path(f"{self.root}/{path}") for path in self.table.loc[has, column]])
        if digests is None:
            return ""
        hashes = np.full(len(self), "", dtype=object)
        hashes[has] = digests
        order = np.argsort(self.sample_ids)  # the table's order depends on the mapping of labels
        return _fingerprint(self.table.iloc[order], hashes[order].astype(str))

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of every split of the whole data set."""
        table, pixels = self.all_splits, self._store.image_sums()
        splits = table["split"].to_numpy()
        return {str(s): _fingerprint(table[splits == s], pixels[splits == s]) for s in sorted(set(splits))}

    @property
    def mask_kinds(self) -> tuple[str, ...]:
        """Kinds of mask of the data set."""
        return tuple(name.removesuffix(MASK_SUFFIX) for name in list(self._store.sums)[1:])

    def masks(self, kind: str) -> np.ndarray:
        """Return masks of a kind (`lung`, `infection`, ...): uint8 (N, size, size) of 0 and 1; 0 without a mask."""
        if kind not in self.mask_kinds:
            self._check_kind(kind)
            return np.broadcast_to(np.uint8(0), (len(self), self.size, self.size))
        return self._store.map(kind + MASK_SUFFIX)[self._start : self._stop]

    def has_mask(self, kind: str) -> np.ndarray:
        """Return bool (N,): True for a readable mask of a kind, even an empty one."""
        self._check_kind(kind)
        has = self.table[kind + MASK_SUFFIX].notna().to_numpy(copy=True)
        broken = set(self.bad_masks["sample_id"][self.bad_masks["kind"] == kind])
        return has & ~self.table["sample_id"].isin(broken).to_numpy() if broken else has

    def _check_kind(self, kind: str) -> None:
        if kind + MASK_SUFFIX not in self.table:
            kinds = [str(c).removesuffix(MASK_SUFFIX) for c in self.table.columns if str(c).endswith(MASK_SUFFIX)]
            raise unknown("kind of mask", kind, kinds)


def has_filled_mask(images: Dataset, kind: str, rows: np.ndarray) -> np.ndarray:
    """Return bool (B,): which of these rows have a mask of a kind that is not empty."""
    has, masks = images.has_mask(kind)[rows], images.masks(kind)
    has[has] = [bool(masks[row].any()) for row in rows[has]]
    return np.asarray(has)


def _fingerprint(table: pd.DataFrame, pixels: np.ndarray) -> str:
    rows = zip(table["sample_id"], table["class"], pixels, strict=True)
    return _hash_lines(f"{name}\t{label}\t{image}" for name, label, image in rows)


def _hash_lines(lines: Iterable[str]) -> str:
    return sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _hash_files(paths: Sequence[Path]) -> list[str] | None:
    """Return the SHA-256 of each file; None if one cannot be read, or there are more than _MAX_HASHED bytes."""
    from joblib import cpu_count

    try:
        if sum(os.stat(path).st_size for path in paths) > _MAX_HASHED:
            return None
        with ThreadPoolExecutor(cpu_count()) as threads:
            return list(threads.map(atomic.checksum, paths))
    except OSError:
        return None


class JoinedDataset:
    """Splits of one or several data sets, one after the other, for training.

    numbers: (N,) the number of each image's data set. shares: of the drawn images of a class, of each data set; () if
    there is one data set. The root and the fingerprints are the first data set's.
    """

    def __init__(self, first: "Dataset | JoinedDataset", *others: Dataset, shares: Sequence[float] = ()) -> None:
        parts, before = ((first,), ()) if isinstance(first, Dataset) else (first.parts, first.shares)
        self.parts: tuple[Dataset, ...] = (*parts, *others)
        self.shares: tuple[float, ...] = tuple(shares) or before
        self.notes: list[str] = list(first.notes)
        head = self.parts[0]
        self.classes, self.size, self.root, self.where = head.classes, head.size, head.root, head.where
        sets = list(dict.fromkeys(part.where for part in self.parts))
        self.numbers = np.repeat([sets.index(part.where) for part in self.parts], [len(part) for part in self.parts])
        self.mask_kinds = tuple(dict.fromkeys(kind for part in self.parts for kind in part.mask_kinds))
        self.split = "+".join(self._name(part) + str(part.split) for part in self.parts)
        self.labels = np.concatenate([part.labels for part in self.parts])
        self.fingerprint = "+".join(part.fingerprint for part in self.parts)
        self.image_sums = np.concatenate([part.image_sums for part in self.parts])

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of every split of the first data set."""
        return self.parts[0].fingerprints()

    @property
    def sample_ids(self) -> np.ndarray:
        """(N,) array of str; those of an added data set begin with its name."""
        return np.concatenate([np.char.add(self._name(part), part.sample_ids) for part in self.parts])

    @property
    def table(self) -> pd.DataFrame:
        """The manifests' rows, one for each sample."""
        return pd.concat([part.table for part in self.parts], ignore_index=True)

    @property
    def images(self) -> np.ndarray:
        """uint8 (N, 1, size, size), in memory."""
        return np.concatenate([part.images for part in self.parts])

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Copy the images at `indices`: uint8 (B, 1, size, size)."""
        rows, first = np.asarray(indices), 0
        out = np.empty((len(rows), 1, self.size, self.size), np.uint8)
        for part in self.parts:
            inside = (rows >= first) & (rows < first + len(part))
            out[inside] = part.batch(rows[inside] - first)
            first += len(part)
        return out

    def masks(self, kind: str) -> np.ndarray:
        """Return masks of a kind in memory: uint8 (N, size, size) of 0 and 1; 0 without a mask."""
        return np.concatenate([part.masks(kind) for part in self.parts])

    def has_mask(self, kind: str) -> np.ndarray:
        """Return bool (N,): True for a readable mask of a kind, even an empty one."""
        return np.concatenate([part.has_mask(kind) for part in self.parts])

    def _name(self, part: Dataset) -> str:
        return "" if part.where == self.where else f"{part.root.name}/"


def read_sources(images: Dataset | JoinedDataset, column: str) -> np.ndarray | None:
    """Read a column of the data as text (N,), "" if empty; None if no column is named.

    Raises UserError if the column is missing or empty.
    """
    if not column:
        return None
    if column not in images.table:
        raise unknown("column (training.balanced_by)", column, images.table.columns)
    sources = images.table[column].fillna("").astype(str).to_numpy(dtype=str)
    if not (sources != "").any():
        raise UserError(
            f"{images.where}: no image of {images.split} has a value in column {column}. Leave out training.balanced_by"
        )
    return sources


def _similar_note(names: Mapping[str, int]) -> str:
    first, other, *_ = names
    return (
        f"classes that differ only in capitals or blanks count as different: {format_similar_classes(names)}; to join "
        f"them, give --label {shlex.quote(f'{other}={first}')} and a --label for each other class"
    )


def describe_training_data(train: Dataset | JoinedDataset) -> dict[str, object]:
    """Return the entry `data` of run.yaml; `fingerprints` are of every split."""
    described: dict[str, object] = {"root_name": train.root.name, "split": train.split, "images": len(train)}
    if shares := getattr(train, "shares", ()):
        described["shares"] = list(shares)
    return described | {"fingerprint": train.fingerprint, "fingerprints": train.fingerprints()}


def check_same_images(run: Path, train: Dataset | JoinedDataset) -> None:
    """Raise UserError if the folder has a training on other images or classes."""
    path = run / RUN_FILE
    if not path.is_file():
        return
    before = atomic.read_yaml(path)
    data = atomic.section(before, "data")
    now = describe_training_data(train)
    if data.get("fingerprint") != now["fingerprint"] or before.get("classes") != list(train.classes):
        raise UserError(
            f"{run}: was trained on other images or classes than those of {train.where} ({data.get('images', '?')} "
            f"images then, {now['images']} now). Choose another --out"
        )


def hash_training_data(images: Dataset) -> str:
    """Return one fingerprint of all splits of a data set."""
    return _hash_lines(f"{split}\t{value}" for split, value in sorted(images.fingerprints().items()))


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
    """Open a data set; decode its images into the cache first, if needed.

    `data`: a folder, a manifest or list, an fsspec address of one, or a Manifest. `split`: None for all. `classes`:
    the order of labels, such as a run's classes. `labels` renames classes, as in `{"pneumonia": "Non-COVID"}`; None
    leaves one out. `columns` and `images` describe a list, as in `layouts.csv_lists.read_list`. `size`: pixels of a
    side. `resize`, `cache`, `workers` and `every`: as in `cache.open_store`.

    If the data have no splits, Train, Val or Test divide them by `split_seed` (`Manifest.with_splits`), with a note.
    Raises UserError for an unknown layout, a missing split, or a class not in `classes`.

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
        manifest = manifest.with_labels(labels, classes or ())
    if split in SHARES and manifest.splits == (NO_SPLIT,):
        manifest = manifest.with_splits(seed=split_seed)
    if split is not None and split not in manifest.splits:
        raise manifest.missing_split(split)
    strange = [c for c in manifest.classes if c not in (classes or manifest.classes)]
    if strange:
        raise UserError(
            f"{manifest.where}: classes {', '.join(manifest.classes)} do not match the expected "
            f"{', '.join(classes or ())}: {', '.join(strange)} not among them; "
            f"{suggest_nearest(strange[0], classes or ())}map the labels, as by --label '{strange[0]}=CLASS'"
        )
    store = open_store(manifest, size, cache=cache, workers=workers, resize=resize, every=every)
    dataset = Dataset(manifest, store, split, classes or manifest.classes)
    dataset.notes += map(_similar_note, manifest.similar_classes())
    if not len(dataset):
        raise UserError(f"{manifest.where}: no readable image in split '{split}' ({len(dataset.skipped)} unreadable)")
    return dataset
