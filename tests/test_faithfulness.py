"""Faithfulness and sanity: on models whose answer hangs on known pixels, and against the grad-cam package's ROAD."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined
from torch import Tensor, nn

from small_networks import stages_of
from trustcxr import explain
from trustcxr.errors import UserError
from trustcxr.explain import faithfulness


class Spot(nn.Module):
    """Sees one square only: the probability of class 0 grows with what differs from the grey around it there."""

    place = (slice(8, 16), slice(16, 24))

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.drop(x)[(..., *self.place)].mean(dim=(1, 2, 3))
        return torch.stack([10 * (seen - 0.7), -10 * (seen - 0.7)], dim=1)


@pytest.fixture
def x() -> Tensor:
    images = torch.full((2, 1, 32, 32), 0.1)
    images[(..., *Spot.place)] = 0.9
    return images


@pytest.fixture
def truth() -> Tensor:
    maps = torch.zeros(2, 32, 32)
    maps[(slice(None), *Spot.place)] = 1.0
    return maps


def probability(seen: Tensor) -> Tensor:
    return torch.sigmoid(20 * (seen - 0.7))


def test_a_curve_by_hand() -> None:
    # Pixels go 0, 1, 2, 3 and the model reads their mean; the blurred image is the limit of much blur: its mean.
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean(dim=(1, 2, 3))
            return torch.stack([mean, 1 - mean], dim=1).log()

    x = torch.zeros(1, 1, 32, 32)
    x[..., :16, :] = 1.0
    order = torch.linspace(1, 0, 32 * 32).reshape(1, 32, 32)
    curve = faithfulness.insertion(Mean(), x, order, faithfulness.ends(Mean(), x, 0, blur=1e-3), steps=4)
    torch.testing.assert_close(curve.share, torch.tensor([0, 0.25, 0.5, 0.75, 1]))
    torch.testing.assert_close(curve.probability, torch.full((1, 5), 0.5))  # hardly blurred: nothing changes
    torch.testing.assert_close(curve.area, torch.tensor([0.5]))
    strong = faithfulness.insertion(Mean(), x, order, faithfulness.ends(Mean(), x, 0, blur=6), steps=2).probability[0]
    assert strong[1] > strong[0]  # the bright half is shown first,
    assert strong[2] == pytest.approx(0.5)  # and the whole image is the last point


def test_the_true_map_inserts_and_deletes_best_between_the_blurred_and_the_whole_image(
    x: Tensor, truth: Tensor
) -> None:
    whole = probability(torch.tensor([0.9, 0.9]))
    shown, hidden = faithfulness.insertion(Spot(), x, truth, 0), faithfulness.deletion(Spot(), x, truth, 0)
    torch.testing.assert_close(shown.probability[:, -1], whole)
    torch.testing.assert_close(hidden.probability[:, 0], whole)
    torch.testing.assert_close(shown.probability[:, 0], hidden.probability[:, -1])
    assert (shown.probability[:, 0] < 0.5).all()
    assert shown.probability.shape == (2, 21)
    # The square is 1/16 of the image: all of it is there, or gone, at the second step of twenty.
    torch.testing.assert_close(shown.probability[:, 2:], shown.probability[:, -1:].expand(2, 19))
    torch.testing.assert_close(hidden.probability[:, 2:], hidden.probability[:, -1:].expand(2, 19))
    for other in (1 - truth, explain.random_map(2, 32, 32)):
        assert (faithfulness.insertion(Spot(), x, other, 0).area < shown.area - 0.05).all()
        assert (faithfulness.deletion(Spot(), x, other, 0).area > hidden.area + 0.05).all()


def test_equally_salient_pixels_come_in_no_order_from_top_to_bottom(x: Tensor) -> None:
    null = torch.zeros(2, 32, 32)
    half = faithfulness.insertion(Spot(), x, null, 0, steps=2).probability[:, 1]
    whole = probability(torch.tensor(0.9))
    # The square lies in the upper half: from top to bottom it would be all there at half the pixels.
    assert (half < whole - 0.1).all()
    assert torch.equal(faithfulness.insertion(Spot(), x, null, 0, steps=2).probability[:, 1], half)


def test_imputation_is_that_of_the_package() -> None:
    images = torch.rand(3, 2, 12, 15)
    removed = torch.rand(3, 12, 15) < torch.tensor([0.1, 0.6, 0.95])[:, None, None]
    ours = faithfulness.impute(images, removed, noise=0.0)
    for i in range(3):
        theirs = NoisyLinearImputer(noise=0.0)(images[i], (~removed[i]).float())
        torch.testing.assert_close(ours[i], theirs, atol=1e-5, rtol=0)
    everything = faithfulness.impute(images, torch.ones_like(removed), noise=0.0)
    torch.testing.assert_close(everything, images.mean(dim=(2, 3), keepdim=True).expand_as(images))
    assert torch.equal(faithfulness.impute(images, torch.zeros_like(removed)), images)


def test_imputed_pixels_carry_noise_and_stay_in_range() -> None:
    images, removed = torch.full((2, 1, 40, 40), 0.5), torch.zeros(2, 40, 40, dtype=torch.bool)
    removed[:, :20] = True
    noisy = faithfulness.impute(images, removed, noise=0.05)
    assert noisy[:, :, :20].std().item() == pytest.approx(0.05, rel=0.1)
    assert torch.equal(noisy[:, :, 20:], images[:, :, 20:])
    assert torch.equal(noisy, faithfulness.impute(images, removed, noise=0.05))
    assert not torch.equal(noisy, faithfulness.impute(images, removed, noise=0.05, seed=1))
    assert torch.equal(noisy[1:], faithfulness.impute(images[1:], removed[1:], noise=0.05))
    wild = faithfulness.impute(images, removed, noise=2.0)
    assert (wild.min(), wild.max()) == (0, 1)


class Quiet(NoisyLinearImputer):
    """The package's imputer without its noise, which comes from another generator than ours."""

    def __init__(self) -> None:
        super().__init__(noise=0.0)


def test_road_is_the_combined_road_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 10 * 10, 2)).eval()
    with torch.no_grad():
        model[3].weight.mul_(40)
    x, maps = torch.rand(3, 1, 24, 24), torch.rand(3, 24, 24)
    monkeypatch.setattr("pytorch_grad_cam.metrics.road.NoisyLinearImputer", Quiet)
    for kept in ([25, 50, 75], [90]):  # in percent
        theirs = ROADCombined(percentiles=kept)(x, maps.numpy(), [lambda logits: logits.softmax(0)[1]] * 3, model)
        assert np.abs(theirs).max() > 0.01
        ours = faithfulness.road(model, x, maps, 1, shares=tuple(1 - k / 100 for k in kept), noise=0.0)
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-3)


def test_road_rewards_the_true_map(x: Tensor, truth: Tensor) -> None:
    assert (faithfulness.road(Spot(), x, truth, 0) > 0.2).all()
    assert (faithfulness.road(Spot(), x, 1 - truth, 0) < -0.2).all()
    one = faithfulness.road(Spot(), x[:1], truth[:1], 0)
    torch.testing.assert_close(faithfulness.road(Spot(), x, truth, 0)[:1], one)


@pytest.mark.parametrize("test", [faithfulness.insertion, faithfulness.deletion, faithfulness.road])
def test_the_model_is_left_as_found_and_bad_input_is_named(test: object, x: Tensor, truth: Tensor) -> None:
    model = Spot().train()
    state = torch.get_rng_state()
    predicted = test(model, x, truth)
    assert model.drop.training
    assert torch.equal(torch.get_rng_state(), state)
    for ours, wanted in zip(predicted, test(model.eval(), x, truth, 0), strict=True):
        assert torch.equal(ours, wanted)
    with torch.inference_mode():
        assert torch.equal(test(model, x, truth)[-1], predicted[-1])
    with pytest.raises(UserError, match="target 2 is outside"):
        test(model, x, truth, 2)
    with pytest.raises(UserError, match=r"saliency \(2, 8, 32\) does not"):
        test(model, x, truth[:, :8], 0)


class Tiny(nn.Module):
    """Three parts; as in a Classifier, the network is `net`."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        second = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.net = nn.ModuleDict({"first": first, "second": second, "head": nn.Linear(16, 3)})
        self.cam_layer = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        features = self.cam_layer(self.net["second"](self.net["first"](x)))
        return self.net["head"](features.mean(dim=(2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(3))


def test_randomisation_goes_from_the_logits_to_the_pixels_and_touches_a_copy(images: Tensor) -> None:
    model = Tiny().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    stages = list(stages_of(model, images, explain.layer_cam))
    assert [s.part for s in stages] == ["net.head", "net.second", "net.first"]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_maps_of_the_model_change_and_a_control_passes_for_what_it_is(images: Tensor) -> None:
    last = list(stages_of(Tiny(), images, explain.layer_cam, 0))[-1]
    told = ~last.null
    assert told.any()
    assert last.rank_correlation[told].abs().mean() < 0.7
    assert last.ssim[told].mean() < 0.7
    # A method that does not look at the model fails the test: its maps stay as they were.
    for stage in stages_of(Tiny(), images, explain.method("centre"), 0):
        torch.testing.assert_close(stage.ssim, torch.ones(4, dtype=torch.float64))
        torch.testing.assert_close(stage.rank_correlation, torch.ones(4, dtype=torch.float64))
        assert not stage.null.any()


def test_random_weights_keep_the_scale_of_the_signal_and_the_class_is_the_trained_models(images: Tensor) -> None:
    asked: list[Tensor | None] = []
    seen: list[dict[str, Tensor]] = []

    def spy(model: nn.Module, x: Tensor, target: Tensor | None = None) -> Tensor:
        asked.append(target)
        seen.append({k: v.detach().clone() for k, v in model.named_parameters()})
        return explain.grad_cam(model, x, target)

    model = Tiny().eval()
    list(stages_of(model, images, spy))
    assert len(asked) == 4
    assert all(torch.equal(target, model(images).argmax(dim=1)) for target in asked)
    for name, trained in model.named_parameters():
        drawn = seen[-1][name]
        if name.endswith("weight") and trained.ndim > 1:
            assert not torch.equal(drawn, trained)
            assert drawn.std().item() == pytest.approx(trained.std().item(), rel=0.3)
    assert torch.equal(seen[1]["net.second.0.weight"], model.net["second"][0].weight)
    assert not torch.equal(seen[1]["net.head.weight"], model.net["head"].weight)
    again = list(stages_of(model, images, explain.grad_cam))
    with torch.inference_mode():
        inside = list(stages_of(model, images * 1.0, explain.grad_cam))
    other = list(stages_of(model, images, explain.grad_cam, seed=5))
    torch.testing.assert_close(again[-1].ssim, inside[-1].ssim, equal_nan=True)
    assert not torch.equal(again[-1].ssim.nan_to_num(), other[-1].ssim.nan_to_num())


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"steps": 0}, "steps must be 1 or more")]
    + [({"blur": blur}, "blur must be above 0 and below half the shorter") for blur in (0, -1.0, 16.0, float("nan"))]
    + [({"shares": shares}, "removed lie between 0 and 1; got") for shares in ((), (0.5, 1.5), (-0.1,))],
)
def test_options_that_cannot_be_are_named(asked: dict[str, object], words: str, x: Tensor, truth: Tensor) -> None:
    curves = {"shares": [faithfulness.road], "steps": [faithfulness.insertion, faithfulness.deletion]}
    blurred = [lambda model, x, _, target, **options: faithfulness.ends(model, x, target, **options)]
    for curve in curves.get(next(iter(asked)), blurred):
        with pytest.raises(UserError, match=words):
            curve(Spot(), x, truth, 0, **asked)  # type: ignore[arg-type]
