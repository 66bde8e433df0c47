"""Damaged and hostile files: each is read or refused in words; none crashes, hangs or exhausts memory."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SECONDS, MEMORY, RESIDENT = 20, 3 << 30, 1 << 30  # for one file; bytes of address space for the reader, and at once

# Reads each file named on stdin, in a process of its own that may be killed by what it reads.
READER = """
import json, resource, signal, sys
import numpy as np
from trustcxr.data import UnreadableImage, read_image
seconds, memory = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
for line in sys.stdin:
    signal.alarm(seconds)
    try:
        grey = read_image(line.strip())
        assert grey.dtype == np.uint8 and grey.ndim == 2 and grey.size > 0
        answer = "read"
    except UnreadableImage as fault:
        assert str(fault) and "\\n" not in str(fault)
        answer = str(fault)
    print(json.dumps([line.strip(), answer]), flush=True)
# Not ru_maxrss, which a process inherits from the one that started it.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps(["peak", int(peak.split()[1]) * 1024]))
"""


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def seeds() -> list[bytes]:
    """Small sound files of every format that is read: those that Pillow writes, and DICOM of every syntax."""
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8) + rng.integers(0, 30, (48, 64), dtype=np.uint8)
    grey = Image.fromarray(smooth)
    deep = Image.fromarray(smooth.astype(np.uint16) * 200)
    files = [encoded(grey, f) for f in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")]
    files += [encoded(deep, "PNG"), encoded(deep, "TIFF"), encoded(grey.convert("P"), "PNG", transparency=3)]
    files += [encoded(grey.convert("RGBA"), f) for f in ("PNG", "WEBP", "TIFF")]
    files += [encoded(grey, "TIFF", compression=c) for c in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")]
    files += [encoded(grey.convert("CMYK"), "JPEG"), encoded(grey, "JPEG", progressive=True)]
    exif = Image.Exif()
    exif[0x0112] = 6
    files += [encoded(grey, "JPEG", exif=exif), encoded(grey, "PNG", exif=exif, pnginfo=None)]
    pydicom_data = pytest.importorskip("pydicom.data")
    names = ["MR_small", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_bigendian"]
    names += ["SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_dcmtk", "SC_rgb_rle_16bit", "JPGExtended", "image_dfl", "CT_small"]
    names += ["JPEGLSNearLossless_16", "SC_rgb_gdcm_KY", "examples_palette", "SC_ybr_full_422_uncompressed", "JPEG2000"]
    found = [pydicom_data.get_testdata_file(f"{n}.dcm", download=False) for n in names]
    return files + [Path(f).read_bytes() for f in found if f]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with one to four faults: bits, runs, lengths, pieces lost or repeated, an early end."""
    changed = bytearray(data)
    # Headers decide what a decoder attempts, so half of the faults are in the first 2,000 bytes.
    for _ in range(rng.integers(1, 5)):
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 2000)
        at, length = int(rng.integers(reach)), int(rng.integers(1, 64))
        match rng.integers(7):
            case 0:
                changed[at] ^= 1 << int(rng.integers(8))
            case 1:
                changed[at : at + length] = rng.bytes(len(changed[at : at + length]))
            case 2:
                huge = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\x00\x00\xff\xff"]
                changed[at : at + 4] = huge[rng.integers(4)]
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[at : at + length]
            case 5:
                changed[at:at] = rng.bytes(length)
            case 6:
                del changed[max(at, 1) :]
        if len(changed) < 2:
            break
    return bytes(changed)


def read_all(folder: Path, files: list[bytes]) -> dict[str, str]:
    """What the reader answers for each file. Fails where it dies, hangs, or grows."""
    paths = [str(folder / f"{i}") for i in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        Path(path).write_bytes(content)
    command = [sys.executable, "-c", READER, str(SECONDS), str(MEMORY)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(command, input="\n".join(paths), capture_output=True, text=True, env=env)
    answers = dict(json.loads(line) for line in run.stdout.splitlines())
    if run.returncode:
        killer = next((p for p in paths if p not in answers), "the end")
        pytest.fail(f"file {killer} ended the reader ({run.returncode}): {run.stderr[-2000:]}")
    assert answers.pop("peak") < RESIDENT
    assert len(answers) == len(files)
    return answers


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.full)])
def test_mutated_files(count: int, tmp_path: Path) -> None:
    rng, sound = np.random.default_rng(0 if count == 100 else int(os.environ.get("TRUSTCXR_FUZZ_SEED", 1))), seeds()
    assert set(read_all(tmp_path, sound).values()) == {"read"}
    answers = read_all(tmp_path, [mutated(sound[i % len(sound)], rng) for i in range(count)])
    refused = sum(a != "read" for a in answers.values())
    assert 0.2 < refused / count < 0.95  # the faults are neither all fatal nor all harmless


@pytest.mark.full
def test_mutated_real_images(tmp_path: Path, real_data: Path) -> None:
    files = [f for f in sorted((real_data / "raw-samples").rglob("*.*")) if f.parent.name != "raw-samples"]
    small = [f.read_bytes() for f in files if f.stat().st_size < 400_000]
    rng = np.random.default_rng(2)
    read_all(tmp_path, [mutated(small[i % len(small)], rng) for i in range(200)])


def test_bombs_of_every_kind(tmp_path: Path) -> None:
    wide = Image.new("1", (9_000, 9_000))
    bombs = [encoded(wide, "PNG"), encoded(wide, "TIFF", compression="group4"), encoded(wide.convert("L"), "GIF")]
    png = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    png[16:24] = b"\x7f\xff\xff\xff\x7f\xff\xff\xff"  # a width and height of 2**31 - 1
    answers = read_all(tmp_path, [*bombs, bytes(png)])
    assert "read" not in answers.values()
