"""DICOM images, against pydicom's own processing and on the files that pydicom ships."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trustcxr.data import load_dataset
from trustcxr.data.images import plausibility
from trustcxr.data.images.greyscale import UnreadableImage
from trustcxr.data.images.read import read_image

pydicom = pytest.importorskip("pydicom")
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_voi_lut  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
)

from dicom_images import NUMBER, SECRET, make_image  # noqa: E402

LEVELS = np.arange(4096, dtype=np.uint16).reshape(64, 64)
Reader, Elements = Callable[..., np.ndarray], dict[str, Any]
WINDOW = {"WindowCenter": 2000, "WindowWidth": 1200}


def image(path: Path, pixels: np.ndarray = LEVELS, syntax: str = ExplicitVRLittleEndian, **elements: object) -> Path:
    make_image(pixels, syntax, **elements).save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def shown(tmp_path: Path) -> Reader:
    """Write an image with the elements, and read it."""
    return lambda *pixels, **elements: read_image(image(tmp_path / "x.dcm", *pixels, **elements))


def expected(path: Path) -> np.ndarray:
    """What pydicom shows, stretched over 0 to 255: for images that use the whole of their window."""
    ds = pydicom.dcmread(path)
    grey = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds).astype(float)
    return (grey - grey.min()) / np.ptp(grey) * 255


def voi_table(bits: int, kind: str, data: object) -> Sequence:
    table = Dataset()
    table.LUTDescriptor = [4096, 0, bits]
    table.add_new(0x00283006, kind, data)
    return Sequence([table])


@pytest.mark.parametrize(
    "elements",
    [
        {},
        WINDOW,
        WINDOW | {"VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 2000, "WindowWidth": 400, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": [2000, 100], "WindowWidth": [1200, 50]},
        {"RescaleSlope": 0.5, "RescaleIntercept": -100, "WindowCenter": 600, "WindowWidth": 500},
        {"RescaleSlope": 2, "RescaleIntercept": -1024},
        {"pixels": LEVELS.astype(np.int16) - 2048, "WindowCenter": 0, "WindowWidth": 1000},
        WINDOW | {"VOILUTSequence": voi_table(12, "US", [n * n // 4095 for n in range(4096)])},  # before the window
    ],
)
def test_grey_levels_are_those_of_pydicom(shown: Reader, tmp_path: Path, elements: Elements) -> None:
    plain = shown(**elements)
    assert np.abs(plain - expected(tmp_path / "x.dcm")).max() <= 0.51
    assert np.array_equal(shown(PhotometricInterpretation="MONOCHROME1", **elements), 255 - plain)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_voi_table_of_8_bits_on_pixels_of_12(packed: bool, syntax: str, shown: Reader) -> None:
    values = np.arange(4096) >> 4
    order = "<" if syntax == ExplicitVRLittleEndian else ">"
    data = (values[::2] + 256 * values[1::2] if packed else values).astype(f"{order}u2").tobytes()
    grey = shown(LEVELS.astype(f"{order}u2"), syntax, VOILUTSequence=voi_table(8, "OW", data), **WINDOW)
    assert grey.ravel()[[0, 1000, 2000, 4000]].tolist() == [0, 62, 125, 250]


@pytest.mark.parametrize(
    ("elements", "as_if"),
    [
        (WINDOW | {"VOILUTSequence": voi_table(12, "OW", bytes(100))}, WINDOW),  # too short
        (WINDOW | {"VOILUTSequence": Sequence()}, WINDOW),
        (WINDOW | {"VOILUTFunction": ""}, WINDOW),
        (WINDOW | {"RescaleSlope": "", "RescaleIntercept": -100}, WINDOW),
        (WINDOW | {"RescaleSlope": 2, "RescaleIntercept": ""}, WINDOW),
        ({"WindowCenter": 9, "WindowWidth": 0}, {}),
    ],
)
def test_an_empty_element_is_as_none(shown: Reader, elements: Elements, as_if: Elements) -> None:
    assert np.array_equal(shown(**elements), shown(**as_if))


def test_a_rescale_that_falls_has_its_window_all_the_same(shown: Reader) -> None:
    falls: Elements = {"RescaleSlope": -1, "RescaleIntercept": 4095}
    whole = falls | {"WindowCenter": 2048, "WindowWidth": 4096}
    grey = shown(**whole)
    assert np.abs(grey.astype(int) - shown(**falls)).max() <= 1
    assert grey.ravel()[0] == 255, "stored black is the brightest then"
    assert np.array_equal(shown(PhotometricInterpretation="MONOCHROME1", **whole), 255 - grey)


def test_without_a_window_8_bits_stay_and_padding_is_black_and_dims_nothing(shown: Reader) -> None:
    pixels = np.arange(30, 230, dtype=np.uint8).reshape(10, 20)
    assert np.array_equal(shown(pixels), pixels)
    pixels = np.full((8, 8), 1000, np.uint16)
    pixels[:, 4:] = 1100
    pixels[0] = 4000
    grey = shown(pixels, PixelPaddingValue=4000)
    assert (grey[0] == 0).all()
    assert (grey[1:, 4:] == 255).all()
    assert (shown(pixels, PixelPaddingValue=4000, PhotometricInterpretation="MONOCHROME1")[0] == 0).all()


KINDS: dict[str, list[Elements]] = {
    "several frames": [{"NumberOfFrames": 2}],
    "without pixel data": [{"PixelData": None}],
    "damaged DICOM file: an image without an image": [{"Rows": None}],
    "^a DICOM file without an image": [{"Rows": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.5"}],
    "not of 8 to 16 bits": [{"BitsAllocated": 32}],
    "do not lie in the lowest bits": [{"HighBit": 15}],
    "refused": [{"Rows": 60000, "Columns": 60000}],
    "lateral view": [
        {"ViewPosition": "LL"}, {"ViewPosition": "RL"}, {"PatientOrientation": ["A", "F"]},
        {"SeriesDescription": "Thorax lat."},
    ],
    "": [
        {"Rows": 63}, {"ViewPosition": "PA"}, {"ViewPosition": "LLD"}, {"SeriesDescription": "PA and LAT"},
        {"PatientOrientation": ["L", "F"]},
    ],
    "damaged": [{"Rows": 65}],
}  # fmt: skip


@pytest.mark.parametrize(("elements", "reason"), [(case, why) for why, cases in KINDS.items() for case in cases])
def test_what_is_no_frontal_image_is_refused_in_words(tmp_path: Path, elements: dict[str, object], reason: str) -> None:
    path = image(tmp_path / "x.dcm", **elements)
    if not reason:  # a frontal image; bytes to spare are no damage
        assert read_image(path).shape == (elements.get("Rows", 64), 64)
        return
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_image(path)
    assert not any(part in str(caught.value) for part in (SECRET, NUMBER, "\n"))


@pytest.mark.slow
def test_an_inflating_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image(tmp_path / "x.dcm", syntax=DeflatedExplicitVRLittleEndian)
    assert read_image(path).shape == (64, 64)
    data = path.read_bytes()
    meta = 144 + int.from_bytes(data[140:144], "little")
    squeeze = zlib.compressobj(9, wbits=-15)
    bomb = b"".join(squeeze.compress(bytes(1 << 24)) for _ in range(20)) + squeeze.flush()
    honest, unsaid, lying = data[:meta], data[:132] + data[144:meta], data[:140] + bytes(4) + data[144:meta]
    inflated: list[object] = []
    monkeypatch.setattr(pydicom, "dcmread", lambda file, **_: inflated.append(file))
    for head, why in ((honest, "inflates"), (unsaid, "where its content begins"), (lying, "where its content begins")):
        path.write_bytes(head + bomb)
        assert path.stat().st_size < 1 << 20
        with pytest.raises(UnreadableImage, match=why):
            read_image(path)
        assert plausibility.find_wrong_kind(path) is None
    assert inflated == []


def test_identifiers_reach_no_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d/a").mkdir(parents=True)
    image(tmp_path / "d/a/1.dcm")
    image(tmp_path / "d/a/2.dcm", NumberOfFrames=3)
    damaged = image(tmp_path / "d/a/3.dcm", StudyDate="not a date")
    damaged.write_bytes(damaged.read_bytes()[:700])
    data = load_dataset(tmp_path / "d", size=32, cache=tmp_path / "cache")
    assert len(data) == 1
    assert len(data.skipped) == 2
    written = b"".join(f.read_bytes() for f in (tmp_path / "cache").rglob("*") if f.is_file())
    said = "".join(capfd.readouterr()) + data.skipped.to_csv() + data.table.to_csv()
    for part in (*SECRET.split("^"), NUMBER):
        assert part not in said
        assert part.encode() not in written


READ = [
    "693_J2KI", "JPEG2000", "JPGExtended", "JPEGLSNearLossless_08", "JPEGLSNearLossless_16", "SC_rgb_jpeg_gdcm",
    "SC_rgb_rle_16bit", "SC_rgb_jpeg_dcmtk", "SC_rgb_gdcm_KY", "SC_ybr_full_422_uncompressed", "GDCMJ2K_TextGBR",
    "image_dfl", "CT_small", "ExplVR_BigEnd", "examples_palette", "examples_jpeg2k", "examples_overlay",
    "J2K_pixelrep_mismatch",
]  # fmt: skip
REFUSED = {
    "SC_rgb_rle_2frame": "several frames",
    "liver_1frame": "8 to 16 bits",
    "rtplan": "without an image",
    "waveform_ecg": "without an image",
    "MR_truncated": "damaged",
    "JPEG-lossy": "no decoder",
    "JPEG2000-embedded-sequence-delimiter": "not of the size it states",
}


def shipped(name: str) -> str:
    path = get_testdata_file(f"{name}.dcm", download=False)
    if path is None:
        pytest.skip(f"this pydicom does not ship {name}")
    return str(path)


@pytest.mark.parametrize("name", [*READ, *REFUSED])
def test_shipped_files_are_read_or_refused(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(UnreadableImage, match=REFUSED[name]):
            read_image(shipped(name))
        return
    ds, grey = pydicom.dcmread(shipped(name)), read_image(shipped(name))
    assert grey.shape == (ds.Rows, ds.Columns)
    assert np.ptp(grey) > 60


@pytest.mark.parametrize("kind", ["RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian"])
def test_lossless_syntaxes_give_the_same_pixels(kind: str) -> None:
    assert np.array_equal(read_image(shipped(f"MR_small_{kind}")), read_image(shipped("MR_small")))


def test_real_computed_radiographs_of_the_dicom_directory() -> None:
    folder = os.path.join(os.path.dirname(shipped("CT_small")), "dicomdirtests", "77654033")
    with pytest.raises(UnreadableImage, match="lateral view"):
        read_image(f"{folder}/CR1/6154")
    image = pydicom.dcmread(f"{folder}/CR2/6247")
    grey, stored = read_image(f"{folder}/CR2/6247"), image.pixel_array
    assert image.PhotometricInterpretation == "MONOCHROME1"
    assert np.corrcoef(grey.ravel(), stored.ravel())[0, 1] < -0.99
