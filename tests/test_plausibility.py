"""Could this be an upright frontal chest image, and is it like those of the training? Others are doubted."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from safetensors import safe_open
from sklearn.datasets import load_sample_image

import served
from trustcxr.data.checks.check import check_data
from trustcxr.data.images import chest_network, plausibility
from trustcxr.data.images.chest_network import fit_components
from trustcxr.data.images.read import read_image
from trustcxr.data.phantom.render_image import render
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import Run, load_run
from trustcxr.explain import ood, predict
from trustcxr.explain.ood import OodModel


def doubts(pixels: np.ndarray, colour: float = 0.0) -> set[str]:
    return set(plausibility.find_doubts(plausibility.make_thumbnail(pixels)[None], [colour])[0])


def hand(side: int = 300) -> np.ndarray:
    """A hand as a radiograph shows it: soft tissue and bones, drawn otherwise than the fit's own."""
    picture = Image.new("L", (side, side), 10)
    pen = ImageDraw.Draw(picture)
    for grey, width in ((95, 34), (190, 12)):
        for k, (x, y) in enumerate(((60, 130), (105, 45), (150, 25), (195, 45), (235, 90))):
            pen.line((150, 200, x, y), fill=grey - 4 * k, width=width, joint="curve")
        pen.line((150, 200, 150, 300), fill=grey, width=2 * width)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(2)))


def page(side: int = 300) -> np.ndarray:
    """A page of text."""
    picture = Image.new("L", (side, side), 250)
    pen = ImageDraw.Draw(picture)
    for line in range(15):
        pen.text((20, 15 + 18 * line), "Findings: the heart is of normal size, the lungs are clear.", fill=20)
    return np.asarray(picture)


@pytest.mark.parametrize("seed", range(6))
def test_a_synthetic_image_is_not_doubted_but_turned_or_inverted_it_is(seed: int) -> None:
    image = render(("COVID-19", "Non-COVID", "Normal")[seed % 3], seed, 128).image
    assert doubts(image) == set()
    assert doubts(image[::-1]) == {"turned"}
    assert doubts(np.rot90(image)) == {"turned"}
    assert doubts(255 - image) == {"inverted"}


def test_what_is_no_chest_is_doubted() -> None:
    random = np.random.default_rng(0)
    assert doubts(np.zeros((90, 70), np.uint8)) == {"constant"}
    assert doubts(random.integers(120, 126, (400, 400), np.uint8)) == {"constant"}
    assert len(doubts(hand())) == 1
    assert len(doubts(page())) == 1
    assert doubts(random.integers(0, 255, (64, 64), np.uint8)) == {"other"}
    assert "colour" in doubts(render("Normal", 1, 128).image, colour=40)
    across = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (96, 1))
    assert len(doubts(across)) == 1


def test_a_photograph_is_in_colour_and_no_chest(tmp_path: Path) -> None:
    for name in ("china.jpg", "flower.jpg"):
        pixels = load_sample_image(name)
        Image.fromarray(pixels).save(tmp_path / name)
        assert plausibility.measure_colour(tmp_path / name) > plausibility.COLOURED
        grey = np.asarray(Image.fromarray(pixels).convert("L"))
        assert doubts(grey)
        Image.fromarray(grey).save(tmp_path / "grey.png")
        assert plausibility.measure_colour(tmp_path / "grey.png") == 0


def test_the_check_finds_something_on_photographs(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split, name, number in product(("Train", "Test"), ("china.jpg", "flower.jpg"), range(3)):
        path = tmp_path / "photos" / split / name[:5] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        top, left = random.integers(0, 100, 2)
        Image.fromarray(load_sample_image(name)[top : top + 300, left : left + 400]).save(path)
    found = check_data(tmp_path / "photos", probes=False, workers=1)
    (colour,) = (f for f in found.findings if f.kind == "image_colour")
    assert (colour.count, colour.severity) == (12, "warning")
    assert "in colour" in found.verdict


def thumbnails(paths: list[Path], count: int) -> np.ndarray:
    chosen = np.random.default_rng(1).permutation(len(paths))[:count]
    return np.stack([plausibility.make_thumbnail(read_image(paths[i])) for i in chosen])


def share_doubted(thumbs: np.ndarray) -> float:
    return float(np.mean([bool(found) for found in plausibility.find_doubts(thumbs, [0.0] * len(thumbs))]))


def test_real_images_pass_and_what_is_none_does_not(real_data: Path) -> None:
    """The figures are those of `benchmarks/chest_check.py`, on fewer images and with some room."""
    external = thumbnails(sorted(real_data.glob("external-cxr/[CN]*/*.png")), 200)
    assert share_doubted(external) <= 0.05
    val = thumbnails(sorted(real_data.glob("covidqu-mini/Lung*/**/Val/*/images/*.png")), 150)
    assert share_doubted(val) <= 0.05
    assert share_doubted(external[:, :, ::-1]) >= 0.9
    assert share_doubted(external[:, ::-1]) >= 0.97
    assert share_doubted(255 - external) >= 0.97
    assert share_doubted(thumbnails(sorted(real_data.glob("ct-mini/*/*.png")), 50)) == 1


def test_the_file_of_the_check_says_what_it_was_fitted_on() -> None:
    with safe_open(chest_network.FILE, "pt") as file:
        about = file.metadata()
    assert about["script"] == "benchmarks/chest_check.py"
    assert (Path(__file__).parents[1] / about["script"]).is_file()
    assert "covidqu-midi Train" in about["train"]
    assert "covidqu-midi Val" in about["validation"]
    assert chest_network.FILE.stat().st_size < 150_000


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"Modality": "CT"}, "a DICOM file of CT"),
        ({"BodyPartExamined": "HAND"}, "another body part"),
        ({"Modality": "JANE DOE"}, "a DICOM file of another modality"),
        ({}, None),
    ],
)
def test_a_dicom_file_of_another_kind_is_refused(tmp_path: Path, tags: dict[str, str], said: str | None) -> None:
    pytest.importorskip("pydicom")
    (tmp_path / "x.dcm").write_bytes(served.dicom(**tags))
    found = plausibility.find_wrong_kind(tmp_path / "x.dcm")
    assert (found is None) if said is None else (found is not None and said in found and "DOE" not in found)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(served.untrained_run(tmp_path_factory.mktemp("run")), on="cpu")


@pytest.fixture(scope="module")
def known(run: Run, radiographs: tuple) -> OodModel:
    return ood.fit(run, *radiographs)


def pixels(data: object) -> torch.Tensor:
    return torch.cat(list(ood.batches(data)))  # type: ignore[arg-type]


def test_95_percent_of_validation_images_are_accepted_and_pictures_of_other_things_are_not(
    run: Run, radiographs: tuple, known: OodModel
) -> None:
    accepted = (known.score(run, pixels(radiographs[1])) <= known.threshold).double().mean()
    assert 0.95 <= float(accepted) < 1
    foreign = {
        "noise": torch.rand(20, 1, 32, 32),
        "one grey level": torch.linspace(0, 1, 9)[:, None, None, None].expand(-1, 1, 32, 32),
        "on its side": pixels(radiographs[1]).rot90(1, (2, 3)),
    }
    for name, images in foreign.items():
        refused = (known.score(run, images) > known.threshold).double().mean()
        assert float(refused) >= 0.9, name


def test_a_image_has_one_score_alone_and_among_others(run: Run, radiographs: tuple, known: OodModel) -> None:
    images = pixels(radiographs[1])[:6]
    together = known.score(run, images)
    alone = torch.cat([known.score(run, image[None]) for image in images])
    assert together.numpy() == pytest.approx(alone.numpy(), abs=1e-4)
    assert not run.model.training


def test_each_view_sees_what_it_is_for(run: Run, radiographs: tuple, known: OodModel) -> None:
    brighter = (pixels(radiographs[1]) * 0.5 + 0.4).clamp(0, 1)
    views = known.views(run, brighter) - known.views(run, pixels(radiographs[1]))
    assert float(views[:, 1].abs().max()) < 0.5  # the image's own view is of even contrast
    assert float(views[:, 0].abs().mean()) > 1


def test_distances_are_those_of_the_density() -> None:
    unit = torch.randn(4000, 5, dtype=torch.float64)
    rows = unit * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.5])
    found = fit_components(rows, 3)
    assert float((found.distance(rows) / unit.square().sum(1)).mean()) == pytest.approx(1, abs=0.05)
    assert found.distance(found.mean[None]).item() == pytest.approx(0, abs=1e-9)


def test_it_is_stored_as_tensors_and_belongs_to_its_weights(run: Run, known: OodModel, tmp_path: Path) -> None:
    folder = served.untrained_run(tmp_path)
    ood.save(known, folder)
    (folder / "like-any-other").touch()
    modes = {(folder / name).stat().st_mode for name in ("ood.safetensors", "like-any-other")}
    assert len(modes) == 1, "whoever may read the run may read this too"
    again = ood.load(folder)
    assert again is not None
    x = torch.rand(3, 1, 32, 32)
    assert again.score(run, x).numpy() == pytest.approx(known.score(run, x).numpy())
    assert again.threshold == known.threshold
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b" ")
    with pytest.raises(UserError, match="other weights"):
        ood.load(folder)
    (folder / "ood.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not readable"):
        ood.load(folder)
    (folder / "ood.safetensors").unlink()
    assert ood.load(folder) is None


def test_predict_warns_of_what_is_unlike_and_poor(run: Run, known: OodModel, tmp_path: Path) -> None:
    ood.save(known, run.folder)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    small = np.asarray(Image.fromarray(noise).resize((20, 20)))
    paths = [tmp_path / f"{name}.png" for name in ("image", "noise", "small")]
    for path, content in zip(paths, (served.image(3, 64), *map(served.packed, (noise, small))), strict=True):
        path.write_bytes(content)
    answers = predict.predict(run.folder, paths, out=tmp_path / "out", anyway=True)
    radiograph, foreign, tiny = (" | ".join(answer.warnings) for answer in answers)
    assert "unlike" not in radiograph
    assert "unlike the images that the network was trained on" in foreign
    assert "grainy" in foreign
    assert "fewer than the network's 32" in tiny
    assert answers[1].rarer_than == 1.0
    json.dumps([answer.plain() for answer in answers])
    (run.folder / "ood.safetensors").unlink()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.full((1, 1, 32, 32), 0.5), "hardly any contrast"),
        ((torch.rand(1, 1, 32, 32) > 0.5).float(), "little between black and white"),
    ],
)
def test_poor_quality_is_said_in_words(known: OodModel, image: torch.Tensor, said: str) -> None:
    assert any(said in words for words in ood.describe_quality(known, image))


def test_two_classes_nearly_as_likely_are_a_border() -> None:
    assert predict._border({"a": 0.55, "b": 0.40, "c": 0.05}) == "near the decision border: a 55.0%, b 40.0%"
    assert predict._border({"a": 0.70, "b": 0.25, "c": 0.05}) is None


def test_dark_are_the_two_darkest_levels_and_bright_the_three_brightest() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1).expand(-1, 1, 8, 8)
    found = ood.signs(levels.float().div_(255))
    assert found[:, 2].nonzero().flatten().tolist() == [0, 1]
    assert found[:, 3].nonzero().flatten().tolist() == [253, 254, 255]
