"""Networks that only look robust are found out, and broken as their honest twins are."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.masked_models import PITFALLS, EveryNoise, EveryResizing, Images, Jpeg, MaskedModel
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from small_networks import Meter, Wrapped, images_and_labels, trained
from trustcxr import attacks
from trustcxr.attacks import pgd
from trustcxr.attacks.adaptive import BPDA, LONGER, AttackView, _gains, adaptive, distil, probe_gradients, wrong_share
from trustcxr.audit.attack_runner import AttackRunner
from trustcxr.audit.entry_checks import EntryReport, check_afterwards, describe_state
from trustcxr.errors import UserError
from trustcxr.models.preserve_state import preserve_state
from trustcxr.recipes.evaluation_recipe import AttackRecipe

EPSILON = 0.06  # where an honest network has lost nearly all


@pytest.fixture(scope="module")
def radiographs() -> Images:
    return images_and_labels(32, seed=5)


def left(model: nn.Module, radiographs: Images, found: Tensor, *, draws: int = 16) -> float:
    """Accuracy on what an attack found, of the mean answer over draws: as an audit judges a model that is random."""
    with preserve_state(model):
        torch.manual_seed(3)
        return 1 - float(wrong_share(AttackView(model, draws=draws), found, radiographs[1]).mean())


@pytest.mark.expensive("random resizing")
@pytest.mark.parametrize("name", PITFALLS)
def test_a_liar_is_broken_as_its_honest_twin_is(name: str, radiographs: Images) -> None:
    honest, liar = trained(), PITFALLS[name](trained())
    truth = left(honest, radiographs, adaptive(honest, *radiographs, epsilon=EPSILON, steps=20))
    assert truth < 0.05
    steps = 20 if name != "random resizing" else 10
    assert left(liar, radiographs, adaptive(liar, *radiographs, epsilon=EPSILON, steps=steps)) <= truth + 0.03


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "every", "count", "over"),
    [("noise", EveryNoise, 256, 0.04), ("random resizing", EveryResizing, 128, 0.03)],
)
def test_a_random_network_is_attacked_over_draws(name: str, every: type[MaskedModel], count: int, over: float) -> None:
    """Where a network is partly robust, one that blurs its answer over draws truly is a little harder to attack.

    So the figure to reach is that of the mean over draws. All resizings can be known; who knows 64 draws of noise by
    heart breaks a few images that fall to no other draws, which the hundredth allows for.
    """
    many, mean, liar = images_and_labels(count, seed=5), every(trained()), PITFALLS[name](trained())
    known = left(mean, many, adaptive(mean, *many, epsilon=0.04, steps=20), draws=1)
    found = adaptive(liar, *many, epsilon=0.04, steps=20)
    # The mean over all resizings is what the liar is, and over some of the draws of noise nearly.
    drawn = left(mean, many, found, draws=1) if name == "random resizing" else left(liar, many, found, draws=64)
    assert 0.05 < known < 0.3
    assert drawn <= known + over
    assert left(trained(), many, adaptive(trained(), *many, epsilon=0.04, steps=20)) <= known


@pytest.mark.slow
def test_what_stands_behind_a_stand_in_gets_a_longer_climb(monkeypatch: pytest.MonkeyPatch) -> None:
    many, liar = images_and_labels(96, seed=5), PITFALLS["jpeg"](trained())
    remains = []
    for climbs in (0, 1):  # a stand-in's gradient is a guess: a short climb along it leaves more
        monkeypatch.setattr("trustcxr.attacks.adaptive.CLIMBS", climbs)
        found = adaptive(liar, *many, epsilon=0.03, steps=10)
        assert float((found - many[0]).abs().max()) <= 0.03 + 1e-6
        remains.append(left(liar, many, found))
    assert remains[1] < remains[0] - 0.03
    bare = adaptive(trained(), *many, epsilon=0.03, steps=10)
    assert left(trained(), many, bare) > remains[1], "the JPEG protects nothing"


@pytest.mark.parametrize(
    ("name", "helps", "climbs"), [("jpeg", 0, 1), ("jpeg", 2, 3), ("jpeg", 99, 6), ("noise", 9, 0)]
)
def test_what_stands_is_climbed_again_from_other_starts_while_that_helps(
    name: str, helps: int, climbs: int, radiographs: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[int, int]] = []
    liar, (images, labels) = PITFALLS[name](trained()), radiographs
    broken = pgd(trained(), images, labels, epsilon=0.3)

    def finds_one(model: nn.Module, some: Tensor, true: Tensor, **options: int) -> Tensor:
        done.append((options["steps"], options["seed"]))
        found = some.clone()
        if options["steps"] != 7 and options["seed"] - 5 <= helps:  # one of those that it is given
            found[0] = broken[int((images == some[0]).flatten(1).all(1).nonzero()[0, 0])]
        return found

    for attack in ("pgd", "apgd"):
        monkeypatch.setattr(f"trustcxr.attacks.adaptive.{attack}", finds_one)
    adaptive(liar, images, labels, epsilon=EPSILON, steps=7, seed=5)
    longer = [(steps, seed) for steps, seed in done if steps != 7]
    assert longer == [(LONGER * 7, 5 + number) for number in range(1, climbs + 1) for _ in range(2)]
    assert LONGER >= 5


@pytest.mark.parametrize("name", ["tanh(1000 logits)", "3 bits", "3 bits of integers", "jpeg"])
def test_pgd_alone_is_fooled_by_it_and_stand_ins_leave_its_answers(name: str, radiographs: Images) -> None:
    liar = PITFALLS[name](trained())
    assert left(liar, radiographs, pgd(liar, *radiographs, epsilon=EPSILON)) > 0.6
    images = radiographs[0].clone().requires_grad_(True)
    assert torch.equal(AttackView(liar, bpda=True)(images), liar(radiographs[0]))


def test_an_honest_network_is_left_alone(radiographs: Images) -> None:
    traits = probe_gradients(trained(), radiographs[0])
    assert (traits.random, traits.scale, traits.stopped, traits.zero_gradients) == (False, 1.0, {}, 0.0)
    assert not traits.needs_bpda
    assert [v.bpda for v in traits.variants(trained())] == [False]


def offset(net: nn.Module, images: Tensor) -> Tensor:
    """Add the same number to all logits, which changes no answer but takes the digits that bfloat16 has."""
    return net(images) + 300


def by_numpy(net: nn.Module, images: Tensor) -> Tensor:
    """Leave torch in a pass without a gradient, which bfloat16 does not allow."""
    logits = net(images)
    return logits if logits.requires_grad else torch.from_numpy(logits.numpy())


def mislead(net: nn.Module, images: Tensor) -> Tensor:
    """Have the gradient of another answer in a search, which is known by autocast."""
    logits = net(images)
    if torch.is_autocast_enabled("cpu") and logits.requires_grad:
        other = -logits.float()
        return (logits.float() - other).detach() + other
    return logits


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize(("answer", "precision"), [(None, "bf16"), (offset, None), (by_numpy, None), (mislead, None)])
def test_an_attack_searches_in_bfloat16_only_if_the_model_agrees_with_itself_in_it(
    answer: Any, precision: str | None, radiographs: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, used = Wrapped(trained(), answer) if answer else trained(), []

    def pgd_of(*arguments: Any, **options: Any) -> Tensor:
        used.append(options.get("precision"))
        return pgd(*arguments, **options)

    monkeypatch.setattr(attacks, "get", lambda name: pgd_of)
    traits = probe_gradients(model, radiographs[0])
    assert traits.plain
    recipe = AttackRecipe(name="pgd", steps=3, precision="bf16")
    AttackRunner(model, traits, True, radiographs[0])(recipe, *radiographs, 0.04, {**recipe.options(), "seed": 0})
    assert set(used) == {precision}


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("known", [True, False])
def test_an_agreement_in_bfloat16_that_is_known_is_not_measured_again(
    known: bool, radiographs: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("trustcxr.attacks.adaptive.agrees_in_bfloat16")
    assert probe_gradients(trained(), radiographs[0], bfloat16=known).bfloat16 is known


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("honest", [True, False])
def test_after_the_attacks_bfloat16_is_checked_on_adversarial_images(honest: bool, radiographs: Images) -> None:
    model = trained() if honest else Wrapped(trained(), mislead)
    traits = replace(probe_gradients(model, radiographs[0]), bfloat16=True)
    report = EntryReport((), model, traits, gradients=True, state=describe_state(model, radiographs[0][:2]))
    failed = [check.check for check in check_afterwards(report, radiographs[0], epsilon=0.02) if not check.passed]
    assert failed == ([] if honest else ["bfloat16"])


@pytest.mark.parametrize("name", ["pgd", "worst-case"])
def test_what_is_found_on_the_faster_model_is_confirmed_on_the_model_itself(name: str, radiographs: Images) -> None:
    model, recipe = trained(), AttackRecipe(name=name)
    options: dict[str, Any] = {"seed": 0, "steps": 5}
    options |= {"queries": 20, "start": [radiographs[0]]} if name == "worst-case" else {}
    carried = AttackRunner(model, probe_gradients(model, radiographs[0]), True, radiographs[0])
    assert carried.fast is not model
    same = carried(recipe, *radiographs, 0.04, dict(options))
    alone = attacks.get(name)(model, *radiographs, epsilon=0.04, **options)
    wrong = wrong_share(model, alone, radiographs[1])
    assert 0.2 < wrong.mean() <= 1
    assert float(wrong_share(model, same, radiographs[1]).mean()) == pytest.approx(float(wrong.mean()), abs=0.04)
    carried.fast = Wrapped(model, lambda net, images: net(images).roll(1, dims=1))  # it claims every image
    claimed = wrong_share(model, carried(recipe, *radiographs, 0.04, dict(options)), radiographs[1])
    assert float(claimed.mean()) == pytest.approx(float(wrong.mean()), abs=0.07), "other starts, so nearly"


def test_no_grad_and_detach_and_rounding_in_place_are_passed_over() -> None:
    images = torch.rand(2, 1, 4, 4, requires_grad=True)
    with BPDA() as seen:
        with torch.no_grad():
            small = images * 2
        answer = small.detach().flatten(1)
    assert torch.equal(torch.autograd.grad(answer.sum(), images)[0], torch.full_like(images, 2))
    assert set(seen.stopped) == {"no_grad", "detach"}
    assert torch.is_grad_enabled()
    with BPDA():
        answer = (images * 3).round_()
    assert torch.equal(answer, (images * 3).round())
    assert torch.equal(torch.autograd.grad(answer.sum(), images)[0], torch.full_like(images, 3))


@pytest.mark.parametrize(
    ("in_place", "plain"),
    [
        (lambda x: x.sigmoid_(), torch.sigmoid),
        (lambda x: x.tanh_(), torch.tanh),
        (lambda x: x.clamp_(-1, 1), lambda x: x.clamp(-1, 1)),
        (lambda x: x.clamp_(min=-1), lambda x: x.clamp(min=-1)),
        (nn.ReLU6(inplace=True), nn.ReLU6()),
    ],
    ids=["sigmoid", "tanh", "clamp", "clamp at one end", "relu6"],
)
def test_a_saturating_function_in_place_has_the_slopes_of_the_plain_one(in_place: Any, plain: Any) -> None:
    answers, slopes = [], []
    for function in (in_place, plain):
        leaf = torch.linspace(-9, 9, 19).requires_grad_(True)
        with BPDA():
            moved = leaf * 1
            made = function(moved)
            assert function is plain or torch.equal(moved, made)
        answers.append(made.detach())
        slopes.append(torch.autograd.grad(made.sum(), leaf)[0])
    assert torch.equal(*answers)
    assert torch.allclose(*slopes)


def test_noise_is_not_taken_for_the_image() -> None:
    images = torch.rand(2, 1, 16, 16, requires_grad=True)
    with BPDA() as seen:
        _ = (images > 0.5).sum()
        noise = torch.rand(2, 1, 16, 16) + 0.0
    assert not noise.requires_grad
    assert "detour" not in seen.stopped


def test_jpeg_has_the_slope_of_the_image(radiographs: Images) -> None:
    images = nn.functional.avg_pool2d(radiographs[0], 3, 1, 1).requires_grad_(True)
    with BPDA():
        answer = Jpeg(nn.Flatten())(images)
    (slope,) = torch.autograd.grad(answer.sum(), images)
    assert float(slope.mean()) == pytest.approx(1, abs=0.1)


def blurred(radiograph: np.ndarray, axes: tuple[int, int] = (-2, -1)) -> np.ndarray:
    """What another library makes of images: twice as bright, and what is fine is lost, as in a JPEG."""
    return 2 * gaussian_filter(radiograph, 0.7, axes=axes, mode="wrap")


WAYS = {  # out of torch and back
    "a batch": lambda radiographs: torch.from_numpy(blurred(radiographs.numpy())),
    "one by one": lambda radiographs: torch.stack(
        [torch.from_numpy(blurred(radiograph.numpy())).float() for radiograph in radiographs[:, 0]]
    )[:, None],
    "channels last": lambda radiographs: torch.from_numpy(
        blurred(radiographs.permute(0, 2, 3, 1).numpy(), axes=(1, 2)).copy()
    ).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("size", [(20, 20), (17, 33)])
@pytest.mark.parametrize("way", WAYS)
def test_a_detour_of_images_has_its_own_slope_at_each_frequency(way: str, size: tuple[int, int]) -> None:
    drawn = torch.Generator().manual_seed(1)
    radiographs = torch.rand(4, 1, *size, generator=drawn)
    weights = torch.randn(1, 1, *size, generator=drawn)
    radiographs.requires_grad_(True)
    with BPDA(size):
        answer = WAYS[way](radiographs) + 0
    (slope,) = torch.autograd.grad((answer * weights).sum(), radiographs, retain_graph=True)
    true = torch.from_numpy(blurred(weights.numpy()))  # of a symmetric blur
    alike = torch.cosine_similarity(slope.flatten(1), true.flatten(1))
    assert float(alike.min()) > 0.95 > float(torch.cosine_similarity(weights.flatten(), true.flatten(), dim=0)) + 0.1
    (whole,) = torch.autograd.grad(answer.sum(), radiographs)
    assert torch.allclose(whole, torch.full_like(whole, 2.0), atol=0.5), "what is coarsest comes through, doubled"


def test_no_image_is_left_without_a_gradient_by_what_it_became() -> None:
    radiographs = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    radiographs[2] = 0.5
    columns = torch.linspace(0, 1, 32)
    radiographs[3, 0] = 0.3 * columns + 0.4 * (torch.arange(32) % 2)  # whose coarse part comes back as its contrary
    radiographs.requires_grad_(True)
    with BPDA((32, 32)):
        turned = radiographs.numpy() - np.float32([0, 0, 0, 1])[:, None, None, None] * 0.6 * columns.numpy()
        answer = torch.from_numpy(turned) + 0
    (slope,) = torch.autograd.grad((answer * torch.randn(1, 1, 32, 32)).sum(), radiographs)
    strength = slope.flatten(1).norm(dim=1)
    assert float(strength.min()) > 0.5 * float(strength.max()), "nor with hardly any"


def test_the_slope_at_a_frequency_is_neither_nothing_nor_chance() -> None:
    drawn = torch.Generator().manual_seed(0)
    radiographs = torch.rand(2, 1, 32, 32, generator=drawn)
    rings = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(32)) * 32
    coarse = torch.fft.irfft2(torch.fft.rfft2(radiographs) * (rings < 6), s=(32, 32))
    lost = _gains(radiographs, coarse, 0.4)
    assert torch.allclose(lost[..., rings < 5], torch.ones(()), atol=1e-3)
    assert torch.allclose(lost[..., rings > 7], torch.tensor(0.05 * 0.4)), "what is lost keeps a little"
    made = _gains(coarse + 1e-4 * radiographs, coarse + torch.rand(radiographs.shape, generator=drawn), 0.4)
    assert float(made.max()) <= 2 * float(made[..., 0, 0].max()) + 1e-6, "what came from elsewhere is no slope"


@pytest.mark.parametrize("radiograph", [(64, 64), (16, 16)])  # of the second the maps have the sides, and more channels
def test_feature_maps_are_no_pictures_and_keep_one_slope(radiograph: tuple[int, int]) -> None:
    """Through whole numbers inside a network: 16 x 16 cells of 32 channels, many of them hardly varying."""
    drawn = torch.Generator().manual_seed(0)
    maps = (torch.rand(8, 32, 16, 16, generator=drawn) * torch.rand(1, 32, 1, 1, generator=drawn)).requires_grad_(True)
    with BPDA(radiograph):
        answer = (maps * 3 + 0.5).to(torch.uint8).float()
    (slope,) = torch.autograd.grad(answer.sum(), maps)
    assert torch.allclose(slope, slope[0, 0, 0, 0].expand_as(slope))
    assert float(slope.min()) > 1


def test_a_surrogate_learns_to_answer_as_the_model_and_its_images_transfer(radiographs: Images) -> None:
    meter = Meter(trained())
    blind = Wrapped(meter, lambda net, images: torch.tensor(net(images).detach().numpy()))
    taught, _ = images_and_labels(200, seed=77)
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        surrogate = distil(blind, taught, epsilon=EPSILON, steps=60)
        assert torch.equal(torch.get_rng_state(), state)
    assert meter.rows == 2 * len(taught), "once without and once with noise: a slow model is asked no more"
    answers = surrogate(radiographs[0]).argmax(1)
    assert float((answers == trained()(radiographs[0]).argmax(1)).float().mean()) > 0.85
    found = adaptive(blind, *radiographs, epsilon=0.1, gradients=False, surrogate=surrogate, steps=10)
    assert left(blind, radiographs, found) < left(blind, radiographs, radiographs[0]) - 0.3
    with pytest.raises(UserError, match="no gradient that torch can follow"):
        pgd(blind, *radiographs, epsilon=0.02)
