"""How far do networks fall on films of other hospitals, and what lowers the fall?

    python -m benchmarks.findings.elsewhere RUN... --data covidqu-midi --external external-cxr --out DIR [--split Val]

RUN: folders of `trustcxr train`; runs of one recipe under several seeds are one row. Each is judged twice: as it is,
and with the BatchNorm statistics of the hospital's own films, which needs no label of theirs. A way is chosen on all
hospitals but one and reported on that one, in turn, so that no hospital has a part in choosing what is told of it.
Predictions are kept in DIR. On Test, writes results/elsewhere-<external>.md and .csv; on another split it prints them.
"""

import argparse
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.findings.seeds import (
    Tested,
    between,
    by_row,
    command,
    held,
    kept,
    of_mini,
    of_weights,
    percent,
    row_name,
    with_earlier,
)
from trustcxr import attacks
from trustcxr.about import NOTICE
from trustcxr.data import load_dataset
from trustcxr.data.batches import to_pixels
from trustcxr.data.dataset import Dataset
from trustcxr.evaluation.run import Run, load_run
from trustcxr.recipes.testing import AttackRecipe
from trustcxr.report import markdown
from trustcxr.results import files
from trustcxr.statistics import Bootstrap, interval, share_interval

RESULTS = Path(__file__).resolve().parents[2] / "results"
EPSILON, GOAL = 0.02, 0.12
STEPS = 20
ATTACK = (AttackRecipe(name="pgd", epsilons=(EPSILON,), steps=STEPS),)
ADAPTED = ", BatchNorm of the hospital"
FEW = 20  # films of a subgroup, below which its figure is left out
IN_TURN = "chosen without the hospital"


@dataclass(frozen=True)
class Fall:
    """What one way of training answers at home and elsewhere: means over its seeds."""

    name: str
    robust: bool
    seeds: int
    home: np.ndarray  # by film of the home test set, (N,)
    clean: np.ndarray  # by external film, (M,)
    pgd: np.ndarray


def main() -> None:
    """Measure, and write or print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--external", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", default="Test")
    parser.add_argument("--keep-rows", action="store_true", help="what stands on the page and is not measured anew")
    given = parser.parse_args()
    runs = [load_run(folder, on="cpu") for folder in given.runs]
    reading = runs[0].trained_by.data.reading()
    sizes = dict.fromkeys(run.size for run in runs)
    homes = {size: load_dataset(given.data, split=given.split, **reading | {"size": size}) for size in sizes}
    theres = {size: load_dataset(given.external, **reading | {"size": size}) for size in sizes}
    at_home, plain, adapted = [], [], []
    for run in runs:
        home, there = homes[run.size], theres[run.size]
        hospitals = hospitals_of(there)
        name, seed = row_name(run) + (f", {run.size} pixels" if len(sizes) > 1 else ""), str(run.trained_by.seed)
        files_of = f"{name}-s{seed}".replace(" ", "")
        at_home.append(Tested(name, seed, run, held(kept(run, home, given.out / f"{files_of}-home.parquet", ()), home)))
        found = held(kept(run, there, given.out / f"{files_of}-there.parquet", ATTACK), there)
        plain.append(Tested(name, seed, run, found))
        if any(isinstance(module, _BatchNorm) for module in run.model.modules()):
            own = adapted_to(run, there, hospitals, given.out / f"{files_of}-adapted.parquet")
            adapted.append(Tested(name + ADAPTED, seed, run, own))
    ways = summed_up(at_home, [*plain, *adapted])
    table = figures(ways, home, there)
    opened = f"{len(home)} {given.split} images of {given.data.name}"
    place, trained = RESULTS / f"elsewhere-{given.external.name}.md", recipes(at_home)
    if given.keep_rows:
        table, trained = with_earlier(table, trained, place, "run")
    text = "\n".join(page(table, given.data.name, given.external.name, opened, trained)) + "\n"
    print(text)
    if given.split == "Test":
        files.write_table(place.with_suffix(".csv"), table)
        place.write_text(text, encoding="utf-8")


def hospitals_of(there: Dataset) -> np.ndarray:
    """The collection that each film is of: what is known of its hospital; the repository's last name."""
    return there.table["source"].str.split().str[0].str.split("/").str[-1].to_numpy()


def adapted_to(run: Run, there: Dataset, hospitals: np.ndarray, place: Path) -> dict[str, np.ndarray]:
    """What a run answers rightly of each film, with the BatchNorm statistics of the films of the film's hospital."""
    place = of_weights(run, place)
    if not place.is_file():
        table = pd.DataFrame({"clean": np.zeros(len(there), dtype=bool), "pgd": False})
        images, labels = to_pixels(torch.from_numpy(np.array(there.images))), torch.from_numpy(there.labels)
        for hospital in np.unique(hospitals):
            rows = np.flatnonzero(hospitals == hospital)
            model, films, true = with_statistics_of(run.model, images[rows]), images[rows], labels[rows]
            attacked = attacks.pgd(model, films, true, epsilon=EPSILON, steps=STEPS, stop_when_wrong=True)
            with torch.no_grad():
                for name, seen in (("clean", films), ("pgd", attacked)):
                    table.loc[rows, name] = (model(seen).argmax(1) == true).numpy()
        files.write_table(place, table)
    table = files.read_table(place)
    return {name: table[name].to_numpy(dtype=bool) for name in ("clean", "pgd")}


def with_statistics_of(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """A copy of a model whose BatchNorm layers have the mean and variance of these images (B, 1, H, W)."""
    model = deepcopy(model)
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all that passes
        layer.train()
    with torch.no_grad():
        model(images)
    return model.eval()


def summed_up(at_home: Sequence[Tested], elsewhere: Sequence[Tested]) -> list[Fall]:
    """Each way, the mean over its seeds."""
    homes, found = by_row(at_home), []
    for name, seeds in by_row(elsewhere).items():
        home = homes[name.removesuffix(ADAPTED)]
        means = [
            np.mean([each.held[one] for each in part], axis=0)
            for part, one in ((home, "clean"), (seeds, "clean"), (seeds, "pgd"))
        ]
        defence = seeds[0].run.trained_by.defence
        found.append(Fall(name, defence.attacks or defence.certifies, len(seeds), *means))
    return found


# --- figures ---------------------------------------------------------------------------------------------------------


def figures(ways: Sequence[Fall], home: Dataset, there: Dataset) -> pd.DataFrame:
    """A row for each way and part of the films; last the ways chosen without the hospital that they are told of."""
    strict = there.table["strict_external"].astype(str).eq("1").to_numpy()
    hospitals = hospitals_of(there)
    parts: dict[str, np.ndarray] = {"all": np.ones(len(there), dtype=bool), "strict": strict, "not strict": ~strict}
    parts |= {str(name): hospitals == name for name in np.unique(hospitals)}
    for view in ("AP", "PA"):
        parts[f"view {view}"] = there.table["view"].eq(view).to_numpy()
    rows = [row_of(way, name, part, home, there) for way in ways for name, part in parts.items() if part.sum() >= FEW]
    for kind, robust in (("robust", True), ("standard", False)):
        some = [way for way in ways if way.robust == robust]
        if len(some) > 1:
            way, picks = in_turn(some, hospitals, there.labels)
            for name in ("all", *np.unique(hospitals)):
                one = row_of(way, str(name), parts[str(name)], home, there)
                rows.append(one | {"run": f"{kind}, {IN_TURN}", "chosen": picks.get(str(name), "")})
    return pd.DataFrame(rows)


def in_turn(ways: Sequence[Fall], hospitals: np.ndarray, labels: np.ndarray) -> tuple[Fall, dict[str, str]]:
    """The films of each hospital by the way that is best on all the others, and which way that is."""
    picks, parts = {}, {name: np.zeros(len(labels)) for name in ("clean", "pgd")}
    homes = np.zeros((len(labels), len(ways[0].home)))
    for hospital in np.unique(hospitals):
        others, mine = hospitals != hospital, hospitals == hospital
        best = max(ways, key=lambda way: over_classes(way.clean[others], labels[others]))
        picks[str(hospital)] = best.name
        for name, values in parts.items():
            values[mine] = getattr(best, name)[mine]
        homes[mine] = best.home
    fewest = min(way.seeds for way in ways if way.name in picks.values())
    return Fall(IN_TURN, ways[0].robust, fewest, homes, parts["clean"], parts["pgd"]), picks


def over_classes(values: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes that are there."""
    return float(np.mean([values[labels == k].mean() for k in np.unique(labels)]))


def row_of(way: Fall, name: str, part: np.ndarray, home: Dataset, there: Dataset) -> dict[str, object]:
    """One way on one part of the external films.

    at_home: what it has at home on films of the classes that the part is of, in the part's shares; the fall is that
    less what it has there. A hospital with one class alone is so compared with that class.
    """
    own = Bootstrap.over(there.groups[part])
    others = Bootstrap.over(home.groups, seed=1)
    labels = there.labels[part]
    shares = [np.mean(labels == k) for k in range(len(there.classes))]
    # Chosen in turn, another way for each hospital: of each class the ways that its own films were told by.
    homes = [way.home if way.home.ndim == 1 else way.home[part][labels == k].mean(0) for k in np.flatnonzero(shares)]
    expected = sum(
        shares[k] * recalls(others, right, home.labels == k)
        for k, right in zip(np.flatnonzero(shares), homes, strict=True)
    )
    found = own.means(way.clean[part])
    mini = of_mini(home.table)
    by_mini = sum(
        shares[k] * recalls(others, right, (home.labels == k) & mini)
        for k, right in zip(np.flatnonzero(shares), homes, strict=True)
    )
    row: dict[str, object] = {
        "run": way.name,
        "films": name,
        "n": int(part.sum()),
        "seeds": way.seeds,
        "robust": way.robust,
    }
    for key, values in (
        ("at_home", expected),
        ("elsewhere", found),
        ("fall", expected - found),
        *((("mini_at_home", by_mini), ("mini_fall", by_mini - found)) if mini.any() else ()),
        ("pgd", own.means(way.pgd[part])),
    ):
        row[key] = float(values[0])
        share = key in ("elsewhere", "pgd")
        row[f"{key}_low"], row[f"{key}_high"] = share_interval(own, values) if share else interval(values)
    row["balanced_elsewhere"] = over_classes(way.clean[part], labels)
    row["constant"] = max(shares)
    return row


def recalls(bootstrap: Bootstrap, right: np.ndarray, mine: np.ndarray) -> np.ndarray:
    """The share of the films of one class that are right, in each resample; first the sample itself."""
    return bootstrap.means(np.where(mine, right, np.nan))


# --- the page --------------------------------------------------------------------------------------------------------


def page(table: pd.DataFrame, data: str, external: str, opened: str, trained: Sequence[str]) -> list[str]:
    """The Markdown page of a table."""
    table = table.assign(corrected=table.get("corrected", "")).fillna({"chosen": "", "corrected": ""})
    chosen = table[table["run"].str.endswith(IN_TURN)]
    ways = table[~table["run"].str.endswith(IN_TURN)]
    mini = ["fall, of mini"] if "mini_fall" in table else []
    of_these = " Of mini: from what covidqu-mini's own films have at home." if mini else ""
    if "earlier" in ways and (before := ways.loc[ways["earlier"], "run"].unique()).size:
        of_these += f" Of an earlier opening, and no part of the choice: {'; '.join(before)}."
    return [
        "# Films of other collections",
        "",
        f"`python -m benchmarks.findings.elsewhere RUN... --data {data} --external {external} --out DIR`. {NOTICE} "
        f"{opened}, opened for this page once for each network, and "
        f"{int(ways.loc[ways['films'] == 'all', 'n'].iloc[0])} of {external}; a hospital is a collection here, as the "
        "data name them, and those that COVID-QU-Ex drew from too are `not strict` below; percent answered "
        "rightly, no attack unless said; means over seeds, 95 % intervals over groups of images of both. "
        "At home: what the network has on films of the same classes in the same shares, as most "
        f"hospitals sent one class alone; the fall is that less what it has there.{of_these} PGD-20 at "
        f"{EPSILON:g}, L-infinity. A constant answer has {percent(table['constant'].iloc[0])} on all.",
        "",
        *goal(chosen),
        "",
        "## Chosen without the hospital that it is told of",
        "",
        "Of the robust networks, and of the others, the way that is best (mean over classes) on all hospitals but one, "
        "reported on that one.",
        "",
        *markdown.table(
            ["which", "films", "n", "at home", "elsewhere", "fall", *mini, "chosen"],
            [[*cells(row), *fall_of_mini(row), str(row["chosen"])] for _, row in chosen.iterrows()],
        ),
        "",
        *(line for text in chosen["corrected"].unique() if text for line in (text, "")),
        "## Every way, all films",
        "",
        *markdown.table(
            ["network", "seeds", "at home", "elsewhere", "mean over classes", "fall", *mini, "PGD-20"],
            [all_cells(row) for _, row in ways[ways["films"] == "all"].iterrows()],
        ),
        "",
        "## By hospital, kind of collection and view",
        "",
        f"strict: of collections that COVID-QU-Ex did not draw from. Parts of fewer than {FEW} films are left out.",
        "",
        *markdown.table(
            ["network", "films", "n", "at home", "elsewhere", "fall", "mean over classes", "constant answer"],
            [part_cells(row) for _, row in ways[ways["films"] != "all"].iterrows()],
        ),
        "",
        "## What could not be tried",
        "",
        f"Sampling balanced by hospital (`training.balanced_by`): {data} does not say which hospital a film is of. "
        f"Balanced by kinds of films, guessed by how they look: `elsewhere-val-kinds-{external}.md`.",
        "",
        "## How they were trained",
        "",
        *trained,
    ]


def goal(chosen: pd.DataFrame) -> list[str]:
    """The fall of the robust ways that were chosen elsewhere, beside what was asked."""
    rows = chosen[(chosen["films"] == "all") & chosen["robust"]]
    if not len(rows):
        return ["No robust ways to choose from."]
    row = rows.iloc[0]
    gap = float(row["fall"]) - GOAL
    verdict = f"{percent(gap)} points too many" if gap > 0 else "reached"
    return [
        "**Fall of the robust networks, for each hospital the way that is best on the others: "
        f"{between(row, 'fall')} points, of at most {percent(GOAL)} asked ({verdict}).**"
    ]


def cells(row: pd.Series) -> list[str]:
    """Name, part and shares."""
    shares = [between(row, key) for key in ("at_home", "elsewhere", "fall")]
    return [str(row["run"]), str(row["films"]), str(row["n"]), *shares]


def part_cells(row: pd.Series) -> list[str]:
    """The same, with what one answer for all of the part has, and the mean over the classes that it is of."""
    return [*cells(row), percent(row["balanced_elsewhere"]), percent(row["constant"])]


def all_cells(row: pd.Series) -> list[str]:
    """A way on all films."""
    first, second = between(row, "at_home"), between(row, "elsewhere")
    even = percent(row["balanced_elsewhere"])
    falls = between(row, "fall"), *fall_of_mini(row)
    return [str(row["run"]), str(row["seeds"]), first, second, even, *falls, between(row, "pgd")]


def fall_of_mini(row: pd.Series) -> list[str]:
    """The fall from covidqu-mini's own films; empty where they were not told apart, no cell where of no row."""
    if "mini_fall" not in row:
        return []
    return ["" if pd.isna(row["mini_fall"]) else between(row, "mini_fall")]


def recipes(tested: Sequence[Tested]) -> list[str]:
    """The command of each row."""
    return [f"- `{name}`: `{command(runs[0].run.trained_by)}`" for name, runs in by_row(tested).items()]


if __name__ == "__main__":
    main()
