"""Synthetic X-rays: exact masks, seeded, classes told apart by the lesion and by nothing else, shortcuts as asked."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trustcxr.data.phantom import render_image, write_files
from trustcxr.data.phantom.render_image import Phantom, render
from trustcxr.errors import UserError


@pytest.fixture(scope="module")
def radiographs() -> dict[str, list[Phantom]]:
    return {name: [render(name, seed, 96) for seed in range(60)] for name in render_image.CLASSES}


def test_masks_are_exact_and_lie_in_the_lungs(radiographs: dict[str, list[Phantom]]) -> None:
    for name, of_class in radiographs.items():
        for radiograph in of_class:
            for array in (radiograph.image, radiograph.lung_mask, radiograph.infection_mask):
                assert (array.shape, array.dtype) == ((96, 96), np.uint8)
            assert set(np.unique(radiograph.lung_mask)) == {0, 1}
            assert 0.08 < radiograph.lung_mask.mean() < 0.55
            assert not np.any(radiograph.infection_mask > radiograph.lung_mask)
            assert radiograph.infection_mask.any() == (name != "Normal")


def test_the_lesion_is_where_the_mask_says(radiographs: dict[str, list[Phantom]]) -> None:
    """The same seed as another class is the same image but for the disease, so the difference must lie in the mask."""
    for name in ("COVID-19", "Non-COVID"):
        inside, outside = [], []
        for sick, well in zip(radiographs[name], radiographs["Normal"], strict=True):
            gain = sick.image.astype(float) - well.image
            inside.append(gain[sick.infection_mask == 1].mean())
            outside.append(np.abs(gain[well.lung_mask == 0]).mean())
        assert min(inside) > 3  # grey levels
        assert max(outside) < 1.5


def test_covid_is_in_both_lungs_and_the_other_pneumonia_in_one(radiographs: dict[str, list[Phantom]]) -> None:
    def sides(radiograph: Phantom) -> int:
        columns = np.flatnonzero(radiograph.lung_mask.any(0))
        middle = (columns[0] + columns[-1] + 1) // 2
        return sum(half.any() for half in np.split(radiograph.infection_mask, [middle], axis=1))

    assert np.mean([sides(radiograph) == 2 for radiograph in radiographs["COVID-19"]]) > 0.9
    assert np.mean([sides(radiograph) == 1 for radiograph in radiographs["Non-COVID"]]) > 0.85


def test_same_seed_same_image_other_seed_other_patient() -> None:
    first, again, other = (render("COVID-19", seed, 64) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.infection_mask, again.infection_mask)
    assert np.abs(first.image.astype(int) - other.image).mean() > 5


def test_grey_levels_do_not_give_the_class_away() -> None:
    labels = np.repeat([0, 1, 2], 150)
    images = [render(render_image.CLASSES[k], 1000 * k + i % 150, 64).image for i, k in enumerate(labels)]
    rows = [[image.mean(), image.std(), *np.percentile(image, [5, 25, 50, 75, 95])] for image in images]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    assert cross_val_score(probe, np.array(rows), labels, cv=5).mean() < 0.48  # chance 0.33


@pytest.mark.parametrize("name", render_image.SHORTCUTS)
def test_a_shortcut_changes_the_image_within_its_mask_only(name: str) -> None:
    plain, planted = render("Normal", 3, 128), render("Normal", 3, 128, shortcuts=(name,))
    mark = planted.marks[name]
    changed = plain.image != planted.image
    assert set(planted.marks) == {name}
    assert mark.any()
    assert changed[mark == 1].mean() > 0.3
    assert not changed[mark == 0].any()
    assert np.array_equal(plain.lung_mask, planted.lung_mask)


def test_the_marker_lies_in_a_corner_outside_the_lungs() -> None:
    for seed in range(30):
        radiograph = render("COVID-19", seed, 96, shortcuts=("marker",))
        assert not np.any(radiograph.marks["marker"] & radiograph.lung_mask)
        assert not radiograph.marks["marker"][24:].any()


def test_parse_shortcut() -> None:
    assert render_image.parse_shortcut("marker=0.9") == render_image.Shortcut("marker", 0.9, "COVID-19")
    assert render_image.parse_shortcut("tube:Normal=0.25") == render_image.Shortcut("tube", 0.25, "Normal")
    assert render_image.parse_shortcut("border").share == 1.0
    share = "the share is not a number from 0 to 1"
    complaints = dict.fromkeys(("marker=lots", "marker=1.5", "marker=nan"), share)
    complaints |= {"market=0.9": "did you mean marker", "marker:Flu=0.5": "unknown class 'Flu'"}
    complaints |= {"": "unknown shortcut ''"}
    for wrong, complaint in complaints.items():
        with pytest.raises(UserError, match=complaint):
            render_image.parse_shortcut(wrong)


def test_bad_input_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    for call, *given in (
        (render, "Covid", 0),
        (render, "Normal", 0, 8),
        (render, "Normal", 0, 96, ("glow",)),
        (write_files.write, tmp_path, {"Train": 1}),
        (write_files.write, tmp_path / "new", {"Training": 1}),
    ):
        with pytest.raises(UserError) as caught:
            call(*given)
        assert "\n" not in str(caught.value)


def _files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_write_is_covidqu_shaped_and_the_same_for_any_workers(tmp_path: Path) -> None:
    counts = {"Train": 10, "Val": 3, "Test": 4}
    options = {"size": 64, "seed": 2, "shortcuts": ["marker=0.9", "tube:Normal=0.5"]}
    one, two = (write_files.write(tmp_path / str(k), counts, **options, workers=k) for k in (1, 2))
    assert _files(one) == _files(two)
    table = pd.read_csv(one / "manifest.csv")
    lung = table[table["set"] == "lung"]
    assert len(lung) == 3 * 17
    assert lung["group_id"].is_unique
    planted = lung[lung["split"] == "Train"].groupby("class")["shortcut_marker"].sum()
    assert planted.to_dict() == {"COVID-19": 9, "Non-COVID": 0, "Normal": 0}
    for row in table.itertuples():
        image = np.asarray(Image.open(one / row.path))
        mask = np.asarray(Image.open(one / row.path.replace("/images/", "/lung masks/")))
        assert image.shape == mask.shape == (64, 64)
        assert set(np.unique(mask)) == {0, 255}
    row = table.query("`class` == 'COVID-19' and shortcut_marker == 1 and set == 'infection'").iloc[0]
    radiograph = render(row["class"], int(row["seed"]), 64, shortcuts=("marker",))
    assert np.array_equal(radiograph.image, np.asarray(Image.open(one / row["path"])))
    infection = np.asarray(Image.open(one / row["path"].replace("/images/", "/infection masks/")))
    assert np.array_equal(radiograph.infection_mask * 255, infection)


def test_shortcuts_can_be_planted_in_one_split_only(tmp_path: Path) -> None:
    out = write_files.write(tmp_path / "x", {"Train": 4, "Test": 4}, size=32, shortcuts={"Train": ["marker=1"]})
    table = pd.read_csv(out / "manifest.csv").query("`class` == 'COVID-19' and set == 'lung'")
    assert table.groupby("split")["shortcut_marker"].mean().to_dict() == {"Train": 1.0, "Test": 0.0}
