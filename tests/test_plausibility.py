"""Could this be a chest image? Images pass; constants, noise, colour, inverted images and photographs are doubted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trustcxr.data.checks.check import check_data
from trustcxr.data.images import plausibility
from trustcxr.data.images.read import read_image
from trustcxr.data.phantom.render_image import render


def doubts(pixels: np.ndarray, colour: float = 0.0) -> set[str]:
    return set(plausibility.find_doubts(plausibility.make_thumbnail(pixels), colour))


def photograph(name: str) -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)


@pytest.mark.parametrize("seed", range(4))
def test_a_image_is_not_doubted_and_inverted_it_is(seed: int) -> None:
    image = render(("COVID-19", "Normal")[seed % 2], seed, 128).image
    assert doubts(image) == set()
    assert doubts(255 - image) == {"inverted"}


def test_what_is_no_image_is_doubted() -> None:
    random = np.random.default_rng(0)
    assert doubts(np.zeros((90, 70), np.uint8)) == {"constant"}
    assert doubts(random.integers(120, 126, (400, 400), np.uint8)) == {"constant"}
    assert doubts(random.integers(0, 255, (64, 64), np.uint8)) == {"noise"}
    assert "colour" in doubts(render("Normal", 1, 128).image, colour=40)
    across = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (96, 1))
    assert doubts(across) == {"unlike"}


def test_photographs_are_in_colour_and_laid_out_otherwise(tmp_path: Path) -> None:
    for name in ("china.jpg", "flower.jpg"):
        pixels = photograph(name)
        Image.fromarray(pixels).save(tmp_path / name)
        assert plausibility.measure_colour(tmp_path / name) > plausibility.COLOURED
        grey = np.asarray(Image.fromarray(pixels).convert("L"))
        assert doubts(grey) & {"unlike", "inverted"}
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


def test_few_real_images_are_doubted(real_data: Path) -> None:
    random = np.random.default_rng(1)
    for pattern in ("covidqu-mini/**/Lung Segmentation Data/**/images/*.png", "external-cxr/[CN]*/**/*.*g"):
        images = sorted(real_data.glob(pattern))
        chosen = [images[i] for i in random.permutation(len(images))[:150]]
        assert sum(bool(doubts(read_image(path))) for path in chosen) <= 6


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
