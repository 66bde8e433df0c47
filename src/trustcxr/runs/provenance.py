"""Decide whether a result is current: one hash of weights, data, options and algorithm, stored in the file itself."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from trustcxr.data.manifest import MASK_SUFFIX
from trustcxr.errors import UserError
from trustcxr.storage import atomic, schemas
from trustcxr.storage.layout import (
    CERTIFIED_FILE,
    EXAMPLES_FILE,
    LESIONS_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    SALIENCY_FILE,
    VALIDATION_FILE,
)
from trustcxr.storage.schemas import RunDocument

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

KEY = "provenance"  # of the hash among the arrays of example_maps.npz
# Add one where the same weights, data and options give other figures than before.
ALGORITHM_VERSION = {
    VALIDATION_FILE: 1,
    PREDICTIONS_FILE: 1,
    SALIENCY_FILE: 1,
    LESIONS_FILE: 1,
    CERTIFIED_FILE: 1,
    METRICS_FILE: 1,
    EXAMPLES_FILE: 1,
}
TABLES = (VALIDATION_FILE, PREDICTIONS_FILE, SALIENCY_FILE, LESIONS_FILE, CERTIFIED_FILE)


def hash_of(**parts: object) -> str:
    """Return a hash of anything that JSON can hold."""
    return sha256(json.dumps(atomic.plain(parts), sort_keys=True).encode()).hexdigest()[:16]


def data_hash(data: "Dataset", *kinds: str) -> str:
    """Return a hash of images, of what their table says of them (class, group, source, ...), and of these masks.

    Where the files lie does not count.
    """
    found = sha256(data.fingerprint.encode())
    paths = [name for name in data.table if name == "path" or str(name).endswith(MASK_SUFFIX)]
    found.update(data.table.drop(columns=paths).to_csv(index=False).encode("utf-8", "surrogateescape"))
    for kind in (kind for kind in kinds if kind in data.mask_kinds):
        found.update(kind.encode())
        for mask in data.masks(kind):
            found.update(mask.tobytes())
    return found.hexdigest()[:16]


@dataclass
class Results:
    """A folder for the results of one model, whose files say what they were made from.

    weights: a checksum of the model. replace: whether a file that was made from something else is made again in its
    place; without it that is refused. written: the files that were made since.
    """

    folder: Path
    weights: str
    replace: bool = True
    written: tuple[str, ...] = ()

    def key(self, name: str, **parts: object) -> str:
        """Return the hash that a current file of that name has."""
        return hash_of(file=name, version=ALGORITHM_VERSION[name], weights=self.weights, **parts)

    def is_current(self, name: str, **parts: object) -> bool:
        """Tell whether a file is there, whole, and made from exactly this."""
        return read_hash(self.folder / name) == self.key(name, **parts)

    def table(self, name: str, make: Callable[[], Iterable[pd.DataFrame]], **parts: object) -> bool:
        """Write a table, a batch at a time, unless it is current; True if it was made now."""
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
    """Return the hash that a table, panels or metrics.json carry; "" if they are missing, damaged or carry none."""
    if path.suffix == ".parquet":
        return atomic.read_provenance(path)
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return str(arrays[KEY])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return ""
    document = schemas.read_if_whole(RunDocument, path)
    return "" if document is None else document.provenance
