"""Train on a proved bound of the worst case (certified training).

The returned logits are those of the bound, so training accuracy is certified accuracy. `certify` must be able to bound
the model.

Shared options:
    epsilon: the radius at this step. The box is not clipped to [0, 1]: slightly wider, at half the cost.
    clean_weight: share of the loss on clean images; the rest is on the bound.
    regulariser: weight of the two regularisers of Shi et al. (2021), which ends when epsilon is fully grown.
    grown: epsilon as a share of its final value.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trustcxr.certify import verify
from trustcxr.certify.verify import Interval, intervals, last_margins
from trustcxr.defences.base import Radius, smoothed_cross_entropy

TOLERANCE = 0.5  # ratios above it have no penalty (Shi et al. 2021)


def ibp(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    clean_weight: float = 0.0,
    regulariser: float = 0.0,
    grown: float = 1.0,
    label_smoothing: float = 0.0,
    with_crown: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the worst logits within interval bounds (Gowal et al. 2019).

    `with_crown`: the bound is (1 - grown) * CROWN's + grown * the intervals' (CROWN-IBP; Zhang et al. 2020). CROWN is
    tighter early in training; the intervals' bound is the one that proofs use at the end.
    """
    layers, bounds = _bounded(model, images, epsilon)
    worst = -last_margins(layers, bounds, labels)
    if with_crown and grown < 1:
        rows = verify.margins(worst.shape[1], labels, worst)
        worst = grown * worst - (1 - grown) * verify.backward(layers, bounds, rows, verify.first_slopes(layers, bounds))
    loss = (1 - clean_weight) * smoothed_cross_entropy(worst, labels, label_smoothing)
    if clean_weight:
        loss = loss + clean_weight * smoothed_cross_entropy(model(images), labels, label_smoothing)
    return loss + regulariser * (1 - grown) * unevenness(layers, bounds), worst


def crown_ibp(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    clean_weight: float = 0.0,
    regulariser: float = 0.0,
    grown: float = 1.0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the worst logits within CROWN's bounds, then the intervals' (CROWN-IBP; Zhang et al. 2020).

    Arguments as `ibp`.
    """
    weights = {"clean_weight": clean_weight, "regulariser": regulariser, "grown": grown}
    return ibp(model, images, labels, epsilon=epsilon, label_smoothing=label_smoothing, with_crown=True, **weights)


def unevenness(layers: Sequence[verify.Layer], bounds: Sequence[Interval]) -> Tensor:
    """Return the sum of both regularisers of Shi et al. (2021, section 3.3), each a mean over the ReLUs.

    Tightness: the mean radius before a ReLU should be at most 1 / TOLERANCE times that of the normalised images.
    Balance: surely active and surely inactive inputs should have centres of similar mean and spread, with a ratio of at
    least TOLERANCE.
    """
    before = [at for layer, at in zip(layers, bounds, strict=False) if isinstance(layer, verify.ReLU)]
    first = bounds[next(i for i, x in enumerate(layers) if not isinstance(x, verify.Affine) or x.terms > 2)]
    growth = [_short(first.radius.mean() / at.radius.mean().clamp(min=1e-12)) for at in before]
    return torch.stack(growth).mean() + torch.stack([_unbalance(at) for at in before]).mean()


def _bounded(model: nn.Module, images: Tensor, epsilon: Radius) -> tuple[list[verify.Layer], list[Interval]]:
    """Return the model's layers, with gradients to its weights, and the intervals before and after each."""
    radius = torch.as_tensor(epsilon, dtype=images.dtype, device=images.device)
    layers = verify.layers(model)
    # One for the batch is spread once; convolutions need it at every pixel.
    radius = radius.expand(1 if radius.ndim == 0 else len(images), *images.shape[1:])
    return layers, intervals(layers, Interval(images, radius))


def _short(ratio: Tensor) -> Tensor:
    """Return how far a ratio is below TOLERANCE, as a share of it."""
    return (TOLERANCE - ratio).relu() / TOLERANCE


def _unbalance(at: Interval) -> Tensor:
    """Return how much surely active and surely inactive inputs differ, in mean and spread of their centres."""
    active, inactive = at.low > 0, at.high < 0
    if not bool(active.any()) or not bool(inactive.any()):
        return at.centre.new_zeros(())
    apart = (at.centre - at.centre.mean()) ** 2
    mean = (at.centre * active).sum() / -(at.centre * inactive).sum()
    spread = (apart * active).sum() / (apart * inactive).sum()
    return _short(torch.minimum(mean, 1 / mean)) + _short(torch.minimum(spread, 1 / spread))
