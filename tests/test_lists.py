"""Lists of images: of COVIDx, NIH, RSNA and CheXpert as published, any other by a mapping, and our own manifest."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from trustcxr.audit import multilabel, subgroups
from trustcxr.data import load_dataset, read_manifest
from trustcxr.errors import UserError


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((20, 20), 60).convert("L").save(path, format="PNG")


@pytest.fixture
def covidx(tmp_path: Path) -> Path:
    root = tmp_path / "covidx"
    rows = {
        "train": ["3 SARS-10.1148rg.png pneumonia cohen", "COVID-00003b b.jpg COVID-19"],
        "test": ["19 ARDSSevere.png normal cohen", "7 gone.png normal rsna"],
    }
    for split, lines in rows.items():
        (root / f"{split}_COVIDx9A.txt").parent.mkdir(exist_ok=True)
        (root / f"{split}_COVIDx9A.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            if "gone" not in line:
                image(root / split / line.split()[1])
    image(root / "train/ARDSSevere.png")  # the same name in both folders: each list means its own
    return root


def test_covidx_as_published(covidx: Path) -> None:
    manifest = read_manifest(covidx)
    assert manifest.layout == "covidx"
    found = manifest.table[["path", "class", "split", "patient", "source"]].values.tolist()
    assert found == [
        ["test/ARDSSevere.png", "normal", "Test", "19", "cohen"],
        ["train/b.jpg", "COVID-19", "Train", "COVID-00003b", None],
        ["train/SARS-10.1148rg.png", "pneumonia", "Train", "3", "cohen"],
    ]
    assert any("gone.png" in n for n in manifest.notes)
    assert len(read_manifest(covidx / "train_COVIDx9A.txt").table) == 2
    data = load_dataset(
        covidx, "Train", 16, labels={"pneumonia": "Non-COVID", "normal": "Normal", "COVID-19": "COVID-19"}
    )
    assert data.classes == ("COVID-19", "Non-COVID", "Normal")
    assert data.labels.tolist() == [0, 1]


def test_nih_as_published(tmp_path: Path) -> None:
    (tmp_path / "Data_Entry_2017.csv").write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
        "00000001_000.png,Cardiomegaly|Emphysema,0,1,58,M,PA\n"
        "00000002_000.png,No Finding,0,2,81,M,AP\n"
    )
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n")
    (tmp_path / "test_list.txt").write_text("00000002_000.png\n")
    image(tmp_path / "images_001/images/00000001_000.png")
    image(tmp_path / "images_002/images/00000002_000.png")
    table = read_manifest(tmp_path / "Data_Entry_2017.csv").table
    assert table["path"].tolist() == ["images_002/images/00000002_000.png", "images_001/images/00000001_000.png"]
    assert table["split"].tolist() == ["Test", "Train"]
    assert table["patient"].tolist() == ["2", "1"]
    assert table["view"].tolist() == ["AP", "PA"]
    assert table["class"].tolist() == ["No Finding", "Cardiomegaly|Emphysema"]


def test_rsna_lists_a_image_once_for_each_box_and_without_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "stage_2_detailed_class_info.csv").write_text(
        "patientId,class\na1,Lung Opacity\na1,Lung Opacity\nb2,Normal\n"
    )
    (tmp_path / "stage_2_train_labels.csv").write_text(
        "patientId,x,y,width,height,Target\na1,1,2,3,4,1\na1,5,6,7,8,1\nb2,,,,,0\n"
    )
    for name in ("a1", "b2"):
        image(tmp_path / f"stage_2_train_images/{name}.dcm")
    table = read_manifest(tmp_path / "stage_2_detailed_class_info.csv").table
    assert table["class"].tolist() == ["Lung Opacity", "Normal"]
    assert table["path"].tolist() == ["stage_2_train_images/a1.dcm", "stage_2_train_images/b2.dcm"]
    boxes = load_dataset(tmp_path / "stage_2_train_labels.csv", size=16, labels={"1": "Opacity", "0": "Other"})
    assert boxes.classes == ("Opacity", "Other")


CHEXPERT = """Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Fracture,Support Devices
CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,1.0
CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,AP,,-1.0,1.0,1.0
CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg,Female,83,Frontal,PA,,-1.0,,
CheXpert-v1.0-small/train/patient00003/study1/view2_lateral.jpg,Male,41,Lateral,,1.0,0.0,,
"""


def test_chexpert_as_published(tmp_path: Path) -> None:
    """A column a finding and none for the class; its paths begin with the very folder that the list lies in."""
    root = tmp_path / "data"
    for line in CHEXPERT.splitlines()[1:]:
        image(root / line.split(",")[0].split("/", 1)[1])
    (root / "train.csv").write_text(CHEXPERT)
    manifest = read_manifest(root / "train.csv")
    table = manifest.table.set_index("path")
    short = {path.split("/", 1)[1].rsplit("/", 1)[0]: name for path, name in table["class"].items()}
    assert short == {
        "patient00001/study1": "Support Devices",
        "patient00002/study2": "Fracture|Support Devices",
        "patient00002/study1": "Uncertain",
        "patient00003/study1": "No Finding",
    }
    assert sorted(table["patient"]) == ["patient00001", "patient00002", "patient00002", "patient00003"]
    assert set(table["split"]) == {"Train"}
    assert [n for n in manifest.notes if "No Finding, Edema, Fracture, Support Devices" in n]
    said = multilabel.labelled_findings(manifest.table, ["Edema", "Fracture", "Hernia"])
    by_path = dict(zip(manifest.table["path"].str.split("/").str[1:3].str.join("/"), said.tolist(), strict=True))
    assert by_path["patient00003/study1"][0] == 0
    assert by_path["patient00002/study2"][1] == 1
    assert np.isnan(said[:, 2]).all(), "the list says nothing of it"
    assert np.isnan(said[:, 0]).sum() == 3
    for columns in ("chexpert", {"path": "Path", "view": "AP/PA"}):
        assert read_manifest(root / "train.csv", columns=columns).table.equals(manifest.table)


def test_columns_that_say_something_else_are_no_findings(tmp_path: Path) -> None:
    image(tmp_path / "x.png")
    image(tmp_path / "y.png")
    rows = "x.png,0,,1\ny.png,,1,0\n"
    (tmp_path / "list.csv").write_text(f"path,No Finding,Pneumonia,smoker\n{rows}")
    found = read_manifest(tmp_path / "list.csv").table
    assert dict(zip(found["path"], found["class"], strict=True)) == {"x.png": "Uncertain", "y.png": "Pneumonia"}
    assert found["smoker"].notna().all()
    (tmp_path / "list.csv").write_text("path,age,strict_external,sex\nx.png,41,1,M\n")
    with pytest.raises(UserError, match=r"its class among path.* or give columns of 1 and 0 with the names"):
        read_manifest(tmp_path / "list.csv")
    with pytest.raises(UserError, match="no column 'class' among path, age"):
        read_manifest(tmp_path / "list.csv", columns={"path": "path"})


def test_any_other_list_by_a_mapping(tmp_path: Path) -> None:
    image(tmp_path / "pictures/x 1.png")
    image(tmp_path / "pictures/x 1 lungs.png")
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists/mine.csv"
    file.write_text("Bild;Befund,Bild,Maske,Teil\nirrelevant,x 1.png,x 1 lungs.png,validation\n")
    columns = {"path": "Bild", "class": "Bild;Befund", "lung_mask": "Maske", "split": "Teil"}
    manifest = read_manifest(file, columns=columns, images=tmp_path / "pictures")
    assert manifest.table[["path", "lung_mask", "split"]].values.tolist() == [["x 1.png", "x 1 lungs.png", "Val"]]
    with pytest.raises(UserError, match=r"no column 'Befund' among Bild;Befund, Bild"):
        read_manifest(file, columns={"path": "Bild", "class": "Befund"}, images=tmp_path / "pictures")
    with pytest.raises(UserError, match="unknown column 'colour'"):
        read_manifest(file, columns=columns | {"colour": "Teil"}, images=tmp_path / "pictures")
    with pytest.raises(UserError, match=r"no columns for the image and its class among Bild;Befund"):
        read_manifest(file)
    with pytest.raises(UserError, match="unknown list 'nhi': did you mean nih"):
        read_manifest(file, columns="nhi")
    with pytest.raises(UserError, match=r"none of its images exists: x 1\.png"):
        read_manifest(file, columns=columns, images=tmp_path / "lists")


def test_a_finding_that_is_named_as_the_class_is_still_known_of_each_image(tmp_path: Path) -> None:
    for name in ("x", "y"):
        image(tmp_path / f"{name}.png")
    (tmp_path / "list.csv").write_text("Path,Edema,Mass\nx.png,1.0,0.0\ny.png,0.0,\n")
    table = read_manifest(tmp_path / "list.csv", columns={"path": "Path", "class": "Edema"}).table
    said = multilabel.labelled_findings(table, ["Edema", "Mass"])[:, 0]
    assert dict(zip(table["path"], said, strict=True)) == {"x.png": 1, "y.png": 0}
    assert "by_Edema" not in subgroups.columns_of(pd.concat([table] * 30, ignore_index=True)), "the class once more"


def test_an_image_of_two_classes_splits_patients_or_folders_is_an_error(tmp_path: Path) -> None:
    image(tmp_path / "a/x.png")
    for again, said in (
        ("two,Train,p0", "as 'one' and as 'two'"),
        ("one,Test,p0", "split"),
        ("one,Train,p9", "patient"),
    ):
        (tmp_path / "two.csv").write_text(f"path,class,split,patient\na/x.png,one,Train,p0\na/x.png,{again}\n")
        with pytest.raises(UserError, match=f"listed (with )?{said}"):
            read_manifest(tmp_path / "two.csv")
    image(tmp_path / "b/x.png")
    (tmp_path / "where.csv").write_text("path,class\nx.png,one\n")
    with pytest.raises(UserError, match="in several folders"):
        read_manifest(tmp_path / "where.csv")


def test_a_file_of_the_same_name_in_another_folder_is_not_what_is_listed(tmp_path: Path) -> None:
    for name in ("img/0.png", "img/1.png", "inf/0.png", "inf/2.png"):
        image(tmp_path / name)
    rows = "".join(f"img/{k}.png,COVID-19,Test,inf/{k}.png\n" for k in range(3))
    (tmp_path / "list.csv").write_text("path,class,split,infection_mask\n" + rows)
    manifest = read_manifest(tmp_path / "list.csv")
    assert manifest.table[["path", "infection_mask"]].values.tolist() == [
        ["img/0.png", "inf/0.png"],
        ["img/1.png", None],
    ]
    assert [n for n in manifest.notes if n.startswith("1 images of the list do not exist") and "img/2.png" in n]
    assert [n for n in manifest.notes if n.startswith("1 masks of the list do not exist") and "inf/1.png" in n]
    (tmp_path / "list.csv").write_text("path,class,split,infection_mask\nimg/1.png,COVID-19,Test,elsewhere/1.png\n")
    assert read_manifest(tmp_path / "list.csv").table["infection_mask"].tolist() == [None]


@pytest.mark.parametrize("prefix", ["", "CheXpert-v1.0-small/"])
def test_a_missing_image_is_not_another_patients_of_the_same_name(prefix: str, tmp_path: Path) -> None:
    image(tmp_path / "train/patient00002/study2/view1.jpg")
    image(tmp_path / "lungs-of-others/1.jpg")
    rows = [f"{prefix}train/patient0000{k}/study2/view1.jpg,{k},lungs/1.jpg\n" for k in (2, 3)]
    (tmp_path / "list.csv").write_text("path,class,lung_mask\n" + "".join(rows))
    manifest = read_manifest(tmp_path / "list.csv")
    assert manifest.table[["path", "class", "lung_mask"]].values.tolist() == [
        ["train/patient00002/study2/view1.jpg", "2", None]
    ]
    assert [n for n in manifest.notes if n.startswith("1 images of the list do not exist") and "patient00003" in n]


def test_a_listed_path_may_lack_the_first_folder_or_the_suffix(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "c/2.png", "3.png"):
        image(tmp_path / "images" / name)
    (tmp_path / "list.csv").write_text("path,class\na/1.png,x\nb/1,y\ngone/elsewhere/3.png,z\n")
    table = read_manifest(tmp_path / "list.csv", images=tmp_path / "images").table
    assert table["path"].tolist() == ["a/1.png", "b/1.png", "3.png"]
    (tmp_path / "list.csv").write_text("path,class\na/1.png,x\nb/1,y\n")
    table = read_manifest(tmp_path / "list.csv").table
    assert table["path"].tolist() == ["images/a/1.png", "images/b/1.png"]


def test_what_is_not_known_is_no_patient(tmp_path: Path) -> None:
    rows = []
    for k, patient in enumerate(("unknown", "N/A", "", "not recorded", "p1", "p1")):
        image(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,a,{patient}\n")
    (tmp_path / "list.csv").write_text("path,class,patient\n" + "".join(rows))
    table = read_manifest(tmp_path / "list.csv").table
    assert table["patient"].tolist() == [None] * 4 + ["p1"] * 2
    assert table["group"].nunique() == 5


def test_no_patient_is_in_two_splits_though_groups_are_finer(tmp_path: Path) -> None:
    rows = []
    for k in range(40):
        image(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,{'ab'[k % 4 // 2]},P{k // 2},{f'study{k}' if k % 8 else ''}\n")
    (tmp_path / "list.csv").write_text("path,class,patient,group\n" + "".join(rows))
    manifest = read_manifest(tmp_path / "list.csv")
    assert manifest.table.groupby("patient")["group"].nunique().max() == 1
    assert [n for n in manifest.notes if "the groups of a patient count as one" in n]
    assert manifest.with_splits().table.groupby("patient")["split"].nunique().max() == 1


def test_a_row_of_more_cells_than_columns_is_one_line(tmp_path: Path) -> None:
    image(tmp_path / "0.png")
    (tmp_path / "list.csv").write_text("path,class,patient\n0.png,a,p0,\n")
    with pytest.raises(UserError, match=r"more cells than its header. Remove a ',' at their end"):
        read_manifest(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the list has no columns and no rows"),
        ("path,class\n", r"the list has no rows below its header \(path, class\)"),
    ],
)
def test_an_empty_list_is_called_that(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text)
    for columns in (None, {"path": "Image", "class": "Finding"}):
        with pytest.raises(UserError, match=rf"list\.csv: {said}$"):
            read_manifest(tmp_path / "list.csv", columns=columns)


@pytest.mark.parametrize("name", ["out/clean.csv", "out/clean.parquet"])
def test_our_own_manifest_comes_back_as_it_was(covidx: Path, tmp_path: Path, name: str) -> None:
    manifest = read_manifest(covidx)
    manifest.table.loc[0, "lung_mask"] = "test/ARDSSevere.png"
    keep = manifest.table["patient"] != "3"
    gone = manifest.table[~keep].assign(dropped="the same image as sample 7")
    manifest.select(keep).write(tmp_path / name, dropped=gone)
    again = read_manifest(tmp_path / name)
    facts = ["sample_id", "class", "split", "patient", "group", "source", "view"]
    pd.testing.assert_frame_equal(again.table[facts], manifest.table[keep].reset_index(drop=True)[facts])
    assert again.root == tmp_path / "out"
    assert all((again.root / p).is_file() for p in [*again.table["path"], again.table["lung_mask"][0]])
    assert again.table["infection_mask"].tolist() == [None, None]
    assert all(v is None or isinstance(v, str) for v in again.table.to_numpy().ravel())
    assert again.notes == ["1 samples are marked as dropped"]
    written = pd.read_csv(tmp_path / name) if name.endswith("csv") else pd.read_parquet(tmp_path / name)
    assert written["dropped"].dropna().tolist() == ["the same image as sample 7"]
    data = load_dataset(tmp_path / name, "Train", 16, cache=tmp_path / "cache")
    assert data.sample_ids.tolist() == ["Train/train/b.jpg"]


def test_a_manifest_written_through_a_link_to_a_folder_can_be_read(tmp_path: Path) -> None:
    for name in ("deep/store/data/x.png", "deep/store/y.png", "z.png"):
        image(tmp_path / name)
    (tmp_path / "deep/store/out").mkdir()
    (tmp_path / "data").symlink_to("deep/store/data")
    (tmp_path / "out").symlink_to("deep/store/out")
    rows = ["x.png", "../y.png", f"{tmp_path}/z.png"]
    (tmp_path / "data/list.csv").write_text("path,class\n" + "".join(f"{row},a\n" for row in rows))
    (tmp_path / "list.csv").write_text("path,class\ndata/x.png,a\ndata/../y.png,a\n")
    for file, count in (("data/list.csv", 3), ("list.csv", 2)):
        manifest = read_manifest(tmp_path / file)
        assert [p for p in manifest.table["path"] if not (manifest.root / p).is_file()] == []
        for out in ("out/clean.csv", "data/clean.csv", "clean.csv"):
            manifest.write(tmp_path / out)
            again = read_manifest(tmp_path / out)
            assert sum((again.root / p).is_file() for p in again.table["path"]) == count


def test_a_parquet_list_of_any_types_is_read(tmp_path: Path) -> None:
    for name in "xyz":
        image(tmp_path / f"{name}.png")
    table = pd.DataFrame(
        {
            "sample_id": ["x", "y", None],
            "class": [["Edema", "Mass"], [], ["Mass"]],
            "patient": pd.array([7, None, 7], "Int64"),
            "sex": pd.array(["F", None, "M"], "string"),
            "split": "Test",
        },
        index=pd.Index([f"{name}.png" for name in "xyz"], name="path"),
    )
    file = tmp_path / "list.parquet"
    table.to_parquet(file)
    with pytest.raises(UserError, match="2 rows lack one of sample_id, path, class, split, the first is row 2"):
        read_manifest(file)
    table.drop(columns="sample_id").to_parquet(file)
    manifest = read_manifest(file)
    assert manifest.table[["path", "class", "patient", "sex"]].values.tolist() == [
        ["x.png", "Edema|Mass", "7", "F"],
        ["z.png", "Mass", "7", "M"],
    ]
    assert manifest.notes == ["1 rows of list.parquet have no image or no class and are left out; the first is row 2"]
    table.reset_index().assign(note=pd.NA).set_index(pd.Index(["a", "b", "c"])).to_parquet(file)
    with pytest.raises(UserError, match="2 rows lack one of sample_id, path, class, split, the first is row 2"):
        read_manifest(file)


def test_a_file_that_is_no_manifest_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    assert "not a readable table" in refused(tmp_path / "x.parquet")
    image(tmp_path / "d/a/x.png")
    with pytest.raises(UserError, match=r"is a \.csv or \.parquet file"):
        read_manifest(tmp_path / "d").write(tmp_path / "z.xlsx")


def test_the_side_car_of_covidqu_does_not_pool_the_two_parts(covidqu: Path) -> None:
    assert len(read_manifest(covidqu / "manifest.csv").table) == 2850
    external = read_manifest(covidqu.parent / "external-cxr/manifest.csv")
    assert len(external.table) == 325
    assert external.table["lung_mask"].notna().sum() == 202


def listed(folder: Path, header: str, *rows: str) -> Path:
    """A list with images `0.png`, `1.png`, ... for its rows, which stand in front of each."""
    for number in range(len(rows)):
        image(folder / f"{number}.png")
    lines = [f"{number}.png,{row}" for number, row in enumerate(rows)]
    (folder / "list.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder / "list.csv"


def test_columns_of_the_usual_names_count_beside_those_that_are_named(tmp_path: Path) -> None:
    rows = ("a,Train,p0,north,AP", "b,Val,p1,north,PA", "a,Test,p2,south,AP")
    file = listed(tmp_path, "Image Index,Befund,split,Patient ID,source,view", *rows)
    named = {"path": "Image Index", "class": "Befund", "patient": "Patient ID"}
    manifest = read_manifest(file, columns=named)
    found = manifest.table[["path", "split", "patient", "source", "view"]].values.tolist()
    assert found == [
        ["2.png", "Test", "p2", "south", "AP"],
        ["0.png", "Train", "p0", "north", "AP"],
        ["1.png", "Val", "p1", "north", "PA"],
    ]
    assert load_dataset(file, "Test", 16, columns=named).table["path"].tolist() == ["2.png"]


def test_a_column_that_is_named_for_one_word_is_not_taken_for_another(tmp_path: Path) -> None:
    file = listed(tmp_path, "path,group,label", "a,x", "b,y")
    table = read_manifest(file, columns={"path": "path", "class": "group"}).table
    assert table["class"].tolist() == ["a", "b"]
    assert table["group"].tolist() == table["sample_id"].tolist()


def test_a_published_list_that_was_divided_keeps_its_splits(tmp_path: Path) -> None:
    header = "Image Index,Finding Labels,Patient ID,View Position,split"
    file = listed(tmp_path, header, "Mass,1,PA,test", "No Finding,2,AP,train")
    assert read_manifest(file).table["split"].tolist() == ["Test", "Train"]


def test_a_list_with_sample_ids_is_read_as_any_other(tmp_path: Path) -> None:
    rows = ("a,train,f0,unknown", "b,test,f1,unknown", "a,validation,f2,p2")
    file = listed(tmp_path / "images", "path,class,split,sample_id,patient", *rows)
    beside = file.rename(tmp_path / "list.csv")
    found = read_manifest(beside, images=tmp_path / "images")
    here = tmp_path / "images" / "list.csv"
    here.write_text(beside.read_text())
    for manifest in (found, read_manifest(here)):
        table = manifest.table
        assert table["sample_id"].tolist() == ["f1", "f0", "f2"]
        assert table["split"].tolist() == ["Test", "Train", "Val"]
        assert table["patient"].tolist() == [None, None, "p2"]
        assert len(set(table["group"])) == 3, "of two patients nobody knows who they are"
    assert found.root == tmp_path / "images"


def test_a_number_is_a_columns_name_before_it_is_its_place(tmp_path: Path) -> None:
    file = listed(tmp_path, "2,1", "a", "b")
    table = read_manifest(file, columns={"path": 2, "class": 1}).table
    assert table["path"].tolist() == ["0.png", "1.png"]
    assert read_manifest(file, columns={"path": 0, "class": 1}).table["class"].tolist() == ["a", "b"]


def test_columns_for_images_in_folders_are_said_to_have_no_effect(tmp_path: Path) -> None:
    image(tmp_path / "a/x.png")
    image(tmp_path / "b/y.png")
    assert "these images are not a list" in " ".join(read_manifest(tmp_path, columns="nih").notes)
    assert not read_manifest(tmp_path).notes
    with pytest.raises(UserError, match="unknown list 'nihh': did you mean nih"):
        read_manifest(tmp_path, columns="nihh")


@pytest.mark.parametrize("again", ["./images/x.png", "other/../images/x.png", "images\\.\\x.png", "{}"])
def test_a_image_is_one_however_its_path_is_spelt(again: str, tmp_path: Path) -> None:
    image(tmp_path / "images/x.png")
    again = again.format(tmp_path / "other/../images/x.png")
    file = tmp_path / "list.csv"
    file.write_text(f"path,class,split\nimages/x.png,a,Train\n{again},a,Train\n")
    table = read_manifest(file).table
    assert table[["sample_id", "path"]].values.tolist() == [["Train/images/x.png", "images/x.png"]]
    for row, said in (("b,Train", "as 'a' and as 'b'"), ("a,Test", "with split 'Train' and with split 'Test'")):
        file.write_text(f"path,class,split\nimages/x.png,a,Train\n{again},{row}\n")
        with pytest.raises(UserError, match=rf"the same image as images/x\.png, is listed {said}$"):
            read_manifest(file)


def test_a_path_through_a_link_to_a_folder_elsewhere_is_the_file_that_it_leads_to(tmp_path: Path) -> None:
    for name in ("images/x.png", "store/images/x.png", "store/inner/y.png"):
        image(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "store/inner")
    (tmp_path / "list.csv").write_text("path,class\nlink/../images/x.png,a\nimages/x.png,b\n./link/y.png,b\n")
    paths = set(read_manifest(tmp_path / "list.csv").table["path"])
    assert paths == {"link/../images/x.png", "images/x.png", "link/y.png"}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("path,class,split,patient,Class", "the columns 'class' and 'Class' differ only in capitals or blanks"),
        ("path,class,split,patient,class", "columns 1 and 4, counted from 0, are both called 'class'"),
        ("path,Edema,split,patient,edema", "the columns 'Edema' and 'edema' differ only in"),
        ("sample_id,path,class,split,class", "columns 2 and 4, counted from 0, are both called 'class'"),
    ],
)
def test_two_columns_of_one_name_are_refused_where_it_is_read(header: str, said: str, tmp_path: Path) -> None:
    image(tmp_path / "0.png")
    row = "0.png,0.png,0,Train,1" if header.startswith("sample_id") else "0.png,0,Train,p,1"
    (tmp_path / "list.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(UserError, match=rf"list\.csv: {said}.*. Rename or remove one") as caught:
        read_manifest(tmp_path / "list.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nameless", ["", " ", '""'])
def test_columns_without_a_name_may_be_several(nameless: str, tmp_path: Path) -> None:
    image(tmp_path / "0.png")
    # As NIH's BBox_List_2017.csv.
    header = ",".join(["Image Index,Finding Label,Bbox [x,y,w,h]", *[nameless] * 3])
    (tmp_path / "list.csv").write_text(f"{header}\n0.png,Mass,1,2,3,4,,,\n")
    manifest = read_manifest(tmp_path / "list.csv", columns={"path": "Image Index", "class": "Finding Label"})
    assert manifest.table[["path", "class", "h]"]].values.tolist() == [["0.png", "Mass", "4"]]


def test_one_of_two_similar_columns_can_be_chosen(tmp_path: Path) -> None:
    file = listed(tmp_path, "path,class,note,Class", "a,1,b", "c,1,d")
    for column, classes in (("Class", ["b", "d"]), ("class", ["a", "c"]), (3, ["b", "d"])):
        assert read_manifest(file, columns={"class": column}).table["class"].tolist() == classes
    assert "--column class=class" in refused(file)
    file = listed(tmp_path, "sample_id,path,class,split,Class", "0.png,a,Train,b")
    assert read_manifest(file).table["class"].tolist() == ["a"], "a manifest's own words are spelt exactly"


def refused(file: Path, **how: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_manifest(file, **how)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_side_car_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "a/x.png")
    (tmp_path / "manifest.csv").write_text("path,patient,note,patient,note\na/x.png,p1,1,p2,2\n")
    with pytest.raises(
        UserError, match=r"manifest\.csv: columns 1 and 3, .* both called 'patient'. Rename or remove one$"
    ):
        read_manifest(tmp_path)


def test_rows_that_lack_something_are_told_with_the_first_of_them(tmp_path: Path) -> None:
    file = listed(tmp_path, "path,class,split", "a,Train", "a,", ",Test", "b,Test", "b,", "b, ")
    manifest = read_manifest(file)
    ends = ("1", "row 4"), ("3", "row 3")
    assert [(note.split()[0], note[-5:]) for note in manifest.notes] == [*ends]
    assert manifest.table["split"].tolist() == ["All"] * 3 + ["Test", "Train"]
    assert load_dataset(file, "Train", 16).notes == manifest.notes
    assert not read_manifest(listed(tmp_path, "path,class,split", "a,", "b,")).notes, "no row has a split"
    file = listed(tmp_path, "sample_id,path,class,split", "0.png,a,Train", "1.png,a,")
    assert "1 rows lack one of sample_id, path, class, split, the first is row 3. Fill in" in refused(file)


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("latin-1", r"row 3 is not UTF-8 text \(has the byte 0xe4\)"),
        ("utf-16", r"row 1 is not UTF-8 text \(looks like UTF-16\)"),
    ],
)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "path,class,who\n0.png,a,p\n1.png,a,Jäger\n"),
        ("list.txt", "0 9.png b\r\n1 0.png a\r\n2 Jäger.png a\r\n"),
    ],
)
def test_a_list_in_another_encoding_is_said_with_its_row(
    encoding: str, said: str, name: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=rf"{name}: {said}. Save it as UTF-8, which spreadsheets call 'CSV UTF-8'$"):
        read_manifest(tmp_path / name)


def test_a_split_that_a_list_has_not_is_said_of_the_list_and_with_what_to_do(tmp_path: Path) -> None:
    def said(file: Path, split: str) -> str:
        with pytest.raises(UserError) as caught:
            load_dataset(file, split, 16)
        assert str(caught.value).startswith(f"{file}: no split '{split}'; ")
        return str(caught.value)

    file = listed(tmp_path, "path,class,split", "a,1", "b,2", "a,fold 3")
    assert "3. Choose one of them: to train on it, --set data.splits.train=1 " in said(file, "Train")
    file = listed(tmp_path, "path,class,Subset", "a,train", "b,test")
    assert "there is Test, Train: no row has it in the column 'Subset'. Give it to some images" in said(file, "Val")
    file = listed(tmp_path, "path,class", "a", "b")
    assert "there is All: the list has no column of splits. Add a column 'split' with Train" in said(file, "3")
    assert load_dataset(file.rename(tmp_path / "list.csv"), "Train", 16).table["split"].tolist() == ["Train"] * 2


@pytest.mark.parametrize("again", ["a-1 ", "A-1", "a -1"])
def test_classes_that_differ_only_in_capitals_or_blanks_are_said(again: str, tmp_path: Path) -> None:
    rows = [f"{number},{name},Train" for number, name in enumerate(("a-1", again, "a-1", "b"))]
    file = listed(tmp_path, "path,sample_id,class,split", *rows)
    (note,) = load_dataset(file, "Train", 16).notes
    assert f"count as different: 'a-1' (2 images) and '{again}' (1 image); to join them, give --label " in note
    mapped = load_dataset(file, "Train", 16, labels={again: "a-1", "b": "b"})
    assert (mapped.notes, mapped.classes) == ([], ("a-1", "b"))


def test_a_listed_path_may_lack_both_the_first_folder_and_the_suffix(tmp_path: Path) -> None:
    for name in "ab":
        image(tmp_path / f"{name}.png")
    (tmp_path / "list.csv").write_text("path,class\nold/disk/a,1\nold/disk/b,2\n")
    assert read_manifest(tmp_path / "list.csv").table["path"].tolist() == ["a.png", "b.png"]
