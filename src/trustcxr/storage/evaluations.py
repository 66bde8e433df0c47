"""Find the figures of a run: its own metrics.json if a study measured it, and those in its evaluations/."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trustcxr.errors import UserError
from trustcxr.storage import atomic, layout, schemas
from trustcxr.storage.schemas import RunDocument

FOLDER = "evaluations"
_HASH = re.compile(r"-[0-9a-f]{8}$")  # of the options, at the end of a folder's name


@dataclass(frozen=True)
class Measured:
    """Figures of a run on one data set, and the folders of their tables; the first folder with a table counts."""

    document: RunDocument
    folders: tuple[Path, ...]

    def table(self, name: str) -> Path | None:
        """Return the path of a table; None if no folder has it."""
        return next((folder / name for folder in self.folders if (folder / name).is_file()), None)


def own_figures(run: Path) -> Measured | None:
    """Return the figures on the run's own test images; None if it was never tested.

    Those of its study count. Of a run without a study: the newest evaluation, with what it lacks (maps, proofs) from
    the newest that has it. Evaluations that cannot be read are passed over.
    """
    path = run / layout.METRICS_FILE
    if path.is_file():
        return Measured(schemas.read_schema(RunDocument, path), (run,))
    test = _test_fingerprint(run)
    return _merge([part for part in _evaluations(run) if test and part.document.images == test])


def other_figures(run: Path) -> dict[str, Measured]:
    """Return the figures on other data, by the name of the data set and its split."""
    test, groups = _test_fingerprint(run), dict[tuple[str, str], list[Measured]]()
    for part in _evaluations(run):
        if not test or part.document.images != test:
            groups.setdefault((_HASH.sub("", part.folders[0].name), part.document.images), []).append(part)
    names = [name for name, _ in groups]
    labels = {key: key[0] if names.count(key[0]) == 1 else f"{key[0]}-{key[1][:8]}" for key in groups}
    return {labels[key]: merged for key, parts in sorted(groups.items()) if (merged := _merge(parts)) is not None}


def _evaluations(run: Path) -> list[Measured]:
    """Read the evaluations of a run, the newest first."""
    evaluations = []
    paths = sorted(run.glob(f"{FOLDER}/*/{layout.METRICS_FILE}"))
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        with suppress(UserError):
            evaluations.append(Measured(schemas.read_schema(RunDocument, path), (path.parent,)))
    return evaluations


def _merge(parts: Sequence[Measured]) -> Measured | None:
    """Return the newest of several evaluations of the same images, with what it lacks from the others."""
    if not parts:
        return None
    first, *others = sorted(parts, key=lambda part: (not part.document.attacks, bool(part.document.certified)))
    document = first.document.model_copy()
    for other in others:
        for name in type(document).model_fields:
            if (value := getattr(other.document, name)) and not getattr(document, name):
                setattr(document, name, value)
        texts = {alarm.text for alarm in document.alarms}
        document.alarms = [*document.alarms, *(alarm for alarm in other.document.alarms if alarm.text not in texts)]
    return Measured(document, tuple(folder for part in (first, *others) for folder in part.folders))


def _test_fingerprint(run: Path) -> str:
    """Return the fingerprint of the run's own test images, as it was when the run was trained."""
    content = atomic.read_yaml(run / layout.RUN_FILE)
    splits = atomic.section(atomic.section(atomic.section(content, "recipe"), "data"), "splits")
    fingerprints = atomic.section(atomic.section(content, "data"), "fingerprints")
    return str(fingerprints.get(str(splits.get("test", "Test")), ""))
