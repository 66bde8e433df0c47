"""Try other counterfactual images: attack them outside the edit alone, or fill them with the lung of healthy images.

python -m benchmarks.lesion_training [--outside 1 --start 0.3] [--donors mirror] -- OPTIONS

OPTIONS are those of `trustcxr train`, with training.counterfactuals. A trial, no part of the package.

- `--outside`: the radius on edited images, as a share of the defence's, in pixels that the edit left as they were. It
  grows from 0 at `--start` of the training to its value at the end. Edited pixels are not attacked, so that no attack
  can put the lesion back. Use it with training.counterfactuals.epsilon=0.
- `--donors`: fills of the recipe that are replaced. Their region gets the lung of a healthy image of the batch, at the
  same position and with the same mean grey. So a removed lesion leaves the texture of lung.

run.yaml does not record these options: give the folder a name that does.
"""

import argparse
import sys
from typing import Any

import torch
from torch import Tensor

from trustcxr.cli import main as run_command
from trustcxr.data import lesion_edits
from trustcxr.data.lesion_edits import EditInputs
from trustcxr.defences.counterfactual_loss import LesionBatch
from trustcxr.training.step import TrainingStep

Edit = Any  # TrainingStep._counterfactual: (step, batch, healthy) -> batch


def attack_outside(share: float, start: float) -> None:
    """Attack edited images outside the edit in every training step of this process."""
    edit: Edit = TrainingStep._counterfactual
    changed: dict[str, Tensor] = {}

    def remember(self: TrainingStep, lesion_batch: LesionBatch, healthy: int) -> LesionBatch:
        edited = edit(self, lesion_batch, healthy)
        changed["pixels"] = edited.pixels != lesion_batch.pixels
        return edited

    def limit(self: TrainingStep, step: int, edited: Tensor | None = None) -> float | Tensor:
        radius = self.epsilon(step)
        if edited is None:
            return radius
        grown = min(1.0, max(0.0, (step / self.total_steps - start) / (1 - start)))
        shares = torch.where(edited, share * grown, 1.0).view(-1, 1, 1, 1)
        return radius * torch.where(changed["pixels"], 0.0, shares)

    TrainingStep._counterfactual = remember  # type: ignore[method-assign]
    TrainingStep.radii = limit  # type: ignore[method-assign]


def fill_from_donors(fills: list[str]) -> None:
    """Replace fills by the lung of the batch's healthy images in every training step of this process."""
    edit: Edit = TrainingStep._counterfactual
    healthy_images: dict[str, EditInputs] = {}

    def remember(self: TrainingStep, lesion_batch: LesionBatch, healthy: int) -> LesionBatch:
        rows = (lesion_batch.labels == healthy) & lesion_batch.with_lungs() & ~lesion_batch.ill()
        healthy_images["batch"] = lesion_batch.images(rows.nonzero()[:, 0])
        return edit(self, lesion_batch, healthy)

    def fill(images: Tensor, region: Tensor, lung: Tensor, lesion: Tensor) -> Tensor:
        values = lesion_edits.fill_from_surroundings(images, region, lung, lesion)
        count = len(healthy_images["batch"].images)
        if not count or not len(images):
            return values
        donors = lesion_edits.align_donors(healthy_images["batch"][(torch.arange(len(images)) % count).tolist()], lung)
        here = lesion_edits.compute_healthy_grey(images, lung, lesion)
        there = lesion_edits.compute_healthy_grey(donors.images, donors.lung, donors.lesion)
        return torch.where(donors.lung[:, None], (donors.images + here - there).clamp(0, 1), values)

    TrainingStep._counterfactual = remember  # type: ignore[method-assign]
    lesion_edits.TRAINING_FILLS.update(dict.fromkeys(fills, fill))


def main() -> None:
    """Train with the edits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outside", type=float, default=0.0)
    parser.add_argument("--start", type=float, default=0.3)
    parser.add_argument("--donors", nargs="+", default=[], choices=list(lesion_edits.TRAINING_FILLS))
    parser.add_argument("train", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.outside:
        attack_outside(options.outside, options.start)
    if options.donors:
        fill_from_donors(options.donors)
    sys.argv = ["trustcxr", "train", *(word for word in options.train if word != "--")]
    run_command()


if __name__ == "__main__":
    main()
