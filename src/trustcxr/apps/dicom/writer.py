"""Write an answer as DICOM: heatmap as Secondary Capture, finding as Structured Report (PS3.3 A.8.1, A.35.3).

Both are new series in the study of the image. They refer to it and copy its patient and study modules, with the
de-identification. No file name, institution or device is copied.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from trustcxr.data.images.dicom_files import MANUFACTURER, RESULT_ENDINGS, is_own_result, read_header
from trustcxr.data.images.greyscale import quiet
from trustcxr.registry import Method
from trustcxr.storage.atomic import atomic_write
from trustcxr.storage.schemas import ImageAnswer
from trustcxr.version import NOTICE, __version__

if TYPE_CHECKING:
    from pydicom import Dataset

MOST_SIDE = 2048  # pixels of the heatmap's longer side
HEATMAP_SERIES, FINDING_SERIES = 9001, 9002  # beyond the numbers of a scanner
RESEARCH = "research, not for diagnosis"
# Attributes that a derived image inherits.
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
    """No DICOM object can refer to the image. The message quotes nothing of the image."""


def make_objects(image: Path | bytes, answer: ImageAnswer, picture: Image.Image) -> "tuple[Dataset, Dataset]":
    """Return heatmap and finding for an image (path or bytes), its answer, and the heatmap with the notice on it.

    Raises NoDicomAnswer if the header of the image does not allow them.
    """
    picture.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    pixels = np.asarray(picture.convert("RGB"))
    with _header_faults():
        header = _read_header(image)
        heatmap = _make_capture(header, pixels, answer)
        return heatmap, _make_report(header, heatmap, answer)


@contextmanager
def _header_faults() -> Iterator[None]:
    """Raise NoDicomAnswer for what pydicom and highdicom raise of odd values: almost anything."""
    try:
        with quiet():
            yield
    except (MemoryError, NoDicomAnswer):
        raise
    except Exception as fault:
        raise NoDicomAnswer(f"its header does not allow one ({type(fault).__name__})") from None


def write(image: Path, answer: ImageAnswer) -> list[str]:
    """Write x.heatmap.dcm and x.finding.dcm next to x.heatmap.png, and return their paths.

    Raises NoDicomAnswer if such a file exists and is not an answer to this image.
    """
    with Image.open(str(answer.heatmap)) as picture:
        objects = make_objects(image, answer, picture)
    stem = str(answer.heatmap).removesuffix(".heatmap.png")
    paths = [Path(stem + ending) for ending in RESULT_ENDINGS]
    if any(path.exists() and not is_own_result(path) for path in paths):
        raise NoDicomAnswer("a file of that name was not written here: choose another --out")
    source = str(objects[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
    if any(path.exists() and source not in _list_referenced(path) for path in paths):
        raise NoDicomAnswer("a file of that name is the answer of another image: choose another --out")
    for path, dataset in zip(paths, objects, strict=True):
        with atomic_write(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
    return [str(path) for path in paths]


def _list_referenced(path: Path) -> set[str]:
    with quiet():
        return {str(each.value) for each in read_header(path).iterall() if each.keyword == "ReferencedSOPInstanceUID"}


def make_refusal(image: bytes, model: str, why: str) -> "Dataset":
    """Return a report that an image was not answered, and why. Raises NoDicomAnswer as `make_objects`."""
    with _header_faults():
        return _make_report(_read_header(image), None, ImageAnswer(run=model, left_out=why))


def to_file(dataset: "Dataset") -> bytes:
    """Return an object as a DICOM file."""
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _read_header(image: Path | bytes) -> "Dataset":
    """Return the header in Unicode, with invalid optional values emptied."""
    import pydicom

    try:
        source = BytesIO(image) if isinstance(image, bytes) else image
        header = pydicom.dcmread(source, stop_before_pixels=True)
        header.remove_private_tags()
        header.decode()
    except Exception as fault:
        raise NoDicomAnswer(f"its header cannot be read ({type(fault).__name__})") from None
    if missing := [name for name in _NEEDED if not header.get(name)]:
        raise NoDicomAnswer(f"its header has no {' and no '.join(missing)}")
    for name in _MAY_BE_EMPTY:
        if not _is_valid(header, name):
            setattr(header, name, "")
    header.SpecificCharacterSet = "ISO_IR 192"
    return header


def _is_valid(header: "Dataset", name: str) -> bool:
    """Return True if the header has the attribute with a value that the standard allows."""
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


def _describe_series(answer: ImageAnswer, title: str, number: int) -> Any:
    import highdicom

    return {
        "series_instance_uid": highdicom.UID(),
        "series_number": number,
        "sop_instance_uid": highdicom.UID(),
        "instance_number": 1,
        "series_description": f"{MANUFACTURER} {title}: {RESEARCH}",
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": answer.run[:64] or MANUFACTURER,
        "software_versions": __version__,
        "specific_character_set": "ISO_IR 192",
    }


def _make_capture(header: "Dataset", pixels: np.ndarray, answer: ImageAnswer) -> "Dataset":
    """Return the heatmap, with the image as its source (PS3.3 C.12.4)."""
    import highdicom
    import pydicom

    capture: Any = highdicom.sc.SCImage(
        pixels,
        "RGB",
        8,
        "PATIENT",
        study_instance_uid=header.StudyInstanceUID,
        patient_orientation=("L", "F"),
        **_describe_series(answer, "heatmap", HEATMAP_SERIES),
    )
    capture.copy_patient_and_study_information(header)
    capture.BodyPartExamined = "CHEST"
    capture.PatientOrientation = header.get("PatientOrientation") or ""
    for name in _INHERITED:
        if name in header:
            setattr(capture, name, header[name].value)
    method = Method.parse(answer.method or "gradcam").label
    capture.DerivationDescription = (
        f"Heatmap ({method}) of the class that {answer.run or 'a network'} answers, over the image. {NOTICE}"
    )
    capture.ImageComments = NOTICE
    source = pydicom.Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    purpose = highdicom.sr.CodedConcept("121322", "DCM", "Source image for image processing operation")
    source.PurposeOfReferenceCodeSequence = [purpose]
    capture.SourceImageSequence = [source]
    return capture


SCHEME = "99TRUSTCXR"  # private codes: class names of a model are free


def _make_report(header: "Dataset", heatmap: "Dataset | None", answer: ImageAnswer) -> "Dataset":
    """Return the finding, or why there is none: complete, preliminary, not verified."""
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=str(generate_uid(prefix=None, entropy_srcs=[f"{MANUFACTURER} {answer.run}"])),  # it has no serial number
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=answer.run or None,
    )
    observer = sr.ObserverContext(codes.DCM.Device, device)
    content = sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=observer),
        procedure_reported=sr.CodedConcept("399208008", "SCT", "Plain X-ray of chest"),
        title=codes.DCM.ImagingMeasurementReport,
        imaging_measurements=[_group(header, heatmap, answer)],
    )
    report: Any = sr.ComprehensiveSR(
        evidence=[header] if heatmap is None else [header, heatmap],
        content=content[0],
        is_complete=True,
        is_final=False,
        is_verified=False,
        **_describe_series(answer, "finding", FINDING_SERIES),
    )
    del report.ContributingEquipmentSequence  # highdicom names the image's institution and device there
    return report


def _make_code(name: str, template: str = "{}") -> Any:
    """Return a private code for `template` filled with `name`; equal text gives an equal code.

    The middle of a name is left out if the meaning is longer than 64 characters.
    """
    from highdicom.sr import CodedConcept

    room = 64 - len(template.format(""))
    end = room // 2
    short = name if len(name) <= room else f"{name[: room - end - 5]} ... {name[-end:]}"
    code = hashlib.blake2b(template.format(name).encode(), digest_size=6).hexdigest().upper()
    return CodedConcept(code, SCHEME, template.format(short))


def _group(header: "Dataset", heatmap: "Dataset | None", answer: ImageAnswer) -> Any:
    """Return class, probabilities, attacks survived and notes; without a class, the reason alone."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    scale = "calibrated" if answer.calibrated else "not calibrated"
    group = sr.MeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(identifier="Whole image"),
        algorithm_id=sr.AlgorithmIdentification(answer.run or MANUFACTURER, __version__),
        measurements=[
            sr.Measurement(_make_code(name, f"Probability of {{}}, {scale}"), round(value, 4), codes.UCUM.NoUnits)
            for name, value in answer.probabilities.items()
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(_make_code("Class answered"), _make_code(answer.predicted or "none")),
            *(
                sr.QualitativeEvaluation(
                    _make_code(f"Answer survives {name} at epsilon {answer.epsilon:g}"),
                    codes.SCT.Yes if survived else codes.SCT.No,
                )
                for name, survived in answer.survives.items()
            ),
        ],
        source_images=[sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)],
    )
    inside = group[0].ContentSequence
    if heatmap is not None:
        picture = sr.CodedConcept("121200", "DCM", "Illustration of ROI")
        inside.append(
            sr.ImageContentItem(picture, heatmap.SOPClassUID, heatmap.SOPInstanceUID, relationship_type="CONTAINS")
        )
    refused = [f"No class was answered: {answer.left_out}"] if answer.left_out else []
    near = [f"{answer.border[:1].upper()}{answer.border[1:]}"] if answer.border else []
    for text in (NOTICE, *refused, *(f"Reason for doubt: {doubt}" for doubt in answer.warnings), *near):
        inside.append(sr.TextContentItem(codes.DCM.Comment, text, relationship_type="CONTAINS"))
    return group
