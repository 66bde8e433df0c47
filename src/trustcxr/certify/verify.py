"""Prove that no image within epsilon changes an answer: by intervals, then by CROWN if they fail."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from trustcxr.certify import affine_graph, crown, ibp
from trustcxr.certify.affine_graph import NUDGE, Layer, box
from trustcxr.errors import UserError, pixel_range_error, unknown

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


def prove(model: nn.Module, images: Tensor, *, epsilon: float, method: str = "crown") -> Tensor:
    """Return for which images the model's answer provably does not change within epsilon, bool (B,).

    Args:
        model: pixel space -> logits (B, C), of layers that can be bounded, such as `tx.load_model("covid-certified")`.
        images: (B, 1, H, W) float in [0, 1].
        epsilon: L-infinity radius in [0, 1].
        method: `ibp` (intervals, Gowal et al. 2018), or `crown`: also CROWN (Zhang et al. 2018) if intervals fail.

    The proof is of the pixels that the network sees, after decoding and resizing, not of a file. It allows for the
    rounding of float32, in which a GPU computes here too (without TF32): let the model answer in `without_tf32` there.
    Raises UserError for a layer that cannot be bounded, naming it, and for images or an epsilon outside [0, 1].

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     _ = model[1].weight.copy_(torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]))
        ...     _ = model[1].bias.zero_()
        >>> image = torch.tensor([[[[0.6, 0.6], [0.4, 0.4]]]])
        >>> prove(model, image, epsilon=0.05), prove(model, image, epsilon=0.2)
        (tensor([True]), tensor([False]))
    """
    from trustcxr.models.preserve_state import preserve_state, without_tf32

    if not 0 <= epsilon <= 1:
        raise UserError(f"certify: epsilon must lie in [0, 1], not {epsilon:g}: 0.02 is 5.1 grey levels of 255")
    low, high = (float(end) for end in images.detach().aminmax()) if images.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):  # a NaN fails this too
        raise pixel_range_error("certify", low, high)
    layers = affine_graph.exact(model)
    with torch.no_grad(), preserve_state(model), without_tf32():
        answers = model(images).argmax(1)
    return least_margins(layers, images, answers, epsilon, effort(method)) > 0


def least_margins(layers: Sequence[Layer], images: Tensor, answers: Tensor, epsilon: float, effort: Effort) -> Tensor:
    """Return a lower bound (B,) of the margin of each `answers` (B,) over other classes, for all images within epsilon.

    Above 0, the answer provably does not change. `layers` are those of `affine_graph.exact`, in float64. The rounding
    of float32 is subtracted (`ibp.rounding`), so the proof holds for the model as it runs. Images (B, 1, H, W) are in
    [0, 1].
    """
    at = ibp.Interval.from_ends(*box(images.double(), epsilon, nudge=NUDGE))
    intervals = ibp.intervals(layers, at)
    error = ibp.rounding(layers, intervals)
    allowed = error + error.gather(1, answers[:, None])  # of the margin over each class, (B, C)
    best = _over_others(ibp.last_margins(layers, intervals, answers) - allowed, answers)
    if effort.crown and len(rows := (best <= 0).nonzero()[:, 0]):
        alone = ibp.Interval(at.centre[rows], at.radius[rows])
        bounds = crown.least_margins(layers, alone, answers[rows], neurons=effort.neurons, steps=effort.steps)
        best[rows] = torch.maximum(best[rows], _over_others(bounds - allowed[rows], answers[rows]))
    return best


def _over_others(margins: Tensor, answers: Tensor) -> Tensor:
    """Return the least margin (B,) over a class other than the answer."""
    return margins.scatter(1, answers[:, None], torch.inf).amin(1)
