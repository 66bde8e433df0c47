"""Add a trial to a table: trained runs, by their predictions on validation images, clean and under attack.

python -m benchmarks.trials RUN... --trial NAME --what TEXT [--study robust] [--table studies/trials/results.csv]

Each run needs `trustcxr evaluate RUN --data DATA --split Val --attack pgd --epsilon 0.02 --steps 20`. Figures are means
over the runs (seeds), in percent, with 95 % intervals over groups of images. `--against RUN` (repeatable) adds the
difference from other runs, image by image.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from trustcxr.errors import UserError
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.statistics import Bootstrap, paired, share_interval
from trustcxr.storage import atomic

TABLE = Path("studies/trials/results.csv")
FIGURES = [f"{name}{end}" for name in ("clean", "attacked") for end in ("", "_low", "_high")]
COLUMNS = ["study", "trial", "what", "also", "seeds", "n", *FIGURES[:3], "attack", "epsilon", *FIGURES[3:]]
COLUMNS += ["recipe", "command"]  # `also`: other figures, in words


def append_trial(table: Path, row: dict[str, object]) -> None:
    """Replace or add the row of a trial's name; what follows the first semicolon of `what` is its `also`."""
    if "also" not in row:
        what, _, also = str(row["what"]).partition("; ")
        row = row | {"what": what, "also": also}
    rows = pd.read_csv(table, dtype=str) if table.is_file() else pd.DataFrame(columns=COLUMNS)
    rows = rows[rows["trial"] != row["trial"]]
    rows = pd.concat([rows, pd.DataFrame([row], columns=COLUMNS).fillna("").astype(str)], ignore_index=True)
    table.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(table, index=False)


def percent(correct: np.ndarray, groups: np.ndarray, name: str) -> dict[str, str]:
    """Return a mean of `correct` (N,) and its interval as columns, in percent."""
    bootstrap = Bootstrap.over(groups)
    means = bootstrap.means(correct)
    low, high = share_interval(bootstrap, means)
    figures = {name: float(means[0]), f"{name}_low": low, f"{name}_high": high}
    return {key: f"{100 * value:.1f}" for key, value in figures.items()}


def typed_command() -> str:
    """Return the command that was typed, with the names of folders alone."""
    module = Path(sys.argv[0]).stem
    return shlex.join(
        ["python", "-m", f"benchmarks.{module}", *(Path(a).name if "/" in a else a for a in sys.argv[1:])]
    )


def read_validation(run: Path, split: str) -> tuple[pd.DataFrame, str, float]:
    """Return sample_id, group, clean and attacked (0 or 1) of a run, and the name and radius of the attack."""
    files = sorted(run.glob(f"evaluations/*-{split}-*/predictions.parquet"))
    if len(files) != 1:
        raise UserError(f"{run}: {len(files)} evaluations on {split}, expected one. Evaluate it once")
    table = atomic.read_table(files[0])
    table["right"] = [int(np.argmax(row)) == label for row, label in zip(table["logits"], table["label"], strict=True)]
    pgd = table[table["attack"] == "pgd"]
    wide = table[table["attack"] == "clean"].merge(pgd, on=["sample_id", "group"], suffixes=("_clean", "_pgd"))
    figures = wide[["sample_id", "group"]].assign(clean=wide["right_clean"], attacked=wide["right_pgd"])
    return figures, f"pgd-{int(pgd['steps'].iloc[0])}", float(pgd["epsilon"].iloc[0])


def read_means(runs: Sequence[Path], split: str) -> pd.DataFrame:
    """Return sample_id, group, clean and attacked, each a mean over the runs."""
    parts = [read_validation(run, split)[0] for run in runs]
    return pd.concat(parts).groupby(["sample_id", "group"], as_index=False).mean()


def compare(images: pd.DataFrame, others: pd.DataFrame, name_of_others: str) -> str:
    """Return how far clean and attacked accuracy lie above those of `others`, in points, with intervals."""
    both = images.merge(others, on=["sample_id", "group"], suffixes=("", "_other"), validate="one_to_one")
    texts = []
    for name in ("clean", "attacked"):
        change = paired(both[f"{name}_other"].to_numpy(), both[name].to_numpy(), both["group"].to_numpy())
        more, low, high = (f"{100 * value:+.1f}" for value in (change.difference, *change.difference_ci))
        texts.append(f"{name} {more} [{low}, {high}]")
    return f"against {name_of_others}: " + ", ".join(texts)


def main() -> None:
    """Read the runs and write the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--trial", required=True)
    parser.add_argument("--what", required=True)
    parser.add_argument("--study", default="robust")
    parser.add_argument("--against", type=Path, action="append", default=[], help="run to compare with")
    parser.add_argument("--named", default="more85", help="what the runs of --against are")
    parser.add_argument("--split", default="Val")
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    _, attack, epsilon = read_validation(options.runs[0], options.split)
    images = read_means(options.runs, options.split)
    recipes = [validate(RunRecipe, atomic.read_yaml(run / "run.yaml")["recipe"], str(run)) for run in options.runs]
    keys = recipes[0].model_dump_json(exclude_defaults=True, exclude={"seed"})
    seeds = " ".join(str(recipe.seed) for recipe in recipes)
    row: dict[str, object] = {"study": options.study, "trial": options.trial, "what": options.what, "recipe": keys}
    row |= {"seeds": seeds, "n": len(images), "attack": attack, "epsilon": epsilon, "command": typed_command()}
    if options.against:
        row["also"] = compare(images, read_means(options.against, options.split), options.named)
    for name in ("clean", "attacked"):
        row |= percent(images[name].to_numpy(float), images["group"].to_numpy(), name)
    append_trial(options.table, row)
    print(pd.Series(row).to_string())


if __name__ == "__main__":
    main()
