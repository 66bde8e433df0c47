"""BatchNorm folded away while a model is attacked in training: the same answers, and nothing left behind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foreign_models import Computes
from trustcxr import attacks, defences
from trustcxr.audit.formats import load
from trustcxr.audit.multilabel import Decision
from trustcxr.defences import adversarial
from trustcxr.models import factory
from trustcxr.models.fuse_batchnorm import find_pairs, fold_batchnorm, make_fused_copy

IMAGES = torch.rand((4, 1, 64, 64), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def lived_in(model: nn.Module) -> nn.Module:
    """The model with statistics and affine weights as training leaves them, not zeros and ones."""
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values, low in ((layer.running_mean, -0.2), (layer.running_var, 0.8), (layer.weight, 0.8)):
                if values is not None:
                    values.data.copy_(low + 0.4 * torch.rand(values.shape, generator=generator))
            layer.bias.data.copy_(0.2 * torch.rand(layer.bias.shape, generator=generator) - 0.1)
    return model


def state(model: nn.Module) -> list[object]:
    """Which modules and tensors a model is made of, one by one, with their flags and values."""
    modules = [(name, id(module), module.training) for name, module in model.named_modules()]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [*modules, *((name, id(values), float(values.double().sum())) for name, values in tensors)]


@pytest.mark.sample("ResNet50", "DenseNet121", "MobileNetV2")
@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in factory.PAPER_MODELS if not n.startswith(("VGG", "ConvNeXt"))])
def test_each_of_the_21_with_batchnorm_answers_as_before(name: str) -> None:
    torch.manual_seed(0)
    # In double precision: in single, rounding alone turns some of a deep network's ReLUs on and off.
    model = lived_in(factory.build(name, classes=3)).eval().double()
    size = 96 if name.startswith("Inception") else 64
    images = torch.rand((2, 1, size, size), generator=torch.Generator().manual_seed(2)).double()
    plain = attacks.input_gradient(model, images, LABELS[:2])
    with fold_batchnorm(model.net):
        left = sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
        found = attacks.input_gradient(model, images, LABELS[:2])
    there = sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert there - left == len(find_pairs(model.net))
    assert there == 0 or there - left >= 0.4 * there  # DenseNet norms what it has joined: no convolution to fold into
    for before, after in zip(plain, found, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6 * float(before.abs().max()))


def test_nothing_is_left_behind_even_after_an_error() -> None:
    model = lived_in(factory.build("resnet10t", classes=3)).train()
    model.net.layer1.eval()  # a part that was frozen on purpose
    before = state(model)
    with pytest.raises(RuntimeError, match="channels"), fold_batchnorm(model.net):
        model.eval()(torch.rand(2, 3, 64, 64))  # colour, which this network does not take
    model.train()
    model.net.layer1.eval()
    assert state(model) == before


class Shared(nn.Module):
    """Nothing here may be folded: one map has two readers, one norm has two inputs, one keeps no statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.twice_read, self.first, self.second, self.third = (nn.Conv2d(1, 4, 3, padding=1) for _ in range(4))
        self.norm, self.shared = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.without = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        read = self.twice_read(x)
        maps = read + self.norm(read) + self.shared(self.first(x)) + self.shared(self.second(x))
        return (maps + self.without(self.third(x))).mean((2, 3))


def test_what_cannot_be_folded_is_left_alone() -> None:
    model = lived_in(Shared()).eval()
    plain = model(IMAGES)
    with fold_batchnorm(model):
        assert [type(layer) for layer in model.children()] == [nn.Conv2d] * 4 + [nn.BatchNorm2d] * 3
        assert torch.equal(model(IMAGES), plain)


def test_a_network_that_cannot_be_followed_is_attacked_as_it_is() -> None:
    body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    model = lived_in(Computes(lambda x: body(x if x.mean() > 0 else -x).mean((2, 3)), body)).train()
    assert find_pairs(model) == []
    loss, logits = adversarial.fgsm(model, IMAGES, LABELS, epsilon=0.02)
    assert torch.isfinite(loss)
    assert logits.shape == (4, 3)


class Counting(nn.BatchNorm2d):
    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(input)


def small() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 6, 3, padding=1), Counting(6), nn.SiLU(), nn.Conv2d(6, 6, 3, bias=False), Counting(6))
    return lived_in(nn.Sequential(*layers, nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)))


@pytest.mark.parametrize("defence", ["fgsm", "fgsm-rs", "pgd", "trades"])
def test_a_defence_attacks_the_folded_model_and_trains_the_whole_one(defence: str) -> None:
    model, plain = small().train(), small().train()
    options: Any = {"epsilon": 0.02} | ({"steps": 1} if defence in ("pgd", "trades") else {})
    Counting.calls = 0
    torch.manual_seed(5)
    loss, _ = defences.get(defence)(model, IMAGES, LABELS, **options)
    trained = 4 if defence == "trades" else 2  # clean images beside adversarial ones
    assert Counting.calls <= trained
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trustcxr.models.fuse_batchnorm.find_pairs", lambda network: [])
        torch.manual_seed(5)
        unfolded, _ = defences.get(defence)(plain, IMAGES, LABELS, **options)
    assert loss.item() == pytest.approx(unfolded.item(), rel=1e-4)


@pytest.mark.parametrize("around", ["run", "given", "finding"])
def test_a_faster_model_answers_as_the_model_does_and_leaves_it_whole(around: str) -> None:
    torch.manual_seed(0)
    model: Any = lived_in(factory.build("resnet10t", classes=3)).eval()
    if around != "run":
        model = load(model.net, classes=("a", "b", "c"), size=64).model
        model = Decision(model, 1, 0.5) if around == "finding" else model
    before, labels, met, quick = state(model), LABELS.clamp(max=1), [], make_fused_copy(model, IMAGES)
    model.register_forward_pre_hook(lambda *_: met.append(1))
    assert quick is not model
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in quick.modules())
    mine, theirs = (attacks.input_gradient(m, IMAGES, labels) for m in (model, quick))
    assert len(met) == 2, "whoever watches the model to stop it sees the faster one too"
    for own, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(other, own, rtol=1e-3, atol=1e-3 * float(own.abs().max()))
    assert state(model) == before


class ReadsItsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(images)).mean((2, 3)) * self.norm.weight)


def test_what_looks_into_its_own_layers_or_has_nothing_to_fold_is_searched_as_it_is() -> None:
    assert find_pairs(own := lived_in(ReadsItsNorm()).eval())
    assert make_fused_copy(own, IMAGES) is own
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64 * 64, 3)).eval()
    assert make_fused_copy(plain, IMAGES) is plain


def test_a_constant_of_the_forward_pass_leaves_no_attribute_behind() -> None:
    body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    network = Computes(lambda x: body(x).mean((2, 3)) + torch.tensor([0.0, 1.0, 0.0]), body).eval()
    before = set(vars(network))
    assert find_pairs(network) == [("parts.0.0", "parts.0.1")]
    assert set(vars(network)) == before
