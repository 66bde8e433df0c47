"""Planted shortcuts: images drawn again without them or with them elsewhere, and what a model then answers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from small_runs import recipe
from trustcxr.data import load_dataset
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError
from trustcxr.evaluation.planted_shortcuts import HOW, _answers, _planted, audit
from trustcxr.evaluation.trained_run import Run, load_run
from trustcxr.report import terminal
from trustcxr.runs import run_folder
from trustcxr.storage import atomic
from trustcxr.training import fit_run

pytestmark = pytest.mark.slow

SIZE = 32


def trained(folder: Path, shortcuts: list[str]) -> Run:
    data = write_files.write(
        folder / "phantom", {"Train": 48, "Val": 10, "Test": 20}, size=64, shortcuts=shortcuts, conspicuity=0.1
    )
    parts = [load_dataset(data, split=s, size=SIZE, cache=folder / "cache", workers=1) for s in ("Train", "Val")]
    still = dict.fromkeys(("rotation", "shift", "scale", "brightness", "contrast"), 0)
    options = {"epochs": 30, "patience": 30, "batch_size": 24, "learning_rate": 1e-2, "warmup_epochs": 0.5}
    fit_run.fit(recipe(**options, augment=still), *parts, folder / "run")
    return load_run(folder / "run", on="cpu")


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("marked"), ["marker=1.0"])


@pytest.fixture(scope="module")
def unmarked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("unmarked"), [])


def home(run: Run) -> Path:
    return run.folder.parent / "phantom"


def test_a_model_that_reads_the_marker_falls_when_it_is_moved(marked: Run) -> None:
    found = audit(marked, home(marked), split="Test", resamples=200)
    assert set(found) == {"marker"}
    part = found["marker"].plain()
    assert (part["class"], part["moved_to"], part["n"]) == ("COVID-19", "Non-COVID", 60)
    accuracies = {how: part[how]["accuracy"]["value"] for how in HOW}
    assert accuracies["as_is"] > accuracies["removed"] + 0.15
    assert accuracies["as_is"] > accuracies["moved"] + 0.3
    assert part["follows_before"] < 0.3 < 0.7 < part["follows"]
    for how, value in accuracies.items():
        low, high = part[how]["accuracy"]["ci"]
        assert low <= value <= high


def test_a_model_that_never_saw_the_marker_does_not(marked: Run, unmarked: Run) -> None:
    part = audit(unmarked, home(marked), split="Test", resamples=200)["marker"].plain()
    assert np.ptp([part[how]["accuracy"]["value"] for how in HOW]) < 0.15
    assert abs(part["follows"] - part["follows_before"]) < 0.3


def test_the_images_are_the_same_but_for_the_marker(marked: Run) -> None:
    table, (shortcut,) = _planted(home(marked), marked.classes)
    images = table[table["split"] == "Test"].reset_index(drop=True)
    shown = {}
    for how in HOW:
        seen: list[torch.Tensor] = []
        with marked.model.register_forward_pre_hook(lambda _, given, to=seen: to.append(given[0])):
            _answers(marked, images, 64, shortcut, how, 16)
        shown[how] = torch.cat(seen)[:, 0]
    data = load_dataset(home(marked), split="Test", size=SIZE, cache=marked.folder.parent / "cache", workers=1)
    order = [data.table["path"].tolist().index(path) for path in images["path"].str.replace("Infection", "Lung")]
    on_disk = torch.from_numpy(np.array(data.images))[order, 0].float().div(255)
    assert torch.equal(shown["as_is"], on_disk), "drawn again, the images are those on disk"
    differs = {how: (shown[how] != shown["removed"]).flatten(1).any(1).numpy() for how in HOW}
    assert differs["as_is"].tolist() == (images["class"] == "COVID-19").tolist()
    assert differs["moved"].tolist() == (images["class"] == "Non-COVID").tolist()
    corner = (shown["moved"] != shown["removed"])[images["class"] == "Non-COVID"].any(0)
    assert not corner[16:].any()
    assert not corner[:, 16:].any()


def test_evaluate_writes_it_and_says_it(marked: Run) -> None:
    document, place = run_folder.evaluate(marked.folder, home(marked), attacks=["fgsm"], shortcuts=True)
    assert atomic.read_json(place / "metrics.json")["planted_shortcuts"]["marker"]["n"] == 60
    (line,) = [line for line in terminal.describe_metrics(document) if line.startswith("Planted")]
    assert line.startswith("Planted marker of COVID-19, moved to Non-COVID: as is ")
    again, other = run_folder.evaluate(marked.folder, home(marked), attacks=["fgsm"])
    assert other != place
    assert "planted_shortcuts" not in again.plain()


def test_data_on_which_nothing_was_planted(unmarked: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shortcut was planted"):
        audit(unmarked, home(unmarked), split="Test")
    for name in unmarked.classes:
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "images" / name / "a.png")
    with pytest.raises(UserError, match="not synthetic X-rays"):
        audit(unmarked, tmp_path / "images", split="Test")
    pd.DataFrame({"path": ["a"], "class": ["Normal"]}).to_csv(tmp_path / "images" / "manifest.csv")
    with pytest.raises(UserError, match="not synthetic X-rays"):
        audit(unmarked, tmp_path / "images", split="Test")
