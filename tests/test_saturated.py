"""Models whose softmax saturates, whose gradients are no numbers, or who answer with NaN."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pack import Pack
from small_networks import Wrapped, accuracy, images_and_labels, trained
from small_runs import recipe, seal
from trustcxr import attacks
from trustcxr.attacks import base
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions, run_figures
from trustcxr.evaluation.trained_run import load_run
from trustcxr.explain import predict
from trustcxr.training import fit_run, monitor


@pytest.fixture(scope="module")
def made(pack: Pack) -> Path:
    return pack.run("standard")


def louder(factor: float = 1000.0) -> nn.Module:
    return Wrapped(trained(), lambda net, images: net(images) * factor)


@pytest.mark.parametrize("name", ["fgsm", "fgsm-rs", "pgd", "momentum", "apgd-ce", "pgd-l2"])
def test_logits_times_a_thousand_fall_as_the_bare_network_does(name: str) -> None:
    images, labels = images_and_labels(200, seed=5)
    epsilon = 0.6 if name == "pgd-l2" else 0.05
    options = {} if name.startswith("fgsm") else {"steps": 10}
    fell = []
    for model in (trained(), louder()):
        adversarial = attacks.get(name)(model, images, labels, epsilon=epsilon, **options)
        fell.append(accuracy(trained(), adversarial, labels))
    assert fell[0] < accuracy(trained(), images, labels) - 0.3
    assert abs(fell[0] - fell[1]) <= 0.04


def test_the_loss_of_what_is_not_saturated_is_the_cross_entropy_to_the_last_bit() -> None:
    logits = (torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 2).requires_grad_()
    labels = torch.randint(0, 3, (500,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits[0] = torch.tensor([900.0, 0.0, -3.0])
        labels[0] = 0
    found = []
    for loss in (base.cross_entropy, lambda z, y: F.cross_entropy(z, y, reduction="none")):
        values = loss(logits, labels)
        found.append((values.detach(), torch.autograd.grad(values.sum(), logits)[0]))
    (ours, our_slope), (theirs, their_slope) = found
    assert torch.equal(ours[1:], theirs[1:])
    assert torch.equal(our_slope[1:], their_slope[1:])
    assert not their_slope[0].any(), "float32 has no room for it"
    assert our_slope[0, 0] < 0 < our_slope[0, 1]


def test_the_loss_falls_without_a_step_where_it_is_gone_on_with() -> None:
    lead = torch.linspace(0, 60, 601, dtype=torch.float64)
    logits = torch.stack([lead, torch.zeros_like(lead)], 1)
    values = base.cross_entropy(logits, torch.zeros(601, dtype=torch.long))
    assert (values.diff() < 0).all()
    at = math.ceil(base.SATURATED * 10)
    assert values[at + 1] - values[at] == pytest.approx(float(values[at] - values[at - 1]), rel=0.2)


@pytest.mark.parametrize(
    ("name", "epsilon"), [("fgsm", 0.05), ("pgd", 0.05), ("momentum", 0.05), ("pgd-l2", 0.6), ("transfer", 0.05)]
)
def test_black_pixels_of_infinite_slope_stop_no_attack(name: str, epsilon: float) -> None:
    images, _ = images_and_labels(100, seed=5)
    images[:, :, :2, :2] = 0
    model = Wrapped(trained(), lambda net, images: net(images.sqrt()))
    labels = model(images).argmax(1)
    options = {"surrogate": model} if name == "transfer" else {}
    adversarial = attacks.get(name)(model, images, labels, epsilon=epsilon, **options)
    assert bool(adversarial.isfinite().all())
    assert accuracy(model, adversarial, labels) < 0.6
    moved = (adversarial - images)[:, :, 2:].abs().flatten(1).amax(1)
    assert bool((moved > 0).all()), "what is not black moves too"


def test_an_infinite_gradient_is_the_largest_of_its_image() -> None:
    slopes = torch.tensor([[3.0, -math.inf, math.nan, -0.5], [math.inf, math.nan, 0.0, 0.0], [1.0, 2.0, -3.0, 0.0]])

    class Sloped(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :2].clone()

        @staticmethod
        def backward(_: Any, __: Tensor) -> Tensor:
            return slopes.view(3, 1, 2, 2)

    model = Wrapped(nn.Identity(), lambda _, images: Sloped.apply(images))
    gradient, _ = base.input_gradient(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]))
    wanted = [[3.0, -3.0, 0.0, -0.5], [1.0, 0.0, 0.0, 0.0], [1.0, 2.0, -3.0, 0.0]]
    assert gradient.flatten(1).tolist() == wanted


def test_evaluation_says_that_a_saturated_network_has_no_gradients(made: Path, radiographs: tuple[Any, Any]) -> None:
    """Weights times many: attacks break it all the same, and that the plain cross-entropy has no gradient is seen."""
    run, documents = load_run(made), []
    plan = predictions.conditions(["fgsm", "pgd", "worst-case"], [0.02], steps=3, queries=20)
    for factor in (1.0, 1e6):
        with torch.no_grad():
            for values in (run.model.net.fc.weight, run.model.net.fc.bias):
                values.mul_(factor)
        table = predictions.predict(run, radiographs[1], plan, views=False)
        documents.append(run_figures.describe(run, table, resamples=100).plain())
        clean = table[table["attack"] == "clean"]
        assert clean["gradient"].notna().all()
        assert table.loc[table["attack"] != "clean", "moved"].between(0, 0.02 + 1e-6).all()
    plain, loud = documents
    assert plain["input_gradients"]["vanishing"] == 0
    assert "vanishing_gradients" not in [sign["kind"] for sign in plain["masking"]["signs"]]
    assert loud["input_gradients"]["vanishing"] > 0.5
    assert loud["masking"]["masked"] is True
    assert "vanishing_gradients" in [alarm["kind"] for alarm in loud["alarms"]]
    assert np.allclose(*([row["accuracy"]["value"] for row in one["attacks"]] for one in documents), atol=0.1)
    assert plain["attacks"][2]["broken_by"]["clean"] == 24 - round(24 * plain["clean"]["accuracy"]["value"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(made: Path, tmp_path: Path, value: float) -> None:
    copied = Path(shutil.copytree(made, tmp_path / "run"))
    state = load_file(copied / "model.safetensors")
    state["net.fc.bias"][0] = value
    save_file(state, copied / "model.safetensors")
    seal(copied)
    with pytest.raises(UserError, match=r"net\.fc\.bias holds NaN or infinity") as problem:
        load_run(copied)
    assert "\n" not in str(problem.value)


def test_answers_that_are_no_numbers_are_refused(made: Path, radiographs: tuple[Any, Any]) -> None:
    run = load_run(made)
    with torch.no_grad():
        run.model.net.fc.bias[0] = math.nan
    with pytest.raises(UserError, match="so nothing can be measured"):
        predictions.predict(run, radiographs[1])
    with pytest.raises(UserError, match="NaN or infinity"):
        predict.predict_image(run, np.zeros((32, 32), np.uint8), epsilon=0.02)
    images, labels = images_and_labels(4, seed=5)
    for name in ("fgsm", "pgd", "worst-case", "square"):
        with pytest.raises(UserError, match="NaN or infinity"):
            attacks.get(name)(louder(math.nan), images, labels, epsilon=0.02)


@pytest.mark.parametrize("first", [0, 1])
def test_nan_is_never_the_best(radiographs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """The loss is a number to the end, and only the weights that are validated are not."""
    real, epochs = monitor.validate, iter(range(9))

    def breaks(model: nn.Module, *rest: Any) -> dict[str, float]:
        if next(epochs) >= first:
            with torch.no_grad():
                next(p for p in reversed([*model.parameters()])).fill_(math.nan)
        return real(model, *rest)

    monkeypatch.setattr(monitor, "validate", breaks)
    if first == 0:
        with pytest.raises(UserError, match="24 images, in the first epoch"):
            fit_run.fit(recipe(epochs=3), *radiographs, tmp_path)
        return
    summary = fit_run.fit(recipe(epochs=3), *radiographs, tmp_path)
    assert (summary.best_epoch, summary.stopped.startswith("numbers: the model returns")) == (0, True)
    load_run(tmp_path)
