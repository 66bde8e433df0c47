"""Which answers no image within epsilon can change: intervals first, CROWN for what they leave open."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trustcxr.certify import crown, ibp
from trustcxr.certify.affine_graph import NUDGE, Layer, box
from trustcxr.errors import UserError, unknown

NEURONS, STEPS = 256, 10  # of CROWN unless said: layers that it bounds too, and gradients in its slopes


@dataclass(frozen=True)
class Effort:
    """How hard to try.

    Attributes:
        crown: whether CROWN is tried where intervals prove nothing.
        neurons: ReLUs with at most so many inputs, in each of networks that answer together, are bounded by CROWN too.
        steps: gradients in CROWN's slopes.
    """

    crown: bool = True
    neurons: int = NEURONS
    steps: int = STEPS

    def over(self, networks: int) -> "Effort":
        """The same for so many networks that are bounded as one."""
        return replace(self, neurons=self.neurons * networks)


def effort(method: str, *, neurons: int = NEURONS, steps: int = STEPS) -> Effort:
    """The effort of a method's name, `ibp` or `crown`; UserError for any other, and for what cannot be a count.

    Neurons and steps are CROWN's: for `ibp` others than those that hold unless said are refused.
    """
    if method not in ("ibp", "crown"):
        raise unknown("method", method, ("ibp", "crown"))
    for name, count in (("neurons", neurons), ("steps", steps)):
        if count < 0:
            raise UserError(f"certify: {name} must be at least 0, not {count}")
    if method == "ibp" and (neurons, steps) != (NEURONS, STEPS):
        raise UserError("certify: neurons and steps are of the method crown: choose that, or leave them out")
    return Effort(crown=method == "crown", neurons=neurons, steps=steps)


def least_margins(layers: Sequence[Layer], images: Tensor, answers: Tensor, epsilon: float, effort: Effort) -> Tensor:
    """The least margin (B,) of the class `said` over any other, for every image within epsilon: a lower bound.

    Above 0 the answer is proved not to change. `layers` are `contract.exact`'s, in float64; what float32 may add or
    take away in the model's own logits is taken off (`ibp.rounding`), so that the proof is of the model as it runs.
    Images (B, 1, H, W) are in [0, 1].
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
    """By how much (B, C) the margin over each class may be off, from how much each logit may be (B, C)."""
    return error + error.gather(1, answers[:, None])


def _over_others(margins: Tensor, answers: Tensor) -> Tensor:
    """The least margin (B,) over a class that is not the one said itself."""
    return margins.scatter(1, answers[:, None], torch.inf).amin(1)
