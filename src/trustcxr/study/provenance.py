"""What a result came from: the data as they were read, the machine, the processor."""

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from trustcxr.data import provenance
from trustcxr.results.documents import DataDescription, Hardware

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
        skipped=len(first.skipped),
        size=first.size,
        infection_masks=masks,
        fingerprint=provenance.whole(first),
        fingerprints={split: first.fingerprints()[split] for split in counts},
        groups={role: len(pd.unique(np.asarray(part.groups))) for role, part in datasets.items()},
    )


def hardware() -> Hardware:
    """What the study ran on."""
    import torch

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return Hardware(processor=processor(), cores=os.cpu_count(), accelerator=accelerator, system=platform.system())


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
