"""Proofs of networks that answer together: one network whose every layer acts on each one's own channels."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from small_runs import newest, recipe
from trustcxr import load_run
from trustcxr.certify import Effort, verify
from trustcxr.cli import app
from trustcxr.data import load_dataset
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError
from trustcxr.evaluation import certified
from trustcxr.evaluation.trained_run import Run
from trustcxr.models import factory
from trustcxr.models.classifier import Classifier, Ensemble
from trustcxr.storage import atomic

EPSILON = 0.01


def together(members: int = 3) -> Classifier:
    """Members with weights of their own and biases that are not 0, on images of 32 pixels."""
    torch.manual_seed(0)
    model = factory.build("plain3", classes=3, weights="none", members=members).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.05)
    return model


def some(count: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(count, 1, 32, 32), torch.arange(count) % 3


def interval(images: Tensor) -> verify.Interval:
    return verify.Interval.from_ends(*verify.box(images.double(), EPSILON))


def test_intervals_prove_of_the_ensemble_the_mean_of_what_they_prove_of_each() -> None:
    model, (images, labels) = together(), some(6)
    each = [verify.interval_margins(verify.exact(one), interval(images), labels) for one in model.members()]
    mean = torch.stack(each).mean(0)
    assert torch.allclose(verify.interval_margins(verify.exact(model), interval(images), labels), mean, atol=1e-9)
    assert (each[0] - each[1]).abs().max() > 1e-3, "they are not the same network"


def test_crown_looks_at_all_members_at_once() -> None:
    model, (images, labels) = together(), some(6)
    each = [verify.crown_margins(verify.exact(one), interval(images), labels) for one in model.members()]
    found = verify.crown_margins(verify.exact(model), interval(images), labels)
    assert (found >= torch.stack(each).mean(0) - 1e-9).all()
    assert (found - torch.stack(each).mean(0)).max() > 1e-6, "the worst image of one is not the worst of another"


@pytest.mark.parametrize("bound", [verify.interval_margins, verify.crown_margins], ids=["ibp", "crown"])
def test_no_image_of_the_ball_has_a_smaller_margin(bound: object) -> None:
    model, (images, labels) = together(), some(2)
    least = bound(verify.exact(model), interval(images), labels)  # type: ignore[operator]
    corners = torch.rand(4_000, 2, 1, 32, 32)
    corners[::2] = corners[::2].round()
    points = (images + EPSILON * (2 * corners - 1)).clamp(0, 1).flatten(0, 1)
    # and where each margin falls soonest, which no random point comes near
    sought = images.clone().requires_grad_(True)
    logits = model(sought)
    (gradient,) = torch.autograd.grad((logits.gather(1, labels[:, None]) * 2 - logits).sum(), sought)
    worst = (images - EPSILON * gradient.sign()).clamp(0, 1)
    with torch.no_grad():
        said = torch.cat([model(points), model(worst)]).double().unflatten(0, (4_001, 2))
    margins = said.gather(2, labels.expand(4_001, 2)[..., None]) - said
    assert (margins >= least - 1e-6).all()


@pytest.mark.slow
def test_neurons_are_counted_in_each_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    def noted(*given: object, neurons: int, **options: object) -> Tensor:
        asked.append(neurons)
        return least(*given, neurons=neurons, **options)  # type: ignore[arg-type]

    least = verify.crown_margins
    monkeypatch.setattr(verify, "crown_margins", noted)
    images = load_dataset(write_files.write(tmp_path / "phantom", {"Test": 2}, size=32), split="Test", size=32)
    for members in (1, 3):
        run = Run(Path("run"), together(members), tuple(images.classes), recipe())
        certified.prove(run, images, [0.3], effort=Effort(neurons=128))
    assert asked == [128, 384]


def test_the_allowance_for_rounding_covers_float32() -> None:
    model, (images, _) = together(), some(40)
    layers = verify.exact(model)
    allowed = verify.rounding(layers, verify.intervals(layers, interval(images)))
    with torch.no_grad():
        apart = (model(images).double() - together().double()(images.double())).abs()
    assert (apart <= allowed).all()
    assert 0 < allowed.max() < 1e-3


def test_unlike_networks_are_refused_with_the_reason() -> None:
    one, deeper = together(1).net, factory.build("plain5", classes=3, weights="none").net
    for nets, means in (([one, deeper], (0.5, 0.5)), ([one, one], (0.5, 0.4))):
        model = Classifier(Ensemble(nets, means, (0.25, 0.25)), mean=0.5, std=0.25)
        with pytest.raises(UserError, match=r"networks of the ensemble 'net' differ.*model\.members"):
            verify.layers(model)


@pytest.mark.slow
def test_members_are_trained_and_certified_by_the_commands(tmp_path: Path) -> None:
    images = write_files.write(tmp_path / "phantom", {"Train": 24, "Val": 8, "Test": 8}, size=32)
    options = "--model plain3 --weights none --defence ibp --size 32 --epochs 4 --learning-rate 0.004 --epsilon 0.005"
    shares = "--ramp 0.5 --clean-weight 0.3 --set model.members=2 --set defence.regulariser=0.5"
    run = tmp_path / "run"
    done = CliRunner().invoke(
        app, ["train", "--data", str(images), "--out", str(run), *options.split(), *shares.split()]
    )
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(
        app, ["certify", str(run), "--data", str(images), "--epsilon", "0.002", "--method", "ibp"]
    )
    assert done.exit_code == 0, done.output
    assert len(load_run(run).model.members()) == 2
    table = atomic.read_table(newest(run) / "certified.parquet")
    assert table["proved"].any()
    training = atomic.read_json(run / "training.json")
    assert (training["monitor"], training["best_value"] >= 0) == ("val_certified_accuracy", True)
