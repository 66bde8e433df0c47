"""List the changes of an image under which its saliency map should stay the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from trustcxr import attacks, corruptions
from trustcxr.evaluation.trained_run import ModelUnderTest, Run
from trustcxr.registry import STABILITY_ATTACK, USUAL_ATTACKS

CLEAN = "clean"
PGD_STEPS = 10
# The map of a rotated image rotates too, so stability does not apply.
MOVING = ("rotation",)
UNDER: tuple[str, ...] = tuple(name for name in corruptions.CORRUPTIONS if name not in MOVING)


@dataclass(frozen=True)
class Change:
    """One way to change an image; `condition` is its name in saliency.parquet.

    `make`: (images (B, 1, H, W), labels (B,), ids) -> changed images, and the area of an artefact (B, H, W) bool, else
    None. `expensive`: needs many passes, so only the sample is changed.
    """

    condition: str
    make: Callable[[Tensor, Tensor, Sequence[str]], tuple[Tensor, Tensor | None]]
    epsilon: float = 0.0
    severity: int = 0
    expensive: bool = False

    @property
    def attack(self) -> bool:
        """Return True if it needs gradients of the model."""
        return self.condition in USUAL_ATTACKS


def list_changes(
    run: Run | ModelUnderTest, *, epsilon: float, names: Sequence[str] | str, severity: int
) -> list[Change]:
    """Return FGSM and PGD at `epsilon`, then the named corruptions and artefacts ("all" for UNDER) at `severity`.

    Raises UserError for an unknown corruption.
    """

    def fgsm(images: Tensor, labels: Tensor, ids: Sequence[str]) -> tuple[Tensor, None]:
        return attacks.fgsm(run.model, images, labels, epsilon=epsilon), None

    def pgd(images: Tensor, labels: Tensor, ids: Sequence[str]) -> tuple[Tensor, None]:
        return attacks.pgd(run.model, images, labels, epsilon=epsilon, steps=PGD_STEPS), None

    wanted = UNDER if names == "all" else tuple(corruptions.get(name).name for name in names)
    attacks_ = [Change(STABILITY_ATTACK, fgsm, epsilon), Change(USUAL_ATTACKS[1], pgd, epsilon, expensive=True)]
    return attacks_ + [Change(name, _corruption(name, severity), severity=severity) for name in wanted]


def _corruption(name: str, severity: int) -> Callable[[Tensor, Tensor, Sequence[str]], tuple[Tensor, Tensor | None]]:
    def make(images: Tensor, labels: Tensor, ids: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        if corruptions.get(name).artefact:
            return corruptions.artefact(images, name, severity, keys=list(ids))
        return corruptions.corrupt(images, name, severity, keys=list(ids)), None

    return make
