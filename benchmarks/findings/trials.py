"""A table of runs that were tried, on validation alone: what each was told beside the defaults, and what it did.

python -m benchmarks.findings.trials RUN... --data COVID-QU-Ex > results/trials-covidqu-mini.md

Each figure is read from the run's history.csv at the epoch whose weights were kept; with --data, accuracy under PGD-20
on all validation images is measured too (and kept in the run's evaluations). Nothing is tested here.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from trustcxr.data import load_dataset
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.training import DefenceRecipe, ModelRecipe, TrainingRecipe
from trustcxr.recipes.validation import validate
from trustcxr.report import markdown
from trustcxr.report.study_folder import Run
from trustcxr.results import documents, files, folders
from trustcxr.results.documents import RunDocument
from trustcxr.study import run_folder
from trustcxr.training.monitor import MONITOR_STEPS

STEPS, EPSILON = 20, 0.02
HEAD = (
    "model", "defence", "training", "images", "epochs", "minutes",
    "clean", "certified", "watched", "FGSM", f"PGD-{MONITOR_STEPS}", f"PGD-{STEPS}, all",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, help="of training: measure PGD-20 on all validation images")
    parser.add_argument("--first", type=int, help="number the rows, from this on")
    given = parser.parse_args()
    fewest = min((n for n in map(watched, given.runs) if n), default=1)
    halfwidth = 100 * 1.96 * math.sqrt(0.25 / fewest)
    given_data = f" --data {given.data.name}" if given.data else ""
    print("# What was tried, on validation")
    print()
    print(
        f"`python -m benchmarks.findings.trials RUN...{given_data}`. A row is one run, of one seed; "
        "the epoch whose weights were kept. "
        "Clean and certified accuracy (by intervals, at the epsilon of training) are of all validation images. "
        f"FGSM and PGD-{MONITOR_STEPS} are of so many of them as "
        f"the column "
        "`watched` says, at the epsilon of training (0.02 unless said): known to about "
        f"{halfwidth:.0f} points either way (95 %) or better, and too high, as the epoch was chosen on them. "
        f"PGD-{STEPS} is of all, at {EPSILON:g}, with its interval; empty where it was not measured. Minutes are of "
        f"one core, which other work may have shared. {constant(given.runs[0], given.data)}Research software, not for "
        "diagnosis."
    )
    print()
    print("\n".join(markdown.table(HEAD if given.first is None else ("trial", *HEAD), [])))
    for number, folder in enumerate(map(folders.before_refit, given.runs)):
        trial = [] if given.first is None else [str(given.first + number)]
        print(markdown.row([*trial, *row(folder), on_all(folder, given.data)]), flush=True)


def constant(folder: Path, data: Path | None) -> str:
    """What one and the same answer to all validation images would have; empty without the data."""
    if data is None:
        return ""
    recipe = validate(RunRecipe, files.read_yaml(folder / folders.RUN_FILE)["recipe"], str(folder))
    films = load_dataset(data, split=recipe.data.splits.val, **recipe.data.reading())
    share = 100 * np.bincount(films.labels).max() / len(films)
    return f"Of the {len(films)} validation images a constant answer has {share:.1f} %. "


def on_all(folder: Path, data: Path | None) -> str:
    """Accuracy under PGD on all validation images, as measured before or now; empty without the data."""
    if data is None:
        return ""
    split = validate(RunRecipe, files.read_yaml(folder / folders.RUN_FILE)["recipe"], str(folder)).data.splits.val
    done = folder / "evaluations" / f"{data.resolve().name}-{split}" / folders.METRICS_FILE
    document = (
        documents.read(RunDocument, done)
        if done.is_file()
        else run_folder.evaluate(folder, data, split=split, attacks=["pgd"], epsilons=[EPSILON], steps=STEPS)[0]
    )
    return markdown.percent(Run(document, folder, []).attacked("pgd", EPSILON).accuracy)


def watched(folder: Path) -> int:
    """On how many validation images the run was attacked after each epoch; 0 where it was not."""
    training = files.read_json(folder / folders.TRAINING_FILE)
    # Runs from before it was written down watched 128.
    return int(training.get("watched_images", 128 if training["monitor"] == "val_pgd_accuracy" else 0))


def row(folder: Path) -> list[str]:
    """One run: what it was told, and its figures."""
    about = files.read_yaml(folder / folders.RUN_FILE)
    run = validate(RunRecipe, about["recipe"], str(folder))
    history = pd.read_csv(folder / folders.HISTORY_FILE)
    training = files.read_json(folder / folders.TRAINING_FILE)
    kept = history[history["epoch"] == training["best_epoch"]].iloc[0]
    figures = [
        f"{100 * kept[name]:.1f}" if name in kept else ""
        for name in ("val_accuracy", "val_certified_accuracy", "val_fgsm_accuracy", "val_pgd_accuracy")
    ]
    figures.insert(2, str(watched(folder) or ""))
    return [
        ", ".join([run.model.name, *told(run.model, ModelRecipe(name=run.model.name), ("name",))]),
        ", ".join([run.defence.name, *told(run.defence, DefenceRecipe(), ("name", "background"))]),
        ", ".join(told(run.training, TrainingRecipe(), ("epochs", "patience"))),
        f"{files.part(about, 'data')['images']} at {run.data.size} pixels",
        str(training["epochs"]),
        f"{training['seconds'] / 60:.1f}",
        *figures,
    ]


def told(recipe: Any, default: Any, without: tuple[str, ...]) -> list[str]:
    """Keys that differ from the default, as words."""
    found = []
    for key in type(recipe).model_fields:
        value, usual = getattr(recipe, key), getattr(default, key)
        if key in without or value == usual or key == "training":
            continue
        if isinstance(value, BaseModel):
            found += told(value, usual, ())
        else:
            found.append(f"{key.replace('_', ' ')} {value}")
    return found


if __name__ == "__main__":
    main()
