"""The data check of a study: kept while the images and masks are the same, and made again if they are not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from test_engines import small
from trustcxr.data import load_dataset
from trustcxr.data.phantom import write_files
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.storage import atomic, layout
from trustcxr.study import run_study


def test_a_damaged_check_of_the_data_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(to_dict=lambda: {"verdict": "none"}, verdict="none")
    monkeypatch.setattr("trustcxr.data.checks.check.check_data", lambda *_, **__: made)
    (tmp_path / layout.DATA_CHECK_FILE).write_text("")
    monkeypatch.setattr(run_study, "read_manifest", lambda *_, **__: None)
    written = run_study.write_data_check(small(), tmp_path, tmp_path, [])  # type: ignore[arg-type]
    assert atomic.read_json(written)["verdict"] == "none"


def test_the_check_of_the_data_looks_at_the_classes_of_the_study(tmp_path: Path) -> None:
    for number, name in enumerate(("Train/a", "Train/A", "Test/a", "Test/b")):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(np.full((32, 32), 60 * number, np.uint8)).save(tmp_path / "images" / name / f"{number}.png")
    for labels, alike in (({}, True), ({"A": "a", "b": "b"}, False)):
        data = {"size": 32, "labels": labels}
        recipe = StudyRecipe.model_validate({"name": "s", "models": ["test_resnet"], "data": data})
        (tmp_path / f"{alike}").mkdir()
        found = atomic.read_json(run_study.write_data_check(recipe, tmp_path / "images", tmp_path / f"{alike}", []))
        assert ("differ only in capitals or blanks: 'a' (2 images) and 'A' (1 image)" in found["verdict"]) == alike
        assert found["classes"] == (["A", "a", "b"] if alike else ["a", "b"])


def test_the_check_of_the_data_is_made_again_where_a_mask_is_gone_and_only_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_files.write(tmp_path / "images", {"Train": 4, "Val": 4, "Test": 4}, size=32)
    recipe = StudyRecipe.model_validate({"name": "s", "models": ["test_resnet"], "data": {"size": 32}})

    def check() -> tuple[dict[str, Any], str]:
        capsys.readouterr()
        parts = [load_dataset(images, split=split, size=32) for split in ("Train", "Val", "Test")]
        path = run_study.write_data_check(recipe, images, tmp_path, parts)
        return atomic.read_json(path), capsys.readouterr().err

    first, said = check()
    assert "data check:" in said
    assert check() == (first, "")
    gone = sorted(images.rglob("Test/**/infection masks/*.png"))
    for mask in gone:
        mask.unlink()
    then, said = check()
    assert "data-check.json: of other images or masks: checked again" in said
    count, left = (found["files"]["masks"]["infection"]["n"] for found in (first, then))
    assert count - left == len(gone) > 0
