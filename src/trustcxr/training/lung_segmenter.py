"""Train the lung gate: the segmenter learns the lung masks, under attack if the defence attacks."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trustcxr.attacks.base import radii, uniform_start
from trustcxr.console import Progress, log
from trustcxr.data.loader import augment, to_pixels
from trustcxr.models.classifier import LungGate
from trustcxr.recipes.run_recipe import RunRecipe

EPOCHS, BATCH_SIZE, LEARNING_RATE = 16, 32, 2e-3


def fit(gate: LungGate, images: np.ndarray, lungs: np.ndarray, recipe: RunRecipe) -> float:
    """Train the gate on images (N, 1, H, W) uint8 and masks (N, H, W) of 0 and 1; return its Dice of the last epoch.

    Images with an empty mask are left out. If the recipe's defence attacks, so does this: a gradient step from a random
    start within the same epsilon.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gate.to(device)
    rows = np.flatnonzero(np.asarray(lungs).reshape(len(lungs), -1).any(1))
    epsilon = recipe.defence.epsilon if recipe.defence.attacks else 0.0
    generator = torch.Generator().manual_seed(recipe.seed)
    optimiser = torch.optim.Adam(gate.parameters(), lr=LEARNING_RATE)
    batches = max(1, len(rows) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=EPOCHS * batches)
    changes, score = recipe.training.augment.model_dump(), 0.0
    with Progress(f"training the lung gate of {recipe.name}", EPOCHS * batches) as bar:
        for _ in range(EPOCHS):
            order, score = rows[torch.randperm(len(rows), generator=generator).numpy()], 0.0
            for start in range(batches):
                some = np.sort(order[start * BATCH_SIZE : (start + 1) * BATCH_SIZE])
                pixels = to_pixels(torch.from_numpy(images[some]).to(device))
                inside = torch.from_numpy(np.asarray(lungs[some]))[:, None].to(pixels)
                both = augment(torch.cat([pixels, inside], 1), generator, **changes)
                pixels, inside = both[:, :1], (both[:, 1:] > 0.5).float()
                logits = gate.logits(_perturbed(gate, pixels, inside, epsilon, generator))
                loss = F.binary_cross_entropy_with_logits(logits, inside)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                score += float(dice(logits.detach() > 0, inside > 0.5).mean()) / batches
                bar.advance(1)
    gate.cpu()
    under = f" under a step of {epsilon:g}" if epsilon else ""
    log(f"lung gate of {recipe.name}: Dice {score:.3f} with the masks of training{under}")
    return score


def dice(masks: Tensor, wanted: Tensor) -> Tensor:
    """Return the Dice coefficient (B,) of masks (B, 1, H, W), bool; 1 if both are empty."""
    both, sizes = (masks & wanted).flatten(1).sum(1), masks.flatten(1).sum(1) + wanted.flatten(1).sum(1)
    return torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0)


def _perturbed(gate: LungGate, pixels: Tensor, inside: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    if not epsilon:
        return pixels
    leaf = uniform_start(pixels, radii(epsilon, pixels), generator).requires_grad_(True)
    loss = F.binary_cross_entropy_with_logits(gate.logits(leaf), inside)
    (gradient,) = torch.autograd.grad(loss, leaf)
    moved = leaf.detach() + 1.25 * epsilon * gradient.sign()
    return torch.maximum(torch.minimum(moved, pixels + epsilon), pixels - epsilon).clamp(0, 1)
