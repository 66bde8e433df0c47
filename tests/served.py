"""A server in this process, its worker's work done where it stands, and what it is sent."""

import asyncio
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from small_runs import seal, untrained, weights
from trustcxr.apps.serve import inference
from trustcxr.apps.serve.api_models import Reply, WorkItem
from trustcxr.data.phantom.render_image import render


def untrained_run(folder: Path, seed: int = 0) -> Path:
    """A run that was never trained, whose answer hangs on the image."""
    with torch.random.fork_rng():
        untrained(folder, ("COVID-19", "Non-COVID", "Normal"), seed + 2)
    state = weights(folder)
    save_file(state | {"net.fc.weight": 30 * state["net.fc.weight"]}, folder / "model.safetensors")
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
    from dicom_images import DX, make_image

    header = {"Modality": "DX", "BodyPartExamined": "CHEST", "PatientName": "DOE^JANE", "PatientID": "IDENTIFIER-77"}
    image = make_image(render("Normal", seed, 128).image, SOPClassUID=DX, **header | tags)
    image.file_meta.MediaStorageSOPClassUID, file = DX, io.BytesIO()
    image.save_as(file, enforce_file_format=True)
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
        sent: list[Reply] = []
        inference.answer_item(SimpleNamespace(send=sent.append), asked, self.served)  # type: ignore[arg-type]
        return sent[-1]

    async def stop(self) -> None:
        return
