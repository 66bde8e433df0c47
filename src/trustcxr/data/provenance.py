"""Which films a result is of: what run.yaml keeps of them, and whether others are meant now."""

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from trustcxr.errors import UserError
from trustcxr.results import files, folders

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset, Joined


def of(train: "Dataset | Joined") -> dict[str, Any]:
    """What run.yaml says of the data: folder's name, split, images, the fingerprint of these and of every split."""
    return {
        "root_name": train.root.name,
        "split": train.split,
        "images": len(train),
        "fingerprint": train.fingerprint,
        "fingerprints": train.fingerprints(),
    }


def films(train: "Dataset | Joined") -> pd.DataFrame:
    """The table of films.parquet: sample_id and the checksum of the pixels of every film that is trained on."""
    return pd.DataFrame({"sample_id": train.sample_ids, "film": train.film_sums})


def refuse_other_films(run: Path, train: "Dataset | Joined") -> None:
    """UserError where the folder holds a training on other films or classes; 0.1 knew these by name and number."""
    path = run / folders.RUN_FILE
    if not path.is_file():
        return
    before = files.read_yaml(path)
    data = before.get("data") or {}
    now = of(train)
    keys = ["fingerprint"] if "fingerprint" in data else [key for key in ("root_name", "images") if key in data]
    if any(data[key] != now[key] for key in keys) or before.get("classes") not in (None, list(train.classes)):
        raise UserError(
            f"{run}: was trained on other films than those of {train.root} ({data.get('images', '?')} then, "
            f"{now['images']} now, of other content or classes); choose another --out"
        )


def whole(films: "Dataset") -> str:
    """One fingerprint for every split of a data set together."""
    lines = "\n".join(f"{split}\t{found}" for split, found in sorted(films.fingerprints().items()))
    return sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:16]
