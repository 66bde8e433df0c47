"""Try adversarial weight perturbation: train a run with each loss at weights that are moved to raise it.

python -m benchmarks.weight_perturbation [--gamma 0.005] -- OPTIONS

OPTIONS are those of `trustcxr train`. A trial, no part of the package. Each step takes the gradient of the defence's
loss, moves every weight matrix by gamma of its norm along it, and trains with the loss there (AWP: Wu et al. 2020); the
attack is made anew there. The weights are moved back before the optimiser's step.
run.yaml does not record gamma: give the folder a name that does.
"""

import argparse
import sys
from typing import Any

import torch
from torch import Tensor, nn

from trustcxr.cli import main as run_command
from trustcxr.training.step import TrainingStep


def move(parameters: list[nn.Parameter], gradients: tuple[Tensor, ...], gamma: float) -> list[Tensor]:
    """Move parameters by gamma of their norm along the gradients, and return the moves."""
    moves = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        change = gamma * parameter.norm() / gradient.norm().clamp(min=1e-12) * gradient
        parameter.data.add_(change)
        moves.append(change)
    return moves


def perturb(gamma: float) -> None:
    """Perturb the weights in every training step of this process."""
    begin_usual = TrainingStep.__init__
    moved: list[tuple[nn.Parameter, Tensor]] = []

    def begin(self: TrainingStep, *arguments: Any, **keys: Any) -> None:
        begin_usual(self, *arguments, **keys)
        defence = self.defence

        def perturbed(model: nn.Module, pixels: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
            matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
            loss, _ = defence(model, pixels, labels, **options)
            with torch.no_grad():
                moves = move(matrices, torch.autograd.grad(loss, matrices), gamma)
            moved.extend(zip(matrices, moves, strict=True))
            return defence(model, pixels, labels, **options)

        self.defence = perturbed  # type: ignore[assignment]

    def restore(self: TrainingStep) -> None:
        for parameter, change in moved:
            parameter.data.sub_(change)
        moved.clear()

    TrainingStep.__init__ = begin  # type: ignore[method-assign]
    TrainingStep.on_after_backward = restore  # type: ignore[assignment, method-assign]


def main() -> None:
    """Train with the perturbation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gamma", type=float, default=0.005)
    parser.add_argument("train", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    perturb(options.gamma)
    sys.argv = ["trustcxr", "train", *(word for word in options.train if word != "--")]
    run_command()


if __name__ == "__main__":
    main()
