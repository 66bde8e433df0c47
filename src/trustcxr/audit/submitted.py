"""Adversarial images that somebody hands in: checked, judged beside our own attack, the worse of the two counted.

A safetensors file: under each image's sample id (of a model of findings also `id#finding`) a float image (1, H, W) in
[0, 1] at the model's size, and in its metadata `epsilon`, the L-infinity radius, and `by`, who made them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from trustcxr import statistics
from trustcxr.data.loader import to_pixels
from trustcxr.errors import UserError
from trustcxr.evaluation.stochastic import predict_logits
from trustcxr.models.preserve_state import preserve_state
from trustcxr.recipes.protocol import ExamRecipe
from trustcxr.registry import WORST_CASE
from trustcxr.storage import atomic
from trustcxr.storage.prediction_table import RIGHT_SHARE
from trustcxr.storage.schemas import Share, Submitted

if TYPE_CHECKING:
    import pandas as pd

    from trustcxr.data.dataset import Dataset

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Images:
    """Images by sample id, their radius, and who made them."""

    path: Path
    by: str
    epsilon: float
    images: dict[str, torch.Tensor]


def read_submitted(path: Path, dataset: "Dataset", findings: Sequence[str] = ()) -> Images:
    """The file's images, within their epsilon of the very images and in [0, 1]; UserError, saying which is not.

    `findings`: of a model of findings their names, of which one may stand behind an image's id.
    """
    images, about = _opened(path)
    try:
        epsilon, by = float(about["epsilon"]), about["by"].strip()
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
        own, _, finding = key.rpartition("#")
        row = rows.get(key, rows.get(own))
        if key not in rows and row is not None and finding not in findings:
            listed = f"one of its findings, {', '.join(findings)}" if findings else f"nothing (write {own})"
            raise UserError(f"{path}: {key}: behind an image's id may stand {listed}")
        if row is None:
            raise UserError(f"{path}: {key} is none of these images; ids are such as {dataset.sample_ids[0]}")
        radiograph = to_pixels(torch.from_numpy(dataset.batch([row])))[0]
        if image.shape != radiograph.shape or not image.is_floating_point():
            kind = f"{image.dtype} {tuple(image.shape)}"
            raise UserError(f"{path}: {key} is {kind}, but the image is a float image {tuple(radiograph.shape)}")
        if not (bool(image.isfinite().all()) and float(image.min()) >= 0 and float(image.max()) <= 1):
            raise UserError(f"{path}: {key} leaves [0, 1]")
        if (away := float((image.float() - radiograph).abs().max())) > epsilon + _ROUNDING:
            raise UserError(f"{path}: {key} lies {away:.4g} from its image, beyond the epsilon of {epsilon:g}")
    return Images(path, by, epsilon, {key: image.float() for key, image in images.items()})


def _opened(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as problem:
        raise UserError(f"{path}: no safetensors file of adversarial images ({problem})") from None


def worst_with_submitted(
    table: "pd.DataFrame", given: Images, model: nn.Module, device: torch.device
) -> "tuple[pd.DataFrame, Submitted | None]":
    """Predictions whose worst-case rows are those of the given images where these mislead the model and ours do not.

    `broken_by` says by whom. They count at every radius of worst-case that is not below theirs. Where none of the
    images is of these rows, the predictions as they were, and None.
    """
    worst = table[(table["attack"] == WORST_CASE) & (table["epsilon"] >= given.epsilon - 1e-9)]
    # Of an image that both its finding and the image itself are handed in for, the finding's counts.
    keys = [name if name in given.images else _image(name) for name in worst["sample_id"]]
    known = np.array([key in given.images for key in keys])
    rows = worst[known]
    if not len(rows):
        return table, None
    logits, right_share = _judged(model, [given.images[k] for k in np.array(keys)[known]], rows, device)
    wrong = logits.argmax(1) != rows["label"].to_numpy()
    ours = np.stack(rows["logits"].tolist()).argmax(1) != rows["label"].to_numpy()
    alone = wrong & ~ours
    table = table.assign(broken_by=table["broken_by"].fillna(""), logits=table["logits"].copy())
    for place in np.flatnonzero(alone):
        index = rows.index[int(place)]
        table.at[index, "logits"], table.at[index, "broken_by"] = logits[place], given.by
        if right_share is not None:
            table.at[index, RIGHT_SHARE] = right_share[place]
    first = rows["epsilon"].to_numpy() == rows["epsilon"].min()
    right = ~wrong[first]
    bootstrap = statistics.Bootstrap.over(rows["group"].to_numpy()[first])
    shares = bootstrap.means(right)
    low, high = statistics.share_interval(bootstrap, shares)
    found = Submitted(
        by=given.by,
        sha256=atomic.checksum(given.path),
        epsilon=given.epsilon,
        n=int(first.sum()),
        accuracy=Share(value=shares[0], ci=(low, high)),
        found_alone=int(alone[first].sum()),
        missed=int((ours & ~wrong)[first].sum()),
    )
    return table, found


def check_radius(given: Images, exam: ExamRecipe) -> None:
    """UserError unless the examination tries worst-case at the images' radius or a larger one."""
    radii = sorted({e for attack in exam.attacks if attack.name == WORST_CASE for e in attack.epsilons})
    if not radii or given.epsilon > radii[-1] + 1e-9:
        listed = ", ".join(f"{radius:g}" for radius in radii) or "no epsilon"
        raise UserError(f"{given.path}: images for epsilon {given.epsilon:g}, but worst-case is tried at {listed}")


def _image(name: Any) -> str:
    return str(name).rpartition("#")[0] or str(name)


def _judged(
    model: nn.Module, images: list[torch.Tensor], rows: "pd.DataFrame", device: torch.device
) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits (N, C) of images as worst-case is judged, and of a model at random the share of draws that are right."""
    logits, shares = list[np.ndarray](), list[np.ndarray]()
    for start in range(0, len(images), 64):
        batch = torch.stack(images[start : start + 64]).to(device)
        labels = torch.tensor(rows["label"].to_list()[start : start + 64], device=device)
        with torch.no_grad(), preserve_state(model):
            torch.manual_seed(start)  # of a model that answers at random the same draws each time
            answer, share = predict_logits(model, batch, labels, at_worst=True)
        logits.append(answer.cpu().numpy())
        shares += [] if share is None else [share]
    return np.concatenate(logits), np.concatenate(shares) if shares else None
