"""Run a study: train, select on validation, train adversarially, evaluate and explain on test, compare.

An engine does each step. A step writes a file, and a current file is not computed again.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trustcxr.console import format_duration, log, plural
from trustcxr.data import load_dataset, read_manifest, remote
from trustcxr.data.dataset import Dataset, hash_training_data
from trustcxr.errors import CannotWrite, UserError
from trustcxr.explain import ood
from trustcxr.recipes import study_recipe
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import DataRecipe, RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe, format_seeds, list_runs, run_recipe
from trustcxr.recipes.training_recipe import DefenceRecipe
from trustcxr.runs import preflight, provenance
from trustcxr.runs.provenance import data_hash, hash_of
from trustcxr.runs.run_folder import RunFolder, supersede_damaged
from trustcxr.runs.test_data import check_out, report_skipped
from trustcxr.runs.training_data import add_data, check_added
from trustcxr.storage import atomic, layout, locks, schemas
from trustcxr.storage.locks import folder_lock
from trustcxr.study import comparison, status
from trustcxr.study.engines import Engine, Failure, Task, forget_failure, read_failure
from trustcxr.training.devices import Devices
from trustcxr.training.environment import hardware, source, use_threads
from trustcxr.version import NOTICE, __version__

LEFT_OUT = "left_out"  # key of study.yaml: untrained standard runs of networks removed from the recipe, with reasons
_PATIENCE = 60.0  # seconds for a process of a killed study or a lost node to end


class Study:
    """One recipe, one data set, one folder.

    `devices` of this machine share each training. `threads` of torch for every run: by default those of the study's
    first start, or of the engine.
    """

    def __init__(
        self,
        recipe: StudyRecipe,
        data: Path,
        folder: Path,
        engine: Engine,
        *,
        check_data: bool = False,
        devices: int = 1,
        threads: int | None = None,
    ) -> None:
        self.recipe, self.data, self.folder, self.engine = recipe, data, folder.absolute(), engine
        self.check_data, self.devices, self.threads = check_data, devices, threads
        self.failures: list[Failure] = []

    def run(self) -> schemas.StudyDocument:
        """Run the study and return study.json. A study that was cut off resumes."""
        check_out(self.folder, self.data)
        self.engine.preflight(self.folder)
        preflight.check_study(self.recipe, self.folder, self.devices)
        with folder_lock(self.folder):
            self._fix_threads()
            with use_threads(self.threads):
                return self._carry_out()

    def _fix_threads(self) -> None:
        begun = (self.folder / layout.STUDY_FILE).is_file()
        before = layout.read_study(self.folder).get("threads") if begun else None
        if self.threads is None:
            self.threads = before if isinstance(before, int) else self.engine.threads or hardware().threads
        elif before not in (None, self.threads):
            log(f"--threads {self.threads}: the study began with {before}, so from here on bits may differ")

    def _carry_out(self) -> schemas.StudyDocument:
        self._clock = time.monotonic()
        self.datasets = datasets = self._read_data()
        self._claim_folder()
        if self.check_data:
            write_data_check(self.recipe, self.data, self.folder, datasets.values())
        recipe = self.recipe
        baselines = list_runs(recipe)
        defended_count = min(recipe.selection.count, len(recipe.models)) * len(recipe.defences) * len(recipe.seeds)
        counts = ", ".join(f"{plural(len(part), 'image')} to {role}" for role, part in datasets.items())
        standard, robust = plural(len(baselines), "standard run"), plural(defended_count, "robust run")
        log(f"study {recipe.name}: {standard}, then {robust}; {counts}")
        every = [] if _must_choose(recipe) else self._defended(baselines)
        done = self._each([*baselines, *every])
        trained = [run for run in baselines if (self._run_folder(run) / layout.VALIDATION_FILE).is_file()]
        ranking = self._choose(trained)
        chosen = {row.model for row in ranking if row.chosen}
        if not every:
            self._log_unchosen([run for run in trained if run.model.called not in chosen])
            done += self._each(self._defended([run for run in trained if run.model.called in chosen]))
        self._show(done)
        self._count_time()
        document = self._document(done, ranking, datasets, self._seconds())
        atomic.write_json(self.folder / layout.STUDY_RESULTS, document)
        return document

    def _defended(self, baselines: list[RunRecipe]) -> list[RunRecipe]:
        """Return the robust runs of the networks and seeds of standard ones."""
        return [run_recipe(self.recipe, b.model, d, b.seed) for d in self.recipe.defences for b in baselines]

    def _log_unchosen(self, baselines: list[RunRecipe]) -> None:
        """Log the robust runs of networks that were chosen with fewer seeds, and are no longer."""
        if names := [
            run.name for run in self._defended(baselines) if (self._run_folder(run) / layout.RUN_FILE).is_file()
        ]:
            log(f"no longer chosen, by all seeds together: {', '.join(names)}; kept, and out of the study's figures")

    def _claim_folder(self) -> None:
        content: dict[str, object] = {
            "data": self.data.resolve().name,
            "fingerprint": hash_training_data(self.datasets["train"]),
            "recipe": self.recipe.model_dump(mode="json"),
            "threads": self.threads,
        }
        if (self.folder / layout.STUDY_FILE).is_file():
            self._resume(content)
        else:
            for what, name in {"a run": layout.RUN_FILE, "an audit": layout.AUDIT_FILE}.items():
                if (self.folder / name).exists():
                    raise UserError(f"{self.folder}: holds {what}; choose another --out")
            written = (layout.STUDY_RESULTS, "report.*", layout.DATA_CHECK_FILE, "runs")
            layout.check_foreign(self.folder, written, (f"runs/*/{layout.RUN_FILE}", layout.DATA_FILE))
        atomic.write_yaml(self.folder / layout.STUDY_FILE, content)
        atomic.write_yaml(self.folder / layout.DATA_FILE, {"path": remote.resolve_address(self.data)})

    def _resume(self, content: dict[str, object]) -> None:
        """Check that study.yaml is of this study and images, add the runs left out to `content`, and log changes."""
        stored, recipe = layout.read_study(self.folder), self.recipe
        earlier, dropped = check_same_study(self.folder, recipe)
        if stored.get("fingerprint") != content["fingerprint"]:
            raise UserError(f"{self.folder}: holds a study of other images than {self.data}; choose another --out")
        log(f"going on with the study in {self.folder}")
        if study_recipe.adds_seeds(earlier, recipe):
            seeds = f"from {format_seeds(earlier)} to {format_seeds(recipe)}"
            log(f"it has grown {seeds}: runs that are finished stay")
        if dropped:
            log(f"left out by the recipe, as they were not trained: {', '.join(dropped)}; the report will name them")
        reasons = atomic.section(stored, LEFT_OUT)
        reasons |= {name: read_failure(self.folder / "runs" / name) or "not trained" for name in dropped}
        if reasons:
            content[LEFT_OUT] = reasons

    def _read_data(self) -> dict[str, Dataset]:
        names = self.recipe.data.splits
        datasets = {
            role: load_dataset(self.data, split=split, every=role == "train", **self.recipe.data.reading())
            for role, split in (("train", names.train), ("val", names.val), ("test", names.test))
        }
        for note in datasets["train"].notes:
            log(note)
        report_skipped(*datasets.values())
        if any(part.classes != datasets["train"].classes for part in datasets.values()):
            classes = ", ".join(f"{role} {part.classes}" for role, part in datasets.items())
            raise UserError(f"{self.data}: the splits hold different classes: {classes}")
        preflight.check_classes(datasets)
        images = add_data(datasets["train"], self.recipe.data)
        check_added(images, self.recipe.data, refit=self.recipe.training.refit)
        preflight.check_masks(self.recipe, images)
        datasets["train"].notes = list(images.notes)
        return datasets

    def _each(self, runs: list[RunRecipe]) -> list[RunRecipe]:
        """Have the engine do every step of these runs, run by run; return the runs without failure."""
        tasks = [Task(self.folder, run.name, step, self.devices) for run in runs for step in layout.STEP_FILES]
        with status.watched(self.recipe, self.folder):
            outcomes = self.engine.map(carry_out, tasks, self._count_time)
        failed = {outcome.name: outcome for outcome in outcomes if outcome is not None}
        for run in runs:
            folder, failure = self._run_folder(run), failed.get(run.name)
            if failure is None:
                forget_failure(folder)
                continue
            self.failures.append(failure)
            if read_failure(folder) != failure.reason:  # of an engine that records none
                failure.record(folder)
        return [run for run in runs if run.name not in failed]

    def _count_time(self) -> None:
        """Add the seconds since the last call to timings.json, so that a study that is cut off does not lose them."""
        now = time.monotonic()
        status.add_timings(self.folder, seconds=round(self._seconds() + now - self._clock, 1))
        self._clock = now

    def _seconds(self) -> float:
        return status.read_seconds(self.folder).get("seconds", 0.0)

    def _run_folder(self, run: RunRecipe) -> Path:
        return self.folder / "runs" / run.name

    def _choose(self, trained: list[RunRecipe]) -> list[schemas.Ranked]:
        """Rank the networks by validation, best first; return none if a missing one could be chosen."""
        by, split = self.recipe.selection.by, self.recipe.data.splits.val
        if ranking := comparison.ranked(self.recipe, self.folder):
            log(f"chosen on {split} by {by}: {', '.join(sorted(row.model for row in ranking if row.chosen))}")
        else:
            missing = [run.name for run in list_runs(self.recipe) if run not in trained]
            which = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
            log(f"no network is chosen by {by} on {split}: {which}, and might be the best")
        return ranking

    def _show(self, runs: list[RunRecipe]) -> None:
        """Write the maps of the same example images for every run, once all runs are measured."""
        from trustcxr.evaluation.trained_run import load_run
        from trustcxr.explain import examples

        folders = [self._run_folder(run) for run in runs if (self._run_folder(run) / layout.SALIENCY_FILE).is_file()]
        test, options = self.datasets["test"], self.recipe.explanation
        tables = [provenance.read_hash(folder / layout.SALIENCY_FILE) for folder in folders]
        version = provenance.ALGORITHM_VERSION[layout.EXAMPLES_FILE]
        key = provenance.hash_of(tables=tables, count=options.panels, version=version)
        if all(provenance.read_hash(folder / layout.EXAMPLES_FILE) == key for folder in folders):
            return
        measured = [atomic.read_table(folder / layout.SALIENCY_FILE) for folder in folders]
        chosen = examples.choose_images(test, measured, count=options.panels, method=options.methods[0])
        for folder in folders if chosen else ():
            arrays = examples.make_panels(load_run(folder), test, chosen, method=options.methods[0])
            atomic.write_arrays(folder / layout.EXAMPLES_FILE, arrays | {provenance.KEY: np.array(key)})

    def _document(
        self, runs: list[RunRecipe], ranking: list[schemas.Ranked], datasets: dict[str, Dataset], seconds: float
    ) -> schemas.StudyDocument:
        recipe, documents = self.recipe, dict[Path, schemas.RunDocument]()
        standard = {run.name for run in list_runs(recipe)}
        for folder in map(self._run_folder, runs):
            documents[folder] = schemas.read_schema(schemas.RunDocument, folder / layout.METRICS_FILE)
            documents[folder].training = schemas.read_schema(schemas.TrainingDocument, folder / layout.TRAINING_FILE)
        return schemas.StudyDocument(
            version=schemas.VERSION,
            study=recipe.name,
            title=recipe.title,
            notice=NOTICE,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            trustcxr=__version__,
            versions=layout.versions(),
            hardware=hardware(),
            source=source(),
            seconds=seconds,
            data=describe_data(self.data, datasets),
            recipe=recipe.model_dump(mode="json"),
            classes=list(datasets["test"].classes),
            selection=schemas.Selection(
                split=recipe.data.splits.val,
                by=recipe.selection.by,
                count=recipe.selection.count,
                ranking=ranking,
                left_out=[
                    schemas.FailedRun(run=name, reason=str(reason))
                    for name, reason in atomic.section(layout.read_study(self.folder), LEFT_OUT).items()
                ],
            ),
            runs=list(documents.values()),
            **comparison.describe_together(documents, standard, resamples=recipe.evaluation.bootstrap),
            failures=[schemas.FailedRun(run=failure.name, reason=failure.reason) for failure in self.failures],
        )


def check_same_study(folder: Path, recipe: StudyRecipe) -> tuple[StudyRecipe, list[str]]:
    """Return the recipe that the study in a folder has, and its standard runs that this one leaves out.

    Raises UserError if it is another study: seeds may be added, and networks left out that were not trained.
    """
    earlier, before = recipe, layout.read_study(folder).get("recipe")
    with suppress(UserError):  # a recipe that cannot be read is shown as it is
        earlier = validate(StudyRecipe, before or {}, str(folder / layout.STUDY_FILE))
        before = study_recipe.without_tracker(earlier).model_dump(mode="json")
    if study_recipe.adds_seeds(recipe, earlier):
        seeds = f"{format_seeds(earlier)} of this study, not {format_seeds(recipe)}"
        raise UserError(f"{folder}: holds {seeds}: use another --out")
    dropped = _left_out(folder, earlier, recipe)
    now = study_recipe.without_tracker(recipe).model_dump(mode="json")
    changed = _differences(before, now, "recipe")
    if changed and not (dropped or study_recipe.adds_seeds(earlier, recipe)):
        raise UserError(f"{folder}: holds another study: {'; '.join(changed[:5])}; choose another --out")
    return earlier, dropped


def _differences(before: Any, now: Any, at: str) -> list[str]:
    """Return the dotted keys in which two documents differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [d for k in {**before, **now} for d in _differences(before.get(k), now.get(k), f"{at}.{k}")]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [d for i, (one, other) in pairs for d in _differences(one, other, f"{at}[{i}]")]
    old, new = atomic.plain(before), atomic.plain(now)
    return [] if old == new else [f"{at} was {_short(old)}, is {_short(new)}"]


def _short(value: Any, most: int = 60) -> str:
    if value and isinstance(value, list) and all(isinstance(one, dict) and "name" in one for one in value):
        value = ", ".join(str(one.get("label") or one["name"]) for one in value)
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _left_out(study: Path, before: StudyRecipe, now: StudyRecipe) -> list[str]:
    """Name the standard runs of networks that a recipe leaves out. Raises UserError if one of their runs is trained."""
    ways, dropped = (DefenceRecipe(), *before.defences), study_recipe.removed_models(before, now)
    names = [run_recipe(before, m, way, seed).name for way in ways for m in dropped for seed in before.seeds]
    trained = [name for name in names if (study / "runs" / name / layout.TRAINING_FILE).is_file()]
    if trained:
        raise UserError(f"{study}: {', '.join(trained)}: trained, and so counted in this study; choose another --out")
    return names[: len(dropped) * len(before.seeds)]


def _must_choose(recipe: StudyRecipe) -> bool:
    """Return whether robust runs wait for the choice among the standard ones."""
    return recipe.selection.count < len(recipe.models)


def describe_data(root: Path, datasets: dict[str, Dataset]) -> schemas.DataDescription:
    """Count images, masks and groups of each split."""
    counts, masks = {}, {}
    for part in datasets.values():
        (split,) = set(np.asarray(part.splits)) or {""}
        labels = np.bincount(part.labels, minlength=len(part.classes))
        counts[split] = dict(zip(part.classes, labels.tolist(), strict=True))
        lesions = part.masks("infection")[np.flatnonzero(part.has_mask("infection"))]
        masks[split] = int(sum(bool(mask.any()) for mask in lesions))
    first = datasets["train"]
    return schemas.DataDescription(
        root_name=root.resolve().name,
        layout=getattr(first, "layout", ""),
        notes=list(first.notes),
        counts=counts,
        skipped=sum(len(part.skipped) for part in datasets.values()),
        size=first.size,
        infection_masks=masks,
        fingerprint=hash_training_data(first),
        fingerprints={split: first.fingerprints()[split] for split in counts},
        groups={role: len(pd.unique(np.asarray(part.groups))) for role, part in datasets.items()},
    )


def summary(document: schemas.StudyDocument) -> str:
    """Summarise a finished study in one line."""
    runs, alarms = plural(len(document.runs), "run"), plural(len(document.alarms), "alarm")
    return f"{runs}, {alarms}, {format_duration(document.seconds or 0)}"


def missing(document: schemas.StudyDocument) -> str:
    """Name the runs that a study could not finish, and those that depend on them."""
    names = [str(failure.run) for failure in document.failures]
    recipe = validate(StudyRecipe, document.recipe, "recipe")
    if recipe.defences and not document.selection.ranking and _must_choose(recipe):
        names.append("every robust run, since no network is chosen while one is missing")
    else:
        listed = {*names, *(run.run for run in document.runs)}
        names += [run.name for run in status.plan_runs(recipe, None).certain if run.name not in listed]
    return ", ".join(names)


_OF = "of"  # key of a checksum of images and masks


def write_data_check(recipe: StudyRecipe, data: Path, folder: Path, images: Iterable[Dataset]) -> Path:
    """Write data-check.json into the study's folder, as `trustcxr data check --json`, unless it is current."""
    from trustcxr.data.checks.check import check_data

    path, now = folder / layout.DATA_CHECK_FILE, hash_of(data=[data_hash(one, *one.mask_kinds) for one in images])
    before = str(atomic.read_document(path).get(_OF)) if atomic.is_readable(path) else ""
    if before != now:
        if before:
            log(f"{path}: of other images or masks: checked again")
        manifest, labels = read_manifest(data, **recipe.data.listing()), recipe.data.labels
        report = check_data(manifest.with_labels(labels) if labels else manifest)
        atomic.write_json(path, report.to_dict() | {_OF: now})
        log(f"data check: {report.verdict}")
    return path


# --- steps, in any process ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyFolder:
    """A study, loaded from its folder. devices: share each training. threads: of torch, for every step."""

    folder: Path
    recipe: StudyRecipe
    data: str
    fingerprint: str
    devices: int = 1
    threads: int | None = None

    @classmethod
    def load(cls, folder: Path, devices: int = 1) -> "StudyFolder":
        """Load study.yaml and the path of the images."""
        content = layout.read_study(folder)
        recipe = validate(StudyRecipe, content["recipe"], str(folder / layout.STUDY_FILE))
        data = str(atomic.read_yaml(folder / layout.DATA_FILE)["path"])
        threads = content.get("threads") if isinstance(content.get("threads"), int) else None
        return cls(folder, recipe, data, str(content.get("fingerprint", "")), devices, threads)  # type: ignore[arg-type]

    def run(self, name: str) -> RunRecipe:
        """Return the recipe of the run of a name."""
        for run in (*list_runs(self.recipe), *list_runs(self.recipe, self.recipe.defences)):
            if run.name == name:
                return run
        raise UserError(f"{self.folder}: no run '{name}' in its recipe")

    def images(self, role: str) -> Dataset:
        """Load the images of train, val or test. Raises UserError if they are not those of the study."""
        return _images(self.data, role, self.recipe.data.model_dump_json(), self.fingerprint)


@lru_cache(maxsize=3)  # every step needs them
def _images(data: str, role: str, recipe: str, fingerprint: str) -> Dataset:
    options = DataRecipe.model_validate_json(recipe)
    images = load_dataset(data, split=getattr(options.splits, role), **options.reading())
    if fingerprint and hash_training_data(images) != fingerprint:
        raise UserError(f"{data}: the images are not those that the study began with")
    return images


def carry_out(task: Task) -> None:
    """Do one step of one run, unless its file is current. An error is recorded in failure.json and raised."""
    try:
        _carry_out(task)
    except Exception as problem:
        Failure.from_error(task, problem).record(task.folder)
        raise
    if (read_failure(task.folder) or "").startswith(f"{task.step}: "):  # not of a later step
        forget_failure(task.folder)


def _carry_out(task: Task) -> None:
    study = StudyFolder.load(task.study, task.devices)
    run = study.run(task.run)
    folder = task.folder
    if locks.was_killed(folder):
        log(f"{run.name}: the previous process was killed (out of memory?). With --jobs 2 only that run is lost")
    with (
        use_threads(study.threads),
        folder_lock(task.folder, patience=_PATIENCE),
        status.record_time(task.folder, task.step),
    ):
        STEPS[task.step](study, run, RunFolder(folder))


def _train(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    supersede_damaged(steps.folder)
    steps.train(run, study.images("train"), study.images("val"), devices=Devices(study.devices))


def _validate(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    steps.validate(study.images("val"), batch_size=study.recipe.evaluation.batch_size)


def _test(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    test, options = study.images("test"), study.recipe.evaluation
    steps.test(test, options)
    if run.defence.certifies:
        steps.prove(test, sorted({e for attack in options.attacks for e in attack.epsilons if e}))


def _explain(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    test = study.images("test")
    if test.has_mask("infection").any() or test.has_mask("lung").any():
        steps.explain(test, study.recipe.explanation, study.images("val"), train=study.images("train"))


def _describe(study: StudyFolder, run: RunRecipe, steps: RunFolder) -> None:
    detector = None
    with suppress(UserError):  # damaged, or of other weights
        detector = ood.load(steps.folder)
    if detector is None:  # by which `predict` and `serve` warn of images unlike those of the training
        try:
            images = add_data(study.images("train"), study.recipe.data)
            ood.save(ood.fit(steps.run, images, study.images("val")), steps.folder)
        except CannotWrite:
            raise
        except UserError as problem:  # a network without feature maps
            log(f"{steps.folder.name}: nothing will warn of unlike images: {problem}")
    steps.describe(study.images("test"), resamples=study.recipe.evaluation.bootstrap)


STEPS: dict[str, Callable[[StudyFolder, RunRecipe, RunFolder], None]] = {
    "train": _train,
    "validate": _validate,
    "test": _test,
    "explain": _explain,
    "describe": _describe,
}
