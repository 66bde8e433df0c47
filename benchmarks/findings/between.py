"""How the bar between proof and attack closes: each step of either, on the same images.

    python -m benchmarks.findings.between RUN... --data covidqu-midi

Of validation alone. Proofs: intervals, CROWN, its slopes climbed, and layers bounded by CROWN too; attacks: FGSM,
PGD-20, worst-case, and ten times its steps and queries. That last is tried on what is neither proved nor lost, and on
some proved answers, as the others are on all: no attack can take these if the proofs are right. Writes
results/between-val-<data>.md and .csv.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.findings.seeds import balanced, between, command, of_weights, percent
from trustcxr import attacks
from trustcxr.about import NOTICE
from trustcxr.certify.proofs import Effort
from trustcxr.data import load_dataset
from trustcxr.data.batches import to_pixels
from trustcxr.data.dataset import Dataset
from trustcxr.errors import UserError
from trustcxr.evaluation import certified
from trustcxr.evaluation.run import Run, load_run
from trustcxr.report import markdown
from trustcxr.report.tables.certified import BAR, bar
from trustcxr.results import files
from trustcxr.statistics import Bootstrap, share_interval, wilson

RESULTS = Path(__file__).resolve().parents[2] / "results"
EPSILON, SPLIT = 0.02, "Val"
PROOFS = {  # each tried where the one before has no proof
    "intervals": Effort(crown=False),
    "CROWN": Effort(neurons=0, steps=0),
    "CROWN, its slopes climbed": Effort(neurons=0),
    "CROWN, layers before bounded by it too": Effort(),
}
TEN_TIMES = {"steps": 500, "queries": 10_000}
SAMPLE = 200  # proved answers that are attacked ten times as hard
BATCH = 256


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = [load_run(folder) for folder in given.runs]
    if len(sizes := {run.size for run in runs}) > 1:
        raise UserError(f"all networks must be of one size, not of {sorted(sizes)} pixels")
    data = load_dataset(given.data, split=SPLIT, **runs[0].trained_by.data.reading())
    table = pd.concat([kept(run, data) for run in runs], ignore_index=True)
    place = RESULTS / f"between-val-{given.data.name}.md"
    files.write_table(place.with_suffix(".csv"), table)
    place.write_text("\n".join(page(table, given.data.name, [trained(run) for run in runs])) + "\n", encoding="utf-8")


def name_of(run: Run) -> str:
    """Networks, training, epochs and seed."""
    made = run.trained_by
    together = f"{made.model.members} x " if made.model.members > 1 else ""
    return f"{together}{made.model.name}-{made.defence.name}, {made.training.epochs} epochs, seed {made.seed}"


def kept(run: Run, data: Dataset) -> pd.DataFrame:
    """`figures` of a run, from its folder (and its weights) where they were measured before: they take long."""
    place = of_weights(run, run.folder / f"between-{data.root.name}-{SPLIT}.csv")
    if not place.is_file():
        files.write_table(place, figures(run, data))
    return files.read_table(place)


def figures(run: Run, data: Dataset) -> pd.DataFrame:
    """A row for each step of proof and of attack: what is right and held (`share`), with its interval."""
    images, labels = to_pixels(torch.from_numpy(np.array(data.images))), torch.from_numpy(data.labels)
    with torch.no_grad():
        right = np.concatenate([(run.model(x).argmax(1) == y).numpy() for x, y in _batches(images, labels)])
    held = {("proof", name): _proved(run, data, effort) for name, effort in PROOFS.items()}
    sure = held["proof", list(PROOFS)[-1]]
    attacked = {
        "no attack": right,
        "FGSM": _outlasts(run, images, labels, right, "fgsm"),
        "PGD-20": _outlasts(run, images, labels, right, "pgd"),
        "worst-case": _outlasts(run, images, labels, right, "worst-case"),
    }
    harder = "worst-case, ten times the budget"
    broken = sure & ~np.all(list(attacked.values()), axis=0)
    attacked[harder] = sure | _outlasts(run, images, labels, attacked["worst-case"] & ~sure, "worst-case", **TEN_TIMES)
    held |= {("attack", name): answers for name, answers in attacked.items()}
    tried = _sample(sure)
    broken |= tried & ~_outlasts(run, images, labels, tried, "worst-case", **TEN_TIMES)
    groups, rows = Bootstrap.over(data.groups), []
    for (side, step), answers in held.items():
        low, high = share_interval(groups, resampled := groups.means(answers))
        row = {"run": name_of(run), "side": side, "step": step, "epsilon": EPSILON, "share": float(resampled[0])}
        row |= {"share_low": low, "share_high": high, "balanced": balanced(answers, data.labels), "n": len(data)}
        row |= {"proved": int(sure.sum()), "proved_and_attacked_harder": int(tried.sum())}
        rows.append(row | {"proved_and_broken": int(broken.sum()), "pixels": data.size})
    return pd.DataFrame(rows)


def _batches(images: torch.Tensor, labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(images.split(BATCH), labels.split(BATCH), strict=True))


def _proved(run: Run, data: Dataset, effort: Effort) -> np.ndarray:
    """Which answers are right and proved (N,)."""
    table = certified.prove(run, data, (EPSILON,), effort=effort).set_index("sample_id")
    return table.loc[data.sample_ids, "certified"].to_numpy(dtype=bool)


def _outlasts(
    run: Run, images: torch.Tensor, labels: torch.Tensor, rows: np.ndarray, attack: str, **budget: int
) -> np.ndarray:
    """Which of `rows` (N,) are still right under an attack."""
    kept, held = np.flatnonzero(rows), np.zeros(len(rows), dtype=bool)
    for some in np.array_split(kept, max(1, -(-len(kept) // BATCH))):
        if len(some):
            x, y = images[some], labels[some]
            found = attacks.get(attack)(run.model, x, y, epsilon=EPSILON, **budget)
            with torch.no_grad():
                held[some] = (run.model(found).argmax(1) == y).numpy()
    return held


def _sample(sure: np.ndarray) -> np.ndarray:
    """Up to SAMPLE of the proved answers, drawn by a fixed seed (N,)."""
    rows, drawn = np.flatnonzero(sure), np.zeros(len(sure), dtype=bool)
    drawn[np.random.default_rng(0).permutation(rows)[:SAMPLE]] = True
    return drawn


# --- the page --------------------------------------------------------------------------------------------------------


def trained(run: Run) -> str:
    """How a run was trained."""
    return f"- `{name_of(run)}`: `{command(run.trained_by)}`"


def page(table: pd.DataFrame, data: str, made: Sequence[str]) -> list[str]:
    """The Markdown page of a table."""
    steps, tried = list(PROOFS), table.drop_duplicates("run")
    return [
        "# How the bar between proof and attack closes",
        "",
        f"`python -m benchmarks.findings.between RUN... --data {data}`. {NOTICE} {int(table['n'].iloc[0])} {SPLIT} "
        f"images of {data} at {int(table['pixels'].iloc[0])} pixels, on which epochs were chosen too; epsilon "
        f"{EPSILON:g}, L-infinity; percent answered rightly that is proved, or that an attack leaves; 95 % intervals "
        "over groups of images, of one seed. A proof is tried where the one before it has none. Ten times the budget "
        f"of worst-case: {TEN_TIMES['steps']} steps, {TEN_TIMES['queries']} queries.",
        "",
        *[line for name, rows in table.groupby("run", sort=False) for line in _of_run(str(name), rows, steps)],
        "## Attacks on what is proved",
        "",
        "All proved answers were attacked by FGSM, PGD-20 and worst-case, and some, drawn by a fixed seed, with ten "
        "times its budget. By the proofs none can be broken; of those that were attacked so hard at most as many as "
        "the score interval says (95 %, one network's answers taken as independent):",
        "",
        *markdown.table(
            ["run", "proved", "of these attacked ten times as hard", "broken by any", "at most, %"],
            [_broken(row) for _, row in tried.iterrows()],
        ),
        "",
        "## How they were trained",
        "",
        *made,
    ]


def _broken(row: pd.Series) -> list[str]:
    tried, broken = int(row["proved_and_attacked_harder"]), int(row["proved_and_broken"])
    most = percent(wilson(min(broken / tried, 1), tried)[1]) if tried else ""
    return [str(row["run"]), str(row["proved"]), str(tried), str(broken), most]


def _of_run(name: str, rows: pd.DataFrame, proofs: Sequence[str]) -> list[str]:
    """A network's steps from both sides, and the bar at its first and at its last."""
    shares = {str(row["step"]): float(row["share"]) for _, row in rows.iterrows()}
    last, clean = list(shares)[-1], shares["no attack"]
    cells = [[row["side"], row["step"], between(row, "share"), percent(row["balanced"])] for _, row in rows.iterrows()]
    ends = {"intervals and FGSM alone": (proofs[0], "FGSM"), "all that was tried": (proofs[-1], last)}
    opened = [f"by {said} {percent(shares[b] - shares[a])} points are open" for said, (a, b) in ends.items()]
    bars = [f"    {bar(shares[a], shares[b], clean, 60)}" for a, b in ends.values()]
    return [
        f"## {name}",
        "",
        *markdown.table(["side", "step", "right and held, %", "mean over classes"], cells),
        "",
        f"{BAR[0].upper()}{BAR[1:]}; {', '.join(opened)}:",
        "",
        *bars,
        "",
    ]


if __name__ == "__main__":
    main()
