"""Read a study folder: a table that is missing or broken becomes a note on the page."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from trustcxr.errors import UserError
from trustcxr.registry import ATTACKED, is_linf
from trustcxr.report import formatting
from trustcxr.storage import atomic, layout, schemas, segments
from trustcxr.storage.evaluations import other_figures, own_figures
from trustcxr.storage.os_errors import shell_quote
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import (
    AttackResult,
    Classification,
    CorruptionResult,
    DataCheck,
    RunDocument,
    SaliencyDocument,
    StudyDocument,
    TrainingDocument,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_T = TypeVar("_T")
_A = TypeVar("_A", AttackResult, CorruptionResult)
Steps = int | None | Literal["any"]


@dataclass
class Run:
    """One trained model of a study: its metrics document, and the tables of its folder, read when asked for."""

    metrics: RunDocument
    folder: Path
    notes: list[str] = field(repr=False)
    label: str = ""
    sources: tuple[Path, ...] = ()  # folders of its tables, if no study owns it: the first that has a table counts
    qualifier: str = ""  # label, background and seed, where they tell two runs apart

    def alarmed(self, kind: str) -> bool:
        """Whether it has an alarm of this kind."""
        return any(alarm.kind == kind for alarm in self.metrics.alarms)

    @property
    def masked(self) -> bool | None:
        """Whether its gradients fail; None where that could not be looked for."""
        return self.metrics.masking.masked if self.metrics.masking else None

    @property
    def way(self) -> str:
        """How it was trained: fgsm, or fgsm (background gate)."""
        return formatting.training_name(self.defence, self.metrics.background, self.metrics.label)

    @property
    def name(self) -> str:
        """The folder's name: resnet18-fgsm-s0."""
        return self.metrics.run or self.folder.name

    @property
    def model(self) -> str:
        """The network's name, or a dash."""
        return self.metrics.model or formatting.DASH

    @property
    def defence(self) -> str:
        """How it was trained, or a dash."""
        return self.metrics.defence or formatting.DASH

    @property
    def clean(self) -> Classification:
        """The clean test images."""
        return self.metrics.clean

    @property
    def attacks(self) -> list[AttackResult]:
        """The entries of `attacks` that have a name and an epsilon."""
        return [entry for entry in self.metrics.attacks if entry.attack and entry.epsilon is not None]

    def at(self, epsilon: float | None) -> list[AttackResult]:
        """The entries of one epsilon."""
        return [entry for entry in self.attacks if entry.at(epsilon)]

    def attacked(self, attack: str, epsilon: float | None, steps: Steps = "any") -> AttackResult:
        """The entry of one attack at one epsilon, with these steps or, unless said, the one of lowest accuracy.

        An empty entry where it was not measured.
        """
        return _lowest([e for e in self.at(epsilon) if e.attack == attack and steps in ("any", e.steps)])

    def strongest(self, epsilon: float | None) -> AttackResult:
        """The entry of lowest accuracy of all attacks at one epsilon, but for L2 radii, which are another measure."""
        return _lowest([entry for entry in self.at(epsilon) if is_linf(entry.attack)])

    def efforts(self) -> list[tuple[str, int | None]]:
        """Every attack with its steps, each once: PGD with 10 and with 40 steps are two."""
        return sorted({(e.attack, e.steps) for e in self.attacks}, key=lambda pair: (pair[0], pair[1] or 0))

    def sweep(self, attack: str, steps: int | None) -> list[AttackResult]:
        """The entries of one attack with these steps that have an accuracy, by rising epsilon."""
        mine = [e for e in self.attacks if (e.attack, e.steps) == (attack, steps) and e.accuracy.value is not None]
        return sorted(mine, key=lambda entry: entry.epsilon or 0.0)

    def saliency_methods(self) -> dict[str, SaliencyDocument]:
        """Metrics of each saliency method."""
        return self.metrics.saliency

    def measured(self, method: str, *, perturbed: bool) -> dict[str, int]:
        """How many images each measure has a value for, from saliency.parquet; empty without it."""
        table = self.saliency
        if table is None or not {"method", "condition", "measure", "value"} <= set(table):
            return {}
        rows = table[(table["method"] == method) & (table["condition"] == (ATTACKED if perturbed else CLEAN))]
        return {str(name): int(count) for name, count in rows.groupby("measure")["value"].count().items()}

    def _read(self, name: str, reader: Callable[[Path], _T]) -> _T | None:
        paths = (folder / name for folder in (self.folder, *self.sources))
        if (path := next((path for path in paths if path.is_file()), None)) is None:
            return None
        try:
            return reader(path)
        except Exception as problem:  # any broken file leaves its part of the page empty, and is named there
            self.notes.append(f"{self.folder.name}/{name} could not be read ({type(problem).__name__}).")
            return None

    @cached_property
    def history(self) -> "pd.DataFrame | None":
        """history.csv: a row an epoch, of the training that validation looked on."""
        import pandas as pd

        name = (layout.before_refit(self.folder) / layout.HISTORY_FILE).relative_to(self.folder)
        return self._read(str(name), pd.read_csv)

    @cached_property
    def saliency(self) -> "pd.DataFrame | None":
        """saliency.parquet: a row per image, method, condition and measure."""
        import pandas as pd

        return self._read(layout.SALIENCY_FILE, pd.read_parquet)

    @cached_property
    def evaluations(self) -> dict[str, RunDocument]:
        """Its figures on other data, by the name of the data set and its split."""
        if not (self.folder / layout.RUN_FILE).is_file():
            return {}
        return {name: result.document for name, result in other_figures(self.folder).items()}

    def predictions(self) -> "pd.DataFrame | None":
        """predictions.parquet, the columns that the report needs. Not kept: it is the large one."""
        import pandas as pd

        columns = ["split", "label", "attack", "epsilon", "steps", "logits"]
        return self._read(layout.PREDICTIONS_FILE, lambda path: pd.read_parquet(path, columns=columns))

    @cached_property
    def panels(self) -> "dict[str, np.ndarray] | None":
        """The arrays of panels.npz. Nothing in it is unpickled."""
        return self._read(layout.PANELS_FILE, _read_panels)


@dataclass
class StudyFolder:
    """A study on disk."""

    path: Path
    study: StudyDocument
    runs: list[Run]
    notes: list[str]  # what is missing or could not be read
    check: DataCheck | None = None  # what `data check` found in the data, where it was asked


def _lowest(entries: list[AttackResult]) -> AttackResult:
    """The entry of lowest accuracy: the strongest attack counts. An empty one without any."""
    return find_lowest(entries) or (entries[0] if entries else AttackResult())


def find_lowest(entries: Sequence[_A]) -> _A | None:
    """The entry of lowest accuracy, of those that have one: what was withdrawn is not the worst."""
    scored = [(entry.accuracy.value, entry) for entry in entries if entry.accuracy.value is not None]
    return min(scored, key=lambda pair: pair[0])[1] if scored else None


def _read_panels(path: Path) -> "dict[str, np.ndarray]":
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    missing = [name for name in ("image", "saliency") if name not in arrays]
    if missing or arrays["image"].ndim != 3 or arrays["image"].shape != arrays["saliency"].shape:
        raise ValueError("image and saliency must both be (K, H, W)")
    return arrays


def load_report(path: Path) -> StudyFolder:
    """Read study.json, or the metrics.json of one tested run as a study of that run alone.

    Raises UserError if the folder holds neither, or if it cannot be read.
    """
    path, notes = Path(path), list[str]()
    if (path / layout.RUN_FILE).is_file() and not (path / layout.STUDY_RESULTS).is_file():
        study = _read_run(path, notes)
        runs = [Run(study.runs[0], path, notes)]
    else:
        study = schemas.read_schema(StudyDocument, layout.check_study(path) / layout.STUDY_RESULTS)
        # A folder's name comes from a file, so it must stay inside runs/.
        runs = [Run(document, path / "runs" / Path(document.run or "unnamed").name, notes) for document in study.runs]
    label_runs(runs)
    return StudyFolder(path, study, runs, notes, _read_check(path, notes))


def _read_check(path: Path, notes: list[str]) -> DataCheck | None:
    file = path / layout.DATA_CHECK_FILE
    try:
        return schemas.read_if_there(DataCheck, file)
    except UserError:
        notes.append(f"{file.name} could not be read.")
        return None


def _read_run(path: Path, notes: list[str]) -> StudyDocument:
    measured = own_figures(layout.check_run(path))
    if measured is None:
        command = f"trustcxr evaluate {shell_quote(path)} --data PATH"
        raise UserError(f"{path}: a run that is not tested yet: `{command}` comes first")
    document = measured.document
    document.training = schemas.read_if_there(TrainingDocument, path / layout.TRAINING_FILE) or document.training
    try:
        versions = atomic.section(segments.last_segment(atomic.read_yaml(path / layout.RUN_FILE)), "versions")
    except UserError:
        notes.append(f"{layout.RUN_FILE} could not be read.")
        versions = {}
    name = document.run or path.name
    return StudyDocument(
        trustcxr=str(versions.get("trustcxr") or ""),
        study=name,
        title=f"The run {name}",
        classes=document.classes,
        runs=[document],
    )


def label_runs(runs: list[Run]) -> None:
    """Name each run by network and defence, and by label, background and seed only where they tell runs apart."""

    def pair(run: Run) -> tuple[str, ...]:
        return run.model, run.defence, run.metrics.label, run.metrics.background or "full"

    seeds = Counter(pair(run) for run in runs)
    for run in runs:
        seed = (
            f"seed {formatting.DASH if run.metrics.seed is None else run.metrics.seed}" if seeds[pair(run)] > 1 else ""
        )
        run.qualifier = formatting.variant(run.metrics.background, run.metrics.label, seed)
        run.label = f"{run.model} · {run.defence}" + (f" ({run.qualifier})" if run.qualifier else "")
