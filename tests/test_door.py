"""What is checked of a given model before any figure of it is believed."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.masked_models import PITFALLS, Images
from torch import Tensor, nn

from small_networks import SIDE, Wrapped, images_and_labels, trained
from trustcxr import models
from trustcxr.attacks.adaptive import AttackView, GradientTraits, probe_gradients
from trustcxr.audit.active_test import active_test
from trustcxr.audit.entry_checks import Check, EntryReport, check_kind, compare_black_box, run_entry_checks
from trustcxr.audit.formats import load
from trustcxr.errors import UserError
from trustcxr.models import export
from trustcxr.storage.schemas import AttackResult, EntryCheck, RunDocument, Share

CLASSES = ("COVID-19", "Non-COVID", "Normal")
Change = Callable[[Tensor], Tensor]
STOPPED = {"gradients", "nothing stops gradients"}


@pytest.fixture(scope="module")
def radiographs() -> Images:
    return images_and_labels(60, seed=5)


def door(net: Any, radiographs: Images, **declared: Any) -> EntryReport:
    options = {"classes": CLASSES, "size": SIDE, "trust_code": True} | declared
    return run_entry_checks(load(net, **options), *radiographs, epsilon=0.05, planted=4)


def failed(found: EntryReport) -> set[str]:
    return {c.check for c in found.checks if c.passed is False}


def text(found: EntryReport, check: str) -> str:
    return next(c.text for c in found.checks if c.check == check)


def test_nothing_honest_is_accused(radiographs: Images, bars: list) -> None:
    found = door(trained(), radiographs)
    assert [(done, total) for said, done, total in bars if said.endswith("entry checks")] == [(3, 3)]
    assert failed(found) == set()
    assert found.attacks_reliable
    passed = {"declaration", "same answer twice", "same answer alone", "logits", "gradients"}
    passed |= {"no gradients used inside", "active test"}
    assert passed <= {c.check for c in found.checks if c.passed}
    documents = [EntryCheck.model_validate(check, from_attributes=True) for check in found.checks]
    assert all(c.plain().keys() == {"check", "passed", "text", "grave"} for c in documents)


LIARS: dict[str, tuple[set[str], Callable[[GradientTraits], bool]]] = {
    "logits x 1000": ({"scale of the logits"}, lambda t: t.scale > 100),
    "tanh(1000 logits)": ({"gradients"}, lambda t: t.zero_gradients == 1 and t.healed == 0),
    "3 bits": (STOPPED, lambda t: t.stopped == {"round": 1}),
    "3 bits of integers": (STOPPED, lambda t: "detour" in t.stopped),
    "jpeg": (STOPPED, lambda t: "detour" in t.stopped),
    "noise": ({"same answer twice"}, lambda t: t.random and t.draws >= 8),
    # With black around its images this network is right on fewer of them, and with another range on all.
    "random resizing": ({"same answer twice", "declaration"}, lambda t: t.random),
}


@pytest.mark.parametrize("name", LIARS)
def test_what_a_liar_does_is_seen(name: str, radiographs: Images) -> None:
    assert LIARS[name][1](probe_gradients(PITFALLS[name](trained()), radiographs[0]))


@pytest.mark.expensive("noise", "random resizing", "3 bits of integers")
@pytest.mark.parametrize("name", LIARS)
def test_each_liar_is_flagged_for_what_it_does(name: str, radiographs: Images) -> None:
    found = door(PITFALLS[name](trained()), radiographs)
    assert failed(found) == LIARS[name][0]
    assert found.attacks_reliable  # with BPDA and draws the attack finds what was planted


def test_a_wrong_class_order_is_noticed_with_the_remedy(radiographs: Images) -> None:
    images, labels = radiographs
    turned = torch.tensor([1, 2, 0])[labels]  # the truth as whoever mixed the names up has it
    found = door(trained(), (images, turned), classes=("Normal", "COVID-19", "Non-COVID"))
    assert failed(found) == {"declaration"}
    assert "write output.classes: [COVID-19, Non-COVID, Normal]" in text(found, "declaration")


def wanting(make: Change) -> nn.Module:
    """Return the trained network behind images that are changed first."""
    return Wrapped(trained(), lambda net, images: net(make(images)))


INVERTED = {"range": (255, 0), "std": (0.5,), "mean": (0.5,)}


@pytest.mark.parametrize(
    ("make", "declared", "remedy"),
    [
        (lambda x: x / 255, {}, "input.range: [0, 255]"),
        (lambda x: (x + 1) / 2, {}, "input.range: [-1, 1]"),
        (lambda x: (x + 1024) / 2048, {}, "input.range: [-1024, 1024]"),
        (lambda x: 1 - x, {}, "write input.range: [1, 0], as MONOCHROME1"),
        (lambda x: x, {"range": (1, 0)}, "write input.range: [0, 1], as MONOCHROME1"),
        (lambda x: (1 - x) / 2, INVERTED, "write input.range: [1, -1] without mean and std, as M"),
    ],
)
def test_a_wrong_range_has_a_remedy(make: Change, declared: dict[str, Any], remedy: str, radiographs: Images) -> None:
    found = door(wanting(make), radiographs, **declared)
    assert "declaration" in failed(found)
    assert remedy in text(found, "declaration")


def test_a_missing_mean_and_std_are_noticed(radiographs: Images) -> None:
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    net = wanting(lambda x: (x * std + mean).mean(1, keepdim=True))
    assert "input.mean: [0.485" in text(door(net, radiographs, channels=3), "declaration")
    assert failed(door(net, radiographs, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))) == set()


def test_a_model_at_chance_is_said_to_be_and_accused_of_nothing_else(radiographs: Images) -> None:
    found = door(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3)), radiographs)
    assert failed(found) == {"declaration"}
    assert "no better than chance" in text(found, "declaration")


def test_probabilities_in_place_of_logits_are_noticed_both_ways(radiographs: Images) -> None:
    ends_in_softmax = nn.Sequential(trained(), nn.Softmax(1)).eval()
    taken_as_logits = door(ends_in_softmax, radiographs)
    assert "write output.kind: probabilities" in text(taken_as_logits, "logits")
    assert torch.allclose(taken_as_logits.model(radiographs[0]), trained()(radiographs[0]).log_softmax(1), atol=1e-5)
    assert taken_as_logits.attacks_reliable
    assert failed(door(ends_in_softmax, radiographs, output="probabilities")) == set()
    assert failed(door(nn.Sequential(trained(), nn.Sigmoid()).eval(), radiographs, output="sigmoid")) == set()
    assert "write output.kind: logits" in text(door(trained(), radiographs, output="probabilities"), "logits")


@pytest.mark.parametrize("output", ["logits", "probabilities"])
@pytest.mark.parametrize("classes", [2, 3])
def test_one_sigmoid_a_class_is_noticed_and_its_logits_are_taken(output: str, classes: int) -> None:
    """A sigmoid that torch sees, or one written out, of which nobody sees what went into it."""
    images, labels = images_and_labels(60, classes=classes, seed=5)
    for sigmoid in (torch.sigmoid, lambda logits: 1 / (1 + (-logits).exp())):
        model = Wrapped(trained(classes=classes), lambda net, x, sigmoid=sigmoid: sigmoid(net(x)))
        found = door(model, (images, labels), output=output, classes=CLASSES[:classes])
        assert failed(found) == {"logits"}
        assert "do not sum to 1: each was taken as the sigmoid of its class" in text(found, "logits")
        assert torch.allclose(found.model(images), trained(classes=classes)(images), atol=1e-3)
        assert found.attacks_reliable


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", ".pt2", ".onnx"])
def test_logits_between_0_and_1_of_a_last_layer_are_logits(ending: str, radiographs: Images, tmp_path: Path) -> None:
    net = deepcopy(trained())
    logits = net(radiographs[0]).detach()
    low, span = logits.min() - 0.05, logits.max() - logits.min() + 0.1
    net.head.weight.data /= span  # as a network that learnt little has it
    net.head.bias.data.sub_(low).div_(span)
    answers = net(radiographs[0]).detach()
    assert 0 < answers.min() < answers.max() < 1
    source: Any = net
    if ending:
        source = tmp_path / f"m{ending}"
        export.write(net, SIDE, source, "onnx" if ending == ".onnx" else "torch-export")
    found = door(source, radiographs, channels=1)
    assert "logits" not in failed(found)
    assert "its last layer makes them" in text(found, "logits")
    assert torch.allclose(found.model(radiographs[0]), answers, atol=1e-5)


@pytest.mark.parametrize(
    "squash",
    [
        lambda x: 0.5 + 0.5 * (x / 2).tanh(),
        lambda x: x.clone().sigmoid_(),
        lambda x: x.sigmoid() @ torch.eye(3),  # a layer behind it changes nothing
        lambda x: (1 / (1 + (-x).exp())) @ torch.eye(3) + 0,
        lambda x: torch.stack([x.sigmoid() @ torch.eye(3)] * 2).mean(0),
    ],
    ids=["tanh", "in place", "layer behind", "written out", "mean"],
)
def test_what_comes_after_the_last_layer_is_no_logit_of_it(squash: Change, radiographs: Images) -> None:
    found = door(Wrapped(trained(), lambda net, images: squash(net(images))), radiographs)
    assert "each was taken as the sigmoid of its class" in text(found, "logits")


def test_saturated_probabilities_are_measured(radiographs: Images) -> None:
    sure = Wrapped(trained(), lambda net, images: (1000 * net(images)).softmax(1))
    found = door(sure, radiographs, output="probabilities")
    assert "100.0% are 0 or 1 to rounding" in text(found, "logits")
    assert found.attacks_reliable


def test_a_model_without_gradients_is_attacked_without_and_one_behind_numpy_through_it(radiographs: Images) -> None:
    patterns = [radiographs[0][radiographs[1] == k].mean(0).flatten().numpy() for k in range(3)]

    def blind(images: Tensor) -> Any:
        return np.stack([(images.flatten(1).numpy() - 0.5) @ (p - 0.5) for p in patterns], 1)

    found = door(blind, radiographs)
    assert not found.gradients
    assert "robust accuracy can only be overestimated" in text(found, "conversion")
    found = door(lambda images: trained()(images).detach().numpy(), radiographs)
    assert found.gradients
    assert found.attacks_reliable
    assert "BPDA gives it some" in text(found, "conversion")


def climb(net: nn.Module, images: Tensor) -> Tensor:
    """Move the image up the network's own confidence before it answers."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(net(leaf).amax(1).sum(), leaf)
    return net(images + 0.01 * slope.sign())


def searching(copies: int) -> nn.Module:
    """Return a network that answers by the noisy copy of the image that it is surest of; it computes no gradient."""

    def answer(net: nn.Module, images: Tensor) -> Tensor:
        noise = torch.randn((copies, *images.shape[1:]), generator=torch.Generator().manual_seed(0))
        answers = torch.stack([net((images + 0.05 * one).clamp(0, 1)) for one in noise])
        return answers[answers.softmax(2).amax(2).argmax(0), torch.arange(len(images))]

    return Wrapped(trained(), answer)


def test_gradients_used_inside_are_noticed_and_a_search_and_one_pass_said(radiographs: Images) -> None:
    before = torch.autograd.grad
    assert "no gradients used inside" in failed(door(Wrapped(trained(), climb), radiographs))
    assert torch.autograd.grad is before
    found = door(searching(8), radiographs)
    assert text(found, "one pass").startswith("its first layer runs 8 times for one image")
    assert text(found, "no gradients used inside") == "it computes none while it answers"
    once = door(searching(1), radiographs)
    assert text(once, "no gradients used inside") == "it answers in one forward pass"
    assert "one pass" not in {check.check for check in once.checks}


def test_answers_of_another_kind_stop_an_explanation_before_it_begins(radiographs: Images) -> None:
    probable = load(nn.Sequential(trained(), nn.Softmax(1)).eval(), classes=CLASSES, size=SIDE)
    with pytest.raises(UserError, match=r"mine: it answers with probabilities.* write output.kind: probabilities"):
        check_kind(probable.model, radiographs[0], "mine")
    check_kind(load(trained(), classes=CLASSES, size=SIDE).model, radiographs[0], "mine")


def test_only_scores_pass_the_door_unattacked(radiographs: Images, tmp_path: Any) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("image,COVID-19,Non-COVID,Normal\na,1,2,3\n")
    found = run_entry_checks(load(path, classes=CLASSES), *radiographs)
    assert (found.traits, found.gradients) == (None, False)


def unadapted(model: nn.Module, images: Tensor) -> GradientTraits:
    """Return traits by which an attack takes the model as it is."""
    traits = replace(probe_gradients(model, images), draws=1, scale=1.0)
    return replace(traits, stopped={}, zero_gradients=0.0, broken_gradients=0.0)


def one_finding(net: nn.Module) -> nn.Module:
    """Return the network with the first logit less the second as its only one."""
    head, net.head = net.head, nn.Linear(net.head.in_features, 1)
    with torch.no_grad():
        net.head.weight.copy_(head.weight[:1] - head.weight[1:2])
        net.head.bias.copy_(head.bias[:1] - head.bias[1:2])
    return net.eval()


@pytest.mark.expensive("jpeg-3")
@pytest.mark.parametrize(
    ("name", "outputs"), [("tanh(1000 logits)", 3), ("3 bits", 3), ("jpeg", 3), (None, 1), ("3 bits", 1), ("jpeg", 1)]
)
def test_an_attack_that_a_liar_fools_is_not_believed(name: str | None, outputs: int, radiographs: Images) -> None:
    images, net = radiographs[0][:4], trained() if outputs == 3 else one_finding(deepcopy(trained()))
    model = PITFALLS[name](net) if name else net
    plain = active_test(model, images, epsilon=0.03, traits=unadapted(model, images))
    assert plain.passed == (name is None)
    mended = active_test(model, images, epsilon=0.03)
    assert mended.passed
    assert mended.random_share < mended.share


def test_a_corner_that_nobody_planted_is_not_told_by_how_far_out_it_lies(radiographs: Images) -> None:
    torch.manual_seed(1)
    net = models.build("plain3", classes=3).eval()
    images = nn.functional.interpolate(radiographs[0][:16], size=(32, 32), mode="bilinear")
    planted = active_test(net, images, epsilon=0.02)
    assert (planted.count, planted.share, planted.random_share) == (16, 1.0, 0.0)


def test_an_attack_that_fails_the_active_test_is_not_believed() -> None:
    assert not EntryReport((Check("active test", False, "found 3 of 16"),)).attacks_reliable


def test_black_box_beats_white_box() -> None:
    for white, black, passed in ((0.60, 0.20, False), (0.20, 0.60, True)):
        attacks = [
            AttackResult(attack=attack, epsilon=0.02, accuracy=Share(value=value))
            for attack, value in (("pgd", white), ("square", black))
        ]
        assert [check.passed for check in compare_black_box(RunDocument(attacks=attacks))] == [passed]


def test_the_model_is_left_as_it_was(radiographs: Images) -> None:
    net = trained()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    run_entry_checks(load(net, classes=CLASSES, size=SIDE), *radiographs, planted=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def measuring_its_batch() -> nn.Module:
    """The trained network as whoever forgot model.eval() exports it: BatchNorm measures the batch, nothing is drawn."""
    net = deepcopy(trained())
    for layer in net.modules():
        layer.train(isinstance(layer, nn.BatchNorm2d))
    return net


@pytest.mark.slow
def test_a_model_whose_answer_hangs_on_the_images_beside_it_is_noticed(radiographs: Images, tmp_path: Path) -> None:
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(measuring_its_batch(), (radiographs[0][:2],), dynamic_shapes=batch)
    torch.export.save(program, tmp_path / "m.pt2")
    torch.jit.trace(measuring_its_batch(), radiographs[0][:2]).save(str(tmp_path / "m.pt"))
    hidden = measuring_its_batch()
    for source in (tmp_path / "m.pt2", tmp_path / "m.pt", lambda images: hidden(images)):
        found = door(source, radiographs)
        assert "same answer alone" in failed(found)
        assert "in evaluation mode, model.eval() first" in text(found, "same answer alone")
    over_images = door(lambda images: trained()(images).softmax(0), radiographs)
    assert "same answer alone" in failed(over_images)


def test_rounding_and_a_fixed_batch_are_no_images_beside_a_image(radiographs: Images, tmp_path: Path) -> None:
    coarse = Wrapped(deepcopy(trained()).bfloat16(), lambda net, images: net(images.bfloat16()).float())
    torch.export.save(torch.export.export(trained(), (radiographs[0][:4],)), tmp_path / "m.pt2")
    shrunk = torch.ao.quantization.quantize_dynamic(trained(), {nn.Linear}, dtype=torch.qint8)
    for source in (coarse, tmp_path / "m.pt2", shrunk, lambda images: trained()(images).squeeze()):
        assert "same answer alone" not in failed(door(source, radiographs))


def test_a_random_model_is_judged_by_the_mean_over_draws(radiographs: Images) -> None:
    found = door(PITFALLS["noise"](trained()), radiographs)
    assert isinstance(found.evaluated_model, AttackView)
    assert found.evaluated_model.draws == 16
    assert "the mean of 16 draws" in text(found, "same answer twice")
    assert "same answer alone" not in {check.check for check in found.checks}, "it is not accused twice"
    honest = door(trained(), radiographs)
    assert honest.evaluated_model is honest.model


@pytest.mark.slow
def test_the_declaration_of_a_random_model_is_judged_by_its_mean_over_draws(radiographs: Images) -> None:
    """It is right on average; in two passes of five its answer is another class for all images."""
    one = torch.tensor([8.0, 0.0, 0.0])
    model = Wrapped(trained(), lambda net, images: net(images).softmax(1) * 20 + one * (torch.rand(()) < 0.4))
    accuracies = {text(door(model, radiographs), "declaration").split(" as declared")[0] for _ in range(2)}
    assert accuracies == {"accuracy on 60 images is 100.0%"}
