"""Models that only look robust or accurate: each fails a grave check, or is broken as its undefended network is."""

import time
from collections.abc import Iterable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from benchmarks import masked_model_table as table
from benchmarks.masked_models import MASKED_MODELS, PITFALLS, Images, fit_network, load_masked_model, measure_truth
from torch import Tensor, nn

from small_networks import SIDE, Wrapped, images_and_labels, one_thread, trained, write_onnx
from trustcxr.attacks import pgd
from trustcxr.attacks.adaptive import probe_gradients
from trustcxr.audit import entry_checks, run_audit
from trustcxr.audit.active_test import active_test
from trustcxr.audit.entry_checks import Check, EntryReport, check_afterwards, run_entry_checks
from trustcxr.audit.formats import load

CLASSES, EPSILON = ("COVID-19", "Non-COVID", "Normal"), 0.05
# The grave check that each model must fail, of those before and after the attacks.
PLANTED = "active test"
GRAVE = {
    **dict.fromkeys(("noise", "random resizing"), "same answer twice"),
    **dict.fromkeys(("memory", "memory in a closure", "memory in TorchScript"), "state unchanged"),
    **dict.fromkeys(("counter", "hidden counter"), "state unchanged"),
    **dict.fromkeys(("digest of test images", "gallery of test images"), "memory of images"),
    **dict.fromkeys(("clock", "loop head", "hidden head", "gradient of a decoy"), "finite differences"),
    **dict.fromkeys(("convolution head", "convolution head of a decoy", "einsum head", "sum head"), PLANTED),
    **dict.fromkeys(("reversed gradient", "shuffled gradient", "noisy gradient", "hook", "call stack"), PLANTED),
    **dict.fromkeys(("batch of one", "copies", "neighbours"), "same answer alone"),
    "requires_grad": "same answer with gradients",
    "purified": "no gradients used inside",
}
KINDS = ("memory", "digest of test images", "clock", "convolution head", "loop head", "batch of one", "requires_grad")


def noisy(count: int, seed: int) -> Images:
    """Images of 8 bits under so much noise that the network is right on four of five."""
    images, labels = images_and_labels(count, seed=seed)
    noise = 0.4 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return ((images + noise).clamp(0, 1) * 255).round() / 255, labels


@lru_cache
def network() -> nn.Module:
    with one_thread():
        return fit_network(*noisy(500, 1), epochs=3)


@lru_cache
def known() -> Images:
    return noisy(60, 5)


def examine(net: nn.Module) -> tuple[EntryReport, list[Check]]:
    images, labels = known()
    report = run_entry_checks(load(net, classes=CLASSES, size=SIDE), images, labels, epsilon=EPSILON, planted=8)
    pgd(report.model, images[:16], labels[:16], epsilon=EPSILON, steps=5)
    return report, check_afterwards(report, images, epsilon=EPSILON, planted=8)


def failed(checks: list[Check]) -> set[str]:
    return {check.check for check in checks if check.grave and check.passed is not True}


def test_the_undefended_network_passes_every_grave_check() -> None:
    report, after = examine(network())
    assert failed([*report.checks, *after]) == set()
    assert {check.check for check in after} == {"state unchanged"}
    assert {"memory of images", "same answer with gradients"} <= {c.check for c in report.checks if c.passed}


@pytest.mark.parametrize(
    "name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.full) for name in GRAVE]
)
def test_a_masked_model_fails_a_grave_check(name: str) -> None:
    model = MASKED_MODELS[name](network(), known())
    if name == "clock":
        model.start = time.monotonic()
    report, after = examine(model)
    if name == "clock":  # two seconds later
        model.start = time.monotonic() - 3
        after = check_afterwards(report, known()[0], epsilon=EPSILON, planted=8)
    assert GRAVE[name] in failed([*report.checks, *after])


@pytest.mark.full
@pytest.mark.parametrize("name", MASKED_MODELS)
def test_the_truth_of_a_masked_model_is_that_of_its_network(name: str) -> None:
    truth = measure_truth(MASKED_MODELS[name](network(), known()), *known(), epsilon=EPSILON, steps=20)
    assert truth.attacked <= truth.clean
    assert truth.attacked < (0.5 if name in ("random resizing", "hashed crops", "denoising autoencoder") else 0.2)


@pytest.fixture
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back afterwards what the table of masked models sets."""
    for variable in (table.NAME, table.WEIGHTS):
        monkeypatch.setenv(variable, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [[table.BARE, "duplicates"], pytest.param([table.BARE, *MASKED_MODELS], marks=pytest.mark.full)],
    ids=["one", "all"],
)
@pytest.mark.usefixtures("_environment")
def test_no_masked_model_is_believed(names: list[str], covidqu: Path, tmp_path: Path) -> None:
    def describe(names: Iterable[str], each: int) -> dict[str, dict[str, object]]:
        """Return the row of each model, examined on `each` images of a class."""
        folder = tmp_path / str(each)
        classes = table.prepare(covidqu, 32, each, 8, folder)
        rows = {name: table.describe(name, classes, 32, folder, whole=False) for name in names}
        return {name: dict(zip(table.HEAD, row, strict=True)) for name, row in rows.items()}

    def believed(rows: dict[str, dict[str, object]]) -> set[str]:
        """Return who is believed; of the 8-bit grid nothing is tried here."""
        return {name for name, row in rows.items() if row["believed"]} - {"undone ends", "undone floats"}

    rows = describe(names, 8)
    assert rows[table.BARE]["sound"] is True, "nothing honest is accused"
    # Of 24 images a fall of five may be chance: who is believed of them is asked of 72.
    if few := believed(rows):
        rows |= describe(few, 24)
    assert believed(rows) == set()
    for name in {*names} & {*PITFALLS}:
        assert not rows[name]["sound"], name
    for name, row in rows.items():
        assert row["sound"] or not row["met"], name
    assert "same answer in another order" in str(rows["duplicates"]["failed checks"])


@pytest.mark.slow
@pytest.mark.usefixtures("_environment")
def test_signs_in_a_file_of_onnx_are_broken(covidqu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = table.prepare(covidqu, 32, 8, 8, tmp_path)
    monkeypatch.setenv(table.NAME, "signs")
    masked = load_masked_model()
    write_onnx(masked, tmp_path / "signs.onnx", 32)
    (tmp_path / "model.yaml").write_text(
        f"source: signs.onnx\ninput: {{size: 32}}\noutput: {{kind: logits, classes: [{', '.join(classes)}]}}\n"
    )
    attacks, out = {"attacks": ("pgd", "worst-case"), "epsilons": (table.EPSILON,)}, tmp_path / "out"
    document = run_audit.audit(tmp_path / "model.yaml", tmp_path / "images", out, **attacks)
    truth = measure_truth(masked, masked.known[0], masked.known[1], epsilon=table.EPSILON)
    assert document.clean.accuracy.value == pytest.approx(truth.clean)
    assert document.attacks[-1].accuracy.value <= truth.attacked + table.CLOSE
    assert document.verdict.sound is False
    assert "gradients fail" in " ".join(document.verdict.reasons)


class LastActivation(nn.Module):
    """An honest network that stores its last features, as many do for maps."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.last = net, torch.zeros(0)

    def forward(self, images: Tensor) -> Tensor:
        self.last = self.net.body(images - 0.5)
        return self.net.head(self.last)


def test_the_last_activation_is_no_memory_and_a_list_of_images_is() -> None:
    images, model = known()[0], LastActivation(trained()).eval()
    for each, changed in ((MASKED_MODELS["memory"](network()), ["seen"]), (model, [])):
        before = entry_checks.describe_state(each, images[:2])
        each(images[2:9])
        assert entry_checks.changed_parts(before, entry_checks.describe_state(each, images[:2])) == changed
    before, model = entry_checks.describe_state(model, images[:2]), deepcopy(model)
    with torch.no_grad():
        model.net.head.bias += 1e-3
    assert entry_checks.changed_parts(before, entry_checks.describe_state(model, images[:2])) == ["net.head.bias"]


def test_an_image_moved_by_half_a_pixel_is_sampled_between_its_pixels() -> None:
    rows = torch.arange(32.0)
    waves = [0.5 + 0.2 * torch.cos(torch.pi * k * (rows + offset) / 32) for k, offset in ((3, 0.5), (3, 0.0))]
    image, expected = (wave.expand(1, 1, 32, 32).transpose(-1, -2) for wave in waves)
    assert torch.allclose(entry_checks.move_half_pixel(image.contiguous()), expected, atol=1e-5)
    assert not torch.allclose(expected, image, atol=1e-2)
    grey = entry_checks.move_greys(image.contiguous()) - image
    assert torch.allclose(grey.abs(), torch.full_like(grey, 1 / 255), atol=1e-6)
    assert abs(float(grey.mean())) < 1e-3


def test_a_fall_of_accuracy_by_chance_is_no_memory() -> None:
    images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def falls(count: int) -> Check:
        """All answers are right on the images as they are, and `count` are wrong on moved ones."""
        wrong = torch.arange(60)[:, None] < count
        return entry_checks.check_memory(lambda x: ~wrong | torch.equal(x, images), images)

    assert falls(4).passed
    assert falls(12).passed is False
    assert "accuracy is 100.0% on images as they are, 80.0% on images moved by one grey level" in falls(12).text


def test_finite_differences_agree_with_true_gradients_alone() -> None:
    images = known()[0][:8]

    def gained(model: nn.Module) -> float:
        return entry_checks.compare_differences(model, images, probe_gradients(model, images), epsilon=EPSILON).gained

    assert 0.8 < gained(network()) < 1.2
    assert gained(MASKED_MODELS["hidden head"](network())) < -0.8
    assert abs(gained(MASKED_MODELS["gradient of a decoy"](network()))) < 0.25
    assert entry_checks.largest_difference_with_gradients(network(), images) < 1e-5
    assert entry_checks.largest_difference_with_gradients(MASKED_MODELS["requires_grad"](network()), images) > 0.1


def map_head() -> nn.Module:
    """Return a convolution to a map of each class, of which the mean answers."""
    maps = nn.Conv2d(16, 3, 1)
    nn.init.normal_(maps.weight)
    return Wrapped(nn.ModuleList([trained().body[:6], maps]), lambda parts, x: parts[1](parts[0](x - 0.5)).mean((2, 3)))


@pytest.mark.parametrize("name", ["convolution head", "einsum head", "sum head", "map"])
def test_examples_are_planted_at_any_last_layer(name: str) -> None:
    class Honest(MASKED_MODELS["convolution head" if name == "map" else name]):  # type: ignore[misc]
        def features(self, images: Tensor) -> Tensor:
            return self.net.body((images - 0.5) / 0.25)

    planted = active_test(map_head() if name == "map" else Honest(network()), known()[0][:6], epsilon=EPSILON)
    assert planted.passed
    assert planted.random_share < 0.5
