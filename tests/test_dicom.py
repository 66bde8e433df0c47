"""DICOM images, against pydicom's own processing and on the files that pydicom ships."""

import os
import zlib
from pathlib import Path

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
    generate_uid,
)

LEVELS = np.arange(4096, dtype=np.uint16).reshape(64, 64)
SECRET = "Zaphod^Beeblebrox"


def image(path: Path, pixels: np.ndarray = LEVELS, syntax: str = ExplicitVRLittleEndian, **elements: object) -> Path:
    """Write a chest image of 12 bits; `elements` are set on it, or taken away where None."""
    ds = Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.PatientName, ds.PatientID, ds.Modality = SECRET, SECRET, "CR"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * pixels.dtype.itemsize, min(12, 8 * pixels.dtype.itemsize), 11
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def expected(path: Path) -> np.ndarray:
    """What pydicom shows, stretched over 0 to 255: for images that use the whole of their window."""
    ds = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds).astype(float)
    return (shown - shown.min()) / np.ptp(shown) * 255


WINDOW = {"WindowCenter": 2000, "WindowWidth": 1200}


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
    ],
)
def test_windows_and_rescale_agree_with_pydicom(tmp_path: Path, elements: dict[str, object]) -> None:
    path = image(tmp_path / "x.dcm", **elements)
    assert np.abs(read_image(path) - expected(path)).max() <= 0.51
    inverted = image(tmp_path / "y.dcm", PhotometricInterpretation="MONOCHROME1", **elements)
    assert np.array_equal(read_image(inverted), 255 - read_image(path))


def test_signed_pixels(tmp_path: Path) -> None:
    path = image(tmp_path / "x.dcm", (LEVELS.astype(np.int16) - 2048), WindowCenter=0, WindowWidth=1000)
    assert np.abs(read_image(path) - expected(path)).max() <= 0.51


def test_a_voi_table_wins_over_a_window(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 12]
    table.add_new(0x00283006, "US", (np.linspace(0, 1, 4096) ** 2 * 4095).round().astype(int).tolist())
    path = image(tmp_path / "x.dcm", VOILUTSequence=Sequence([table]), **WINDOW)
    assert np.abs(read_image(path) - expected(path)).max() <= 0.51
    assert np.abs(read_image(path).ravel()[2048] - 64) <= 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_voi_table_of_8_bits_on_pixels_of_12(packed: bool, syntax: str, tmp_path: Path) -> None:
    values = np.arange(4096) >> 4
    order = "<" if syntax == ExplicitVRLittleEndian else ">"
    data = (values[::2] + 256 * values[1::2] if packed else values).astype(f"{order}u2").tobytes()
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 8]
    table.add_new(0x00283006, "OW", data)
    pixels = LEVELS.astype(f"{order}u2")
    shown = read_image(image(tmp_path / "x.dcm", pixels, syntax, VOILUTSequence=Sequence([table]), **WINDOW))
    assert shown.ravel()[[0, 1000, 2000, 4000]].tolist() == [0, 62, 125, 250]


def test_a_voi_table_that_is_too_short_is_as_none(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 12]
    table.add_new(0x00283006, "OW", bytes(100))
    path = image(tmp_path / "x.dcm", VOILUTSequence=Sequence([table]), **WINDOW)
    assert np.array_equal(read_image(path), read_image(image(tmp_path / "y.dcm", **WINDOW)))


@pytest.mark.parametrize("name", ["VOILUTFunction", "RescaleSlope", "RescaleIntercept", "VOILUTSequence"])
def test_an_element_that_is_there_but_empty_is_as_none(name: str, tmp_path: Path) -> None:
    other = {"RescaleSlope": {"RescaleIntercept": -100}, "RescaleIntercept": {"RescaleSlope": 2}}.get(name, {})
    empty: dict[str, object] = {name: Sequence() if name == "VOILUTSequence" else "", **WINDOW, **other}
    assert np.array_equal(
        read_image(image(tmp_path / "x.dcm", **empty)), read_image(image(tmp_path / "y.dcm", **WINDOW))
    )


def test_a_rescale_that_falls_has_its_window_all_the_same(tmp_path: Path) -> None:
    falls: dict[str, object] = {"RescaleSlope": -1, "RescaleIntercept": 4095}
    whole = {"WindowCenter": 2048, "WindowWidth": 4096}
    shown = read_image(image(tmp_path / "x.dcm", **falls, **whole))
    assert np.abs(shown.astype(int) - read_image(image(tmp_path / "y.dcm", **falls))).max() <= 1
    assert shown.ravel()[0] == 255, "stored black is the brightest then"
    inverted = image(tmp_path / "z.dcm", PhotometricInterpretation="MONOCHROME1", **falls, **whole)
    assert np.array_equal(read_image(inverted), 255 - shown)


def test_a_window_of_no_width_is_as_none(tmp_path: Path) -> None:
    plain = read_image(image(tmp_path / "x.dcm"))
    assert np.array_equal(read_image(image(tmp_path / "y.dcm", WindowCenter=9, WindowWidth=0)), plain)


def test_padding_is_black_and_does_not_dim_the_rest(tmp_path: Path) -> None:
    pixels = np.full((8, 8), 1000, np.uint16)
    pixels[:, 4:] = 1100
    pixels[0] = 4000
    kept = read_image(image(tmp_path / "x.dcm", pixels, PixelPaddingValue=4000))
    assert (kept[0] == 0).all()
    assert (kept[1:, 4:] == 255).all()
    inverted = image(tmp_path / "y.dcm", pixels, PixelPaddingValue=4000, PhotometricInterpretation="MONOCHROME1")
    assert (read_image(inverted)[0] == 0).all()


def test_eight_bits_without_a_window_are_shown_as_they_are(tmp_path: Path) -> None:
    pixels = np.arange(30, 230, dtype=np.uint8).reshape(10, 20)
    assert np.array_equal(read_image(image(tmp_path / "x.dcm", pixels)), pixels)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"NumberOfFrames": 2}, "several frames"),
        ({"PixelData": None}, "without pixel data"),
        ({"Rows": None}, "damaged DICOM file: an image without an image"),
        ({"Rows": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.5"}, "^a DICOM file without an image"),
        ({"BitsAllocated": 32}, "not of 8 to 16 bits"),
        ({"HighBit": 15}, "do not lie in the lowest bits"),
        ({"Rows": 60000, "Columns": 60000}, "refused"),
        ({"ViewPosition": "LL"}, "lateral view"),
        ({"ViewPosition": "RL"}, "lateral view"),
        ({"PatientOrientation": ["A", "F"]}, "lateral view"),
        ({"SeriesDescription": "Thorax lat."}, "lateral view"),
        ({"Rows": 63}, ""),
        ({"ViewPosition": "PA"}, ""),
        ({"ViewPosition": "LLD"}, ""),
        ({"SeriesDescription": "PA and LAT"}, ""),
        ({"PatientOrientation": ["L", "F"]}, ""),
        ({"Rows": 65}, "damaged"),
    ],
)
def test_what_is_no_frontal_image_is_refused_in_words(tmp_path: Path, elements: dict[str, object], reason: str) -> None:
    path = image(tmp_path / "x.dcm", **elements)
    if not reason:  # a frontal image; bytes to spare are no damage
        assert read_image(path).shape == (elements.get("Rows", 64), 64)
        return
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_image(path)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


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
    for part in SECRET.split("^"):
        assert part not in said
        assert part.encode() not in written


SAME_IMAGE = ["MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_bigendian"]
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


@pytest.mark.parametrize("name", READ)
def test_shipped_files_of_the_usual_syntaxes_are_read(name: str) -> None:
    ds = pydicom.dcmread(shipped(name))
    grey = read_image(shipped(name))
    assert grey.shape == (ds.Rows, ds.Columns)
    assert np.ptp(grey) > 60


def test_lossless_syntaxes_give_the_same_pixels() -> None:
    for name in SAME_IMAGE:
        assert np.array_equal(read_image(shipped(name)), read_image(shipped("MR_small"))), name


@pytest.mark.parametrize("name", REFUSED)
def test_shipped_files_that_are_no_image_are_refused(name: str) -> None:
    with pytest.raises(UnreadableImage, match=REFUSED[name]):
        read_image(shipped(name))


def test_real_computed_radiographs_of_the_dicom_directory() -> None:
    folder = os.path.join(os.path.dirname(shipped("CT_small")), "dicomdirtests", "77654033")
    with pytest.raises(UnreadableImage, match="lateral view"):
        read_image(f"{folder}/CR1/6154")
    image = pydicom.dcmread(f"{folder}/CR2/6247")
    grey, stored = read_image(f"{folder}/CR2/6247"), image.pixel_array
    assert image.PhotometricInterpretation == "MONOCHROME1"
    assert np.corrcoef(grey.ravel(), stored.ravel())[0, 1] < -0.99
