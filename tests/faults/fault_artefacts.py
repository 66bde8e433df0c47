"""What the fault list works on: sound images, a run and a study, made once; damaged copies, made as they are named."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

SMALL = ("--model", "test_resnet", "--weights", "none", "--size", "32", "--epochs", "1", "--batch-size", "8")
RECIPE = {
    "name": "tiny",
    "data": {"size": 32},
    "models": [{"name": "test_resnet", "weights": "none"}],
    "training": {"epochs": 1, "batch_size": 8},
    "selection": {"count": 1},
    "defences": [{"name": "fgsm"}],
    "evaluation": {"attacks": [{"name": "fgsm"}, {"name": "pgd", "steps": 2}], "bootstrap": 100},
    "explanation": {"methods": ["gradcam@-2"], "corruptions": ["jpeg"], "sample": 0, "panels": 1},
}


class Artefacts:
    """Gives the path of each thing that a command line names; damaged things are made when first asked for."""

    def __init__(self, base: Path, main: Callable[..., None]) -> None:
        """`main`: runs a command line with code 0, or the artefacts cannot be made."""
        self.base, self._count, self._main = base, 0, main
        (base / "closed").mkdir(mode=0o500)
        self.images, self.run, self.study = base / "images", base / "run", base / "study"
        (base / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
        main("data", "phantom", self.images, "--per-class", 12, "--size", 64)
        main("train", "--data", self.images, *SMALL, "--out", self.run)
        main("evaluate", self.run, "--data", self.images, "--attack", "fgsm")
        shutil.copy(next(self.images.rglob("Test/COVID-19/images/*.png")), base / "image.png")

    def fresh(self, kind: str, damage: str = "") -> Path:
        """A copy of the run or the study of its own, damaged as `damage` says ("file:how")."""
        self._count += 1
        if kind == "study" and not (self.study / "study.json").is_file():
            self._main("study", self.base / "tiny.yaml", "--data", self.images, "--out", self.study)
        to = self.base / "copies" / f"{kind}-{self._count}"
        shutil.copytree(self.run if kind == "run" else self.study, to)
        if damage:
            file, _, how = damage.rpartition(":")
            damage_file(to / file, how)
        return to

    def out(self) -> Path:
        """A path where nothing is yet."""
        self._count += 1
        return self.base / "out" / str(self._count)

    def recipe(self, text: str) -> Path:
        """A recipe file: the tiny one with keys set, or any text after `raw:`."""
        self._count += 1
        path = self.base / f"recipe-{self._count}.yaml"
        if text.startswith("raw:"):
            path.write_bytes(text[4:].encode("utf-8", "surrogateescape"))
        else:
            path.write_text(yaml.safe_dump(RECIPE | yaml.safe_load(text)))
        return path

    def data(self, kind: str) -> Path:
        """A data set with something wrong in it."""
        place = self.base / "data" / kind
        if not place.exists() and not place.is_symlink():
            place.mkdir(parents=True)
            DATA[kind](place, self.images)
        return place / "list.csv" if (place / "list.csv").exists() else place

    def image(self, kind: str) -> Path:
        """One file given as an image."""
        place = self.base / "images" / kind
        if not (place.exists() or place.is_symlink()):
            place.parent.mkdir(parents=True, exist_ok=True)
            IMAGES[kind](place)
        return place


def damage_file(path: Path, how: str) -> None:
    """Damage one file of a run or study, or take it away."""
    content = path.read_bytes() if path.is_file() else b""
    path.unlink(missing_ok=True)
    DAMAGE[how](path, content)


def _close(path: Path, content: bytes = b"x") -> None:
    path.write_bytes(content)
    path.chmod(0)


DAMAGE: dict[str, Callable[[Path, bytes], object]] = {
    "gone": lambda path, content: None,
    "empty": lambda path, content: path.write_bytes(b""),
    "cut": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "noise": lambda path, content: path.write_bytes(np.random.default_rng(0).bytes(2000)),
    "text": lambda path, content: path.write_text("this is not it\n"),
    "list": lambda path, content: path.write_text("[1, 2, 3]\n"),
    "folder": lambda path, content: path.mkdir(),
    "loop": lambda path, content: path.symlink_to(path.name),
    "closed": _close,
    "fifo": lambda path, content: os.mkfifo(path),
}


def _class_folders(place: Path, names: tuple[str, ...] = ("a", "b"), count: int = 4, side: int = 40) -> None:
    random = np.random.default_rng(1)
    for name in names:
        for split in ("Train", "Val", "Test"):
            folder = place / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(0, 255, (side, side), np.uint8)).save(folder / f"{i}.png")


def _with(add: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    return lambda place, _: (_class_folders(place), add(place / "Train" / "a" / "odd.png"))


def _closed_folder(path: Path) -> None:
    folder = path.parent.parent / "c"
    folder.mkdir()
    (folder / "1.png").write_bytes(b"x")
    folder.chmod(0)


def _socket(path: Path) -> None:
    server, here = socket.socket(socket.AF_UNIX), Path.cwd()
    os.chdir(path.parent)  # the name of a socket is at most 108 bytes
    try:
        server.bind(path.name)
    finally:
        os.chdir(here)
        server.close()


def _not_utf8(path: Path) -> None:
    NOISE(path)
    os.rename(os.fsencode(path), os.fsencode(path.parent) + b"/caf\xe9.png")


def _list(text: str | bytes) -> Callable[[Path, Path], object]:
    def make(place: Path, radiographs: Path) -> None:
        images = [str(p) for p in sorted(radiographs.rglob("Lung Segmentation Data/*/*/images/*.png"))]
        filled = text if isinstance(text, bytes) else text.format(*images).encode()
        (place / "list.csv").write_bytes(filled)

    return make


def _without_class(split: str) -> Callable[[Path, Path], object]:
    return lambda place, _: (_class_folders(place), shutil.rmtree(place / split / "b"))


def _mask_fifo(place: Path, radiographs: Path) -> None:
    shutil.copytree(radiographs, place, dirs_exist_ok=True)
    mask = next(place.rglob("Train/COVID-19/lung masks/*.png"))
    mask.unlink()
    os.mkfifo(mask)


def _save(pixels: np.ndarray, **options: str) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(pixels).save(path, format=options.get("form", "PNG"))


_RANDOM = np.random.default_rng(3)
NOISE = _save(_RANDOM.integers(0, 255, (40, 40), np.uint8))
DATA: dict[str, Callable[[Path, Path], object]] = {
    "empty": lambda place, _: None,
    "text": lambda place, _: (place / "notes.txt").write_text("sun"),
    "fifo": _with(os.mkfifo),
    "device": _with(lambda path: path.symlink_to("/dev/zero")),
    "socket": _with(_socket),
    "loop": _with(lambda path: path.symlink_to(path.name)),
    "dangling": _with(lambda path: path.symlink_to("gone.png")),
    "closed": _with(_close),
    "closed-folder": _with(_closed_folder),
    "folder-as-image": _with(Path.mkdir),
    "loop-folder": _with(lambda path: (path.parent.parent / "c").symlink_to("c")),
    "not-utf8": _with(_not_utf8),
    "control": _with(lambda path: NOISE(path.with_name("line\nbreak\x1b[31m.png"))),
    "truncated": _with(lambda path: path.write_bytes((path.parent / "0.png").read_bytes()[:60])),
    "mask-fifo": _mask_fifo,
    "one-class": lambda place, _: _class_folders(place, ("a",)),
    "one-image": lambda place, _: _class_folders(place, count=1),
    "tiny-images": lambda place, _: _class_folders(place, side=1),
    "missing-in-train": _without_class("Train"),
    "missing-in-val": _without_class("Val"),
    "missing-in-test": _without_class("Test"),
    "fifo-list": lambda place, _: os.mkfifo(place / "list.csv"),
    "list-folder": lambda place, _: (place / "list.csv").mkdir(),
    "list-empty": _list(b""),
    "list-header": _list("path,class,split\n"),
    "list-semicolon": _list("path;class;split\n{0};a;Train\n{1};b;Train\n{2};a;Val\n{3};b;Val\n{4};a;Test\n{5};b;Test"),
    "list-columns": _list("picture,finding text\n{0},a\n{1},b\n"),
    "list-no-class": _list("path,class\n{0},\n{1},\n"),
    "list-gone": _list("path,class\ngone.png,a\nlost.png,b\n"),
    "list-ragged": _list("path,class\n{0},a\n{1},b,c,d,e\n"),
    "list-binary": _list(b"\x00\xff\xfe\x80" * 50),
    "list-latin": _list(b"path,class\ncaf\xe9.png,a\n"),
    "list-quotes": _list('path,class\n"{0},a\n{1},b\n'),
    "list-twice": _list("path,class\n{0},a\n{0},b\n"),
    "list-dropped": _list("path,class,split\n{0},a,Train\n{1},,Train\n{2},b,Train\n{3},,Test\n"),
    "list-same-split": _list("path,class,split\n{0},a,Train\n{1},b,Train\n{2},a,Train\n{3},b,Train\n"),
    "list-escaping": _list("path,class\n../../../../etc/passwd,a\n/dev/zero,b\n/dev/stdin,c\n"),
}


IMAGES: dict[str, Callable[[Path], object]] = {
    "empty.png": Path.touch,
    "noise.png": lambda path: path.write_bytes(np.random.default_rng(1).bytes(4000)),
    "text.png": lambda path: path.write_text("not an image"),
    "black.png": _save(np.zeros((64, 64), np.uint8)),
    "one.png": _save(np.zeros((1, 1), np.uint8)),
    "line.png": _save(np.zeros((1, 3000), np.uint8)),
    "colour.png": _save(_RANDOM.integers(0, 255, (64, 64, 3), np.uint8)),
    "fifo.png": os.mkfifo,
    "socket.png": _socket,
    "zero.png": lambda path: path.symlink_to("/dev/zero"),
    "loop.png": lambda path: path.symlink_to(path.name),
    "dangling.png": lambda path: path.symlink_to("gone.png"),
    "folder.png": Path.mkdir,
    "closed.png": _close,
    "dicm.dcm": lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(300)),
    "claims.png": lambda path: path.write_bytes(  # a million pixels a side
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x0f\x42\x40\x00\x0f\x42\x40\x08\x00\x00\x00\x00"
    ),
    "gif.gif": _save(np.zeros((20, 20), np.uint8), form="GIF"),
    "long" + "g" * 240 + ".png": NOISE,
}
