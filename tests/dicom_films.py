"""DICOM films for the tests: synthetic chests in a study, as a hospital's archive would hold them."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from trustcxr.data.images import generated
from trustcxr.data.phantom.render_image import render
from trustcxr.explain import heatmap_io
from trustcxr.storage.schemas import FilmAnswer

SECRET, NUMBER = "Beeblebrox^Zaphod", "HHGTTG-42"
CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"


def chest(path: Path, *, study: str = "", side: int = 96, seed: int = 0, **elements: object) -> Path:
    """Write a computed radiograph of 12 bits of a synthetic chest; `elements` are set, or taken away where None."""
    pixels = render("Normal", seed, side).image.astype(np.uint16) * 16
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.SOPClassUID = film.file_meta.MediaStorageSOPClassUID = CR
    film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    film.StudyInstanceUID, film.SeriesInstanceUID = study or generate_uid(), generate_uid()
    film.PatientName, film.PatientID, film.PatientBirthDate, film.PatientSex = SECRET, NUMBER, "19520311", "M"
    film.StudyDate, film.StudyTime, film.StudyID, film.AccessionNumber = "20240102", "101500", "7", "A-77"
    film.ReferringPhysicianName, film.Modality, film.BodyPartExamined = "Marvin", "CR", "CHEST"
    film.SeriesNumber, film.InstanceNumber, film.ViewPosition = 1, 1, "PA"
    film.Manufacturer, film.InstitutionName = "a maker of scanners", "Betelgeuse General"
    film.PatientOrientation = ["L", "F"]
    film.Rows, film.Columns = pixels.shape
    film.SamplesPerPixel, film.PhotometricInterpretation, film.PixelRepresentation = 1, "MONOCHROME2", 0
    film.BitsAllocated, film.BitsStored, film.HighBit = 16, 12, 11
    film.PixelData = pixels.tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(film, name)
        else:
            setattr(film, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    film.save_as(path, enforce_file_format=True)
    return path


def answered(film: Path, **fields: object) -> FilmAnswer:
    """An answer with a heatmap of noise beside the film, as `predict` would give it."""
    size = pydicom.dcmread(film, stop_before_pixels=True)
    grey = np.random.default_rng(0).integers(0, 255, (size.Rows, size.Columns), np.uint8)
    picture = heatmap_io.overlay(grey, grey / 255)
    heatmap_io.write_notice(picture)
    place = film.with_name(film.stem + generated.ENDING)
    picture.save(place)
    given = {
        "image": str(film), "predicted": "COVID-19", "calibrated": True, "epsilon": 0.02, "run": "resnet18-fgsm-s0",
        "probabilities": {"COVID-19": 0.71, "Non-COVID": 0.2, "Normal": 0.09},
        "survives": {"fgsm": True, "pgd-20": False}, "heatmap": str(place), "warnings": ["it is in colour"],
    }  # fmt: skip
    return FilmAnswer.model_validate(given | fields)


def complaints(path: Path) -> list[str]:
    """What David Clunie's dciodvfy calls an error; skips where it is not installed."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not here: Debian's dicom3tools has it")
    said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, timeout=60, check=False)
    return [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]


def picture_of(heatmap: Dataset) -> Image.Image:
    return Image.fromarray(heatmap.pixel_array)
