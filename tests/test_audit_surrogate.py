"""What a surrogate of an audit learns from: training images of patients who are not examined, where there are any."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pack import Pack
from test_audit_command import CLASSES, GREYS, Brightness, _short, blind, model_file  # noqa: F401
from trustcxr.attacks.adaptive import SurrogateNet
from trustcxr.audit import attack_runner, audit_data
from trustcxr.audit import run_audit as audits
from trustcxr.audit.audit_data import Audit, AuditImages, open_images
from trustcxr.audit.subject import load_subject
from trustcxr.evaluation import predictions
from trustcxr.recipes.protocol import load_exam
from trustcxr.runs.test_data import Source
from trustcxr.storage import atomic

SPLITS = {"Train": 20, "Val": 2, "Test": 8}  # images a class
SHARED, COPIES = 3, 2  # of the training images of a class: those of patients of Test, and those that are images of Test


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three greys in three splits; some for training are of patients, or are images, that are in Test too."""
    root, random = tmp_path_factory.mktemp("listed"), np.random.default_rng(0)
    rows = []
    for name, grey in zip(CLASSES, GREYS, strict=True):
        for split in reversed(SPLITS):  # Test is there to be copied
            for number in range(SPLITS[split]):
                file = f"{split}-{name}-{number}.png"
                pixels = 255 * (grey + 0.04 * random.standard_normal() + 0.1 * random.standard_normal((16, 16)))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / file)
                patient = f"{split}-{name}-{number // 2}"
                if split == "Train" and number < SHARED:
                    patient = f"Test-{name}-{number}"
                elif split == "Train" and number < SHARED + COPIES:
                    shutil.copy(root / f"Test-{name}-{number}.png", root / file)
                rows.append({"path": file, "class": name, "split": split, "patient_id": patient})
    pd.DataFrame(rows).to_csv(root / "list.csv", index=False)
    return root / "list.csv"


@pytest.fixture
def without_gradients(tmp_path: Path) -> Path:
    text = f"python: test_audit_command:blind\ninput: {{size: 16}}\noutput: {{classes: [{', '.join(CLASSES)}]}}\n"
    (tmp_path / "model.yaml").write_text(text)
    return tmp_path / "model.yaml"


def opened(model: Path, data: Path, split: str | None = None) -> AuditImages:
    return open_images(load_subject(model, trust_code=True), Source(data, split))


def same_images(pixels: Tensor, others: np.ndarray) -> int:
    """How many of the images (N, 1, H, W) in [0, 1] are among others (N, 1, H, W) in whole numbers."""
    known = {image.tobytes() for image in np.asarray(others)}
    return sum((image * 255).round().to(torch.uint8).numpy().tobytes() in known for image in pixels)


def test_it_learns_from_other_patients(without_gradients: Path, listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = opened(without_gradients, listed)
    training, rows = images.surrogate.whole, images.surrogate.rows
    assert (images.examined.split, training.split) == ("Test", "Train")
    assert len(rows) == len(set(rows)) == 3 * (SPLITS["Train"] - SHARED - COPIES)
    assert not set(training.groups[rows]) & set(images.examined.groups)
    pixels = audit_data.load_pixels(training, rows, torch.device("cpu"))
    assert same_images(pixels, training.images) == len(rows)
    assert same_images(pixels, images.examined.images) == 0
    monkeypatch.setattr(audit_data, "SURROGATE_IMAGES", 9)
    few = [opened(without_gradients, listed).surrogate for _ in range(2)]
    assert few[0].rows.tolist() == few[1].rows.tolist()
    assert np.bincount(training.labels[few[0].rows]).tolist() == [3, 3, 3], "the classes evenly"


def test_no_training_images_no_surrogate(without_gradients: Path, listed: Path, pack: Pack, tmp_path: Path) -> None:
    assert opened(without_gradients, pack.greys()).surrogate is None, "all images are examined"
    assert opened(without_gradients, listed, "Train").surrogate is None
    divided = opened(without_gradients, pack.greys(), "Test").surrogate
    assert divided.whole.split == "Train"
    table = pd.read_csv(listed, dtype=str)
    shutil.copytree(listed.parent, tmp_path / "one")
    table.assign(patient_id="one").to_csv(tmp_path / "one" / "list.csv", index=False)
    assert opened(without_gradients, tmp_path / "one" / "list.csv").surrogate is None, "all are of one patient"
    table[table["split"] == "Test"].to_csv(tmp_path / "one" / "list.csv", index=False)
    assert opened(without_gradients, tmp_path / "one" / "list.csv").surrogate is None


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    found: list[Tensor] = []

    def distil(model: nn.Module, images: Tensor, **options: float) -> SurrogateNet:
        found.append(images)
        with torch.random.fork_rng():
            torch.manual_seed(len(images))  # what it becomes hangs on its images
            return SurrogateNet(3).eval()

    monkeypatch.setattr(attack_runner, "distil", distil)
    return found


@pytest.mark.slow
def test_the_audit_says_what_the_surrogate_learned_from(
    without_gradients: Path, listed: Path, pack: Pack, learned: list[Tensor], tmp_path: Path
) -> None:
    document = audits.audit(without_gradients, listed, tmp_path / "split", trust_code=True)
    text = next(check.text for check in document.entry_checks if check.check == "surrogate")
    assert "from 45 images of the split Train, none of a patient who is examined. It agrees with the model on" in text
    assert not document.verdict.sound
    examined = opened(without_gradients, listed).examined
    assert [len(images) for images in learned] == [45]
    assert same_images(learned[0], examined.images) == 0
    document = audits.audit(without_gradients, pack.greys(), tmp_path / "whole", trust_code=True)
    text = next(check.text for check in document.entry_checks if check.check == "surrogate")
    assert "from 36 of the images that are examined, since these data have no training images" in text
    assert not document.verdict.sound
    assert [len(images) for images in learned] == [45, 36]
    plain = audits.audit(model_file(tmp_path / "plain", Brightness()), listed, tmp_path / "honest", attacks=["fgsm"])
    assert not [check for check in plain.entry_checks if check.check == "surrogate"]
    assert len(learned) == 2, "an honest network needs none"


@pytest.mark.slow
def test_an_audit_with_a_surrogate_that_was_cut_off_goes_on_to_the_same_figures(
    without_gradients: Path, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = audits.load_exam().model_copy(update={"batch_size": 12})
    monkeypatch.setattr(audits, "load_exam", lambda *_: short)
    real, cuts = predictions._attacked, []

    def cut(*args: object, seed: int, **options: object) -> object:
        if seed == 1 and not cuts:
            cuts.append(seed)
            raise KeyboardInterrupt
        return real(*args, seed=seed, **options)

    monkeypatch.setattr(predictions, "_attacked", cut)
    with pytest.raises(KeyboardInterrupt):
        audits.audit(without_gradients, listed, tmp_path / "cut", trust_code=True)
    assert list((tmp_path / "cut").rglob("*.parquet"))
    went_on = audits.audit(without_gradients, listed, tmp_path / "cut", trust_code=True)
    whole = audits.audit(without_gradients, listed, tmp_path / "whole", trust_code=True)
    assert went_on == whole
    one, other = (atomic.read_table(tmp_path / name / "predictions.parquet") for name in ("cut", "whole"))
    pd.testing.assert_frame_equal(one, other)


def test_other_training_images_are_another_examination(without_gradients: Path, listed: Path, tmp_path: Path) -> None:
    def key(data: Path) -> str:
        return Audit(load_subject(without_gradients, trust_code=True), opened(without_gradients, data), load_exam()).key

    changed = Path(shutil.copytree(listed.parent, tmp_path / "changed"))
    before = key(listed)
    assert key(changed / "list.csv") == before
    shutil.copy(changed / "Val-dark-0.png", changed / "Train-dark-9.png")
    assert key(changed / "list.csv") != before
