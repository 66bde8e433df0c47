"""Add to metrics.json what the tables beside predictions.parquet say: proofs, saliency, removed lesions."""

from pathlib import Path

from trustcxr.evaluation import certified
from trustcxr.explain import lesion_effect, saliency_summary, verdicts
from trustcxr.storage import atomic, layout
from trustcxr.storage.schemas import RunDocument

RESAMPLES = 2000  # behind each interval of a command's own evaluation; a study's recipe says its own


def describe(document: RunDocument, folder: Path, *, images: int, resamples: int) -> None:
    """Put the figures of the tables in `folder` into a document. `images`: how many there are in all."""
    if (path := folder / layout.CERTIFIED_FILE).is_file():
        document.certified = certified.describe(atomic.read_table(path), resamples=resamples)
    if (path := folder / layout.SALIENCY_FILE).is_file():
        document.saliency = saliency_summary.summarise(atomic.read_table(path), images=images, resamples=resamples)
        document.alarms = [alarm for alarm in document.alarms if alarm.kind != verdicts.SURVIVES]
        document.alarms += verdicts.list_alarms(document.saliency)
    path = folder / layout.LESIONS_FILE
    document.lesions = (
        lesion_effect.summarise_effects(atomic.read_table(path), resamples=resamples) if path.is_file() else []
    )
