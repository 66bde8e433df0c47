"""Draw the smallest changes that flip an audited model's answers: image, changed image, and the change magnified."""

from dataclasses import dataclass
from pathlib import Path

from trustcxr.registry import GREY_LEVELS
from trustcxr.report import formatting
from trustcxr.report.figures.heatmaps import grey_address
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import AuditDocument


@dataclass(frozen=True)
class Change:
    """Three pictures as data: addresses, what they show, and the lines under them."""

    pictures: tuple[tuple[str, str], ...]  # address and description
    size: str
    answers: str


def draw_smallest_changes(document: AuditDocument, folder: Path | None) -> list[Change]:
    """Return the smallest changes with their pictures; none if the audit's folder has no pictures of them."""
    import numpy as np

    path = None if folder is None else folder / layout.SMALLEST_CHANGES_FILE
    if path is None or not atomic.is_readable(path):
        return []
    with np.load(path, allow_pickle=False) as arrays:
        pairs = zip(arrays["image"], arrays["changed"], strict=True)
        pictures = dict(zip(arrays["sample_id"].tolist(), pairs, strict=True))
    changes = []
    for row in document.smallest_changes:
        if row.sample_id not in pictures:
            continue
        image, changed = pictures[row.sample_id]
        if row.epsilon:
            factor = 0.5 / row.epsilon
            size = f"{GREY_LEVELS * row.epsilon:.2g} of {GREY_LEVELS} grey levels"
            answers = f"{row.label} → {row.answer}"
        else:
            factor, size, answers = 1.0, "No change found", f"{row.label} stays"
        shown = (image, changed, 0.5 + factor * (changed - image))
        texts = (
            f"image of {row.label}",
            f"the image changed: {row.answer}",
            f"the change, {factor:.0f} times magnified",
        )
        addresses = [grey_address(np.rint(np.clip(one, 0, 1) * 255).astype(np.uint8)) for one in shown]
        changes.append(Change(tuple(zip(addresses, map(formatting.capital, texts), strict=True)), size, answers))
    return changes
