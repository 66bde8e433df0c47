"""Which images a result is of: what run.yaml keeps of them, and whether others are meant now."""

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pandas as pd

from trustcxr.errors import UserError
from trustcxr.storage import atomic, layout

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset, JoinedDataset


class TrainingData(TypedDict):
    """What run.yaml says of the data: folder's name, split, images, the fingerprint of these and of every split."""

    root_name: str
    split: str | None
    images: int
    fingerprint: str
    fingerprints: dict[str, str]


def describe_training_data(train: "Dataset | JoinedDataset") -> TrainingData:
    """What is kept of the images that are trained on."""
    return TrainingData(
        root_name=train.root.name,
        split=train.split,
        images=len(train),
        fingerprint=train.fingerprint,
        fingerprints=train.fingerprints(),
    )


def list_training_images(train: "Dataset | JoinedDataset") -> pd.DataFrame:
    """The table of training_images.parquet:

    Sample_id and the checksum of the pixels of every image that is trained on.
    """
    return pd.DataFrame({"sample_id": train.sample_ids, "image": train.image_sums})


def check_same_images(run: Path, train: "Dataset | JoinedDataset") -> None:
    """UserError where the folder holds a training on other images or classes."""
    path = run / layout.RUN_FILE
    if not path.is_file():
        return
    before = atomic.read_yaml(path)
    data = atomic.section(before, "data")
    now = describe_training_data(train)
    if data.get("fingerprint") != now["fingerprint"] or before.get("classes") != list(train.classes):
        raise UserError(
            f"{run}: was trained on other images than those of {train.where} ({data.get('images', '?')} then, "
            f"{now['images']} now, of other content or classes); choose another --out"
        )


def hash_training_data(images: "Dataset") -> str:
    """One fingerprint for every split of a data set together."""
    lines = "\n".join(f"{split}\t{found}" for split, found in sorted(images.fingerprints().items()))
    return sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:16]
