"""Train, validate, test, explain and describe one run, for studies and commands."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pandas as pd
import torch

from trustcxr.certify import verify
from trustcxr.certify.verify import Effort
from trustcxr.console import log, plural
from trustcxr.data import load_dataset
from trustcxr.data.dataset import Dataset, JoinedDataset, check_same_images
from trustcxr.errors import UserError
from trustcxr.evaluation import certified, hub, run_figures, trained_models
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.planted_shortcuts import audit
from trustcxr.evaluation.trained_run import Run, load_before_refit, load_run
from trustcxr.explain import evaluate as scores
from trustcxr.explain import ood
from trustcxr.recipes.evaluation_recipe import CorruptionsRecipe, EvaluationRecipe, ExplanationRecipe
from trustcxr.recipes.parsing import assign, validate
from trustcxr.recipes.run_recipe import RunRecipe, Splits, check_splits, check_unused
from trustcxr.registry import HEADLINE_ATTACKS, USUAL_ATTACKS
from trustcxr.runs import explain_run, preflight
from trustcxr.runs import test_data as tested
from trustcxr.runs.provenance import MEASURED, TABLES, Results, data_hash, hash_of, read_hash
from trustcxr.runs.test_data import Source, report_skipped
from trustcxr.runs.training_data import add_data, check_added
from trustcxr.statistics import Bootstrap, share_interval
from trustcxr.storage import atomic, layout, prediction_table, schemas
from trustcxr.storage.evaluations import own_figures
from trustcxr.storage.locks import folder_lock
from trustcxr.storage.schemas import Alarm, OodDocument, RunDocument, Share, TrainingDocument

_FIGURES = (*TABLES, layout.METRICS_FILE)
_OTHERS = (layout.EXAMPLES_FILE, layout.OOD_FILE, layout.AUDIT_FILE, layout.HISTORY_FILE, layout.IMAGES_FILE)
_ALSO = (
    *("evaluations", "report.*", "report-*.csv", "model_card.md", "model.onnx*", "model.yaml", "program.*"),
    *("checkpoint", layout.BEFORE_REFIT),
)
_STAYS = ("checkpoint", layout.FAILURE_FILE, layout.TIMINGS_FILE)  # if a damaged run is set aside


class RunFolder:
    """One run, step by step. Every step writes its file whole or not at all, and does nothing if the file is current.

    `folder` holds the trained run. `out` is the folder of the results: the run's own in a study, else one of a command.
    """

    def __init__(self, folder: Path, out: Path | None = None, *, replace: bool = True) -> None:
        self.folder, self.out, self.replace = folder, out or folder, replace

    @cached_property
    def run(self) -> Run:
        """The loaded run."""
        return load_run(self.folder)

    @cached_property
    def results(self) -> Results:
        """The files of the results, with their provenance."""
        return Results(self.out, atomic.checksum(self.folder / layout.WEIGHTS_FILE), self.replace)

    def check_recipe(self, recipe: RunRecipe) -> None:
        """Raise UserError if the folder holds a run of another recipe."""
        path = self.folder / layout.RUN_FILE
        if not path.is_file():
            return
        advice = f"restore it, or move {self.folder} away to train the run from the beginning"
        before = atomic.read_yaml(path, advice=advice).get("recipe") or {}
        if not recipe.same_as(validate(RunRecipe, before, str(path))):
            raise UserError(f"{self.folder}: holds another run; choose another --out")

    def train(self, recipe: RunRecipe, train: Dataset, val: Dataset, **options: Any) -> TrainingDocument:
        """Train or resume; return training.json. Raises UserError if the folder holds another run or other images.

        The recipe's added data sets join `train`, if none has an image that another validates or tests on.
        `options`: of `fit_run.fit`.
        """
        from trustcxr.training import checkpoint, fit_run

        self.check_recipe(recipe)
        images = add_data(train, recipe.data)
        check_same_images(self.folder, JoinedDataset(images, val) if recipe.training.refit else images)
        if untrained(self.folder) is not None:
            if not (self.folder / layout.RUN_FILE).is_file():  # checked at its first start
                check_added(images, recipe.data, refit=recipe.training.refit)
            return fit_run.fit(recipe, images, val, self.folder, **options)
        checkpoint.remove(self.folder)  # left if the training was killed at its end
        return schemas.read_schema(TrainingDocument, self.folder / layout.TRAINING_FILE)

    def validate(self, val: Dataset, *, batch_size: int = 64) -> None:
        """Write the predictions on the validation images, of the weights before a refit."""
        name, data = layout.VALIDATION_FILE, data_hash(val)
        if self.out != self.folder and Results(self.folder, self.results.weights).is_current(name, data=data):
            return

        self.results.table(
            name, lambda: _predict(load_before_refit(self.run), val, views=False, batch_size=batch_size), data=data
        )

    def test(self, images: Dataset, options: EvaluationRecipe) -> None:
        """Write the predictions on `images`: clean, under attack and corrupted."""
        settings = {"corruptions": options.corruptions, "batch_size": options.batch_size}
        self.results.table(
            layout.PREDICTIONS_FILE,
            lambda: _predict(self.run, images, conditions=options.attacks, **settings),
            data=data_hash(images, "lung"),
            options=prediction_options(options),
        )

    def explain(
        self, images: Dataset, options: ExplanationRecipe, val: Dataset | None, *, train: Dataset | None = None
    ) -> None:
        """Write the saliency on `images` and, if they have lesion masks, the lesion effects.

        Thresholds are tuned on `val`; without it they are those of the run's own test images, if measured. Maps are
        compared with the mean lesion mask of `train` too.
        """

        def thresholds() -> dict[str, float]:
            if val is None:
                return tuned_before
            return scores.tune_thresholds(load_before_refit(self.run), val, options.methods)

        figures = own_figures(self.folder) if val is None and self.out != self.folder else None
        tuned_before = explain_run.thresholds_of(None if figures is None else figures.table(layout.SALIENCY_FILE))
        tuned = hash_of(known=tuned_before) if val is None else data_hash(val, "infection", "lung")
        data = data_hash(images, "infection", "lung")
        explain_run.measure(self.results, self.run, images, options, thresholds, data=data, tuned=tuned, train=train)

    def prove(self, images: Dataset, radii: Sequence[float], *, effort: Effort | None = None) -> None:
        """Write certified.parquet: which answers cannot change within each radius."""
        self.results.table(
            layout.CERTIFIED_FILE,
            lambda: [certified.prove(self.run, images, radii, effort=effort)],
            data=data_hash(images),
            options={"radii": sorted(map(float, radii)), "effort": asdict(effort or Effort())},
        )

    def describe(
        self, images: Dataset, *, resamples: int = explain_run.RESAMPLES, planted: Callable[[], Any] | None = None
    ) -> RunDocument:
        """Write metrics.json from the tables, unless it is current. `planted`: measures planted shortcuts."""
        path = self.out / layout.METRICS_FILE
        validation, internal = self._other_tables(images)
        tables = [*(self.out / name for name in MEASURED), *(path for path in (validation, internal) if path)]
        sums = [atomic.checksum(path) if path.is_file() else "" for path in tables]
        key = self.results.key(path.name, tables=sums, resamples=resamples, planted=planted is not None)
        if read_hash(path) == key:
            return schemas.read_schema(RunDocument, path)
        table = atomic.read_table(self.out / layout.PREDICTIONS_FILE)
        val = None if validation is None else atomic.read_table(validation)
        document = run_figures.describe(self.run, table, validation=val, resamples=resamples)
        document.provenance, document.images = key, images.fingerprint
        document.notes = tested.notes(self.run, images)
        if tested.trained_on(self.run, images):
            document.alarms.insert(0, Alarm(kind="trained_on", text=document.notes[0]))
        if planted is not None:
            document.planted_shortcuts = planted()
        if internal is not None:
            document.drop_from_internal = run_figures.compare_with_internal(atomic.read_table(internal), table)
        explain_run.add_tables(document, self.out, images=len(images), resamples=resamples)
        atomic.write_json(path, document)
        self.results.written += (path.name,)
        return document

    def _other_tables(self, images: Dataset) -> tuple[Path | None, Path | None]:
        """Return the predictions on validation images to calibrate by, and those on the run's own test images."""
        internal = own_figures(self.folder) if self.out != self.folder else None
        if internal is not None and internal.document.images == images.fingerprint:
            internal = None
        validation: Path | None = tested.validation_file(self.folder, self.out)
        if validation is not None and not validation.is_file():
            validation = None if internal is None else internal.table(layout.VALIDATION_FILE)
        if validation is not None:
            column = atomic.read_table(validation, [prediction_table.IMAGES])[prediction_table.IMAGES]
            validation = None if set(column) == {images.fingerprint} else validation
        return validation, None if internal is None else internal.table(layout.PREDICTIONS_FILE)


def _predict(run: Run, images: Dataset, **options: Any) -> list[pd.DataFrame]:
    table = evaluation.predict(run, images, **options)
    return [table.assign(**{prediction_table.IMAGES: images.fingerprint})]


def prediction_options(options: EvaluationRecipe) -> dict[str, object]:
    """Return the options that decide predictions; a surrogate counts by its weights, not by its folder."""
    attacks = [
        {"name": a.name, "epsilons": list(a.epsilons), **a.options(), "surrogate": _surrogate(a.surrogate)}
        for a in options.attacks
    ]
    corruptions = options.corruptions.conditions() if options.corruptions else ()
    return {"attacks": attacks, "corruptions": list(corruptions), "batch_size": options.batch_size}


def _surrogate(folder: str | None) -> str | None:
    return None if folder is None else atomic.checksum(layout.check_run(Path(folder)) / layout.WEIGHTS_FILE)


def supersede_damaged(run: Path) -> None:
    """Move the files of a trained run that cannot be used into superseded-N; leave an unfinished training alone.

    Tables need no repair: a damaged one, or one of other weights, is not current and is measured again.
    """
    if not any(_exists(run / name) for name in (layout.TRAINING_FILE, *_FIGURES)):
        if _exists(run / layout.BEFORE_REFIT / layout.TRAINING_FILE):
            supersede_damaged(run / layout.BEFORE_REFIT)
        return
    if (why := untrained(run)) is None:
        return
    number = next(n for n in itertools.count(1) if not (run / f"superseded-{n}").exists())
    target = run / f"superseded-{number}"
    log(f"{run.name}: {why}: trained again; all that was there is moved to {target.name}")
    target.mkdir()
    last = (*_FIGURES, layout.TRAINING_FILE)  # so that a move that is cut off resumes at the next start
    for path in sorted(run.iterdir(), key=lambda path: (path.name in last, path.name == layout.TRAINING_FILE)):
        if not path.name.startswith((".", "superseded-")) and path.name not in _STAYS:
            path.rename(target / path.name)


def untrained(run: Path) -> str | None:
    """Return why a run is not trained or cannot be used; None if it can be used."""
    if not _exists(run / layout.TRAINING_FILE):
        return f"{layout.TRAINING_FILE} is missing"
    if not atomic.is_readable(run / layout.TRAINING_FILE):
        return f"{layout.TRAINING_FILE} is damaged"
    try:
        content = atomic.read_yaml(layout.check_run(run) / layout.RUN_FILE)
        if not isinstance(content["recipe"], dict) or not content["classes"]:
            return f"{layout.RUN_FILE} is damaged"
        layout.check_sums(run, content)
    except UserError as problem:
        return str(problem)
    except (KeyError, TypeError):
        return f"{layout.RUN_FILE} is damaged"
    except OSError as problem:
        return f"{problem.filename or run}: {(problem.strerror or str(problem)).lower()}"
    return None


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


# --- commands --------------------------------------------------------------------------------------------------------


class DefenceOptions(TypedDict):
    """Options of a defence."""

    name: str
    epsilon: NotRequired[float]
    ramp: NotRequired[float]
    clean_weight: NotRequired[float]


def recipe(
    *,
    model: str,
    weights: str,
    defence: DefenceOptions,
    size: int,
    seed: int,
    training: Mapping[str, object],
    data: Mapping[str, object] | None = None,
    options: Sequence[str] = (),
) -> RunRecipe:
    """Build the recipe of a run; `options`, such as "defence.beta=3", override other arguments.

    Raises UserError for an invalid value, and for a key without effect.
    """
    from trustcxr import attacks, defences
    from trustcxr.models import factory

    if "epsilon" in defence:
        attacks.check_epsilon(defence["epsilon"])
    content = {
        "model": {"name": model, "weights": weights},
        "defence": defence,
        "seed": seed,
        "data": {"size": size, **(data or {})},
        "training": training,
    }
    run = validate(RunRecipe, assign(content, options), "options")
    factory.architectures(run.model.name)
    defences.get(run.defence.name)
    check_splits(run.data.splits)
    try:
        check_unused([run.training])
    except UserError as problem:
        raise UserError(f"options: {problem}") from None
    return run


def train(
    run: RunRecipe, data: Path, folder: Path, *, devices: int = 1, nodes: int = 1, strategy: str = "ddp"
) -> TrainingDocument:
    """Train or resume a run in `folder`, on `devices` of each of `nodes` machines; return training.json.

    A run whose weights are lost or damaged is trained again; its results are moved to superseded-1.
    """
    from trustcxr.models import factory
    from trustcxr.training.devices import Devices

    tested.check_out(folder, Path(data))
    markers = (layout.RUN_FILE, layout.TRAINING_FILE, layout.WEIGHTS_FILE)
    layout.check_foreign(folder, (*_FIGURES, *_OTHERS, *_ALSO), markers)
    workers = Devices(devices, nodes, strategy)
    workers.check_recipe(run, run.training.batch_size)
    if (folder / layout.STUDY_FILE).is_file():
        raise UserError(f"{folder}: holds a study, whose runs it trains itself; give another --out")
    steps = RunFolder(folder)
    steps.check_recipe(run)
    # Fail for a network that does not fit, or missing weights, before the images are decoded.
    factory.check_network(run.model.name, size=run.data.size, **run.model.options())
    done = untrained(folder) is None
    if not done:
        model = factory.build(run.model.name, classes=2, weights=run.model.weights, **run.network_options())
        if run.defence.certifies:
            verify.layers(model)  # fails for a layer without bounds
    train = load_dataset(data, run.data.splits.train, every=True, **run.data.reading())
    val = load_dataset(data, run.data.splits.val, **run.data.reading())
    for note in train.notes:
        log(note)
    report_skipped(train, val)
    preflight.check_classes({"train": train, "val": val})
    with folder_lock(folder) if workers.rank == 0 else nullcontext():
        if done:
            log(f"{folder}: already trained")
        elif workers.rank == 0:
            supersede_damaged(folder)
        return steps.train(run, train, val, devices=workers)


def evaluate(
    folder: Path,
    data: Path,
    *,
    attacks: Sequence[str] | None = None,
    epsilons: Sequence[float] | None = None,
    steps: int | None = None,
    queries: int | None = None,
    surrogate: Path | None = None,
    sweep: bool = False,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] | None = None,
    shortcuts: bool = False,
    out: Path | None = None,
    **reading: Any,
) -> tuple[RunDocument, Path]:
    """Measure predictions and metrics of a run on a data set; return metrics.json and its folder.

    The folder is one in the run's evaluations/, by data and options, or `out`; a current one is not measured again.
    `sweep` adds the epsilons of a curve. `corruptions`: names, or "all". `shortcuts`: also render synthetic images with
    each planted shortcut removed or moved to another class. On external data the document has the drop from the
    internal test set, if that was evaluated. `reading`: split, labels and listing, of `Source`.
    """
    tested.check_out(out, Path(data))
    radii = [*(evaluation.SWEEP if sweep else ()), *(epsilons or (() if sweep else (0.02,)))]
    conditions = evaluation.conditions(
        attacks or USUAL_ATTACKS, radii, steps=steps, queries=queries, surrogate=surrogate
    )
    options = EvaluationRecipe(attacks=conditions, corruptions=_corruptions_recipe(corruptions, severities))
    tested_run = _TestedRun(load_run(folder), Source(data, **reading))
    with tested_run.open_results(hash_of(evaluate=prediction_options(options), shortcuts=shortcuts), out) as work:
        return _test(tested_run, work, options, shortcuts=shortcuts), work.out


def certify(
    folder: Path, data: Path, *, epsilons: Sequence[float] | None = None, effort: Effort | None = None, **reading: Any
) -> tuple[RunDocument, Path]:
    """Prove which answers of a run cannot change within epsilon; return metrics.json and its folder, as `evaluate`.

    The run is attacked too. Raises UserError if a layer cannot be bounded, and for an epsilon of 0.
    """
    from trustcxr.attacks.base import check_epsilon

    radii = [check_epsilon(epsilon) for epsilon in sorted(set(epsilons or certified.EPSILONS))]
    if 0 in radii:
        raise UserError("epsilon 0: no pixel may change, so there is nothing to prove; give one above 0")
    run = load_run(folder)
    verify.layers(run.model)  # fails before the images are read
    tested_run = _TestedRun(run, Source(data, **reading))
    with tested_run.open_results(hash_of(certify=radii, effort=asdict(effort or Effort()))) as steps:
        steps.prove(tested_run.images, radii, effort=effort)
        options = EvaluationRecipe(attacks=evaluation.conditions(HEADLINE_ATTACKS, radii))
        return _test(tested_run, steps, options), steps.out


def explain(
    folder: Path, data: Path, *, options: Mapping[str, Any] | None = None, out: Path | None = None, **reading: Any
) -> tuple[RunDocument, Path]:
    """Measure saliency of a run on a data set; return metrics.json and its folder, as `evaluate`.

    `options`: keys of ExplanationRecipe. Thresholds are tuned on the run's validation split if this is its own data;
    other data use those thresholds.
    """
    tested.check_out(out, Path(data))
    recipe = validate(ExplanationRecipe, dict(options or {}), "options")
    scores.check_options(recipe)
    run, source = load_run(folder), Source(data, **reading)
    scores.check_methods(run, recipe.methods)
    tested_run = _TestedRun(run, source)
    images = tested_run.images
    scores.find_annotated(images)  # fails for images without masks before anything is measured
    with tested_run.open_results(hash_of(explain=recipe.model_dump(mode="json", exclude={"panels"})), out) as steps:
        val = tested_run.validation("no threshold is tuned")
        steps.test(images, EvaluationRecipe(attacks=()))
        steps.explain(images, recipe, val, train=tested.training_of(run, source, images))
        return _describe(tested_run, steps), steps.out


def fit_ood(folder: Path, data: Path, **reading: Any) -> OodDocument:
    """Fit the detector of unlike images on training images, and count its false alarms on test images.

    The threshold is set on validation images. `reading`: labels and listing, of `Source`. Writes ood.safetensors into
    the run's folder. Raises UserError if the data are not those of the run, or the run is a trained model of the
    package.
    """
    folder = trained_models.resolve(folder)
    if hub.is_address(folder):
        raise UserError(f"{folder}: is on a hub. Copy its files into a folder, and fit it there")
    if name := trained_models.name_of(folder):
        raise UserError(f"{name}: comes with the statistics of its training images. It needs no fit-ood.")
    run, source = load_run(folder), Source(data, **reading)
    splits = run.recipe.data.splits
    train, val, test = (tested.load(run, source, split) for split in (splits.train, splits.val, splits.test))
    if not tested.trained_on(run, train):
        raise UserError(f"{data}: {run.name} was not trained on these images; give the data that it was trained on")
    images = add_data(train, run.recipe.data)
    log(f"fitting on {plural(len(images), 'image')}")
    with folder_lock(run.folder):
        detector = ood.fit(run, images, val)
        ood.save(detector, run.folder)
    scores = torch.cat([detector.score(run, images) for images in ood.batches(test)])
    alarms, bootstrap = (scores > detector.threshold).double(), Bootstrap.over(test.groups)
    low, high = share_interval(bootstrap, bootstrap.means(alarms.numpy()))
    return OodDocument(
        run=run.name,
        accepted=ood.ACCEPTED,
        threshold=detector.threshold,
        false_alarms=Share(value=float(alarms.mean()), ci=(low, high)),
        trained=len(images),
        validated=len(val),
        tested=len(test),
    )


def _corruptions_recipe(names: Sequence[str] | None, severities: Sequence[int] | None) -> CorruptionsRecipe | None:
    """Build a recipe of corruptions: all of them without `names`; None if both arguments are empty."""
    if not names and not severities:
        return None
    content = {
        "names": "all" if not names or "all" in names else list(names),
        "severities": list(severities or CorruptionsRecipe().severities),
    }
    return validate(CorruptionsRecipe, content, "--corruption and --severity")


@dataclass(frozen=True)
class _TestedRun:
    """A run and the images that a command measures it on."""

    run: Run
    source: Source

    @cached_property
    def images(self) -> Dataset:
        return tested.load(self.run, self.source)

    def validation(self, consequence: str) -> Dataset | None:
        """Return the run's validation images if the images are its own test images; else None, or log why not."""
        if tested.is_own_test(self.run, self.images):
            try:
                return tested.load(self.run, self.source, self.run.recipe.data.splits.val)
            except UserError as problem:
                log(f"{consequence}: {problem}")
        return None

    @contextmanager
    def open_results(self, options: str, out: Path | None = None) -> Iterator[RunFolder]:
        """Lock the folder of the results; log if all were current. `options`: a hash of the command's options."""
        options = hash_of(options=options, data=data_hash(self.images, "infection", "lung"))
        folder = tested.folder_for(self.run, self.images, options, out)
        steps = RunFolder(self.run.folder, folder, replace=out is None)
        steps.__dict__["run"] = self.run  # loaded already
        for note in tested.notes(self.run, self.images):
            log(note)
        with folder_lock(out or trained_models.results_folder(self.run.folder)):
            yield steps
        if not steps.results.written:
            log(f"{folder}: measured before, with the same weights, images and options; nothing was computed again")


def _test(run: _TestedRun, steps: RunFolder, options: EvaluationRecipe, *, shortcuts: bool = False) -> RunDocument:
    images = run.images

    @cache
    def planted() -> Any:
        return audit(run.run, images.root, split=str(images.split or Splits().test))

    if shortcuts and not (steps.out / layout.METRICS_FILE).is_file():
        planted()  # fails for data without planted shortcuts before anything else is measured
    steps.test(images, options)
    return _describe(run, steps, planted if shortcuts else None)


def _describe(run: _TestedRun, steps: RunFolder, planted: Callable[[], Any] | None = None) -> RunDocument:
    if (val := run.validation("calibration is not measured")) is not None:
        steps.validate(val)
    return steps.describe(run.images, planted=planted)
