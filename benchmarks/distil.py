"""Try a teacher of soft labels: train a run with a loss towards the answers of other runs, or of its own average.

python -m benchmarks.distil [--teacher RUN]... [--weight 0.5] [--temperature 1] [--clean-teacher RUN] [--reweight]
    -- OPTIONS

OPTIONS are those of `trustcxr train`. A trial, no part of the package. The loss becomes (1 - weight) times the
defence's loss plus weight times the cross-entropy of the attacked images' logits with the teacher's probabilities of
the clean images (RSLAD: Zi et al. 2021), times temperature squared. Several teachers' probabilities are averaged, so
an ensemble is given by its members. Without --teacher the moving average of the run's own weights teaches (Zhang et al.
2023), from the second half of the training on.
--clean-teacher: half of the teachers' loss becomes the cross-entropy of the clean images' logits with the probabilities
of that run, a standard network (Zhao et al. 2022). --reweight: an image counts the more, the less the teachers believe
their clean answer on the learner's attacked image: where the attack transfers (after Lee et al. 2025).
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


def cross_entropy(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of each image's logits (B, C) with soft labels, times temperature squared."""
    return F.cross_entropy(logits.float() / temperature, target, reduction="none") * temperature**2


def transferred(target: Tensor, attacked: Tensor) -> Tensor:
    """Return weights (B,) of mean 1, from the teachers' probabilities (B, C) of clean and of attacked images."""
    lost = 1 - attacked.gather(1, target.argmax(1, keepdim=True)).squeeze(1)
    return lost / lost.mean().clamp(min=1e-6)


def teach(
    teachers: Sequence[nn.Module],
    weight: float,
    temperature: float,
    clean_teacher: nn.Module | None = None,
    *,
    reweight: bool = False,
) -> None:
    """Add the teachers' loss to every training step of this process."""
    usual = TrainingStep.__init__

    def begin(self: TrainingStep, *arguments: Any, **keys: Any) -> None:
        usual(self, *arguments, **keys)
        defence = self.defence

        def taught(learner: nn.Module, pixels: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
            seen: list[Tensor] = []
            handle = learner.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
            loss, logits = defence(learner, pixels, labels, **options)
            handle.remove()
            models: Sequence[nn.Module] = teachers
            if not models:
                if self.average is None or 2 * self.global_step < self.total_steps:
                    return loss, logits
                models = [self.average.module.eval()]
            target = soften(models, pixels, temperature)
            towards = cross_entropy(logits[: len(target)], target, temperature)
            if reweight:
                towards = towards * transferred(target, soften(models, seen[-1][: len(target)], temperature))
            distilled = towards.mean()
            if clean_teacher is not None:
                known = soften([clean_teacher], pixels, temperature)
                distilled = (distilled + cross_entropy(learner(pixels), known, temperature).mean()) / 2
            return (1 - weight) * loss + weight * distilled, logits

        self.defence = taught  # type: ignore[assignment]

    TrainingStep.__init__ = begin  # type: ignore[method-assign]


def main() -> None:
    """Train with the teachers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, action="append", default=[], help="folder of a run; repeatable")
    parser.add_argument("--weight", type=float, default=0.5)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--clean-teacher", type=Path, help="folder of a run trained without attack")
    parser.add_argument("--reweight", action="store_true", help="images count where the attack transfers")
    parser.add_argument("train", nargs=argparse.REMAINDER)
    options = parser.parse_args()

    def frozen(folder: Path) -> nn.Module:
        return load_run(folder).model.eval().requires_grad_(False)

    models, clean = [frozen(folder) for folder in options.teacher], options.clean_teacher
    teach(models, options.weight, options.temperature, clean and frozen(clean), reweight=options.reweight)
    sys.argv = ["trustcxr", "train", *(word for word in options.train if word != "--")]
    run_command()


if __name__ == "__main__":
    main()
