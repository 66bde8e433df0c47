"""Data without splits are divided by seed: shares, stratified, groups together, and a study of two classes on CT."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trustcxr import report
from trustcxr.data import load_dataset, read_manifest
from trustcxr.data.manifest import SHARES, Manifest, from_records
from trustcxr.errors import UserError
from trustcxr.recipes import parsing, study_recipe
from trustcxr.storage import atomic
from trustcxr.study import engines
from trustcxr.study.run_study import Study


def manifest(counts: dict[str, int], *, group: int = 1) -> Manifest:
    """A manifest without splits; `group` neighbouring samples are one patient."""
    images = [(name, i) for name, count in counts.items() for i in range(count)]
    records = [
        dict.fromkeys(("sample_id", "path"), f"{name}/{i}.png")
        | {"class": name, "split": "All", "patient": f"{name}-{i // group}"}
        for name, i in images
    ]
    return from_records(records, Path("images"), "folders", [])


def test_shares_are_those_of_each_class() -> None:
    found = manifest({"a": 200, "b": 50, "c": 25}).with_splits()
    counts = found.counts()
    for name, total in (("a", 200), ("b", 50), ("c", 25)):
        for split, share in SHARES.items():
            assert counts[split][name] == pytest.approx(share * total, abs=1)
    assert sum(SHARES.values()) == pytest.approx(1)
    note = "these data have no splits: they are divided by seed 0 into 64% Train, 16% Val, 20% Test, stratified by"
    assert found.notes == [f"{note} class"]


def test_a_group_stays_together_also_across_classes() -> None:
    whole = manifest({"a": 120, "b": 80}, group=5)
    whole.table.loc[whole.table["sample_id"].isin(["a/0.png", "b/0.png", "b/1.png"]), "group"] = "one patient"
    table = whole.with_splits(seed=3).table
    assert (table.groupby("group")["split"].nunique() == 1).all()
    assert len(table) == 200
    assert "groups together" in whole.with_splits().notes[0]


def test_the_seed_decides_and_the_order_of_files_does_not() -> None:
    whole = manifest({"a": 60, "b": 60})
    shuffled = Manifest(whole.table.sample(frac=1, random_state=0), whole.root, whole.classes, whole.layout)
    first, again, other = (
        part.with_splits(seed=seed).table.set_index("sample_id")["split"].sort_index()
        for part, seed in ((whole, 1), (shuffled, 1), (whole, 2))
    )
    assert again.equals(first)
    assert not other.equals(first)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for number, name in enumerate(("COVID", "NonCOVID")):
        (tmp_path / "slices" / name).mkdir(parents=True)
        for i in range(25):
            grey = np.full((32, 32), 60 + 100 * number + i, np.uint8)
            Image.fromarray(grey).save(tmp_path / "slices" / name / f"{i}.png")
    return tmp_path / "slices"


def test_load_dataset_divides_only_what_has_no_splits(folders: Path, tmp_path: Path) -> None:
    def loaded(split: str | None = None, **options: Any) -> Any:
        return load_dataset(folders, split=split, size=16, cache=tmp_path / "cache", workers=1, **options)

    parts = {split: loaded(split) for split in SHARES}
    assert {split: len(part) for split, part in parts.items()} == {"Train": 32, "Val": 8, "Test": 10}
    names = [set(part.sample_ids) for part in parts.values()]
    assert len(set.union(*names)) == 50
    for part in parts.values():
        rows = [int(Path(name).stem) + (60 if name.startswith("COVID") else 160) for name in part.sample_ids]
        assert part.images[:, 0, 0, 0].tolist() == rows, "each sample has its own pixels"
    assert "divided by seed 0" in parts["Train"].notes[0]
    everything = loaded()
    assert (len(everything), everything.notes) == (50, [])
    with pytest.raises(UserError, match="no split 'External'; there is All"):
        loaded("External")
    assert set(loaded("Test", split_seed=1).sample_ids) != names[2]


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_a_study_of_two_classes_on_ct_slices(real_data: Path, tmp_path: Path) -> None:
    """The recipe `ct` as it ships, with a smaller network for a moment on few slices."""
    shipped = study_recipe.load_study("ct").model_dump(mode="json")
    small = {
        "data": {"size": 32},
        "models": [{"name": "test_resnet", "weights": "none"}],
        "training": shipped["training"] | {"epochs": 2},
        "explanation": {"panels": 1, "sample": 2, "corruptions": ["jpeg"]},
        "evaluation": {
            "attacks": [{"name": "fgsm"}, {"name": "pgd", "steps": 2}],
            "corruptions": {"names": ["jpeg"], "severities": [3]},
            "bootstrap": 100,
        },
    }
    slices = read_manifest(real_data / "ct-mini")
    slices.select(np.arange(len(slices.table)) % 4 == 0).write(tmp_path / "slices.csv")
    recipe = parsing.validate(study_recipe.StudyRecipe, shipped | small, "test")
    content = Study(recipe, tmp_path / "slices.csv", tmp_path / "out", engines.get("local")).run().plain()
    assert content["classes"] == ["COVID", "NonCOVID"]
    assert [run["defence"] for run in content["runs"]] == ["standard", "fgsm"]
    assert content["failures"] == []
    counts = content["data"]["counts"]
    assert {split: len(part) for split, part in counts.items()} == {"Train": 2, "Val": 2, "Test": 2}
    assert sum(sum(part.values()) for part in counts.values()) == 55
    assert any("divided by seed 0" in note for note in content["data"]["notes"])
    for run in content["runs"]:
        assert np.array(run["clean"]["confusion"]).shape == (2, 2)
        assert [(c["corruption"], c["severity"]) for c in run["corruptions"]] == [("jpeg", 3)]
        assert run["calibration"]["split"] == "Val"
        assert (run["masking"]["masked"], run["masking"]["signs"]) == (None, []), "so little trained, it knows nothing"
        assert "not shown to be better than one constant answer (54.5%)" in run["masking"]["reasons"][0]
    assert "divided by seed 0" in report.write(tmp_path / "out").read_text()
    assert atomic.read_json(tmp_path / "out" / "study.json")["classes"] == ["COVID", "NonCOVID"]
