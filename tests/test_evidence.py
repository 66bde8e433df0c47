"""Networks whose map is their reason, and lesion masks in their training."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from small_runs import recipe
from trustcxr import explain, models
from trustcxr.data import lesion_edits, load_dataset, phantom
from trustcxr.data.phantom.render_image import render
from trustcxr.defences import counterfactual_loss, guidance
from trustcxr.defences.counterfactual_loss import LesionBatch
from trustcxr.defences.guidance import Pass
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions, trained_models
from trustcxr.evaluation.trained_run import Run, load_run
from trustcxr.explain import predict
from trustcxr.explain.base import to_saliency
from trustcxr.explain.cam import evidence_map, signed_evidence
from trustcxr.models import evidence_networks
from trustcxr.models.classifier import Classifier
from trustcxr.models.evidence_networks import EvidenceNet
from trustcxr.recipes.evaluation_recipe import AttackRecipe
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.training_recipe import Fill
from trustcxr.report.terminal import describe_answer
from trustcxr.training import fit_run, step

SIZE = 64


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 1, SIZE, SIZE, generator=_seeded())


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _model(name: str) -> models.Classifier:
    return models.build(name, classes=3).eval()


@pytest.mark.parametrize("name", ["evidence-17", "evidence-full", "evidence-resnet10tx16", "evidence-17+evidence-25"])
def test_the_evidence_sums_to_the_logits(name: str, images: Tensor) -> None:
    model, seen = _model(name), []
    model.cam_layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    logits = model(images)
    found = evidence_networks.evidence_per_class(model, seen[0])
    cells = SIZE // evidence_networks.STRIDE
    assert found.shape == (3, 3, cells, cells)
    assert explain.methods.cells(model, images, "evidence") == (cells, cells)
    assert torch.allclose(found.sum((2, 3)), logits, atol=1e-6)
    assert found.sum(1).abs().max() < 1e-6, "what is said for all classes alike is left out"


@pytest.mark.parametrize("field", evidence_networks.FIELDS)
def test_a_cell_sees_its_field_and_no_more(field: int) -> None:
    net = EvidenceNet(2, field=field, width=8).double().eval()
    for module in net.modules():
        if isinstance(module, nn.ReLU):  # a path that is shut on this image would make the field look smaller
            module.forward = lambda x: x  # type: ignore[method-assign]
    image = torch.rand(1, 1, 96, 96, dtype=torch.float64, requires_grad=True)
    net.forward_features(image)[0, 0, 12, 12].backward()
    rows, columns = image.grad[0, 0].nonzero().unbind(1)
    assert int(rows.max() - rows.min()) + 1 == int(columns.max() - columns.min()) + 1 == field


@pytest.mark.parametrize("name", ["evidence-full", "evidence-resnet10tx16"])
def test_the_whole_image_is_seen_by_each_cell_of_the_full_one(name: str) -> None:
    image, model = torch.rand(1, 1, SIZE, SIZE, requires_grad=True), _model(name)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.ones_(norm.weight)  # a ResNet's blocks begin as nothing
    model.net.forward_features(image)[0, 0, 0, 0].backward()  # type: ignore[operator]
    assert image.grad[0, 0, -4:, -4:].abs().max() > 0


def test_names_are_read_in_any_case_and_others_refused() -> None:
    assert models.architecture("Evidence-33x96") == "evidence-33x96"
    assert not evidence_networks.is_evidence_network("evidence-32")
    with pytest.raises(UserError, match="evidence-33"):
        models.architecture("evidence-32")
    for narrow in ("evidence-33x0", "evidence-33x1", "evidence-fullx1", "evidence-resnet18x0"):
        with pytest.raises(UserError, match="unknown model"):
            models.architecture(narrow)
    assert models.architecture("evidence-33x2") == "evidence-33x2"
    assert models.build("evidence-33x2", classes=3)(torch.rand(1, 1, SIZE, SIZE)).shape == (1, 3)
    with pytest.raises(UserError, match="weights: none"):
        models.build("evidence-33", classes=3, weights="imagenet")
    with pytest.raises(UserError, match="group would let each cell of evidence-33 see the whole image"):
        models.build("evidence-33", classes=3, normalisation="group")
    assert models.build("evidence-full", classes=3, normalisation="group")


@pytest.mark.parametrize("name", ["evidence-33x16", "evidence-resnet10tx16", "evidence-17+evidence-25"])
def test_the_control_of_evidence_is_what_its_head_reads(name: str, images: Tensor) -> None:
    model, read = _model(name), []
    nets = getattr(model.net, "nets", [model.net])
    for net in nets:
        net.head.register_forward_pre_hook(lambda _module, given: read.append(given[0]))
    model(images)
    expected = to_saliency(torch.cat(read[: len(nets)], 1).clamp(min=0).sum(1), SIZE, SIZE)
    shown = [explain.method("evidence-features")(model, images, target) for target in (0, 2)]
    assert torch.allclose(shown[0], expected, atol=1e-6)
    assert torch.equal(*shown), "it does not ask for a class"


def _known(count: int = 12) -> LesionBatch:
    """COVID-19 (0), Non-COVID (1) and Normal (2) in turn: lungs of 0.3, lesions of 0.8 in the first."""
    lung, lesion = torch.zeros(count, 1, SIZE, SIZE), torch.zeros(count, 1, SIZE, SIZE)
    lung[..., 10:54, 8:28] = lung[..., 10:54, 36:56] = 1
    lesion[::3, :, 14:26, 10:22] = 1
    pixels = torch.full((count, 1, SIZE, SIZE), 0.5) - 0.2 * lung + 0.5 * lesion
    return LesionBatch(pixels, torch.arange(count) % 3, lung, lesion)


def _changed(known: LesionBatch, share: float, seed: int = 0, **options: Any) -> LesionBatch:
    return counterfactual_loss.counterfactual(known, healthy=2, share=share, generator=_seeded(seed), **options)


def test_a_removed_lesion_makes_a_image_healthy_and_its_control_does_not() -> None:
    known = _known(24)
    after = _changed(known, 0.5)
    ill = known.labels == 0
    gone = ill & (after.labels == 2)
    assert int(gone.sum()) == 4
    assert not after.lesion[gone].any()
    assert after.pixels[gone].max() <= 0.5
    edited = ill & (after.labels == 0) & (after.pixels != known.pixels).flatten(1).any(1)
    assert int(edited.sum()) == round(counterfactual_loss.CONTROL * 4)
    assert torch.equal(after.lesion[edited], known.lesion[edited])
    assert torch.equal((after.pixels * after.lesion)[edited], (known.pixels * known.lesion)[edited])


def test_removed_lesions_are_filled_in_each_way_in_turn() -> None:
    known, fills = _known(24), tuple(lesion_edits.TRAINING_FILLS)
    known = replace(known, pixels=known.pixels + 0.05 * torch.rand(known.pixels.shape))
    after = _changed(known, 0.5, fills=fills)
    gone = ((known.labels == 0) & (after.labels == 2)).nonzero()[:, 0]
    images = known.images(gone)
    given = (images.images, images.lesion, images.lung, images.lesion)
    by_fill = [lesion_edits.fill_region(*given, fill=fill) for fill in fills]
    which = [[torch.equal(filled[row], after.pixels[image]) for filled in by_fill] for row, image in enumerate(gone)]
    assert all(sum(one) == 1 for one in which), "each by one of them"
    assert {one.index(True) for one in which} == {0, 1, 2}
    assert fills == get_args(Fill), "what a recipe may ask for is what there is"


def test_healthy_lung_goes_on_into_a_hole_and_nothing_else_does() -> None:
    images, lung = torch.full((1, 1, 32, 32), 1.0), torch.zeros(1, 32, 32, dtype=torch.bool)
    lesion = lung.clone()
    lung[:, 2:30, 2:14] = lung[:, 2:30, 18:30] = True
    images[..., 2:30, 2:14], images[..., 2:30, 18:30] = 0.1, 0.4
    lesion[:, 10:20, 4:10] = lesion[:, 10:20, 20:26] = True
    images[lesion[:, None]] = 0.9
    filled = lesion_edits.fill_from_surroundings(images, lesion, lung, lesion)
    assert float(filled[0, 0, 15, 7]) == pytest.approx(0.1, abs=0.12)
    assert float(filled[0, 0, 15, 23]) == pytest.approx(0.4, abs=0.12)
    assert float(filled[0, 0].max()) < 0.5, "no bone and no other part of the lesion"
    all_ill = lesion_edits.fill_from_surroundings(images, lung, lung, lung)
    assert torch.equal(all_ill, lesion_edits.fill_grey(images, lung, lung, lung))


def test_a_step_makes_counterfactual_images_as_the_recipe_says_and_attacks_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known, asked, radii, real = _known(24), {}, [], counterfactual_loss.counterfactual
    monkeypatch.setattr(counterfactual_loss, "counterfactual", lambda batch, **o: asked.update(o) or real(batch, **o))
    edits = {"share": 0.5, "epsilon": 0.0, "fills": ["mirror", "grey"]}
    run = _recipe("fgsm", counterfactuals=edits)
    masks = {"lungs": known.lung[:, 0].numpy(), "lesions": known.lesion[:, 0].numpy()}
    module = step.TrainingStep(_model("evidence-17x8"), run, classes=3, steps_per_epoch=4, healthy=2, **masks)
    defence = module.defence
    module.defence = lambda *batch, **options: radii.append(options["epsilon"]) or defence(*batch, **options)
    module.on_train_epoch_start()
    module.training_step(((known.pixels * 255).byte(), known.labels, torch.arange(24)), 0)
    assert (asked["share"], tuple(asked["fills"])) == (0.5, ("mirror", "grey"))
    spared = radii[0].flatten() == 0
    assert 0 < int(spared.sum()) < 24
    assert radii[0].flatten()[~spared].tolist() == pytest.approx([0.02] * int((~spared).sum()))


def test_a_replayed_batch_has_the_same_counterfactual_images(monkeypatch: pytest.MonkeyPatch) -> None:
    known, run = _known(24), _recipe({"name": "free", "replays": 2}, counterfactuals={"share": 0.5})
    module = step.TrainingStep(_model("evidence-17x8"), run, classes=3, steps_per_epoch=4, healthy=2)
    pixels = []
    for number in (0, 1, 2):
        monkeypatch.setattr(step.TrainingStep, "global_step", number)
        pixels.append(module._counterfactual(known, 2).pixels)
    assert torch.equal(pixels[0], pixels[1])
    assert not torch.equal(pixels[1], pixels[2])


def test_a_transplanted_lesion_makes_a_healthy_image_ill() -> None:
    known = _known(24)
    after = _changed(known, 0.25)
    ill_now = (known.labels == 2) & (after.labels == 0)
    assert int(ill_now.sum()) == 2
    assert after.lesion[ill_now].flatten(1).any(1).all()
    assert float(after.pixels[ill_now].flatten(1).amax()) > 0.75
    others = known.labels == 1
    assert torch.equal(after.pixels[others], known.pixels[others])
    assert not torch.equal(known.pixels, after.pixels)


def test_a_patch_taught_as_healthy_is_lung_of_both_images() -> None:
    """A donor's chest wall is brighter than a lesion: put into a lung it would teach that a lesion is healthy."""
    known = _known(24)
    known.lung[2::6, :, :, 8:18] = 0  # some healthy images have narrower lungs, and wall where lesions lie
    known.pixels[2::6, :, :, 8:18] = 0.9
    for seed in range(8):
        after = _changed(known, 0.5, seed)
        well = (after.labels == 2) & (known.labels == 2)
        assert (after.pixels - known.pixels)[well].max() < 0.1, seed


def test_a_image_without_lungs_stays_as_it_is() -> None:
    """Its lesion has nothing to be filled with: black would teach that a hole is healthy."""
    known = _known(24)
    known.lung[[0, 2]] = 0
    for seed in range(4):
        after = _changed(known, 1.0, seed)
        assert after.edited[[0, 2]].tolist() == [False, False]
        assert after.labels[[0, 2]].tolist() == [0, 2]
        assert torch.equal(after.lesion[[0, 2]], known.lesion[[0, 2]])
        assert after.labels[3::3].tolist() == [2] * 7, "the others' lesions are gone"


def _guidance(evidence: Tensor, known: LesionBatch, lesion: int = 1, lung: int = 1) -> Tensor:
    """The loss of some evidence, the masks times 0 or 1."""
    batch = LesionBatch(known.pixels, known.labels, lung * known.lung, lesion * known.lesion)
    return guidance.guidance(Pass(evidence, torch.zeros(len(evidence), 3), "evidence"), batch)


def test_evidence_on_the_lesion_costs_less_than_evidence_elsewhere() -> None:
    known = _known(3)
    cells = SIZE // evidence_networks.STRIDE
    on, off = torch.full((3, 4, cells, cells), -6.0), torch.full((3, 4, cells, cells), -6.0)
    on[:, 3] = off[:, 3] = 20 * F.adaptive_avg_pool2d(known.lung, cells)[:, 0] - 10
    on[0, 0, 4:6, 3:5] = 6.0
    off[0, 0, 9:11, 10:12] = 6.0
    costs = [float(_guidance(found, known)) for found in (on, off)]
    assert costs[0] < costs[1] - 0.01
    assert costs[0] == pytest.approx(float(_guidance(on, known, lesion=0)), abs=1e-3), "all of the energy is inside"


def test_images_without_masks_are_unguided() -> None:
    found = torch.randn(3, 4, 16, 16, requires_grad=True)
    loss = _guidance(found, _known(3), lesion=0, lung=0)
    loss.backward()
    assert loss.item() == 0
    assert not found.grad.any()


def test_only_the_passes_of_training_are_followed() -> None:
    net = EvidenceNet(3, field=17, width=8)
    with guidance.followed(net) as passes:
        net(torch.rand(2, 1, 16, 16))
        net.eval()(torch.rand(2, 1, 16, 16))
        with torch.no_grad():
            net.train()(torch.rand(2, 1, 16, 16))
    net(torch.rand(2, 1, 16, 16))
    assert [(tuple(p.source.shape), p.on) for p in passes] == [((2, 4, 4, 4), "evidence")]
    assert passes[0].logits.shape == (2, 3)
    with guidance.followed(net.train(), wanted=False) as none:
        net(torch.rand(2, 1, 16, 16))
    assert none == []


def _recipe(defence: str | dict[str, Any] = "standard", **training: object) -> RunRecipe:
    return recipe(defence, model={"name": "evidence-17x8"}, **{"epochs": 1, "batch_size": 12} | training)


def test_what_lesion_masks_are_used_for_stands_in_the_name() -> None:
    run = _recipe("fgsm", guidance=1.0, counterfactuals={"share": 0.3}, background="emptied")
    assert run.name == "evidence-17x8-emptied-guided-counterfactual-fgsm-s0"
    assert _recipe().name == "evidence-17x8-standard-s0"
    assert run.needs_lungs


@pytest.mark.slow
def test_guidance_moves_the_evidence_onto_the_lesion_through_the_products_own_training(tmp_path: Path) -> None:
    phantom.write(tmp_path / "images", {"Train": 24, "Val": 6, "Test": 6}, size=32, seed=0, conspicuity=3.0)
    train, val = (load_dataset(tmp_path / "images", split=split, size=32) for split in ("Train", "Val"))
    inside = {}
    for name, keys in {"plain": {}, "guided": {"guidance": 4.0, "counterfactuals": {"share": 0.3}}}.items():
        run = _recipe("fgsm", epochs=4, learning_rate=1e-2, background="emptied", **keys)
        fit_run.fit(run, train, val, tmp_path / name)
        model = load_run(tmp_path / name).model
        ill = np.flatnonzero(train.masks("infection").any((1, 2)))
        pixels = torch.from_numpy(train.batch(ill)).float() / 255
        with torch.no_grad():
            own = model.net.forward_features(model.normalise(pixels))  # type: ignore[operator]
        own = own[torch.arange(len(ill)), torch.from_numpy(train.labels[ill])].clamp(min=0)
        mask = F.adaptive_avg_pool2d(torch.from_numpy(np.array(train.masks("infection")[ill])).float(), 8)
        inside[name] = float(((own * mask).sum((1, 2)) / own.sum((1, 2)).clamp(min=1e-9)).mean())
    assert inside["guided"] > 1.5 * inside["plain"]


@pytest.mark.parametrize("name", ["evidence-17", "evidence-17+evidence-25"])
def test_the_map_is_the_answers_own_arithmetic(name: str, images: Tensor) -> None:
    model = _model(name).train()
    signed = signed_evidence(model, images, 1)
    assert model.training
    assert torch.allclose(signed.sum((1, 2)), model.eval()(images)[:, 1], atol=1e-6)
    shown = explain.METHODS["evidence"](model, images, 1)
    assert shown.shape == (3, SIZE, SIZE)
    assert torch.equal(shown, to_saliency(signed, SIZE, SIZE))
    assert torch.equal(explain.method("evidence")(model, images), evidence_map(model, images, model(images).argmax(1)))


def test_a_network_whose_answer_is_no_sum_of_evidence_has_no_such_map(images: Tensor) -> None:
    model = _model("resnet10t")
    with pytest.raises(UserError, match="evidence-33"):
        evidence_map(model, images)
    with pytest.raises(UserError, match="of evidence networks"):
        explain.methods.cells(model, images, "evidence")
    with pytest.raises(UserError, match="evidence networks"):
        explain.method("evidence-features")(model, images, 0)


def test_another_thread_may_use_the_model_meanwhile(images: Tensor) -> None:
    model = _model("evidence-17x8")
    wanted = evidence_map(model, images[:1], 0)

    def meanwhile(*_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            other = threading.Thread(target=model, args=(images[1:2],))
            other.start()
            other.join()

    model.register_forward_hook(meanwhile)
    assert torch.equal(evidence_map(model, images[:1], 0), wanted)


def test_a_smooth_activation_stands_in_for_every_relu_of_the_full_network(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, smooth = (models.build("evidence-full", classes=3, activation=kind).eval() for kind in ("own", "silu"))
    assert list(own.state_dict()) == list(smooth.state_dict()), "files stay the same"
    real, done = F.relu, []
    monkeypatch.setattr(F, "relu", lambda *args, **options: done.append(1) or real(*args, **options))
    smooth(images)
    assert not done


@pytest.mark.parametrize("kind", ["evidence-17x8", "behind a gate"])
def test_no_mask_reaches_a_network_at_test(kind: str, tmp_path: Path) -> None:
    phantom.write(tmp_path, {"Test": 4}, size=SIZE, seed=0)
    network = models.build("evidence-17x8", classes=3)
    model = Classifier(network.net, mean=0.5, std=0.25, lung_gate=kind == "behind a gate").eval()
    run = Run(tmp_path, model, ("COVID-19", "Non-COVID", "Normal"), _recipe())

    def answers() -> pd.DataFrame:
        data = load_dataset(tmp_path, split="Test", size=SIZE)
        return predictions.predict(run, data, [AttackRecipe(name="pgd", epsilons=(0.02,), steps=3)])

    before = answers()
    pictures = [path for path in tmp_path.rglob("*.png") if "mask" in path.parent.name]
    assert pictures
    for number, path in enumerate(pictures):
        noise = np.random.default_rng(number).integers(0, 2, size=(SIZE, SIZE), dtype=np.uint8)
        Image.fromarray(255 * noise).save(path)
    after = answers()
    unmasked = before["attack"].isin(["clean", "pgd"])
    pd.testing.assert_frame_equal(before[unmasked], after[unmasked])
    assert not np.array_equal(np.stack(before["logits"]), np.stack(after["logits"])), "with the lungs hidden it differs"


def test_predict_shows_the_evidence_of_a_network_that_has_it(tmp_path: Path) -> None:
    Image.fromarray(render("COVID-19", 1, 64).image).save(tmp_path / "chest.png")
    folder = trained_models.resolve(Path("covid-evidence"))
    (answer,) = predict.predict(folder, [tmp_path / "chest.png"], out=tmp_path / "out", anyway=True)
    assert answer.method == "evidence"
    assert "heatmap (evidence, summed to the answer) of the predicted class" in "\n".join(describe_answer(answer))
