"""One run at a time: what `train`, `evaluate` and `explain` do with a folder of images and the folder of a run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustcxr import evaluation, recipes, results
from trustcxr.console import say
from trustcxr.data import load_dataset, read_manifest
from trustcxr.errors import UserError
from trustcxr.explain import scoring, summary
from trustcxr.recipes import ExplanationRecipe, RunRecipe

if TYPE_CHECKING:
    import pandas as pd

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
    from trustcxr import attacks, defences, models

    models.architecture(model)
    defences.get(defence["name"])
    attacks.check_epsilon(defence["epsilon"])
    content = {
        "model": {"name": model, "weights": weights},
        "defence": defence,
        "seed": seed,
        "data": {"size": size} | (data or {}),
        "training": training,
    }
    return recipes.validate(RunRecipe, recipes.assign(content, options), "options")


def train(run: RunRecipe, data: Path, folder: Path) -> dict[str, Any]:
    """Train a run into `folder`, or go on with it; its training.json."""
    from trustcxr import models, training

    if (folder / results.RUN_FILE).is_file():
        before = results.read_yaml(folder / results.RUN_FILE).get("recipe") or {}
        # Read as a recipe, so that keys that are new since then have their default.
        if recipes.validate(RunRecipe, before, str(folder / results.RUN_FILE)) != run:
            raise UserError(f"{folder}: holds another run; choose another --out")
        if (folder / results.TRAINING_FILE).is_file():
            say(f"{folder}: already trained")
            return results.read_json(folder / results.TRAINING_FILE)
    # Weights that cannot be had are said before the images are decoded.
    models.build(run.model.name, classes=2, weights=run.model.weights, **run.model.options())
    names = run.data.splits
    parts = [load_dataset(data, split=split, **run.data.reading()) for split in (names.train, names.val)]
    report_skipped(parts[0])
    return training.fit(run, parts[0], parts[1], folder)


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
    labels: Mapping[str, str | None] | None = None,
    listing: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Path]:
    """Predictions and metrics of a run on a data set: the document of metrics.json, and the folder that it is in."""
    conditions = evaluation.conditions(
        attacks or ("fgsm", "pgd"), epsilons or (0.02,), steps=steps, queries=queries, source=source
    )
    run = evaluation.load_run(folder)
    dataset, place = _open(run, data, split, labels, listing)
    predictions = evaluation.predict(run, dataset, conditions)
    document = evaluation.describe(run, predictions)
    if (place / results.SALIENCY_FILE).is_file():
        document["saliency"] = summary.summarise(results.read_table(place / results.SALIENCY_FILE), images=len(dataset))
    results.write_table(place / results.PREDICTIONS_FILE, predictions)
    results.write_json(place / results.METRICS_FILE, document)
    return document, place


def explain(
    folder: Path,
    data: Path,
    *,
    options: Mapping[str, Any] | None = None,
    split: str | None = None,
    labels: Mapping[str, str | None] | None = None,
    listing: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Path]:
    """Saliency of a run measured on a data set; other methods measured there before are kept.

    The table is written a batch at a time. `options`: keys of ExplanationRecipe. Thresholds are tuned on the run's
    validation split where this is its own data; on other data those that were tuned there before are used.
    """
    wanted = recipes.validate(ExplanationRecipe, dict(options or {}), "options")
    scoring.check_options(wanted)
    run = evaluation.load_run(folder)
    scoring.check(run, wanted.methods)
    dataset, place = _open(run, data, split, labels, listing)
    levels = _thresholds(run, data, wanted.methods, labels, listing, own=place == run.folder)
    path = place / results.SALIENCY_FILE
    tables = scoring.batches(run, dataset, wanted, thresholds=levels)
    results.write_batches(path, _with_before(tables, path, scoring.with_random(wanted.methods)))
    metrics_file = place / results.METRICS_FILE
    if not metrics_file.is_file():
        evaluate(folder, data, split=split, labels=labels, listing=listing)
    document = results.read_json(metrics_file)
    document["saliency"] = summary.summarise(results.read_table(path), images=len(dataset))
    results.write_json(metrics_file, document)
    return document, place


def _with_before(tables: "Iterator[pd.DataFrame]", path: Path, methods: Sequence[str]) -> "Iterator[pd.DataFrame]":
    """What `path` already holds of other methods, brought to the columns of the new tables; then these."""
    first = next(tables)
    if path.is_file():
        before = results.read_table(path)
        kept = before[~before["method"].isin(methods)].reindex(columns=first.columns)
        yield kept.assign(severity=kept["severity"].fillna(0).astype(int))
    yield first
    yield from tables


def _thresholds(
    run: evaluation.Run,
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
        return scoring.tune(run, validation, methods)
    if not (run.folder / results.SALIENCY_FILE).is_file():
        return {}
    before = results.read_table(run.folder / results.SALIENCY_FILE)
    tuned = before.dropna(subset=["threshold"]) if "threshold" in before else before[:0]
    return {str(name): float(value) for name, value in tuned.groupby("method")["threshold"].first().items()}


def _open(
    run: evaluation.Run,
    data: Path,
    split: str | None,
    labels: Mapping[str, str | None] | None,
    listing: Mapping[str, Any] | None,
) -> tuple["Dataset", Path]:
    """The data set in the run's size and classes, and where its results go: the run's folder for its own test split."""
    home = results.read_yaml(run.folder / results.RUN_FILE).get("data", {}).get("root_name")
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


def rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """A metrics document as rows for the terminal."""
    clean = document["clean"]
    lines = [
        {
            "condition": "clean",
            "epsilon": "",
            "accuracy": with_interval(clean, "accuracy"),
            "macro F1": f"{clean['f1_macro']:.3f}",
            "AUROC": _number(clean["auroc_macro"]),
            "calibration error": f"{clean['ece']:.3f}",
            "n": clean["n"],
        }
    ]
    for attack in document["attacks"]:
        name = f"{attack['attack']}-{attack['steps']}" if "steps" in attack else attack["attack"]
        lines.append(
            {
                "condition": name,
                "epsilon": f"{attack['epsilon']:g}",
                "accuracy": with_interval(attack, "accuracy"),
                "macro F1": "",
                "AUROC": "",
                "calibration error": f"{attack['ece']:.3f}",
                "n": attack["n"],
            }
        )
    return lines


def saliency_rows(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The saliency of one method as rows for the terminal."""
    measured = part | part.get("faithfulness", {})
    names = [key for key in measured if f"{key}_ci" in measured]
    return [
        {
            "measure": name.replace("_", " "),
            "value": f"{_number(measured[name])} [{', '.join(_number(end) for end in measured[f'{name}_ci'])}]",
            **{beside: _number(measured.get(f"{name}_{beside}")) for beside in ("chance", "centre", "lung")},
        }
        for name in names
    ]


def with_interval(part: dict[str, Any], key: str) -> str:
    """A share as percent with its 95 % interval."""
    low, high = part[f"{key}_ci"]
    return f"{part[key]:.1%} [{low:.1%}, {high:.1%}]"


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"
