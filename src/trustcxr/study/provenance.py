"""What a result came from: the data as they were read."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from trustcxr.data import provenance
from trustcxr.results.documents import DataDescription

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset


def describe_data(root: Path, datasets: dict[str, "Dataset"]) -> DataDescription:
    """What was trained and tested on, counted."""
    counts, masks = {}, {}
    for part in datasets.values():
        (split,) = set(np.asarray(part.splits)) or {""}
        labels = np.bincount(part.labels, minlength=len(part.classes))
        counts[split] = dict(zip(part.classes, labels.tolist(), strict=True))
        held = part.masks("infection")[np.flatnonzero(part.has_mask("infection"))]
        masks[split] = int(sum(bool(mask.any()) for mask in held))
    first = datasets["train"]
    return DataDescription(
        root_name=root.resolve().name,
        layout=getattr(first, "layout", ""),
        notes=list(first.notes),
        counts=counts,
        skipped=sum(len(part.skipped) for part in datasets.values()),
        size=first.size,
        infection_masks=masks,
        fingerprint=provenance.whole(first),
        fingerprints={split: first.fingerprints()[split] for split in counts},
        groups={role: len(pd.unique(np.asarray(part.groups))) for role, part in datasets.items()},
    )
