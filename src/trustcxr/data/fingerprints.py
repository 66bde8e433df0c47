"""Describe the images of a training in run.yaml, and compare them with others."""

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustcxr.errors import UserError
from trustcxr.storage import atomic, layout

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset, JoinedDataset


def describe_training_data(train: "Dataset | JoinedDataset") -> dict[str, Any]:
    """Return the entry `data` of run.yaml; `fingerprints` are of every split."""
    described: dict[str, Any] = {"root_name": train.root.name, "split": train.split, "images": len(train)}
    if shares := getattr(train, "shares", ()):
        described["shares"] = list(shares)
    return described | {"fingerprint": train.fingerprint, "fingerprints": train.fingerprints()}


def check_same_images(run: Path, train: "Dataset | JoinedDataset") -> None:
    """Raise UserError if the folder has a training on other images or classes."""
    path = run / layout.RUN_FILE
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


def hash_training_data(images: "Dataset") -> str:
    """Return one fingerprint of all splits of a data set."""
    lines = "\n".join(f"{split}\t{value}" for split, value in sorted(images.fingerprints().items()))
    return sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:16]
