"""Does an attack in bf16 while training cost robustness? Two runs that differ in nothing else, and their difference.

    python -m benchmarks.findings.attack_precision --data COVID-QU-Ex --out out/attack-precision

Each is trained with `fgsm` in float32, one with the attack's passes in bf16 (`attack_precision: bf16`), and both are
tested on the validation images, as they are and under PGD-20 at 0.02 in float32. The difference is over the same
images, with a 95 % interval over patients or groups. `--only` trains one of the two, so that two processes can share
the work.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from trustcxr.recipes.run import RunRecipe
from trustcxr.report import markdown
from trustcxr.results import files, folders
from trustcxr.statistics import paired
from trustcxr.study import run_folder

PRECISIONS = ("same", "bf16")
STEPS, EPSILON = 20, 0.02
HEAD = ("tested", "attack in float32", "attack in bf16", "difference in points", "images")
AUGMENT = ("training.augment.brightness=0", "training.augment.contrast=0", "training.augment.flip=0.5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PRECISIONS)
    given = parser.parse_args()
    wanted = (given.only,) if given.only else PRECISIONS
    minutes = {precision: one(given, precision) for precision in wanted}
    if given.only:
        return
    right = {precision: answers(given.out / precision, given.data) for precision in PRECISIONS}
    print("# An attack in bf16 while training")
    print()
    print(
        f"`python -m benchmarks.findings.attack_precision --data {given.data.name} --out {given.out}`. "
        f"Both runs: {given.model},"
    )
    print(f"{given.size} pixels, fgsm at {EPSILON:g} with a ramp of 0.7, {given.epochs} epochs, seed {given.seed},")
    print("in float32 but for the attack's passes of the second. Difference: the second less the first over the same")
    print("validation images, with its 95 % interval over patients or groups. Research software, not for diagnosis.")
    print()
    print("\n".join(markdown.table(HEAD, [])))
    for condition in ("clean", "pgd"):
        tables = [right[precision][condition] for precision in PRECISIONS]
        same, bf16 = (table["right"].to_numpy(float) for table in tables)
        assert (tables[0]["sample_id"].to_numpy() == tables[1]["sample_id"].to_numpy()).all()
        found = paired(same, bf16, tables[0]["group"])
        low, high = (100 * end for end in found.difference_ci)
        name = "clean" if condition == "clean" else f"PGD-{STEPS}"
        difference = f"{100 * found.difference:+.1f} [{low:.1f}, {high:.1f}]"
        print(markdown.row([name, f"{same.mean():.1%}", f"{bf16.mean():.1%}", difference, str(len(same))]))
    print()
    print(
        "Minutes of training, the machine shared: "
        + ", ".join(f"{name} {spent:.1f}" for name, spent in minutes.items())
    )


def one(given: argparse.Namespace, precision: str) -> float:
    """Train one of the two, if it is not there yet; its minutes."""
    run: RunRecipe = run_folder.recipe(
        model=given.model,
        weights="none",
        defence={"name": "fgsm", "epsilon": EPSILON, "ramp": 0.7},
        seed=given.seed,
        size=given.size,
        training={"epochs": given.epochs, "learning_rate": 1e-3, "averaging": 0.98, "patience": given.epochs},
        options=[*AUGMENT, f"defence.attack_precision={precision}"],
    )
    return float(run_folder.train(run, given.data, given.out / precision)["seconds"]) / 60


def answers(folder: Path, data: Path) -> dict[str, pd.DataFrame]:
    """sample_id, group and whether the answer is right, clean and under PGD."""
    _, place = run_folder.evaluate(folder, data, split="Val", attacks=["pgd"], epsilons=[EPSILON], steps=STEPS)
    table = files.read_table(place / folders.PREDICTIONS_FILE)
    table = table.assign(right=np.stack(table["logits"].to_list()).argmax(1) == table["label"])
    return {name: table[table["attack"] == name].sort_values("sample_id") for name in ("clean", "pgd")}


if __name__ == "__main__":
    main()
