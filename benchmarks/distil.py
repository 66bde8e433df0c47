"""Try a teacher of soft labels: train a run with a loss towards the answers of other runs, or of its own average.

python -m benchmarks.distil [--teacher RUN]... [--weight 0.5] [--temperature 1] -- OPTIONS

OPTIONS are those of `trustcxr train`. A trial, no part of the package. The loss becomes (1 - weight) times the
defence's loss plus weight times the cross-entropy of the attacked images' logits with the teacher's probabilities of
the clean images (RSLAD: Zi et al. 2021), times temperature squared. Several teachers' probabilities are averaged, so
an ensemble is given by its members. Without --teacher the moving average of the run's own weights teaches (Zhang et al.
2023), from the second half of the training on.
run.yaml does not record the teacher: give the folder a name that does.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.cli import main as run_command
from trustcxr.evaluation.trained_run import load_run
from trustcxr.training.step import TrainingStep


def soften(teachers: Sequence[nn.Module], pixels: Tensor, temperature: float) -> Tensor:
    """Return the mean of the teachers' probabilities (B, C)."""
    with torch.no_grad():
        return torch.stack([(teacher(pixels).float() / temperature).softmax(1) for teacher in teachers]).mean(0)


def teach(teachers: Sequence[nn.Module], weight: float, temperature: float) -> None:
    """Add the teachers' loss to every training step of this process."""
    usual = TrainingStep.__init__

    def begin(self: TrainingStep, *arguments: Any, **keys: Any) -> None:
        usual(self, *arguments, **keys)
        defence = self.defence

        def taught(learner: nn.Module, pixels: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
            loss, logits = defence(learner, pixels, labels, **options)
            models: Sequence[nn.Module] = teachers
            if not models:
                if self.average is None or 2 * self.global_step < self.total_steps:
                    return loss, logits
                models = [self.average.module.eval()]
            target = soften(models, pixels, temperature)
            towards = F.cross_entropy(logits[: len(target)].float() / temperature, target) * temperature**2
            return (1 - weight) * loss + weight * towards, logits

        self.defence = taught  # type: ignore[assignment]

    TrainingStep.__init__ = begin  # type: ignore[method-assign]


def main() -> None:
    """Train with the teachers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, action="append", default=[], help="folder of a run; repeatable")
    parser.add_argument("--weight", type=float, default=0.5)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("train", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    models = [load_run(folder).model.eval().requires_grad_(False) for folder in options.teacher]
    teach(models, options.weight, options.temperature)
    sys.argv = ["trustcxr", "train", *(word for word in options.train if word != "--")]
    run_command()


if __name__ == "__main__":
    main()
