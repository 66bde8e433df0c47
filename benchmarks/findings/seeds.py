"""What several findings share: runs of one recipe under several seeds, and what was measured of each, kept on disk."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd

from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError
from trustcxr.evaluation import predictions
from trustcxr.evaluation.run import Run
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.testing import AttackRecipe
from trustcxr.results import files, folders
from trustcxr.results.tables import right
from trustcxr.statistics import Bootstrap, share_interval

EPSILON = 0.02
ANEW = "anew with the films of validation"  # of a row: `training.refit`
WIDE = 0.1  # a scale beyond that of most of these networks, and beyond the recipe's own, is told
Held = Mapping[str, np.ndarray]  # by measure, whether each film is answered rightly, (N,)


@dataclass(frozen=True)
class Tested:
    """One run, and what it answers rightly."""

    name: str  # of the row; runs of one row are of one recipe
    seed: str
    run: Run
    held: Held


def kept(run: Run, data: Dataset, place: Path, conditions: Iterable[AttackRecipe]) -> pd.DataFrame:
    """Predictions of a run, from `place` (and its weights) where they were made before: images are opened once."""
    place = of_weights(run, place)
    if not place.is_file():
        table = predictions.predict(run, data, tuple(conditions), views=False)
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write_table(place, table)
    return files.read_table(place)


def of_weights(run: Run, place: Path) -> Path:
    """`place` with what tells these weights from others in its name: two runs may be called alike."""
    found = sha256()
    for name, values in sorted(run.model.state_dict().items()):
        found.update(name.encode() + values.detach().cpu().contiguous().numpy().tobytes())
    return place.with_stem(f"{place.stem}-{found.hexdigest()[:12]}")


def held(table: pd.DataFrame, data: Dataset) -> dict[str, np.ndarray]:
    """By condition (`clean`, `pgd`, `worst_case`) whether each film is answered rightly, in the order of the data."""
    found = {}
    for name, rows in table.groupby("attack"):
        answered = pd.Series(right(rows), index=rows["sample_id"])
        found[str(name).replace("-", "_")] = answered.loc[data.sample_ids].to_numpy(dtype=bool)
    return found


def by_row(tested: Sequence[Tested]) -> dict[str, list[Tested]]:
    """The runs of each row, in the order in which rows first appear; UserError where they are not of one recipe."""
    found: dict[str, list[Tested]] = {}
    for each in tested:
        found.setdefault(each.name, []).append(each)
    for name, runs in found.items():
        recipes = [command(one.run.recipe) for one in runs if one.run.recipe is not None]
        for one, recipe in zip(runs, recipes, strict=False):
            if other := set(recipe.split(" --")) ^ set(recipes[0].split(" --")):
                raise UserError(
                    f"{name}: {one.run.folder} is of another recipe than {runs[0].run.folder} "
                    f"({', '.join(sorted(other))}): name what differs in benchmarks.findings.seeds.way"
                )
    return found


def summary(seeds: Sequence[Held], measures: Sequence[str], labels: np.ndarray, groups: Bootstrap) -> dict[str, object]:
    """The mean over seeds of each measure, its 95 % interval over groups of films, its mean over classes, its spread.

    Spread: the largest less the smallest of the seeds.
    """
    row: dict[str, object] = {}
    for measure in measures:
        values = np.mean([one[measure] for one in seeds], axis=0)
        row[measure] = float(values.mean())
        row[f"{measure}_low"], row[f"{measure}_high"] = share_interval(groups, groups.means(values))
        row[f"balanced_{measure}"] = balanced(values, labels)
        alone = [float(one[measure].mean()) for one in seeds]
        row[f"{measure}_spread"] = max(alone) - min(alone)
    return row | {"seeds": len(seeds), "n": len(labels)}


def of_mini(table: pd.DataFrame) -> np.ndarray:
    """Which films of covidqu-midi are covidqu-mini's too (N,), as its manifest says; none of any other data."""
    if "in_mini" not in table:
        return np.zeros(len(table), dtype=bool)
    return (table["in_mini"].astype(str) == "1").to_numpy()


def mini_alone(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its columns `mini_...` in the place of those that they stand beside."""
    twice = [name for name in table if f"mini_{name}" in table]
    return table.drop(columns=twice).rename(columns=lambda name: str(name).removeprefix("mini_"))


def beside(
    seeds: Sequence[Held], measures: Sequence[str], labels: np.ndarray, groups: np.ndarray, mini: np.ndarray
) -> dict[str, object]:
    """`summary` of covidqu-mini's films alone, each column after `mini_`; empty where there are none."""
    if not mini.any():
        return {}
    alone = [{name: one[name][mini] for name in measures} for one in seeds]
    of_these = summary(alone, measures, labels[mini], Bootstrap.over(groups[mini]))
    return {f"mini_{name}": value for name, value in of_these.items() if name != "seeds"}


def balanced(values: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes of the mean of each."""
    return float(np.mean([values[labels == k].mean() for k in np.unique(labels)]))


def percent(value: float | np.floating) -> str:
    """A share as a figure out of a hundred."""
    return f"{100 * float(value):.1f}"


def between(row: Mapping[str, object] | pd.Series, measure: str) -> str:
    """A measure of a row with its interval, out of a hundred; without, where all resamples were alike."""
    low, high = (float(row[f"{measure}_{end}"]) for end in ("low", "high"))  # type: ignore[arg-type]
    if low == high:
        return percent(row[measure])  # type: ignore[arg-type]
    return f"{percent(row[measure])} [{percent(low)}, {percent(high)}]"  # type: ignore[arg-type]


def with_earlier(table: pd.DataFrame, trained: list[str], place: Path, by: str) -> tuple[pd.DataFrame, list[str]]:
    """Table and commands with those of `place` (.csv, .md) before them, but for rows whose `by` is measured anew.

    The column `earlier` says which rows these are.
    """
    earlier = pd.read_csv(place.with_suffix(".csv"))
    earlier = earlier[~earlier[by].isin(table[by])]
    page = place.with_suffix(".md").read_text(encoding="utf-8").split("## How they were trained")[1]
    named, told = " + ".join(earlier[by].unique()), {line.split("`")[1] for line in trained}
    commands = [line for line in page.splitlines() if line.startswith("- `") and line.split("`")[1] in named]
    rows = [earlier.assign(earlier=True), table.assign(earlier=False)]
    return pd.concat(rows, ignore_index=True), [*(c for c in commands if c.split("`")[1] not in told), *trained]


# --- what a run is called, and how it is made again -------------------------------------------------------------------


def row_name(run: Run) -> str:
    """What its seeds share: the network, how it was trained, on how many films, for how long."""
    return f"{way(run)}, {run.trained_by.training.epochs} epochs of {images_of(run)} films"


def way(run: Run) -> str:
    """The network and how it was trained, whatever the films."""
    recipe = run.trained_by
    together = f"{recipe.model.members} x " if recipe.model.members > 1 else ""
    said = [together + recipe.name.rsplit("-s", 1)[0]]
    if recipe.defence.weight_perturbation:
        said.append(f"AWP {recipe.defence.weight_perturbation:g}")
    if recipe.training.augment.crop_shift:
        said.append(f"CropShift {recipe.training.augment.crop_shift:g}")
    if recipe.training.augment.spectrum:
        said.append(f"gains of frequencies up to exp({recipe.training.augment.spectrum:g})")
    if recipe.model.local_contrast:
        said.append(f"local contrast of {recipe.model.local_contrast} pixels")
    return ", ".join([*said, *_told(recipe)])


def _told(recipe: RunRecipe) -> Iterator[str]:
    """What differs from how most of these networks were trained."""
    changes = recipe.training.augment
    if recipe.defence.attacks and recipe.defence.epsilon != EPSILON:
        yield f"trained at epsilon {recipe.defence.epsilon:g}"
    if changes.brightness or changes.contrast:
        yield f"brightness changed by up to {changes.brightness:g} and contrast by {changes.contrast:g}"
    if changes.scale > WIDE:
        yield f"turned, moved and scaled by up to {changes.rotation:g} degrees, {changes.shift:g} and {changes.scale:g}"
    if recipe.training.label_smoothing:
        yield f"label smoothing {recipe.training.label_smoothing:g}"
    if recipe.training.balanced_by:
        yield f"classes balanced by {recipe.training.balanced_by} too"
    if not recipe.training.balanced:
        yield "classes as often as they are"
    if not recipe.training.averaging:
        yield "weights not averaged"
    if recipe.training.refit:
        yield ANEW


def images_of(run: Run) -> int:
    """How many films a run was trained on."""
    return int(str(files.part(files.read_yaml(run.folder / folders.RUN_FILE), "data")["images"]))


def command(recipe: RunRecipe) -> str:
    """The command that trains a run of this recipe anew, for any seed."""
    given = recipe.model_dump(exclude_defaults=True, exclude={"seed": True, "data": {"splits", "labels"}})
    model, size = given.pop("model"), given.pop("data").get("size", recipe.data.size)
    defence = given.pop("defence", {})
    defence.pop("name", None), defence.pop("epsilon", None), model.pop("weights", None)
    parts = [f"--model {model.pop('name')} --weights {recipe.model.weights} --size {size}"]
    epsilon = f" --epsilon {recipe.defence.epsilon:g}" if recipe.defence.attacks or recipe.defence.certifies else ""
    parts += [f"--defence {recipe.defence.name}{epsilon} --seed SEED"]
    parts += [f"--set {key}={value}" for key, value in _keys({"model": model, "defence": defence, **given})]
    return " ".join(["trustcxr train --data DATA --out RUN", *parts])


def _keys(given: Mapping[str, object], before: str = "") -> Iterator[tuple[str, str]]:
    """A recipe's keys with dots, and their values as they are typed."""
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{before}{key}.")
        else:
            yield before + key, _typed(value)


def _typed(value: object) -> str:
    """A value as it is typed on a command line: a list in quotes, for a shell would take its brackets for a pattern."""
    if isinstance(value, list | tuple):
        return f"'[{','.join(map(str, value))}]'"
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def listed(films: pd.DataFrame, data: Path) -> pd.DataFrame:
    """Rows of a manifest as a list of films that may lie anywhere: path, label, split, group."""
    root = data.resolve() if data.is_dir() else data.resolve().parent
    found = films.assign(path=[str(root / path) for path in films["path"]])
    return found.rename(columns={"class": "label"})[["path", "label", "split", "group"]]
