"""How the page's server holds under load, over many requests, and against files that mean it harm.

python -m benchmarks.speed.serve RUN [--seconds 60] [--requests 2000] [--hostile 1000] > serve-load.md

Starts `trustcxr serve RUN`, then: 32 clients at once for a minute; many images one after the other, with the memory of
all its processes before and after; a thousand hostile uploads. Prints what came back.
"""

import argparse
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trustcxr.data.phantom.render_image import render
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.storage import atomic, layout
from trustcxr.training import environment
from trustcxr.version import NOTICE

MARK = "JANE-DOE-77"  # stands for an identifier: in names, metadata and pixels' headers of what is sent
NEVER = (MARK, "DOE", "JANE", "<script", "Traceback", "/tmp", "/proc", "/home", "passwd", ".py")
CLIENTS, PATH, BOUNDARY = 32, "/api/v1/predict", "trustcxr-boundary"
FIRST = 200  # images, after which the memory is looked at; or half of them


@dataclass(frozen=True)
class Upload:
    """One request: what it is, its body, and what it says its body is."""

    name: str
    body: bytes
    kind: str = f"multipart/form-data; boundary={BOUNDARY}"


@dataclass
class Answers:
    """What came back: statuses, the slowest in seconds, and what should not have been said."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, what: str, status: int, headers: dict[str, str], body: bytes, seconds: float) -> None:
        """Note one answer; a fault is a 500, a leak, a 503 without Retry-After, or an error that is no JSON."""
        self.statuses[status] += 1
        self.seconds.append(seconds)
        text = body.decode("utf-8", "replace")
        if status == 500 or (status == 503 and "retry-after" not in headers):
            self.faults.append(f"{what}: {status} {text[:120]}")
        if status != 200 and not _is_problem(text):
            self.faults.append(f"{what}: {status}, and no JSON: {text[:80]}")
        self.faults += [f"{what}: says {word}" for word in NEVER if word in text]


def _is_problem(text: str) -> bool:
    try:
        return set(json.loads(text)["error"]) == {"code", "message"}
    except (ValueError, KeyError, TypeError):
        return False


# --- the server -------------------------------------------------------------------------------------------------------


@dataclass
class Served:
    """A server in a process of its own, and all that it prints."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def memory(self) -> list[int]:
        """Megabytes of the server and of each of its workers."""
        found = [self.process.pid, *children(self.process.pid)]
        return sorted((size for size in map(_resident, found) if size > 20), reverse=True)


@contextlib.contextmanager
def served(run: Path, log: Path, *options: str) -> Iterator[Served]:
    """`trustcxr serve RUN` while the block lasts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "trustcxr", "serve", str(run), "--port", str(port), *options]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    found = Served(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait(found)
        yield found
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def _wait(server: Served) -> None:
    for _ in range(1500):
        with contextlib.suppress(OSError, http.client.HTTPException):
            if ask(server.url, "GET", "/healthz")[0] == 200:
                return
        if server.process.poll() is not None:
            break
        time.sleep(0.2)
    raise SystemExit(server.log.read_text())


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024
    return 0


def ask(
    url: str, method: str, path: str, body: bytes = b"", kind: str = "", timeout: float = 120
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own: status, headers, body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=timeout)
    try:
        connection.request(method, path, body or None, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def send(
    url: str, upload: Upload, answers: Answers, lock: contextlib.AbstractContextManager[object] | None = None
) -> None:
    """Send one upload and note what came back; a connection that breaks is a fault."""
    start = time.monotonic()
    try:
        status, headers, body = ask(url, "POST", PATH, upload.body, upload.kind)
    except (OSError, http.client.HTTPException) as problem:
        answers.faults.append(f"{upload.name}: {type(problem).__name__}")
        return
    with lock or contextlib.nullcontext():
        answers.add(upload.name, status, headers, body, time.monotonic() - start)


def load(url: str, *, clients: int, seconds: float) -> Answers:
    """Clients that send an image, and at once the next; who is turned away waits as long as it is told."""
    answers, lock, end = Answers(), threading.Lock(), time.monotonic() + seconds
    upload = form(image(1), "image")

    def client() -> None:
        while time.monotonic() < end:
            before = answers.statuses[503]
            send(url, upload, answers, lock)
            if answers.statuses[503] > before:
                time.sleep(0.5)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def many(server: Served, requests: int, *, first: int = FIRST) -> tuple[Answers, list[int], list[int]]:
    """Images one after the other: the answers, and the memory after the `first` and after all."""
    answers, images, early = Answers(), [form(image(seed), "image") for seed in range(8)], list[int]()
    for number in range(requests):
        if number == min(first, requests // 2):
            early = server.memory
        send(server.url, images[number % len(images)], answers)
    return answers, early, server.memory


# --- what means harm --------------------------------------------------------------------------------------------------


def image(seed: int, side: int = 128, form: str = "PNG") -> bytes:
    """A synthetic image as a file."""
    return _packed(Image.fromarray(render("Normal", seed, side).image), form)


def form(data: bytes, what: str, name: bytes = b"image.png") -> Upload:
    """A form with a file of that name."""
    head = b'--%s\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n' % (BOUNDARY.encode(), name)
    body = head + b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n--%s--\r\n" % BOUNDARY.encode()
    return Upload(what, body)


def hostile(count: int, seed: int = 0) -> Iterator[Upload]:
    """Bombs, cut and damaged images, other kinds of file, names that are paths, scripts in metadata, broken forms."""
    random = np.random.default_rng(seed)
    fixed = [*_bombs(), *_others(), *_names(), *_forms()]
    yield from fixed[:count]
    sound = {
        "PNG": image(1),
        "JPEG": image(2, form="JPEG"),
        "TIFF": image(3, form="TIFF"),
        "WEBP": image(4, form="WEBP"),
    }
    sound |= {"GIF": image(5, form="GIF"), "JPEG2000": image(6, form="JPEG2000"), "marked PNG": _marked()}
    sound |= {"DICOM": _dicom(), "DICOM without length": _dicom(undefined=True)}
    names = list(sound)
    for number in range(max(count - len(fixed), 0)):
        name = names[number % len(names)]
        yield form(_damaged(sound[name], random), f"damaged {name}")


def _damaged(data: bytes, random: np.random.Generator) -> bytes:
    """Cut, with bytes changed, or with a part repeated."""
    changed, way = bytearray(data), int(random.integers(3))
    if way == 0:
        return bytes(changed[: int(random.integers(1, len(changed)))])
    for place in random.integers(0, len(changed) if way == 1 else min(len(changed), 1500), int(random.integers(1, 30))):
        changed[place] = int(random.integers(256))
    return bytes(changed)


def _bombs() -> Iterator[Upload]:
    for width, height in ((30000, 30000), (65535, 65535), (2**31 - 1, 1), (0, 0), (100_000, 2)):
        yield form(_png(width, height, zlib.compress(bytes(1 << 22))), f"PNG that says {width} x {height}")
    yield form(_png(7900, 7900, zlib.compress(bytes(7901 * 7900), 9)), "PNG of 62 million black pixels")
    yield form(_png(100, 100, zlib.compress(bytes(1 << 28), 9)), "PNG whose pixels inflate to 256 MB")
    yield form(_packed(Image.new("L", (60000, 1000)), "TIFF", compression="tiff_deflate"), "TIFF of 60 million pixels")
    frames = [Image.new("L", (400, 400), n % 255) for n in range(200)]
    yield form(_packed(frames[0], "GIF", save_all=True, append_images=frames[1:]), "GIF of 200 frames")
    text = PngInfo()
    text.add_text("Comment", MARK * 80_000, zip=True)
    yield form(_packed(Image.new("L", (64, 64)), "PNG", pnginfo=text), "PNG with a text that inflates")
    inflated = zlib.compressobj(9, zlib.DEFLATED, -15)
    many_bytes = inflated.compress(bytes(300 << 20)) + inflated.flush()
    yield form(_dicom(deflated=many_bytes), "deflated DICOM of 300 MB")
    yield form(_dicom(rows=65535, columns=65535), "DICOM that says 65535 x 65535")
    yield form(_dicom(frames="4000"), "DICOM of 4000 frames")
    yield form(bytes(70 << 20), "70 MB of nothing")


def _others() -> Iterator[Upload]:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../etc/passwd", bytes(1 << 24))
    laughs = b'<!DOCTYPE l [<!ENTITY a "ha">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9)
    )
    kinds = {
        "nothing": b"", "one byte": b"\x89", "a zip bomb": packed.getvalue(), "text": MARK.encode() * 50,
        "HTML with a script": b"<html><script>alert('JANE-DOE-77')</script></html>",
        "SVG with a script": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "XML that unfolds": laughs + b"]><l>&i;</l>", "a program": b"\x7fELF" + bytes(500), "a PDF": b"%PDF-1.7\n" * 40,
        "a pickle": b"cposix\nsystem\n(S'touch /tmp/x'\ntR.",
        "JSON": b'{"file": "JANE-DOE-77"}', "EPS": b"%!PS-Adobe-3.0 EPSF\n",
        "an ICO": b"\0\0\1\0\1\0" + bytes(60), "a PSD": b"8BPS\0\1" + bytes(60),
        "DICM and no more": bytes(128) + b"DICM",
    }  # fmt: skip
    for what, data in kinds.items():
        yield form(data, what)


def _names() -> Iterator[Upload]:
    for name in (
        b"../../../../etc/passwd", b"/etc/passwd", b"C:\\Windows\\win.ini", b"a" * 5000, b"\xff\xfe\x00", b"",
        b"..%2f..%2fJANE-DOE-77.png", b"<script>alert(1)</script>.png", b"image.png\r\nX-Injected: 1", b"NUL",
        b"|id", b"$(id)",
        "\u202egnp.mlif".encode(), b"JANE-DOE-77.dcm", b"file:///etc/passwd", b"%n%n%n%s", b"' OR 1=1 --",
    ):  # fmt: skip
        yield form(image(1), f"named {name[:20]!r}", name)
    yield form(_marked(), "scripts in a PNG's text")
    yield form(_exif(), "a script in EXIF")
    for part in ("<script>alert(1)</script>", "JANE-DOE-77", "../../etc/passwd", "\\\\server\\share", "A" * 60):
        yield form(_dicom(patient=part), f"DICOM of a patient called {part[:12]}")
        yield form(_dicom(modality=part[:16]), f"DICOM of modality {part[:12]}")


def _forms() -> Iterator[Upload]:
    sound = form(image(1), "").body
    yield Upload("a form cut short", sound[:300])
    yield Upload("a form without an end", sound[:-8])
    yield Upload("a form of another boundary", sound, "multipart/form-data; boundary=other")
    yield Upload("a form without a boundary", sound, "multipart/form-data")
    yield Upload("a form that is JSON", b'{"file": "JANE-DOE-77"}', "application/json")
    yield Upload("no form", sound, "text/plain")
    yield Upload("an odd kind", sound, "multipart/form-data; boundary=" + "b" * 300)
    yield Upload("a second image", sound[: -len(BOUNDARY) - 6] + sound)
    yield Upload("another field", sound.replace(b'name="file"', b'name="JANE-DOE-77"'))
    yield Upload("no name", sound.replace(b'name="file"; ', b""))
    yield Upload("a long header", sound.replace(b"octet-stream", b"x" * 20_000))
    yield Upload("a run that is a path", _field(sound, b"run", b"../../etc/passwd"))
    for epsilon in (b"nan", b"inf", b"-1", b"1e308", b"0x1", b"<script>", b"9" * 900, b""):
        yield Upload(f"epsilon {epsilon[:8]!r}", _field(sound, b"epsilon", epsilon))


def _field(sound: bytes, name: bytes, value: bytes) -> bytes:
    head = b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n' % (BOUNDARY.encode(), name)
    return head + value + b"\r\n" + sound


def _png(width: int, height: int, pixels: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _marked() -> bytes:
    text = PngInfo()
    text.add_text("Patient", MARK)
    text.add_itxt("Comment", f"<script>alert('{MARK}')</script>")
    return _packed(Image.fromarray(render("Normal", 1, 96).image), "PNG", pnginfo=text)


def _exif() -> bytes:
    tags = Image.Exif()
    tags[0x010E], tags[0x013B], tags[0x0112] = f"<script>{MARK}</script>", MARK, 77
    return _packed(Image.fromarray(render("Normal", 1, 96).image), "JPEG", exif=tags)


def _packed(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _dicom(
    *, rows: int = 64, columns: int = 64, frames: str = "", patient: str = MARK, modality: str = "DX",
    deflated: bytes = b"", undefined: bool = False,
) -> bytes:  # fmt: skip
    """A DICOM image, written by hand: what is wrong with it pydicom would not write."""
    syntax = b"1.2.840.10008.1.2.1.99" if deflated else b"1.2.840.10008.1.2.1"
    meta = _element(2, 0x10, b"UI", syntax + b"\0" * (len(syntax) % 2))
    pixels = render("Normal", 1, 64).image.tobytes()
    body = _element(8, 0x60, b"CS", _even(modality)) + _element(16, 0x10, b"PN", _even(patient))
    body += _element(16, 0x20, b"LO", _even(MARK)) + _element(40, 2, b"US", struct.pack("<H", 1))
    body += _element(40, 4, b"CS", b"MONOCHROME2 ") + (_element(40, 8, b"IS", _even(frames)) if frames else b"")
    for number, value in ((16, rows), (17, columns), (256, 8), (257, 8), (258, 7), (259, 0)):
        body += _element(40, number, b"US", struct.pack("<H", value))
    size = 0xFFFFFFFF if undefined else len(pixels)
    body += struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, size) + pixels
    head = bytes(128) + b"DICM" + _element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta
    return head + (deflated or body)


def _element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, number, kind, len(value)) + value


def _even(text: str) -> bytes:
    return text.encode() + b" " * (len(text.encode()) % 2)


# --- what is printed --------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--hostile", type=int, default=1000)
    parser.add_argument("--log", type=Path, default=Path(os.devnull))
    given = parser.parse_args()
    with served(given.run, given.log) as server:
        start = time.monotonic()
        under_load = load(server.url, clients=CLIENTS, seconds=given.seconds)
        lines = [_line(f"{CLIENTS} clients at once for {time.monotonic() - start:.0f} s", under_load)]
        answered, early, late = many(server, given.requests)
        lines.append(_line(f"{given.requests} images one after the other", answered))
        attacked = Answers()
        for upload in hostile(given.hostile):
            send(server.url, upload, attacked)
        lines.append(_line(f"{given.hostile} hostile uploads", attacked))
        after = ask(server.url, "GET", "/metrics")[2].decode()
    restarts = next(line.split()[-1] for line in after.splitlines() if line.startswith("trustcxr_worker_restarts"))
    print("# The page's server under load and under attack\n")
    print(
        f"`python -m benchmarks.speed.serve RUN`; RUN: {network(given.run)}. {machine()} The images are synthetic. "
        "No row may have a 500, a 503 without Retry-After, an error that is no JSON, a broken connection, or "
        f"a word of a path, a program or an identifier that was sent: that is what `faults` counts. {NOTICE}\n"
    )
    print("| what | answers by status | slowest, s | median, s | faults |\n| --- | --- | --- | --- | --- |")
    print("\n".join(lines))
    print(
        f"\nMemory of the server's processes, MB: {', '.join(map(str, early))} after the first "
        f"{min(FIRST, given.requests // 2)} images, {', '.join(map(str, late))} after all. "
        f"Workers replaced over all of it: {float(restarts):.0f}."
    )
    for fault in (under_load.faults + answered.faults + attacked.faults)[:20]:
        print(f"\n- {fault}")


def network(folder: Path) -> str:
    """What answers: an image costs what its network and its size cost."""
    run = validate(RunRecipe, atomic.read_yaml(folder / layout.RUN_FILE)["recipe"], str(folder))
    known = "with" if (folder / layout.OOD_FILE).is_file() else "without"
    return f"{run.model.name} at {run.data.size} pixels, {known} statistics of its training images"


def machine() -> str:
    """What it was measured on, and how busy that was."""
    hardware, share = environment.hardware(), os.getloadavg()[0]
    return f"{hardware.cores} cores ({hardware.processor}), load average {share:.0f}, its own work counted."


def _line(what: str, answers: Answers) -> str:
    by_status = ", ".join(f"{status}: {count}" for status, count in sorted(answers.statuses.items()))
    seconds = sorted(answers.seconds) or [float("nan")]
    middle = seconds[len(seconds) // 2]
    return f"| {what} | {by_status} | {seconds[-1]:.1f} | {middle:.2f} | {len(answers.faults)} |"


if __name__ == "__main__":
    main()
