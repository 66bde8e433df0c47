"""An image's answer as DICOM: the heatmap as Secondary Capture, the finding as a Structured Report (PS3.3 A.8.1,
A.35.3).

Both belong to the image's study, each to a series of its own, refer to the image, and carry its patient and study
modules
over as they are: whether and how the image was de-identified too. Nothing else of the image is copied, and nothing of
where it was: no file name, no institution, no device.
"""

import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from trustcxr.apps.dicom.structured_report import content
from trustcxr.data.images.dicom_files import INSTALL, MANUFACTURER, RESULT_ENDINGS, is_own_result, read_header
from trustcxr.data.images.greyscale import quiet
from trustcxr.errors import UserError
from trustcxr.storage.atomic import atomic_write
from trustcxr.storage.schemas import ImageAnswer
from trustcxr.version import NOTICE, __version__

if TYPE_CHECKING:
    from pydicom import Dataset

MOST_SIDE = 2048  # pixels of the heatmap's longer side: a screen shows no more, and an image may have 8000
HEATMAP_SERIES, FINDING_SERIES = 9001, 9002  # numbers beyond those that a scanner gives
RESEARCH = "research, not for diagnosis"
# What stands in the image's image module and stays true of whatever is derived from it.
_INHERITED = (
    "BurnedInAnnotation",
    "RecognizableVisualFeatures",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


class NoDicomAnswer(Exception):
    """An image to which no DICOM object can refer. The message says why, quoting nothing of the image."""


@dataclass(frozen=True)
class Objects:
    """The two objects that answer an image."""

    heatmap: "Dataset"
    finding: "Dataset"


def make_objects(image: Path | bytes, answer: ImageAnswer, picture: Image.Image) -> Objects:
    """The two objects for an image (its file, or what is in it), its answer, and the heatmap with the notice on it.

    Raises NoDicomAnswer where the image's header does not allow them, UserError without highdicom.
    """
    check_installed()
    picture.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    pixels = np.asarray(picture.convert("RGB"))
    with quiet():
        header = _header(image)
        try:
            heatmap = _secondary_capture(header, pixels, answer)
            return Objects(heatmap, _structured_report(header, heatmap, answer))
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except Exception as fault:  # an odd value in a header makes pydicom or highdicom raise almost anything
            raise NoDicomAnswer(f"its header does not allow one ({type(fault).__name__})") from None


def write(image: Path, answer: ImageAnswer) -> list[str]:
    """Write both objects beside the heatmap: x.heatmap.png, x.heatmap.dcm, x.finding.dcm. Their paths.

    NoDicomAnswer where a file of such a name is there that was not written here, so that it may be an image, or that
    answers another image.
    """
    with Image.open(str(answer.heatmap)) as picture:
        found = make_objects(image, answer, picture)
    stem = str(answer.heatmap).removesuffix(".heatmap.png")
    places = [Path(stem + ending) for ending in RESULT_ENDINGS]
    if any(place.exists() and not is_own_result(place) for place in places):
        raise NoDicomAnswer("where it would stand is a file that was not written here: choose another --out")
    source = str(found.heatmap.SourceImageSequence[0].ReferencedSOPInstanceUID)
    if any(place.exists() and source not in _referenced(place) for place in places):
        raise NoDicomAnswer("where it would stand is the answer of another image: choose another --out")
    for place, made in zip(places, (found.heatmap, found.finding), strict=True):
        with atomic_write(place) as temporary:
            made.save_as(temporary, enforce_file_format=True)
    return [str(place) for place in places]


def _referenced(place: Path) -> set[str]:
    """The UIDs of the images that an answer refers to."""
    with quiet():
        return {str(each.value) for each in read_header(place).iterall() if each.keyword == "ReferencedSOPInstanceUID"}


def packed(found: Objects) -> bytes:
    """Both objects as DICOM files, one behind the other, as `unpacked` takes them."""
    files = []
    for each in (found.heatmap, found.finding):
        file = BytesIO()
        each.save_as(file, enforce_file_format=True)
        files.append(file.getvalue())
    return struct.pack("<Q", len(files[0])) + b"".join(files)


def unpacked(data: bytes) -> "list[Dataset]":
    """The two objects, heatmap and finding."""
    import pydicom

    (first,) = struct.unpack_from("<Q", data)
    return [pydicom.dcmread(BytesIO(part)) for part in (data[8 : 8 + first], data[8 + first :])]


def check_installed() -> None:
    """UserError, saying what to install, where DICOM objects cannot be made."""
    try:
        import highdicom  # noqa: F401
    except ImportError:
        raise UserError(f"DICOM answers need highdicom: {INSTALL}") from None


def _header(image: Path | bytes) -> "Dataset":
    """What both objects take of the image, as Unicode:

    The identifiers that must be there, and values that are valid.
    """
    import pydicom

    try:
        source = BytesIO(image) if isinstance(image, bytes) else image
        header = pydicom.dcmread(source, stop_before_pixels=True)
        header.remove_private_tags()
        header.decode()
    except Exception as fault:
        raise NoDicomAnswer(f"its header cannot be read ({type(fault).__name__})") from None
    missing = [name for name in _NEEDED if not header.get(name)]
    if missing:
        raise NoDicomAnswer(f"its header has no {' and no '.join(missing)}")
    for name in _MAY_BE_EMPTY:
        if not _valid(header, name):
            setattr(header, name, "")
    header.SpecificCharacterSet = "ISO_IR 192"
    return header


def _valid(header: "Dataset", name: str) -> bool:
    """Whether a value is there that the standard allows; of no other can a valid object be made."""
    from pydicom.valuerep import DA, TM

    if name not in header:
        return False
    value = header[name].value
    if name == "PatientSex":
        return value in ("M", "F", "O", "")
    if name.endswith(("Date", "Time")):
        try:
            (DA if name.endswith("Date") else TM)(value)
        except (ValueError, TypeError):
            return False
    return True


def _equipment(answer: ImageAnswer, title: str) -> Any:
    """Series and equipment modules: what made it, and that it is for research."""
    return {
        "series_description": f"{MANUFACTURER} {title}: {RESEARCH}",
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": answer.run[:64] or MANUFACTURER,
        "software_versions": __version__,
        "specific_character_set": "ISO_IR 192",
    }


def _secondary_capture(header: "Dataset", pixels: np.ndarray, answer: ImageAnswer) -> "Dataset":
    import highdicom

    made: Any = highdicom.sc.SCImage(
        pixels,
        "RGB",
        8,
        "PATIENT",
        study_instance_uid=header.StudyInstanceUID,
        series_instance_uid=highdicom.UID(),
        series_number=HEATMAP_SERIES,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        patient_orientation=("L", "F"),
        **_equipment(answer, "heatmap"),
    )
    for name in _MAY_BE_EMPTY:
        setattr(made, name, header[name].value)
    made.copy_patient_and_study_information(header)
    made.BodyPartExamined = "CHEST"
    made.PatientOrientation = header.get("PatientOrientation") or ""
    for name in _INHERITED:
        if name in header:
            setattr(made, name, header[name].value)
    made.DerivationDescription = (
        f"Heatmap (Grad-CAM) of the class that {answer.run or 'a network'} answers, over the image. {NOTICE}"
    )
    made.ImageComments = NOTICE
    made.SourceImageSequence = [_reference(header)]
    return made


def _reference(header: "Dataset") -> "Dataset":
    """The image, as the source of an image (PS3.3 C.12.4)."""
    import pydicom
    from highdicom.sr import CodedConcept

    item = pydicom.Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    purpose = CodedConcept("121322", "DCM", "Source image for image processing operation")
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item


def _structured_report(header: "Dataset", heatmap: "Dataset", answer: ImageAnswer) -> "Dataset":
    """The finding, complete but preliminary and verified by nobody."""
    import highdicom

    report: Any = highdicom.sr.ComprehensiveSR(
        evidence=[header, heatmap],
        content=content(header, heatmap, answer)[0],
        series_instance_uid=highdicom.UID(),
        series_number=FINDING_SERIES,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        is_complete=True,
        is_final=False,
        is_verified=False,
        **_equipment(answer, "finding"),
    )
    del report.ContributingEquipmentSequence  # highdicom names the image's institution and device there
    return report
