"""Every figure of a study computed again from its tables, and held against what its documents and its page say."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from trustcxr.about import NOTICE, __version__
from trustcxr.console import track
from trustcxr.evaluation import drops, summary
from trustcxr.evaluation.run import About
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.study import StudyRecipe
from trustcxr.recipes.validation import validate
from trustcxr.results import differences, documents, files, folders, tables
from trustcxr.results.disk import as_typed
from trustcxr.results.documents import Difference, RunDocument, TrainingDocument, VerifiedDocument
from trustcxr.results.tables import CLEAN
from trustcxr.study import beside, comparison, finished, made, seeds
from trustcxr.study.choice import ranked
from trustcxr.study.films import validation_file

_NOT_OF_TABLES = ("trained_on",)  # alarms that only the films themselves show
# Computed otherwise before the documents had a version (0.1): intervals, calibration, verdicts; see
# results/statistics-before-after.md. Of such a study these are not held against what is computed today.
_SINCE = re.compile(r"_ci\b|\bece(_scaled)?\b|\bmasking\b|\balarms\b|\bcomparisons\b")
# What was not kept before: where a document has none, there is nothing to hold against today's.
_LATER = re.compile(
    r"^(attacks\[.*\]\.(success_rate|ece)|corruptions\[.*\]\.flip_rate"
    r"|certified\[.*\]\.(proved|balanced_accuracy))_ci$"
    r"|^lesions\[.*\]\.(condition|epsilon)$|^saliency\..*_activation$|^saliency\..*\.over_controls$"
)


def verify(study: Path, render: Callable[[Path], str] | None = None) -> VerifiedDocument:
    """Compute every figure of a study again; what differs, by file and key. UserError where there is no study.

    `render` gives the page of a folder as its files give it now: held against the page that is there, but for drawings,
    where this version wrote it.
    """
    folder = folders.check_study(study)
    stored = files.read_document(folder / folders.STUDY_RESULTS)
    found = VerifiedDocument(
        study=str(stored.get("study", "")),
        folder=str(folder),
        notice=NOTICE,
        written_by=str(stored.get("trustcxr", "")),
        runs=0,
        figures=0,
        files=0,
        differences=[],
        unchecked=[],
    )
    old = stored.get("version") is None
    recipe = validate(StudyRecipe, stored.get("recipe") or {}, str(folder / folders.STUDY_RESULTS))
    entries = _records(stored.get("runs"))
    again: dict[Path, RunDocument] = {}
    for said in track(entries, "computing every run again", len(entries)):
        place = folder / "runs" / str(said.get("run"))
        _training(found, said, place, old)
        if finished.is_finished(place):
            found.unchecked.append(f"{place.name}: finished elsewhere: its figures are here, and its tables are not")
            again[place] = documents.read(RunDocument, place / folders.METRICS_FILE)
            continue
        run = _Tables.read(place)
        if isinstance(run, str):
            found.unchecked.append(run)
            continue
        again[run.folder] = run.document(recipe)
        found.runs += 1
        _hold(found, f"{folders.STUDY_RESULTS}: {said.get('run')}", said, _parts(again[run.folder]), old)
        _own(found, run, again[run.folder], recipe, old)
    _whole(found, stored, recipe, again, old)
    if render is not None:
        _page(found, folder, render)
    if old:
        found.unchecked.append(
            f"written by {found.written_by or 'an older version'}: intervals, calibration errors, comparisons, "
            "verdicts and alarms are computed otherwise since, and were not held against today's"
        )
    return found


@dataclass
class _Tables:
    """What a run's folder says of itself, and its tables."""

    folder: Path
    place: Path
    recipe: RunRecipe
    classes: tuple[str, ...]
    training: TrainingDocument = field(default_factory=TrainingDocument)

    @classmethod
    def read(cls, folder: Path, place: Path | None = None) -> "_Tables | str":
        """The tables of a run, on its own films or those of `place`; why not, where they are not all there."""
        place = place or folder
        for path in (folder / folders.RUN_FILE, place / folders.PREDICTIONS_FILE):
            if not path.is_file():
                return f"{folder.name}: {path.name} is missing, so its figures cannot be computed"
        content = files.read_yaml(folder / folders.RUN_FILE)
        recipe = validate(RunRecipe, content.get("recipe") or {}, str(folder / folders.RUN_FILE))
        names = content.get("classes")
        training = documents.read_if_there(TrainingDocument, folder / folders.TRAINING_FILE) or TrainingDocument()
        return cls(folder, place, recipe, tuple(map(str, names if isinstance(names, list) else ())), training)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """All of predictions.parquet."""
        return files.read_table(self.place / folders.PREDICTIONS_FILE)

    def document(self, study: StudyRecipe | None) -> RunDocument:
        """metrics.json as the tables give it; of a study what its recipe asks for, else all that they hold."""
        table, resamples = self.predictions, made.resamples_of(self.place)
        if study is not None:
            table, resamples = tables.under(table, study.evaluation.conditions()), study.evaluation.bootstrap
        document = summary.figures(
            About.trained(self.recipe),
            self.classes,
            table,
            validation=self._validation(),
            resamples=resamples,
            refit=self.recipe.training.refit,
            training=self.training,
            at_random=lambda: bool(self.said.masking and self.said.masking.at_random),
        )
        images = int((self.predictions["attack"] == CLEAN).sum())
        radii, methods = (None, None) if study is None else (study.evaluation.radii(), study.explanation.methods)
        beside.describe(document, self.place, images=images, resamples=resamples, radii=radii, methods=methods)
        if self.place != self.folder and (self.folder / folders.PREDICTIONS_FILE).is_file():
            internal = files.read_table(self.folder / folders.PREDICTIONS_FILE)
            # What was measured of the run's own films since is no part of what was said of others then.
            known = {(row.attack, row.epsilon, row.steps) for row in self.said.drop_from_internal}
            found = drops.from_internal(internal, table)
            document.drop_from_internal = [row for row in found if (row.attack, row.epsilon, row.steps) in known]
        return document

    @cached_property
    def said(self) -> RunDocument:
        """metrics.json as it stands; empty where it is not there."""
        return documents.read_if_there(RunDocument, self.place / folders.METRICS_FILE) or RunDocument()

    def _validation(self) -> pd.DataFrame | None:
        path = validation_file(self.folder, self.place)
        if not path.is_file():
            return None
        table = files.read_table(path)
        return None if set(table["sample_id"]) == set(self.predictions["sample_id"]) else table


def _parts(document: RunDocument) -> Mapping[str, object]:
    """What of a run's document comes from tables."""
    content = differences.plain(document)
    assert isinstance(content, dict)
    kept = {key: value for key, value in content.items() if key not in ("version", "notes", "films", "training")}
    return kept | {"alarms": _alarms(kept.get("alarms"))}


def _alarms(alarms: object) -> list[object]:
    return [alarm for alarm in _records(alarms) if alarm.get("kind") not in _NOT_OF_TABLES]


def _records(content: object) -> list[dict[str, object]]:
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _hold(found: VerifiedDocument, file: str, said: object, computed: object, old: bool) -> None:
    """Add what differs between a part of a file and what was computed."""
    said = said | {"alarms": _alarms(said.get("alarms"))} if isinstance(said, dict) and "alarms" in said else said
    found.files += ": " not in file  # each run's part of study.json is held for itself, and the file is one
    found.figures += differences.figures(computed, but=_SINCE if old else None)
    for key, is_said, is_computed in differences.between(said, computed):
        if is_said is None and _LATER.search(key):
            continue
        if not old:
            found.differences.append(Difference(file=file, key=key, said=is_said, computed=is_computed))
        elif key.endswith(differences.HOW_MANY):  # 0.1 replaced a table where a run was evaluated again
            found.unchecked.append(f"{file}: {key}: {is_said}, of which its tables now hold {is_computed}")
        elif not _SINCE.search(key) and is_said is not None:
            found.differences.append(Difference(file=file, key=key, said=is_said, computed=is_computed))


def _own(found: VerifiedDocument, run: _Tables, of_study: RunDocument, recipe: StudyRecipe, old: bool) -> None:
    """A run's own files: metrics.json, its training.json, its results on other data."""
    path = run.folder / folders.METRICS_FILE
    if not path.is_file():
        found.unchecked.append(f"runs/{run.folder.name}/{folders.METRICS_FILE} is missing; study.json was checked")
    else:
        asked = sorted((name, severity or epsilon) for name, epsilon, _, severity in recipe.evaluation.conditions())
        whole = _conditions(run.said) == asked and set(run.said.saliency) <= set(of_study.saliency)
        document = of_study if whole else run.document(None)
        _hold(found, _within(found, path), files.read_document(path), _parts(document), old)
    _trained(found, run, old)
    for place in sorted(run.folder.glob(f"evaluations/*/{folders.METRICS_FILE}")):
        elsewhere = _Tables.read(run.folder, place.parent)
        if isinstance(elsewhere, str):
            found.unchecked.append(f"{_within(found, place)}: {elsewhere}")
        else:
            _hold(found, _within(found, place), files.read_document(place), _parts(elsewhere.document(None)), old)


def _conditions(document: RunDocument) -> list[tuple[str, float]]:
    found = [(row.attack, row.epsilon or 0.0) for row in document.attacks]
    return sorted([*found, *((row.corruption, float(row.severity or 0)) for row in document.corruptions)])


def _within(found: VerifiedDocument, path: Path) -> str:
    return path.relative_to(found.folder).as_posix()


def _training(found: VerifiedDocument, said: Mapping[str, object], run: Path, old: bool) -> None:
    """What study.json says of a run's training against its training.json; what is missing for that is said."""
    for name in (folders.TRAINING_FILE, folders.HISTORY_FILE):
        if not (run / name).is_file():
            found.unchecked.append(f"{_within(found, run / name)} is missing, so figures of the training were not held")
    if (document := documents.read_if_there(TrainingDocument, run / folders.TRAINING_FILE)) is not None:
        computed = {"training": differences.plain(document)}
        _hold(found, f"{folders.STUDY_RESULTS}: {run.name}", said, computed, old)


def _trained(found: VerifiedDocument, run: _Tables, old: bool) -> None:
    """training.json against history.csv: how many epochs, and what the kept one had."""
    history, path = run.folder / folders.HISTORY_FILE, run.folder / folders.TRAINING_FILE
    if not (history.is_file() and path.is_file()) or run.training.refit is not None:
        return
    table, best = files.read_table(history), run.training.best_epoch
    computed: dict[str, object] = {"epochs": len(table), "seconds": float(table["seconds"].iloc[-1])}
    if best is not None and run.training.monitor in table and best < len(table):
        computed["best_value"] = float(table[run.training.monitor].iloc[best])
    _hold(found, _within(found, path), files.read_document(path), computed, old)


def _whole(
    found: VerifiedDocument,
    stored: Mapping[str, object],
    recipe: StudyRecipe,
    again: Mapping[Path, RunDocument],
    old: bool,
) -> None:
    """What study.json says of all runs together: comparisons, spread over seeds, alarms, the choice."""
    alarms = [alarm.model_copy(update={"run": run.run}) for run in again.values() for alarm in run.alarms]
    with_tables = {place: document for place, document in again.items() if not finished.is_finished(place)}
    computed: dict[str, object] = {
        "comparisons": comparison.compared(with_tables, resamples=recipe.evaluation.bootstrap, asked=recipe),
        "alarms": [alarm for alarm in alarms if alarm.kind not in _NOT_OF_TABLES],
    }
    if len(recipe.seeds) > 1:
        computed["over_seeds"] = seeds.over_seeds(list(again.values()))
    if (ranking := _ranking(found, recipe, again)) is not None:
        computed["selection"] = {"ranking": ranking}
    _hold(found, folders.STUDY_RESULTS, dict(stored), differences.plain(computed), old)


def _ranking(
    found: VerifiedDocument, recipe: StudyRecipe, again: Mapping[Path, RunDocument]
) -> list[documents.Ranked] | None:
    """The networks by validation; None, which is said, where a run has no predictions on validation."""
    folder = Path(found.folder)
    pairs = [
        (run, place)
        for place, document in again.items()
        if document.defence == "standard"
        for run in [validate(RunRecipe, files.read_yaml(place / folders.RUN_FILE)["recipe"], str(place))]
        if run.defence == type(run.defence)()
    ]
    if missing := [place.name for _, place in pairs if not finished.is_validated(place)]:
        found.unchecked.append(
            f"the ranking on validation: {folders.VALIDATION_FILE} of {', '.join(missing)} is missing in {folder.name}"
        )
        return None
    return ranked(recipe.selection, pairs, next(iter(again.values())).classes) if pairs else None


def _page(found: VerifiedDocument, folder: Path, render: Callable[[Path], str]) -> None:
    """The page as it is against the page as its files give it now; drawings are left out."""
    path, command = folder / folders.REPORT_FILE, f"`trustcxr report {as_typed(folder)}`"
    if not path.is_file():
        found.unchecked.append(f"{folders.REPORT_FILE}: not there; {command} writes it")
        return
    if found.written_by != __version__:
        found.unchecked.append(f"{folders.REPORT_FILE}: another version's words; {command} renews it")
        return
    said, now = (_lines(text) for text in (path.read_text(encoding="utf-8"), render(folder)))
    found.files, found.figures = found.files + 1, found.figures + len(now)
    differing = [(a, b) for a, b in zip(said, now, strict=False) if a != b]
    if len(said) != len(now):
        differing = differing[:1] or [(f"{len(said)} lines", f"{len(now)} lines")]
    for one, other in differing[:20]:
        found.differences.append(Difference(file=folders.REPORT_FILE, key="text", said=one[:300], computed=other[:300]))


def _lines(text: str) -> list[str]:
    """The words of a page, a line a piece of text; no drawings, no pictures, no marks."""
    bare = re.sub(r"<(svg|style|script)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return [line.strip() for line in re.sub(r"<[^>]*>", "\n", bare).splitlines() if line.strip()]
