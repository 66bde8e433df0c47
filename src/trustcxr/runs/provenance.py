"""Decide whether a result is current by a hash of weights, data, options and algorithm in the file itself."""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from trustcxr.data.manifest import MASK_SUFFIX
from trustcxr.errors import UserError
from trustcxr.storage import atomic, layout, schemas
from trustcxr.storage.schemas import RunDocument

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

KEY = "provenance"  # of the hash among the arrays of example_maps.npz
MEASURED = (layout.PREDICTIONS_FILE, layout.SALIENCY_FILE, layout.LESIONS_FILE, layout.CERTIFIED_FILE)
TABLES = (layout.VALIDATION_FILE, *MEASURED)
# Add one to a file if the same weights, data and options give other figures.
ALGORITHM_VERSION = dict.fromkeys((*TABLES, layout.METRICS_FILE, layout.EXAMPLES_FILE), 1) | {
    layout.SALIENCY_FILE: 2,
    layout.LESIONS_FILE: 3,
    layout.METRICS_FILE: 2,
}


def hash_of(**parts: object) -> str:
    """Return a hash of values that JSON can hold."""
    return sha256(json.dumps(atomic.plain(parts), sort_keys=True).encode()).hexdigest()[:16]


def data_hash(data: "Dataset", *kinds: str) -> str:
    """Return a hash of images, of their table without paths, and of masks of these kinds."""
    digest = sha256(data.fingerprint.encode())
    paths = [name for name in data.table if name == "path" or str(name).endswith(MASK_SUFFIX)]
    digest.update(data.table.drop(columns=paths).to_csv(index=False).encode("utf-8", "surrogateescape"))
    for kind in (kind for kind in kinds if kind in data.mask_kinds):
        digest.update(kind.encode())
        for mask in data.masks(kind):
            digest.update(mask.tobytes())
    return digest.hexdigest()[:16]


@dataclass
class Results:
    """A folder of results of one model.

    weights: a checksum of the model. replace: replace files of other weights, data or options; else raise. written: the
    files written by this object.
    """

    folder: Path
    weights: str
    replace: bool = True
    written: tuple[str, ...] = ()

    def key(self, name: str, **parts: object) -> str:
        """Return the hash that a current file of that name has."""
        return hash_of(file=name, version=ALGORITHM_VERSION[name], weights=self.weights, **parts)

    def is_current(self, name: str, **parts: object) -> bool:
        """Return whether a file is whole and of these parts."""
        return read_hash(self.folder / name) == self.key(name, **parts)

    def table(self, name: str, make: Callable[[], Iterable[pd.DataFrame]], **parts: object) -> bool:
        """Write a table, a batch at a time, unless it is current; return whether it was written."""
        if self.is_current(name, **parts):
            return False
        path = self.folder / name
        if not self.replace and path.exists():
            raise UserError(
                f"{path}: of other weights, images or options, or damaged; results are never mixed. Give another --out"
            )
        atomic.write_batches(path, make(), self.key(name, **parts))
        self.written += (name,)
        return True


def read_hash(path: Path) -> str:
    """Return the hash in a table, example maps or metrics.json; "" if the file is missing, damaged or has none."""
    if path.suffix == ".parquet":
        return atomic.read_provenance(path)
    with suppress(UserError, OSError, ValueError, KeyError, EOFError, BadZipFile):
        if path.suffix != ".npz":
            return schemas.read_schema(RunDocument, path).provenance
        with np.load(path, allow_pickle=False) as arrays:
            return str(arrays[KEY])
    return ""
