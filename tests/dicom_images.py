"""DICOM images for the tests: synthetic chests in a study, as a hospital's archive would hold them."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from trustcxr.data.images.read import HEATMAP_ENDING
from trustcxr.data.phantom.render_image import render
from trustcxr.explain import heatmap_io
from trustcxr.storage.schemas import ImageAnswer

SECRET, NUMBER = "Beeblebrox^Zaphod", "HHGTTG-42"
CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"


def make_image(pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **elements: object) -> Dataset:
    """Return a computed radiograph of at most 12 bits; `elements` are set too, or left out where None."""
    image, bits = Dataset(), 8 * pixels.dtype.itemsize
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID, image.file_meta.MediaStorageSOPClassUID = syntax, CR
    image.SOPClassUID = CR
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header = {
        "PatientName": SECRET, "PatientID": NUMBER, "Modality": "CR", "PhotometricInterpretation": "MONOCHROME2",
        "Rows": len(pixels), "Columns": pixels.shape[1], "SamplesPerPixel": 1, "BitsAllocated": bits,
        "BitsStored": min(12, bits), "HighBit": min(12, bits) - 1, "PixelData": pixels.tobytes(),
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }  # fmt: skip
    for name, value in (header | elements).items():
        if value is not None:
            setattr(image, name, value)
    return image


def chest(path: Path, *, study: str = "", side: int = 96, seed: int = 0, **elements: object) -> Path:
    """Write a computed radiograph of a synthetic chest, with all that a hospital says of it."""
    hospital = {
        "StudyInstanceUID": study or generate_uid(), "SeriesInstanceUID": generate_uid(), "StudyDate": "20240102",
        "StudyTime": "101500", "StudyID": "7", "AccessionNumber": "A-77", "ReferringPhysicianName": "Marvin",
        "PatientBirthDate": "19520311", "PatientSex": "M", "BodyPartExamined": "CHEST", "ViewPosition": "PA",
        "SeriesNumber": 1, "InstanceNumber": 1, "PatientOrientation": ["L", "F"],
        "Manufacturer": "a maker of scanners", "InstitutionName": "Betelgeuse General",
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    image = make_image(render("Normal", seed, side).image.astype(np.uint16) * 16, **hospital | elements)
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
