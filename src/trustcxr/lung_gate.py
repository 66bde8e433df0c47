"""A lung segmenter inside the model: what it takes for background, the network behind it never sees.

Cutting the lungs out before classification is common (COVID-QU-Ex itself was made for it: Tahir et al. 2021). Here the
segmenter is a part of the model, so that an attack meets it, saliency passes through it, and no mask is needed once it
is trained.
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.console import Progress, say
from trustcxr.data.batches import augment, to_pixels
from trustcxr.recipes.run import RunRecipe

# What background becomes: mid-grey. An attack that moves the edge of the lungs by a fraction of a pixel changes what is
# seen there by the step from film to background, which to black would be many times its epsilon.
LEVEL = 0.5
WIDTHS = (16, 32, 64, 96)  # of the levels, each half the side of the one before; the first is half the image's
EPOCHS, BATCH_SIZE, LEARNING_RATE = 16, 32, 2e-3


class LungGate(nn.Module):
    """A small U-Net (Ronneberger et al. 2015) that fades an image to mid-grey outside its own estimate of the lungs.

    `forward`: images (B, 1, H, W) in [0, 1] -> their difference from `level`, near 0 outside the lungs. GroupNorm has
    no batch statistics, so that it does the same whether the model behind it is in training or not.
    """

    level: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.tensor(LEVEL))  # with the weights: they are trained for it
        self.down = nn.ModuleList(_block(a, b, stride=2) for a, b in pairwise((1, *WIDTHS)))
        self.up = nn.ModuleList(_block(a + b, a, stride=1) for a, b in reversed(list(pairwise(WIDTHS))))
        self.out = nn.Conv2d(WIDTHS[0], 1, 3, padding=1)

    def logits(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [0, 1] -> logits (B, 1, H, W) of being inside the lungs."""
        x, levels = images - self.level, []
        for block in self.down:
            x = block(x)
            levels.append(x)
        for block, level in zip(self.up, levels[-2::-1], strict=True):
            x = block(torch.cat([_resized(x, level), level], 1))
        return _resized(self.out(x), images)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [0, 1] -> difference from `level`, near 0 in what is taken for background."""
        return (images - self.level) * self.logits(images).sigmoid()


def fit(gate: LungGate, images: np.ndarray, lungs: np.ndarray, recipe: RunRecipe) -> float:
    """Train the gate on images (N, 1, H, W) uint8 and lung masks (N, H, W) of 0 and 1; its Dice in the last epoch.

    Images with an empty mask are left out. Where the recipe's defence attacks, the gate is trained on images that a
    gradient step from a random start has moved within the same epsilon: a lung that an attack can close is no gate.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gate.to(device)
    rows = np.flatnonzero(np.asarray(lungs).reshape(len(lungs), -1).any(1))
    epsilon = recipe.defence.epsilon if recipe.defence.attacks else 0.0
    generator = torch.Generator().manual_seed(recipe.seed)
    optimiser = torch.optim.Adam(gate.parameters(), lr=LEARNING_RATE)
    batches = max(1, len(rows) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=EPOCHS * batches)
    changes = recipe.training.augment.model_dump()
    found = 0.0
    with Progress(f"training the lung gate of {recipe.name}", EPOCHS * batches) as bar:
        for _ in range(EPOCHS):
            order, found = rows[torch.randperm(len(rows), generator=generator).numpy()], 0.0
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
                found += float(dice(logits.detach() > 0, inside > 0.5).mean()) / batches
                bar.advance(1)
    gate.cpu()
    under = f" under a step of {epsilon:g}" if epsilon else ""
    say(f"lung gate of {recipe.name}: Dice {found:.3f} with the lung masks of training{under}")
    return found


def dice(found: Tensor, wanted: Tensor) -> Tensor:
    """Dice coefficient (B,) of masks (B, 1, H, W), bool; 1 where both are empty."""
    both, sizes = (found & wanted).flatten(1).sum(1), found.flatten(1).sum(1) + wanted.flatten(1).sum(1)
    return torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0)


def _perturbed(gate: LungGate, pixels: Tensor, inside: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    if not epsilon:
        return pixels
    noise = epsilon * (2 * torch.rand(pixels.shape, generator=generator).to(pixels) - 1)
    leaf = (pixels + noise).clamp(0, 1).requires_grad_(True)
    loss = F.binary_cross_entropy_with_logits(gate.logits(leaf), inside)
    (gradient,) = torch.autograd.grad(loss, leaf)
    moved = leaf.detach() + 1.25 * epsilon * gradient.sign()
    return torch.maximum(torch.minimum(moved, pixels + epsilon), pixels - epsilon).clamp(0, 1)


def _block(inputs: int, outputs: int, *, stride: int) -> nn.Module:
    norms = [nn.GroupNorm(outputs // 8, outputs) for _ in range(2)]
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        norms[0],
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        norms[1],
        nn.SiLU(),
    )


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
