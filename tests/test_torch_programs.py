"""TorchScript by torch's own loader: what fails is said in one line, and a fixed batch takes any number."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from foreign_models import CLASSES, SIDE, Computes, scripted, small, traced
from trustcxr.attacks.adaptive import probe_gradients
from trustcxr.audit.formats import load
from trustcxr.errors import UserError


@pytest.mark.parametrize("write", [traced, scripted])
def test_other_channels_than_declared_are_said_in_a_line(write: object, tmp_path: Path) -> None:
    path = write(small(), tmp_path / "m.pt")  # type: ignore[operator]
    with pytest.raises(UserError) as problem:
        load(path, classes=CLASSES, size=SIDE, channels=1, trust_code=True)
    said = str(problem.value)
    start = f"{path}: it does not take images of 1 channel and 32 pixels (Given groups=1, weight of size [16, 3, 3, 3]"
    assert said.startswith(start)
    assert said.endswith("but got 1 channels instead): see input.size and input.channels")
    assert len(said.splitlines()) == 1


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_trace_of_one_size_of_batch_takes_any(count: int, tmp_path: Path) -> None:
    layer = nn.Linear(SIDE**2, 3)
    net = Computes(lambda images: layer(images.reshape(len(images), -1)), layer).eval()
    torch.jit.trace(net, torch.rand(count, 1, SIDE, SIDE)).save(str(tmp_path / "m.pt"))
    given = load(tmp_path / "m.pt", classes=CLASSES, size=SIDE, trust_code=True)
    assert given.model.batch == count
    images = torch.rand(7, 1, SIDE, SIDE).requires_grad_(True)
    answers = given.model(images)
    assert torch.allclose(answers, net(images), atol=1e-5)
    (slope,) = torch.autograd.grad(answers[:, 0].sum(), images)
    assert torch.allclose(slope, layer.weight[0].reshape(1, 1, SIDE, SIDE).expand_as(slope), atol=1e-5)


def test_a_trace_that_answers_of_two_whatever_it_is_given_is_asked_of_two(tmp_path: Path) -> None:
    conv, head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
    net = Computes(lambda x: head(conv(x).view(int(x.shape[0]), 4, -1).mean(2)), conv, head).eval()
    given = load(traced(net, tmp_path / "m.pt"), classes=CLASSES, size=SIDE, channels=3, trust_code=True)
    images = torch.rand(5, 1, SIDE, SIDE)
    torch.testing.assert_close(given.model(images), net(images.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5)


def test_gradients_that_stop_inside_stay_stopped_and_that_is_said(tmp_path: Path) -> None:
    class Rounds(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images * 255).round().mean((2, 3)) * torch.tensor([1.0, 2.0, 3.0])

    images = torch.rand(4, 1, SIDE, SIDE)
    scripted(Rounds(), tmp_path / "m.pt")
    given = load(tmp_path / "m.pt", classes=CLASSES, size=SIDE, trust_code=True)
    assert "no BPDA is tried" in given.origin.notes[0]
    traits = probe_gradients(given.model, images)
    assert (traits.zero_gradients, traits.healed, traits.stopped) == (1.0, 1.0, {})
    seen = probe_gradients(load(Rounds(), classes=CLASSES, size=SIDE).model, images)
    assert seen.healed == 0.0, "of a module that torch can see into, BPDA lets gradients through"
