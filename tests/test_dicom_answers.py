"""Answers as DICOM: valid, of the image's study, referring to it, and telling no more than the image did."""

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")
from PIL import Image  # noqa: E402
from pydicom.uid import generate_uid  # noqa: E402

import small_runs  # noqa: E402
from dicom_images import CR, NUMBER, SECRET, answered, chest, complaints  # noqa: E402
from trustcxr.apps.dicom import studies_on_disk, writer  # noqa: E402
from trustcxr.data import read_manifest  # noqa: E402
from trustcxr.data.checks.check import check_data  # noqa: E402
from trustcxr.data.images import dicom_files, read  # noqa: E402
from trustcxr.data.phantom.render_image import render  # noqa: E402
from trustcxr.errors import UserError  # noqa: E402
from trustcxr.report import terminal  # noqa: E402
from trustcxr.storage.schemas import ImageAnswer  # noqa: E402
from trustcxr.version import NOTICE  # noqa: E402


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return chest(tmp_path / "x.dcm")


def written(image: Path, **fields: object) -> tuple[Path, Path]:
    heatmap, finding = writer.write(image, answered(image, **fields))
    return Path(heatmap), Path(finding)


def values(path: Path, keyword: str) -> list[str]:
    """Every value of an element that an object holds at any depth."""
    return [str(item.value) for item in pydicom.dcmread(path).iterall() if item.keyword == keyword]


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"PatientName": "", "PatientBirthDate": None, "StudyID": None, "ReferringPhysicianName": None},
        {"PatientSex": "X", "StudyDate": "2024-13-45", "PatientOrientation": None, "AccessionNumber": None},
        {"PatientName": "M\u00fcller^J\u00f6rg", "SpecificCharacterSet": "ISO_IR 100", "LossyImageCompression": "01"},
    ],
    ids=["whole", "empty", "odd", "umlauts"],
)
def test_both_objects_are_valid(tmp_path: Path, elements: dict[str, object]) -> None:
    for path in written(chest(tmp_path / "x.dcm", **elements)):
        assert complaints(path) == []


def test_they_belong_to_the_image_s_study_and_refer_to_it(image: Path) -> None:
    source = pydicom.dcmread(image)
    heatmap, finding = map(pydicom.dcmread, written(image))
    for made in (heatmap, finding):
        assert made.StudyInstanceUID == source.StudyInstanceUID
        assert made.SeriesInstanceUID != source.SeriesInstanceUID
        for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber"):
            assert made[name].value == source[name].value, name
        assert not any(word in made.to_json() for word in ("Betelgeuse", "a maker of scanners"))
        assert writer.RESEARCH in made.SeriesDescription
    assert heatmap.SeriesInstanceUID != finding.SeriesInstanceUID
    (reference,) = heatmap.SourceImageSequence
    assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (CR, source.SOPInstanceUID)
    (evidence,) = finding.CurrentRequestedProcedureEvidenceSequence
    series = ((s.SeriesInstanceUID, s.ReferencedSOPSequence[0]) for s in evidence.ReferencedSeriesSequence)
    assert {uid: one.ReferencedSOPInstanceUID for uid, one in series} == {
        made.SeriesInstanceUID: made.SOPInstanceUID for made in (source, heatmap)
    }


def test_the_report_says_what_was_answered_and_that_nobody_verified_it(image: Path) -> None:
    _, path = written(image, border="near the decision border: Normal 42.4%, COVID-19 34.5%")
    finding = pydicom.dcmread(path)
    flags = finding.CompletionFlag, finding.VerificationFlag, finding.PreliminaryFlag
    assert flags == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    assert list(map(float, values(path, "NumericValue"))) == [0.71, 0.2, 0.09]
    text = finding.to_json()
    for words in (
        "Probability of Non-COVID, calibrated", "COVID-19", "survives pgd-20 at epsilon 0.02", NOTICE,
        "Reason for doubt", "resnet18-fgsm-s0",
    ):  # fmt: skip
        assert words in text, words
    assert "Near the decision border: Normal 42.4%, COVID-19 34.5%" in values(path, "TextValue")


def test_names_that_differ_at_their_end_stay_apart_and_their_scale_is_said(image: Path) -> None:
    name = "Community acquired bacterial pneumonia with {{}} and pleural effusion, on the {} side"
    left, right = (name.format(side) for side in ("left", "right"))
    given = {"probabilities": {left: 0.36, right: 0.33, "Normal": 0.31}, "predicted": left, "calibrated": False}
    _, path = written(image, **given)
    meanings = values(path, "CodeMeaning")
    long = [text for text in meanings if text.startswith("Probability of Community")]
    assert len(set(long)) == 2
    assert all(text.endswith(", not calibrated") and len(text) <= 64 for text in long)
    assert any(text.startswith("Community acquired bacte") and text.endswith("on the left side") for text in meanings)
    assert "Probability of Normal, not calibrated" in meanings
    assert complaints(path) == []


def test_no_file_of_another_is_written_over(image: Path, tmp_path: Path) -> None:
    first = written(image)
    before = [path.read_bytes() for path in first]
    other = chest(tmp_path / "two" / "x.dcm")
    answer = answered(other)
    answer.heatmap = str(tmp_path / "x.heatmap.png")  # where the first one's picture was, moved away since
    with pytest.raises(writer.NoDicomAnswer, match="the answer of another image"):
        writer.write(other, answer)
    assert [path.read_bytes() for path in first] == before
    assert written(image) == first  # its own is written anew
    foreign = chest(first[1], seed=1).read_bytes()
    with pytest.raises(writer.NoDicomAnswer, match="not written here"):
        written(image)
    assert first[1].read_bytes() == foreign


def test_a_large_image_s_heatmap_is_as_large_as_a_screen(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MOST_SIDE", 48)
    heatmap = pydicom.dcmread(written(image)[0])
    assert (heatmap.Rows, heatmap.Columns) == (48, 48)


def test_what_is_de_identified_stays_so(tmp_path: Path) -> None:
    elements = {
        "PatientName": "", "PatientID": "anon-3", "PatientBirthDate": "", "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "profile of PS3.15", "BurnedInAnnotation": "NO",
        "InstitutionName": None, "ReferringPhysicianName": "", "AccessionNumber": "",
    }  # fmt: skip
    for path in written(chest(tmp_path / SECRET / "x.dcm", **elements)):
        made = pydicom.dcmread(path)
        for name in ("PatientIdentityRemoved", "DeidentificationMethod", "PatientName"):
            assert made[name].value == elements[name]
        assert not any(part.encode() in path.read_bytes() for part in SECRET.split("^"))
        assert complaints(path) == []


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SOPInstanceUID"])
def test_a_image_without_identifiers_has_no_dicom_answer_and_it_says_so(image: Path, missing: str) -> None:
    broken = pydicom.dcmread(image)
    broken[missing].value = ""
    broken.save_as(image, enforce_file_format=False)
    with pytest.raises(writer.NoDicomAnswer, match=f"has no {missing}"):
        writer.write(image, answered(image))


def test_no_damaged_header_is_more_than_a_line(image: Path) -> None:
    answer, whole = answered(image), image.read_bytes()
    draw, reasons = np.random.default_rng(0), []
    for _ in range(30):
        data = bytearray(whole[: draw.integers(132, 900)])
        for place in draw.integers(128, len(data), 3):
            data[place] = draw.integers(256)
        image.write_bytes(bytes(data))
        try:
            writer.write(image, answer)
        except writer.NoDicomAnswer as problem:
            reasons.append(str(problem))
    assert len(reasons) > 10
    assert not any(part in reason for reason in reasons for part in (*SECRET.split("^"), NUMBER, "\n"))


def test_a_study_folder_is_read_and_what_is_no_image_is_named(tmp_path: Path) -> None:
    study = generate_uid()
    first = chest(tmp_path / "s" / "DX1" / "1", study=study)
    second = chest(tmp_path / "s" / "DX1" / "2", study=study, seed=1)
    chest(tmp_path / "s" / "DX2" / "1", study=study, ViewPosition="LL")
    chest(tmp_path / "s" / "CT" / "1", study=study, Modality="CT")
    chest(tmp_path / "s" / "HAND" / "1", study=study, BodyPartExamined="HAND")
    written(second)
    (tmp_path / "s" / "readme.txt").write_text("x")
    (tmp_path / "s" / "loop").symlink_to(tmp_path / "s")
    index = chest(tmp_path / "s" / "DICOMDIR", study=study)
    found = studies_on_disk.expand([tmp_path / "s"])
    assert found.images == [first, second, first.with_name("2.heatmap.png")]
    assert found.images == studies_on_disk.expand([index]).images
    why = {Path(answer.image).relative_to(tmp_path).as_posix(): answer.left_out for answer in found.left_out}
    for name, words in {
        "s/DX2/1": "lateral", "s/CT/1": "CT", "s/HAND/1": "another body part", "s/DX1/2.heatmap.dcm": "no image",
        "s/DX1/2.finding.dcm": "no image", "s": "1 file that is no image",  # the text; the link is not followed
    }.items():  # fmt: skip
        assert words in why[name]
    assert all(len(terminal.describe_answer(answer)) == 1 for answer in found.left_out)


def test_what_may_not_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = chest(tmp_path / "s" / "1")
    monkeypatch.setattr(studies_on_disk.os, "access", lambda *_: False)
    monkeypatch.setattr(studies_on_disk.read, "is_dicom", lambda _: False)
    found = studies_on_disk.expand([tmp_path / "s"])
    assert (found.images, found.left_out) == ([image], [])

    def refuse(place: object) -> None:
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr(studies_on_disk.os, "scandir", refuse)
    with pytest.raises(UserError, match="s: cannot be read: permission denied"):
        studies_on_disk.expand([tmp_path / "s"])


def test_a_folder_of_no_image_or_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chest(tmp_path / "s" / "1", ViewPosition="LL")
    with pytest.raises(UserError, match=r"no image here: a lateral view"):
        studies_on_disk.expand([tmp_path / "s"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it is empty"):
        studies_on_disk.expand([tmp_path / "empty"])
    monkeypatch.setattr(studies_on_disk, "MOST_FILES", 1)
    chest(tmp_path / "s" / "2")
    with pytest.raises(UserError, match="more than 1 files"):
        studies_on_disk.expand([tmp_path / "s"])


def test_predict_answers_a_study_folder_with_dicom_objects(tmp_path: Path) -> None:
    run = small_runs.untrained(tmp_path / "run")
    chest(tmp_path / "s" / "1", seed=3)
    chest(tmp_path / "s" / "2", ViewPosition="RL")
    Image.fromarray(render("Normal", 0, 64).image).save(tmp_path / "plain.png")
    out = tmp_path / "out"
    answers = studies_on_disk.predict(run, [tmp_path / "s", tmp_path / "plain.png"], out=out, objects=True)
    image, plain, left_out = answers
    assert [complaints(Path(place)) for place in image.dicom] == [[], []]
    assert "not DICOM" in str(plain.no_dicom)
    assert "lateral" in str(left_out.left_out)
    assert str(image.predicted) in pydicom.dcmread(image.dicom[1]).to_json()
    assert "as DICOM" in "\n".join(terminal.describe_answer(image))
    assert sorted(p.suffix for p in out.iterdir()) == [".dcm", ".dcm", ".png", ".png"]
    studies_on_disk.write_table(answers, out)
    table = pd.read_csv(out / "predictions.csv")
    assert table["predicted"].fillna("").tolist() == [image.predicted, plain.predicted, ""]
    assert "lateral" in table["left_out"].iloc[2]
    studies_on_disk.write_table([ImageAnswer(image="=1+cmd.png", predicted="@x")], out)
    table = pd.read_csv(out / "predictions.csv")
    assert table[["image", "predicted"]].iloc[0].tolist() == ["'=1+cmd.png", "'@x"], "no spreadsheet runs a file's name"


def test_dicom_objects_that_a_full_disk_refuses_lose_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real = small_runs.untrained(tmp_path / "run"), writer.atomic_write
    both = [chest(tmp_path / name, seed=seed) for seed, name in enumerate(("a.dcm", "b.dcm"))]

    @contextlib.contextmanager
    def full(path: Path) -> Iterator[Path]:
        with real(path) as temporary:
            if path.name.startswith("a."):
                raise OSError(errno.ENOSPC, "No space left on device")
            yield temporary

    monkeypatch.setattr(writer, "atomic_write", full)
    first, second = studies_on_disk.predict(run, both, out=tmp_path / "out", objects=True)
    assert (bool(first.predicted), first.dicom) == (True, [])
    assert re.match(r"no DICOM answer: .*a\.heatmap\.dcm: cannot be written: no space left", str(first.error))
    assert terminal.describe_failures([first, second]) == f"{first.image}: {first.error}"
    assert len(second.dicom) == 2


def test_answers_beside_images_become_no_images_of_a_data_set(tmp_path: Path) -> None:
    run = small_runs.untrained(tmp_path / "run")
    place = tmp_path / "data" / "Train" / "Normal"
    for number in range(3):
        chest(place / f"IM{number:04}", seed=number)
    assert len(read_manifest(tmp_path / "data").table) == 3
    studies_on_disk.predict(run, [place / "IM0000"], objects=True, out=place)
    found = read_manifest(tmp_path / "data")
    assert sorted(Path(path).name for path in found.table["path"]) == ["IM0000", "IM0001", "IM0002"]
    assert sorted(Path(path).name.removeprefix("IM0000.") for path in found.skipped) == [
        "finding.dcm", "heatmap.dcm", "heatmap.png",
    ]  # fmt: skip
    assert set(found.skipped.values()) == {dicom_files.RESULT_REASON, read.HEATMAP_REASON}
    (told,) = (f for f in check_data(tmp_path / "data", probes=False, workers=1).findings if f.kind == "heatmaps")
    assert (told.severity, told.count) == ("note", 3)
    Image.fromarray(render("Normal", 9, 64).image).save(place / "thumb.png")  # an image hides no DICOM file
    chest(place / "1.2.840.7", seed=9)
    (place / "notes.txt").write_bytes((place / "IM0001").read_bytes())  # whoever called it so meant it
    chest(place / "DICOMDIR", seed=8)  # lists images, and is none
    assert len(read_manifest(tmp_path / "data").table) == 5


def test_an_answer_is_no_image_whatever_it_is_called(image: Path, tmp_path: Path) -> None:
    run = small_runs.untrained(tmp_path / "run")
    (answer,) = studies_on_disk.predict(run, [image], out=tmp_path / "out", objects=True)
    for number, path in enumerate(map(Path, [answer.heatmap, *answer.dicom])):
        copied = shutil.copy(path, tmp_path / f"image{number}{path.suffix}")
        (other,) = studies_on_disk.predict(run, [copied], out=tmp_path / "again")
        assert other.left_out in (read.HEATMAP_REASON, dicom_files.RESULT_REASON)
    assert not (tmp_path / "again").exists()
