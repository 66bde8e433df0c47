"""Adversarial images on the whole grey levels of a file."""

import pytest
import torch
from torch import Tensor, nn

from small_networks import Wrapped
from trustcxr.attacks import pgd, square, worst_case_report
from trustcxr.attacks.pgd import keep_worse, pgd_on_grid, round_inwards
from trustcxr.data.loader import to_pixels
from trustcxr.errors import UserError

EPSILON = 0.02


def files(count: int = 6, side: int = 12) -> Tensor:
    """Images as they come from 8-bit files."""
    generator = torch.Generator().manual_seed(0)
    return to_pixels(torch.randint(0, 256, (count, 1, side, side), generator=generator).to(torch.uint8))


def linear(classes: int = 3, side: int = 12, scale: float = 1.0) -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(side * side, classes))
    with torch.no_grad():
        net[1].weight.mul_(scale)
    return net


def on_grid(images: Tensor) -> bool:
    return torch.equal(images, to_pixels((images * 255).round().to(torch.uint8)))


def test_a_pixel_between_two_grey_levels_stays_if_it_was_not_changed() -> None:
    images = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(round_inwards(images, images), images)
    assert torch.equal(pgd_on_grid(linear(), images, torch.zeros(4, dtype=torch.long), epsilon=0.0), images)
    report = worst_case_report(linear(), images, torch.zeros(4, dtype=torch.long), epsilon=0.001, steps=2, queries=5)
    assert (report.images - images).abs().max() <= 0.001 + 1e-6


@pytest.mark.parametrize("epsilon", [0.0, 1 / 255, 0.02, 0.3])
def test_a_rounded_image_is_an_8_bit_file_within_the_ball(epsilon: float) -> None:
    images = files()
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
    for moved in (images + epsilon * noise, images + epsilon * noise.sign()):
        rounded = round_inwards(moved.clamp(0, 1), images)
        assert on_grid(rounded)
        assert ((rounded - images).abs() <= (moved.clamp(0, 1) - images).abs() + 1e-6).all()
        assert ((rounded - moved.clamp(0, 1)).abs() < 1 / 255).all()
        assert ((rounded - images) * (moved - images) >= 0).all(), "towards the image, and not beyond it"
    assert torch.equal(round_inwards(images, images), images)


def test_images_that_are_no_files_are_rounded_inwards_too() -> None:
    images = torch.tensor([[[[100.4, 100.4, 100.4, 100.4]]]]) / 255
    moved = torch.tensor([[[[100.9, 102.5, 99.7, 97.2]]]]) / 255
    assert (255 * round_inwards(moved, images)).flatten().tolist() == pytest.approx([100.4, 102, 100, 98], abs=1e-4)
    half = round_inwards(moved.half(), images.half())
    assert half.dtype == torch.float16
    assert ((half - images.half()).abs() <= (moved.half() - images.half()).abs()).all()


def undo(net: nn.Module, images: Tensor) -> Tensor:
    """Take pixels that are no whole grey levels for perturbed, and answer class 0 then; else as the network does."""
    levels = images * 255
    floats = ((levels - levels.round()).abs() > 1e-3).flatten(1).any(1)
    return torch.where(floats[:, None], torch.tensor([9.0, 0.0, 0.0]), net(images))


def test_a_model_that_knows_floats_is_judged_as_files() -> None:
    images, model = files(24), Wrapped(linear(scale=3.0), undo)
    labels = torch.zeros(len(images), dtype=torch.long)
    rows = model(images).argmax(1) == labels
    images, labels = images[rows], labels[rows]
    assert len(images) > 3
    attacked = pgd(model.net, images, labels, epsilon=EPSILON, steps=10)
    assert (model(attacked).argmax(1) == 0).all(), "as floats none is misled"
    kept = keep_worse(model, images, attacked, labels)
    wrong = model(kept).argmax(1) != labels
    assert wrong.any()
    assert on_grid(kept[wrong])
    assert torch.equal(kept[~wrong], attacked[~wrong])
    report = worst_case_report(model, images, labels, epsilon=EPSILON, steps=10, queries=20)
    assert any(name in ("pgd-8bit", "apgd-margin, 8-bit") for name in report.broken_by)
    assert report.accuracy <= float((~wrong).double().mean())
    assert ((model(report.images).argmax(1) == labels) == torch.tensor([n is None for n in report.broken_by])).all()


def test_pgd_on_whole_greys_finds_about_what_pgd_finds_on_files() -> None:
    images, model = files(40), linear(scale=3.0)
    labels = model(images).argmax(1)
    found = pgd_on_grid(model, images, labels, epsilon=EPSILON, steps=50)
    assert on_grid(found)
    assert (found - images).abs().max() <= 5 / 255 + 1e-6
    other = round_inwards(pgd(model, images, labels, epsilon=EPSILON, steps=50), images)
    wrong, wrong_other = ((model(x).argmax(1) != labels).float().mean() for x in (found, other))
    assert wrong_other > 0.1
    assert wrong >= wrong_other - 0.05
    with pytest.raises(UserError, match="pgd-8bit: steps"):
        pgd_on_grid(model, images, labels, epsilon=EPSILON, steps=0)


def test_square_draws_its_ends_only_if_asked() -> None:
    images, model = files(), linear(scale=0.1)
    labels = model(images).argmax(1)
    plain = square(model, images, labels, epsilon=EPSILON, queries=30)
    assert torch.equal(plain, square(model, images, labels, epsilon=EPSILON, queries=30, ends=1.0))
    inside = (images > 0.03) & (images < 0.97)
    assert ((plain - images).abs()[inside] - EPSILON).abs().max() < 1e-6
    drawn = (square(model, images, labels, epsilon=EPSILON, queries=30, ends=0.9) - images).abs()[inside]
    assert drawn.min() >= 0.9 * EPSILON - 1e-6
    assert drawn.max() <= EPSILON + 1e-6
    assert drawn.unique().numel() > 20
    for ends in (0.0, 1.1):
        with pytest.raises(UserError, match="square: ends must be above 0 and at most 1"):
            square(model, images, labels, epsilon=EPSILON, queries=3, ends=ends)
