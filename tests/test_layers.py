"""Networks with other layers in the place of BatchNorm and ReLU, and several side by side."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from small_runs import MODEL, make_images, recipe, same, weights
from trustcxr import attacks
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.explain import cam
from trustcxr.models import classifier, factory
from trustcxr.recipes.run_recipe import DataRecipe
from trustcxr.runs import run_folder
from trustcxr.training import fit_run, step

IMAGES = torch.rand((4, 1, 64, 64), generator=torch.Generator().manual_seed(0))


def count(model: nn.Module, kind: type | tuple[type, ...]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def built(name: str = MODEL, **options: Any) -> classifier.Classifier:
    torch.manual_seed(0)
    return factory.build(name, classes=3, **options)


@pytest.mark.expensive("densenet121")
@pytest.mark.parametrize("name", [MODEL, "resnet18", "test_efficientnet", "tf_efficientnet_lite0", "densenet121"])
def test_group_norm_in_the_place_of_batchnorm(name: str) -> None:
    own, model = built(name), built(name, normalisation="group")
    norms = count(own, nn.modules.batchnorm._BatchNorm)
    assert (count(model, nn.modules.batchnorm._BatchNorm), count(model, nn.GroupNorm)) == (0, norms)
    assert factory.count_parameters(model) == factory.count_parameters(own), "the affine weights are kept"
    assert count(model, (nn.ReLU, nn.ReLU6, nn.SiLU)) == count(own, (nn.ReLU, nn.ReLU6, nn.SiLU))
    with torch.no_grad():
        together = model.train()(IMAGES)
        alone = torch.cat([model(image[None]) for image in IMAGES])
    # Dropout and drop path are off in these networks: only batch statistics could tie images to each other.
    assert torch.allclose(together, alone, atol=1e-4)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            assert module.num_channels / module.num_groups >= 8 or module.num_groups == 1


def test_group_norm_keeps_the_affine_weights_of_the_file(tmp_path: Path) -> None:
    trained = built()
    nn.init.constant_(trained.net.bn1.weight, 1.7)
    nn.init.constant_(trained.net.bn1.bias, 0.3)
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    norm = built(weights=tmp_path / "w.safetensors", normalisation="group").net.bn1
    assert torch.equal(norm.weight, torch.full_like(norm.weight, 1.7))
    assert torch.equal(norm.bias, torch.full_like(norm.bias, 0.3))


@pytest.mark.parametrize(("name", "kind"), [("silu", nn.SiLU), ("gelu", nn.GELU), ("softplus", nn.Softplus)])
def test_smooth_activations_in_the_place_of_relu(name: str, kind: type) -> None:
    own, model = built("tf_efficientnet_lite0"), built("tf_efficientnet_lite0", activation=name)
    relus = count(own, (nn.ReLU, nn.ReLU6))
    assert relus > 20
    assert (count(model, (nn.ReLU, nn.ReLU6)), count(model, kind)) == (0, relus)
    assert same(own.state_dict(), model.state_dict())
    x = torch.linspace(-5, 5, 101)
    layer = next(m for m in model.modules() if isinstance(m, kind))
    assert float((layer(x) - x.relu()).abs().max()) < 0.3


def test_unlike_networks_side_by_side_each_see_what_they_were_made_for() -> None:
    model = built("resnet18+tf_efficientnet_lite0+ResNet18").eval()
    alone = [built(name).eval() for name in ("resnet18", "tf_efficientnet_lite0", "resnet18")]
    assert float(alone[0].mean) != float(alone[1].mean), "made for other pixels"
    for one, net in zip(alone, model.net.nets, strict=True):
        one.net.load_state_dict(net.state_dict())
    with torch.no_grad():
        answers = torch.stack([one(IMAGES) for one in alone])
        assert torch.allclose(model(IMAGES), answers.mean(0), atol=1e-5)
        members = torch.stack([member.eval()(IMAGES) for member in model.members()])
        assert torch.allclose(members, answers, atol=1e-5)
    assert cam.grad_cam(model, IMAGES).shape == (4, 64, 64)
    assert factory.architectures("VGG16+resnet18") == ["vgg16", "resnet18"]


def test_networks_that_do_not_fit_side_by_side_are_refused_before_any_work(tmp_path: Path) -> None:
    for names, options in (("test_vit", {"members": 2}), ("resnet18+test_vit", {})):
        with pytest.raises(UserError, match=r"members of an ensemble need last feature maps \(B, K, h, w\)"):
            factory.check_network(names, size=160, **options)
    factory.check_network("resnet18+vgg16", size=64)
    with pytest.raises(UserError, match=r"\(1, 512, 2, 2\) and \(1, 512, 1, 1\)"):
        factory.check_network("resnet18+vgg16", size=48)
    with pytest.raises(UserError, match="unknown model 'resnet19'"):
        factory.check_network("resnet18+resnet19", size=64)
    run = recipe(model={"name": "resnet18+vgg16"}).model_copy(update={"data": DataRecipe(size=48)})
    with pytest.raises(UserError, match="members of an ensemble need"):
        run_folder.train(run, tmp_path, tmp_path / "run")


@pytest.mark.expensive("InceptionV3-48")
@pytest.mark.parametrize(("name", "size"), [("vit_tiny_patch16_224", 64), ("InceptionV3", 48)])
def test_a_network_that_does_not_take_the_size_is_refused_before_any_work(name: str, size: int, tmp_path: Path) -> None:
    why = rf"^{name} does not take images of {size} pixels \(.*\): choose another data\.size"
    with pytest.raises(UserError, match=why):
        factory.check_network(name, size=size)
    run = recipe(model={"name": name}).model_copy(update={"data": DataRecipe(size=size)})
    with pytest.raises(UserError, match="does not take images"):
        run_folder.train(run, tmp_path / "no data is looked for", tmp_path / "run")
    assert not (tmp_path / "run").exists()


class NeedsValues(nn.Module):
    """A forward pass that looks at values, as some of timm's do."""

    num_features = 1

    def forward_features(self, images: Tensor) -> Tensor:
        return images if float(images.sum()) >= 0 else -images

    def forward_head(self, features: Tensor) -> Tensor:
        return features.mean((2, 3)).repeat(1, 2)


def test_a_network_whose_shapes_hang_on_values_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def build(name: str, **options: Any) -> classifier.Classifier:
        asked.append(torch.get_default_device().type)
        return classifier.Classifier(NeedsValues(), mean=0.5, std=0.5)

    monkeypatch.setattr(factory, "build", build)
    factory.check_network("made up", size=32)
    assert asked == ["meta", "cpu"]


SETTINGS = ({"normalisation": "group", "activation": "silu"}, {"activation": "softplus"}, {"members": 2})


@pytest.mark.parametrize("options", [*SETTINGS, {"name": "resnet10t+resnet18"}], ids=str)
def test_a_run_is_rebuilt_with_its_options(options: dict[str, Any], tmp_path: Path) -> None:
    radiographs = make_images(tmp_path)
    run = recipe("fgsm", model=options, epochs=1)
    assert run.model.options() == {key: value for key, value in options.items() if key != "name"}
    fit_run.fit(run, *radiographs, tmp_path / "run")
    loaded = load_run(tmp_path / "run", on="cpu")
    assert same(weights(tmp_path / "run"), loaded.model.state_dict())
    assert (count(loaded.model, nn.GroupNorm) > 0) == ("normalisation" in options)
    assert cam.grad_cam(loaded.model, IMAGES[..., :32, :32]).shape == (4, 32, 32)


@pytest.mark.parametrize(("key", "value"), [("normalisation", "layer"), ("activation", "tanh")])
def test_a_recipe_refuses_options_that_make_no_network(key: str, value: str) -> None:
    with pytest.raises(UserError, match=f"key 'model.{key}'"):
        recipe(model={key: value})


def test_a_network_without_the_layer_is_refused_by_a_study_too() -> None:
    for name, options, why in (
        ("test_vit", {"normalisation": "group"}, "needs a network with BatchNorm; test_vit has none"),
        ("test_vit", {"activation": "silu"}, "stands in for ReLU; test_vit has none"),
        (MODEL, {"activation": "sillu"}, "unknown activation 'sillu': did you mean silu"),
        (MODEL, {"normalisation": "instance"}, "unknown normalisation"),
    ):
        with pytest.raises(UserError, match=why):
            built(name, **options)
        with pytest.raises(UserError, match=why):
            factory.check_network(name, size=160, **options)
    factory.check_network("resnet18", size=64, normalisation="group", activation="silu")


@pytest.mark.parametrize("model", [{"members": 2}, {"name": f"{MODEL}+resnet10t"}])
def test_each_network_learns_on_its_own_attack(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    radiographs = make_images(tmp_path)
    run = recipe("fgsm", model=model, epochs=1)
    seen, real = [], attacks.fgsm

    def watched(model: nn.Module, *args: Any, **options: Any) -> Tensor:
        seen.append((model.net, real(model, *args, **options)))
        return seen[-1][1]

    monkeypatch.setattr(attacks, "fgsm", watched)
    together = built(run.model.name, **run.model.options())
    module = step.TrainingStep(together, run, classes=3, steps_per_epoch=3)
    module._trainer = SimpleNamespace(global_step=3, fit_loop=None)
    images, labels, rows = radiographs[0].batch(range(8)), torch.as_tensor(radiographs[0].labels[:8]), torch.arange(8)
    loss = module.training_step((torch.from_numpy(images), labels, rows), 0)
    nets = list(module.model.net.nets)
    assert [net for net, _ in seen] == nets
    assert not torch.equal(seen[0][1], seen[1][1]), "each has an attack of its own"
    first, second = (torch.nn.functional.cross_entropy(module.model.members()[i](seen[i][1]), labels) for i in (0, 1))
    assert loss.item() == pytest.approx((first + second).item() / 2, rel=1e-3)


def test_members_share_the_weights_and_leave_the_model_as_it_is() -> None:
    copies, gated = built(members=2, normalisation="group"), built("resnet10t+resnet18", lung_gate=True)
    for model in (copies, gated):
        members = model.members()
        assert [m.net for m in members] == list(model.net.nets)
        assert all(member.gate is model.gate for member in members), "one gate before them all, or none"
        with torch.no_grad():
            answers = torch.stack([m.eval()(IMAGES) for m in members])
            assert torch.allclose(model.eval()(IMAGES), answers.mean(0), atol=1e-5)
        assert isinstance(model.net, classifier.Ensemble)
    assert built().members()[0].net is not None


@pytest.mark.parametrize("model", [{"members": 2}, {"name": "resnet10t+resnet18"}])
def test_copies_are_refused_where_they_cannot_learn_apart(model: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="members of an ensemble learn each on an attack of its own"):
        recipe("free", model=model)
