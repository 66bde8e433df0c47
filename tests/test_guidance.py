"""Guidance on Grad-CAM and on input gradients, of any network; that on evidence is in test_evidence."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from trustcxr import explain, models
from trustcxr.data import phantom
from trustcxr.data.dataset import Dataset, load_dataset
from trustcxr.defences import guidance
from trustcxr.defences.counterfactual_loss import LesionBatch
from trustcxr.defences.guidance import Pass
from trustcxr.evaluation import load_run
from trustcxr.explain.base import to_saliency
from trustcxr.models.classifier import Classifier
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.training import fit_run

SIZE = 32


def _known(images: int = 3) -> LesionBatch:
    generator = torch.Generator().manual_seed(0)
    lesion, lung = torch.zeros(images, 1, SIZE, SIZE), torch.zeros(images, 1, SIZE, SIZE)
    lung[:, :, 4:28, 4:28] = 1
    lesion[: images - 1, :, 8:16, 8:16] = 1  # the last image has none
    return LesionBatch(torch.rand(images, 1, SIZE, SIZE, generator=generator), torch.arange(images) % 3, lung, lesion)


def _in_training(model: nn.Module | None = None) -> nn.Module:
    """A network in training mode whose BatchNorm does what it does after training."""
    torch.manual_seed(0)
    model = (model or models.build("resnet10t", classes=3)).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def _pass(model: nn.Module, known: LesionBatch, on: str, layer: int = -1) -> Pass:
    with guidance.followed(model, on, layer=layer) as passes:
        model(known.pixels)
    (found,) = passes
    return found


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_the_map_that_is_guided_is_grad_cam(layer: int) -> None:
    model, known = _in_training(), _known()
    shown = guidance.explained(_pass(model, known, "cam", layer), known)
    assert shown.shape[1:] == (1, *[{-1: 1, -2: 2, -3: 4}[layer]] * 2)
    expected = explain.grad_cam(model, known.pixels, known.labels, layer=layer)
    assert torch.allclose(to_saliency(shown[:, 0].detach(), SIZE, SIZE), expected, atol=1e-5)


def test_pixels_times_gradient() -> None:
    model, known = _in_training(), _known()
    shown = guidance.explained(_pass(model, known, "gradients"), known)
    images = known.pixels.clone().requires_grad_()
    own = model.eval()(images)[torch.arange(3), known.labels].sum()
    (slope,) = torch.autograd.grad(own, images)
    assert torch.allclose(shown, images * slope, atol=1e-6)


@pytest.mark.parametrize(("on", "layer"), [("cam", -3), ("cam", -4), ("gradients", -1)])
@pytest.mark.parametrize("loss", ["energy", "l1"])
def test_a_step_down_the_loss_moves_the_map_onto_the_lesion(on: str, layer: int, loss: str) -> None:
    model, known = _in_training(), _known()
    before = guidance.guidance(_pass(model, known, on, layer), known, loss=loss)
    slopes = torch.autograd.grad(before, list(model.parameters()), allow_unused=True)
    found = [(weight, slope) for weight, slope in zip(model.parameters(), slopes, strict=True) if slope is not None]
    square = sum(float(slope.square().sum()) for _, slope in found)
    assert square > 0
    with torch.no_grad():
        for weight, slope in found:
            weight -= 1e-4 * slope / square
    after = guidance.guidance(_pass(model, known, on, layer), known, loss=loss)
    assert before.item() - after.item() == pytest.approx(1e-4, rel=0.3), "as its gradient in the weights foretold"


class Faint(nn.Module):
    """Answers by weights on the mean of an image and of its negative:

    With weights below 0 Grad-CAM is so everywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cam_layer, self.net = nn.Identity(), nn.Linear(2, 3, bias=False)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        features = self.cam_layer(nn.functional.avg_pool2d(self.gain * torch.cat([images, 1 - images], 1), 4))
        return self.net(features.mean((2, 3)))


@pytest.mark.parametrize("loss", ["energy", "l1"])
def test_a_map_that_is_nowhere_positive_is_brought_back_at_the_lesion(loss: str) -> None:
    known = _known()
    model = Faint().train()
    with torch.no_grad():
        model.net.weight.fill_(-1.0)  # Grad-CAM of all classes is below 0 everywhere
    found = _pass(model, known, "cam")
    assert (guidance.explained(found, known) < 0).all()
    assert torch.autograd.grad(guidance.guidance(found, known, loss=loss), model.net.weight)[0].abs().max() == 0
    rate = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(20):
        rate.zero_grad()
        guidance.guidance(_pass(model, known, "cam"), known, loss=loss, depth=guidance.DEPTH).backward()
        rate.step()
    shown = guidance.explained(_pass(model, known, "cam"), known)[:2]
    assert (shown > 0).flatten(1).any(1).all(), "both images with a lesion have a map again"


def test_a_map_that_has_a_positive_part_does_not_feel_the_depth() -> None:
    model, known = _in_training(), _known()
    alone, both = (
        guidance.guidance(_pass(model, known, "gradients"), known, depth=depth).item() for depth in (0.0, 1.0)
    )
    assert alone == both


@pytest.mark.parametrize("on", ["cam", "gradients"])
def test_a_image_without_a_lesion_is_unguided(on: str) -> None:
    model, known = _in_training(), _known()
    found = _pass(model, known, on)
    nothing = LesionBatch(known.pixels, known.labels, known.lung, 0 * known.lesion)
    assert guidance.guidance(found, nothing).item() == 0
    energies = 1 - guidance.guidance(_pass(model, known, on), known)
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

    known = _known(1 + 1)
    costs = [
        guidance.guidance(_pass(Reads(where).train(), known, "gradients"), known).item()
        for where in (known.lesion[:1], 1 - known.lesion[:1])
    ]
    assert costs == pytest.approx([0, 1], abs=1e-5)


def test_tokens_of_a_transformer_are_a_map_too() -> None:
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, embed_dim=24, depth=2, num_heads=2, in_chans=1, num_classes=3
    )
    model, known = _in_training(Classifier(net, mean=0.5, std=0.2)), _known()
    shown = guidance.explained(_pass(model, known, "cam"), known)
    assert shown.shape == (3, 1, 2, 2)
    expected = explain.grad_cam(model, known.pixels, known.labels)
    assert torch.allclose(to_saliency(shown[:, 0].detach(), SIZE, SIZE), expected, atol=1e-4)


@pytest.mark.parametrize("on", ["cam", "gradients"])
def test_nothing_is_left_on_the_network(on: str) -> None:
    model = _in_training()
    _pass(model, _known(), on)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert sum(hooks) == 0


def _recipe(name: str = "resnet10t", defence: str = "standard", **training: object) -> RunRecipe:
    return RunRecipe.model_validate(
        {
            "model": {"name": name, "weights": "none"},
            "defence": {"name": defence},
            "training": {"epochs": 4, "batch_size": 12, "learning_rate": 3e-3} | training,
            "data": {"size": SIZE},
        }
    )


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"guidance_on": "evidence"}, "choose cam or gradients"),
        ({"guidance_on": "gradients", "guidance_layer": -2}, "guidance_layer: -2 goes with guidance_on: cam"),
        ({"guidance_on": "cam", "guidance_layer": 0}, "guidance_layer"),
        ({"guidance": 0, "guidance_on": "cam"}, "guidance_on: cam does nothing without a weight"),
        ({"guidance": 0, "guidance_loss": "l1"}, "guidance_loss: l1 does nothing without a weight"),
    ],
)
def test_what_cannot_be_guided_is_refused(keys: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _recipe(**{"guidance": 1.0} | keys)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    folder = tmp_path_factory.mktemp("guidance")
    phantom.write(folder, {"Train": 48, "Val": 24}, size=SIZE, seed=0, conspicuity=3.0)
    train, val = (load_dataset(folder, split=split, size=SIZE) for split in ("Train", "Val"))
    return train, val


def _energy_inside(model: nn.Module, data: Dataset, on: str, layer: int) -> float:
    ill = np.flatnonzero(data.masks("infection").any((1, 2)))
    lesion = torch.from_numpy(np.array(data.masks("infection")[ill])).float()[:, None]
    pixels = torch.from_numpy(data.batch(ill)).float() / 255
    known = LesionBatch(pixels, torch.from_numpy(data.labels[ill]), lesion, lesion)
    return 1 - guidance.guidance(_pass(_in_training(model), known, on, layer), known).item()


@pytest.mark.full
@pytest.mark.parametrize(("on", "layer", "epochs"), [("cam", -3, 12), ("gradients", -1, 6)])
def test_training_moves_what_explains_the_answer_onto_the_lesion(
    on: str, layer: int, epochs: int, images: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    train, val = images
    inside = {}
    for name, keys in {"plain": {}, "guided": {"guidance": 2.0, "guidance_on": on, "guidance_layer": layer}}.items():
        fit_run.fit(_recipe(epochs=epochs, learning_rate=1e-3, **keys), train, val, tmp_path / name)
        inside[name] = _energy_inside(load_run(tmp_path / name).model, val, on, layer)
    assert inside["guided"] > 1.2 * inside["plain"]


@pytest.mark.slow
@pytest.mark.parametrize(("defence", "background"), [("standard", "full"), ("fgsm", "emptied"), ("trades", "full")])
def test_every_step_of_training_is_guided_as_the_recipe_says(
    defence: str, background: str, images: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = images
    asked, real = [], guidance.guidance

    def spied(found: Pass, known: LesionBatch, *, loss: str, depth: float) -> Tensor:
        assert len(found.source) >= len(known.labels) == len(known.pixels)
        assert found.model.training
        asked.append((found.on, loss, tuple(found.source.shape[2:]), bool(known.ill().any())))
        assert depth > 0, "maps that have gone out are brought back"
        return real(found, known, loss=loss, depth=depth)

    monkeypatch.setattr(guidance, "guidance", spied)
    keys = {"guidance": 0.5, "guidance_on": "cam", "guidance_layer": -3, "guidance_loss": "l1"}
    recipe = _recipe(defence=defence, background=background, epochs=1, batch_size=48, **keys)
    assert "guided" in recipe.name
    fit_run.fit(recipe, train, val, tmp_path / "run")
    assert asked == [("cam", "l1", (4, 4), True)] * 3
