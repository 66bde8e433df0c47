"""What the Structured Report says of an image, by template TID 1500 (PS3.16):

Who answered, on which image, and what.
"""

import hashlib
from typing import TYPE_CHECKING

from trustcxr.data.images.dicom_files import MANUFACTURER
from trustcxr.storage.schemas import ImageAnswer
from trustcxr.version import NOTICE, __version__

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept, MeasurementReport, MeasurementsAndQualitativeEvaluations
    from pydicom import Dataset

SCHEME = "99TRUSTCXR"  # codes that no public scheme has: a class of a model has the name that its maker gave it
_MOST = 64  # characters of a code's meaning
_DOUBTFUL = "Doubtful: the answer means nothing unless this is a frontal chest image"


def content(header: "Dataset", heatmap: "Dataset", answer: ImageAnswer) -> "MeasurementReport":
    """The tree: the device that answered, then one group of the class, its probability, what it survives, and words."""
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


def coded(name: str, template: str = "{}") -> "CodedConcept":
    """A code of our own for what is said of a name: the same for the same, whatever the model.

    Meanings have 64 characters: of a longer name the middle is left out, since names that differ may do so at the end.
    """
    from highdicom.sr import CodedConcept

    whole, most = template.format(name), _MOST - len(template.format(""))
    end = most // 2
    short = name if len(name) <= most else f"{name[: most - end - 5]} ... {name[-end:]}"
    return CodedConcept(
        hashlib.blake2b(whole.encode(), digest_size=6).hexdigest().upper(), SCHEME, template.format(short)
    )


def sr_uid(text: str) -> str:
    """A UID that is the same for the same text: of a model, which has no serial number."""
    from pydicom.uid import generate_uid

    return str(generate_uid(prefix=None, entropy_srcs=[text]))


def _group(header: "Dataset", heatmap: "Dataset", answer: ImageAnswer) -> "MeasurementsAndQualitativeEvaluations":
    from highdicom import sr
    from pydicom.sr.codedict import codes

    scale = "calibrated" if answer.calibrated else "not calibrated"
    group = sr.MeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(identifier="Whole image"),
        algorithm_id=sr.AlgorithmIdentification(answer.run or MANUFACTURER, __version__),
        measurements=[
            sr.Measurement(coded(name, f"Probability of {{}}, {scale}"), round(value, 4), codes.UCUM.NoUnits)
            for name, value in answer.probabilities.items()
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(coded("Class answered"), coded(answer.predicted)),
            *(
                sr.QualitativeEvaluation(
                    coded(f"Answer survives {name} at epsilon {answer.epsilon:g}"),
                    codes.SCT.Yes if survived else codes.SCT.No,
                )
                for name, survived in answer.survives.items()
            ),
        ],
        source_images=[sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)],
    )
    inside = group[0].ContentSequence
    picture = sr.CodedConcept("121200", "DCM", "Illustration of ROI")
    inside.append(
        sr.ImageContentItem(picture, heatmap.SOPClassUID, heatmap.SOPInstanceUID, relationship_type="CONTAINS")
    )
    near = [f"{answer.border[:1].upper()}{answer.border[1:]}"] if answer.border else []
    for text in (NOTICE, *(f"{_DOUBTFUL}: {doubt}" for doubt in answer.warnings), *near):
        inside.append(sr.TextContentItem(codes.DCM.Comment, text, relationship_type="CONTAINS"))
    return group
