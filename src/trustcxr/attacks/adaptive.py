"""Attack a model according to its defence: through BPDA, over random draws, by images of a surrogate.

Tramer et al. 2020 ("On adaptive attacks to adversarial example defenses"). The model itself judges every candidate. A
surrogate is another model, or a small network distilled from this one (Papernot et al. 2017).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.attacks.apgd import apgd
from trustcxr.attacks.base import check_input, checked_input, checked_logits, lead, logits_of
from trustcxr.attacks.bpda import AttackView, GradientTraits, probe_gradients
from trustcxr.attacks.pgd import pgd, round_inwards
from trustcxr.attacks.square import square
from trustcxr.errors import UserError
from trustcxr.models.preserve_state import preserve_state
from trustcxr.registry import STOCHASTIC_DRAWS

LONGER, CLIMBS = 10, 6  # with approximate gradients: factor of steps, and most repeats while they help
_WIDTHS = (16, 32, 64, 96)


def adaptive(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    traits: GradientTraits | None = None,
    surrogate: nn.Module | None = None,
    gradients: bool = True,
    start: Sequence[Tensor] = (),
    steps: int = 50,
    queries: int = 0,
    seed: int = 0,
    ends: float = 1.0,
) -> Tensor:
    """Return the worst of PGD and APGD through each variant of the model, of a surrogate's images and of `start`.

    Each is tried as floats and as an 8-bit file (`grid.round_inwards`). For a random model, that is the image which is
    misclassified most often over draws. Common arguments: see `fgsm`.

    Args:
        traits: what `probe_gradients` returned; by default it probes these images.
        surrogate: a model distilled from this one (`surrogate.distil`), attacked too.
        gradients: False if the model has none.
        start: adversarial candidates (B, 1, H, W) to try.
        queries: of Square on the images that remain; 0 for none.
        ends: see `square`.

    Raises UserError as the attacks do.
    """
    images, radius = checked_input(images, labels, epsilon)
    if not len(images):
        return images.clone()
    traits = traits or probe_gradients(model, images[:32])
    worst = _Worst(model, images, labels, random=traits.random)
    for candidates in start:
        worst.add(torch.arange(len(images), device=images.device), candidates.detach())
    variants = traits.variants(model) if gradients else []
    for variant in variants:
        worst.climb(variant, radius, steps, seed, stop=not traits.random)
    if gradients and traits.needs_bpda:  # the gradient is approximate: climb longer
        for repeat in range(1, CLIMBS + 1):
            before = worst.wrong.clone()
            worst.climb(variants[-1], radius, LONGER * steps, seed + repeat, stop=not traits.random)
            if torch.equal(worst.wrong, before):
                break
    if surrogate is not None:
        worst.climb(AttackView(surrogate), radius, steps, seed, stop=False)
    if queries and len(rows := worst.remaining()):
        search = partial(square, AttackView(model, draws=traits.draws, scale=traits.scale), queries=queries, ends=ends)
        worst.add(rows, search(images[rows], labels[rows], epsilon=radius[rows], seed=seed))
    return worst.images


def wrong_share(model: nn.Module, images: Tensor, labels: Tensor, *, draws: int = 1, seed: int = 0) -> Tensor:
    """Return how often the model is wrong on each image, (B,) in [0, 1], over `draws` from a fixed seed."""
    return _over_draws(model, images, labels, draws, seed)[0]


def _over_draws(model: nn.Module, images: Tensor, labels: Tensor, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return for each image how often the model is wrong, and the mean lead of its label over the next class."""
    with preserve_state(model):
        torch.manual_seed(seed)
        wrong, leads = (torch.zeros(len(images), device=images.device) for _ in range(2))
        for _ in range(draws):
            logits = logits_of(model, images)
            wrong += (logits.argmax(1) != labels).float()
            leads += lead(logits, labels)
    return wrong / draws, leads / draws


class _Worst:
    """The worst candidate of each image: most often wrong, then (for a random model) of the smallest lead."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, *, random: bool) -> None:
        self.model, self.clean, self.labels = model, images, labels
        self.draws = STOCHASTIC_DRAWS if random else 1
        self.images = images.clone()
        self.wrong, self.lead = self._measure(images, torch.arange(len(images), device=images.device))

    def remaining(self) -> Tensor:
        """Return the rows on which the model is not always wrong."""
        return (self.wrong < 1).nonzero()[:, 0]

    def add(self, rows: Tensor, candidates: Tensor) -> None:
        """Keep candidates (N, 1, H, W) for these rows, as floats or on whole greys, if they are worse."""
        for tried in (candidates, round_inwards(candidates, self.clean[rows])):
            wrong, lead = self._measure(tried, rows)
            worse = wrong > self.wrong[rows]
            if self.draws > 1:
                worse |= (wrong == self.wrong[rows]) & (lead < self.lead[rows])
            replaced = rows[worse]
            self.images[replaced], self.wrong[replaced], self.lead[replaced] = tried[worse], wrong[worse], lead[worse]

    def climb(self, variant: nn.Module, radius: Tensor, steps: int, seed: int, *, stop: bool) -> None:
        """Run PGD through `variant`, then APGD on the margin on what remains."""
        for attack in (partial(pgd, stop_when_wrong=stop), partial(apgd, loss="margin")):
            if len(rows := self.remaining()):
                images, labels = self.clean[rows], self.labels[rows]
                self.add(rows, attack(variant, images, labels, epsilon=radius[rows], steps=steps, seed=seed))

    def _measure(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        # Not the seed of the final judgement: candidates must not be selected on its draws.
        return _over_draws(self.model, images, self.labels[rows], self.draws, 977)


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
    >>> tx.attacks.transfer(model, images, labels, epsilon=0.02, surrogate=other).shape
    torch.Size([2, 1, 8, 8])
    """
    from trustcxr.attacks import get

    check_input(images, labels, epsilon if attack != "pgd-l2" else 0.0)
    with preserve_state(model), preserve_state(surrogate):
        counts = [checked_logits(m, images[:1], labels[:1]).shape[1] for m in (model, surrogate)]
    if counts[0] != counts[1]:
        raise UserError(f"transfer: the model has {counts[0]} classes and the surrogate {counts[1]}")
    return get(attack)(surrogate, images, labels, epsilon=epsilon, **options)
