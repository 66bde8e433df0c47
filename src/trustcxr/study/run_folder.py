"""One run at a time: what `train`, `evaluate` and `explain` do with a folder of images and the folder of a run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from trustcxr.certify import contract
from trustcxr.certify.proofs import Effort
from trustcxr.console import say
from trustcxr.data import load_dataset, read_manifest
from trustcxr.errors import UserError
from trustcxr.evaluation import certified, metrics
from trustcxr.evaluation import predictions as evaluation
from trustcxr.evaluation.run import Run, as_before_refit, load_run
from trustcxr.evaluation.shortcuts import audit
from trustcxr.evaluation.summary import describe
from trustcxr.explain import lesions, scores, summary
from trustcxr.recipes.run import RunRecipe, Splits
from trustcxr.recipes.testing import CorruptionsRecipe, ExplanationRecipe
from trustcxr.recipes.validation import assign, validate
from trustcxr.results import documents, files, folders
from trustcxr.results.documents import Drop, RunDocument, TrainingDocument
from trustcxr.study import preflight

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset


def recipe(
    *,
    model: str,
    weights: str,
    defence: dict[str, Any],
    size: int,
    seed: int,
    training: dict[str, Any],
    data: dict[str, Any] | None = None,
    options: Sequence[str] = (),
) -> RunRecipe:
    """The recipe of a run from what was typed; `options` are any of its keys, as "defence.beta=3", and win.

    Raises UserError for what it cannot be.
    """
    from trustcxr import attacks, defences
    from trustcxr.models import zoo

    zoo.architectures(model)
    defences.get(defence["name"])
    attacks.check_epsilon(defence["epsilon"])
    content = {
        "model": {"name": model, "weights": weights},
        "defence": defence,
        "seed": seed,
        "data": {"size": size} | (data or {}),
        "training": training,
    }
    chosen = validate(RunRecipe, assign(content, options), "options")
    zoo.architectures(chosen.model.name)
    defences.get(chosen.defence.name)
    return chosen


def train(run: RunRecipe, data: Path, folder: Path) -> TrainingDocument:
    """Train a run into `folder`, or go on with it; its training.json."""
    from trustcxr.models import factory
    from trustcxr.training import loop

    if (folder / folders.RUN_FILE).is_file():
        before = files.read_yaml(folder / folders.RUN_FILE).get("recipe") or {}
        # Read as a recipe, so that keys that are new since then have their default.
        if validate(RunRecipe, before, str(folder / folders.RUN_FILE)) != run:
            raise UserError(f"{folder}: holds another run; choose another --out")
        if (folder / folders.TRAINING_FILE).is_file():
            say(f"{folder}: already trained")
            return documents.read(TrainingDocument, folder / folders.TRAINING_FILE)
    # Networks that do not fit, and weights that cannot be had, are said before the images are decoded.
    factory.check(run.model.name, size=run.data.size, **run.model.options())
    model = factory.build(run.model.name, classes=2, weights=run.model.weights, **run.network_options())
    if run.defence.certifies:
        contract.layers(model)
    names = run.data.splits
    parts = [load_dataset(data, split=split, **run.data.reading()) for split in (names.train, names.val)]
    for note in parts[0].notes:
        say(note)
    report_skipped(parts[0])
    preflight.classes({"train": parts[0], "val": parts[1]})
    return loop.fit(run, parts[0], parts[1], folder)


def report_skipped(dataset: "Dataset") -> None:
    """Say how many images could not be read, and the first of them."""
    if len(dataset.skipped):
        first = dataset.skipped.iloc[0]
        say(f"{len(dataset.skipped)} unreadable images are left out; the first: {first['path']}: {first['reason']}")


def evaluate(
    folder: Path,
    data: Path,
    *,
    split: str | None = None,
    attacks: Sequence[str] | None = None,
    epsilons: Sequence[float] | None = None,
    steps: int | None = None,
    queries: int | None = None,
    source: Path | None = None,
    sweep: bool = False,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] | None = None,
    shortcuts: bool = False,
    labels: Mapping[str, str | None] | None = None,
    listing: Mapping[str, Any] | None = None,
) -> tuple[RunDocument, Path]:
    """Predictions and metrics of a run on a data set: the document of metrics.json, and the folder that it is in.

    `sweep` adds the epsilons of a whole curve. `corruptions` are names, or "all". `shortcuts`: the films of synthetic
    data drawn again, with their planted shortcut removed and moved. On data other than the run's own, what is lost from
    its own test images is told wherever they were evaluated before.
    """
    radii = [*(evaluation.SWEEP if sweep else ()), *(epsilons or (() if sweep else (0.02,)))]
    conditions = evaluation.conditions(attacks or ("fgsm", "pgd"), radii, steps=steps, queries=queries, source=source)
    corrupted = _corruptions(corruptions, severities)
    run = load_run(folder)
    dataset, place = _open(run, data, split, labels, listing)
    _say_if_trained_on(run, dataset)
    planted_shortcuts = audit(run, dataset.root, split=_only(dataset)) if shortcuts else None
    predictions = evaluation.predict(run, dataset, conditions, corruptions=corrupted)
    document = describe(
        run, predictions, validation=_validation(run, data, place, set(dataset.splits), labels, listing)
    )
    internal = run.folder / folders.PREDICTIONS_FILE
    if place != run.folder and internal.is_file():
        drops = metrics.drop_from_internal(files.read_table(internal), predictions)
        document.drop_from_internal = [Drop.model_validate(drop) for drop in drops]
    if planted_shortcuts is not None:
        document.planted_shortcuts = planted_shortcuts
    if (place / folders.CERTIFIED_FILE).is_file():
        document.certified = certified.describe(files.read_table(place / folders.CERTIFIED_FILE))
    if (place / folders.SALIENCY_FILE).is_file():
        document.saliency = summary.summarise(files.read_table(place / folders.SALIENCY_FILE), images=len(dataset))
    if (place / folders.LESIONS_FILE).is_file():
        document.lesions = lesions.described(files.read_table(place / folders.LESIONS_FILE))
    files.write_table(place / folders.PREDICTIONS_FILE, predictions)
    files.write_json(place / folders.METRICS_FILE, document)
    return document, place


def certify(
    folder: Path,
    data: Path,
    *,
    epsilons: Sequence[float] | None = None,
    effort: Effort | None = None,
    split: str | None = None,
    labels: Mapping[str, str | None] | None = None,
    listing: Mapping[str, Any] | None = None,
) -> tuple[RunDocument, Path]:
    """Prove which answers of a run cannot change within epsilon: certified.parquet, and `certified` in metrics.json.

    Other epsilons that were certified there before are kept. Where the run was not evaluated on these images yet, that
    is done first, so that accuracy under attack stands beside.
    Raises UserError, naming the layer, where the model cannot be bounded.
    """
    from trustcxr.attacks.contract import check_epsilon

    radii = [check_epsilon(epsilon) for epsilon in dict.fromkeys(epsilons or certified.EPSILONS)]
    run = load_run(folder)
    contract.layers(run.model)  # what cannot be bounded is said before the images are read
    dataset, place = _open(run, data, split, labels, listing)
    _say_if_trained_on(run, dataset)
    table, path = certified.prove(run, dataset, radii, effort=effort), place / folders.CERTIFIED_FILE
    if path.is_file():
        before = files.read_table(path)
        table = pd.concat([before[~before["epsilon"].isin(radii)], table]).sort_values("epsilon", kind="stable")
    files.write_table(path, table.reset_index(drop=True))
    if not (place / folders.METRICS_FILE).is_file():
        return evaluate(folder, data, split=split, epsilons=radii, labels=labels, listing=listing)
    document = documents.read(RunDocument, place / folders.METRICS_FILE)
    document.certified = certified.describe(table)
    files.write_json(place / folders.METRICS_FILE, document)
    return document, place


def _corruptions(names: Sequence[str] | None, severities: Sequence[int] | None) -> CorruptionsRecipe | None:
    if not names and not severities:
        return None
    content = {
        "names": "all" if not names or "all" in names else list(names),
        "severities": list(severities or CorruptionsRecipe().severities),
    }
    return validate(CorruptionsRecipe, content, "--corruption and --severity")


def _only(dataset: "Dataset") -> str:
    return str(dataset.split or Splits().test)


def _validation(
    run: Run,
    data: Path,
    place: Path,
    tested: set[str],
    labels: Mapping[str, str | None] | None,
    listing: Mapping[str, Any] | None,
) -> pd.DataFrame | None:
    """Predictions on the run's validation images, made now where they are at hand and were not made before."""
    path = run.folder / folders.VALIDATION_FILE
    if path.is_file():
        table = files.read_table(path)
    elif place == run.folder:
        try:
            dataset, _ = _open(run, data, run.recipe.data.splits.val, labels, listing)
        except UserError as problem:
            say(f"calibration is not measured: {problem}")
            return None
        table = evaluation.predict(as_before_refit(run), dataset, views=False)
        files.write_table(path, table)
    else:
        return None
    # A temperature fitted on the very images that it is judged by would flatter.
    return (
        None if place != run.folder and set(table["split"]) == tested and place.name.startswith(_root(run)) else table
    )


def _root(run: Run) -> str:
    return str(files.read_yaml(run.folder / folders.RUN_FILE).get("data", {}).get("root_name"))


def explain(
    folder: Path,
    data: Path,
    *,
    options: Mapping[str, Any] | None = None,
    split: str | None = None,
    labels: Mapping[str, str | None] | None = None,
    listing: Mapping[str, Any] | None = None,
) -> tuple[RunDocument, Path]:
    """Saliency of a run measured on a data set; other methods measured there before are kept.

    The table is written a batch at a time. `options`: keys of ExplanationRecipe. Thresholds are tuned on the run's
    validation split where this is its own data; on other data those that were tuned there before are used.
    """
    wanted = validate(ExplanationRecipe, dict(options or {}), "options")
    scores.check_options(wanted)
    run = load_run(folder)
    scores.check(run, wanted.methods)
    dataset, place = _open(run, data, split, labels, listing)
    _say_if_trained_on(run, dataset)
    levels = _thresholds(run, data, wanted.methods, labels, listing, own=place == run.folder)
    path = place / folders.SALIENCY_FILE
    tables = scores.batches(run, dataset, wanted, thresholds=levels)
    files.write_batches(path, _with_before(tables, path, scores.with_random(wanted.methods)))
    metrics_file = place / folders.METRICS_FILE
    if not metrics_file.is_file():
        evaluate(folder, data, split=split, labels=labels, listing=listing)
    document = documents.read(RunDocument, metrics_file)
    document.saliency = summary.summarise(files.read_table(path), images=len(dataset))
    found = lesions.of_run(run, dataset)
    if len(found):
        files.write_table(place / folders.LESIONS_FILE, found)
        document.lesions = lesions.described(found)
    files.write_json(metrics_file, document)
    return document, place


def _with_before(tables: Iterator[pd.DataFrame], path: Path, methods: Sequence[str]) -> Iterator[pd.DataFrame]:
    """What `path` already holds of other methods, brought to the columns of the new tables; then these."""
    first = next(tables)
    if path.is_file():
        before = files.read_table(path)
        kept = before[~before["method"].isin(methods)].reindex(columns=first.columns)
        yield kept.assign(severity=kept["severity"].fillna(0).astype(int))
    yield first
    yield from tables


def _thresholds(
    run: Run,
    data: Path,
    methods: Sequence[str],
    labels: Mapping[str, str | None] | None,
    listing: Mapping[str, Any] | None,
    *,
    own: bool,
) -> dict[str, float]:
    """Tuned on the run's own validation split; on other data as they were tuned there before, where they were."""
    if own:
        try:
            validation, _ = _open(run, data, run.recipe.data.splits.val, labels, listing)
        except UserError as problem:
            say(f"no threshold is tuned: {problem}")
            return {}
        return scores.tune(as_before_refit(run), validation, methods)
    if not (run.folder / folders.SALIENCY_FILE).is_file():
        return {}
    before = files.read_table(run.folder / folders.SALIENCY_FILE)
    tuned = before.dropna(subset=["threshold"]) if "threshold" in before else before[:0]
    return {str(name): float(value) for name, value in tuned.groupby("method")["threshold"].first().items()}


def _open(
    run: Run,
    data: Path,
    split: str | None,
    labels: Mapping[str, str | None] | None,
    listing: Mapping[str, Any] | None,
) -> tuple["Dataset", Path]:
    """The data set in the run's size and classes, and where its results go: the run's folder for its own test split."""
    home = _root(run)
    recipe = run.recipe.data
    try:
        manifest = read_manifest(data, **(recipe.listing() | dict(listing or {})))
    except UserError:
        # Another hospital's data need not look like those that the run was trained on.
        manifest = read_manifest(data, **dict(listing or {}))
    own = manifest.root.name == home
    wanted = split or (recipe.splits.test if own else None)
    dataset = load_dataset(
        manifest,
        wanted,
        run.size,
        classes=run.classes,
        resize=recipe.resize,
        labels=dict(labels or {}) or recipe.labels,
    )
    report_skipped(dataset)
    if own and wanted == recipe.splits.test:
        return dataset, run.folder
    return dataset, run.folder / "evaluations" / f"{dataset.root.name}-{wanted or 'all'}"


def _say_if_trained_on(run: Run, dataset: "Dataset") -> None:
    splits = run.recipe.data.splits
    trained_on = (splits.train, splits.val) if run.recipe.training.refit else (splits.train,)
    if dataset.root.name == _root(run) and dataset.split in trained_on:
        say(f"{run.name} was trained on the split {dataset.split}: what is measured there flatters it")
