"""Lists of images: of COVIDx, NIH, RSNA and CheXpert as published, any other by a mapping, and our own manifest."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from trustcxr.audit import multilabel, subgroups
from trustcxr.data import load_dataset, read_manifest
from trustcxr.data.layouts import listing
from trustcxr.errors import UserError
from trustcxr.storage import atomic


def images(folder: Path, *names: str) -> Path:
    """Noise under each of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20, 20), 60).convert("L").save(folder / name, format="PNG")
    return folder


def write_list(folder: Path, *lines: str) -> Path:
    (folder / "list.csv").write_text("".join(f"{line}\n" for line in lines))
    return folder / "list.csv"


def listed(folder: Path, header: str, *rows: str) -> Path:
    """A list with images `0.png`, `1.png`, ... for its rows, which stand in front of each."""
    images(folder, *(f"{number}.png" for number in range(len(rows))))
    return write_list(folder, header, *(f"{number}.png,{row}" for number, row in enumerate(rows)))


def refused(file: Path, **how: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_manifest(file, **how)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows_of(file: Path, *columns: str, **how: Any) -> list[list[Any]]:
    return read_manifest(file, **how).table[list(columns)].values.tolist()


def has_note(notes: list[str], start: str, part: str) -> bool:
    return any(note.startswith(start) and part in note for note in notes)


@pytest.fixture
def covidx(tmp_path: Path) -> Path:
    """With one name in both folders: each list means its own."""
    root = tmp_path / "covidx"
    images(root, "train/SARS-10.1148rg.png", "train/b.jpg", "train/ARDSSevere.png", "test/ARDSSevere.png")
    (root / "train_COVIDx9A.txt").write_text("3 SARS-10.1148rg.png pneumonia cohen\nCOVID-00003b b.jpg COVID-19\n")
    (root / "test_COVIDx9A.txt").write_text("19 ARDSSevere.png normal cohen\n7 gone.png normal rsna\n")
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
    labels = {"pneumonia": "Non-COVID", "normal": "Normal", "COVID-19": "COVID-19"}
    data = load_dataset(covidx, "Train", 16, labels=labels)
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
    images(tmp_path, "images_001/images/00000001_000.png", "images_002/images/00000002_000.png")
    columns = ("path", "split", "patient", "view", "class")
    assert rows_of(tmp_path / "Data_Entry_2017.csv", *columns) == [
        ["images_002/images/00000002_000.png", "Test", "2", "AP", "No Finding"],
        ["images_001/images/00000001_000.png", "Train", "1", "PA", "Cardiomegaly|Emphysema"],
    ]


def test_rsna_lists_a_image_once_for_each_box_and_without_its_suffix(tmp_path: Path) -> None:
    classes, boxes = tmp_path / "stage_2_detailed_class_info.csv", tmp_path / "stage_2_train_labels.csv"
    classes.write_text("patientId,class\na1,Lung Opacity\na1,Lung Opacity\nb2,Normal\n")
    boxes.write_text("patientId,x,y,width,height,Target\na1,1,2,3,4,1\na1,5,6,7,8,1\nb2,,,,,0\n")
    first, second = "stage_2_train_images/a1.dcm", "stage_2_train_images/b2.dcm"
    images(tmp_path, first, second)
    assert rows_of(classes, "class", "path") == [["Lung Opacity", first], ["Normal", second]]
    assert load_dataset(boxes, size=16, labels={"1": "Opacity", "0": "Other"}).classes == ("Opacity", "Other")


CHEXPERT = """Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Fracture,Support Devices
CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,1.0
CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,AP,,-1.0,1.0,1.0
CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg,Female,83,Frontal,PA,,-1.0,,
CheXpert-v1.0-small/train/patient00003/study1/view2_lateral.jpg,Male,41,Lateral,,1.0,0.0,,
"""


def test_chexpert_as_published(tmp_path: Path) -> None:
    """A column a finding and none for the class; its paths begin with the very folder that the list lies in."""
    root = images(tmp_path / "data", *(line.split(",")[0].split("/", 1)[1] for line in CHEXPERT.splitlines()[1:]))
    (root / "train.csv").write_text(CHEXPERT)
    manifest = read_manifest(root / "train.csv")
    table = manifest.table
    studies = table["path"].str.split("/").str[1:3].str.join("/")
    assert dict(zip(studies, table["class"], strict=True)) == {
        "patient00001/study1": "Support Devices",
        "patient00002/study2": "Fracture|Support Devices",
        "patient00002/study1": "Uncertain",
        "patient00003/study1": "No Finding",
    }
    assert sorted(table["patient"]) == ["patient00001", "patient00002", "patient00002", "patient00003"]
    assert set(table["split"]) == {"Train"}
    assert [n for n in manifest.notes if "No Finding, Edema, Fracture, Support Devices" in n]
    said = multilabel.labelled_findings(table, ["Edema", "Fracture", "Hernia"])
    by_study = dict(zip(studies, said.tolist(), strict=True))
    assert by_study["patient00003/study1"][0] == 0
    assert by_study["patient00002/study2"][1] == 1
    assert np.isnan(said[:, 2]).all(), "the list says nothing of it"
    assert np.isnan(said[:, 0]).sum() == 3
    for columns in ("chexpert", {"path": "Path", "view": "AP/PA"}):
        assert read_manifest(root / "train.csv", columns=columns).table.equals(table)


def test_columns_of_findings_and_those_that_say_something_else(tmp_path: Path) -> None:
    found = read_manifest(listed(tmp_path, "path,No Finding,Pneumonia,smoker", "0,,1", ",1,0")).table
    assert dict(zip(found["path"], found["class"], strict=True)) == {"0.png": "Uncertain", "1.png": "Pneumonia"}
    assert found["smoker"].notna().all()
    file = listed(tmp_path, "path,age,strict_external,sex", "41,1,M")
    with pytest.raises(UserError, match=r"its class among path.* or give columns of 1 and 0 with the names"):
        read_manifest(file)
    assert "no column 'class' among path, age" in refused(file, columns={"path": "path"})
    # A finding that is named as the class is still known of each image, and no column that divides them.
    file = listed(tmp_path, "Path,Edema,Mass", "1.0,0.0", "0.0,")
    table = read_manifest(file, columns={"path": "Path", "class": "Edema"}).table
    said = multilabel.labelled_findings(table, ["Edema", "Mass"])[:, 0]
    assert dict(zip(table["path"], said, strict=True)) == {"0.png": 1, "1.png": 0}
    assert "by_Edema" not in subgroups.columns_of(pd.concat([table] * 30, ignore_index=True)), "the class once more"


def test_any_other_list_by_a_mapping(tmp_path: Path) -> None:
    images(tmp_path / "pictures", "x 1.png", "x 1 lungs.png")
    (tmp_path / "lists").mkdir()
    file = write_list(tmp_path / "lists", "Bild;Befund,Bild,Maske,Teil", "irrelevant,x 1.png,x 1 lungs.png,validation")
    columns: dict[str, str | int] = {"path": "Bild", "class": "Bild;Befund", "lung_mask": "Maske", "split": "Teil"}
    found = rows_of(file, "path", "lung_mask", "split", columns=columns, images=tmp_path / "pictures")
    assert found == [["x 1.png", "x 1 lungs.png", "Val"]]
    for how, said in (
        ({"columns": {"path": "Bild", "class": "Befund"}}, "no column 'Befund' among Bild;Befund, Bild"),
        ({"columns": columns | {"colour": "Teil"}}, "unknown column 'colour'"),
        ({"columns": "nhi"}, "unknown list 'nhi': did you mean nih"),
        ({"columns": columns, "images": tmp_path / "lists"}, "none of its images exists: x 1.png"),
        ({}, "no columns for the image and its class among Bild;Befund"),
    ):
        with pytest.raises(UserError) as caught:
            read_manifest(file, **{"images": tmp_path / "pictures"} | how)
        assert said in str(caught.value)


def test_an_image_of_two_classes_patients_or_folders_is_an_error(tmp_path: Path) -> None:
    images(tmp_path, "a/x.png", "b/x.png")
    for again, said in (("two,Train,p0", "as 'one' and as 'two'"), ("one,Train,p9", "with patient")):
        file = write_list(tmp_path, "path,class,split,patient", "a/x.png,one,Train,p0", f"a/x.png,{again}")
        assert f"listed {said}" in refused(file)
    assert "in several folders" in refused(write_list(tmp_path, "path,class", "x.png,one"))


def test_a_file_of_the_same_name_in_another_folder_is_not_what_is_listed(tmp_path: Path) -> None:
    images(tmp_path, "img/0.png", "img/1.png", "inf/0.png", "inf/2.png")
    header = "path,class,split,infection_mask"
    file = write_list(tmp_path, header, *(f"img/{k}.png,COVID-19,Test,inf/{k}.png" for k in range(3)))
    manifest = read_manifest(file)
    found = manifest.table[["path", "infection_mask"]].values.tolist()
    assert found == [["img/0.png", "inf/0.png"], ["img/1.png", None]]
    assert has_note(manifest.notes, "1 images of the list do not exist", "img/2.png")
    assert has_note(manifest.notes, "1 masks of the list do not exist", "inf/1.png")
    file = write_list(tmp_path, header, "img/1.png,COVID-19,Test,elsewhere/1.png")
    assert rows_of(file, "infection_mask") == [[None]]


@pytest.mark.parametrize("prefix", ["", "CheXpert-v1.0-small/"])
def test_a_missing_image_is_not_another_patients_of_the_same_name(prefix: str, tmp_path: Path) -> None:
    images(tmp_path, "train/patient00002/study2/view1.jpg", "lungs-of-others/1.jpg")
    rows = [f"{prefix}train/patient0000{k}/study2/view1.jpg,{k},lungs/1.jpg" for k in (2, 3)]
    manifest = read_manifest(write_list(tmp_path, "path,class,lung_mask", *rows))
    found = manifest.table[["path", "class", "lung_mask"]].values.tolist()
    assert found == [["train/patient00002/study2/view1.jpg", "2", None]]
    assert has_note(manifest.notes, "1 images of the list do not exist", "patient00003")


def test_a_listed_path_may_lack_the_first_folder_the_suffix_or_both(tmp_path: Path) -> None:
    images(tmp_path / "images", "a/1.png", "b/1.png", "c/2.png", "3.png", "4.png")
    file = write_list(tmp_path, "path,class", "a/1.png,x", "b/1,y", "gone/elsewhere/3.png,z", "old/disk/4,z")
    found = rows_of(file, "path", images=tmp_path / "images")
    assert found == [["a/1.png"], ["b/1.png"], ["3.png"], ["4.png"]]
    file = write_list(tmp_path, "path,class", "a/1.png,x", "b/1,y")
    assert rows_of(file, "path") == [["images/a/1.png"], ["images/b/1.png"]]


def test_what_is_not_known_is_no_patient_and_no_patient_is_in_two_splits(tmp_path: Path) -> None:
    patients = ("unknown", "N/A", "", "not recorded", "p1", "p1")
    table = read_manifest(listed(tmp_path, "path,class,patient", *(f"a,{patient}" for patient in patients))).table
    assert table["patient"].tolist() == [None] * 4 + ["p1"] * 2
    assert table["group"].nunique() == 5
    finer = [f"{'ab'[k % 4 // 2]},P{k // 2},{f'study{k}' if k % 8 else ''}" for k in range(40)]
    manifest = read_manifest(listed(tmp_path, "path,class,patient,group", *finer))
    assert manifest.table.groupby("patient")["group"].nunique().max() == 1
    assert [n for n in manifest.notes if "the groups of a patient count as one" in n]
    assert manifest.with_splits().table.groupby("patient")["split"].nunique().max() == 1


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
    assert atomic.read_table(tmp_path / name)["dropped"].dropna().tolist() == ["the same image as sample 7"]
    data = load_dataset(tmp_path / name, "Train", 16, cache=tmp_path / "cache")
    assert data.sample_ids.tolist() == ["Train/train/b.jpg"]
    with pytest.raises(UserError, match=r"is a \.csv or \.parquet file"):
        again.write(tmp_path / "z.xlsx")


def test_a_manifest_written_through_a_link_to_a_folder_can_be_read(tmp_path: Path) -> None:
    images(tmp_path, "deep/store/data/x.png", "deep/store/y.png", "z.png")
    (tmp_path / "deep/store/out").mkdir()
    for name in ("data", "out"):
        (tmp_path / name).symlink_to(f"deep/store/{name}")
    write_list(tmp_path / "data", "path,class", "x.png,a", "../y.png,a", f"{tmp_path}/z.png,a")
    write_list(tmp_path, "path,class", "data/x.png,a", "data/../y.png,a")
    for file, count in (("data/list.csv", 3), ("list.csv", 2)):
        manifest = read_manifest(tmp_path / file)
        assert [p for p in manifest.table["path"] if not (manifest.root / p).is_file()] == []
        for out in ("out/clean.csv", "data/clean.csv", "clean.csv"):
            manifest.write(tmp_path / out)
            again = read_manifest(tmp_path / out)
            assert sum((again.root / p).is_file() for p in again.table["path"]) == count


def test_a_parquet_list_of_any_types_is_read(tmp_path: Path) -> None:
    names, file = ["x.png", "y.png", "z.png"], images(tmp_path, "x.png", "y.png", "z.png") / "list.parquet"
    columns = {
        "sample_id": ["x", "y", None],
        "class": [["Edema", "Mass"], [], ["Mass"]],
        "patient": pd.array([7, None, 7], "Int64"),
        "sex": pd.array(["F", None, "M"], "string"),
        "split": "Test",
    }
    table = pd.DataFrame(columns, index=pd.Index(names, name="path"))
    lacking = "2 rows lack one of sample_id, path, class, split, the first is row 2"
    table.to_parquet(file)
    assert lacking in refused(file)
    table.drop(columns="sample_id").to_parquet(file)
    manifest = read_manifest(file)
    found = manifest.table[["path", "class", "patient", "sex"]].values.tolist()
    assert found == [["x.png", "Edema|Mass", "7", "F"], ["z.png", "Mass", "7", "M"]]
    assert manifest.notes == ["1 rows of list.parquet have no image or no class and are left out; the first is row 2"]
    table.reset_index().assign(note=pd.NA).set_index(pd.Index(["a", "b", "c"])).to_parquet(file)
    assert lacking in refused(file)


def test_the_side_car_of_covidqu_does_not_pool_the_two_parts(covidqu: Path) -> None:
    assert len(read_manifest(covidqu / "manifest.csv").table) == 2850
    external = read_manifest(covidqu.parent / "external-cxr/manifest.csv")
    assert len(external.table) == 325
    assert external.table["lung_mask"].notna().sum() == 202


def test_a_list_with_sample_ids_is_read_as_any_other(tmp_path: Path) -> None:
    rows = ("a,train,f0,unknown", "b,test,f1,unknown", "a,validation,f2,p2")
    here = listed(tmp_path / "images", "path,class,split,sample_id,patient", *rows)
    (tmp_path / "list.csv").write_text(here.read_text())
    found = read_manifest(tmp_path / "list.csv", images=tmp_path / "images")
    for manifest in (found, read_manifest(here)):
        known = manifest.table[["sample_id", "split", "patient"]].values.tolist()
        assert known == [["f1", "Test", None], ["f0", "Train", None], ["f2", "Val", "p2"]]
        assert len(set(manifest.table["group"])) == 3, "of two patients nobody knows who they are"
    assert found.root == tmp_path / "images"


SIMILAR = ("path,class,note,Class", "a,1,b", "c,1,d")
NAMED = {"path": "Image Index", "class": "Befund", "patient": "Patient ID"}
USUAL = ("Image Index,Befund,split,Patient ID,source,view", "a,Train,p0,north,AP", "b,Val,p1,north,PA", "a,Test,p2,,AP")
KNOWN = {"split": "Test Train Val", "patient": "p2 p0 p1", "source": "None north north", "view": "AP AP PA"}
GROUPED = {"class": "a b", "group": "All/0.png All/1.png"}
DIVIDED = ("Image Index,Finding Labels,Patient ID,View Position,split", "Mass,1,PA,test", "No Finding,2,AP,train")


@pytest.mark.parametrize(
    ("lines", "columns", "found"),
    [
        pytest.param(("2,1", "a", "b"), {"path": 2, "class": 1}, {"class": "a b"}, id="a number is a name"),
        pytest.param(("2,1", "a", "b"), {"path": 0, "class": 1}, {"class": "a b"}, id="and else a place"),
        pytest.param(SIMILAR, {"class": "Class"}, {"class": "b d"}, id="capital"),
        pytest.param(SIMILAR, {"class": "class"}, {"class": "a c"}, id="small"),
        pytest.param(SIMILAR, {"class": 3}, {"class": "b d"}, id="the fourth"),
        pytest.param(("sample_id,path,class,split,Class", "0.png,a,Train,b"), None, {"class": "a"}, id="a manifest"),
        pytest.param(
            ("path,group,label", "a,x", "b,y"), {"path": "path", "class": "group"}, GROUPED, id="not for another"
        ),
        pytest.param(USUAL, NAMED, KNOWN, id="usual names count beside those that are named"),
        pytest.param(DIVIDED, None, {"split": "Test Train"}, id="a published list that was divided"),
    ],
)
def test_columns_by_name_or_place(lines: tuple[str, ...], columns: Any, found: dict[str, str], tmp_path: Path) -> None:
    file = listed(tmp_path, *lines)
    table = read_manifest(file, columns=columns).table
    assert {name: " ".join(map(str, table[name])) for name in found} == found
    if lines is USUAL:
        assert load_dataset(file, "Test", 16, columns=columns).table["path"].tolist() == ["2.png"]


def test_columns_for_images_in_folders_are_said_to_have_no_effect(tmp_path: Path) -> None:
    images(tmp_path, "a/x.png", "b/y.png")
    assert "these images are not a list" in " ".join(read_manifest(tmp_path, columns="nih").notes)
    assert not read_manifest(tmp_path).notes
    with pytest.raises(UserError, match="unknown list 'nihh': did you mean nih"):
        read_manifest(tmp_path, columns="nihh")


@pytest.mark.parametrize("again", ["./images/x.png", "other/../images/x.png", "images\\.\\x.png", "{}"])
def test_a_image_is_one_however_its_path_is_spelt(again: str, tmp_path: Path) -> None:
    images(tmp_path, "images/x.png")
    again = again.format(tmp_path / "other/../images/x.png")
    lines = ("path,class,split", "images/x.png,a,Train")
    found = rows_of(write_list(tmp_path, *lines, f"{again},a,Train"), "sample_id", "path")
    assert found == [["Train/images/x.png", "images/x.png"]]
    for row, said in (("b,Train", "as 'a' and as 'b'"), ("a,Test", "with split 'Train' and with split 'Test'")):
        problem = refused(write_list(tmp_path, *lines, f"{again},{row}"))
        assert problem.endswith(f"the same image as images/x.png, is listed {said}")


def test_a_path_through_a_link_to_a_folder_elsewhere_is_the_file_that_it_leads_to(tmp_path: Path) -> None:
    images(tmp_path, "images/x.png", "store/images/x.png", "store/inner/y.png")
    (tmp_path / "link").symlink_to(tmp_path / "store/inner")
    file = write_list(tmp_path, "path,class", "link/../images/x.png,a", "images/x.png,b", "./link/y.png,b")
    paths = set(read_manifest(file).table["path"])
    assert paths == {"link/../images/x.png", "images/x.png", "link/y.png"}


SAVE = "Save it as UTF-8, which spreadsheets call 'CSV UTF-8'$"


@pytest.mark.parametrize("columns", [None, {"path": "Image", "class": "Finding"}], ids=["as they are", "named"])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("list.parquet", b"PAR1 not really", "not a readable table"),
        ("list.csv", b"", "the list has no columns and no rows$"),
        ("list.csv", b"path,class\n", r"the list has no rows below its header \(path, class\)$"),
        ("list.csv", b"path,class,patient\n0.png,a,p0,\n", "its rows have more .* header. Remove a ',' at their end"),
        *(
            (name, text.encode(encoding), f"{said}. {SAVE}")
            for name, text in (
                ("list.csv", "path,class,who\n0.png,a,p\n1.png,a,Jäger\n"),
                ("list.txt", "0 9.png b\r\n1 0.png a\r\n2 Jäger.png a\r\n"),
            )
            for encoding, said in (
                ("latin-1", r"row 3 is not UTF-8 text \(has the byte 0xe4\)"),
                ("utf-16", r"row 1 is not UTF-8 text \(looks like UTF-16\)"),
            )
        ),
    ],
    ids=["no Parquet", "nothing", "a header", "too many cells", "Latin", "UTF-16", "Latin in text", "UTF-16 in text"],
)
def test_a_list_that_is_not_read_says_why(name: str, content: bytes, said: str, columns: Any, tmp_path: Path) -> None:
    (images(tmp_path, "0.png") / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: {said}"):
        read_manifest(tmp_path / name, columns=columns)


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
    problem = refused(listed(tmp_path, header, "0.png,0,Train,1" if header.startswith("sample_id") else "0,Train,p,1"))
    assert f"list.csv: {said}" in problem
    assert ". Rename or remove one" in problem
    assert ("--column class=class" in problem) == (header.endswith("Class"))


def test_a_side_car_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    images(tmp_path, "a/x.png")
    (tmp_path / "manifest.csv").write_text("path,patient,note,patient,note\na/x.png,p1,1,p2,2\n")
    said = r"manifest\.csv: columns 1 and 3, .* both called 'patient'. Rename or remove one$"
    with pytest.raises(UserError, match=said):
        read_manifest(tmp_path)


def test_tables_read_in_parts_are_those_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{name},p{number},{number % 2}" for number, name in enumerate("abcde")]
    file = listed(tmp_path / "list", "path,class,patient,smoker", *rows)
    images(tmp_path / "folder", *(f"a/{number}.png" for number in range(5)))
    side_car = tmp_path / "folder/manifest.csv"
    side_car.write_text("path,patient_id\n" + "".join(f"a/{number}.png,p{number}\n" for number in (4, 0, 2, 1)))
    whole = [read_manifest(place) for place in (file, side_car.parent)]
    assert whole[1].table["patient"].tolist() == ["p0", "p1", "p2", None, "p4"]
    monkeypatch.setattr(listing, "_ROWS", 2)
    for before, place in zip(whole, (file, side_car.parent), strict=True):
        pd.testing.assert_frame_equal(read_manifest(place).table, before.table)
    with side_car.open("a") as opened:
        opened.write("a/4.png,p5\n")  # two parts after its first row
    with pytest.raises(UserError, match=r"a/4\.png is listed twice, with two values of patient"):
        read_manifest(side_car.parent)


@pytest.mark.parametrize("nameless", ["", " ", '""'])
def test_columns_without_a_name_may_be_several(nameless: str, tmp_path: Path) -> None:
    """As in NIH's BBox_List_2017.csv."""
    file = listed(tmp_path, f"Image Index,Finding Label,Bbox [x,y,w,h]{f',{nameless}' * 3}", "Mass,1,2,3,4,,,")
    columns = {"path": "Image Index", "class": "Finding Label"}
    assert rows_of(file, "path", "class", "h]", columns=columns) == [["0.png", "Mass", "4"]]


def test_rows_that_lack_something_are_told_with_the_first_of_them(tmp_path: Path) -> None:
    file = listed(tmp_path, "path,class,split", "a,Train", "a,", ",Test", "b,Test", "b,", "b, ")
    manifest = read_manifest(file)
    assert [(note.split()[0], note[-5:]) for note in manifest.notes] == [("1", "row 4"), ("3", "row 3")]
    assert manifest.table["split"].tolist() == ["All"] * 3 + ["Test", "Train"]
    assert load_dataset(file, "Train", 16).notes == manifest.notes
    assert not read_manifest(listed(tmp_path, "path,class,split", "a,", "b,")).notes, "no row has a split"
    file = listed(tmp_path, "sample_id,path,class,split", "0.png,a,Train", "1.png,a,")
    assert "1 rows lack one of sample_id, path, class, split, the first is row 3. Fill in" in refused(file)


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
    assert load_dataset(file, "Train", 16).table["split"].tolist() == ["Train"] * 2


@pytest.mark.parametrize("again", ["a-1 ", "A-1", "a -1"])
def test_classes_that_differ_only_in_capitals_or_blanks_are_said(again: str, tmp_path: Path) -> None:
    rows = [f"{number},{name},Train" for number, name in enumerate(("a-1", again, "a-1", "b"))]
    file = listed(tmp_path, "path,sample_id,class,split", *rows)
    (note,) = load_dataset(file, "Train", 16).notes
    assert f"count as different: 'a-1' (2 images) and '{again}' (1 image); to join them, give --label " in note
    mapped = load_dataset(file, "Train", 16, labels={again: "a-1", "b": "b"})
    assert (mapped.notes, mapped.classes) == ([], ("a-1", "b"))
