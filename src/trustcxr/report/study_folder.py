"""Reading a study folder as it is: what is missing or broken becomes a note on the page, never a crash."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustcxr.errors import UserError
from trustcxr.evaluation.alarms import judged
from trustcxr.report import words
from trustcxr.results import files, folders

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


ANY = "any"  # number of steps


@dataclass
class Run:
    """One trained model of a study: its metrics document, and the tables of its folder, read when asked for.

    A document that another judge of gradients wrote (version 0.1) is judged anew, by the one there is.
    """

    metrics: dict[str, Any]
    folder: Path
    notes: list[str] = field(repr=False)
    label: str = ""
    qualifier: str = ""  # background and seed, where they tell two runs apart

    def __post_init__(self) -> None:
        self.metrics = judged(self.metrics)

    def alarmed(self, kind: str) -> bool:
        """Whether it has an alarm of this kind."""
        return any(alarm.get("kind") == kind for alarm in words.records(self.metrics.get("alarms")))

    @property
    def way(self) -> str:
        """How it was trained: fgsm, or fgsm (background gate)."""
        return words.way(self.defence, self.metrics.get("background"))

    @property
    def name(self) -> str:
        """The folder's name: resnet18-fgsm-s0."""
        return str(self.metrics.get("run") or self.folder.name)

    @property
    def model(self) -> str:
        """The network's name, or a dash."""
        return str(self.metrics.get("model") or words.DASH)

    @property
    def defence(self) -> str:
        """How it was trained, or a dash."""
        return str(self.metrics.get("defence") or words.DASH)

    def clean(self, key: str) -> Any:
        """A number of the clean test images, or None."""
        return words.get(self.metrics, "clean", key)

    @property
    def attacks(self) -> list[dict[str, Any]]:
        """The entries of `attacks` that have a name and a finite epsilon."""
        entries = words.records(self.metrics.get("attacks"))
        return [e for e in entries if e.get("attack") and words.finite(e.get("epsilon")) is not None]

    def at(self, epsilon: float | None) -> list[dict[str, Any]]:
        """The entries of one epsilon."""
        return [e for e in self.attacks if epsilon is not None and abs(float(e["epsilon"]) - epsilon) < 1e-9]

    def attacked(self, attack: str, epsilon: float | None, steps: Any = ANY) -> dict[str, Any]:
        """The entry of one attack at one epsilon, with these steps or, unless said, the one of lowest accuracy.

        An empty dictionary where it was not measured.
        """
        return _lowest([e for e in self.at(epsilon) if e["attack"] == attack and steps in (ANY, e.get("steps"))])

    def strongest(self, epsilon: float | None) -> dict[str, Any]:
        """The entry of lowest accuracy of all attacks at one epsilon, but for L2 radii, which are another measure."""
        return _lowest([e for e in self.at(epsilon) if e["attack"] != "pgd-l2"])

    def efforts(self) -> list[tuple[str, Any]]:
        """Every attack with its steps, each once: PGD with 10 and with 40 steps are two."""
        return sorted({(e["attack"], e.get("steps")) for e in self.attacks}, key=lambda pair: (pair[0], pair[1] or 0))

    def sweep(self, attack: str, steps: Any) -> list[dict[str, Any]]:
        """The entries of one attack with these steps that have an accuracy, by rising epsilon."""
        mine = [e for e in self.attacks if (e["attack"], e.get("steps")) == (attack, steps)]
        return sorted((e for e in mine if words.finite(e.get("accuracy")) is not None), key=lambda e: e["epsilon"])

    def saliency_methods(self) -> dict[str, dict[str, Any]]:
        """Metrics of each saliency method."""
        found = self.metrics.get("saliency")
        return {str(k): v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}

    def measured(self, method: str, *, perturbed: bool) -> dict[str, int]:
        """How many images each measure has a value for, from saliency.parquet; empty without it."""
        table = self.saliency
        if table is None or not {"method", "condition", "measure", "value"} <= set(table):
            return {}
        rows = table[(table["method"] == method) & (table["condition"] == ("fgsm" if perturbed else "clean"))]
        return {str(name): int(count) for name, count in rows.groupby("measure")["value"].count().items()}

    def _read(self, name: str, reader: Callable[[Path], Any]) -> Any:
        path = self.folder / name
        if not path.is_file():
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

        name = (folders.before_refit(self.folder) / folders.HISTORY_FILE).relative_to(self.folder)
        return self._read(str(name), pd.read_csv)

    @cached_property
    def saliency(self) -> "pd.DataFrame | None":
        """saliency.parquet: a row per image, method, condition and measure."""
        import pandas as pd

        return self._read(folders.SALIENCY_FILE, pd.read_parquet)

    def predictions(self) -> "pd.DataFrame | None":
        """predictions.parquet, the columns that the report needs. Not kept: it is the large one."""
        import pandas as pd

        columns = ["split", "label", "attack", "epsilon", "steps", "logits"]
        return self._read(folders.PREDICTIONS_FILE, lambda path: pd.read_parquet(path, columns=columns))

    @cached_property
    def panels(self) -> "dict[str, np.ndarray] | None":
        """The arrays of panels.npz. Nothing in it is unpickled."""
        return self._read(folders.PANELS_FILE, _read_panels)


@dataclass
class StudyFolder:
    """A study on disk."""

    path: Path
    study: dict[str, Any]
    runs: list[Run]
    notes: list[str]  # what is missing or could not be read


def _lowest(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry of lowest accuracy: the strongest attack counts. Empty without any."""
    whole = [e for e in entries if words.finite(e.get("accuracy")) is not None]
    return min(whole, key=lambda e: float(e["accuracy"])) if whole else (entries[0] if entries else {})


def _read_panels(path: Path) -> "dict[str, np.ndarray]":
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    missing = [name for name in ("image", "saliency") if name not in arrays]
    if missing or arrays["image"].ndim != 3 or arrays["image"].shape != arrays["saliency"].shape:
        raise ValueError("image and saliency must both be (K, H, W)")
    return arrays


def read(path: Path) -> StudyFolder:
    """Read study.json and every run's metrics.json.

    A run in study.json takes from its own metrics.json what it lacks there; where study.json lists no runs at all, the
    folders are shown.
    Raises UserError where the folder holds no readable study.json.
    """
    path = Path(path)
    source = folders.check_study(path) / folders.STUDY_RESULTS
    study = files.read_json(source)
    if not isinstance(study, dict):
        raise UserError(f"{source}: not the document of a study: run the study again to write it")
    notes: list[str] = []
    on_disk: dict[str, dict[str, Any]] = {}
    for file in sorted(path.glob(f"runs/*/{folders.METRICS_FILE}")):
        try:
            on_disk[file.parent.name] = dict(files.read_json(file))
        except (UserError, TypeError, ValueError):
            notes.append(f"{file.parent.name}/{file.name} could not be read.")
    return StudyFolder(path, study, _runs(path, study, on_disk, notes), notes)


def _runs(path: Path, study: dict[str, Any], on_disk: dict[str, dict[str, Any]], notes: list[str]) -> list[Run]:
    runs = []
    for document in words.records(study.get("runs")):
        # A folder's name comes from a file, so it must stay inside runs/.
        folder_name = Path(str(document.get("run") or "unnamed")).name
        stored = on_disk.pop(folder_name, {})
        _note_disagreement(folder_name, document, stored, notes)
        runs.append(Run({**stored, **document}, path / "runs" / folder_name, notes))
    if "runs" not in study:
        runs = [Run({"run": name, **document}, path / "runs" / name, notes) for name, document in on_disk.items()]
    elif on_disk:
        notes.append(f"not in study.json and not shown: {words.listed(on_disk)}.")
    label(runs)
    return runs


def _note_disagreement(name: str, document: dict[str, Any], stored: dict[str, Any], notes: list[str]) -> None:
    ours, theirs = (words.finite(words.get(d, "clean", "accuracy")) for d in (document, stored))
    if ours is not None and theirs is not None and abs(ours - theirs) > 1e-6:
        notes.append(
            f"{name}: study.json says {words.percent(ours)} clean accuracy, its metrics.json {words.percent(theirs)}; "
            "the page shows study.json."
        )


def label(runs: list[Run]) -> None:
    """Name each run by network and defence, and by background and seed only where they tell runs apart."""

    def pair(run: Run) -> tuple[str, ...]:
        return run.model, run.defence, str(run.metrics.get("background") or "full")

    seeds = Counter(pair(run) for run in runs)
    for run in runs:
        background = str(run.metrics.get("background") or "full")
        parts = [] if background == "full" else [f"background {background}"]
        if seeds[pair(run)] > 1:
            parts.append(f"seed {run.metrics.get('seed', words.DASH)}")
        run.qualifier = ", ".join(parts)
        run.label = f"{run.model} · {run.defence}" + (f" ({run.qualifier})" if parts else "")
