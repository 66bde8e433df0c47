"""Every kind of file that chest X-rays come in becomes the same 8-bit grey."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trustcxr.data.images import read
from trustcxr.data.images.greyscale import MAX_PIXELS, UnreadableImage
from trustcxr.data.images.read import read_image, read_image_at, read_mask, read_mask_at, resize_image, resize_square

GREY = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)
IMAGE = Image.fromarray(GREY)
TURNED, UPSIDE_DOWN = Image.Exif(), Image.Exif()
TURNED[0x0112], UPSIDE_DOWN[0x0112] = 6, 3  # 6: by 90 degrees clockwise


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


DEEP = {top: np.linspace(0, top, 240).round().astype(np.uint16).reshape(12, 20) for top in (1023, 4095, 16383, 65535)}
# Name, image, options, the grey that is read and how far from it at most.
FILES: list[tuple[str, Image.Image, dict[str, object], np.ndarray, float]] = [
    *((f"lossless.{end}", IMAGE, {}, GREY, 0) for end in ("png", "tif", "bmp", "gif", "pgm", "jp2")),
    ("lossless.webp", IMAGE.convert("RGB"), {"lossless": True}, GREY, 0),
    ("jpeg.png", IMAGE, {"format": "JPEG", "quality": 95}, GREY, 11),
    *((f"{mode}.png", IMAGE.convert(mode), {}, GREY, 1) for mode in ("RGB", "RGBA", "LA", "P")),
    ("CMYK.tif", IMAGE.convert("CMYK"), {}, GREY, 1),
    ("YCbCr.tif", IMAGE.convert("YCbCr"), {}, GREY, 2),
    ("red.png", Image.new("RGB", (20, 12), (255, 0, 0)), {}, np.full_like(GREY, 76), 0),  # luma
    ("white-at-zero.tif", Image.fromarray(GREY.astype(np.uint16) * 257), {"tiffinfo": {262: 0}}, 255 - GREY, 0),
    ("float.tif", Image.fromarray(GREY.astype(np.float32) / 255), {}, GREY, 0),
    *((f"{top}.png", Image.fromarray(grey), {}, grey * (255 / top), 0.5) for top, grey in DEEP.items()),
    *((f"{top}.tif", Image.fromarray(grey), {}, grey * (255 / top), 0.5) for top, grey in DEEP.items()),
    *(
        (name, IMAGE.convert("RGB"), {"exif": TURNED, "quality": 100, "lossless": True}, np.rot90(GREY, -1), 8)
        for name in ("turned.png", "turned.webp", "turned.jpg", "turned.tif")
    ),
]


@pytest.mark.parametrize(("name", "image", "options", "grey", "most"), FILES, ids=[name for name, *_ in FILES])
def test_every_kind_of_file_is_read_as_its_grey(
    name: str, image: Image.Image, options: dict[str, object], grey: np.ndarray, most: float, tmp_path: Path
) -> None:
    found = read_image(save(tmp_path / name, image, **options))
    assert found.shape == grey.shape
    assert np.abs(found - grey.astype(float)).max() <= most


def test_a_png_that_says_behind_its_pixels_how_it_lies_is_turned(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    image = np.arange(1200, dtype=np.uint16).reshape(40, 30).astype(np.uint8)
    path = save(tmp_path / "image.png", Image.fromarray(image))
    whole = path.read_bytes()
    path.write_bytes(whole[:-12] + chunk(b"eXIf", UPSIDE_DOWN.tobytes()[6:]) + whole[-12:])
    assert np.array_equal(read_image(path), image[::-1, ::-1])


def test_16_bits_a_colour_are_read_where_they_are_filled_and_else_refused(tmp_path: Path) -> None:
    """Pillow reads the higher byte of each alone: an image of 12 bits would be nearly black, without a word."""
    ramp = np.linspace(0, 1, 240).reshape(12, 20)
    for kind, channels in (("grey with transparency", 4), ("colour", 2), ("both", 6)):
        for top, reads in ((65535, True), (4095, False)):
            levels = np.rint(ramp * top).astype(np.uint16)
            opaque = np.full_like(levels, 65535)
            parts = {4: [levels, opaque], 2: [levels] * 3, 6: [*[levels] * 3, opaque]}[channels]
            path = png(tmp_path / "x.png", np.stack(parts, -1).astype(">u2"), colour=channels)
            if reads:
                assert np.abs(read_image(path) - 255 * ramp).max() <= 1, kind
            else:
                with pytest.raises(UnreadableImage, match="save it as 16-bit grey"):
                    read_image(path)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(path: Path, pixels: np.ndarray, *, colour: int) -> Path:
    """A PNG of 16 bits a channel, which Pillow cannot write; `colour`: its colour type."""
    head = struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, colour, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def test_plain_png_is_read_alike_without_libpng(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    pytest.importorskip("imagecodecs")
    random = np.random.default_rng(0)
    image = random.integers(0, 255, (40, 30)).astype(np.uint8)
    whole = save(tmp_path / "whole.png", Image.fromarray(image)).read_bytes()
    path, outcomes = tmp_path / "damaged.png", []
    decode, decoded = read._png_decoder(), []
    assert decode is not None
    decoders = (lambda: lambda data: decoded.append(decode(data)) or decoded[-1], lambda: None)
    for number in range(400):
        content, at = bytearray(whole), int(random.integers(8, len(whole)))
        if number % 4 == 0:
            del content[at:]
        elif number % 4 == 1:
            content[at] ^= int(random.integers(1, 256))
        elif number % 4 == 2:
            del content[at : at + int(random.integers(1, 50))]
        else:
            content[at:at] = random.bytes(int(random.integers(1, 50)))
        path.write_bytes(content if number else whole)
        found = []
        for decoder in decoders:
            monkeypatch.setattr(read, "_png_decoder", decoder)
            try:
                found.append(read_image(path).tobytes())
            except UnreadableImage as problem:
                found.append(str(problem).encode())
        assert found[0] == found[1], number
        outcomes.append(found[0])
        assert number or len(decoded) == 1, "the whole image is libpng's"
    assert outcomes[0] == image.tobytes()
    assert len(set(outcomes)) > 5
    assert not caplog.records


def test_a_png_that_says_more_than_pixels_is_left_to_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    monkeypatch.setattr(read, "_png_decoder", lambda: lambda data: decoded.append(len(data)) or GREY)
    notes = PngInfo()
    notes.add_text("Raw profile type exif", "x")
    read_image(save(tmp_path / "plain.png", IMAGE))
    assert len(decoded) == 1
    for number, options in enumerate([{"exif": UPSIDE_DOWN}, {"pnginfo": notes}, {"transparency": 3}]):
        read_image(save(tmp_path / f"{number}.png", IMAGE, **options))
    read_image(save(tmp_path / "colour.png", IMAGE.convert("RGB")))
    read_image(save(tmp_path / "deep.png", Image.fromarray(GREY.astype(np.uint16))))
    read_image(save(tmp_path / "grey.jpg", IMAGE))
    monkeypatch.setattr(read, "_MOST_BYTES", 40)
    read_image(tmp_path / "plain.png")
    assert len(decoded) == 1


def test_transparency_is_flattened_on_black(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 4), 255, np.uint8)
    pixels[:2, :, 3] = 0
    pixels[2, :, 3] = 128
    grey = read_image(save(tmp_path / "x.png", Image.fromarray(pixels)))
    assert (grey[:2] == 0).all()
    assert np.abs(grey[2].astype(int) - 128).max() <= 1
    assert (grey[3] == 255).all()
    palette = IMAGE.convert("P")
    path = save(tmp_path / "p.png", palette, transparency=int(np.asarray(palette)[0, 0]))
    assert read_image(path)[0, 0] == 0
    path = save(tmp_path / "l.png", IMAGE, transparency=200)
    assert read_image(path).ravel()[200:202].tolist() == [0, 201]


def test_bombs_pages_and_fractions_outside_their_range_are_refused(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 2
    bomb = save(tmp_path / "bomb.png", Image.new("1", (side, side)))
    assert bomb.stat().st_size < 100_000
    pages = save(tmp_path / "x.tif", IMAGE, save_all=True, append_images=[Image.fromarray(255 - GREY)])
    fractions = save(tmp_path / "y.tif", Image.fromarray(GREY.astype(np.float32) * -4))
    for path, said in ((bomb, "refused"), (pages, "several pages"), (fractions, "floating-point grey from -956")):
        with pytest.raises(UnreadableImage, match=said):
            read_image(path)


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    whole = save(tmp_path / "x.png", Image.effect_noise((64, 64), 90)).read_bytes()
    problems = {b"": "empty file", whole[:900]: "truncated", b"GIF? no": "not a supported image", whole[8:]: ""}
    for content, reason in problems.items():
        (tmp_path / "y.png").write_bytes(content)
        with pytest.raises(UnreadableImage, match=reason) as caught:
            read_image(tmp_path / "y.png")
        assert "\n" not in str(caught.value)
    with pytest.raises(UnreadableImage, match="no such file"):
        read_image(tmp_path / "z.png")


def test_masks_are_zero_and_one_and_refused_where_they_number_regions(tmp_path: Path) -> None:
    truth = GREY > 99
    for name, top in [("a.png", 255), ("b.png", 1)]:
        assert np.array_equal(read_mask(save(tmp_path / name, Image.fromarray(truth.astype(np.uint8) * top))), truth)
    path = save(tmp_path / "c.jpg", Image.fromarray(truth.astype(np.uint8) * 255), quality=90)
    assert (read_mask(path) == truth).mean() > 0.95
    assert read_mask(save(tmp_path / "d.png", Image.new("1", (5, 4)))).shape == (4, 5)
    regions = truth.astype(np.uint8)
    regions[:, :3] = 2
    with pytest.raises(UnreadableImage, match="a mask whose brightest level is 2: expected black and white"):
        read_mask(save(tmp_path / "x.png", Image.fromarray(regions)))


def test_reduction_is_anti_aliased() -> None:
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.abs(resize_image(checks, 16).astype(int) - 127).max() < 20


@pytest.mark.parametrize("resize", ["squeeze", "pad", "crop"])
def test_reading_at_a_size_is_reading_and_resizing(tmp_path: Path, resize: str) -> None:
    image = save(tmp_path / "x.png", IMAGE)
    assert np.array_equal(read_image_at(image, 9, resize), resize_image(GREY, 9, resize))
    for top in (1, 255):
        mask = save(tmp_path / "m.png", Image.fromarray((GREY > 99).astype(np.uint8) * top))
        resized = resize_square(Image.fromarray(read_mask(mask)), 9, resize, Image.Resampling.NEAREST)
        assert np.array_equal(read_mask_at(mask, 9, resize), np.asarray(resized))


def test_every_raw_sample_is_read(real_data: Path) -> None:
    files = [f for f in sorted((real_data / "raw-samples").rglob("*.*")) if f.parent.name != "raw-samples"]
    assert len(files) == 11
    for file in files:
        grey = read_image(file)
        with Image.open(file) as image:
            assert grey.shape == image.size[::-1]
        assert grey.dtype == np.uint8
        assert np.percentile(grey, 95) - np.percentile(grey, 5) > 40, f"{file.name} has no contrast"
