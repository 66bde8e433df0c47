"""`predict`: whose heatmap is where, what is doubted or refused, its probabilities, and the memory that it takes."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

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
from trustcxr.storage.schemas import Calibration, RunDocument
from trustcxr.version import NOTICE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("run"))


@pytest.fixture
def radiographs(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a/x.png", "b/x.png", "b/x.jpg")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(render("Normal", seed, 200).image).save(tmp_path / name)
    return tmp_path


def test_images_of_one_name_have_heatmaps_of_their_own(run: Path, radiographs: Path) -> None:
    paths = [radiographs / name for name in ("a/x.png", "b/x.png", "b/x.jpg")]
    answers = predict.predict(run, paths, out=radiographs / "out")
    places = [answer.heatmap for answer in answers]
    assert len(set(places)) == 3
    before = {place: Path(place).read_bytes() for place in places}
    again = predict.predict(run, paths, out=radiographs / "out")
    assert [answer.heatmap for answer in again] == places
    assert {place: Path(place).read_bytes() for place in places} == before
    assert len({p.name for p in (radiographs / "out").iterdir()}) == 3


def test_nothing_is_written_beside_an_image(run: Path, radiographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (radiographs / "work").mkdir()
    monkeypatch.chdir(radiographs / "work")
    typed("predict", run, radiographs / "b")  # a folder of any images
    assert {path.name for path in (radiographs / "b").iterdir()} == {"x.png", "x.jpg"}
    out = radiographs / "work" / "trustcxr-out"
    assert {path.name for path in out.iterdir()} == {"x.heatmap.png", "x.png.heatmap.png", "predictions.csv"}
    table = pd.read_csv(out / "predictions.csv")
    assert table["predicted"].isin(load_run(run).classes).all()
    shares = [name for name in table if name.startswith("probability ")]
    assert table[shares].sum(axis=1).tolist() == pytest.approx([1, 1])
    assert table["doubts"].str.contains("fit-ood").all()


def test_a_network_of_one_cell_shows_the_map_of_an_earlier_stage() -> None:
    run = load_run("covid-robust")
    pixels = torch.from_numpy(render("COVID-19", 0, run.size).image / 255).float()[None, None]
    assert methods.cells(run.model, pixels, "gradcam") == (1, 1)
    names = ["gradcam", "layercam@-2", "gradcam++"]
    maps = counterfactual_view.make_maps(run, pixels, 0, names)
    assert [each.method for each in maps] == ["gradcam@-2", "layercam@-2", "gradcam++@-2"]
    assert [each.cells for each in maps] == [(2, 2)] * 3
    assert all(each.pixels.max() > 0 for each in maps)


def test_a_file_that_is_not_ours_is_never_overwritten(run: Path, radiographs: Path) -> None:
    out = radiographs / "out"
    out.mkdir()
    foreign = out / "x.heatmap.png"
    Image.new("L", (9, 9)).save(foreign)
    before = foreign.read_bytes()
    (answer,) = predict.predict(run, [radiographs / "a" / "x.png"], out=out)
    assert foreign.read_bytes() == before
    assert answer.heatmap != str(foreign)
    assert read.read_texts(Path(answer.heatmap))[read.SOURCE] == heatmap_io.fingerprint(radiographs / "a" / "x.png")


def test_no_heatmap_takes_the_place_of_another_runs(run: Path, radiographs: Path, tmp_path: Path) -> None:
    radiograph, other, out = radiographs / "a" / "x.png", tmp_path / "other", tmp_path / "out"
    shutil.copytree(run, other)
    (first,) = predict.predict(run, [radiograph], out=out)
    before = Path(first.heatmap).read_bytes()
    (second,) = predict.predict(other, [radiograph], out=out)
    assert second.heatmap == str(out / "x.png.heatmap.png")
    assert Path(first.heatmap).read_bytes() == before
    for folder, place in ((run / ".." / run.name, first), (other, second)):  # each finds its own again
        assert predict.predict(folder, [radiograph], out=out)[0].heatmap == place.heatmap


@pytest.mark.parametrize("layout", ["folders", "covidqu"])
def test_a_heatmap_beside_a_image_of_a_data_set_is_no_image_of_it(layout: str, run: Path, tmp_path: Path) -> None:
    inner = {"folders": "", "covidqu": "images/"}[layout]
    for seed, name in enumerate(("Normal", "COVID-19")):
        radiograph = tmp_path / "Test" / name / f"{inner}x.png"
        radiograph.parent.mkdir(parents=True)
        Image.fromarray(render("Normal", seed, 64).image).save(radiograph)
        foreign = radiograph.with_name("y.heatmap.png")  # of somebody else: an image as any other
        Image.fromarray(render("Normal", seed + 9, 64).image).save(foreign)
        if inner:
            shutil.copytree(radiograph.parent, radiograph.parents[1] / "lung masks")
    before = read_manifest(tmp_path, layout=layout)
    (answer,) = predict.predict(run, [radiograph], out=radiograph.parent)
    after = read_manifest(tmp_path, layout=layout)
    assert after.table.equals(before.table)
    assert after.skipped == {answer.heatmap: "a heatmap that predict wrote, and no image"}
    checked = check_data(tmp_path, probes=False, workers=1)
    (finding,) = (f for f in checked.findings if f.kind in ("heatmaps", "passed_over", "mask_missing"))
    assert (finding.kind, finding.severity, finding.count) == ("heatmaps", "note", 1)


def refusing_the_second(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The disk refuses the second picture that is saved."""
    real, saved = Image.Image.save, []

    def save(picture: Image.Image, to: Path, **options: object) -> None:
        saved.append(to)
        if len(saved) == 2:
            raise OSError(number, os.strerror(number), str(to))
        real(picture, to, **options)

    monkeypatch.setattr(Image.Image, "save", save)


@pytest.fixture
def three(radiographs: Path) -> list[Path]:
    for name in ("ro", "c"):
        shutil.copytree(radiographs / "a", radiographs / name)
    return [radiographs / name / "x.png" for name in ("a", "ro", "c")]


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_what_was_answered_is_printed_where_one_heatmap_cannot_be_written(
    words: list[str], run: Path, radiographs: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = radiographs / "out" / "x.png.heatmap.png"
    refusing_the_second(monkeypatch, errno.EACCES)
    done = typed("predict", run, *three, *words, "--out", second.parent, expect=2)
    assert done.stderr == (
        f"trustcxr: {three[1]}: no heatmap: {second}: cannot be written: permission denied; choose --out\n"
    )
    if words:
        images = json.loads(done.stdout)["images"]
        assert [bool(answer.get("probabilities")) for answer in images] == [True, False, True]
    else:
        assert all(f"{path}: " in done.stdout for path in three)
        assert f"{three[1]}: no heatmap: " in done.stdout
        assert done.stdout.endswith(f"{NOTICE}\n")


def test_a_place_that_cannot_be_written_is_told_before_anything_is_computed(
    run: Path, radiographs: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "predict_image", lambda *_, **__: pytest.fail("in vain"))
    (radiographs / "taken").touch()
    answers = predict.predict(run, three, out=radiographs / "taken" / "out")
    assert all("a file is where a folder should be; choose --out" in str(answer.error) for answer in answers)


def test_a_full_disk_ends_it_with_what_was_answered_before(
    run: Path, radiographs: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = radiographs / "out" / "x.png.heatmap.png"
    refusing_the_second(monkeypatch, errno.ENOSPC)
    done = typed("predict", run, *three, "--out", second.parent, expect=2)
    assert f"{three[0]}: " in done.stdout
    assert f"{three[2]}: no heatmap: not looked at, since the disk is full" in done.stdout
    assert done.stderr.startswith(f"trustcxr: {three[1]} and 1 more: no heatmap: {second}: cannot")
    assert "no space left on the disk" in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path.name for path in second.parent.iterdir()} == {"x.heatmap.png"}


class Claims(torch.nn.Module):
    """It answers every image alike, and has no slope: a faster copy that is not to be believed."""

    def __init__(self, answer: int, classes: int) -> None:
        super().__init__()
        self.logits = 5 * torch.nn.functional.one_hot(torch.tensor(answer), classes).float() - 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits + 0 * images.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("claims", [True, False])
def test_what_a_faster_copy_claims_is_asked_of_the_model_itself(
    claims: bool, run: Path, radiographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, radiograph = load_run(run, on="cpu"), predict.read_source(radiographs / "a" / "x.png").pixels
    plain = predict.predict_image(loaded, radiograph, epsilon=0.02)
    predicted, count = loaded.classes.index(plain.predicted), len(loaded.classes)
    copy = Claims((predicted + claims) % count, count)
    searched, pgd = [], predict.attacks.pgd

    def watched(model: torch.nn.Module, *given: object, **options: object) -> torch.Tensor:
        searched.append(model)
        return pgd(model, *given, **options)

    monkeypatch.setattr(predict.attacks, "pgd", watched)
    told = predict.predict_image(loaded, radiograph, epsilon=0.02, searched=copy)
    assert searched == ([copy, loaded.model] if claims else [copy]), "claimed in vain: the model itself is searched"
    assert told.survives == plain.survives or not claims


def test_the_picture_itself_says_that_it_is_not_for_diagnosis(run: Path, radiographs: Path) -> None:
    (answer,) = predict.predict(run, [radiographs / "a" / "x.png"], out=radiographs / "out")
    with Image.open(answer.heatmap) as picture:
        assert NOTICE in picture.info.values()
        assert picture.size == (200, 200)
        bottom = np.asarray(picture)[-20:]
    assert (bottom > 150).all(axis=2).sum() > 60  # white letters
    assert (bottom == 0).all(axis=2).sum() > 300  # on black


def test_a_run_that_learnt_from_padded_images_is_shown_padded_ones(run: Path) -> None:
    loaded = load_run(run)
    data = loaded.recipe.data.model_copy(update={"resize": "pad"})
    loaded.recipe = loaded.recipe.model_copy(update={"data": data})
    radiograph = render("COVID-19", 1, 200).image[:, 50:150]
    said = predict.predict_image(loaded, radiograph, epsilon=0.0)
    saliency = predict.add_doubts(said, loaded, None, predict.LoadedImage(radiograph), steps=3)
    assert said.method == saliency.method == "gradcam@-2"
    picture = predict.draw_heatmap(loaded, radiograph, saliency, radiograph.shape)
    square = torch.from_numpy(np.array(read.resize_image(radiograph, loaded.size, "pad"))).float().div(255)[None, None]
    with torch.inference_mode():
        wanted = loaded.model(square).softmax(1)[0]
    assert list(said.probabilities.values()) == pytest.approx(wanted.tolist(), abs=1e-5)
    assert picture.size == (100, 200)
    down, across = read.to_original(64, radiograph.shape, "pad")
    assert (down, across) == (slice(0, 64), slice(16, 48)), "padding is no part of what is drawn over the image"
    assert read.resize_image(radiograph, 64, "pad")[:, :15].max() == 0


def test_probabilities_are_calibrated_where_the_run_has_a_temperature(run: Path) -> None:
    radiograph = render("Normal", 1, 64).image
    plain = load_run(run)
    scaled = load_run(run)
    scaled.metrics = RunDocument(calibration=Calibration(temperature=4.0))
    before, after = (predict.predict_image(r, radiograph, epsilon=0.0) for r in (plain, scaled))
    assert (before.calibrated, after.calibrated) == (False, True)
    logits = np.log(list(before.probabilities.values()))
    assert list(after.probabilities.values()) == pytest.approx(softmax(logits[None] / 4)[0], abs=1e-6)
    words = "\n".join(terminal.describe_answer(after.model_copy(update={"image": "x"})))
    assert "calibrated on the run's validation images" in words
    turned = after.model_copy(update={"image": "x", "smallest_change": 6.1 / 255})
    line = "the smallest change found that turns the answer: 6.1 grey levels of 255 in each pixel, or less"
    assert line in "\n".join(terminal.describe_answer(turned))
    assert "the smallest change" not in words, "none was looked for"
    assert "not calibrated" in "\n".join(terminal.describe_answer(before.model_copy(update={"image": "x"})))


def test_what_is_no_image_is_answered_with_a_doubt_or_refused(run: Path, tmp_path: Path) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "black.png")
    colour = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    paths, out = [tmp_path / "black.png", tmp_path / "colour.png"], tmp_path / "out"
    for answer, why in zip(predict.predict(run, paths, out=out), ("nearly one grey level", "in colour"), strict=True):
        assert not answer.predicted
        assert not answer.probabilities
        assert str(answer.left_out) == f"no upright frontal chest radiograph: it is {why}. For a class: --anyway"
        assert len(terminal.describe_answer(answer)) == 1
    assert not out.exists()
    black, coloured = predict.predict(run, paths, out=out, anyway=True)
    assert black.predicted
    assert "no upright frontal chest radiograph: it is nearly one grey level" in black.warnings
    assert "no upright frontal chest radiograph: it is in colour" in coloured.warnings
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
def test_a_image_of_63_megapixels_takes_less_than_one_and_a_half_gigabytes(
    run: Path, tmp_path: Path, kind: str
) -> None:
    side = 7937
    grey = np.add.outer(np.arange(side), np.arange(side))
    pixels = {"grey": grey.astype(np.uint8), "deep": (grey * 2).astype(np.uint16)}
    image = Image.fromarray(pixels["deep" if kind == "deep" else "grey"])
    (image.convert("RGB") if kind == "colour" else image).save(tmp_path / "image.png", compress_level=1)
    command = [sys.executable, "-c", MEASURE, str(run), str(tmp_path / "image.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, error = json.loads(done.stdout)
    assert error is None
    assert peak < 1.5e9, f"{peak / 1e9:.2f} GB"
