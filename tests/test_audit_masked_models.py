"""Real images: networks that only look robust fail the entry checks, and are broken as their bare network is."""

from pathlib import Path

import pytest
import torch
from benchmarks.formats import first_images
from benchmarks.masked_models import MASKED_MODEL, MASKED_MODELS, RUN, network

from test_cli import run
from trustcxr import attacks
from trustcxr.audit.run_audit import audit
from trustcxr.data import load_dataset
from trustcxr.data.loader import to_pixels
from trustcxr.evaluation.trained_run import load_run

EACH = 20  # images of a class: of 60 images three points are one
EPSILON, POINTS = 0.02, 0.03
BARE = ""


def plain_pgd(images: Path, size: int, classes: tuple[str, ...]) -> float:
    """Attack the network as it stands; return the accuracy that is left."""
    data, net = load_dataset(images, None, size, classes=classes), network()
    pixels, labels = to_pixels(torch.from_numpy(data.images.copy())), torch.from_numpy(data.labels)
    torch.manual_seed(0)
    found = attacks.pgd(net, pixels, labels, epsilon=EPSILON, steps=20)
    with torch.no_grad():
        return float((net(found).argmax(1) == labels).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [["3 bits"], pytest.param(list(MASKED_MODELS), marks=pytest.mark.full)], ids=["one", "all"]
)
def test_a_masked_model_is_flagged_and_left_with_what_its_bare_network_has(
    names: list[str], covidqu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--model", "test_resnet", "--size", "32", "--epochs", "3", "--set", "model.weights=none"]
    run("train", "--data", covidqu, *options, "--out", tmp_path / "run")
    trained = load_run(tmp_path / "run", on="cpu")
    images = first_images(covidqu, tmp_path / "images", trained, EACH, split="Val")
    monkeypatch.setenv(RUN, str(tmp_path / "run"))
    flagged, worst, plain = {}, {}, {}
    for number, name in enumerate([BARE, *names]):
        monkeypatch.setenv(MASKED_MODEL, name)
        model = tmp_path / f"{number}.yaml"
        model.write_text(
            "python: benchmarks.masked_models:network\ninput: {size: 32}\n"
            f"output: {{kind: logits, classes: [{', '.join(trained.classes)}]}}\n"
        )
        tried = ("fgsm", "pgd", "worst-case")
        document = audit(model, images, tmp_path / model.stem, attacks=tried, epsilons=(EPSILON,), trust_code=True)
        assert document.clean.n == 3 * EACH
        flagged[name] = [check.check for check in document.entry_checks if check.passed is False]
        if name != BARE:
            assert not document.verdict.sound, name
            assert not [row for row in document.verdict.model if row.met], name
        worst[name] = next(one.accuracy.value for one in document.attacks if one.attack == "worst-case")
        plain[name] = plain_pgd(images, trained.size, trained.classes)
    assert flagged.pop(BARE) == [], "nothing honest is accused"
    assert worst[BARE] <= plain[BARE]
    assert all(flagged.values()), flagged
    assert max(worst.values()) <= worst[BARE] + POINTS, worst
    if names == list(MASKED_MODELS):
        believed = [name for name in names if plain[name] > plain[BARE] + 10 * POINTS]
        assert len(believed) >= 3, "plain PGD, which does not look at what it attacks, believes them"
