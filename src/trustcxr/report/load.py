"""Load a study folder; a missing or broken table becomes a note on the page."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trustcxr.errors import UserError
from trustcxr.registry import STABILITY_ATTACK, WORST_CASE, Effort, is_linf
from trustcxr.report import formatting
from trustcxr.storage import atomic, layout, schemas, segments
from trustcxr.storage.evaluations import other_figures, own_figures
from trustcxr.storage.os_errors import shell_quote
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import TrainingDocument

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_T = TypeVar("_T")
_A = TypeVar("_A", schemas.AttackResult, schemas.CorruptionResult)


@dataclass
class Run:
    """One trained model of a study: its metrics, and the tables of its folder, loaded on first use."""

    metrics: schemas.RunDocument
    folder: Path
    notes: list[str] = field(repr=False)
    label: str = ""
    sources: tuple[Path, ...] = ()  # more folders of tables, if no study owns it; the first with the table counts
    qualifier: str = ""  # label, background and seed, if two runs differ only by these

    def alarmed(self, kind: str) -> bool:
        """Return True if it has an alarm of this kind."""
        return any(alarm.kind == kind for alarm in self.metrics.alarms)

    @property
    def masked(self) -> bool | None:
        """Return True if its gradients fail, None if that could not be checked."""
        return self.metrics.masking.masked if self.metrics.masking else None

    @property
    def name(self) -> str:
        """Return the folder's name: resnet18-fgsm-s0."""
        return self.metrics.run or self.folder.name

    @property
    def model(self) -> str:
        """Return the network's name, or a dash."""
        return self.metrics.model or formatting.DASH

    @property
    def defence(self) -> str:
        """Return the defence, or a dash."""
        return self.metrics.defence or formatting.DASH

    @property
    def clean(self) -> schemas.Classification:
        """Return the figures of the clean test images."""
        return self.metrics.clean

    @property
    def attacks(self) -> list[schemas.AttackResult]:
        """Return the attacks that have a name and an epsilon."""
        return [entry for entry in self.metrics.attacks if entry.attack and entry.epsilon is not None]

    @property
    def main_saliency(self) -> schemas.SaliencyDocument:
        """Return the first saliency method of the recipe, which the page describes; empty without any."""
        return next(iter(self.metrics.saliency.values()), schemas.SaliencyDocument())

    def at(self, epsilon: float | None) -> list[schemas.AttackResult]:
        """Return the attacks at one epsilon."""
        return [entry for entry in self.attacks if entry.is_at(epsilon)]

    def attacked(self, attack: str | Effort, epsilon: float | None) -> schemas.AttackResult:
        """Return one attack at one epsilon; of a name alone, the effort of lowest accuracy. Empty if not measured."""
        return find_lowest([e for e in self.at(epsilon) if attack in (e.attack, e.effort)]) or schemas.AttackResult()

    def strongest(self, epsilon: float | None) -> schemas.AttackResult:
        """Return the L-infinity attack of lowest accuracy at one epsilon; empty without any."""
        return find_lowest([entry for entry in self.at(epsilon) if is_linf(entry.attack)]) or schemas.AttackResult()

    def efforts(self) -> list[Effort]:
        """Return every attack with its effort, each once: PGD with 10 and with 40 steps are two."""
        return sorted({e.effort for e in self.attacks}, key=lambda e: (e.attack, e.steps or 0, e.queries or 0))

    def measured(self, method: str, *, perturbed: bool) -> dict[str, int]:
        """Return the number of images with a value of each measure; empty without saliency.parquet."""
        table = self.saliency
        if table is None or not {"method", "condition", "measure", "value"} <= set(table):
            return {}
        rows = table[(table["method"] == method) & (table["condition"] == (STABILITY_ATTACK if perturbed else CLEAN))]
        return {str(name): int(count) for name, count in rows.groupby("measure")["value"].count().items()}

    def _load(self, name: str, reader: Callable[[Path], _T]) -> _T | None:
        paths = (folder / name for folder in (self.folder, *self.sources))
        if (path := next((path for path in paths if path.is_file()), None)) is None:
            return None
        try:
            return reader(path)
        except Exception as problem:  # a broken file becomes a note on the page
            self.notes.append(f"{self.folder.name}/{name} could not be read ({type(problem).__name__}).")
            return None

    @cached_property
    def history(self) -> "pd.DataFrame | None":
        """Return history.csv of the training before any refit: a row per epoch."""
        import pandas as pd

        name = (layout.before_refit(self.folder) / layout.HISTORY_FILE).relative_to(self.folder)
        return self._load(str(name), pd.read_csv)

    @cached_property
    def saliency(self) -> "pd.DataFrame | None":
        """Return saliency.parquet: a row per image, method, condition and measure."""
        import pandas as pd

        return self._load(layout.SALIENCY_FILE, pd.read_parquet)

    @cached_property
    def evaluations(self) -> dict[str, schemas.RunDocument]:
        """Return the figures on other data, by data set and split."""
        measured = self._load(layout.RUN_FILE, lambda path: other_figures(path.parent)) or {}
        return {name: result.document for name, result in measured.items()}

    def predictions(self) -> "pd.DataFrame | None":
        """Return the columns of predictions.parquet that the report needs; not cached, since it is large."""
        import pandas as pd

        columns = ["split", "label", "attack", "epsilon", "steps", "logits"]
        return self._load(layout.PREDICTIONS_FILE, lambda path: pd.read_parquet(path, columns=columns))

    @cached_property
    def panels(self) -> "dict[str, np.ndarray] | None":
        """Return the example maps, loaded without unpickling."""
        return self._load(layout.EXAMPLES_FILE, _read_panels)


@dataclass
class StudyFolder:
    """A study on disk."""

    path: Path
    study: schemas.StudyDocument
    runs: list[Run]
    notes: list[str]  # missing or unreadable parts
    check: schemas.DataCheck | None = None  # result of `data check`, if it was run


def find_lowest(entries: Sequence[_A]) -> _A | None:
    """Return the entry of lowest accuracy, without those withdrawn; None without any."""
    scored = [entry for entry in entries if entry.accuracy.value is not None]
    return min(scored, key=lambda entry: entry.accuracy.value or 0.0, default=None)


def find_worst_attack(document: schemas.RunDocument) -> schemas.AttackResult:
    """Return the worst case at its largest epsilon, withdrawn or not; without one the strongest attack."""
    if worst := [row for row in document.attacks if row.attack == WORST_CASE]:
        return max(worst, key=lambda row: row.epsilon or 0.0)
    rows = [row for row in document.attacks if row.accuracy.value is not None and is_linf(row.attack)]
    largest = max((row.epsilon or 0.0 for row in rows), default=None)
    return find_lowest([row for row in rows if row.epsilon == largest]) or schemas.AttackResult()


def _read_panels(path: Path) -> "dict[str, np.ndarray]":
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    complete = {"image", "saliency"} <= arrays.keys()
    if not complete or arrays["image"].ndim != 3 or arrays["image"].shape != arrays["saliency"].shape:
        raise ValueError("image and saliency must both be (K, H, W)")
    return arrays


def load_report(path: Path) -> StudyFolder:
    """Load study.json, or the metrics.json of one run as a study of one; UserError if neither is readable."""
    path, notes = Path(path), list[str]()
    if (path / layout.RUN_FILE).is_file() and not (path / layout.STUDY_RESULTS).is_file():
        study, runs = _load_run(path, notes)
    else:
        study = schemas.read_schema(schemas.StudyDocument, layout.check_study(path) / layout.STUDY_RESULTS)
        # The name comes from a file, so it must stay inside runs/.
        runs = [Run(document, path / "runs" / Path(document.run or "unnamed").name, notes) for document in study.runs]
    label_runs(runs)
    try:
        check = schemas.read_if_there(schemas.DataCheck, path / layout.DATA_CHECK_FILE)
    except UserError:
        notes.append(f"{layout.DATA_CHECK_FILE} could not be read.")
        check = None
    return StudyFolder(path, study, runs, notes, check)


def _load_run(path: Path, notes: list[str]) -> tuple[schemas.StudyDocument, list[Run]]:
    """Return a run on its own with its newest evaluation, as a study of one; UserError if it was never tested."""
    if (measured := own_figures(layout.check_run(path))) is None:
        command = f"trustcxr evaluate {shell_quote(path)} --data PATH"
        raise UserError(f"{path}: this run is not tested yet. First run: {command}")
    document = measured.document
    document.training = schemas.read_if_there(TrainingDocument, path / layout.TRAINING_FILE) or document.training
    try:
        versions = atomic.section(segments.last_segment(atomic.read_yaml(path / layout.RUN_FILE)), "versions")
    except UserError:
        notes.append(f"{layout.RUN_FILE} could not be read.")
        versions = {}
    name, version = document.run or path.name, str(versions.get("trustcxr") or "")
    study = schemas.StudyDocument(
        trustcxr=version, study=name, title=f"The run {name}", classes=document.classes, runs=[document]
    )
    return study, [Run(document, path, notes, sources=measured.folders)]


def label_runs(runs: list[Run]) -> None:
    """Label each run by network and defence, and by label, background and seed if runs differ only by these."""

    def key(run: Run) -> tuple[str, ...]:
        return run.model, run.defence, run.metrics.label, run.metrics.background or "full"

    counts = Counter(map(key, runs))
    for run in runs:
        number = formatting.DASH if run.metrics.seed is None else run.metrics.seed
        seed = f"seed {number}" if counts[key(run)] > 1 else ""
        run.qualifier = formatting.variant(run.metrics.background, run.metrics.label, seed)
        run.label = f"{run.model} · {run.defence}" + (f" ({run.qualifier})" if run.qualifier else "")
