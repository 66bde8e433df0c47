"""Prove that no image within epsilon changes an answer: by intervals, then by CROWN if they fail."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trustcxr.certify import crown, ibp
from trustcxr.certify.affine_graph import NUDGE, Layer, box
from trustcxr.errors import UserError, unknown

NEURONS, STEPS = 256, 10  # CROWN's defaults: size of layers that it bounds, and gradients in its slopes


@dataclass(frozen=True)
class Effort:
    """Effort of a proof.

    Attributes:
        crown: try CROWN if intervals prove nothing.
        neurons: bound ReLUs with at most this many inputs by CROWN too, in each network of an ensemble.
        steps: gradients in CROWN's slopes.
    """

    crown: bool = True
    neurons: int = NEURONS
    steps: int = STEPS

    def over(self, networks: int) -> "Effort":
        """Return the same effort for an ensemble of so many networks."""
        return replace(self, neurons=self.neurons * networks)


def effort(method: str, *, neurons: int = NEURONS, steps: int = STEPS) -> Effort:
    """Return the effort of a method, `ibp` or `crown`; UserError for any other, and for negative counts.

    Neurons and steps belong to CROWN: with `ibp` only their defaults are accepted.
    """
    if method not in ("ibp", "crown"):
        raise unknown("method", method, ("ibp", "crown"))
    for name, count in (("neurons", neurons), ("steps", steps)):
        if count < 0:
            raise UserError(f"certify: {name} must be at least 0, not {count}")
    if method == "ibp" and (neurons, steps) != (NEURONS, STEPS):
        raise UserError("certify: neurons and steps need the method crown. Choose it, or remove them")
    return Effort(crown=method == "crown", neurons=neurons, steps=steps)


def least_margins(layers: Sequence[Layer], images: Tensor, answers: Tensor, epsilon: float, effort: Effort) -> Tensor:
    """Return a lower bound (B,) of the margin of each `answers` (B,) over other classes, for all images within epsilon.

    Above 0, the answer provably does not change. `layers` are those of `affine_graph.exact`, in float64. The rounding
    of float32 is subtracted (`ibp.rounding`), so the proof holds for the model as it runs. Images (B, 1, H, W) are in
    [0, 1].
    """
    at = ibp.Interval.from_ends(*box(images.double(), epsilon, nudge=NUDGE))
    intervals = ibp.intervals(layers, at)
    allowed = _allowance(ibp.rounding(layers, intervals), answers)
    best = _over_others(ibp.last_margins(layers, intervals, answers) - allowed, answers)
    if effort.crown and len(rows := (best <= 0).nonzero()[:, 0]):
        alone = ibp.Interval(at.centre[rows], at.radius[rows])
        bounds = crown.least_margins(layers, alone, answers[rows], neurons=effort.neurons, steps=effort.steps)
        best[rows] = torch.maximum(best[rows], _over_others(bounds - allowed[rows], answers[rows]))
    return best


def _allowance(error: Tensor, answers: Tensor) -> Tensor:
    """Return how far (B, C) the margin over each class may be off, from the error of each logit (B, C)."""
    return error + error.gather(1, answers[:, None])


def _over_others(margins: Tensor, answers: Tensor) -> Tensor:
    """Return the least margin (B,) over a class other than the answer."""
    return margins.scatter(1, answers[:, None], torch.inf).amin(1)
