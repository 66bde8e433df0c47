"""A server for the tests: in this process, with its worker's work done where it stands, or as its own processes."""

import asyncio
import contextlib
import io
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image

from small_runs import recipe, seal
from trustcxr.apps.serve import inference
from trustcxr.apps.serve.api_models import Reply, WorkItem
from trustcxr.apps.serve.worker import Limits
from trustcxr.data.phantom.render_image import render
from trustcxr.evaluation.trained_run import load_run
from trustcxr.models import factory
from trustcxr.models.factory import save_weights
from trustcxr.storage import atomic


def untrained_run(folder: Path, seed: int = 0) -> Path:
    """A run that was never trained."""
    chosen = recipe(seed=seed)
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed + 2)
        network = factory.build(chosen.model.name, classes=3)
    network.net.get_classifier().weight.data *= 30  # so that its answer hangs on the image
    save_weights(network, folder / "model.safetensors")
    classes = ["COVID-19", "Non-COVID", "Normal"]
    content = {"classes": classes, "recipe": chosen.model_dump(mode="json"), "data": {"root_name": "images"}}
    atomic.write_yaml(folder / "run.yaml", content)
    seal(folder)
    return folder


def image(seed: int = 0, side: int = 128, form: str = "PNG") -> bytes:
    return packed(render("Normal", seed, side).image, form)


def packed(pixels: np.ndarray, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def dicom(seed: int = 0, **tags: str) -> bytes:
    """An image as a DICOM file that says who the patient is."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    pixels = render("Normal", seed, 128).image
    header = pydicom.Dataset()
    said = {
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "PatientName": "DOE^JANE",
        "PatientID": "IDENTIFIER-77",
    } | tags
    for tag, value in said.items():
        setattr(header, tag, value)
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    header.Rows, header.Columns = pixels.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 8, 8, 7, 0
    header.PixelData = pixels.tobytes()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = io.BytesIO()
    pydicom.dcmwrite(file, header, enforce_file_format=True)
    return file.getvalue()


class Here:
    """The pool's interface; the work is done in this process."""

    restarts = 0

    def __init__(self, folders: list[Path]) -> None:
        self.served = inference.load_models(folders)
        self.runs = [ready.about for ready in self.served]
        self.alive, self.asked, self.hold = 1, 0, False

    async def ask(self, asked: WorkItem) -> Reply:
        self.asked += 1
        while self.hold:
            await asyncio.sleep(0.01)
        said: list[object] = []

        class Connection:
            send = said.append

        inference.answer_item(Connection(), asked, self.served)  # type: ignore[arg-type]
        return said[-1]  # type: ignore[return-value]

    async def stop(self) -> None:
        return


@contextlib.contextmanager
def running(runs: list[Path], *options: str, log: Path) -> Iterator[str]:
    """`trustcxr serve` as a user starts it; its address. What it prints is in `log`."""
    port = _free_port()
    command = [sys.executable, "-m", "trustcxr", "serve", *map(str, runs), "--port", str(port), *options]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait(f"http://127.0.0.1:{port}/healthz", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError(log.read_text())


__all__ = ["Here", "Limits", "dicom", "image", "inference", "load_run", "packed", "running", "untrained_run"]
