"""Training images on other backgrounds: what is kept of the lungs, what comes behind, and which images are left."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trustcxr.data.loader import augment
from trustcxr.data.lung_masks import soften
from trustcxr.defences import backgrounds

SIDE = 50
LUNGS = torch.zeros(1, 1, SIDE, SIDE)
LUNGS[..., 15:35, 10:20] = 1
LUNGS[..., 15:35, 30:40] = 1
INSIDE = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)  # beyond the soft edge
INSIDE[..., 19:31, 14:16] = True
OUTSIDE = soften(LUNGS) == 0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def greys(count: int) -> Tensor:
    return torch.linspace(0.1, 0.9, count).view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE).clone()


def lungs(count: int) -> Tensor:
    return LUNGS.expand(count, -1, -1, -1).clone()


def test_swap_puts_the_lungs_on_another_image_of_the_batch() -> None:
    images = greys(9)
    changed = backgrounds.change(images, lungs(9), "swap", share=1.0, generator=generator())
    own = images[:, 0, 0, 0]
    assert all(torch.allclose(c[INSIDE[0]], g) for c, g in zip(changed, own, strict=True)), "the lungs are its own"
    behind = [float(c[OUTSIDE[0]].unique()) for c in changed]
    assert sorted(behind) == pytest.approx(sorted(own.tolist())), "each background is used once"
    assert all(abs(b - float(g)) > 0.05 for b, g in zip(behind, own, strict=True)), "and never on its own image"
    edge = changed[0, 0, 25]
    assert bool(((edge >= min(own[0], behind[0]) - 1e-6) & (edge <= max(own[0], behind[0]) + 1e-6)).all())
    assert len(edge.unique()) > 5, "the edge is soft"


def test_backgrounds_come_from_every_class_alike() -> None:
    """The background must not tell the class: of three equal classes each gives a third, whatever the lungs' class."""
    labels = torch.arange(30) % 3
    table = torch.zeros(3, 3)
    for seed in range(300):
        order = torch.randperm(30, generator=generator(seed))
        images = (labels[order].float() / 2).view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE)
        changed = backgrounds.change(images, lungs(30), "swap", share=1.0, generator=generator(1000 + seed))
        behind = (changed[:, 0, 0, 0] * 2).round().long()
        for own, other in zip(labels[order], behind, strict=True):
            table[own, other] += 1
    shares = table / table.sum(1, keepdim=True)
    assert torch.allclose(shares, torch.full((3, 3), 1 / 3), atol=0.04)


def test_mask_leaves_the_lungs_alone() -> None:
    images = greys(4)
    changed = backgrounds.change(images, lungs(4), "mask", share=1.0, generator=generator())
    assert float(changed[OUTSIDE.expand(4, -1, -1, -1)].abs().max()) == 0
    assert torch.equal(changed[:, :, 25, 15], images[:, :, 25, 15])


CHANGES: dict[str, Callable[..., Tensor]] = {
    "swap": lambda *a, **o: backgrounds.change(*a, "swap", **o),
    "mask": lambda *a, **o: backgrounds.change(*a, "mask", **o),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_share_is_changed_and_images_without_a_mask_never(kind: str) -> None:
    images = torch.rand((400, 1, SIDE, SIDE), generator=generator())
    masks = lungs(400)
    masks[::4] = 0
    before = images.clone()
    changed = CHANGES[kind](images, masks, share=0.6, generator=generator())
    touched = (changed != images).flatten(1).any(1)
    assert torch.equal(images, before)
    assert not bool(touched[::4].any())
    with_mask = torch.ones(400, dtype=torch.bool)
    with_mask[::4] = False
    assert float(touched[with_mask].float().mean()) == pytest.approx(0.6, abs=0.08)
    assert torch.equal(changed, CHANGES[kind](images, masks, share=0.6, generator=generator()))
    assert not torch.equal(changed, CHANGES[kind](images, masks, share=0.6, generator=generator(1)))
    assert torch.equal(images, CHANGES[kind](images, masks, share=0.0, generator=generator()))
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1


def test_one_image_has_no_other_background() -> None:
    images = greys(2)[:1]
    assert torch.equal(images, backgrounds.change(images, LUNGS, "swap", share=1.0, generator=generator()))
    assert torch.equal(images, backgrounds.change(images, LUNGS, "full", share=1.0, generator=generator()))


def test_a_mask_moves_with_its_image() -> None:
    """One grid for both: an image that is its own mask stays so."""
    masks = lungs(16)
    ranges = {"rotation": 20.0, "shift": 0.1, "scale": 0.3, "flip": 0.5, "brightness": 0.0, "contrast": 0.0}
    both = augment(torch.cat([masks, masks], 1), generator(), **ranges)
    assert torch.allclose(both[:, :1], both[:, 1:], atol=1e-6)
    assert not torch.allclose(both[:, 1:], masks)
    assert torch.equal(both[:, :1], augment(masks, generator(), **ranges)), "images move as they do without masks"
    lit = augment(torch.cat([masks, masks], 1), generator(), **ranges | {"brightness": 0.2})
    assert torch.equal(lit[:, 1:], both[:, 1:]), "light does not touch a mask"
