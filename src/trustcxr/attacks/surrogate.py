"""Attack a model by the adversarial images of a surrogate: another model, or a small network distilled from it.

Papernot et al. 2017 ("Practical black-box attacks against machine learning"): adversarial images of the surrogate are
tried on the model.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.attacks.base import check_input, checked_logits
from trustcxr.errors import UserError
from trustcxr.models.preserve_state import preserve_state

_WIDTHS = (16, 32, 64, 96)


class SurrogateNet(nn.Module):
    """Four convolution blocks of stride 2 with BatchNorm, global mean, linear layer: pixel space -> logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for width in _WIDTHS:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 1, H, W) in [0, 1] to logits (B, C)."""
        return self.head(self.body(images - 0.5).mean((2, 3)))


def distil(
    model: nn.Module,
    images: Tensor,
    *,
    scale: float = 1.0,
    epsilon: float = 0.02,
    steps: int = 300,
    batch_size: int = 32,
    seed: int = 0,
) -> SurrogateNet:
    """Train a surrogate of `model` on `images` (N, 1, H, W) in [0, 1], and return it in evaluation mode.

    Half of what it learns from has noise of +- `epsilon`. `scale` divides the model's logits (`GradientTraits.scale`).
    """
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), preserve_state(model), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        noise = (torch.rand(images.shape, generator=random) * 2 - 1).sign() * epsilon
        taught = torch.cat([images, (images + noise.to(images)).clamp(0, 1)]).to(memory_format=torch.channels_last)
        with torch.no_grad():
            targets = torch.cat([(model(part).float() / scale).softmax(1) for part in taught.split(batch_size)])
        net = SurrogateNet(targets.shape[1]).train()
        net = net.to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(taught), (batch_size,), generator=random)
            loss = F.kl_div(net(taught[rows]).log_softmax(1), targets[rows], reduction="batchmean")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def transfer(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    surrogate: nn.Module,
    attack: str = "momentum",
    **options: Any,
) -> Tensor:
    """Return images that `attack` makes against another model, `surrogate` (Papernot et al. 2016), to try on `model`.

    `options` go to the attack. UserError unless both models have the same number of classes.

    >>> import torch, trustcxr as tx
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 2])
    >>> other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> adversarial = tx.attacks.transfer(model, images, labels, epsilon=0.02, surrogate=other)
    >>> bool((adversarial - images).abs().max() < 0.02 + 1e-6)
    True
    """
    from trustcxr.attacks import get

    check_input(images, labels, epsilon if attack != "pgd-l2" else 0.0)
    with preserve_state(model), preserve_state(surrogate):
        counts = [checked_logits(m, images[:1], labels[:1]).shape[1] for m in (model, surrogate)]
    if counts[0] != counts[1]:
        raise UserError(f"transfer: the model has {counts[0]} classes and the surrogate {counts[1]}")
    return get(attack)(surrogate, images, labels, epsilon=epsilon, **options)
