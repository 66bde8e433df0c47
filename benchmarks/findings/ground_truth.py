"""Do saliency methods point at what a model is known to use? One model reads a letter, the other reads lesions.

    python benchmarks/findings/ground_truth.py --out results/ground-truth-phantom.csv

Each row: a method on a model, the share of its saliency on the letter and on the lesion, beside the share of the area
that each has, with 95 % intervals over films. That a model uses the one or the other is measured first and stands in
the table: how often its answer changes where the letter is taken away. About a minute of one idle core a model.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch

from trustcxr import explain
from trustcxr.explain import known_cause
from trustcxr.models import factory
from trustcxr.statistics import mean_interval

METHODS = (
    "gradcam", "gradcam@-2", "gradcam++", "hirescam", "hirescam@-2", "layercam", "layercam@-2",
    "integrated-gradients", "smoothgrad", "occlusion", "random", "centre",
)  # fmt: skip
REGIONS = ("marker", "marker_near", "lesion", "lesion_near")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--films", type=int, default=240, help="to train on")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--test", type=int, default=40, help="films to explain, half of them diseased")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; methods: {', '.join(explain.METHODS)}")
    test = known_cause.both(options.test, options.size, seed=999)
    bare = known_cause.unmarked(options.test, options.size, seed=999)
    rows = []
    for reads, draw in (("marker", known_cause.shortcut), ("lesion", known_cause.honest)):
        start = time.perf_counter()
        torch.manual_seed(options.seed)
        model = factory.build(options.model, classes=2)
        films = draw(options.films, options.size, seed=options.seed)
        known_cause.fit(model, films, epochs=options.epochs, learning_rate=options.learning_rate, seed=options.seed)
        like = known_cause.accuracy(model, draw(options.test, options.size, seed=998))
        known = {"accuracy": like, "changed_by_letter": known_cause.changed(model, test, bare)}
        seconds = time.perf_counter() - start
        print(f"the model that reads the {reads}: {like:.1%} right on films like its own; {seconds:.0f} s")
        print(f"  {known['changed_by_letter']:.1%} of its answers change without the letter")
        table = known_cause.shares(model, test, METHODS)
        rows += [{"reads": reads, "method": name, **_row(table[table["method"] == name]), **known} for name in METHODS]
        print(f"  explained after {time.perf_counter() - start:.0f} s")
    found = pd.DataFrame(rows)
    found = found.assign(network=options.model, size=options.size, films=options.films, epochs=options.epochs)
    print(found[["reads", "method", *REGIONS, "marker_near_area", "lesion_near_area", "null"]].round(3).to_string())
    if options.out:
        found.round(4).to_csv(options.out, index=False)
        print(f"written to {options.out}")


def _row(table: pd.DataFrame) -> dict[str, float]:
    row: dict[str, float] = {"n": len(table), "null": float(table["null"].mean())}
    for region in REGIONS:
        mean, (low, high) = mean_interval(table[region], table["film"])
        row |= {region: mean, f"{region}_low": low, f"{region}_high": high}
        row[f"{region}_area"] = float(table[f"{region}_area"].mean())
    return row


if __name__ == "__main__":
    main()
