"""The protocol: train, select on validation, train adversarially, evaluate and explain on test, report.

It says what to do, not where: an engine does the work. Every step that is done leaves a file, and is not done again.
"""

import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trustcxr.about import NOTICE, __version__
from trustcxr.console import duration, say
from trustcxr.data import load_dataset
from trustcxr.errors import UserError
from trustcxr.evaluation import metrics
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.study import StudyRecipe, run_recipe
from trustcxr.recipes.training import DefenceRecipe
from trustcxr.recipes.validation import validate
from trustcxr.results import documents, files
from trustcxr.results.documents import (
    VERSION,
    FailedRun,
    Ranked,
    RunDocument,
    Selection,
    StudyDocument,
    TrainingDocument,
)
from trustcxr.results.folders import (
    CERTIFIED_FILE,
    LESIONS_FILE,
    METRICS_FILE,
    PANELS_FILE,
    PREDICTIONS_FILE,
    SALIENCY_FILE,
    STUDY_FILE,
    STUDY_RESULTS,
    TRAINING_FILE,
    VALIDATION_FILE,
    before_refit,
    make_unless_there,
    versions,
)
from trustcxr.results.tables import logits_of
from trustcxr.study import comparison, mending, preflight
from trustcxr.study.engines import Engine, Failure
from trustcxr.study.provenance import describe_data, hardware

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

TIME_FILE = ".seconds"  # worked on this study so far, all its starts together


class Study:
    """One recipe, one data set, one folder."""

    def __init__(self, recipe: StudyRecipe, data: Path, folder: Path, engine: Engine) -> None:
        self.recipe, self.data, self.folder, self.engine = recipe, data, folder, engine
        self.failures: list[Failure] = []

    def run(self) -> StudyDocument:
        """Carry out the protocol and return study.json."""
        preflight.recipe(self.recipe, self.folder)
        self._claim_folder()
        self._clock = time.monotonic()
        datasets = self._read_data()
        baselines = [
            run_recipe(self.recipe, model, DefenceRecipe(), seed)
            for model in self.recipe.models
            for seed in self.recipe.seeds
        ]
        defended_count = (
            min(self.recipe.selection.count, len(self.recipe.models))
            * len(self.recipe.defences)
            * len(self.recipe.seeds)
        )
        counts = ", ".join(f"{len(part)} images to {role}" for role, part in datasets.items())
        say(f"study {self.recipe.name}: {len(baselines)} standard runs, then {defended_count} robust ones; {counts}")
        baselines = self._each("train", baselines, self._train)
        baselines = self._each("validate", baselines, self._validate)
        ranking = self._rank(baselines)
        chosen = {row.model for row in ranking if row.chosen}
        say(f"chosen on {self.recipe.data.splits.val} by {self.recipe.selection.by}: {', '.join(sorted(chosen))}")
        defended = [
            run_recipe(self.recipe, run.model, defence, run.seed)
            for defence in self.recipe.defences
            for run in baselines
            if run.model.name in chosen
        ]
        defended = self._each("train", defended, self._train)
        defended = self._each("validate", defended, self._validate)
        finished = self._each("test", [*baselines, *defended], self._test)
        self._show(finished)
        document = self._document(finished, ranking, datasets, self._seconds())
        files.write_json(self.folder / STUDY_RESULTS, document)
        return document

    def _claim_folder(self) -> None:
        path = self.folder / STUDY_FILE
        content = {"data": self.data.resolve().name, "recipe": self.recipe.model_dump(mode="json")}
        if path.is_file():
            before = files.read_yaml(path)
            with suppress(UserError):  # keys that are new since then have their default
                kept = validate(StudyRecipe, before.get("recipe") or {}, str(path))
                before["recipe"] = kept.model_dump(mode="json")
            if changed := _differences(before, content):
                raise UserError(
                    f"{self.folder}: holds another study, different in {', '.join(changed[:5])}; choose another --out"
                )
            say(f"going on with the study in {self.folder}")
        files.write_yaml(path, content)

    def _read_data(self) -> dict[str, "Dataset"]:
        names = self.recipe.data.splits
        found = {
            role: load_dataset(self.data, split=split, **self.recipe.data.reading())
            for role, split in (("train", names.train), ("val", names.val), ("test", names.test))
        }
        for note in found["train"].notes:
            say(note)
        skipped = found["train"].skipped
        if len(skipped):
            first = skipped.iloc[0]
            say(f"{len(skipped)} unreadable images are left out; the first: {first['path']}: {first['reason']}")
        if any(part.classes != found["train"].classes for part in found.values()):
            raise UserError(
                f"{self.data}: the splits hold different classes: "
                + ", ".join(f"{k} {v.classes}" for k, v in found.items())
            )
        preflight.classes(found)
        self.datasets = found
        return found

    def _each(self, verb: str, runs: list[RunRecipe], work: Any) -> list[RunRecipe]:
        """Do `work` for each run; a run that fails is said and left out of what follows."""
        good = []
        for number, run in enumerate(runs, 1):
            say(f"[{verb} {number}/{len(runs)}] {run.name}")
            (outcome,) = self.engine.map(work, [run])
            self._seconds()
            if isinstance(outcome, Failure):
                self.failures.append(Failure(run.name, f"{verb}: {outcome.reason}"))
            else:
                good.append(run)
        if runs and not good:
            raise UserError(f"study {self.recipe.name}: no run could be worked on ({verb}); {self.failures[-1].reason}")
        return good

    def _seconds(self) -> float:
        """Time worked on this study, also before it was last cut off."""
        path = self.folder / TIME_FILE
        now = time.monotonic()
        total = now - self._clock + (float(path.read_text()) if path.is_file() else 0.0)
        self._clock = now
        with files.replacing(path) as temporary:
            temporary.write_text(f"{total:.1f}")
        return total

    def _run_folder(self, run: RunRecipe) -> Path:
        return self.folder / "runs" / run.name

    def _train(self, run: RunRecipe) -> None:
        from trustcxr.training import loop

        folder = self._run_folder(run)
        mending.mend(folder)
        start = None
        if run.defence.start_from == "standard":
            start = self._run_folder(run_recipe(self.recipe, run.model, DefenceRecipe(), run.seed))
        make_unless_there(
            folder / TRAINING_FILE,
            lambda: loop.fit(run, self.datasets["train"], self.datasets["val"], folder, start_from=start),
        )

    def _validate(self, run: RunRecipe) -> None:
        from trustcxr.evaluation import predictions
        from trustcxr.evaluation.run import load_run

        folder = self._run_folder(run)

        def make() -> None:
            loaded, batch_size = load_run(before_refit(folder)), self.recipe.evaluation.batch_size
            table = predictions.predict(loaded, self.datasets["val"], views=False, batch_size=batch_size)
            files.write_table(folder / VALIDATION_FILE, table)

        make_unless_there(folder / VALIDATION_FILE, make)

    def _rank(self, baselines: list[RunRecipe]) -> list[Ranked]:
        by = self.recipe.selection.by
        values: dict[str, list[float]] = {}
        for run in baselines:
            table = files.read_table(self._run_folder(run) / VALIDATION_FILE)
            figures = metrics.classification(
                logits_of(table),
                table["label"].to_numpy(),
                table["group"],
                self.datasets["val"].classes,
                resamples=100,
            )
            values.setdefault(run.model.name, []).append(figures[by])
        ranked = sorted(((float(np.mean(v)), name) for name, v in values.items()), key=lambda pair: (-pair[0], pair[1]))
        count = self.recipe.selection.count
        return [Ranked(model=name, value=value, chosen=i < count) for i, (value, name) in enumerate(ranked)]

    def _test(self, run: RunRecipe) -> None:
        from trustcxr.evaluation import certified, predictions
        from trustcxr.evaluation.run import as_before_refit, load_run
        from trustcxr.evaluation.summary import describe
        from trustcxr.explain import lesions, scores, summary

        folder, test, recipe = self._run_folder(run), self.datasets["test"], self.recipe
        loaded = load_run(folder)

        def predict() -> None:
            options = recipe.evaluation
            table = predictions.predict(
                loaded, test, options.attacks, corruptions=options.corruptions, batch_size=options.batch_size
            )
            files.write_table(folder / PREDICTIONS_FILE, table)

        def prove() -> None:
            radii = {epsilon for attack in recipe.evaluation.attacks for epsilon in attack.epsilons if epsilon}
            files.write_table(folder / CERTIFIED_FILE, certified.prove(loaded, test, sorted(radii)))

        def explain() -> None:
            options = recipe.explanation
            levels = scores.tune(as_before_refit(loaded), self.datasets["val"], options.methods)
            tables = scores.batches(loaded, test, options, thresholds=levels)
            files.write_batches(folder / SALIENCY_FILE, tables)

        def summarise() -> None:
            document = describe(
                loaded,
                files.read_table(folder / PREDICTIONS_FILE),
                validation=files.read_table(folder / VALIDATION_FILE),
                resamples=recipe.evaluation.bootstrap,
            )
            if (folder / SALIENCY_FILE).is_file():
                document.saliency = summary.summarise(
                    files.read_table(folder / SALIENCY_FILE),
                    images=len(test),
                    resamples=recipe.evaluation.bootstrap,
                )
            if (folder / LESIONS_FILE).is_file():
                document.lesions = lesions.described(
                    files.read_table(folder / LESIONS_FILE), resamples=recipe.evaluation.bootstrap
                )
            if (folder / CERTIFIED_FILE).is_file():
                proofs = files.read_table(folder / CERTIFIED_FILE)
                document.certified = certified.describe(proofs, resamples=recipe.evaluation.bootstrap)
            files.write_json(folder / METRICS_FILE, document)

        def counterfactuals() -> None:
            files.write_table(folder / LESIONS_FILE, lesions.of_run(loaded, test))

        make_unless_there(folder / PREDICTIONS_FILE, predict)
        if run.defence.certifies:
            make_unless_there(folder / CERTIFIED_FILE, prove)
        if test.has_mask("infection").any() or test.has_mask("lung").any():
            make_unless_there(folder / SALIENCY_FILE, explain)
        if len(lesions.with_lesions(test)):
            make_unless_there(folder / LESIONS_FILE, counterfactuals)
        make_unless_there(folder / METRICS_FILE, summarise)

    def _show(self, runs: list[RunRecipe]) -> None:
        """The same X-rays for every run's panels; the best and worst among them are known once all are measured."""
        from trustcxr.evaluation.run import load_run
        from trustcxr.explain import examples

        folders = [self._run_folder(run) for run in runs if (self._run_folder(run) / SALIENCY_FILE).is_file()]
        if all((folder / PANELS_FILE).is_file() for folder in folders):
            return
        test, options = self.datasets["test"], self.recipe.explanation
        tables = [files.read_table(folder / SALIENCY_FILE) for folder in folders]
        chosen = examples.choose(test, tables, count=options.panels, method=options.methods[0])
        for folder in folders if chosen else ():
            arrays = examples.panels(load_run(folder), test, chosen, method=options.methods[0])
            files.write_arrays(folder / PANELS_FILE, arrays)

    def _document(
        self, runs: list[RunRecipe], ranking: list[Ranked], datasets: dict[str, "Dataset"], seconds: float
    ) -> StudyDocument:
        folders, recipe = [self._run_folder(run) for run in runs], self.recipe
        tested = [documents.read(RunDocument, folder / METRICS_FILE) for folder in folders]
        for document, folder in zip(tested, folders, strict=True):
            document.training = documents.read(TrainingDocument, folder / TRAINING_FILE)
        return StudyDocument(
            version=VERSION,
            study=recipe.name,
            title=recipe.title,
            notice=NOTICE,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            trustcxr=__version__,
            versions=versions(),
            hardware=hardware(),
            seconds=seconds,
            data=describe_data(self.data, datasets),
            recipe=recipe.model_dump(mode="json"),
            classes=list(datasets["test"].classes),
            selection=Selection(
                split=recipe.data.splits.val, by=recipe.selection.by, count=recipe.selection.count, ranking=ranking
            ),
            runs=tested,
            comparisons=comparison.standard_against_robust(folders, resamples=recipe.evaluation.bootstrap),
            alarms=[alarm.model_copy(update={"run": run.run}) for run in tested for alarm in run.alarms],
            failures=[FailedRun(run=failure.name, reason=failure.reason) for failure in self.failures],
        )


def _differences(before: Any, now: Any, at: str = "") -> list[str]:
    """Dotted keys in which two documents differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(k for k in now if k not in before)]
        return [d for k in keys for d in _differences(before.get(k), now.get(k), f"{at}.{k}".strip("."))]
    plain = files._plain
    return [] if plain(before) == plain(now) else [at]


def summary(document: StudyDocument) -> str:
    """One line for the end of a study."""
    return f"{len(document.runs)} runs, {len(document.alarms)} alarms, {duration(document.seconds or 0)}"
