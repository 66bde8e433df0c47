"""Does a claim hold on films by which no epoch was chosen? Five-fold cross-validation by group on Train and Val.

    python -m benchmarks.findings.folds --data covidqu-midi --out DIR
    python -m benchmarks.findings.folds RUN... --data covidqu-midi --out DIR

Without RUN, writes DIR/fold-0.csv to fold-4.csv: lists of all films but those of Test, of which a fifth is the list's
Test, and of the others an eighth its Val, by which epochs are chosen. Every film is in the Test of one list; groups of
films are not divided, and classes are spread evenly. Train on each (`trustcxr train --data DIR/fold-0.csv`), then give
all runs: each film is answered by the networks that did not see it. The Test images of the data are not opened.
Written: results/folds-<data>.md and .csv.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks.findings.seeds import Tested, between, by_row, command, held, kept, listed, percent, summary, way
from trustcxr.about import NOTICE
from trustcxr.data import Dataset, load_dataset, read_manifest
from trustcxr.errors import UserError
from trustcxr.evaluation.run import Run, load_run
from trustcxr.recipes.testing import AttackRecipe
from trustcxr.report import markdown
from trustcxr.results import files, folders
from trustcxr.statistics import Bootstrap

RESULTS = Path(__file__).resolve().parents[2] / "results"
FOLDS, CHOSEN_BY = 5, 8  # parts of all films; of what is not tested, one in so many is for choosing
EPSILON = 0.02
ATTACKS = (
    AttackRecipe(name="pgd", epsilons=(EPSILON,), steps=20),
    AttackRecipe(name="worst-case", epsilons=(EPSILON,), steps=30, queries=300, precision="bf16"),
)
MEASURES = ("clean", "pgd", "worst_case")


def main() -> None:
    """Write the lists, or measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if not given.runs:
        print("\n".join(map(str, lists(given.data, given.out))))
        return
    pooled, films = pool([load_run(folder, on="cpu") for folder in given.runs], given.out)
    table = figures(pooled, films)
    ways = {name: command(runs[0].run.trained_by) for name, runs in by_row(pooled).items()}
    text = "\n".join(page(table, given.data.name, ways, on_test(given.data.name))) + "\n"
    print(text)
    files.write_table(RESULTS / f"folds-{given.data.name}.csv", table)
    (RESULTS / f"folds-{given.data.name}.md").write_text(text, encoding="utf-8")


def lists(data: Path, out: Path) -> list[Path]:
    """A list of films for each fold, with the split that each film has in it."""
    table = read_manifest(data).table
    films = table[table["split"] != "Test"].reset_index(drop=True)
    written = []
    for number, (rest, tested) in enumerate(divided(films, FOLDS)):
        split = np.full(len(films), "Train", dtype=object)
        split[tested] = "Test"
        split[rest[next(divided(films.iloc[rest], CHOSEN_BY))[1]]] = "Val"
        files.write_table(path := out / f"fold-{number}.csv", listed(films.assign(split=split), data))
        written.append(path)
    return written


def divided(films: pd.DataFrame, parts: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of all parts but one, and of that one, in turn; no group is in two parts, and classes are spread evenly."""
    cut = StratifiedGroupKFold(parts, shuffle=True, random_state=0)
    yield from cut.split(films, films["class"], films["group"])


def pool(runs: Sequence[Run], out: Path) -> tuple[list[Tested], pd.DataFrame]:
    """Of each way and seed what the networks of all folds answer, film by film; and the films: fold, group, label.

    UserError where a fold is missing.
    """
    found: dict[tuple[str, str], dict[str, tuple[Run, Mapping[str, np.ndarray]]]] = {}
    names, films = [f"fold-{number}.csv" for number in range(FOLDS)], {}
    read: dict[str, dict[str, Dataset]] = {}  # the Test of every list, by how its films are read
    for run in runs:
        reading = run.trained_by.data.reading()
        if (how := repr(reading)) not in read:
            read[how] = {name: load_dataset(out / name, split="Test", **reading) for name in names}
        trained_on = files.part(files.part(files.read_yaml(run.folder / folders.RUN_FILE), "data"), "fingerprints")
        mine = [name for name, films_ in read[how].items() if films_.fingerprint == trained_on.get("Test")]
        if not mine:
            raise UserError(f"{run.folder}: was trained on films that are no list of `folds` in {out}")
        fold, data = mine[0], read[how][mine[0]]
        name, seed = way(run), str(run.trained_by.seed)
        place = out / f"{name}-s{seed}-{fold}.parquet".replace("/", "-").replace(" ", "")
        found.setdefault((name, seed), {})[fold] = run, held(kept(run, data, place, ATTACKS), data)
        films[fold] = pd.DataFrame({"fold": fold, "group": data.groups, "label": data.labels})
    pooled = []
    for (name, seed), by_fold in found.items():
        if missing := [fold for fold in names if fold not in by_fold]:
            raise UserError(f"{name}, seed {seed}: no run of {', '.join(missing)}")
        whole = {m: np.concatenate([by_fold[fold][1][m] for fold in names]) for m in MEASURES}
        pooled.append(Tested(name, seed, by_fold[names[0]][0], whole))
    return pooled, pd.concat([films[fold] for fold in names], ignore_index=True)


def figures(pooled: Sequence[Tested], films: pd.DataFrame) -> pd.DataFrame:
    """A row for each way: the mean over seeds on all films, and the worst and the best of the folds."""
    drawn, rows = Bootstrap.over(films["group"].to_numpy()), []
    for name, seeds in by_row(pooled).items():
        row = {"run": name} | summary([each.held for each in seeds], MEASURES, films["label"].to_numpy(), drawn)
        for measure in MEASURES:
            means = np.mean([each.held[measure] for each in seeds], axis=0)
            folds = pd.Series(means).groupby(films["fold"]).mean()
            row |= {f"{measure}_worst_fold": folds.min(), f"{measure}_best_fold": folds.max()}
        rows.append(row)
    return pd.DataFrame(rows)


def on_test(data: str) -> dict[str, str]:
    """By way, what the Test images gave, from the committed table: clean, worst case, so many seeds."""
    path = RESULTS / f"lesions-{data}.csv"
    if not path.is_file():
        return {}
    table = pd.read_csv(path)
    return {
        str(row["recipe"]): f"{percent(row['clean'])}, {percent(row['worst_case'])} ({row['seeds']} seeds)"
        for _, row in table[table["seeds"] > 1].iterrows()
    }


def apart(row: pd.Series) -> str:
    """The worst and the best of the folds."""
    return f"{percent(row['worst_case_worst_fold'])} to {percent(row['worst_case_best_fold'])}"


def page(table: pd.DataFrame, data: str, ways: Mapping[str, str], test: Mapping[str, str]) -> list[str]:
    """The Markdown page of a table."""
    rows = [
        [str(row["run"]), str(row["seeds"]), *(between(row, m) for m in MEASURES), apart(row), test.get(row["run"], "")]
        for _, row in table.iterrows()
    ]
    return [
        "# Does it hold on films by which no epoch was chosen?",
        "",
        f"`python -m benchmarks.findings.folds RUN... --data {data} --out DIR`. {NOTICE} Five-fold cross-validation by "
        f"group on Train and Val of {data}: {int(table['n'].iloc[0])} films, each answered by the network that saw "
        "neither it nor its group; epochs chosen on an eighth of the others, the recipe on "
        "Val. Percent answered rightly, epsilon "
        f"{EPSILON:g}, L-infinity; 95 % intervals over groups of films. The Test images were not opened for this; the "
        "last column is what they gave before (`lesions-covidqu-midi.md`: clean, worst case), of networks trained on "
        "Train alone.",
        "",
        *markdown.table(
            ["network", "seeds", "clean", "PGD-20", "worst case", "worst case, fold by fold", "on Test"], rows
        ),
        "",
        "## How they were trained",
        "",
        *(f"- `{name}`: `{line}`, DATA in turn DIR/fold-0.csv to fold-4.csv" for name, line in ways.items()),
    ]


if __name__ == "__main__":
    main()
