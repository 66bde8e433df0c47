"""`predict`: whose heatmap is where, what is doubted or refused, its probabilities, and the memory that it takes."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from small_runs import untrained
from test_cli import run as typed
from trustcxr.data import read_manifest
from trustcxr.data.checks.check import check_data
from trustcxr.data.images import read
from trustcxr.data.phantom.render_image import render
from trustcxr.evaluation.trained_run import load_run
from trustcxr.explain import counterfactual_view, heatmap_io, methods, predict
from trustcxr.report import terminal
from trustcxr.statistics import softmax
from trustcxr.storage.schemas import Calibration, ImageAnswer, RunDocument
from trustcxr.version import NOTICE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("run"))


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Three images of one name."""
    paths = [tmp_path / name for name in ("a/x.png", "b/x.png", "b/x.jpg")]
    for seed, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(render("Normal", seed, 200).image).save(path)
    return paths


def test_images_of_one_name_have_heatmaps_of_their_own(run: Path, three: list[Path], tmp_path: Path) -> None:
    answers = predict.predict(run, three, out=tmp_path / "out")
    before = {answer.heatmap: Path(answer.heatmap).read_bytes() for answer in answers}
    assert len(before) == 3
    again = predict.predict(run, three, out=tmp_path / "out")
    assert [(answer.heatmap, Path(answer.heatmap).read_bytes()) for answer in again] == list(before.items())
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_nothing_is_written_beside_an_image(run: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(three[0].parent)
    answers = json.loads(typed("predict", run, three[1].parent, "--json").stdout)["images"]  # a folder of any images
    assert {path.name for path in three[1].parent.iterdir()} == {"x.png", "x.jpg"}
    out = three[0].parent / "trustcxr-out"
    assert {path.name for path in out.iterdir()} == {"x.heatmap.png", "x.png.heatmap.png", "predictions.csv"}
    table = pd.read_csv(out / "predictions.csv")
    assert table["doubts"].str.contains("fit-ood").all()
    for row, answer in zip(table.to_dict("records"), answers, strict=True):
        shares = {name: row[f"probability {name}"] for name in load_run(run).classes}
        assert shares == pytest.approx(answer["probabilities"])
        assert sum(shares.values()) == pytest.approx(1)
        assert row["predicted"] == answer["predicted"] == max(shares, key=shares.get)
        assert set(answer["survives"]) == {"fgsm", "pgd-20"}


def test_a_broken_image_is_told_beside_the_answers(run: Path, three: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken image.png"
    broken.write_bytes(three[0].read_bytes()[:200])
    out = ("--out", tmp_path / "out")
    done = typed("predict", run, three[0], broken, *out, expect=2)
    assert re.fullmatch(rf"trustcxr: {broken}: not read: .+ Give chest images as PNG, .+\n", done.stderr)
    for words in (NOTICE, f"{broken}: not read", f"{three[0]}: "):
        assert words in done.stdout
    (answer,) = json.loads(typed("predict", run, broken, "--json", *out, expect=2).stdout)["images"]
    assert answer["error"] in done.stderr


def test_a_network_of_one_cell_shows_the_map_of_an_earlier_stage() -> None:
    run = load_run("covid-robust")
    pixels = torch.from_numpy(render("COVID-19", 0, 32).image / 255).float()[None, None]
    assert methods.cells(run.model, pixels, "gradcam") == (1, 1)
    names = ["gradcam", "layercam@-2", "gradcam++"]
    maps = counterfactual_view.make_maps(run, pixels, 0, names)
    assert [each.method for each in maps] == ["gradcam@-2", "layercam@-2", "gradcam++@-2"]
    assert [each.cells for each in maps] == [(2, 2)] * 3
    assert all(each.pixels.max() > 0 for each in maps)


def test_no_heatmap_takes_the_place_of_another_file(run: Path, three: list[Path], tmp_path: Path) -> None:
    radiograph, other, out = three[0], shutil.copytree(run, tmp_path / "other"), tmp_path / "out"
    out.mkdir()
    Image.new("L", (9, 9)).save(out / "x.heatmap.png")
    (first,) = predict.predict(other, [radiograph], out=out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert sorted(map(str, before)) == [str(out / "x.heatmap.png"), first.heatmap]
    (second,) = predict.predict(run, [radiograph], out=out)
    assert {path: path.read_bytes() for path in out.iterdir() if str(path) != second.heatmap} == before
    for folder, answer in ((run / ".." / run.name, second), (other, first)):  # each finds its own again
        assert read.read_texts(Path(answer.heatmap))[read.SOURCE] == heatmap_io.fingerprint(radiograph)
        assert predict.predict(folder, [radiograph], out=out)[0].heatmap == answer.heatmap


def test_a_heatmap_beside_an_image_of_a_data_set_is_no_image_of_it(run: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("Normal", "COVID-19")):
        radiograph = tmp_path / "Test" / name / "images" / "x.png"
        radiograph.parent.mkdir(parents=True)
        foreign = radiograph.with_name("y.heatmap.png")  # of somebody else: an image as any other
        for path, number in ((radiograph, seed), (foreign, seed + 9)):
            Image.fromarray(render("Normal", number, 64).image).save(path)
        shutil.copytree(radiograph.parent, radiograph.parents[1] / "lung masks")
    before = read_manifest(tmp_path, layout="covidqu")
    (answer,) = predict.predict(run, [radiograph], out=radiograph.parent)
    after = read_manifest(tmp_path, layout="covidqu")
    assert after.table.equals(before.table)
    assert after.skipped == {answer.heatmap: "a heatmap that predict wrote, and no image"}
    checked = check_data(tmp_path, probes=False, workers=1)
    (finding,) = (f for f in checked.findings if f.kind in ("heatmaps", "passed_over", "mask_missing"))
    assert (finding.kind, finding.severity, finding.count) == ("heatmaps", "note", 1)


def refusing_the_second(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> Path:
    """The path of the second picture that is saved below the folder: the disk refuses it."""
    real, saved = Image.Image.save, []

    def save(picture: Image.Image, to: Path, **options: object) -> None:
        saved.append(to)
        if len(saved) == 2:
            raise OSError(number, os.strerror(number), str(to))
        real(picture, to, **options)

    monkeypatch.setattr(Image.Image, "save", save)
    return folder / "out" / "x.png.heatmap.png"


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_answers_are_printed_without_a_heatmap(
    words: list[str], run: Path, three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = refusing_the_second(tmp_path, monkeypatch, errno.EACCES)
    done = typed("predict", run, *three, *words, "--out", second.parent, expect=2)
    why = f"{three[1]}: no heatmap: {second}: cannot be written: permission denied; choose --out"
    assert done.stderr == f"trustcxr: {why}\n"
    if words:
        images = json.loads(done.stdout)["images"]
        assert [bool(answer.get("probabilities")) for answer in images] == [True, False, True]
    else:
        assert all(f"{path}: " in done.stdout for path in three)
        assert f"{three[1]}: no heatmap: " in done.stdout
        assert done.stdout.endswith(f"{NOTICE}\n")


def test_a_taken_folder_is_told_at_once(run: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "predict_image", lambda *_, **__: pytest.fail("in vain"))
    answers = predict.predict(run, three, out=three[0] / "out")
    assert all("a file is where a folder should be; choose --out" in str(answer.error) for answer in answers)


def test_a_full_disk_ends_it(run: Path, three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = refusing_the_second(tmp_path, monkeypatch, errno.ENOSPC)
    done = typed("predict", run, *three, "--out", second.parent, expect=2)
    assert f"{three[0]}: " in done.stdout
    assert f"{three[2]}: no heatmap: not looked at, since the disk is full" in done.stdout
    assert done.stderr.startswith(f"trustcxr: {three[1]} and 1 more: no heatmap: {second}: cannot")
    assert "no space left on the disk" in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path.name for path in second.parent.iterdir()} == {"x.heatmap.png"}


@pytest.mark.parametrize("claims", [True, False])
def test_claims_of_a_faster_copy_are_checked(claims: bool, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, radiograph = load_run(run, on="cpu"), render("Normal", 0, 200).image
    plain = predict.predict_image(loaded, radiograph, epsilon=0.02)
    predicted, count = loaded.classes.index(plain.predicted), len(loaded.classes)
    copy = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(loaded.size**2, count))  # answers all images alike
    torch.nn.init.zeros_(copy[1].weight)
    copy[1].bias.data = 5 * torch.eye(count)[(predicted + claims) % count]
    watched = Mock(wraps=predict.attacks.pgd)
    monkeypatch.setattr(predict.attacks, "pgd", watched)
    told = predict.predict_image(loaded, radiograph, epsilon=0.02, searched=copy)
    searched = [call.args[0] for call in watched.call_args_list]
    assert searched == ([copy, loaded.model] if claims else [copy]), "claimed in vain: the model itself is searched"
    assert told.survives == plain.survives or not claims


def test_the_picture_itself_says_that_it_is_not_for_diagnosis(run: Path, three: list[Path], tmp_path: Path) -> None:
    (answer,) = predict.predict(run, three[:1], out=tmp_path / "out")
    with Image.open(answer.heatmap) as picture:
        assert NOTICE in picture.info.values()
        assert picture.size == (200, 200)
        bottom = np.asarray(picture)[-20:]
    assert (bottom > 150).all(axis=2).sum() > 60  # white letters
    assert (bottom == 0).all(axis=2).sum() > 300  # on black


def test_a_run_that_learnt_from_padded_images_is_shown_padded_ones(run: Path) -> None:
    loaded = load_run(run)
    padded = {"data": loaded.recipe.data.model_copy(update={"resize": "pad"})}
    loaded.recipe = loaded.recipe.model_copy(update=padded)
    radiograph = render("COVID-19", 1, 200).image[:, 50:150]
    said = predict.predict_image(loaded, radiograph, epsilon=0.0)
    saliency = predict.add_doubts(said, loaded, None, predict.LoadedImage(radiograph), steps=3)
    assert said.method == saliency.method == "gradcam@-2"
    picture = predict.draw_heatmap(loaded, radiograph, saliency, radiograph.shape)
    square = torch.from_numpy(np.array(read.resize_image(radiograph, loaded.size, "pad"))).float().div(255)[None, None]
    wanted = loaded.model(square).softmax(1)[0]
    assert list(said.probabilities.values()) == pytest.approx(wanted.tolist(), abs=1e-5)
    assert picture.size == (100, 200)
    down, across = read.to_original(64, radiograph.shape, "pad")
    assert (down, across) == (slice(0, 64), slice(16, 48)), "padding is no part of what is drawn over the image"
    assert read.resize_image(radiograph, 64, "pad")[:, :15].max() == 0


def test_probabilities_are_calibrated_where_the_run_has_a_temperature(run: Path) -> None:
    radiograph = render("Normal", 1, 64).image
    plain, scaled = load_run(run), load_run(run)
    scaled.metrics = RunDocument(calibration=Calibration(temperature=4.0))
    before, after = (predict.predict_image(r, radiograph, epsilon=0.0) for r in (plain, scaled))
    assert (before.calibrated, after.calibrated) == (False, True)
    logits = np.log(list(before.probabilities.values()))
    assert list(after.probabilities.values()) == pytest.approx(softmax(logits[None] / 4)[0], abs=1e-6)

    def words(answer: ImageAnswer, **fields: object) -> str:
        return "\n".join(terminal.describe_answer(answer.model_copy(update={"image": "x"} | fields)))

    assert "not calibrated" in words(before)
    assert "calibrated on the run's validation images" in words(after)
    assert "the smallest change" not in words(after), "none was looked for"
    line = "the smallest change found that turns the answer: 6.1 grey levels of 255 in each pixel, or less"
    assert line in words(after, smallest_change=6.1 / 255)


def test_what_is_no_image_is_answered_with_a_doubt_or_refused(run: Path, tmp_path: Path) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "black.png")
    colour = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    paths, out = [tmp_path / "black.png", tmp_path / "colour.png"], tmp_path / "out"
    for answer, why in zip(predict.predict(run, paths, out=out), ("nearly one grey level", "in colour"), strict=True):
        assert (answer.predicted, answer.probabilities) == ("", {})
        assert str(answer.left_out) == f"no upright frontal chest radiograph: it is {why}. For a class: --anyway"
        assert len(terminal.describe_answer(answer)) == 1
    assert not out.exists()
    black, coloured = predict.predict(run, paths, out=out, anyway=True)
    assert black.predicted
    for answer, why in ((black, "nearly one grey level"), (coloured, "in colour")):
        assert f"no upright frontal chest radiograph: it is {why}" in answer.warnings
    assert "REASONS NOT TO RELY" in "\n".join(terminal.describe_answer(black))
    pydicom = pytest.importorskip("pydicom")
    (slice_of,) = predict.predict(run, [Path(pydicom.data.get_testdata_file("CT_small.dcm", download=False))], out=out)
    assert slice_of.error == "a DICOM file of CT: expected a chest image (CR or DX)"


MEASURE = """
import json, resource, sys
from pathlib import Path
from trustcxr.explain import predict
(answer,) = predict.predict(Path(sys.argv[1]), [Path(sys.argv[2])], out=Path(sys.argv[2]).parent, anyway=True)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([int(peak.split()[1]) * 1024, answer.error]))
"""


@pytest.mark.full
@pytest.mark.parametrize("kind", ["grey", "deep", "colour"])
def test_an_image_of_63_megapixels_takes_less_than_1_5_gigabytes(run: Path, tmp_path: Path, kind: str) -> None:
    grey = np.add.outer(np.arange(7937), np.arange(7937))
    image = Image.fromarray((grey * 2).astype(np.uint16) if kind == "deep" else grey.astype(np.uint8))
    (image.convert("RGB") if kind == "colour" else image).save(tmp_path / "image.png", compress_level=1)
    command = [sys.executable, "-c", MEASURE, str(run), str(tmp_path / "image.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, error = json.loads(done.stdout)
    assert error is None
    assert peak < 1.5e9, f"{peak / 1e9:.2f} GB"
