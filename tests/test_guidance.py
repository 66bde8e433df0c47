"""Guidance on input gradients, of any network; that on evidence is in test_evidence."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_runs import recipe
from trustcxr import models
from trustcxr.data import phantom
from trustcxr.data.dataset import Dataset, load_dataset
from trustcxr.defences import guidance
from trustcxr.defences.counterfactual_loss import LesionBatch
from trustcxr.defences.guidance import Pass
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.training import fit_run

SIZE = 32


def _known(images: int = 3) -> LesionBatch:
    pixels = torch.rand(images, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    lesion, lung = torch.zeros_like(pixels), torch.zeros_like(pixels)
    lung[:, :, 4:28, 4:28] = 1
    lesion[: images - 1, :, 8:16, 8:16] = 1  # the last image has none
    return LesionBatch(pixels, torch.arange(images) % 3, lung, lesion)


def _in_training(model: nn.Module | None = None) -> nn.Module:
    """A network in training mode whose BatchNorm does what it does after training."""
    torch.manual_seed(0)
    model = (model or models.build("resnet10t", classes=3)).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def _pass(model: nn.Module, known: LesionBatch) -> Pass:
    with guidance.followed(model, "gradients") as passes:
        model(known.pixels)
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks], "nothing is left on it"
    (found,) = passes
    return found


def _loss(model: nn.Module, known: LesionBatch) -> Tensor:
    return guidance.guidance(_pass(model, known), known)


def test_pixels_times_gradient() -> None:
    model, known = _in_training(), _known()
    shown = guidance.explained(_pass(model, known), known)
    images = known.pixels.clone().requires_grad_()
    own = model.eval()(images)[torch.arange(3), known.labels].sum()
    (slope,) = torch.autograd.grad(own, images)
    assert torch.allclose(shown, images * slope, atol=1e-6)


def test_a_step_down_the_loss_moves_the_map_onto_the_lesion() -> None:
    model, known = _in_training(), _known()
    before = _loss(model, known)
    slopes = torch.autograd.grad(before, list(model.parameters()), allow_unused=True)
    found = [(weight, slope) for weight, slope in zip(model.parameters(), slopes, strict=True) if slope is not None]
    square = sum(float(slope.square().sum()) for _, slope in found)
    assert square > 0
    with torch.no_grad():
        for weight, slope in found:
            weight -= 1e-4 * slope / square
    after = _loss(model, known)
    assert before.item() - after.item() == pytest.approx(1e-4, rel=0.3), "as its gradient in the weights foretold"


def test_a_map_that_is_nowhere_positive_is_brought_back_at_the_lesion() -> None:
    known, model = _known(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3, bias=False)).train()
    nn.init.constant_(model[2].weight, -1.0)  # of the mean: so pixels times gradient are below 0 everywhere
    assert (guidance.explained(_pass(model, known), known) <= 0).all()
    rate = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(20):
        rate.zero_grad()
        _loss(model, known).backward()
        rate.step()
    shown = guidance.explained(_pass(model, known), known)[:2]
    assert (shown > 0).flatten(1).any(1).all(), "both images with a lesion have a map again"


def test_a_image_without_a_lesion_is_unguided() -> None:
    model, known = _in_training(), _known()
    found = _pass(model, known)
    nothing = LesionBatch(known.pixels, known.labels, known.lung, 0 * known.lesion)
    assert guidance.guidance(found, nothing).item() == 0
    energies = 1 - _loss(model, known)
    shown = guidance.explained(found, known).detach().clamp(min=0)
    inside = nn.functional.adaptive_avg_pool2d(known.lesion, shown.shape[-2:])
    by_image = (shown * inside).sum((1, 2, 3)) / shown.sum((1, 2, 3)).clamp(min=1e-6)
    assert energies.item() == pytest.approx(float(by_image[:2].mean()), abs=1e-5)


def test_the_lesion_is_where_the_answer_is_read_from() -> None:
    """One network reads inside the lesion and one outside: the first costs nothing, the second all."""

    class Reads(nn.Module):
        def __init__(self, where: Tensor) -> None:
            super().__init__()
            self.where, self.weight = where, nn.Parameter(torch.ones(3))

        def forward(self, images: Tensor) -> Tensor:
            return (images * self.where).mean((1, 2, 3))[:, None] * self.weight

    known = _known(2)
    costs = [_loss(Reads(where).train(), known).item() for where in (known.lesion[:1], 1 - known.lesion[:1])]
    assert costs == pytest.approx([0, 1], abs=1e-5)


def _recipe(defence: str = "standard", **training: object) -> RunRecipe:
    return recipe(
        defence,
        model={"name": "resnet10t"},
        **{"batch_size": 12, "learning_rate": 3e-3, "warmup_epochs": 0.5} | training,
    )


def test_what_cannot_be_guided_is_refused() -> None:
    with pytest.raises(UserError, match="choose gradients"):
        _recipe(guidance=1.0, guidance_on="evidence")
    with pytest.raises(UserError, match="guidance_on: gradients does nothing without a weight"):
        _recipe(guidance=0, guidance_on="gradients")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    folder = tmp_path_factory.mktemp("guidance")
    phantom.write(folder, {"Train": 48, "Val": 24}, size=SIZE, seed=0, conspicuity=3.0)
    train, val = (load_dataset(folder, split=split, size=SIZE) for split in ("Train", "Val"))
    return train, val


def _energy_inside(model: nn.Module, data: Dataset) -> float:
    ill = np.flatnonzero(data.masks("infection").any((1, 2)))
    lesion = torch.from_numpy(np.array(data.masks("infection")[ill])).float()[:, None]
    pixels = torch.from_numpy(data.batch(ill)).float() / 255
    known = LesionBatch(pixels, torch.from_numpy(data.labels[ill]), lesion, lesion)
    return 1 - _loss(_in_training(model), known).item()


@pytest.mark.full
def test_training_moves_what_explains_the_answer_onto_the_lesion(
    images: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    inside = {}
    for name, keys in {"plain": {}, "guided": {"guidance": 5.0, "guidance_on": "gradients"}}.items():
        fit_run.fit(_recipe(epochs=6, learning_rate=1e-3, **keys), *images, tmp_path / name)
        inside[name] = _energy_inside(load_run(tmp_path / name).model, images[1])
    assert inside["guided"] > 1.2 * inside["plain"]


@pytest.mark.slow
@pytest.mark.parametrize(("defence", "background"), [("standard", "full"), ("fgsm", "emptied"), ("trades", "full")])
def test_every_step_of_training_is_guided_as_the_recipe_says(
    defence: str, background: str, images: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = [], guidance.guidance

    def spied(found: Pass, known: LesionBatch) -> Tensor:
        assert len(found.source) >= len(known.labels) == len(known.pixels)
        asked.append((found.on, tuple(found.source.shape[2:]), bool(known.ill().any())))
        return real(found, known)

    monkeypatch.setattr(guidance, "guidance", spied)
    keys = {"guidance": 0.5, "guidance_on": "gradients"}
    run = _recipe(defence, background=background, epochs=1, batch_size=48, **keys)
    assert "guided" in run.name
    fit_run.fit(run, *images, tmp_path / "run")
    assert asked == [("gradients", (SIZE, SIZE), True)] * 3
