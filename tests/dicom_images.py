"""DICOM images for the tests: synthetic chests in a study, as a hospital's archive would hold them."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from trustcxr.data.images.read import HEATMAP_ENDING
from trustcxr.data.phantom.render_image import render
from trustcxr.explain import heatmap_io
from trustcxr.storage.schemas import ImageAnswer

SECRET, NUMBER = "Beeblebrox^Zaphod", "HHGTTG-42"
CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"


def chest(path: Path, *, study: str = "", side: int = 96, seed: int = 0, **elements: object) -> Path:
    """Write a computed radiograph of 12 bits of a synthetic chest; `elements` are set, or taken away where None."""
    pixels = render("Normal", seed, side).image.astype(np.uint16) * 16
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = CR
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = study or generate_uid(), generate_uid()
    image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = SECRET, NUMBER, "19520311", "M"
    image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "20240102", "101500", "7", "A-77"
    image.ReferringPhysicianName, image.Modality, image.BodyPartExamined = "Marvin", "CR", "CHEST"
    image.SeriesNumber, image.InstanceNumber, image.ViewPosition = 1, 1, "PA"
    image.Manufacturer, image.InstitutionName = "a maker of scanners", "Betelgeuse General"
    image.PatientOrientation = ["L", "F"]
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelData = pixels.tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(image, name)
        else:
            setattr(image, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path


def answered(image: Path, **fields: object) -> ImageAnswer:
    """An answer with a heatmap of noise beside the image, as `predict` would give it."""
    size = pydicom.dcmread(image, stop_before_pixels=True)
    grey = np.random.default_rng(0).integers(0, 255, (size.Rows, size.Columns), np.uint8)
    picture = heatmap_io.overlay(grey, grey / 255)
    heatmap_io.write_notice(picture)
    place = image.with_name(image.stem + HEATMAP_ENDING)
    picture.save(place)
    given = {
        "image": str(image), "predicted": "COVID-19", "calibrated": True, "epsilon": 0.02, "run": "resnet18-fgsm-s0",
        "probabilities": {"COVID-19": 0.71, "Non-COVID": 0.2, "Normal": 0.09},
        "survives": {"fgsm": True, "pgd-20": False}, "heatmap": str(place), "warnings": ["it is in colour"],
    }  # fmt: skip
    return ImageAnswer.model_validate(given | fields)


def complaints(path: Path) -> list[str]:
    """What David Clunie's dciodvfy calls an error; skips where it is not installed."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not here: Debian's dicom3tools has it")
    said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, timeout=60, check=False)
    return [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]


def picture_of(heatmap: Dataset) -> Image.Image:
    return Image.fromarray(heatmap.pixel_array)
