"""Training by what is proved: the loss is taken on a bound of the worst case, not on what an attack finds.

The contract is that of every defence (see `defences.contract`); the logits that come back are those of the bound, so
that training accuracy is certified accuracy. The model must be one that `certify` can bound.

Options that both share:
    epsilon: the radius at this step. The box is not cut at black and at white: a little wider, and half the price.
    clean_weight, attack_share: shares of the loss on the images as they are and on FGSM's (MTL-IBP; De Palma et al.
        2024); the rest is on the bound.
    regulariser: weight of the two regularisers of Shi et al. (2021), which ends with the growth of epsilon.
    grown: epsilon as a share of what it grows to.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.certify import affine_graph, crown
from trustcxr.certify.ibp import Interval, intervals, last_margins
from trustcxr.defences.base import Radius, smoothed_cross_entropy

Bounded = Callable[..., tuple[Tensor, Tensor]]
TOLERANCE = 0.5  # of the regularisers: ratios above it cost nothing (Shi et al. 2021)


def ibp(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    clean_weight: float = 0.0,
    attack_share: float = 0.0,
    regulariser: float = 0.0,
    grown: float = 1.0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the worst logits that interval bounds leave (Gowal et al. 2019)."""
    layers, found = _bounded(model, images, epsilon)
    worst = -last_margins(layers, found, labels)
    loss = _mixed(model, images, labels, worst, epsilon, clean_weight, attack_share, label_smoothing)
    return loss + regulariser * (1 - grown) * unevenness(layers, found), worst


def crown_ibp(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    clean_weight: float = 0.0,
    attack_share: float = 0.0,
    regulariser: float = 0.0,
    grown: float = 1.0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """CROWN-IBP (Zhang et al. 2020): the margins by CROWN over interval bounds, which give way to intervals alone.

    The bound is (1 - grown) * CROWN's + grown * the intervals'. CROWN's is the tighter one while the network is not
    yet trained by intervals; once epsilon is grown, the intervals' is the one that proofs will use.
    """
    layers, found = _bounded(model, images, epsilon)
    worst = -last_margins(layers, found, labels)
    if grown < 1:
        rows = affine_graph.margins(worst.shape[1], labels, worst)
        worst = grown * worst - (1 - grown) * crown.backward(layers, found, rows, crown.first_slopes(layers, found))
    loss = _mixed(model, images, labels, worst, epsilon, clean_weight, attack_share, label_smoothing)
    return loss + regulariser * (1 - grown) * unevenness(layers, found), worst


def unevenness(layers: Sequence[affine_graph.Layer], found: Sequence[Interval]) -> Tensor:
    """The two regularisers of Shi et al. (2021, section 3.3), each a mean over the ReLUs, added.

    Tightness: the mean radius before a ReLU should be at most 1 / TOLERANCE times that of the normalised images.
    Balance: what is surely active and what is surely inactive before a ReLU should have centres of like size and of
    like spread, the smaller of both at least TOLERANCE times the larger.
    """
    before = [at for layer, at in zip(layers, found, strict=False) if isinstance(layer, affine_graph.ReLU)]
    first = found[next(i for i, x in enumerate(layers) if not isinstance(x, affine_graph.Affine) or x.terms > 2)]
    growth = [_short(first.radius.mean() / at.radius.mean().clamp(min=1e-12)) for at in before]
    return torch.stack(growth).mean() + torch.stack([_unbalance(at) for at in before]).mean()


def _bounded(model: nn.Module, images: Tensor, epsilon: Radius) -> tuple[list[affine_graph.Layer], list[Interval]]:
    """The model's layers, with gradients to its weights, and the intervals before and after each."""
    radius = torch.as_tensor(epsilon, dtype=images.dtype, device=images.device)
    layers = affine_graph.layers(model)
    if radius.ndim == 0:  # one radius for the whole batch: the first layer's is then found once
        radius = radius.expand(1, *images.shape[1:])
    return layers, intervals(layers, Interval(images, radius))


def _mixed(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    worst: Tensor,
    epsilon: Radius,
    clean_weight: float,
    attack_share: float,
    label_smoothing: float,
) -> Tensor:
    """The loss on the bound, on the images as they are and on FGSM's, in their shares."""
    loss = (1 - clean_weight - attack_share) * smoothed_cross_entropy(worst, labels, label_smoothing)
    if clean_weight:
        loss = loss + clean_weight * smoothed_cross_entropy(model(images), labels, label_smoothing)
    if attack_share:
        adversarial = attacks.fgsm(model, images, labels, epsilon=epsilon)
        loss = loss + attack_share * smoothed_cross_entropy(model(adversarial), labels, label_smoothing)
    return loss


def _short(ratio: Tensor) -> Tensor:
    """By what share of the tolerance a ratio falls short of it."""
    return (TOLERANCE - ratio).relu() / TOLERANCE


def _unbalance(at: Interval) -> Tensor:
    """How unlike what is surely active and what is surely inactive are, in mean and in spread of their centres."""
    active, inactive = at.low > 0, at.high < 0
    if not bool(active.any()) or not bool(inactive.any()):
        return at.centre.new_zeros(())
    apart = (at.centre - at.centre.mean()) ** 2
    mean = (at.centre * active).sum() / -(at.centre * inactive).sum()
    spread = (apart * active).sum() / (apart * inactive).sum()
    return _short(torch.minimum(mean, 1 / mean)) + _short(torch.minimum(spread, 1 / spread))
