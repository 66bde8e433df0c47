"""What no attack can take from networks trained by bounds, and what such networks look at.

python -m benchmarks.findings.certified RUN... --data COVID-QU-Ex --out results/certified-covidqu-midi

The runs are of `trustcxr train --defence ibp`; seeds of one radius are one row. Test images are opened once: answers,
proofs, attacks and what the answers hang on are measured together, from here. Writes OUT.md and OUT.csv.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from benchmarks.findings.seeds import balanced, beside, between, command, mini_alone, of_mini, percent, summary
from trustcxr import attacks
from trustcxr.catalogue import VIEWS
from trustcxr.data import load_dataset
from trustcxr.data.batches import to_pixels
from trustcxr.data.dataset import Dataset
from trustcxr.evaluation import certified, predictions
from trustcxr.evaluation.run import Run, load_run
from trustcxr.report import markdown
from trustcxr.report.tables.certified import BAR, bar
from trustcxr.results import files
from trustcxr.results.tables import CLEAN, logits_of
from trustcxr.statistics import Bootstrap

EPSILONS = (0.005, 0.01, 0.02)
THUMBNAILS = (1, 4, 8, 16)
SHIFTS = (-0.1, -0.05, 0.05, 0.1)
MEASURES = ("clean", "certified", "worst_case")


@dataclass
class Tested:
    """One run on the Test images: its answers, and by epsilon what is proved and what held out under attack."""

    run: Run
    answers: np.ndarray
    views: dict[str, tuple[float, int]]
    held: dict[tuple[str, float], np.ndarray]  # (measure, epsilon) -> right and so, (N,)

    @property
    def row(self) -> str:
        """What its seeds share: networks, training, radius."""
        made = self.run.trained_by
        together = f"{made.model.members} x " if made.model.members > 1 else ""
        return f"{together}{made.model.name}-{made.defence.name}-{made.defence.epsilon:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="Test")
    parser.add_argument("--note", default="", help="what the figures do not tell of the goal, such as an earlier miss")
    parser.add_argument("--out", type=Path, required=True, help="without ending: .md and .csv are written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = [load_run(folder) for folder in given.runs]
    data = load_dataset(given.data, split=given.split, **runs[0].trained_by.data.reading())
    train = load_dataset(given.data, split="Train", **runs[0].trained_by.data.reading())
    tested = [test(run, data) for run in runs]
    table = figures(tested, data)
    files.write_table(given.out.with_suffix(".csv"), table)
    given.out.with_suffix(".md").write_text(page(given, tested, table, data, train), encoding="utf-8")


def test(run: Run, data: Dataset) -> Tested:
    """Everything that is measured of a run, in one opening of the images."""
    table = predictions.predict(run, data)
    clean = table[table["attack"] == CLEAN]
    answers = logits_of(clean).argmax(1)
    right = answers == data.labels
    views = {}
    for view in VIEWS:
        rows = table[table["attack"] == view]
        if len(rows):
            views[view] = float((logits_of(rows).argmax(1) == rows["label"]).mean()), len(rows)
    proofs, held = certified.prove(run, data, EPSILONS), {}
    for epsilon in EPSILONS:
        mine = proofs[proofs["epsilon"] == epsilon].set_index("sample_id").loc[data.sample_ids]
        sure = mine["certified"].to_numpy(dtype=bool)
        held["clean", epsilon], held["certified", epsilon] = right, sure
        held["worst_case", epsilon] = sure | attacked(run, data, right & ~sure, epsilon)
    return Tested(run, answers, views, held)


def attacked(run: Run, data: Dataset, open_rows: np.ndarray, epsilon: float) -> np.ndarray:
    """Which of the rows hold out under `worst-case`; a proved answer need not be attacked."""
    rows, held = np.flatnonzero(open_rows), np.zeros(len(open_rows), dtype=bool)
    if len(rows):
        images, labels = to_pixels(torch.from_numpy(data.images[rows])), torch.from_numpy(data.labels[rows])
        found = attacks.worst_case(run.model, images, labels, epsilon=epsilon)
        with torch.no_grad():
            held[rows] = (run.model(found).argmax(1) == labels).numpy()
    return held


def figures(tested: Sequence[Tested], data: Dataset) -> pd.DataFrame:
    """A row for each run and epsilon, and one for the mean of the seeds of a row, with intervals over groups."""
    bootstrap, mini, rows = Bootstrap.over(data.groups), of_mini(data.table), []
    for name in dict.fromkeys(each.row for each in tested):
        seeds = [each for each in tested if each.row == name]
        for epsilon in EPSILONS:
            parts = [(f"{name}-s{each.run.trained_by.seed}", str(each.run.trained_by.seed), [each]) for each in seeds]
            parts += [(name, "mean", seeds)]
            for run, seed, some in parts:
                row: dict[str, object] = {"run": run, "seed": seed, "epsilon": epsilon}
                held = [{name: each.held[name, epsilon] for name in MEASURES} for each in some]
                row |= summary(held, MEASURES, data.labels, bootstrap)
                rows.append(row | beside(held, MEASURES, data.labels, data.groups, mini))
    return pd.DataFrame(rows)


# --- what such a network looks at ------------------------------------------------------------------------------------


def thumbnails(data: Dataset, side: int) -> np.ndarray:
    """The images averaged down to side x side, flat, in [0, 1]."""
    pixels = torch.from_numpy(np.asarray(data.images) / 255).float()
    return F.adaptive_avg_pool2d(pixels, side).flatten(1).numpy()


def brightness(tested: Sequence[Tested], data: Dataset, train: Dataset) -> list[list[str]]:
    """Logistic regressions on thumbnails: accuracy, and how often they answer as the networks do."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = []
    for side in THUMBNAILS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        model.fit(thumbnails(train, side), train.labels)
        said = model.predict(thumbnails(data, side))
        alike = [float((said == each.answers).mean()) for each in tested]
        what = "mean grey alone" if side == 1 else f"{side} x {side} greys"
        right = (said == data.labels).astype(float)
        rows.append([what, percent(right.mean()), percent(balanced(right, data.labels)), percent(np.mean(alike))])
    return rows


def shifted(tested: Sequence[Tested], data: Dataset) -> list[list[str]]:
    """Accuracy where every film is made so much brighter, and where all are made equally bright."""
    pixels = to_pixels(torch.from_numpy(np.array(data.images)))
    means = pixels.mean((1, 2, 3), keepdim=True)
    versions = {f"{shift:+g} of the grey scale": pixels + shift for shift in SHIFTS}
    versions["all films equally bright"] = pixels - means + means.mean()
    rows = []
    for name, changed in versions.items():
        right, covid = [], []
        for each in tested:
            with torch.no_grad():
                said = each.run.model(changed.clamp(0, 1)).argmax(1).numpy()
            right.append(float((said == data.labels).mean()))
            covid.append(float((said == 0).mean()))
        rows.append([name, percent(np.mean(right)), percent(np.mean(covid))])
    return rows


# --- the page --------------------------------------------------------------------------------------------------------


def drawn(row: pd.Series) -> str:
    """Proved, open and lost as one line of text, from 0 to 100 %."""
    proved, attacked, clean = (float(row[name]) for name in ("certified", "worst_case", "clean"))
    return bar(proved, attacked, clean, width=40)


def lines(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table, the first its head."""
    head, *rest = rows
    return "\n".join(markdown.table(head, rest))


_HEAD = """\
`python -m benchmarks.findings.certified RUN... --data {data} --out {out}`; research software, not for diagnosis.
{count} {split} images of {data}, opened for each run in the table, {size} pixels; the commonest class has
{commonest} % of them.
Certified: the answer is right and proved the same for every image within epsilon (L-infinity, greys in [0, 1]), by
intervals, else by CROWN, with an allowance for float32. Worst case: what the attacks of `worst-case` leave; they were
tried only where there is no proof, which they cannot break. certified <= true <= worst case. Intervals are 95 %, over
groups of images; spread is the largest less the smallest of the seeds."""


def page(given: argparse.Namespace, tested: list[Tested], table: pd.DataFrame, data: Dataset, train: Dataset) -> str:
    """The whole page."""
    commonest = percent(np.bincount(data.labels).max() / len(data))
    said = {"data": data.root.name, "out": f"results/{given.out.name}", "count": len(data), "split": given.split}
    means = table[table["seed"] == "mean"]
    most = means[means["epsilon"] == max(EPSILONS)].sort_values("certified")["run"].iloc[-1]
    widest = max(map(len, means["run"]))
    bars = [f"    {r['run']:<{widest}} at {r['epsilon']:<6g} {drawn(r)}" for _, r in means.iterrows()]
    parts = [
        "# What no attack can take",
        _HEAD.format(**said, size=data.size, commonest=commonest).replace("\n", " "),
        "What was tried on validation stands in `trials-certified-covidqu-midi.md`. Trained with `trustcxr train "
        "--defence ibp`, the epoch chosen on validation:",
        "\n".join(_training([each for each in tested if each.row == name]) for name in means["run"].unique()),
        "## Certified accuracy",
        lines(_accuracies(means)),
        f"{BAR[0].upper()}{BAR[1:]}:",
        "\n".join(bars),
        "## Each seed",
        lines(_accuracies(table[table["seed"] != "mean"])),
        *_of_mini(means),
        "## Against the goal",
        "\n".join(_goal(means)),
        *([given.note] if given.note else []),
        "## What such a network looks at",
        f"Of `{most}`, of which most is proved; means over its seeds.",
        _looks([each for each in tested if each.row == most], data, train),
    ]
    return "\n\n".join(parts) + "\n"


def _training(seeds: list[Tested]) -> str:
    recipe = seeds[0].run.trained_by
    minutes = np.mean([float(each.run.training["seconds"]) / 60 for each in seeds])
    best = ", ".join(percent(each.run.training["best_value"]) for each in seeds)
    weights = sum(p.numel() for p in seeds[0].run.model.parameters())
    radius = (
        f"radius {recipe.defence.epsilon:g}, grown over {recipe.defence.ramp:.0%} of {recipe.training.epochs} epochs"
    )
    return (
        f"- `{seeds[0].row}`, {len(seeds)} seed(s): {radius}, {recipe.defence.clean_share:g} of the loss on clean "
        f"images; {weights} weights; {minutes:.1f} minutes on one shared core; certified at that radius on validation, "
        f"by intervals alone, {best} %.\n\n      {command(recipe)}\n"
    )


def _accuracies(table: pd.DataFrame) -> list[list[str]]:
    head = ["run", "seeds", "epsilon", "clean", "certified", "worst case", "open", "balanced: clean", "certified"]
    rows = [[*head, "worst case", "spread of certified"]]
    for _, row in table.iterrows():
        shown = [between(row, measure) for measure in MEASURES]
        even = [percent(row[f"balanced_{m}"]) for m in MEASURES]
        gap, spread = percent(row["worst_case"] - row["certified"]), percent(row["certified_spread"])
        rows.append([row["run"], str(row["seeds"]), f"{row['epsilon']:g}", *shown, gap, *even, spread])
    return rows


def _of_mini(means: pd.DataFrame) -> list[str]:
    """The same of covidqu-mini's films, which are among them; nothing where there are none."""
    if "mini_n" not in means:
        return []
    own = mini_alone(means)
    return [f"## The {int(own['n'].iloc[0])} of covidqu-mini among them", lines(_accuracies(own))]


def _goal(means: pd.DataFrame) -> list[str]:
    said = []
    for epsilon, wanted in ((0.02, 0.62), (0.005, 0.72)):
        best = means[means["epsilon"] == epsilon].sort_values("certified").iloc[-1]
        for name, goal in (("certified", wanted), ("clean", 0.75)):
            short = goal - float(best[name])
            verdict = f"short by {percent(short)} points" if short > 0 else "reached"
            asked = f"- {name} at least {percent(goal)} % at {epsilon:g}"
            even = f"as mean over the classes {percent(best[f'balanced_{name}'])}"
            if "mini_n" in best:
                even += f", on covidqu-mini's {best['mini_n']:.0f} {percent(best[f'mini_{name}'])}"
            said.append(f"{asked}: {percent(best[name])} by `{best['run']}`, {verdict}; {even}.")
    return said


def _looks(tested: list[Tested], data: Dataset, train: Dataset) -> str:
    head = ["linear model on", "accuracy", "balanced", "same answer as the networks"]
    covid = percent(np.mean([(each.answers == 0).mean() for each in tested]))
    greys = brightness(tested, data, train)
    short = 100 * np.mean([(each.answers == data.labels).mean() for each in tested]) - float(greys[-1][1])
    parts = [
        "A logistic regression on the film's greys, trained on the same images and with nothing proved of it: how far "
        f"brightness alone goes, and how often it answers as the networks do. A linear model on {greys[-1][0]} comes "
        f"within {max(0.0, short):.1f} points of their clean accuracy.",
        lines([head, *greys]),
        "Accuracy of the networks with parts of the film hidden. In the last row the film around "
        "the lungs is one of another class and the label is the lungs'.",
        lines([["what is shown", "accuracy", "n"], *_covered(tested)]),
        f"Every film made brighter or darker, and all made equally bright; {data.classes[0]} is answered for {covid} % "
        "of the films as they are.",
        lines([["change", "accuracy", f"answered {data.classes[0]}"], *shifted(tested, data)]),
    ]
    return "\n\n".join(parts)


def _covered(tested: list[Tested]) -> list[list[str]]:
    rows = []
    for view in VIEWS:
        known = [each.views[view] for each in tested if view in each.views]
        if known:
            rows.append([view.replace("_", " "), percent(np.mean([share for share, _ in known])), str(known[0][1])])
    return rows


if __name__ == "__main__":
    main()
