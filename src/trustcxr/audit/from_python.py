"""Audit a model from Python: `tx.audit.run`."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from trustcxr.audit.run_audit import audit
from trustcxr.audit.subject import Subject, load_subject
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import Run
from trustcxr.recipes.exams import NEWEST
from trustcxr.storage.schemas import AuditDocument


def run(
    model: str | Path | nn.Module | Run,
    data: str | Path | Dataset,
    *,
    out: str | Path | None = None,
    protocol: str = NEWEST,
    attacks: Sequence[str] = (),
    epsilons: Sequence[float] = (),
    **options: Any,
) -> AuditDocument:
    """Audit a model on a data set and return the document of audit.json; a notebook shows it as a table.

    Args:
        model: a trained model's name, a run or its folder, a model file (.yaml), or a torch module from images
            (B, 1, H, W) in [0, 1] to logits. A module needs `classes` and `size`, as attributes or from a Dataset.
        data: folder of images, a list (CSV), or a Dataset of the model's size and classes.
        out: folder for audit.json, tables and pictures, where an interrupted audit resumes. None keeps nothing.
        protocol: exam-1, or exam-quick-1 for minutes.
        attacks: in place of the protocol's; then the audit compares with no other.
        epsilons: in place of the protocol's.
        options: split, labels, listing, trust_code, adversarial, criteria and pictures, as of `run_audit.audit`.

    Raises UserError if the model or the data cannot be opened, or `out` holds other results.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import trustcxr as tx
        >>> data = tx.data.phantom.write(tempfile.mkdtemp() + "/images", {"Test": 8}, size=32)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32, 3))
        >>> images = tx.load_dataset(data, split="Test", size=32)
        >>> audit = tx.audit.run(model, images, attacks=["fgsm"], epsilons=[0.02])
        >>> print(*audit.table().condition.head(2))
        clean fgsm
    """
    subject = _open(model, data) if isinstance(model, nn.Module | Run) else model
    images = data if isinstance(data, Dataset) else Path(data)
    settings = {"protocol": protocol, "attacks": attacks, "epsilons": epsilons, **options}
    if out is not None:
        document = audit(subject, images, Path(out), **settings)
        document._folder = Path(out)
        return document
    with tempfile.TemporaryDirectory() as folder:
        return audit(subject, images, Path(folder), **settings)


def _open(model: nn.Module | Run, data: str | Path | Dataset) -> Subject:
    """Return a module as the subject of an audit; UserError if its classes or size are unknown."""
    if isinstance(model, Run):
        return model
    dataset = data if isinstance(data, Dataset) else None
    classes = getattr(model, "classes", None) or (dataset.classes if dataset else None)
    size = getattr(model, "size", None) or (dataset.size if dataset else None)
    if classes is None or size is None:
        raise UserError(
            f"{type(model).__name__}: its classes or image size are unknown. Set model.classes and model.size, or "
            "give a Dataset: tx.load_dataset(path, size=224)"
        )
    name = getattr(model, "name", None) or type(model).__name__
    return load_subject(model, classes=list(classes), size=int(size), name=str(name))
