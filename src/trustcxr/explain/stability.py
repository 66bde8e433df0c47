"""What may be done to an X-ray without changing what is wrong with the patient: the map should stay as it was."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from trustcxr import attacks, corruptions
from trustcxr.registry import STABILITY_ATTACK, USUAL_ATTACKS

if TYPE_CHECKING:
    from trustcxr.evaluation.model_protocol import ModelUnderTest
    from trustcxr.evaluation.trained_run import Run

CLEAN = "clean"
PGD_STEPS = 10
# A turned image has its map turned too, rightly: there is nothing in it to be stable.
MOVING = ("rotation",)
UNDER: tuple[str, ...] = tuple(name for name in corruptions.CORRUPTIONS if name not in MOVING)


@dataclass(frozen=True)
class Change:
    """One way to change an image, and what it is called in the table of saliency.parquet.

    `make`: (images (B, 1, H, W), labels (B,), ids of the images) -> changed images, and (B, H, W) bool where something
    was drawn, None for what is all over the image. `dear`: costs many passes, so it is done on the sample only.
    """

    condition: str
    make: Callable[[Tensor, Tensor, Sequence[str]], tuple[Tensor, Tensor | None]]
    epsilon: float = 0.0
    severity: int = 0
    dear: bool = False

    @property
    def attack(self) -> bool:
        """Whether it follows gradients of the model."""
        return self.condition in USUAL_ATTACKS


def changes(run: "Run | ModelUnderTest", *, epsilon: float, names: Sequence[str] | str, severity: int) -> list[Change]:
    """FGSM and PGD at `epsilon`, then the corruptions and artefacts of these names ("all" for UNDER) at `severity`.

    Raises UserError for a name that is no corruption.
    """

    def fgsm(images: Tensor, labels: Tensor, ids: Sequence[str]) -> tuple[Tensor, None]:
        return attacks.fgsm(run.model, images, labels, epsilon=epsilon), None

    def pgd(images: Tensor, labels: Tensor, ids: Sequence[str]) -> tuple[Tensor, None]:
        return attacks.pgd(run.model, images, labels, epsilon=epsilon, steps=PGD_STEPS), None

    wanted = UNDER if names == "all" else tuple(corruptions.get(name).name for name in names)
    found = [Change(STABILITY_ATTACK, fgsm, epsilon), Change(USUAL_ATTACKS[1], pgd, epsilon, dear=True)]
    return found + [Change(name, _corruption(name, severity), severity=severity) for name in wanted]


def _corruption(name: str, severity: int) -> Callable[[Tensor, Tensor, Sequence[str]], tuple[Tensor, Tensor | None]]:
    def make(images: Tensor, labels: Tensor, ids: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        if corruptions.get(name).artefact:
            return corruptions.artefact(images, name, severity, keys=list(ids))
        return corruptions.corrupt(images, name, severity, keys=list(ids)), None

    return make
