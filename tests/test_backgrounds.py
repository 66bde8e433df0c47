"""Training on other backgrounds, with emptied lungs to which an even answer is asked, or behind a lung segmenter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from small_networks import SIDE as SMALL_SIDE
from small_networks import SmallNet, images_and_labels, one_thread
from small_runs import MODEL, recipe, rise, same, weights
from trustcxr import attacks, defences
from trustcxr.data import load_dataset
from trustcxr.data.loader import augment, to_pixels
from trustcxr.data.lung_masks import soften
from trustcxr.data.phantom import write_files
from trustcxr.defences import backgrounds, base
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.explain import methods
from trustcxr.models import classifier, factory
from trustcxr.models.factory import load_weights
from trustcxr.recipes import study_recipe
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe, run_recipe
from trustcxr.storage import atomic
from trustcxr.training import fit_run, lung_segmenter, monitor, step

SIDE = 50
LUNGS = torch.zeros(1, 1, SIDE, SIDE)
LUNGS[..., 15:35, 10:20] = 1
LUNGS[..., 15:35, 30:40] = 1
INSIDE = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)  # beyond the soft edge
INSIDE[..., 19:31, 14:16] = True
OUTSIDE = soften(LUNGS) == 0
STILL = {"rotation": 0.0, "shift": 0.0, "scale": 0.0, "brightness": 0.0, "contrast": 0.0}


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


@pytest.mark.parametrize("kind", ["swap", "mask"])
def test_a_share_is_changed_and_images_without_a_mask_never(kind: str) -> None:
    images, masks = torch.rand(400, 1, SIDE, SIDE), lungs(400)
    masks[::4] = 0
    before = images.clone()

    def change(share: float = 0.6, seed: int = 0) -> Tensor:
        return backgrounds.change(images, masks, kind, share=share, generator=generator(seed))

    changed = change()
    touched = (changed != images).flatten(1).any(1)
    assert torch.equal(images, before)
    assert not bool(touched[::4].any())
    assert float(touched[torch.arange(400) % 4 > 0].float().mean()) == pytest.approx(0.6, abs=0.08)
    assert torch.equal(changed, change())
    assert not torch.equal(changed, change(seed=1))
    assert torch.equal(images, change(share=0.0))
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


def test_emptied_lungs_are_one_grey_and_the_rest_is_as_it_was() -> None:
    images, lungs = torch.rand(12, 1, 8, 8), torch.zeros(12, 1, 8, 8)
    lungs[2:, :, 2:6, 1:7] = 1
    emptied = backgrounds.emptied(images, lungs)
    assert emptied.shape == (3, 1, 8, 8), "a quarter of the batch"
    inside = lungs[2:5].bool()
    assert torch.equal(emptied[~inside], images[2:5][~inside]), "the first that have lungs"
    greys = emptied[inside].view(3, -1)
    assert torch.equal(greys, greys[:, :1].expand_as(greys))
    assert len(greys[:, 0].unique()) == 3
    assert backgrounds.emptied(images, torch.zeros_like(lungs)).shape == (0, 1, 8, 8)
    assert backgrounds.emptied(images[:1], lungs[:1] + 1).shape == (1, 1, 8, 8), "one at least"


def test_a_learner_answers_for_emptied_lungs_apart_and_in_training_alone() -> None:
    learner = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    images, emptied = torch.rand(6, 1, 8, 8), torch.rand(2, 1, 8, 8)
    beside = backgrounds.WithEmptiedLungs(learner.train(), emptied)
    logits = beside(images)
    whole = learner(torch.cat([images, emptied]))
    assert torch.allclose(logits, whole[:6], atol=1e-6)
    assert torch.allclose(beside.answer, whole[6:], atol=1e-6)
    even = torch.full((2, 3), 1 / 3)
    wanted = F.kl_div(beside.answer.log_softmax(1), even, reduction="batchmean")
    assert torch.allclose(beside.confusion_loss(), wanted, atol=1e-6)
    beside.answer = torch.full((2, 3), 4.0)
    assert float(beside.confusion_loss()) == pytest.approx(0, abs=1e-6)
    shown: list[int] = []
    learner.register_forward_pre_hook(lambda _, given: shown.append(len(given[0])))
    assert torch.equal(beside.eval()(images), learner(images))
    assert shown == [6, 6], "an attack's passes cost nothing more"
    assert backgrounds.WithEmptiedLungs(learner.eval(), emptied).training is False, "as the learner is"


def test_what_lies_beside_the_lungs_no_longer_tells_the_class() -> None:
    """A spot in the corner gives the class away, and so does a pattern in the lungs: which is the answer by?"""
    inside = torch.zeros(1, 1, SMALL_SIDE, SMALL_SIDE)
    inside[..., 4:16, 4:16] = 1

    def marked(count: int, seed: int) -> tuple[Tensor, Tensor]:
        images, labels = images_and_labels(count, seed=seed)
        images = inside * images + (1 - inside) * 0.5
        for k in range(3):
            images[labels == k, :, :3, 6 * k : 6 * k + 3] = 1.0
        return images, labels

    confidence, right = {}, {}
    for background in ("full", "emptied"):
        torch.manual_seed(0)
        with one_thread():
            model = SmallNet().train()
            optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
            for step in range(60):
                images, labels = marked(48, seed=step)
                lungs = inside.expand_as(images)
                learner = backgrounds.WithEmptiedLungs(model, backgrounds.emptied(images, lungs))
                loss, _ = base.standard(model if background == "full" else learner, images, labels)
                loss = loss if background == "full" else loss + learner.confusion_loss()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            images, labels = marked(90, seed=99)
            empty = images * (1 - inside) + 0.3 * inside
            with torch.no_grad():
                confidence[background] = float(model.eval()(empty).softmax(1).amax(1).mean())
                right[background] = float((model(images).argmax(1) == labels).float().mean())
    assert confidence["full"] > 0.8
    assert confidence["emptied"] < 0.5
    assert min(right.values()) > 0.9


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Images and labels of each step."""
    seen: list[tuple[Tensor, Tensor]] = []

    def spied(real: Any) -> Any:
        return lambda model, *batch, **o: seen.append((batch[0].clone(), batch[1])) or real(model, *batch, **o)

    rise(monkeypatch)
    for name in ("standard", "fgsm"):
        monkeypatch.setitem(defences.DEFENCES, name, spied(defences.DEFENCES[name]))
    return seen


def test_swapped_images_have_their_own_lungs(
    radiographs: tuple[Any, Any], tmp_path: Path, steps: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _ = radiographs
    order: list[Tensor] = []
    real = step.TrainingStep.training_step
    monkeypatch.setattr(step.TrainingStep, "training_step", lambda *given: order.append(given[1][2]) or real(*given))
    monkeypatch.setattr(backgrounds, "SHARE", 1.0)
    run = recipe(background="swap", augment=STILL, epochs=1)
    assert fit_run.fit(run, *radiographs, tmp_path).images_without_lung_mask == 0
    assert atomic.read_yaml(tmp_path / "run.yaml")["background"] == run.background == "swap"
    for (images, labels), rows in zip(steps, order, strict=True):
        own = torch.from_numpy(train.batch(rows.tolist())).float() / 255
        lungs = torch.from_numpy(np.array(train.masks("lung")[rows.numpy()]))[:, None].bool()
        difference = (images - own).abs()
        assert float(difference[~lungs].mean()) > 3 * float(difference[lungs].mean())
        assert torch.equal(labels, torch.as_tensor(train.labels[rows.numpy()])), "the label is the lungs'"


def test_validation_sees_images_as_they_are(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    real = monitor._pixels
    monkeypatch.setattr(monitor, "_pixels", lambda images, device: seen.append(images) or real(images, device))
    fit_run.fit(recipe(background="mask", epochs=1), *radiographs, tmp_path)
    assert torch.equal(torch.cat(seen), torch.from_numpy(radiographs[1].batch(range(len(radiographs[1])))))


def test_images_with_emptied_lungs_stand_beside_the_batch(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    real = backgrounds.emptied
    monkeypatch.setattr(backgrounds, "emptied", lambda *given: seen.append(given) or real(*given))
    fit_run.fit(recipe("fgsm", background="emptied", augment=STILL, epochs=1), *radiographs, tmp_path / "a")
    whole = fit_run.fit(recipe("fgsm", augment=STILL, epochs=1), *radiographs, tmp_path / "b")
    assert "images_without_lung_mask" not in whole.plain()
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert len(seen) == 3, "a run with the whole image has none"
    for (images, _), (again, _), (pixels, lungs) in zip(steps[:3], steps[3:], seen, strict=True):
        assert torch.equal(images, pixels), "those that are learnt by their labels are as they were"
        assert lungs.shape == images.shape
        assert torch.equal(images, again)
    losses = [atomic.read_table(tmp_path / name / "history.csv")["train_loss"].iloc[0] for name in "ab"]
    assert losses[0] > losses[1]


def test_networks_side_by_side_behind_a_gate_each_have_emptied_lungs_beside_them(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lung_segmenter, "EPOCHS", 1)
    learners: list[nn.Module] = []
    real = backgrounds.WithEmptiedLungs
    monkeypatch.setattr(backgrounds, "WithEmptiedLungs", lambda *given: learners.append(given[0]) or real(*given))
    run = recipe("fgsm", model={"members": 2}, background="gate-emptied", epochs=1)
    fit_run.fit(run, *radiographs, tmp_path)
    assert len(learners) == 3 * 2
    assert all(isinstance(learner.gate, classifier.LungGate) for learner in learners)
    assert learners[0].net is not learners[1].net
    assert load_run(tmp_path).recipe.name == f"{MODEL}-gate-emptied-fgsm-s0"


def test_images_without_a_mask_are_left_as_they_are_and_counted(
    tmp_path: Path, steps: list, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backgrounds, "SHARE", 1.0)
    folder = write_files.write(tmp_path / "phantom", {"Train": 8, "Val": 4, "Test": 2}, size=32)
    masks: dict[str, list[Path]] = {}  # images that have an infection mask are in the layout twice
    for path in sorted(folder.rglob("Train/*/lung masks/*.png")):
        masks.setdefault(path.name, []).append(path)
    names = sorted(masks)
    assert len(names) == 24
    run = recipe(background="mask", augment=STILL, batch_size=24, epochs=1)

    def fit_without(lost: list[str], name: str) -> Any:
        for path in (path for image in lost for path in masks[image]):
            path.unlink()
        data = [load_dataset(folder, split=s, size=32, cache=tmp_path / f"{name} cache") for s in ("Train", "Val")]
        return fit_run.fit(run, *data, tmp_path / name)

    summary = fit_without(names[:10], "run")
    assert summary.images_without_lung_mask == 10
    assert "10 of 24 training images have no lung mask" in capsys.readouterr().err
    (images, _), *_ = steps
    black = (images == 0).float().mean((1, 2, 3))
    assert int((black > 0.2).sum()) == 14, "those with a mask are black outside the lungs"
    with pytest.raises(UserError, match=r"need lung masks, and no image of .*phantom has one"):
        fit_without(names[10:], "none")


def test_entries_of_a_study_may_have_a_background_of_their_own() -> None:
    defences = [
        "fgsm",
        {"name": "standard", "training": {"background": "swap"}},
        {"name": "fgsm", "training": {"background": "swap", "epochs": 7}},
    ]
    content = {"name": "test", "models": [{"name": MODEL, "weights": "none"}], "defences": defences}
    made = validate(StudyRecipe, content, "study.yaml")
    runs = [run_recipe(made, made.models[0], d, 0) for d in made.defences]
    assert [run.name.removeprefix(MODEL) for run in runs] == ["-fgsm-s0", "-swap-standard-s0", "-swap-fgsm-s0"]
    assert [run.background for run in runs] == ["full", "swap", "swap"]
    assert runs[2].training.epochs == 7
    assert validate(RunRecipe, runs[2].model_dump(mode="json"), "run.yaml") == runs[2]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lung_segmenter, "EPOCHS", 2)
    rise(monkeypatch)


@pytest.mark.sample("fgsm")
@pytest.mark.slow
@pytest.mark.parametrize("defence", ["standard", "fgsm"])
def test_the_gate_finds_the_lungs_of_images_that_it_was_not_trained_on(
    defence: str, radiographs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lung_segmenter, "EPOCHS", 40)
    train, val = radiographs
    gate = classifier.LungGate()
    during = lung_segmenter.fit(gate, train.images, train.masks("lung"), recipe(defence, background="gate"))
    pixels, lungs = to_pixels(torch.from_numpy(np.array(val.images))), torch.from_numpy(np.array(val.masks("lung")))
    found = gate.logits(pixels).detach() > 0
    score = float(lung_segmenter.dice(found, lungs[:, None] > 0).mean())
    assert score > 0.8
    assert during > 0.75
    outside = lungs[:, None] == 0
    hidden = gate(pixels).detach()[outside].abs().mean()
    assert hidden < 0.25 * (pixels[outside] - 0.5).abs().mean()


def test_what_the_gate_closes_changes_no_answer() -> None:
    model = factory.build("test_resnet", classes=3, lung_gate=True).eval()
    with torch.no_grad():
        model.gate.out.weight.zero_()  # type: ignore[union-attr]
        model.gate.out.bias.fill_(-60.0)  # type: ignore[union-attr]
        first, second = model(torch.rand(1, 1, 32, 32)), model(torch.rand(1, 1, 32, 32))
        model.gate.out.bias.fill_(60.0)  # type: ignore[union-attr]
        images = torch.rand(2, 1, 32, 32)
        assert torch.allclose(model.gate(images), images - 0.5)
        without = classifier.Classifier(model.net, mean=float(model.mean), std=float(model.std)).eval()
        assert torch.allclose(model(images), without(images), atol=1e-5), "an open gate changes nothing"
    assert torch.allclose(first, second)


@pytest.mark.parametrize("lung_gate", [False, True])
def test_every_saliency_method_of_every_shipped_recipe_has_its_place_in_a_model(lung_gate: bool) -> None:
    model = factory.build("test_resnet", classes=3, lung_gate=lung_gate).eval()
    images = torch.rand((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    studies = map(study_recipe.load_study, study_recipe.shipped_recipes())
    every = {name for study in studies for name in study.explanation.methods}
    names = sorted(every - {"evidence"})  # of evidence networks, which test_evidence has
    assert "layercam@gate" in names
    found = methods.maps(model, images, 0, names)
    assert {name: saliency.shape for name, saliency in found.items()} == dict.fromkeys(names, (2, 32, 32))


def test_the_gate_takes_any_size() -> None:
    gate = classifier.LungGate()
    for images in (torch.rand(2, 1, *size) for size in ((32, 32), (45, 37), (224, 224))):
        assert gate(images).shape == gate.logits(images).shape == images.shape


def test_attacks_meet_the_gate() -> None:
    model = factory.build("test_resnet", classes=3, lung_gate=True)
    model.gate.requires_grad_(False)
    images, labels = torch.rand(2, 1, 32, 32), torch.tensor([0, 1])
    through, _ = attacks.input_gradient(model.eval(), images, labels)
    with torch.no_grad():
        opened = model.gate.logits(images).sigmoid()  # type: ignore[union-attr]
    leaf = images.clone().requires_grad_(True)
    features = model.net.forward_features(model.normalise((leaf - 0.5) * opened + 0.5))  # type: ignore[operator]
    logits = model.net.forward_head(features)  # type: ignore[operator]
    (around,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), leaf)
    alike = F.cosine_similarity(through.flatten(1), around.flatten(1))
    assert (alike < 0.999).all(), "the gradient goes through the segmenter too"


def test_the_gate_is_trained_on_what_makes_it_worse() -> None:
    gate = classifier.LungGate()
    pixels, inside = torch.rand(8, 1, 32, 32), (torch.rand(8, 1, 32, 32) > 0.5).float()

    def loss(images: Tensor) -> float:
        return float(F.binary_cross_entropy_with_logits(gate.logits(images), inside))

    moved = lung_segmenter._perturbed(gate, pixels, inside, 0.05, torch.Generator().manual_seed(0))
    assert loss(moved) > loss(pixels)
    assert float((moved - pixels).abs().max()) <= 0.05 + 1e-6
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    assert lung_segmenter._perturbed(gate, pixels, inside, 0.0, torch.Generator()) is pixels


@pytest.mark.usefixtures("short")
def test_images_without_a_lung_mask_do_not_teach_the_gate(radiographs: tuple[Any, Any]) -> None:
    train, _ = radiographs
    lungs = np.array(train.masks("lung"))
    lungs[32:] = 0
    gates = []
    for images, masks in ((train.images, lungs), (train.images[:32], lungs[:32])):
        torch.manual_seed(0)
        gates.append(classifier.LungGate())
        lung_segmenter.fit(gates[-1], images, masks, recipe(background="gate"))
    assert same(*(gate.state_dict() for gate in gates))


def test_dice() -> None:
    a, b = torch.zeros(3, 1, 4, 4, dtype=torch.bool), torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    a[0, 0, :2], b[0, 0, 1:3] = True, True
    a[1, 0, 0] = True
    assert lung_segmenter.dice(a, b).tolist() == [0.5, 0.0, 1.0]


@pytest.mark.usefixtures("short")
def test_the_classifier_does_not_bend_the_gate(
    radiographs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segmenter that learnt from the labels could draw the class in the shape that it cuts."""
    gates: list[dict[str, Tensor]] = []
    real = lung_segmenter.fit

    def fit(gate: classifier.LungGate, *rest: Any) -> float:
        score = real(gate, *rest)
        gates.append({name: value.clone() for name, value in gate.state_dict().items()})
        return score

    monkeypatch.setattr(lung_segmenter, "fit", fit)
    run = recipe("standard", background="gate", ema_decay=0.5)
    assert run.name == "test_resnet-gate-standard-s0"
    fit_run.fit(run, *radiographs, tmp_path)
    kept = load_run(tmp_path, on="cpu").model.gate
    assert isinstance(kept, classifier.LungGate)
    assert same(kept.state_dict(), gates[0])


def test_a_gate_that_was_trained_for_another_background_is_refused(tmp_path: Path) -> None:
    model = factory.build("test_resnet", classes=3, lung_gate=True)
    save_file({k: v for k, v in model.state_dict().items() if k != "gate.level"}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"not the weights of this model .*gate\.level"):
        load_weights(model, tmp_path / "model.safetensors")
