"""Folders become manifests: COVID-QU-Ex whole and in parts, class folders, side-cars, and folders that are neither."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from trustcxr.data import load_dataset, read_manifest
from trustcxr.errors import UserError

LUNG = "Lung Segmentation Data/Lung Segmentation Data"
INFECTION = "Infection Segmentation Data/Infection Segmentation Data"


def write(path: Path, level: int = 100, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)


@pytest.fixture
def small_covidqu(tmp_path: Path) -> Path:
    """Two classes, both spellings of non_COVID, an image of both parts and one of the infection part only."""
    root = tmp_path / "covidqu"
    for split in ("Train", "Val", "Test"):
        for i, name in enumerate(("covid_1.png", "covid_2.png")):
            write(root / LUNG / split / "COVID-19/images" / name, 10 * i)
            write(root / LUNG / split / "COVID-19/lung masks" / name, 255)
        for name in ("non_COVID (1).png", "Non_COVID (1).png"):
            write(root / LUNG / split / "Non-COVID/images" / name, 77)
            write(root / LUNG / split / "Non-COVID/lung masks" / name, 255)
    for name, level in (("covid_1.png", 0), ("covid_9.png", 50)):
        for sub in ("images", "lung masks", "infection masks"):
            write(root / INFECTION / "Train/COVID-19" / sub / name, level if sub == "images" else 255)
    return root


def test_the_two_parts_are_one_data_set(small_covidqu: Path) -> None:
    manifest = read_manifest(small_covidqu)
    table = manifest.table.set_index("sample_id")
    copy = shutil.copytree(small_covidqu, small_covidqu.with_name("copy"))
    assert read_manifest(copy).table["sample_id"].tolist() == list(table.index), "elsewhere too"
    assert manifest.layout == "covidqu"
    assert manifest.classes == ("COVID-19", "Non-COVID")
    assert len(table) == 13  # 12 of the lung part, and one that only the infection part has
    both = table.loc["Train/COVID-19/covid_1.png"]
    assert both[["path", "lung_mask"]].str.startswith(LUNG).all()
    assert both["infection_mask"] == f"{INFECTION}/Train/COVID-19/infection masks/covid_1.png"
    assert table.loc["Train/COVID-19/covid_2.png"]["infection_mask"] is None
    assert table.loc["Train/COVID-19/covid_9.png"]["path"].startswith(INFECTION)
    assert {"Test/Non-COVID/non_COVID (1).png", "Test/Non-COVID/Non_COVID (1).png"} <= set(table.index)
    assert any("infection part only" in n for n in manifest.notes)
    # The columns are part of the hash of a data set: with others, stored results would be of other data.
    columns = ["sample_id", "path", "class", "split", "patient", "group", "lung_mask", "infection_mask"]
    assert [name for name in manifest.table if name not in columns] == ["source", "view", "file"]
    keys = list(zip(*(manifest.table[column] for column in ("split", "class", "sample_id")), strict=True))
    assert keys == sorted(keys), "a split is one slice"


PARTS = {"Lung Segmentation Data": 12, LUNG: 12, "Infection Segmentation Data": 2, INFECTION: 2, f"{LUNG}/Test": 4}


@pytest.mark.parametrize("inside", PARTS)
def test_an_inner_folder_or_one_part_alone_will_do(small_covidqu: Path, inside: str) -> None:
    manifest = read_manifest(small_covidqu / inside)
    assert len(manifest.table) == PARTS[inside]
    assert set(manifest.mask_kinds) == ({"lung", "infection"} if inside.startswith("Infection") else {"lung"})
    first = manifest.table.iloc[0]
    assert all((manifest.root / path).is_file() for path in first[["path", "lung_mask"]])
    assert first["sample_id"].split("/")[0] in ("Train", "Val", "Test")


def test_where_the_parts_disagree_about_the_split_the_lung_part_counts(small_covidqu: Path) -> None:
    test = small_covidqu / INFECTION / "Test/COVID-19"
    for sub in ("images", "infection masks"):
        write(test / sub / "covid_7.png", 7)
    write(small_covidqu / LUNG / "Val/COVID-19/images/covid_7.png", 7)
    manifest = read_manifest(small_covidqu)
    found = manifest.table[manifest.table["path"].str.endswith("covid_7.png")]
    assert found["split"].tolist() == ["Val"]
    assert found["infection_mask"].notna().all()
    assert any(n.startswith("1 images are in another split") for n in manifest.notes)


def test_the_same_name_with_other_bytes_is_two_samples(small_covidqu: Path) -> None:
    write(small_covidqu / INFECTION / "Train/COVID-19/images/covid_1.png", 200)
    manifest = read_manifest(small_covidqu)
    ids = [s for s in manifest.table["sample_id"] if s.startswith("Train/COVID-19/covid_1.png")]
    assert ids == ["Train/COVID-19/covid_1.png", "Train/COVID-19/covid_1.png#infection"]
    masks = manifest.table.set_index("sample_id")["infection_mask"]
    assert masks[ids].notna().tolist() == [False, True]
    assert any("both kept" in n for n in manifest.notes)


@pytest.mark.parametrize("name", ["covidqu", "test"])  # also that of a split
def test_a_side_car_gives_patients_and_groups_whichever_folder_is_given(name: str, small_covidqu: Path) -> None:
    root = small_covidqu.rename(small_covidqu.with_name(name))
    (root / "manifest.csv").write_text(
        "path,patient_id,group_id,source_repo,view\n"
        f"{LUNG}/Test/COVID-19/images/covid_1.png,p7,g1,somewhere,AP\n"
        f'{LUNG}/Test/COVID-19/images/covid_2.png,p8,,,"frontal, PA/AP not recorded"\n'
    )
    for inside in ("", LUNG, f"{LUNG}/Test"):
        table = read_manifest(root / inside).table.set_index("sample_id")
        row = table.loc["Test/COVID-19/covid_1.png"]
        assert row[["patient", "group", "source", "view"]].tolist() == ["p7", "g1", "somewhere", "AP"]
        assert table.loc["Test/COVID-19/covid_2.png", ["group", "view"]].tolist() == ["p8", None]
        other = table.loc["Test/Non-COVID/non_COVID (1).png"]
        assert other[["patient", "group"]].tolist() == [None, "Test/Non-COVID/non_COVID (1).png"]


def test_class_folders_with_splits_and_masks(tmp_path: Path) -> None:
    for split in ("train", "validation", "TEST", "holdout"):
        for name in ("a", "b"):
            write(tmp_path / split / name / "x.jpg")
    write(tmp_path / "train/masks/lung/a/x.png")
    write(tmp_path / "masks/lung/other/x.png")
    (tmp_path / "papers").mkdir()
    manifest = read_manifest(tmp_path)
    assert manifest.table["split"].tolist() == ["Test", "Test", "Train", "Train", "Val", "Val"]
    assert manifest.table["lung_mask"].tolist() == [None, None, "train/masks/lung/a/x.png", None, None, None]
    assert [n for n in manifest.notes if n.endswith("are left out: holdout")]


def test_a_side_car_that_says_two_things_of_a_image_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.jpg")
    for rows, wrong in (("a/x.jpg;p1\na/x.jpg;p2", "with two values of patient"), ("a/x.jpg;p1;\n", "more cells")):
        (tmp_path / "manifest.csv").write_text(f"path;patient\n{rows}\n")
        with pytest.raises(UserError, match=wrong):
            read_manifest(tmp_path)
    (tmp_path / "manifest.csv").write_text("path;patient\na/x.jpg;p1\na/x.jpg;p1\n")
    assert read_manifest(tmp_path).table["patient"].tolist() == ["p1"]


def test_a_side_car_gives_splits_in_any_usual_spelling_and_images_without_one_are_told(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "a/3.jpg", "b/4.jpg"):
        write(tmp_path / name)
    (tmp_path / "manifest.csv").write_text("path,split\na/1.jpg,train\na/2.jpg,\na/3.jpg,TEST\n")
    manifest = read_manifest(tmp_path)
    splits = {"a/1.jpg": "Train", "a/2.jpg": "All", "a/3.jpg": "Test", "b/4.jpg": "All"}
    assert dict(zip(manifest.table["path"], manifest.table["split"], strict=True)) == splits
    note = "2 images have no split in manifest.csv, where others have one: they are in the split 'All', which is not "
    assert f"{note}trained on; the first is a/2.jpg" in manifest.notes
    (tmp_path / "manifest.csv").write_text("path,patient\na/1.jpg,p1\n")
    assert not any("no split" in note for note in read_manifest(tmp_path).notes), "where nothing is divided"


def test_a_folder_that_is_not_understood_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    write(tmp_path / "loose.png")
    with pytest.raises(UserError, match=r"expected COVID-QU-Ex.*class folders.*found loose\.png, notes\.txt, photos/"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(UserError, match="found an empty folder"):
        read_manifest(tmp_path / "photos")


def test_a_folder_above_or_inside_a_data_set_is_not_one(small_covidqu: Path) -> None:
    with pytest.raises(UserError, match=rf"did you mean {small_covidqu}\?$"):
        read_manifest(small_covidqu.parent)
    with pytest.raises(UserError, match=r"found images/, lung masks/") as caught:  # not class folders
        read_manifest(small_covidqu / LUNG / "Test/COVID-19")
    assert "\n" not in str(caught.value)


def test_dicom_files_and_their_masks_need_no_suffix(tmp_path: Path) -> None:
    masks = tmp_path / "masks/lung/a"
    write(masks / "1.2.840.8.png")
    (tmp_path / "a").mkdir()
    for path in (masks / "1.2.840.7", *(tmp_path / "a" / name for name in ("1.2.840.7", "1.2.840.8", "IM0001"))):
        path.write_bytes(bytes(128) + b"DICM")
    (tmp_path / "a/notes").write_text("no image")
    table = read_manifest(tmp_path).table
    assert table["path"].tolist() == ["a/1.2.840.7", "a/1.2.840.8", "a/IM0001"]
    assert table["lung_mask"].tolist() == ["masks/lung/a/1.2.840.7", "masks/lung/a/1.2.840.8.png", None]
    (tmp_path / "list.csv").write_text("path,class\n1.2.840,a\n1.2.840.7,b\n")
    assert read_manifest(tmp_path / "list.csv", images=tmp_path / "a").table["class"].tolist() == ["b"]


def test_labels_are_mapped_and_an_unmapped_one_is_an_error_that_lists_all(tmp_path: Path) -> None:
    for name in ("covid", "pneumonia", "normal", "odd"):
        write(tmp_path / name / "x.png")
    wanted = ("COVID-19", "Non-COVID", "Normal")
    with pytest.raises(UserError, match="'normal', 'odd'"):
        load_dataset(tmp_path, size=16, labels={"covid": "COVID-19", "pneumonia": "Non-COVID"})
    labels = {"covid": "COVID-19", "pneumonia": "Non-COVID", "normal": "Normal", "odd": None}
    data = load_dataset(tmp_path, size=16, labels=labels, classes=wanted)
    assert data.table["class"].tolist() == list(wanted)
    assert any("'odd' are left out" in n for n in data.notes)


def test_a_class_that_the_run_does_not_know_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "COVID/x.png")
    write(tmp_path / "NonCOVID/x.png")
    with pytest.raises(UserError, match=r"COVID, NonCOVID do not match the expected COVID-19, Normal"):
        load_dataset(tmp_path, size=16, classes=("COVID-19", "Normal"))
    data = load_dataset(tmp_path, size=16, classes=("NonCOVID", "COVID"))
    assert data.labels.tolist() == [1, 0]


def test_real_data_has_the_published_counts(real_data: Path) -> None:
    manifest = read_manifest(real_data / "covidqu-mini")
    counts = {"Train": 608, "Val": 152, "Test": 190}
    assert manifest.counts() == {s: dict.fromkeys(("COVID-19", "Non-COVID", "Normal"), n) for s, n in counts.items()}
    assert manifest.table["lung_mask"].notna().all()
    assert manifest.table["infection_mask"].notna().sum() == 1200
    assert manifest.table["patient"].notna().sum() == 142
    assert manifest.notes == []
    for spelling in ("/non_COVID", "/Non_COVID"):
        assert manifest.table["sample_id"].str.contains(spelling).any()
    external = read_manifest(real_data / "external-cxr")
    assert external.counts() == {"External": {"COVID-19": 123, "Non-COVID": 77, "Normal": 125}}
    found = {k: int(external.table[f"{k}_mask"].notna().sum()) for k in external.mask_kinds}
    assert found == {"lung": 202, "infection": 90, "devices": 25}
    ct = read_manifest(real_data / "ct-mini")
    assert ct.counts() == {"All": {"COVID": 110, "NonCOVID": 110}}
    assert len(read_manifest(real_data / "raw-samples").table) == 11


def test_importing_the_data_package_imports_neither_pandas_nor_pillow() -> None:
    code = "import sys, trustcxr.data; print([m for m in ('pandas', 'PIL', 'torch', 'joblib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
