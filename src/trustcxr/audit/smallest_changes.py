"""Find the smallest changes that flip a model's answers on a few images, to show them."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from trustcxr.attacks.minimal_perturbation import nearest
from trustcxr.audit.audit_data import Audit, balanced_rows, load_pixels
from trustcxr.audit.entry_checks import EntryReport
from trustcxr.audit.subject import is_multilabel
from trustcxr.models.preserve_state import preserve_state
from trustcxr.storage import layout
from trustcxr.storage.atomic import write_arrays
from trustcxr.storage.prediction_table import CLEAN, logits_of
from trustcxr.storage.schemas import SmallestChange

if TYPE_CHECKING:
    import pandas as pd

COUNT = 6  # images, the classes in turn
HIGHEST = 0.1  # largest epsilon that is tried: 25 of 255 grey levels, which everybody sees
_TOLERANCE = 2e-4  # a twentieth of a grey level
_STEPS = 20


def find_smallest_changes(audit: Audit, report: EntryReport, table: "pd.DataFrame", out: Path) -> list[SmallestChange]:
    """Find the smallest change that flips each of a few right answers, and write the images into `out`.

    PGD searches it, so a smaller one may exist. `epsilon` is None if nothing up to HIGHEST flips the answer. Models of
    several findings and models without gradients have no such images.
    """
    path = out / layout.SMALLEST_CHANGES_FILE
    path.unlink(missing_ok=True)
    if report.model is None or report.traits is None or not report.gradients or is_multilabel(audit.subject):
        return []
    clean = table[(table["attack"] == CLEAN).to_numpy()]
    right = logits_of(clean).argmax(1) == clean["label"].to_numpy()
    row_of = {name: row for row, name in enumerate(audit.dataset.sample_ids)}
    rows = np.array([row_of[name] for name in clean["sample_id"].to_numpy()[right]], dtype=int)
    if not len(rows):
        return []
    rows = rows[balanced_rows(np.asarray(audit.dataset.labels)[rows], COUNT)]
    images = load_pixels(audit.dataset, rows, audit.subject.device)
    labels = images.new_tensor(np.asarray(audit.dataset.labels)[rows]).long()
    view = report.traits.variants(report.model)[-1]
    sizes, changed = nearest(view, images, labels, highest=HIGHEST, tolerance=_TOLERANCE, steps=_STEPS)
    with preserve_state(view), torch.no_grad():
        answers = view(changed).argmax(1)
    names = [str(audit.dataset.sample_ids[row]) for row in rows]
    arrays = {"sample_id": np.array(names), "image": images[:, 0].cpu().numpy(), "changed": changed[:, 0].cpu().numpy()}
    write_arrays(path, arrays)
    return [
        SmallestChange(
            sample_id=name,
            label=audit.subject.classes[int(label)],
            answer=audit.subject.classes[int(answer)],
            epsilon=float(size),
        )
        for name, label, answer, size in zip(names, labels, answers, sizes, strict=True)
    ]
