"""What the tables beside predictions.parquet say of the same films: proofs, saliency, removed lesions."""

from collections.abc import Sequence
from pathlib import Path

from trustcxr.evaluation import certified
from trustcxr.explain import lesions, summary, verdicts
from trustcxr.explain.scores import rows_of
from trustcxr.results import files, folders
from trustcxr.results.documents import RunDocument


def describe(
    document: RunDocument,
    place: Path,
    *,
    images: int,
    resamples: int,
    radii: Sequence[float] | None = None,
    methods: Sequence[str] | None = None,
) -> None:
    """Put into a metrics.json what the tables in `place` say, of these radii and methods alone where they are named.

    `images`: how many films there are in all, with a mask or without.
    """
    if (path := place / folders.CERTIFIED_FILE).is_file():
        proofs = certified.within(files.read_table(path), radii)
        document.certified = certified.describe(proofs, resamples=resamples)
    if (path := place / folders.SALIENCY_FILE).is_file():
        table = rows_of(files.read_table(path), methods)
        document.saliency = summary.summarise(table, images=images, resamples=resamples)
        document.alarms = [alarm for alarm in document.alarms if alarm.kind != verdicts.SURVIVES]
        document.alarms += verdicts.alarms(document.saliency)
    if (path := place / folders.LESIONS_FILE).is_file():
        document.lesions = lesions.described(files.read_table(path), resamples=resamples)
