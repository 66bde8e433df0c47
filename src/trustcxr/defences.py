"""How a model is trained to hold up: one loss for each defence, side by side.

One contract: (model, images, labels, *, options of its own) -> (loss, logits). Images are (B, 1, H, W), float, in
[0, 1]; labels are (B,), int; the loss is a scalar; the logits (B, C) are those of the images that the loss was taken
on, for the training accuracy. What a defence draws comes from torch's random state on the processor, so that one seed
gives one run on every device.

Options that several share:
    epsilon: L-infinity radius in pixel space, or radii (B, 1, H, W), one for each pixel.
    mode: of the model while it is attacked: "eval", or "train" for batch statistics (nothing is updated).
    attack_precision: "bf16" runs the attack's passes under autocast, since only the sign of the gradient is used.
    clean_share: share of the loss that is on the images as they are.
    clean: what the images as they are go through, where that is not `model`: see TwinBatchNorm.
    label_smoothing in [0, 1], class_weights (C,): of the loss alone; the attack climbs the plain cross-entropy.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Protocol, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.errors import unknown
from trustcxr.models.folding import folded

Precision = Literal["same", "bf16"]
Radius = float | Tensor


class Weighing(TypedDict, total=False):
    """How the cross-entropy of the loss is weighed."""

    label_smoothing: float
    class_weights: Tensor | None


class Defence(Protocol):
    """What every defence looks like; the options that each takes are in recipes.DEFENCE_OPTIONS too."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """The loss (scalar) and the logits (B, C)."""
        ...


def standard(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius = 0.0,
    clean_share: float = 1.0,
    mode: attacks.Mode = "eval",
    **weighing: Unpack[Weighing],
) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the images as they are; there is no attack that the options could change."""
    logits = model(images)
    return _cross_entropy(logits, labels, **weighing), logits


# --- trained on what an attack finds ---------------------------------------------------------------------------------


def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    clean_share: float = 0.0,
    mode: attacks.Mode = "eval",
    attack_precision: Precision = "same",
    clean: nn.Module | None = None,
    **weighing: Unpack[Weighing],
) -> tuple[Tensor, Tensor]:
    """FGSM adversarial training (Goodfellow et al. 2015): one gradient a step, in the images alone.

    The loss is clean_share * clean loss + (1 - clean_share) * adversarial loss.
    """
    with _attacking(model, images, attack_precision, mode):
        adversarial = attacks.fgsm(model, images, labels, epsilon=epsilon, mode=mode)
    return _shared(model, clean, images, adversarial, labels, clean_share, **weighing)


def fgsm_rs(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    clean_share: float = 0.0,
    mode: attacks.Mode = "eval",
    attack_precision: Precision = "same",
    clean: nn.Module | None = None,
    **weighing: Unpack[Weighing],
) -> tuple[Tensor, Tensor]:
    """FGSM training from a random start, "fast is better than free" (Wong et al. 2020).

    The start is even over the ball, the one step 1.25 epsilon long, the result brought back into the ball.
    """
    start = _random_start(images, epsilon)
    with _attacking(model, images, attack_precision, mode), attacks.undisturbed(model, mode):
        gradient, _ = attacks.input_gradient(model, start, labels, check=True)
    adversarial = _step(images, start, gradient, epsilon, 1.25)
    return _shared(model, clean, images, adversarial, labels, clean_share, **weighing)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    steps: int = 3,
    clean_share: float = 0.0,
    mode: attacks.Mode = "eval",
    attack_precision: Precision = "same",
    clean: nn.Module | None = None,
    **weighing: Unpack[Weighing],
) -> tuple[Tensor, Tensor]:
    """PGD adversarial training (Madry et al. 2018): `steps` gradients a step, from a random start."""
    seed = int(torch.randint(2**31, ()))
    with _attacking(model, images, attack_precision, mode):
        adversarial = attacks.pgd(
            model,
            images,
            labels,
            epsilon=epsilon,
            steps=steps,
            seed=seed,
            mode=mode,
        )
    return _shared(model, clean, images, adversarial, labels, clean_share, **weighing)


def trades(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    beta: float = 6.0,
    steps: int = 3,
    mode: attacks.Mode = "eval",
    attack_precision: Precision = "same",
    clean: nn.Module | None = None,
    **weighing: Unpack[Weighing],
) -> tuple[Tensor, Tensor]:
    """TRADES (Zhang et al. 2019): clean cross-entropy + beta * KL(answer to the image || answer to the perturbed one).

    The attack climbs that divergence for `steps` gradients; one is enough to train with. It starts evenly over the
    ball, not within 0.001 of the image as the paper does: a single step from there would have no slope to go by.
    """
    adversarial = _random_start(images, epsilon)
    with _attacking(model, images, attack_precision, mode), attacks.undisturbed(model, mode):
        with torch.no_grad():
            answer = model(images).float().softmax(1)
        for _ in range(steps):
            gradient, _ = attacks.input_gradient(
                model, adversarial, labels, loss=lambda logits, _: _divergence(answer, logits)
            )
            adversarial = _step(images, adversarial, gradient, epsilon, 1.25 if steps == 1 else 2.5 / steps)
    natural, logits = (model if clean is None else clean)(images), model(adversarial)
    divergence = _divergence(natural.float().softmax(1), logits.float()).mean()
    return _cross_entropy(natural, labels, **weighing) + beta * divergence, logits


def free(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: Radius,
    perturbation: Tensor,
    **weighing: Unpack[Weighing],
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
    return _cross_entropy(logits, labels, **weighing), logits


# --- trained on images that are changed at random --------------------------------------------------------------------


def mixup(
    model: nn.Module, images: Tensor, labels: Tensor, *, alpha: float = 0.2, **weighing: Unpack[Weighing]
) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018) in pixel space: two images and their losses in the shares s and 1 - s.

    s is drawn from Beta(alpha, alpha), once for a batch. The logits are of the mixed images: beside the labels of the
    first of each pair, so the training accuracy is below that on images as they are.
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    other = torch.randperm(len(images)).to(images.device)
    logits = model(share * images + (1 - share) * images[other])
    first, second = (_cross_entropy(logits, target, **weighing) for target in (labels, labels[other]))
    return share * first + (1 - share) * second, logits


def cutout(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    size: float = 0.25,
    holes: int = 1,
    **weighing: Unpack[Weighing],
) -> tuple[Tensor, Tensor]:
    """Cutout (DeVries and Taylor 2017) in pixel space: `holes` black squares in each image.

    The side of a square is `size` of the image's. Its centre is drawn evenly over the image, so that it may be cut off
    at the edge, as in the paper.
    """
    return standard(model, cut(images, size=size, holes=holes), labels, **weighing)


def gaussian(
    model: nn.Module, images: Tensor, labels: Tensor, *, sigma: float = 0.05, **weighing: Unpack[Weighing]
) -> tuple[Tensor, Tensor]:
    """Training with Gaussian noise of standard deviation `sigma` in pixel space, clamped to [0, 1]."""
    noise = torch.randn(images.shape).to(images)
    return standard(model, (images + sigma * noise).clamp(0, 1), labels, **weighing)


DEFENCES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "standard": standard,
    "fgsm": fgsm,
    "fgsm-rs": fgsm_rs,
    "free": free,
    "pgd": pgd,
    "trades": trades,
    "mixup": mixup,
    "cutout": cutout,
    "gaussian": gaussian,
}


def get(name: str) -> Defence:
    """The defence of that name; UserError with the valid names for any other."""
    if name not in DEFENCES:
        raise unknown("defence", name, DEFENCES)
    return DEFENCES[name]


# --- their parts -----------------------------------------------------------------------------------------------------


def cut(images: Tensor, *, size: float, holes: int) -> Tensor:
    """Copies of images (B, 1, H, W) with `holes` black squares each, of side `size` as a share of H and of W."""
    count, _, *sides = images.shape
    hidden = torch.zeros((count, *sides), dtype=torch.bool)
    for _ in range(holes):
        inside = []
        for side in sides:
            length = max(1, round(size * side))
            start = torch.randint(side, (count, 1)) - length // 2
            place = torch.arange(side)
            inside.append((place >= start) & (place < start + length))
        hidden |= inside[0][:, :, None] & inside[1][:, None, :]
    return images.masked_fill(hidden[:, None].to(images.device), 0.0)


def _cross_entropy(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    return F.cross_entropy(logits, labels, weight=class_weights, label_smoothing=label_smoothing)


def _shared(
    model: nn.Module,
    clean: nn.Module | None,
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    clean_share: float,
    **weighing: Unpack[Weighing],
) -> tuple[Tensor, Tensor]:
    """The loss shared between adversarial and clean images, and the logits of the adversarial ones."""
    logits = model(adversarial)
    loss = _cross_entropy(logits, labels, **weighing)
    if clean_share > 0:
        natural = _cross_entropy((model if clean is None else clean)(images), labels, **weighing)
        loss = clean_share * natural + (1 - clean_share) * loss
    return loss, logits


def _divergence(answer: Tensor, logits: Tensor) -> Tensor:
    """KL(answer || softmax of the logits) of each image (B,), from probabilities (B, C) and logits (B, C)."""
    return F.kl_div(logits.log_softmax(1), answer, reduction="none").sum(1)


def _within(perturbation: Tensor, epsilon: Radius) -> Tensor:
    return torch.maximum(torch.minimum(perturbation, _as(epsilon, perturbation)), -_as(epsilon, perturbation))


def _as(epsilon: Radius, like: Tensor) -> Tensor:
    return torch.as_tensor(epsilon, dtype=like.dtype, device=like.device)


def _random_start(images: Tensor, epsilon: Radius) -> Tensor:
    """Images drawn evenly from the ball around each; on the processor, so that one seed is one start everywhere."""
    return (images.detach() + epsilon * (2 * torch.rand(images.shape) - 1).to(images)).clamp(0, 1)


def _step(images: Tensor, at: Tensor, gradient: Tensor, epsilon: Radius, length: float) -> Tensor:
    """One step of `length` epsilons along the sign of the gradient, brought back into the ball and into [0, 1]."""
    moved = at + length * epsilon * gradient.sign()
    return (images.detach() + _within(moved - images.detach(), epsilon)).clamp(0, 1)


@contextmanager
def _attacking(model: nn.Module, images: Tensor, precision: Precision, mode: attacks.Mode) -> Iterator[None]:
    """The precision of the attack's passes, and BatchNorm folded away where it has no batch statistics in them."""
    inside = getattr(model, "net", None)  # a Classifier's network can be followed, whatever stands before it
    networks = [inside if isinstance(inside, nn.Module) else model] if mode == "eval" else []
    with ExitStack() as stack:
        if precision == "bf16":
            stack.enter_context(torch.autocast(images.device.type, torch.bfloat16))
        stack.enter_context(folded(*networks))
        yield
