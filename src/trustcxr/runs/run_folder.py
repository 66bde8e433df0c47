"""Carry out the steps of one run, for studies and commands alike: train, validate, test, explain, describe."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from trustcxr.certify import affine_graph
from trustcxr.certify.verify import Effort
from trustcxr.console import log
from trustcxr.data import fingerprints, load_dataset
from trustcxr.data.dataset import JoinedDataset
from trustcxr.errors import UserError
from trustcxr.evaluation import certified, generalisation_gap
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.planted_shortcuts import audit
from trustcxr.evaluation.run_figures import describe
from trustcxr.evaluation.trained_run import Run, load_before_refit, load_run
from trustcxr.explain import evaluate as scores
from trustcxr.recipes.evaluation_recipe import EvaluationRecipe, ExplanationRecipe
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import Listing, RunRecipe, Splits
from trustcxr.registry import HEADLINE_ATTACKS, USUAL_ATTACKS
from trustcxr.runs import describe as beside
from trustcxr.runs import explain_run, preflight, repair
from trustcxr.runs import test_data as tested
from trustcxr.runs.from_cli import corruptions_recipe, recipe
from trustcxr.runs.provenance import Results, data_hash, hash_of, read_hash
from trustcxr.runs.test_data import Source, report_skipped
from trustcxr.storage import atomic, layout, prediction_table, schemas
from trustcxr.storage.evaluations import own_figures
from trustcxr.storage.locks import folder_lock
from trustcxr.storage.schemas import Alarm, RunDocument, TrainingDocument

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

__all__ = ["RunFolder", "certify", "evaluate", "explain", "recipe", "report_skipped", "train"]

MEASURED = (layout.PREDICTIONS_FILE, layout.SALIENCY_FILE, layout.LESIONS_FILE, layout.CERTIFIED_FILE)


class RunFolder:
    """One run, step by step. Every step leaves its file whole or not at all, and does nothing if the file is current.

    `folder` holds the run, which its training and its study own. `place` is the folder of the results: of a study the
    run's own; of a command one of its own, which nobody else writes to.
    """

    def __init__(self, folder: Path, place: Path | None = None, *, replace: bool = True) -> None:
        self.folder, self.place, self.replace = folder, place or folder, replace

    @cached_property
    def run(self) -> Run:
        """The run, loaded."""
        return load_run(self.folder)

    @cached_property
    def results(self) -> Results:
        """The files of its results, and what they were made from."""
        return Results(self.place, atomic.checksum(self.folder / layout.WEIGHTS_FILE), self.replace)

    def refuse_another(self, recipe: RunRecipe) -> None:
        """Raise UserError if the folder holds a run of another recipe."""
        path = self.folder / layout.RUN_FILE
        if not path.is_file():
            return
        advice = f"restore it, or move {self.folder} away to train the run from the beginning"
        before = atomic.read_yaml(path, advice=advice).get("recipe") or {}
        if not recipe.same_as(validate(RunRecipe, before, str(path))):
            raise UserError(f"{self.folder}: holds another run; choose another --out")

    def train(self, recipe: RunRecipe, train: "Dataset", val: "Dataset", **how: Any) -> TrainingDocument:
        """Train, or go on; return training.json. UserError if the folder holds another run, or one of other images.

        `how`: devices, as `training.fit` takes them.
        """
        from trustcxr.training import checkpoint, fit_run

        self.refuse_another(recipe)
        fingerprints.check_same_images(self.folder, JoinedDataset(train, val) if recipe.training.refit else train)
        if repair.untrained(self.folder) is not None:
            return fit_run.fit(recipe, train, val, self.folder, **how)
        checkpoint.remove(self.folder)  # left if the training was killed when all but that was done
        return schemas.read_schema(TrainingDocument, self.folder / layout.TRAINING_FILE)

    def validate(self, val: "Dataset", *, batch_size: int = 64) -> None:
        """Write the predictions on the validation images, of the weights that validation judged."""
        name, data = layout.VALIDATION_FILE, data_hash(val)
        own = Results(self.folder, self.results.weights)
        if self.place != self.folder and own.is_current(name, data=data):
            return

        def predicted() -> list[pd.DataFrame]:
            table = evaluation.predict(load_before_refit(self.run), val, views=False, batch_size=batch_size)
            return [table.assign(**{prediction_table.IMAGES: val.fingerprint})]

        self.results.table(name, predicted, data=data)

    def test(self, images: "Dataset", options: EvaluationRecipe) -> None:
        """Write the predictions on `images`: clean, under attack and corrupted."""

        def predicted() -> list[pd.DataFrame]:
            table = evaluation.predict(
                self.run, images, options.attacks, corruptions=options.corruptions, batch_size=options.batch_size
            )
            return [table.assign(**{prediction_table.IMAGES: images.fingerprint})]

        data = data_hash(images, "lung")
        self.results.table(layout.PREDICTIONS_FILE, predicted, data=data, options=explanation_options(options))

    def explain(
        self, images: "Dataset", options: ExplanationRecipe, val: "Dataset | None", *, train: "Dataset | None" = None
    ) -> None:
        """Write the saliency on `images` and, if they have lesion masks, what becomes of the answer without the lesion.

        Thresholds are tuned on `val`; without it they are those of the run's own test images, if measured. Maps are
        held against the mean lesion mask of `train` too.
        """

        def thresholds() -> dict[str, float]:
            return known if val is None else scores.tune_thresholds(load_before_refit(self.run), val, options.methods)

        own = own_figures(self.folder) if val is None and self.place != self.folder else None
        known = explain_run.thresholds_of(None if own is None else own.table(layout.SALIENCY_FILE))
        tuned = hash_of(known=known) if val is None else data_hash(val, "infection", "lung")
        data = data_hash(images, "infection", "lung")
        explain_run.measure(self.results, self.run, images, options, thresholds, data=data, tuned=tuned, train=train)

    def prove(self, images: "Dataset", radii: Sequence[float], *, effort: Effort | None = None) -> None:
        """Write certified.parquet: which answers cannot change within each radius."""
        how = {"radii": sorted(map(float, radii)), "effort": asdict(effort or Effort())}
        self.results.table(
            layout.CERTIFIED_FILE,
            lambda: [certified.prove(self.run, images, radii, effort=effort)],
            data=data_hash(images),
            options=how,
        )

    def describe(
        self, images: "Dataset", *, resamples: int = beside.RESAMPLES, planted: Callable[[], Any] | None = None
    ) -> RunDocument:
        """Write metrics.json from the tables, unless it is current.

        `planted`: what becomes of planted shortcuts, measured if it is asked for.
        """
        path = self.place / layout.METRICS_FILE
        validation, internal = self._beside(images)
        behind = [*(self.place / name for name in MEASURED), *(path for path in (validation, internal) if path)]
        sums = [atomic.checksum(path) if path.is_file() else "" for path in behind]
        key = self.results.key(path.name, tables=sums, resamples=resamples, planted=planted is not None)
        if read_hash(path) == key:
            return schemas.read_schema(RunDocument, path)
        table = atomic.read_table(self.place / layout.PREDICTIONS_FILE)
        known = None if validation is None else atomic.read_table(validation)
        document = describe(self.run, table, validation=known, resamples=resamples)
        document.provenance, document.images = key, images.fingerprint
        document.notes = tested.notes(self.run, images)
        if tested.trained_on(self.run, images):
            document.alarms.insert(0, Alarm(kind="trained_on", text=document.notes[0]))
        if planted is not None:
            document.planted_shortcuts = planted()
        if internal is not None:
            document.drop_from_internal = generalisation_gap.from_internal(atomic.read_table(internal), table)
        beside.describe(document, self.place, images=len(images), resamples=resamples)
        atomic.write_json(path, document)
        self.results.written += (path.name,)
        return document

    def _beside(self, images: "Dataset") -> tuple[Path | None, Path | None]:
        """Return the predictions on validation images to calibrate by, and those on the run's own test images.

        None for the first if there are none, or `images` are they: a temperature fitted on the very images that it is
        judged by would flatter. None for the second if there are none, or `images` are they.
        """
        own = own_figures(self.folder) if self.place != self.folder else None
        other = own if own is not None and own.document.images != images.fingerprint else None
        validation: Path | None = tested.validation_file(self.folder, self.place)
        if validation is not None and not validation.is_file():
            validation = None if other is None else other.table(layout.VALIDATION_FILE)
        if validation is not None and set(
            atomic.read_table(validation, [prediction_table.IMAGES])[prediction_table.IMAGES]
        ) == {images.fingerprint}:
            validation = None
        return validation, None if other is None else other.table(layout.PREDICTIONS_FILE)


def explanation_options(options: EvaluationRecipe) -> dict[str, object]:
    """Return what of an evaluation decides its predictions; a surrogate is known by its weights, not by its folder."""
    attacks = [
        {"name": a.name, "epsilons": list(a.epsilons), **a.options(), "surrogate": _surrogate(a.surrogate)}
        for a in options.attacks
    ]
    corruptions = options.corruptions.conditions() if options.corruptions else ()
    return {"attacks": attacks, "corruptions": list(corruptions), "batch_size": options.batch_size}


def _surrogate(folder: str | None) -> str | None:
    return None if folder is None else atomic.checksum(layout.check_run(Path(folder)) / layout.WEIGHTS_FILE)


# --- what the commands do --------------------------------------------------------------------------------------------


def train(
    run: RunRecipe, data: Path, folder: Path, *, devices: int = 1, nodes: int = 1, strategy: str = "ddp"
) -> TrainingDocument:
    """Train a run into `folder`, or go on with it; return training.json. On so many cards of each of so many machines.

    A run that was trained and lost its weights, or part of them, is trained again; what was measured of it is moved to
    superseded-1.
    """
    from trustcxr.models import factory
    from trustcxr.training.devices import Devices

    tested.check_out(folder, Path(data))
    repair.refuse_foreign(folder)
    machines = Devices(devices, nodes, strategy)
    machines.check_recipe(run, run.training.batch_size)
    if (folder / layout.STUDY_FILE).is_file():
        raise UserError(f"{folder}: holds a study, whose runs it trains itself; give another --out")
    steps = RunFolder(folder)
    steps.refuse_another(run)
    # Networks that do not fit, and weights that cannot be had, are said before the images are decoded.
    factory.check_network(run.model.name, size=run.data.size, **run.model.options())
    done = repair.untrained(folder) is None
    if not done:
        model = factory.build(run.model.name, classes=2, weights=run.model.weights, **run.network_options())
        preflight.learns(run, model)
    names = run.data.splits
    parts = [
        load_dataset(data, split, every=split == names.train, **run.data.reading())
        for split in (names.train, names.val)
    ]
    for note in parts[0].notes:
        log(note)
    report_skipped(*parts)
    preflight.classes({"train": parts[0], "val": parts[1]})
    with folder_lock(folder) if machines.rank == 0 else nullcontext():
        if done:
            log(f"{folder}: already trained")
        elif machines.rank == 0:
            repair.mend(folder)
        return steps.train(run, parts[0], parts[1], devices=machines)


def evaluate(
    folder: Path,
    data: Path,
    *,
    split: str | None = None,
    attacks: Sequence[str] | None = None,
    epsilons: Sequence[float] | None = None,
    steps: int | None = None,
    queries: int | None = None,
    surrogate: Path | None = None,
    sweep: bool = False,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] | None = None,
    shortcuts: bool = False,
    labels: Mapping[str, str | None] | None = None,
    listing: Listing | None = None,
    out: Path | None = None,
) -> tuple[RunDocument, Path]:
    """Measure predictions and metrics of a run on a data set; return metrics.json, and the folder that it is in.

    The folder is one in the run's evaluations/, by the data and the options, or `out`. Asked again, it is current.
    `sweep` adds the epsilons of a whole curve. `corruptions` are names, or "all". `shortcuts`: synthetic images are
    rendered again with each planted shortcut removed or moved to another class. On external data the document also
    holds the drop from the internal test set, if that was evaluated before.
    """
    tested.check_out(out, Path(data))
    radii = [*(evaluation.SWEEP if sweep else ()), *(epsilons or (() if sweep else (0.02,)))]
    conditions = evaluation.conditions(
        attacks or USUAL_ATTACKS, radii, steps=steps, queries=queries, surrogate=surrogate
    )
    options = EvaluationRecipe(attacks=conditions, corruptions=corruptions_recipe(corruptions, severities))
    asked = _Asked.of(folder, Source(data, split, labels, listing))
    with asked.measuring(hash_of(evaluate=explanation_options(options), shortcuts=shortcuts), out) as work:
        return _tested(asked, work, options, shortcuts=shortcuts), work.place


def certify(
    folder: Path,
    data: Path,
    *,
    epsilons: Sequence[float] | None = None,
    effort: Effort | None = None,
    split: str | None = None,
    labels: Mapping[str, str | None] | None = None,
    listing: Listing | None = None,
) -> tuple[RunDocument, Path]:
    """Prove which answers of a run cannot change within epsilon; return metrics.json, and the folder that it is in.

    Beside each proof stands what attacks leave, the worst case of several among them. Asked again, the folder is found
    current. UserError, naming the layer, if the model cannot be bounded, and for an epsilon of 0.
    """
    from trustcxr.attacks.base import check_epsilon

    radii = [check_epsilon(epsilon) for epsilon in sorted(set(epsilons or certified.EPSILONS))]
    if 0 in radii:
        raise UserError("epsilon 0: no pixel may change, so there is nothing to prove; give one above 0")
    run = load_run(folder)
    affine_graph.layers(run.model)  # what cannot be bounded is said before the images are read
    asked = _Asked.of(run, Source(data, split, labels, listing))
    with asked.measuring(hash_of(certify=radii, effort=asdict(effort or Effort()))) as steps:
        steps.prove(asked.images, radii, effort=effort)
        options = EvaluationRecipe(attacks=evaluation.conditions(HEADLINE_ATTACKS, radii))
        return _tested(asked, steps, options), steps.place


def explain(
    folder: Path,
    data: Path,
    *,
    options: Mapping[str, Any] | None = None,
    split: str | None = None,
    labels: Mapping[str, str | None] | None = None,
    listing: Listing | None = None,
    out: Path | None = None,
) -> tuple[RunDocument, Path]:
    """Measure saliency of a run on a data set; return metrics.json, and the folder that it is in.

    The table is written a batch at a time. `options`: keys of ExplanationRecipe. Thresholds are tuned on the run's
    validation split if this is its own data; on other data those that were tuned for its own are used. `out`: the
    folder of the results, unless it is one in the run's evaluations/. Asked again, the folder is found current.
    """
    tested.check_out(out, Path(data))
    wanted = validate(ExplanationRecipe, dict(options or {}), "options")
    scores.check_options(wanted)
    run, given = load_run(folder), Source(data, split, labels, listing)
    scores.check_methods(run, wanted.methods)
    asked = _Asked.of(run, given)
    scores.find_annotated(asked.images)  # images without masks are refused before anything is measured
    how = wanted.model_dump(mode="json", exclude={"panels"})
    with asked.measuring(hash_of(explain=how), out) as steps:
        val = tested.validation_of(run, given, "no threshold is tuned") if asked.own else None
        steps.test(asked.images, EvaluationRecipe(attacks=()))
        steps.explain(asked.images, wanted, val, train=tested.training_of(run, given, asked.images))
        return _described(asked, steps), steps.place


@dataclass(frozen=True)
class _Asked:
    """A run and the images that a command measures it on. own: these are the run's own test images."""

    run: Run
    source: Source
    images: "Dataset"
    own: bool

    @classmethod
    def of(cls, run: Run | Path, source: Source) -> "_Asked":
        run = run if isinstance(run, Run) else load_run(run)
        images = tested.load(run, source)
        return cls(run, source, images, tested.is_own_test(run, images))

    @contextmanager
    def measuring(self, options: str, out: Path | None = None) -> Iterator[RunFolder]:
        """Hold the folder of the results; say if nothing had to be measured. `options`: a hash of what is asked for."""
        options = hash_of(options=options, data=data_hash(self.images, "infection", "lung"))
        place = tested.folder_for(self.run, self.images, options, out)
        steps = RunFolder(self.run.folder, place, replace=out is None)
        steps.__dict__["run"] = self.run  # loaded already
        tested.log_notes(self.run, self.images)
        with folder_lock(out or self.run.folder):
            yield steps
        if not steps.results.written:
            log(f"{place}: measured before, with the same weights, images and options; nothing was computed again")


def _tested(asked: _Asked, steps: RunFolder, options: EvaluationRecipe, *, shortcuts: bool = False) -> RunDocument:
    """Test and describe; return metrics.json."""

    @cache
    def planted() -> Any:
        return audit(asked.run, asked.images.root, split=str(asked.images.split or Splits().test))

    if shortcuts and not (steps.place / layout.METRICS_FILE).is_file():
        planted()  # data on which nothing was planted are refused before anything else is measured
    steps.test(asked.images, options)
    return _described(asked, steps, planted if shortcuts else None)


def _described(asked: _Asked, steps: RunFolder, planted: Callable[[], Any] | None = None) -> RunDocument:
    val = tested.validation_of(asked.run, asked.source, "calibration is not measured") if asked.own else None
    if val is not None:
        steps.validate(val)
    return steps.describe(asked.images, planted=planted)
