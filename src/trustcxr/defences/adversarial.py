"""Train on attacked images (fgsm, fgsm-rs, n-fgsm, free, pgd, trades).

Shared options:
    epsilon: radius, or a tensor of radii.
    clean_weight: loss = clean_weight * clean loss + (1 - clean_weight) * adversarial loss.
    attack_precision: "bf16" runs the attack's passes in bfloat16.
    label_smoothing: of the cross-entropy.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.attacks.base import lowered, radii, uniform_start
from trustcxr.defences.base import Precision, Radius, smoothed_cross_entropy
from trustcxr.models.fuse_batchnorm import fold_batchnorm
from trustcxr.models.preserve_state import uncached

NOISE = 2.0  # half-width of N-FGSM's noise in radii, as in the paper


def _trains_on(attack: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the defence by the images of an attack (model, images, labels, epsilon), with the shared options."""

    def defence(
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        epsilon: Radius,
        clean_weight: float = 0.0,
        attack_precision: Precision = "same",
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        with _attacking(model, images, attack_precision):
            adversarial = attack(model, images, labels, epsilon)
        return _shared(model, images, adversarial, labels, clean_weight, label_smoothing)

    defence.__name__, defence.__doc__ = attack.__name__, attack.__doc__
    return defence


@_trains_on
def fgsm(model: nn.Module, images: Tensor, labels: Tensor, epsilon: Radius) -> Tensor:
    """FGSM adversarial training (Goodfellow et al. 2015): one gradient a step, in the images only."""
    return attacks.fgsm(model, images, labels, epsilon=epsilon)


@_trains_on
def fgsm_rs(model: nn.Module, images: Tensor, labels: Tensor, epsilon: Radius) -> Tensor:
    """FGSM training from a random start in the ball, one step of 1.25 epsilon, projected back (Wong et al. 2020)."""
    start = _random_start(images, epsilon)
    with attacks.preserve_state(model):
        gradient, _ = attacks.input_gradient(model, start, labels, check=True)
    return _step(images, start, gradient, epsilon, 1.25)


@_trains_on
def n_fgsm(model: nn.Module, images: Tensor, labels: Tensor, epsilon: Radius) -> Tensor:
    """N-FGSM (de Jorge et al. 2022): a step of epsilon from noise twice as wide, not projected back.

    The training images lie up to three epsilons away (within [0, 1]), which prevents catastrophic overfitting.
    """
    noise = _as(epsilon, images) * NOISE * (2 * torch.rand_like(images) - 1)
    start = (images.detach() + noise).clamp(0, 1)
    with attacks.preserve_state(model):
        gradient, _ = attacks.input_gradient(model, start, labels, check=True)
    return (start + _as(epsilon, images) * gradient.sign()).clamp(0, 1)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    steps: int = 3,
    clean_weight: float = 0.0,
    attack_precision: Precision = "same",
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """PGD adversarial training (Madry et al. 2018): `steps` gradients a step, from a random start."""
    seed = int(torch.randint(2**31, ()))
    with _attacking(model, images, attack_precision):
        adversarial = attacks.pgd(model, images, labels, epsilon=epsilon, steps=steps, seed=seed)
    return _shared(model, images, adversarial, labels, clean_weight, label_smoothing)


def trades(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    beta: float = 6.0,
    steps: int = 3,
    attack_precision: Precision = "same",
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """TRADES (Zhang et al. 2019): clean cross-entropy + beta * KL(clean prediction || adversarial prediction).

    The attack maximises that divergence with `steps` gradients. It starts evenly in the ball, not within 0.001 of the
    image as in the paper, where a single step would have no slope.
    """
    adversarial = _random_start(images, epsilon)
    with _attacking(model, images, attack_precision), attacks.preserve_state(model):
        with torch.no_grad(), uncached():
            answer = model(images).float().softmax(1)
        for _ in range(steps):
            gradient, _ = attacks.input_gradient(
                model, adversarial, labels, loss=lambda logits, _: _divergence(answer, logits)
            )
            adversarial = _step(images, adversarial, gradient, epsilon, 1.25 if steps == 1 else 2.5 / steps)
    natural, logits = model(images), model(adversarial)
    divergence = _divergence(natural.float().softmax(1), logits.float()).mean()
    return smoothed_cross_entropy(natural, labels, label_smoothing) + beta * divergence, logits


def free(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    perturbation: Tensor,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Free adversarial training (Shafahi et al. 2019): one backward pass gives gradients in weights and in images.

    `perturbation` (B or more, 1, H, W) is the last step's; it moves in the backward pass. The caller repeats each batch
    (`replays`), with an optimiser step each, and passes the perturbation from batch to batch.
    """
    perturbation_part = perturbation[: len(images)]
    leaf = (images + _within(perturbation_part, epsilon)).clamp(0, 1).detach().requires_grad_(True)

    def ascend(gradient: Tensor) -> None:
        perturbation_part.copy_(_within(perturbation_part + epsilon * gradient.sign().nan_to_num(0.0), epsilon))

    if torch.is_grad_enabled():
        leaf.register_hook(ascend)
    logits = model(leaf)
    return smoothed_cross_entropy(logits, labels, label_smoothing), logits


def _shared(
    model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, clean_weight: float, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return the loss shared between adversarial and clean images, and the logits of the adversarial ones."""
    logits = model(adversarial)
    loss = smoothed_cross_entropy(logits, labels, label_smoothing)
    if clean_weight > 0:
        natural = smoothed_cross_entropy(model(images), labels, label_smoothing)
        loss = clean_weight * natural + (1 - clean_weight) * loss
    return loss, logits


def _divergence(answer: Tensor, logits: Tensor) -> Tensor:
    """Return KL(probabilities || softmax of the logits) of each image (B,), from (B, C) and (B, C)."""
    return F.kl_div(logits.log_softmax(1), answer, reduction="none").sum(1)


def _within(perturbation: Tensor, epsilon: Radius) -> Tensor:
    return torch.maximum(torch.minimum(perturbation, _as(epsilon, perturbation)), -_as(epsilon, perturbation))


def _as(epsilon: Radius, like: Tensor) -> Tensor:
    return torch.as_tensor(epsilon, dtype=like.dtype, device=like.device)


def _random_start(images: Tensor, epsilon: Radius) -> Tensor:
    """Draw images evenly from the ball around each, from torch's own random state."""
    return uniform_start(images.detach(), radii(epsilon, images), None)


def _step(images: Tensor, at: Tensor, gradient: Tensor, epsilon: Radius, length: float) -> Tensor:
    """Step `length` epsilons along the sign of the gradient, projected onto the ball and [0, 1]."""
    moved = at + length * epsilon * gradient.sign()
    return (images.detach() + _within(moved - images.detach(), epsilon)).clamp(0, 1)


@contextmanager
def _attacking(model: nn.Module, images: Tensor, precision: Precision) -> Iterator[None]:
    """Set the precision of the attack's passes, and fold BatchNorm in them."""
    inside = getattr(model, "net", None)  # a Classifier's network can be traced
    network = inside if isinstance(inside, nn.Module) else model
    with lowered("bf16" if precision == "bf16" else None, images), fold_batchnorm(network):
        yield
