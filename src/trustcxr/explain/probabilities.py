"""Compute the class of images and its probabilities, calibrated if the run has a temperature."""

import numpy as np
import torch
from torch import Tensor

from trustcxr.evaluation.trained_run import Run
from trustcxr.statistics import softmax


def predict_labels(run: Run, images: Tensor) -> list[tuple[int, np.ndarray]]:
    """Return the class of each image (B, 1, H, W) and its probabilities (C,), scaled by the run's temperature."""
    with torch.inference_mode():
        logits = run.model(images).float().cpu().numpy()
    probabilities = softmax(logits / (temperature(run) or 1.0))
    return [(int(row.argmax()), shares) for row, shares in zip(logits, probabilities, strict=True)]


def temperature(run: Run) -> float | None:
    """Return the run's temperature (Guo et al. 2017); None if it has none."""
    fitted = run.metrics.calibration if run.metrics else None
    value = fitted.temperature if fitted else None
    return value if value is not None and value > 0 else None
