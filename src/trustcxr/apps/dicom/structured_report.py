"""Build the content of a DICOM Structured Report by template TID 1500 (PS3.16)."""

import hashlib
from typing import TYPE_CHECKING

from trustcxr.data.images.dicom_files import MANUFACTURER
from trustcxr.storage.schemas import ImageAnswer
from trustcxr.version import NOTICE, __version__

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept, MeasurementReport, MeasurementsAndQualitativeEvaluations
    from pydicom import Dataset

SCHEME = "99TRUSTCXR"  # private codes: class names of a model are free
_MAX_MEANING = 64  # characters
_DOUBT = "Reason for doubt"
_REFUSED = "No class was answered"


def make_content(header: "Dataset", heatmap: "Dataset | None", answer: ImageAnswer) -> "MeasurementReport":
    """Return the report: the observing device, and one group with class, probabilities, attacks survived and notes.

    Without a class, the group has the reason alone.
    """
    from highdicom import sr
    from pydicom.sr.codedict import codes

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=sr_uid(f"{MANUFACTURER} {answer.run}"),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=answer.run or None,
    )
    observer = sr.ObserverContext(codes.DCM.Device, device)
    return sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=observer),
        procedure_reported=sr.CodedConcept("399208008", "SCT", "Plain X-ray of chest"),
        title=codes.DCM.ImagingMeasurementReport,
        imaging_measurements=[_group(header, heatmap, answer)],
    )


def make_code(name: str, template: str = "{}") -> "CodedConcept":
    """Return a private code for `template` filled with `name`; equal text gives an equal code.

    The middle of a name is left out if the meaning is longer than 64 characters.
    """
    from highdicom.sr import CodedConcept

    room = _MAX_MEANING - len(template.format(""))
    end = room // 2
    short = name if len(name) <= room else f"{name[: room - end - 5]} ... {name[-end:]}"
    code = hashlib.blake2b(template.format(name).encode(), digest_size=6).hexdigest().upper()
    return CodedConcept(code, SCHEME, template.format(short))


def sr_uid(text: str) -> str:
    """Return a UID that depends on the text alone. It identifies a model, which has no serial number."""
    from pydicom.uid import generate_uid

    return str(generate_uid(prefix=None, entropy_srcs=[text]))


def _group(
    header: "Dataset", heatmap: "Dataset | None", answer: ImageAnswer
) -> "MeasurementsAndQualitativeEvaluations":
    from highdicom import sr
    from pydicom.sr.codedict import codes

    scale = "calibrated" if answer.calibrated else "not calibrated"
    group = sr.MeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(identifier="Whole image"),
        algorithm_id=sr.AlgorithmIdentification(answer.run or MANUFACTURER, __version__),
        measurements=[
            sr.Measurement(make_code(name, f"Probability of {{}}, {scale}"), round(value, 4), codes.UCUM.NoUnits)
            for name, value in answer.probabilities.items()
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(make_code("Class answered"), make_code(answer.predicted or "none")),
            *(
                sr.QualitativeEvaluation(
                    make_code(f"Answer survives {name} at epsilon {answer.epsilon:g}"),
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
    refused = [f"{_REFUSED}: {answer.left_out}"] if answer.left_out else []
    near = [f"{answer.border[:1].upper()}{answer.border[1:]}"] if answer.border else []
    for text in (NOTICE, *refused, *(f"{_DOUBT}: {doubt}" for doubt in answer.warnings), *near):
        inside.append(sr.TextContentItem(codes.DCM.Comment, text, relationship_type="CONTAINS"))
    return group
