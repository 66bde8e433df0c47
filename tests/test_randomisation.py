"""In what order a model is made random, and what of its map is left when it is."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from foreign_models import CLASSES, IMAGENET, SIDE, exported, onnx, small, traced
from small_networks import stages_of
from trustcxr import explain
from trustcxr.audit.formats import load
from trustcxr.errors import UserError
from trustcxr.explain import randomisation
from trustcxr.models import factory


def order(model: nn.Module, size: int = 32) -> list[str]:
    x = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(3))
    return [s.part for s in stages_of(model.eval(), x, explain.method("centre"), 0)]


class Backwards(nn.Module):
    """A network whose modules stand in another order than that in which they are run."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.late = nn.Conv2d(8, 8, 3, padding=1)
        self.early = nn.Conv2d(1, 8, 3, padding=1)
        self.token = nn.Parameter(torch.zeros(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.late(self.early(x).relu()) + self.token).mean((2, 3)))


def test_randomisation_goes_by_what_is_run_last_not_by_what_is_written_last() -> None:
    model = Backwards()
    assert order(model) == ["head", "late", "early", ""]
    assert not any(module._forward_hooks for module in model.modules())


def test_the_lung_gate_is_made_random_last() -> None:
    parts = order(factory.build("test_resnet", classes=3, lung_gate=True))
    assert parts[0] == "net.fc"
    assert parts[-2:] == ["net.conv1", "gate"]
    assert parts[1:4] == ["net.layer4", "net.layer3", "net.layer2"]


def test_networks_side_by_side_are_made_random_in_step_from_the_logits_of_each() -> None:
    model = factory.build("test_resnet+resnet10t", classes=3)
    parts = order(model, 64)
    assert parts[0] == "net.nets.0.fc + net.nets.1.fc"
    assert parts[1] == "net.nets.0.layer4 + net.nets.1.layer4"
    alone = [len(order(factory.build(name, classes=3), 64)) for name in ("test_resnet", "resnet10t")]
    assert len(parts) == max(alone)
    named = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    whole = [part for step in parts for part in step.split(" + ")]
    assert all(any(f"{owner}.".startswith(f"{part}.") for part in whole) for owner in named)


def test_a_random_network_keeps_its_gate_and_nothing_else() -> None:
    model = factory.build("test_resnet", classes=3, lung_gate=True).eval()
    found, again, other = (randomisation.random_network(model, seed=seed) for seed in (1, 1, 2))
    for name, parameter in model.named_parameters():
        drawn = dict(found.named_parameters())[name]
        kept = name.startswith("gate.") or parameter.std() == 0  # all ones, all zeros: there is no spread to draw from
        assert torch.equal(parameter, drawn) == kept, name
        assert torch.equal(drawn, dict(again.named_parameters())[name])
    assert not torch.equal(found.net.fc.weight, other.net.fc.weight)
    assert not found.training


def test_a_model_whose_weights_torch_does_not_see_has_no_random_weights(tmp_path: Path) -> None:
    x = torch.rand(2, 1, SIDE, SIDE)
    model = load(onnx(small(), tmp_path / "m.onnx"), classes=CLASSES, **IMAGENET).model
    for ask in (randomisation.random_network, lambda m: list(stages_of(m, x, explain.method("gradcam"), 0))):
        with pytest.raises(UserError, match=r"random weights: the model .*give the network as a module"):
            ask(model)


def test_the_weights_of_a_program_are_drawn_anew_too(tmp_path: Path) -> None:
    x = torch.rand(2, 1, SIDE, SIDE)
    for source in (exported(small(), tmp_path / "m.pt2"), traced(small(), tmp_path / "m.pt")):
        model = load(source, classes=CLASSES, trust_code=True, **IMAGENET).model
        found = randomisation.random_network(model)
        assert sum(not torch.equal(*pair) for pair in zip(found.parameters(), model.parameters(), strict=True)) > 5
        assert not torch.equal(found(x), model(x))


def test_a_random_network_made_without_gradients_can_be_explained() -> None:
    model, x = factory.build("test_resnet", classes=3).eval(), torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        found = randomisation.random_network(model, seed=1)
        maps = explain.grad_cam(found, x, 0)
    assert torch.equal(maps, explain.grad_cam(randomisation.random_network(model, seed=1), x, 0))
