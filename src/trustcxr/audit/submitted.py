"""Read submitted adversarial images, and count them in the worst case if they do more than our own attacks.

A safetensors file: a float image (1, H, W) in [0, 1] at the model's size under each sample id (for a model of findings
also `id#finding`). Its metadata has `epsilon`, the L-infinity radius, and `by`, the submitter.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from trustcxr import statistics
from trustcxr.data.dataset import Dataset
from trustcxr.data.loader import to_pixels
from trustcxr.errors import UserError
from trustcxr.evaluation.predictions import predict_logits
from trustcxr.models.preserve_state import preserve_state
from trustcxr.recipes.protocol import ExamRecipe
from trustcxr.registry import WORST_CASE
from trustcxr.storage import atomic
from trustcxr.storage.prediction_table import RIGHT_SHARE
from trustcxr.storage.schemas import Share, Submitted

_ROUNDING = 1e-6


@dataclass(frozen=True)
class SubmittedImages:
    """Adversarial images by sample id, their radius, and who submitted them."""

    path: Path
    by: str
    epsilon: float
    images: dict[str, torch.Tensor]


def read_submitted(path: Path, dataset: Dataset, findings: Sequence[str] = ()) -> SubmittedImages:
    """Read a file of adversarial images; UserError if one is not in [0, 1] and within its epsilon of its original.

    `findings`: the names that may follow an image's id, for a model of findings.
    """
    images, metadata = _read_file(path)
    try:
        epsilon, by = float(metadata["epsilon"]), metadata["by"].strip()
    except (KeyError, ValueError):
        raise UserError(f"{path}: its metadata must say epsilon (such as '0.02') and by, who made the images") from None
    if not by.isprintable():
        raise UserError(f"{path}: by: one line of letters that can be printed: it stands in reports")
    if not 0 < epsilon <= 1 or not by:
        raise UserError(f"{path}: epsilon {epsilon:g} by '{by}': a radius in (0, 1] and a name are needed")
    if not images:
        raise UserError(f"{path}: holds no image")
    rows = {str(name): row for row, name in enumerate(dataset.sample_ids)}
    for key, image in images.items():
        name, _, finding = key.rpartition("#")
        row = rows.get(key, rows.get(name))
        if key not in rows and row is not None and finding not in findings:
            listed = f"one of its findings, {', '.join(findings)}" if findings else f"nothing (write {name})"
            raise UserError(f"{path}: {key}: behind an image's id may stand {listed}")
        if row is None:
            raise UserError(f"{path}: {key} is none of these images; ids are such as {dataset.sample_ids[0]}")
        radiograph = to_pixels(torch.from_numpy(dataset.batch([row])))[0]
        if image.shape != radiograph.shape or not image.is_floating_point():
            kind = f"{image.dtype} {tuple(image.shape)}"
            raise UserError(f"{path}: {key} is {kind}, but the image is a float image {tuple(radiograph.shape)}")
        if not (bool(image.isfinite().all()) and float(image.min()) >= 0 and float(image.max()) <= 1):
            raise UserError(f"{path}: {key} leaves [0, 1]")
        if (distance := float((image.float() - radiograph).abs().max())) > epsilon + _ROUNDING:
            raise UserError(f"{path}: {key} lies {distance:.4g} from its image, beyond the epsilon of {epsilon:g}")
    return SubmittedImages(path, by, epsilon, {key: image.float() for key, image in images.items()})


def _read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as problem:
        raise UserError(f"{path}: no safetensors file of adversarial images ({problem})") from None


def worst_with_submitted(
    table: pd.DataFrame, submitted: SubmittedImages, model: nn.Module, device: torch.device
) -> tuple[pd.DataFrame, Submitted | None]:
    """Replace worst-case rows by submitted images that the model misclassifies if ours did not succeed.

    They count at every worst-case radius that is not below theirs, and `broken_by` has the submitter. Returns the table
    unchanged and None if no image belongs to these rows.
    """
    worst = table[(table["attack"] == WORST_CASE) & (table["epsilon"] >= submitted.epsilon - 1e-9)]
    # Images submitted for one finding take precedence over those for the image.
    keys = [name if name in submitted.images else _image_id(name) for name in worst["sample_id"]]
    rows = worst[np.array([key in submitted.images for key in keys])]
    if not len(rows):
        return table, None
    images = [submitted.images[key] for key in keys if key in submitted.images]
    logits, right_share = _predict(model, images, rows, device)
    wrong = logits.argmax(1) != rows["label"].to_numpy()
    ours = np.stack(rows["logits"].tolist()).argmax(1) != rows["label"].to_numpy()
    alone = wrong & ~ours
    table = table.assign(broken_by=table["broken_by"].fillna(""), logits=table["logits"].copy())
    for row in np.flatnonzero(alone):
        index = rows.index[int(row)]
        table.at[index, "logits"], table.at[index, "broken_by"] = logits[row], submitted.by
        if right_share is not None:
            table.at[index, RIGHT_SHARE] = right_share[row]
    first = rows["epsilon"].to_numpy() == rows["epsilon"].min()
    bootstrap = statistics.Bootstrap.over(rows["group"].to_numpy()[first])
    shares = bootstrap.means(~wrong[first])
    low, high = statistics.share_interval(bootstrap, shares)
    result = Submitted(
        by=submitted.by,
        sha256=atomic.checksum(submitted.path),
        epsilon=submitted.epsilon,
        n=int(first.sum()),
        accuracy=Share(value=shares[0], ci=(low, high)),
        found_alone=int(alone[first].sum()),
        missed=int((ours & ~wrong)[first].sum()),
    )
    return table, result


def check_radius(submitted: SubmittedImages, exam: ExamRecipe) -> None:
    """Raise UserError unless the protocol tries worst-case at the images' radius or a larger one."""
    radii = sorted({e for attack in exam.attacks if attack.name == WORST_CASE for e in attack.epsilons})
    if not radii or submitted.epsilon > radii[-1] + 1e-9:
        listed = ", ".join(f"{radius:g}" for radius in radii) or "no epsilon"
        raise UserError(f"{submitted.path}: images at epsilon {submitted.epsilon:g}; worst-case is tried at {listed}")


def _image_id(name: Any) -> str:
    return str(name).rpartition("#")[0] or str(name)


def _predict(
    model: nn.Module, images: list[torch.Tensor], rows: pd.DataFrame, device: torch.device
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return logits (N, C) as under worst-case, and for a random model the share of draws that are right (N,)."""
    logits, shares = list[np.ndarray](), list[np.ndarray]()
    for start in range(0, len(images), 64):
        batch = torch.stack(images[start : start + 64]).to(device)
        labels = torch.tensor(rows["label"].to_list()[start : start + 64], device=device)
        with torch.no_grad(), preserve_state(model):
            torch.manual_seed(start)  # the same draws each time
            output, share = predict_logits(model, batch, labels, at_worst=True)
        logits.append(output.cpu().numpy())
        shares += [] if share is None else [share]
    return np.concatenate(logits), np.concatenate(shares) if shares else None
