"""Could this be an upright frontal chest image? Others are doubted: turned, mirrored, inverted, photographs, hands."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from safetensors import safe_open

from trustcxr.data.checks.check import check_data
from trustcxr.data.images import chest_network, plausibility
from trustcxr.data.images.read import read_image
from trustcxr.data.phantom.render_image import render


def doubts(pixels: np.ndarray, colour: float = 0.0) -> set[str]:
    return set(plausibility.find_doubts(plausibility.make_thumbnail(pixels)[None], [colour])[0])


def photograph(name: str) -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)


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
        pixels = photograph(name)
        Image.fromarray(pixels).save(tmp_path / name)
        assert plausibility.measure_colour(tmp_path / name) > plausibility.COLOURED
        grey = np.asarray(Image.fromarray(pixels).convert("L"))
        assert doubts(grey)
        Image.fromarray(grey).save(tmp_path / "grey.png")
        assert plausibility.measure_colour(tmp_path / "grey.png") == 0


def test_the_check_finds_something_on_photographs(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("Train", "Test"):
        for name in ("china.jpg", "flower.jpg"):
            folder = tmp_path / "photos" / split / name[:5]
            folder.mkdir(parents=True)
            pixels = photograph(name)
            for i in range(3):
                top, left = random.integers(0, 100, 2)
                Image.fromarray(pixels[top : top + 300, left : left + 400]).save(folder / f"{i}.jpg")
    found = check_data(tmp_path / "photos", probes=False, workers=1)
    kinds = {f.kind: f for f in found.findings}
    assert kinds["image_colour"].count == 12
    assert kinds["image_colour"].severity == "warning"
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


def dicom(path: Path, **tags: str) -> Path:
    pydicom = pytest.importorskip("pydicom")
    source = pydicom.data.get_testdata_file("CT_small.dcm", download=False)
    header = pydicom.dcmread(source)
    for tag, value in tags.items():
        setattr(header, tag, value)
    header.save_as(path)
    return path


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({}, "a DICOM file of CT"),
        ({"Modality": "DX", "BodyPartExamined": "HAND"}, "another body part"),
        ({"Modality": "JANE DOE"}, "a DICOM file of another modality"),
        ({"Modality": "DX", "BodyPartExamined": "CHEST"}, None),
    ],
)
def test_a_dicom_file_of_another_kind_is_refused(tmp_path: Path, tags: dict[str, str], said: str | None) -> None:
    found = plausibility.find_wrong_kind(dicom(tmp_path / "x.dcm", **tags))
    assert (found is None) if said is None else (found is not None and said in found and "DOE" not in found)
