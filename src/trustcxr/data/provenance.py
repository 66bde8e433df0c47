"""Which films a result is of: what run.yaml keeps of them, and whether others are meant now."""

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pandas as pd

from trustcxr.errors import UserError
from trustcxr.results import files, folders

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset, Joined


class Films(TypedDict):
    """What run.yaml says of the data: folder's name, split, images, the fingerprint of these and of every split."""

    root_name: str
    split: str | None
    images: int
    fingerprint: str
    fingerprints: dict[str, str]


def of(train: "Dataset | Joined") -> Films:
    """What is kept of the films that are trained on."""
    return Films(
        root_name=train.root.name,
        split=train.split,
        images=len(train),
        fingerprint=train.fingerprint,
        fingerprints=train.fingerprints(),
    )


def films(train: "Dataset | Joined") -> pd.DataFrame:
    """The table of films.parquet: sample_id and the checksum of the pixels of every film that is trained on."""
    return pd.DataFrame({"sample_id": train.sample_ids, "film": train.film_sums})


def refuse_other_films(run: Path, train: "Dataset | Joined") -> None:
    """UserError where the folder holds a training on other films or classes."""
    path = run / folders.RUN_FILE
    if not path.is_file():
        return
    before = files.read_yaml(path)
    data = files.part(before, "data")
    now = of(train)
    if data.get("fingerprint") != now["fingerprint"] or before.get("classes") != list(train.classes):
        raise UserError(
            f"{run}: was trained on other films than those of {train.where} ({data.get('images', '?')} then, "
            f"{now['images']} now, of other content or classes); choose another --out"
        )


def whole(films: "Dataset") -> str:
    """One fingerprint for every split of a data set together."""
    lines = "\n".join(f"{split}\t{found}" for split, found in sorted(films.fingerprints().items()))
    return sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:16]
