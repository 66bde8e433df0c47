"""Generate views of images without the lungs, or with little else: lungs alone, outline, border, another background."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from trustcxr.data.dataset import Dataset, has_filled_mask
from trustcxr.data.loader import to_pixels
from trustcxr.data.lung_masks import soften
from trustcxr.models.classifier import LEVEL
from trustcxr.registry import VIEWS
from trustcxr.storage.prediction_table import Condition

SILHOUETTE = (0.25, 0.65)  # grey of the lungs and of all else where only their shape is shown, as in an image
BORDER = 24 / 256  # width of the frame that is left where the border alone is shown, as a share of the side


def generate_views(
    dataset: Dataset, rows: np.ndarray, images: Tensor
) -> Iterator[tuple[Condition, np.ndarray, Tensor]]:
    """Yield VIEWS of the images with a non-empty lung mask: condition, rows, pixels."""
    has = has_filled_mask(dataset, "lung", rows)  # nothing would be hidden by an empty mask
    if not has.any():
        return
    masked, pixels = rows[has], images[torch.from_numpy(has).to(images.device)]
    lungs = torch.from_numpy(np.array(dataset.masks("lung")[masked])).to(pixels)[:, None]
    border = torch.ones_like(pixels)
    width = round(BORDER * pixels.shape[-1])
    border[..., width:-width, width:-width] = 0
    shape = torch.where(lungs > 0, *SILHOUETTE)
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True).expand_as(pixels)
    fills = torch.zeros_like(pixels), torch.full_like(pixels, 0.5), mean
    hidden = [torch.lerp(pixels, fill, mask) for mask in (lungs, boxes(lungs)) for fill in fills]
    shown = [*hidden, pixels * lungs, torch.lerp(torch.full_like(pixels, LEVEL), pixels, lungs), shape, pixels * border]
    if len(np.unique(dataset.labels)) > 1:
        behind = to_pixels(torch.from_numpy(dataset.batch(_of_another_class(np.asarray(dataset.labels))[masked])))
        visible = soften(lungs)
        shown.append(visible * pixels + (1 - visible) * behind.to(pixels))
    for name, view in zip(VIEWS, shown, strict=False):
        yield (name, 0.0, 0, 0), masked, view


def boxes(masks: Tensor) -> Tensor:
    """Return the smallest upright box around each mask (B, 1, H, W) of 0 and 1, in the same shape."""
    inside = torch.ones_like(masks)
    for across, along in ((2, 3), (3, 2)):
        line = masks.amax(dim=across, keepdim=True)
        begun, ended = line.cummax(dim=along).values, line.flip(along).cummax(dim=along).values.flip(along)
        inside = inside * begun * ended
    return inside


def _of_another_class(labels: np.ndarray) -> np.ndarray:
    """Return for each image the index of one of another class, (N,), drawn evenly from a fixed seed."""
    drawn, indices = np.random.default_rng(0).random(len(labels)), np.arange(len(labels))
    chosen = np.zeros(len(labels), int)
    for label in np.unique(labels):
        same, others = labels == label, indices[labels != label]
        chosen[same] = others[(drawn[same] * len(others)).astype(int)]
    return chosen
