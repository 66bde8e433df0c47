"""Trained on attacked images: fgsm, fgsm-rs, n-fgsm, free, pgd, trades; and on attacked weights beside."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from trustcxr import attacks
from trustcxr.attacks.base import lowered, radii, uniform_start
from trustcxr.defences.base import Precision, Radius, smoothed_cross_entropy
from trustcxr.models.fuse_batchnorm import fold_batchnorm
from trustcxr.models.preserve_state import uncached

NOISE = 2.0  # radii that the noise of N-FGSM is wide, the paper's


def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    clean_weight: float = 0.0,
    attack_precision: Precision = "same",
    weight_perturbation: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """FGSM adversarial training (Goodfellow et al. 2015): one gradient a step, in the images alone.

    The loss is clean_weight * clean loss + (1 - clean_weight) * adversarial loss; with `weight_perturbation` it is that
    of the weights as `weights_against` moves them.
    """
    with _attacking(model, images, attack_precision):
        adversarial = attacks.fgsm(model, images, labels, epsilon=epsilon)
    return _shared(model, images, adversarial, labels, clean_weight, weight_perturbation, label_smoothing)


def fgsm_rs(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    clean_weight: float = 0.0,
    attack_precision: Precision = "same",
    weight_perturbation: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """FGSM training from a random start, "fast is better than free" (Wong et al. 2020).

    The start is even over the ball, the one step 1.25 epsilon long, the result brought back into the ball.
    """
    start = _random_start(images, epsilon)
    with _attacking(model, images, attack_precision), attacks.preserve_state(model):
        gradient, _ = attacks.input_gradient(model, start, labels, check=True)
    adversarial = _step(images, start, gradient, epsilon, 1.25)
    return _shared(model, images, adversarial, labels, clean_weight, weight_perturbation, label_smoothing)


def n_fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    clean_weight: float = 0.0,
    attack_precision: Precision = "same",
    weight_perturbation: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """N-FGSM (de Jorge et al. 2022): a step of epsilon from noise twice as wide, not brought back into the ball.

    What it trains on lies up to three epsilons from the image (within [0, 1]), which is what keeps one gradient a step
    from hiding the others.
    """
    noise = _as(epsilon, images) * NOISE * (2 * torch.rand_like(images) - 1)
    start = (images.detach() + noise).clamp(0, 1)
    with _attacking(model, images, attack_precision), attacks.preserve_state(model):
        gradient, _ = attacks.input_gradient(model, start, labels, check=True)
    adversarial = (start + _as(epsilon, images) * gradient.sign()).clamp(0, 1)
    return _shared(model, images, adversarial, labels, clean_weight, weight_perturbation, label_smoothing)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    steps: int = 3,
    clean_weight: float = 0.0,
    attack_precision: Precision = "same",
    weight_perturbation: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """PGD adversarial training (Madry et al. 2018): `steps` gradients a step, from a random start."""
    seed = int(torch.randint(2**31, ()))
    with _attacking(model, images, attack_precision):
        adversarial = attacks.pgd(model, images, labels, epsilon=epsilon, steps=steps, seed=seed)
    return _shared(model, images, adversarial, labels, clean_weight, weight_perturbation, label_smoothing)


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
    """TRADES (Zhang et al. 2019): clean cross-entropy + beta * KL(answer to the image || answer to the perturbed one).

    The attack climbs that divergence for `steps` gradients; one is enough to train with. It starts evenly over the
    ball, not within 0.001 of the image as the paper does: a single step from there would have no slope to go by.
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
    """Free adversarial training (Shafahi et al. 2019): one backward gives the gradient in weights and in images.

    `perturbation` (B or more, 1, H, W) is where the last step left it; it moves when the loss is sent back. The caller
    shows each batch several times (`replays`), an optimiser step each, and keeps the perturbation between batches.
    """
    kept = perturbation[: len(images)]
    leaf = (images + _within(kept, epsilon)).clamp(0, 1).detach().requires_grad_(True)

    def ascend(gradient: Tensor) -> None:
        kept.copy_(_within(kept + epsilon * gradient.sign().nan_to_num(0.0), epsilon))

    if torch.is_grad_enabled():
        leaf.register_hook(ascend)
    logits = model(leaf)
    return smoothed_cross_entropy(logits, labels, label_smoothing), logits


def _shared(
    model: nn.Module,
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    clean_weight: float,
    weight_perturbation: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The loss shared between adversarial and clean images, and the logits of the adversarial ones."""
    learner: Callable[[Tensor], Tensor] = model
    if weight_perturbation:
        learner = weights_against(model, adversarial, labels, size=weight_perturbation)
    logits = learner(adversarial)
    loss = smoothed_cross_entropy(logits, labels, label_smoothing)
    if clean_weight > 0:
        natural = smoothed_cross_entropy(learner(images), labels, label_smoothing)
        loss = clean_weight * natural + (1 - clean_weight) * loss
    return loss, logits


def weights_against(model: nn.Module, images: Tensor, labels: Tensor, *, size: float) -> Callable[[Tensor], Tensor]:
    """The model with each layer's weights moved up the loss on these images (AWP: Wu, Xia and Wang 2020).

    A layer's weights w move by size * ||w|| along their gradient; vectors (biases, BatchNorm's) stay. What is returned
    takes images (B, 1, H, W) to logits (B, C); its loss sends its gradient back into the weights that did not move.
    The pass that finds the direction changes no statistics of BatchNorm.
    """
    weights = {name: weight for name, weight in model.named_parameters() if weight.ndim > 1 and weight.requires_grad}
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.enable_grad():
        loss = F.cross_entropy(functional_call(model, statistics, (images,)).float(), labels)
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    moved = {
        name: weight + size * weight.detach().norm() * gradient / gradient.norm().clamp(min=1e-12)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        if gradient is not None
    }
    return lambda x: functional_call(model, moved, (x,))


def _divergence(answer: Tensor, logits: Tensor) -> Tensor:
    """KL(answer || softmax of the logits) of each image (B,), from probabilities (B, C) and logits (B, C)."""
    return F.kl_div(logits.log_softmax(1), answer, reduction="none").sum(1)


def _within(perturbation: Tensor, epsilon: Radius) -> Tensor:
    return torch.maximum(torch.minimum(perturbation, _as(epsilon, perturbation)), -_as(epsilon, perturbation))


def _as(epsilon: Radius, like: Tensor) -> Tensor:
    return torch.as_tensor(epsilon, dtype=like.dtype, device=like.device)


def _random_start(images: Tensor, epsilon: Radius) -> Tensor:
    """Images drawn evenly from the ball around each, by torch's own random state."""
    return uniform_start(images.detach(), radii(epsilon, images), None)


def _step(images: Tensor, at: Tensor, gradient: Tensor, epsilon: Radius, length: float) -> Tensor:
    """One step of `length` epsilons along the sign of the gradient, brought back into the ball and into [0, 1]."""
    moved = at + length * epsilon * gradient.sign()
    return (images.detach() + _within(moved - images.detach(), epsilon)).clamp(0, 1)


@contextmanager
def _attacking(model: nn.Module, images: Tensor, precision: Precision) -> Iterator[None]:
    """Set the precision of the attack's passes, and fold BatchNorm away in them."""
    inside = getattr(model, "net", None)  # a Classifier's network can be traced, whatever stands before it
    network = inside if isinstance(inside, nn.Module) else model
    with lowered("bf16" if precision == "bf16" else None, images), fold_batchnorm(network):
        yield
