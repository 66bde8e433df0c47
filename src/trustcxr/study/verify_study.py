"""Compute every figure of a study again from its tables, and compare it with what its documents say."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from trustcxr.console import plural, track
from trustcxr.errors import UserError
from trustcxr.evaluation import run_figures
from trustcxr.evaluation.trained_run import About
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe, list_runs
from trustcxr.runs import explain_run
from trustcxr.runs.test_data import validation_file
from trustcxr.storage import atomic, layout, prediction_table, schemas
from trustcxr.storage.schemas import Difference, RunDocument, TrainingDocument, VerifiedDocument
from trustcxr.study import comparison, status
from trustcxr.study.engines import read_failure
from trustcxr.version import NOTICE

_OF_NO_TABLE = ("version", "provenance", "notes", "images", "training", "planted_shortcuts")  # keys of metrics.json
_OF_IMAGES = "trained_on"  # the kind of alarm that the images alone show
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9  # what another order of adding up may move a figure by
_TELL_APART = (  # keys of the entries of a list
    *("run", "attack", "corruption", "method", "measure", "model", "defence", "kind", "fill", "control", "baseline"),
    *("class", "epsilon", "steps", "severity", "seed", "condition", "stage", "name"),
)


def verify(study: Path) -> VerifiedDocument:
    """Compute every figure of a study again, and name those that differ; UserError if there is no finished study."""
    return _Verification(layout.check_study(study)).carry_out()


class _Verification:
    def __init__(self, folder: Path) -> None:
        path = folder / layout.STUDY_RESULTS
        self.folder, self.stored = folder, atomic.read_document(path)
        schemas.check_version(self.stored, path)
        self.recipe = validate(StudyRecipe, self.stored.get("recipe") or {}, str(path))
        self.result = VerifiedDocument(
            study=str(self.stored.get("study", "")),
            folder=str(folder),
            notice=NOTICE,
            written_by=str(self.stored.get("trustcxr", "")),
            runs=0,
            figures=0,
            files=1,  # study.json
            differences=[],
            unchecked=[],
        )

    def carry_out(self) -> VerifiedDocument:
        entries, computed = _records(self.stored.get("runs")), dict[str, RunDocument]()
        for entry in track(entries, "computing every run again", len(entries)):
            with self._damage_noted():
                document = self._run(entry, self.folder / "runs" / str(entry.get("run")))
                if document is not None:
                    computed[str(entry.get("run"))] = document
        with self._damage_noted():
            self._list_of_runs([str(entry.get("run")) for entry in entries])
        self._all_runs(computed, whole=len(computed) == len(entries) and not self.result.unchecked)
        return self.result

    @contextmanager
    def _damage_noted(self) -> Iterator[None]:
        """Count a damaged file as a difference, and go on with the next run."""
        try:
            yield
        except UserError as problem:
            file, _, what = str(problem).removeprefix(f"{self.folder}/").partition(": ")
            self._differs(file, "the file", "whole", what)

    def _differs(self, file: str, key: str, stored: object, computed: object) -> None:
        self.result.differences.append(Difference(file=file, key=key, stored=stored, computed=computed))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _is_there(self, path: Path, what: str) -> bool:
        """Return whether a file is there; otherwise note what cannot be checked without it."""
        if not path.is_file():
            self.result.unchecked.append(f"{what}: {self._name(path)} is missing")
        return path.is_file()

    def _run(self, entry: Mapping[str, object], run: Path) -> RunDocument | None:
        """Verify a run of study.json and its own files; return what its tables give."""
        name = f"{layout.STUDY_RESULTS}: {run.name}"
        if self._is_there(run / layout.TRAINING_FILE, f"{name}: training"):
            training = schemas.read_schema(TrainingDocument, run / layout.TRAINING_FILE)
            self._compare(name, entry.get("training") or {}, training, "training")
            self._history(run, training)
        if not self._is_there(run / layout.PREDICTIONS_FILE, name):
            return None
        content = atomic.read_yaml(run / layout.RUN_FILE)
        if self._is_there(run / layout.WEIGHTS_FILE, f"checksum of runs/{run.name}"):
            for part, now in layout.checksums(run, content.get("classes")).items():
                if (before := atomic.section(content, "checksums").get(part)) != now:
                    file = run / (part if part == layout.WEIGHTS_FILE else layout.RUN_FILE)
                    self._differs(self._name(file), f"checksum of {part}", before, now)
        with _tables_named(run, run):
            document = compute_figures(run, run, self.recipe)
        self.result.runs += 1
        self._figures(name, entry, document, run, run)
        if self._is_there(metrics := run / layout.METRICS_FILE, "its figures"):
            self._figures(self._name(metrics), atomic.read_document(metrics), document, run, run)
        for path in sorted(run.glob(f"evaluations/*/{layout.METRICS_FILE}")):
            with self._damage_noted(), _tables_named(run, path.parent):
                if self._is_there(path.parent / layout.PREDICTIONS_FILE, self._name(path)):
                    again = compute_figures(run, path.parent, None)
                    self._figures(self._name(path), atomic.read_document(path), again, run, path.parent)
        return document

    def _figures(self, file: str, stored: Mapping[str, object], document: RunDocument, run: Path, folder: Path) -> None:
        """Compare a run's figures, without those that no table holds, and those whose table is missing."""
        left_out = {*_OF_NO_TABLE}
        if stored.get("planted_shortcuts"):
            self.result.unchecked.append(f"{file}: planted_shortcuts: no table holds them")
        for part, path in _other_tables(run, folder).items():
            if stored.get(part) and not self._is_there(path, f"{file}: {part}"):
                left_out |= {part, "alarms"} if part == "saliency" else {part}
        stored, computed = (
            {key: part for key, part in _without_image_alarms(content).items() if key not in left_out}
            for content in (stored, atomic.plain(document))
        )
        self._compare(file, stored, computed)
        self.result.files += ": " not in file

    def _compare(self, file: str, stored: object, computed: object, at: str = "") -> None:
        computed = atomic.plain(computed)
        self.result.figures += count_figures(computed)
        for one in differences(stored, computed, at):
            self._differs(file, *one)

    def _history(self, run: Path, training: TrainingDocument) -> None:
        """Compare training.json with history.csv: epochs, seconds, the best epoch; with a refit of both trainings."""
        file, monitor, best = f"runs/{run.name}/{layout.TRAINING_FILE}", training.monitor, training.best_epoch
        folders = [run] if training.refit is None else [run / layout.BEFORE_REFIT, run]
        if not all(self._is_there(folder / layout.HISTORY_FILE, file) for folder in folders):
            return
        (table, seconds), *again = [_read_history(folder / layout.HISTORY_FILE) for folder in folders]
        content = atomic.plain(training)
        computed: dict[str, object] = {"epochs": len(table), "seconds": seconds + sum(more for _, more in again)}
        for refit, more in again:
            computed["refit"] = content["refit"] | {"epochs": len(refit), "seconds": more}
        if best is not None and not 0 <= best < len(table):
            computed["best_epoch"] = f"one of 0 to {len(table) - 1}"
        elif best is not None and monitor in table:
            computed["best_value"] = float(table[monitor].iloc[best])
        self._compare(file, {key: content.get(key) for key in computed}, computed)
        self.result.files += 1

    def _list_of_runs(self, names: list[str]) -> None:
        """Find runs that study.json has twice, that are none of its recipe, and finished ones that it lacks."""
        planned, counts = status.plan_runs(self.recipe, self.folder), Counter(names)
        expected = {run.name for run in (*planned.certain, *planned.open)}
        for name in expected - {*names}:
            run = self.folder / "runs" / name
            if (run / layout.METRICS_FILE).is_file() and read_failure(run) is None:
                self._differs(layout.STUDY_RESULTS, f"runs[{name}]", None, f"finished in {self._name(run)}")
        for name, times in counts.items():
            if times > 1 or name not in expected:
                computed = "once" if name in expected else "no such run"
                self._differs(layout.STUDY_RESULTS, f"runs[{name}]", f"there {times} times", computed)

    def _all_runs(self, computed: Mapping[str, RunDocument], *, whole: bool) -> None:
        """Compare what study.json says of all runs together; only if every table is there."""
        if not whole:
            self.result.unchecked.append(
                f"{layout.STUDY_RESULTS}: comparisons, spread over seeds, ranking and alarms: of all runs together"
            )
            return
        documents = {self.folder / "runs" / name: document for name, document in computed.items()}
        standard = {run.name for run in list_runs(self.recipe)}
        resamples = self.recipe.evaluation.bootstrap
        again = atomic.plain(comparison.describe_together(documents, standard, resamples=resamples))
        stored = {key: self.stored.get(key) for key in again}
        ranking = atomic.section(self.stored, "selection").get("ranking")
        self._compare(
            layout.STUDY_RESULTS,
            _without_image_alarms(stored) | {"ranking": ranking},
            _without_image_alarms(again) | {"ranking": comparison.ranked(self.recipe, self.folder)},
        )


def _read_history(path: Path) -> tuple[pd.DataFrame, float]:
    """Return history.csv and the seconds of all its epochs."""
    try:
        table = atomic.read_table(path).astype(float)
        return table, float(table["seconds"].iloc[-1])
    except (UserError, LookupError, ValueError) as problem:
        raise UserError(f"{path}: damaged: {problem}. Restore it: only a new training makes it again") from problem


def _other_tables(run: Path, folder: Path) -> dict[str, Path]:
    """Return the table that a part of metrics.json comes from, if that is not predictions.parquet beside it."""
    others = {
        "calibration": validation_file(run, folder),
        "saliency": folder / layout.SALIENCY_FILE,
        "lesions": folder / layout.LESIONS_FILE,
        "certified": folder / layout.CERTIFIED_FILE,
    }
    return others | ({} if folder == run else {"drop_from_internal": run / layout.PREDICTIONS_FILE})


@contextmanager
def _tables_named(run: Path, folder: Path) -> Iterator[None]:
    """Raise UserError, which names the tables, for whatever is wrong with them."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as problem:
        there = [folder / layout.PREDICTIONS_FILE, *_other_tables(run, folder).values()]
        names = " or ".join(dict.fromkeys(path.name for path in there if path.is_file()))
        text = f"{type(problem).__name__}: {problem}".replace("\n", " ")
        raise UserError(f"{folder}: damaged: {names} ({text}); restore it, or make it anew") from problem


def compute_figures(run: Path, folder: Path, study: StudyRecipe | None) -> RunDocument:
    """Compute metrics.json of a run from the tables in a folder; of a study, as its recipe asks."""
    content = atomic.read_yaml(run / layout.RUN_FILE)
    names = content.get("classes")
    classes = tuple(map(str, names if isinstance(names, list) else ()))

    def load_table(path: Path) -> pd.DataFrame:
        table = atomic.read_table(path)
        prediction_table.check_table(table, path, len(classes))
        return table

    predictions, path = load_table(folder / layout.PREDICTIONS_FILE), validation_file(run, folder)
    validation = load_table(path) if path.is_file() else None
    if validation is not None and set(validation["sample_id"]) == set(predictions["sample_id"]):
        validation = None
    images, resamples = int((predictions["attack"] == prediction_table.CLEAN).sum()), explain_run.RESAMPLES
    if study is not None:
        resamples = study.evaluation.bootstrap
    stored = schemas.read_if_there(RunDocument, folder / layout.METRICS_FILE) or RunDocument()
    recipe = validate(RunRecipe, content.get("recipe") or {}, str(run / layout.RUN_FILE))
    document = run_figures.figures(
        About.trained(recipe),
        classes,
        predictions,
        validation=validation,
        resamples=resamples,
        refit=recipe.training.refit,
        training=schemas.read_if_there(TrainingDocument, run / layout.TRAINING_FILE) or TrainingDocument(),
        at_random=lambda: bool(stored.masking and stored.masking.at_random),
    )
    explain_run.add_tables(document, folder, images=images, resamples=resamples)
    if folder != run and (run / layout.PREDICTIONS_FILE).is_file():
        document.drop_from_internal = run_figures.compare_with_internal(
            load_table(run / layout.PREDICTIONS_FILE), predictions
        )
    return document


def differences(stored: object, computed: object, at: str = "") -> Iterator[tuple[str, object, object]]:
    """Yield key, stored and computed value of each figure that differs by more than the order of adding up."""
    if count_figures(stored) == 0 == count_figures(computed):
        return
    if isinstance(stored, list) and isinstance(computed, list):
        stored, computed = _by_name(stored), _by_name(computed)
        if list(stored) != list(computed) and set(stored) == set(computed):
            yield f"{at} (order)", ", ".join(stored), ", ".join(computed)
    if isinstance(stored, dict) and isinstance(computed, dict):
        for key in {**stored, **computed}:
            inside = f"{at}{key}" if key.startswith("[") else f"{at}.{key}".strip(".")
            yield from differences(stored.get(key), computed.get(key), inside)
    elif not _is_close(stored, computed):
        yield at, _shorten(stored), _shorten(computed)


def _by_name(entries: list[Any]) -> dict[str, object]:
    """Key the entries of a list by what tells each from the others, or else by its index."""
    named: dict[str, object] = {}
    for number, entry in enumerate(entries):
        keys = [key for key in _TELL_APART if isinstance(entry, dict) and isinstance(entry.get(key), str | int | float)]
        name = " ".join(str(entry[key]) for key in keys) or str(number)
        named[f"[{name}]" if f"[{name}]" not in named else f"[{name}, {number}]"] = entry
    return named


def count_figures(content: object) -> int:
    """Count the numbers, words and answers of a document."""
    if isinstance(content, dict | list):
        return sum(count_figures(part) for part in (content.values() if isinstance(content, dict) else content))
    return int(content not in (None, ""))


def _is_close(stored: object, computed: object) -> bool:
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (stored, computed)):
        return stored == computed
    return math.isclose(float(str(stored)), float(str(computed)), rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)


def _shorten(value: object) -> object:
    return plural(count_figures(value), "figure") if isinstance(value, dict | list) else value


def _without_image_alarms(content: Mapping[str, Any]) -> dict[str, Any]:
    return {**content, "alarms": [one for one in _records(content.get("alarms")) if one.get("kind") != _OF_IMAGES]}


def _records(content: object) -> list[dict[str, Any]]:
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
