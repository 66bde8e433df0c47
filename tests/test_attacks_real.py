"""Attacks on a robust network and real X-rays, at equal budget with torchattacks and foolbox."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_networks import accuracy
from test_attacks_strong import left_by_suite
from trustcxr import attacks
from trustcxr.data import load_dataset
from trustcxr.data.loader import to_pixels
from trustcxr.defences import adversarial

EPSILON, STEPS, QUERIES = 0.02, 20, 200


def robust_network(images: Tensor, labels: Tensor, *, epochs: int = 6) -> nn.Module:
    torch.manual_seed(0)
    widths = (1, 24, 48, 96)
    blocks = [[nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(4, b), nn.ReLU()] for a, b in pairwise(widths)]
    model = nn.Sequential(*(layer for block in blocks for layer in block), nn.Flatten(), nn.Linear(96 * 16, 3))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    steps = epochs * (len(images) // 64)
    for step in range(steps):
        rows = torch.randint(0, len(images), (64,), generator=generator)
        ramp = min(1.0, step / (0.7 * steps))
        loss, _ = adversarial.fgsm(model.train(), images[rows], labels[rows], epsilon=EPSILON * ramp)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return model.eval()


def load_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Real X-rays at 32 pixels: images (N, 1, 32, 32) in [0, 1] and labels."""
    dataset = load_dataset(folder, split=split, size=32, workers=1)
    return to_pixels(torch.from_numpy(np.array(dataset.images))), torch.from_numpy(np.array(dataset.labels))


@pytest.fixture(scope="module")
def robust(covidqu: Path) -> nn.Module:
    return robust_network(*load_split(covidqu, "Train"))


@pytest.fixture(scope="module")
def held_out(covidqu: Path) -> tuple[Tensor, Tensor]:
    images, labels = load_split(covidqu, "Test")
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:200]
    return images[rows], labels[rows]


@pytest.mark.full
def test_worst_case_on_real_images(robust: nn.Module, held_out: tuple[Tensor, Tensor]) -> None:
    """At most a point above torchattacks' APGD (cross-entropy), FAB and Square taken together, at equal budget."""
    images, labels = held_out
    clean = accuracy(robust, images, labels)
    assert clean > 0.55
    theirs = left_by_suite(robust, images, labels, EPSILON)
    ours = attacks.worst_case_report(robust, images, labels, epsilon=EPSILON, steps=STEPS, queries=QUERIES)
    print(f"clean {clean:.1%}, worst-case {ours.accuracy:.1%}, torchattacks together {theirs:.1%}")
    assert 0.2 < theirs < clean - 0.05, "the network is neither robust nor invulnerable"
    assert ours.accuracy <= theirs + 0.01
    assert ours.accuracy == pytest.approx(accuracy(robust, ours.images, labels))


@pytest.mark.full
def test_pgd_and_apgd_on_real_images(robust: nn.Module, held_out: tuple[Tensor, Tensor]) -> None:
    import foolbox
    import torchattacks

    images, labels = held_out
    step = 2.5 * EPSILON / STEPS
    torch.manual_seed(0)
    found = {
        "torchattacks pgd": torchattacks.PGD(robust, eps=EPSILON, alpha=step, steps=STEPS)(images, labels),
        "torchattacks apgd": torchattacks.APGD(robust, eps=EPSILON, steps=STEPS)(images, labels),
        "pgd": attacks.pgd(robust, images, labels, epsilon=EPSILON, steps=STEPS),
        "apgd": attacks.apgd(robust, images, labels, epsilon=EPSILON, steps=STEPS),
    }
    robust.eval()
    shares = {name: accuracy(robust, perturbed, labels) for name, perturbed in found.items()}
    attack = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=STEPS)
    _, _, hits = attack(foolbox.PyTorchModel(robust, bounds=(0, 1)), images, labels, epsilons=EPSILON)
    shares["foolbox pgd"] = 1 - float(hits.float().mean())
    print(shares)
    for ours, theirs in (("pgd", "torchattacks pgd"), ("pgd", "foolbox pgd"), ("apgd", "torchattacks apgd")):
        assert abs(shares[ours] - shares[theirs]) <= 0.0101, shares


@pytest.mark.full
def test_the_sweep_falls_to_zero_on_real_images(robust: nn.Module, held_out: tuple[Tensor, Tensor]) -> None:
    """Trap 7, with the whole suite: what a smaller radius found is handed on, so that accuracy cannot rise."""
    images, labels = (t[:100] for t in held_out)
    falls, known = [accuracy(robust, images, labels)], images
    for epsilon in (0.005, 0.01, 0.02, 0.05, 0.1, 0.3):
        known = attacks.worst_case(robust, images, labels, epsilon=epsilon, steps=10, queries=50, start=known)
        falls.append(accuracy(robust, known, labels))
    print(falls)
    assert falls == sorted(falls, reverse=True)
    assert falls[-1] == 0
