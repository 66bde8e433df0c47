"""How robust can a network be on these films, and how would it grow with more of them?

    python -m benchmarks.findings.ceiling RUN... --data covidqu-midi --out DIR [--together RUN+RUN...] [--split Val]
    python -m benchmarks.findings.ceiling --films 904 --data covidqu-midi --out DIR

RUN: folders of `trustcxr train`; runs of one recipe under several seeds are one row. `--together`: the mean of the
logits of several networks, each trained for itself, judged as one. What is measured of a run is kept in DIR, so that
images are opened once. On Test, writes results/ceiling-<data>.md and .csv; on another split it prints the page.

`--films` writes DIR/films-904.csv, a list of that many training films (the same share of every class, drawn by a fixed
seed, fewer ones among the more) beside all of the validation films, to train on for the curve over data.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.findings.seeds import (
    ANEW,
    Tested,
    beside,
    between,
    by_row,
    command,
    held,
    images_of,
    kept,
    listed,
    mini_alone,
    of_mini,
    percent,
    row_name,
    summary,
    with_earlier,
)
from trustcxr.about import NOTICE
from trustcxr.data import load_dataset, read_manifest
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError
from trustcxr.evaluation.run import About, Run, load_run
from trustcxr.models.classifier import Classifier
from trustcxr.models.ensemble import Ensemble
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.testing import AttackRecipe
from trustcxr.report import markdown
from trustcxr.results import files
from trustcxr.statistics import Bootstrap, Floats, interval
from trustcxr.study.measuring import way

RESULTS = Path(__file__).resolve().parents[2] / "results"
EPSILON = 0.02
ATTACKS = (
    AttackRecipe(name="fgsm", epsilons=(EPSILON,)),
    AttackRecipe(name="pgd", epsilons=(EPSILON,), steps=20),
    AttackRecipe(name="worst-case", epsilons=(EPSILON,), steps=30, queries=300, precision="bf16"),
)
MEASURES = ("clean", "fgsm", "pgd", "worst_case")
HEAD = ("network", "pixels", "seeds", "clean", "FGSM", "PGD-20", "worst case", "spread", "a step")
LIST = "DIR/films-{films}.csv"
WHOLE = 33_920  # images of COVID-QU-Ex
GOALS = {"worst_case": 0.72, "clean": 0.87}
SEEDS = 3  # of what is reported
ONE_NETWORK = 0.66, 1.7  # its worst case, and what a step of it may cost in standard ones
ROUNDS = 5  # timings of a step, standard and other in turn


def main() -> None:
    """Measure, and write or print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--together", nargs="*", default=[], help="runs whose logits are averaged: RUN+RUN")
    parser.add_argument("--split", default="Test")
    parser.add_argument("--opening", type=int, default=0, help="its number in results/test-openings.csv, of Test")
    parser.add_argument("--keep-rows", action="store_true", help="what stands on the page and is not measured anew")
    parser.add_argument("--films", type=int, help="write a list of so many training films, and no more")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.films:
        print(fewer(given.data, given.films, given.out))
        return
    alone = [load_run(folder, on="cpu") for folder in given.runs]
    runs = [(row_name(run), str(run.trained_by.seed), run) for run in alone]
    members: list[Tested] = []
    for names in given.together:
        some = [load_run(Path(folder), on="cpu") for folder in names.split("+")]
        runs.append(together(some))
        members += [Tested(row_name(run), str(run.trained_by.seed), run, {}) for run in some]
    films = {
        size: load_dataset(given.data, split=given.split, **alone[0].trained_by.data.reading() | {"size": size})
        for size in {run.size for _, _, run in runs}
    }
    tested = [judged(name, seed, run, films[run.size], given.out, given.split) for name, seed, run in runs]
    data = films[runs[0][2].size]
    whole = int((read_manifest(given.data).table["split"] == "Train").sum())
    table = figures(tested, data, costs(tested, given.out)).assign(opening=given.opening)
    trained = recipes([*tested, *members], whole)
    place = RESULTS / f"ceiling-{given.data.name}.md"
    if given.keep_rows:
        table, trained = with_earlier(table, trained, place, "row")
    text = "\n".join(page(table, given.data.name, given.split, trained)) + "\n"
    print(text)
    if given.split == "Test":
        files.write_table(place.with_suffix(".csv"), table)
        place.write_text(text, encoding="utf-8")


def judged(name: str, seed: str, run: Run, films: Dataset, out: Path, split: str) -> Tested:
    """What a network answers rightly; UserError where the images are not of the size that it was trained on."""
    if films.images.shape[-1] != run.size:
        raise UserError(f"{name}: trained at {run.size} pixels, and given images of {films.images.shape[-1]}")
    place = out / f"{name}-s{seed}-{films.root.name}-{split}.parquet".replace("/", "-").replace(" ", "")
    return Tested(name, seed, run, held(kept(run, films, place, ATTACKS), films))


def together(runs: Sequence[Run]) -> tuple[str, str, Run]:
    """Networks of several runs as one, their logits averaged: its row's name, its seeds, and it."""
    models = [run.model for run in runs]
    if any(type(model.gate).__name__ != "Identity" or isinstance(model.net, Ensemble) for model in models):
        raise UserError("together: single networks without a lung gate")
    means, stds = [float(model.mean) for model in models], [float(model.std) for model in models]
    net = Classifier(Ensemble([model.net for model in models], means, stds), mean=means[0], std=stds[0]).eval()
    counts = pd.Series([row_name(run) for run in runs]).value_counts(sort=False)
    name = " + ".join(
        f"{count} x {one}" if count > 1 else one for one, count in zip(counts.index.astype(str), counts, strict=True)
    )
    seeds = "".join(str(run.trained_by.seed) for run in runs)
    about = About(name, name)
    return name, seeds, Run(runs[0].folder, net, runs[0].classes, None, origin=about, given_size=runs[0].size)


def fewer(data: Path, films: int, out: Path) -> Path:
    """A list of so many training films, every class as often as among all, and of all validation films."""
    table = read_manifest(data).table
    train, val = (table[table["split"] == split] for split in ("Train", "Val"))
    order = train.iloc[np.random.default_rng(0).permutation(len(train))]
    place = order.groupby("class").cumcount() / order["class"].map(train["class"].value_counts())
    some = order.loc[place.sort_values(kind="stable").index[:films]]
    files.write_table(path := out / f"films-{films}.csv", listed(pd.concat([some, val]), data))
    return path


def costs(tested: Sequence[Tested], out: Path) -> dict[str, float]:
    """By row, a training step in standard steps of the same network, timed in turn; kept in DIR."""
    path, found = out / "costs.json", {}
    known: Mapping[str, float] = files.read_json(path) if path.is_file() else {}
    for name, runs in by_row(tested).items():
        recipe = runs[0].run.recipe
        if recipe is not None:
            found[name] = known[name] if name in known else in_standard_steps(recipe)
    files.write_json(path, dict(known) | found)
    return found


def in_standard_steps(recipe: RunRecipe) -> float:
    """The median over rounds of what a step of this recipe takes beside a standard step right before it."""
    plain = recipe.model_copy(update={"defence": type(recipe.defence)()})
    ratios = []
    for _ in range(ROUNDS):
        usual, this = (way(one, seconds=6).step for one in (plain, recipe))
        ratios.append(float(this or 0) / float(usual or 1))
    return float(np.median(ratios))


def figures(tested: Sequence[Tested], data: Dataset, cost: Mapping[str, float]) -> pd.DataFrame:
    """A row for each run and one for the mean of its seeds."""
    groups, mini, rows = Bootstrap.over(data.groups), of_mini(data.table), []
    for name, seeds in by_row(tested).items():
        networks = len(getattr(seeds[0].run.model.net, "nets", [0]))
        images = images_of(seeds[0].run) if seeds[0].run.recipe is not None else 0
        about = {"networks": networks, "trained_on": images, "standard_steps": cost.get(name, np.nan)}
        about["pixels"] = seeds[0].run.size
        parts = [(f"{name}, seed {each.seed}", each.seed, [each]) for each in seeds]
        for run, seed, some in [*parts, (name, "mean", seeds)]:
            answers = [each.held for each in some]
            one = summary(answers, MEASURES, data.labels, groups)
            one |= beside(answers, MEASURES, data.labels, data.groups, mini)
            rows.append({"run": run, "row": name, "seed": seed} | about | one)
    return grown(pd.DataFrame(rows), tested, groups)


def grown(table: pd.DataFrame, tested: Sequence[Tested], groups: Bootstrap) -> pd.DataFrame:
    """The same with what more films do, on the row of the curve that had most: by doubling, and with all there are.

    Intervals are over the groups that all points share, of the mean of each point's seeds.
    """
    points = of_curve(table[table["seed"] == "mean"])
    if points is None:
        return table
    x, found, runs = points["trained_on"].to_numpy(float), dict[str, float](), by_row(tested)
    for measure in GOALS:
        answers = [np.mean([one.held[measure] for one in runs[name]], axis=0) for name in points["row"]]
        y = np.stack([groups.means(each) for each in answers])
        slope, straight = laid(np.log2(x), y, np.log2(WHOLE))
        _, levelling = laid(1 / np.sqrt(x), y, 1 / np.sqrt(WHOLE))
        said = {"gain": y[-1] - y[0], "doubling": slope}
        said |= {"whole": np.minimum(straight, 1.0), "levelling": np.minimum(levelling, 1.0)}
        for name, values in said.items():
            low, high = interval(values)
            found |= {f"{name}_{measure}": float(values[0])}
            found |= {f"{name}_{measure}_low": low, f"{name}_{measure}_high": high}
    most = points.index[-1]
    return table.assign(**{name: pd.Series({most: value}) for name, value in found.items()})


def laid(x: np.ndarray, y: Floats, at: float) -> tuple[Floats, Floats]:
    """Least squares lines through (P,) and each column of (P, R): their slope, and what they have at `at`, (R,)."""
    slope, foot = np.polyfit(x, y, 1)
    return slope, slope * at + foot


# --- the page --------------------------------------------------------------------------------------------------------


def page(table: pd.DataFrame, data: str, split: str, trained: Sequence[str]) -> list[str]:
    """The Markdown page of a table."""
    means = table[table["seed"] == "mean"]
    return [
        "# How robust networks became on these films",
        "",
        f"`python -m benchmarks.findings.ceiling RUN... --data {data} --out DIR --together RUN+RUN`. {NOTICE} "
        f"{int(table['n'].iloc[0])} {split} images of {data}, opened for this page once for each network; "
        f"percent answered rightly, epsilon {EPSILON:g}, L-infinity; 95 % intervals over groups of images, of the mean "
        "over seeds; pixels: the side of the images, at which they are attacked; spread: the largest less the smallest "
        "of the seeds. Worst case: of APGD on two losses, FAB and Square "
        f"({ATTACKS[-1].steps} steps, {ATTACKS[-1].queries} queries), "
        "confirmed in float32: no attack that is known here takes more, another may. In brackets the mean over classes "
        "(a constant answer has 33.3 there). A step: of training, in standard steps of that network, timed in turn on "
        "one thread. How single networks are trained was chosen on validation (`trials-ceiling-covidqu-midi.md`); "
        "which of them answer together was not" + _of_anew(means) + ".",
        "",
        *markdown.table([*HEAD], [cells(row) for _, row in means.iterrows()]),
        "",
        "## Against the goals",
        "",
        *goals(means),
        "",
        *of_mini_alone(means),
        "## More films",
        "",
        *curve(means),
        "",
        "## Each seed",
        "",
        *markdown.table([*HEAD], [cells(row) for _, row in table[table["seed"] != "mean"].iterrows()]),
        "",
        "## How they were trained",
        "",
        *lists(trained, data),
        *trained,
    ]


def _of_anew(means: pd.DataFrame) -> str:
    """What is known before Test of networks that learned from validation too, where there are any."""
    if not means["row"].str.contains(ANEW).any():
        return ""
    return f", nor that any is trained {ANEW}, which nothing but Test can then judge"


def of_mini_alone(means: pd.DataFrame) -> list[str]:
    """The same of covidqu-mini's own films, where they were told apart."""
    if "mini_n" not in means or not (known := means[means["mini_n"].notna()]).size:
        return []
    own = mini_alone(known)
    left = means.loc[means["mini_n"].isna(), "run"].tolist()
    return [
        f"## The {int(own['n'].iloc[0])} films of covidqu-mini among them",
        "",
        *markdown.table([*HEAD], [cells(row) for _, row in own.iterrows()]),
        "",
        *([f"Not told apart, of an earlier opening: {'; '.join(left)}.", ""] if left else []),
    ]


def cells(row: pd.Series) -> list[str]:
    """A row of the table."""
    shares = [between(row, measure) for measure in MEASURES]
    shares[0] += f" ({percent(row['balanced_clean'])})"
    shares[3] += f" ({percent(row['balanced_worst_case'])})"
    step = "" if pd.isna(row["standard_steps"]) else f"{row['standard_steps']:.2f}"
    spread = percent(row["worst_case_spread"]) if row["seeds"] > 1 else ""
    return [str(row["run"]), str(row["pixels"]), str(row["seeds"]), *shares, spread, step]


def goals(means: pd.DataFrame) -> list[str]:
    """How far the best is from what was asked."""
    best = means.sort_values("worst_case").iloc[-1]
    said = [f"- The best, {best['run']}{_once(best)}: {_against_all(best)}."]
    if best["seeds"] < SEEDS and len(sure := means[means["seeds"] >= SEEDS]):
        best = sure.sort_values("worst_case").iloc[-1]
        said.append(f"- The best of {SEEDS} seeds or more, {best['run']}: {_against_all(best)}.")
    least, most = ONE_NETWORK
    # One that is trained anew takes its steps twice.
    once = ~means["run"].str.contains(ANEW)
    ones = means[once & (means["networks"] == 1) & (means["standard_steps"] <= most)]
    if len(ones):
        one = ones.sort_values("worst_case").iloc[-1]
        said.append(
            f"- One network at no more than {most:g} standard steps, {one['run']}: {short(one, 'worst_case', least)}."
            + (second_time(one, ones) if one["worst_case"] >= least else "")
        )
    return said


def _once(row: pd.Series) -> str:
    """That a row is of one draw, where it is: nothing is known of how another would do."""
    return ", of one draw" if row["seeds"] == 1 else ""


def _against_all(row: pd.Series) -> str:
    """A row beside each goal."""
    return ", ".join(short(row, name, goal) for name, goal in GOALS.items())


def second_time(one: pd.Series, ones: pd.DataFrame) -> str:
    """That a network of an earlier opening had missed the goal, where one had, and that the interval holds it."""
    least = ONE_NETWORK[0]
    earlier = ones[(ones["opening"] < one["opening"]) & (ones["worst_case"] < least)]
    said = ""
    if len(earlier):
        before = earlier.sort_values("worst_case").iloc[-1]
        said = f" At the second time of asking: {before['run']} had missed it on these images before."
    return said + f" Its interval holds {percent(least)}." * bool(one["worst_case_low"] < least)


def short(row: pd.Series, measure: str, goal: float) -> str:
    """A measure beside its goal."""
    gap = goal - float(row[measure])
    verdict = f"short by {percent(gap)} points" if gap > 0 else "reached"
    return f"{measure.replace('_', ' ')} {percent(row[measure])} of at least {percent(goal)} ({verdict})"


def of_curve(means: pd.DataFrame) -> pd.DataFrame | None:
    """Rows of the recipe that was trained on most numbers of films, fewest films first; None below three."""
    said = means[means["trained_on"] > 0].assign(
        recipe=means["run"].str.replace(r",? \d+ epochs of \d+ films", "", regex=True)
    )
    if not len(said):
        return None
    recipe = said.groupby("recipe")["trained_on"].nunique().idxmax()
    points = said[said["recipe"] == recipe].sort_values("trained_on").drop_duplicates("trained_on", keep="last")
    return points if len(points) > 2 else None


def curve(means: pd.DataFrame) -> list[str]:
    """Accuracy over the number of training films, and what all films there are would give."""
    points = of_curve(means)
    if points is None:
        return ["Not measured: fewer than three numbers of films."]
    few, most = points.iloc[0], points.iloc[-1]
    films, seeds = int(most["trained_on"]), int(points["seeds"].min())
    better = means[(means["networks"] == 1) & (means["worst_case"] > most["worst_case"])].sort_values("worst_case")
    beside = f" The most robust single network has {between(better.iloc[-1], 'worst_case')}." if len(better) else ""
    rows = [[str(int(p["trained_on"])), between(p, "clean"), between(p, "worst_case")] for _, p in points.iterrows()]
    return [
        f"`{most['recipe']}`, on fewer films for the same number of steps, "
        f"{'one seed' if seeds == 1 else f'{seeds} seeds'} each.{beside}",
        "",
        *markdown.table(["films", "clean", "worst case"], rows),
        "",
        *_fitted(few, most),
        "",
        f"From {films} films to {WHOLE} is {np.log2(WHOLE / films):.1f} doublings beyond what was tried, of films of "
        "other sources, Val and Test among them: a guess. The intervals are over groups of Test films; they hold "
        "neither what other seeds would give nor which curve is right.",
    ]


def _fitted(few: pd.Series, most: pd.Series) -> list[str]:
    """What the curves say; nothing of points that were not measured together, from whose answers none was fitted."""
    if pd.isna(most.get("gain_clean", np.nan)):
        return ["No curve: these were not measured together."]
    return [
        f"- {measure.replace('_', ' ').capitalize()}: {int(most['trained_on'])} films less {int(few['trained_on'])}, "
        f"paired, {signed(most, f'gain_{measure}')} points; {signed(most, f'doubling_{measure}')} for each doubling by "
        f"a straight line, which would give {between(most, f'whole_{measure}')} % with all {WHOLE} images of "
        f"COVID-QU-Ex; by a curve that levels off as one over the root, {between(most, f'levelling_{measure}')}."
        for measure in ("clean", "worst_case")
    ]


def signed(row: pd.Series, measure: str) -> str:
    """A difference with its interval, in points."""
    value, low, high = (100 * float(row[f"{measure}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def recipes(tested: Sequence[Tested], whole: int) -> list[str]:
    """The command of each row, and of each member of several; of fewer films than the `whole` it names their list."""
    found = []
    for name, runs in by_row(tested).items():
        if runs[0].run.recipe is None:
            continue
        films, said = images_of(runs[0].run), command(runs[0].run.trained_by)
        if films < whole:
            said = said.replace("--data DATA", f"--data {LIST.format(films=films)}")
        found.append(f"- `{name}`, {minutes(runs)} minutes on one shared core a run: `{said}`")
    return found


def lists(trained: Sequence[str], data: str) -> list[str]:
    """How the lists of fewer films are made that commands name; nothing where none does."""
    if not any(LIST.split("{")[0] in line for line in trained):
        return []
    said = LIST.format(films="N")
    return [f"{said}: `python -m benchmarks.findings.ceiling --films N --data {data} --out DIR`.", ""]


def minutes(runs: Sequence[Tested]) -> str:
    """How long training took, the mean of the seeds."""
    return f"{np.mean([float(each.run.training['seconds']) / 60 for each in runs]):.1f}"


if __name__ == "__main__":
    main()
