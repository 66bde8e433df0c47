"""What the tables beside predictions.parquet say of the same films: proofs, saliency, removed lesions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trustcxr.catalogue import WORST_CASE
from trustcxr.console import say
from trustcxr.evaluation import certified
from trustcxr.evaluation.run import Run
from trustcxr.explain import lesions, summary, verdicts
from trustcxr.explain.scores import rows_of
from trustcxr.recipes.testing import AttackRecipe
from trustcxr.results import documents, files, folders
from trustcxr.results.documents import RunDocument
from trustcxr.study import films as tested
from trustcxr.study import made

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset


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
    path = place / folders.LESIONS_FILE
    document.lesions = lesions.described(files.read_table(path), resamples=resamples) if path.is_file() else []


def unattacked(before: RunDocument | None, place: Path, radii: Sequence[float]) -> list[float]:
    """Of the radii that are proved those at which `worst-case`, no weaker than usual, was not tried yet; each is said.

    None where metrics.json is there and the predictions that it was made of are not: it could not be told with both.
    """
    asked = AttackRecipe(name=WORST_CASE).options().get("steps")
    usual = asked if isinstance(asked, int) else 0
    tried = [] if before is None else [row for row in before.attacks if row.attack == WORST_CASE]
    attacked = [row.epsilon for row in tried if row.steps is None or row.steps >= usual]
    left = [radius for radius in radii if radius not in attacked]
    said = f"{place}: not attacked yet by {WORST_CASE} at epsilon {', '.join(f'{radius:g}' for radius in left)}"
    if left and before is not None and not (place / folders.PREDICTIONS_FILE).is_file():
        say(f"{said}, and {folders.PREDICTIONS_FILE} is not here: `trustcxr evaluate` does it anew")
        return []
    if left:
        say(f"{said}: that is done now")
    return left


def say_gone(before: RunDocument, now: RunDocument, path: Path) -> None:
    """Say what a metrics.json held whose predictions are no longer beside it, so that it holds that no more."""
    if gone := [name for name in _conditions(before) if name not in _conditions(now)]:
        say(f"{path}: no longer holds {', '.join(gone)}: {folders.PREDICTIONS_FILE} beside it does not")


def say_lesions_gone(before: RunDocument, now: RunDocument, path: Path) -> None:
    """Say which effects of lesions a metrics.json held that were not measured again, so that it holds them no more."""

    def told(document: RunDocument) -> list[str]:
        return [
            f"{row.fill} beside {row.control}" + (f" under {row.condition} at {row.epsilon:g}" if row.epsilon else "")
            for row in document.lesions
        ]

    if gone := list(dict.fromkeys(name for name in told(before) if name not in told(now))):
        say(f"{path}: no longer holds what the lesion does by {', '.join(gone)}: asked for otherwise now")


def _conditions(document: RunDocument) -> list[str]:
    attacked = [
        f"{row.attack}{'' if row.steps is None else f'-{row.steps}'} at {row.epsilon:g}" for row in document.attacks
    ]
    return attacked + [f"{row.corruption} at {row.severity}" for row in document.corruptions]


def told_again(run: Run, films: "Dataset", place: Path) -> RunDocument:
    """metrics.json of films that were tested before, with what the tables in `place` say now."""
    tested.say_notes(run, films)
    path, resamples = place / folders.METRICS_FILE, made.resamples_of(place)
    document = documents.read(RunDocument, path)
    document.notes = tested.notes(run, films)
    before = document.model_copy()
    describe(document, place, images=len(films), resamples=resamples)
    say_lesions_gone(before, document, path)
    files.write_json(path, document)
    made.note_metrics(place, document, resamples)
    return document
