"""Try a way of training on classes and sources that the training never sees. A trial, no part of the package.

python -m benchmarks.elsewhere_trials WAY --data DATA --out FOLDER [--table FILE]

WAY: baseline, standardised, frequency or grey (see `benchmarks.elsewhere_ways`), or simclr: the usual recipe, from
weights that were trained without labels on the same images (see `benchmarks.pretraining`). First the baseline. DATA
holds covidqu-midi and covidqu-more. Left out are COVID-19 of the Radiography Database, and all adults with other
pneumonia. COVID-QU-Ex names no source, but its file numbers come in blocks of one source. Non-COVID above 10,000 and
Normal above 11,000 are children, all others are adults: 40 images of each block were looked at.

A recall alone flatters a network that names one class too often. So a row also has, of adults, the mean over classes
and the area under the ROC curve of Non-COVID; and the accuracy at home, on Val without what is left out. Differences
from the baseline stand in round brackets, with a paired 95 % interval over groups.

`standardised` is attacked before the mapping, with two approximate gradients, so that the attacker changes the same
image for all ways. The row also has the easier attack, after the mapping.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

import trustcxr as tx
from benchmarks.elsewhere_measures import BATCH, CLASSES, EPSILON, STEPS, describe_auc, describe_recall, measure
from benchmarks.elsewhere_ways import MIXED, Standardise, mean_histogram, mix_in_training
from benchmarks.pretraining import pretrain
from benchmarks.trials import TABLE, append_trial, percent, typed_command
from trustcxr.data import read_manifest
from trustcxr.data.loader import to_pixels
from trustcxr.recipes.run_recipe import AddedData
from trustcxr.runs import training_data
from trustcxr.storage.atomic import read_yaml

AWAY = {"adults": "Non-COVID of adults", "radiography": "COVID-19 of covid-19-radiography"}
RECIPE = Path("studies/robust/recipe.yaml")
SIZE, MODEL = 32, "resnet10t"


def load_images(data: Path, added: dict[str, Any]) -> tuple[pd.DataFrame, Tensor]:
    """Return the table and the pixels (N, 1, 32, 32) of all images but Test; `away` names what is left out."""
    home = read_manifest(data / "covidqu-midi")
    more = training_data.read_added(AddedData(**added), home.root)
    parts = {"home": home.select(home.table["split"] != "Test"), "more": more}
    sets = {name: tx.load_dataset(part, None, SIZE, classes=CLASSES) for name, part in parts.items()}
    table = pd.concat([one.table.assign(set=name) for name, one in sets.items()], ignore_index=True)
    number = np.array([int(match[1]) if (match := re.search(r"\((\d+)\)", path)) else 0 for path in table["path"]])
    child = (number > 11_000) | ((number > 10_000) & (table["class"] == "Non-COVID"))
    table["adult"] = ~child & (table["source"] != "guangzhou-children")
    table["away"] = np.where(table["adult"] & (table["class"] == "Non-COVID"), "adults", "")
    table.loc[(table["set"] == "more") & (table["class"] == "COVID-19"), "away"] = "radiography"
    return table, to_pixels(torch.from_numpy(np.concatenate([one.images for one in sets.values()])))


def write_copy(folder: Path, table: pd.DataFrame, pixels: Tensor) -> None:
    """Write what is not left out as small images, in the folders home and more."""
    for name, rows in table[table["away"] == ""].groupby("set"):
        (folder / str(name)).mkdir(parents=True, exist_ok=True)
        paths = [f"{row}.png" for row in rows.index]
        for row, path in zip(rows.index, paths, strict=True):
            Image.fromarray((255 * pixels[row, 0]).round().byte().numpy()).save(folder / str(name) / path)
        columns = ["path", "class", "split", "group", *(["source"] if name == "more" else [])]
        rows.assign(path=paths)[columns].to_csv(folder / str(name) / "manifest.csv", index=False)


def train(folder: Path, recipe: dict[str, Any], epochs: int, seed: int, weights: str = "none") -> nn.Module:
    """Train on the small images by the recipe."""
    # The recipe's check has compared these images at full size.
    training_data.check_overlap = lambda *_: None
    share = recipe["data"]["add"][0]["share"]
    defence: Any = {key: value for key, value in recipe["defences"][0].items() if key != "label"}
    run = tx.train(
        folder / "home" / "manifest.csv",
        folder / f"run-s{seed}",
        model=MODEL,
        weights=weights,
        size=SIZE,
        seed=seed,
        defence=defence,
        training=recipe["training"] | {"epochs": epochs},
        settings=[f"data.add=[{{path: more/manifest.csv, share: {share}}}]"],
        threads=1,
    )
    return run.model.eval().float()


def main() -> None:
    """Train one way, measure it and write a row for each part that is left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=("baseline", "standardised", "simclr", *MIXED))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--before", type=int, default=60, help="epochs without labels (simclr)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe: Any = read_yaml(RECIPE)
    table, pixels = load_images(options.data, recipe["data"]["add"][0])
    trains, standard = (table["away"] == "") & (table["split"] == "Train"), None
    copied, folder = pixels, options.out / options.way
    if options.way == "standardised":
        standard = Standardise(mean_histogram(pixels[trains.to_numpy()]))
        copied = torch.cat([standard(part) for part in pixels.split(BATCH)])
    if options.way in MIXED:
        mix_in_training(options.way)
    write_copy(folder, table, copied)
    weights = "none"
    if options.way == "simclr":
        weights = str(folder / f"weights-s{options.seed}.safetensors")
        pretrain(pixels[trains.to_numpy()], MODEL, Path(weights), epochs=options.before, seed=options.seed)
    model = train(folder, recipe, options.epochs, options.seed, weights)
    chosen = (table["away"] != "") | ((table["split"] == "Val") & (table["set"] == "home"))
    rows = table[chosen].reset_index(drop=True)
    labels = torch.tensor([CLASSES.index(c) for c in rows["class"]])
    rows = rows.join(measure(model, pixels[chosen.to_numpy()], labels, standard))
    results = folder / f"right-s{options.seed}.csv"
    rows.to_csv(results, index=False)
    # A second baseline beside the first one shows what chance does.
    before = options.out / "baseline" / f"right-s{0 if options.way == 'baseline' else options.seed}.csv"
    baseline = pd.read_csv(before) if before != results and before.is_file() else None
    home, adults = rows["away"] == "", rows["adult"] & (rows["away"] != "radiography")
    beside = [describe_recall("mean over the classes of adults", rows[adults], baseline)]
    beside += [describe_auc("AUC of Non-COVID among adults", rows[adults], baseline)]
    beside += [describe_recall("at home on Val, mean over classes", rows[home], baseline)]
    beside += [f"at home on Val, of all images clean {100 * rows['clean'][home].mean():.1f}"]
    for key, name in AWAY.items():
        part = rows[rows["away"] == key]
        counts = part["answer"].value_counts(normalize=True)
        answers = ", ".join(f"{c} {100 * counts.get(k, 0):.1f}" for k, c in enumerate(CLASSES))
        what = f"{options.way}, trained without {' and '.join(AWAY.values())}; recall of {name}; "
        what += "; ".join([describe_recall("recall", part, baseline), f"answers {answers}", *beside])
        if standard is not None:
            what += f"; attacked after the mapping {100 * part['after'].mean():.1f}"
        trial = f"{options.way}, {key}, seed {options.seed}"
        row: dict[str, object] = {"study": "elsewhere", "trial": trial, "what": what}
        row |= {
            "seeds": options.seed,
            "n": len(part),
            "attack": f"pgd-{STEPS}",
            "epsilon": EPSILON,
            "command": typed_command(),
        }
        for figure in ("clean", "attacked"):
            row |= percent(part[figure].to_numpy(float), part["group"].to_numpy(), figure)
        append_trial(options.table, row)
        print(what, flush=True)


if __name__ == "__main__":
    main()
