"""Try a change of certified training: train as studies/certified does, but for one change, and measure on Val.

python -m benchmarks.bound_trials OUT --data DATA --trial NAME --what TEXT [--loss mtl-ibp --share 0.5] [--against OUT]

--loss mtl-ibp: (1 - share) * cross-entropy of attacked images + share * the bound's (De Palma et al. 2024).
--loss sabr: the bound's, on a box of share * epsilon around an image attacked at the rest of it (Mueller et al. 2023).
The attack is FGSM from a random start. --norm adds BatchNorm before each ReLU: bounds use its running statistics, clean
images those of their batch until epsilon is grown; then BatchNorm is frozen, so both use the running ones.
Figures are of the epoch that validation chose; that flatters, so the last stands beside it. run.yaml has no change.
"""

import argparse
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from torch import Tensor, nn

from benchmarks.trials import TABLE, append_trial, percent, typed_command
from trustcxr import api, attacks, defences
from trustcxr.certify.verify import Effort
from trustcxr.data import load_dataset
from trustcxr.data.loader import to_pixels
from trustcxr.defences import bound_training
from trustcxr.defences.base import smoothed_cross_entropy
from trustcxr.evaluation import certified
from trustcxr.evaluation.trained_run import Run, load_run
from trustcxr.models import factory
from trustcxr.statistics import paired
from trustcxr.storage import atomic
from trustcxr.training.step import TrainingStep

STUDIES, EPSILON, STEPS, QUERIES = Path("studies"), 0.02, 30, 300
TEXTS = {"certified": "certified", "intervals": "by intervals alone", "last": "certified at the last epoch"}
factory.PLAIN_MODELS["plain3-wide"] = factory.Plain(((32, 6, 2), (64, 3, 2), (128, 3, 2)), grid=4, hidden=256)
factory.PLAIN_MODELS["plain3-48"] = factory.Plain(((16, 6, 2), (32, 3, 2), (64, 3, 2)), grid=6)


def bound_loss(name: str, share: float, model: nn.Module, images: Tensor, labels: Tensor, **keys: Any) -> Any:
    """Return the loss of a trial and the worst logits; freeze BatchNorm once epsilon is grown. `keys`: those of ibp."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(keys["grown"] < 1)
    if name == "ibp":
        return bound_training.ibp(model, images, labels, **keys)
    epsilon, keys["clean_weight"] = keys["epsilon"], 0.0
    radius, seed = (1 - share) * epsilon if name == "sabr" else epsilon, int(torch.randint(2**31, ()))
    attacked = attacks.fgsm_rs(model, images, labels, epsilon=radius, seed=seed)
    if name == "sabr":
        return bound_training.ibp(model, attacked, labels, **{**keys, "epsilon": share * epsilon})
    keys["regulariser"] = keys["regulariser"] / share  # so that its weight is that of the other losses
    bound, worst = bound_training.ibp(model, images, labels, **keys)
    return (1 - share) * smoothed_cross_entropy(model(attacked), labels, keys["label_smoothing"]) + share * bound, worst


def add_norms() -> None:
    """Give plain networks of this process BatchNorm before each ReLU."""
    usual = factory.PlainNet.__init__

    def begin(self: factory.PlainNet, plain: factory.Plain, classes: int) -> None:
        usual(self, plain, classes)
        norms = [nn.BatchNorm2d(width) for width, _, _ in plain.convolutions]
        layers = list(self.features)
        pairs = zip(layers[::2], norms, layers[1::2], strict=True)
        self.features = nn.Sequential(*(module for part in pairs for module in part))
        head = list(self.head)
        self.head = nn.Sequential(*head[:3], nn.BatchNorm1d(plain.hidden), *head[3:])

    factory.PlainNet.__init__ = begin  # type: ignore[method-assign]


def train(options: argparse.Namespace) -> tuple[Run, Run]:
    """Train by the study's recipe with the trial's change; return the run at its chosen and at its last epoch."""
    recipes: list[Any] = [atomic.read_yaml(STUDIES / name / "recipe.yaml") for name in ("certified", "robust")]
    study, other = recipes
    training, settings = study["training"] | {"epochs": options.epochs}, list(options.set)
    if options.more:
        settings.append(f"data.add={yaml.safe_dump(other['data']['add'], default_flow_style=True, width=10**6)}")
        training["balanced_by"] = other["training"]["balanced_by"]
    keys = {"defence": study["defences"][0], "training": training, "settings": settings, "seed": options.seed}
    usual = TrainingStep.candidate
    validated: dict[str, Any] = {}
    TrainingStep.candidate = lambda self: validated.setdefault("last", usual(self))  # type: ignore[method-assign]
    run = api.train(
        options.data, options.out, model=options.model, weights="none", size=options.size, threads=1, **keys
    )
    return run, replace(run, model=deepcopy(validated["last"]).eval())


def measure(run: Run, last: Run, data: str) -> pd.DataFrame:
    """Return a row for each validation image: right, proved and right, right after all attacks."""
    images = load_dataset(data, "Val", run.size, classes=run.classes)
    table = certified.prove(run, images, [EPSILON])
    table["clean"] = table["answer"] == table["label"]
    table["intervals"] = certified.prove(run, images, [EPSILON], effort=Effort(crown=False))["certified"]
    table["last"] = table["certified"] if last is run else certified.prove(last, images, [EPSILON])["certified"]
    pixels, labels = to_pixels(torch.from_numpy(images.batch(range(len(images))))), torch.from_numpy(images.labels)
    report = attacks.worst_case_report(run.model, pixels, labels, epsilon=EPSILON, steps=STEPS, queries=QUERIES)
    return table.assign(attacked=[name is None for name in report.broken_by])


def describe(table: pd.DataFrame, before: pd.DataFrame | None) -> str:
    """Return the figures that the columns of a table of trials do not have."""
    figures = []
    for name, text in TEXTS.items():
        share = percent(table[name].to_numpy(float), table["group"].to_numpy(), "")
        figures.append("{} {} [{}, {}]".format(text, *share.values()))
    figures.append(f"certified, mean over classes {100 * table.groupby('label')['certified'].mean().mean():.1f}")
    if before is None:
        return "; ".join(figures)
    for name in ("certified", "last", "clean", "attacked"):
        one = table.merge(before, on=["sample_id", "group"], suffixes=("", "_before"), validate="1:1")
        change = paired(one[f"{name}_before"].to_numpy(float), one[name].to_numpy(float), one["group"])
        less, low, high = (f"{100 * value:+.1f}" for value in (change.difference, *change.difference_ci))
        figures.append(f"{name} less the baseline's {less} [{low}, {high}]")
    return "; ".join(figures)


def main() -> None:
    """Train, measure and write the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name in ("--data", "--trial", "--what"):
        parser.add_argument(name, required=True)
    parser.add_argument("--zoo", default="", help="a trained model to measure; nothing is trained")
    parser.add_argument("--model", default="plain3", help="plain3-wide: twice the channels; plain3-48: for 48 pixels")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--loss", choices=("ibp", "mtl-ibp", "sabr"), default="ibp")
    parser.add_argument("--share", type=float, default=0.5, help="of the bound's loss (mtl-ibp), of epsilon (sabr)")
    parser.add_argument("--norm", action="store_true", help="BatchNorm before each ReLU")
    parser.add_argument("--more", action="store_true", help="also train on what studies/robust adds")
    parser.add_argument("--set", nargs="*", default=[], help="other keys of the recipe, such as model.members=3")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--against", type=Path, help="OUT of the baseline")
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    if options.norm:
        add_norms()
    defences.DEFENCES["ibp"] = partial(bound_loss, options.loss, options.share)
    run, last = (load_run(options.zoo),) * 2 if options.zoo else train(options)
    table = measure(run, last, options.data)
    atomic.write_table(options.out / "validation.csv", table)
    before = pd.read_csv(options.against / "validation.csv") if options.against else None
    row: dict[str, object] = {"study": "certified", "trial": options.trial}
    row["what"] = f"{options.what}; {describe(table, before)}"
    row |= {"seeds": options.seed, "n": len(table), "command": typed_command()}
    row |= {"attack": f"worst-case-{STEPS}/{QUERIES}", "epsilon": EPSILON}
    for name in ("clean", "attacked"):
        row |= percent(table[name].to_numpy(float), table["group"].to_numpy(), name)
    append_trial(options.table, row)
    print(pd.Series(row).to_string())


if __name__ == "__main__":
    main()
