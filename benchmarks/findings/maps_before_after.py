"""The figures of maps and verdicts before and after they were mended: the rows of `statistics_before_after` for them.

Of Test only the masks are read, no network sees its films: what the cells of a map could hit at best. The run is shown
validation images.
"""

import csv
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trustcxr import catalogue
from trustcxr.data import load_dataset
from trustcxr.data.batches import to_pixels
from trustcxr.data.dataset import Dataset
from trustcxr.evaluation import predictions, summary
from trustcxr.evaluation.run import Run, load_run
from trustcxr.explain import measures, randomisation, scores, verdicts
from trustcxr.explain.summary import summarise
from trustcxr.models import factory
from trustcxr.recipes.run import RunRecipe
from trustcxr.recipes.testing import AttackRecipe, ExplanationRecipe
from trustcxr.recipes.validation import validate
from trustcxr.report.terminal import percent
from trustcxr.results import alarms, folders
from trustcxr.results.documents import AttackResult, Classification, RunDocument, Share
from trustcxr.training import loop, lung_segmenter

Row = tuple[str, str, str]
RESULTS = Path(__file__).parents[2] / "results"
EPOCHS, EPOCHS_OF_THE_GATE = 3, 4  # of the run shown
STRIDE = 32  # pixels of a cell of the last map of the networks tried here


def trained(folder: Path, data: Path) -> str:
    """Train the run that is shown, unless it is there: about two minutes of one core. Returns what it is."""
    content = {
        "model": {"name": "resnet10t", "weights": "none"},
        "data": {"size": 64},
        "training": {"epochs": EPOCHS, "batch_size": 32, "learning_rate": 1e-3, "lung_gate": True},
    }
    recipe = validate(RunRecipe, content, "the run shown")
    if not (folder / folders.TRAINING_FILE).is_file():
        lung_segmenter.EPOCHS = EPOCHS_OF_THE_GATE
        train, val = (load_dataset(data, split=split, size=64) for split in ("Train", "Val"))
        loop.fit(recipe, train, val, folder)
    epochs = f"{EPOCHS} epochs after {EPOCHS_OF_THE_GATE} of the gate"
    return f"{folder.name}: ResNet10t behind a lung gate, 64 pixels, {epochs}, one seed, trained by this script"


# --- in which order a model is made random ---------------------------------------------------------------------------


def order() -> Iterator[Row]:
    """The first and the last part that are made random, and how many steps it takes."""
    x = torch.rand((2, 1, 64, 64), generator=torch.Generator().manual_seed(0))
    for name, gated in (("resnet10t", True), ("resnet10t+resnet18", False), ("resnet10t+resnet18", True)):
        model = factory.build(name, classes=3, weights="none", lung_gate=gated).eval()
        after = [part for part, _ in randomisation.cascade(model, x, ("gradcam",), 0)]
        what = f"cascading randomisation, {name}{', gated' if gated else ''}: first, last, steps"
        yield what, _steps(_order_before(model)), _steps(after)


def _steps(parts: list[str]) -> str:
    return f"{parts[0]}, {parts[-1]}, {len(parts)}"


def _order_before(model: nn.Module) -> list[str]:
    """As at c10a193: the order in which parameters are registered, backwards."""
    parts: dict[str, None] = {}
    for name, _ in model.named_parameters():
        parts.setdefault("net." + ".".join(name.removeprefix("net.").split(".")[:-1][:1]))
    return list(parts)[::-1]


# --- what the cells of a map allow -----------------------------------------------------------------------------------


def ceilings(data: Path) -> Iterator[Row]:
    """The hit rate of an oracle that picks the best cell, on the infection masks of Val and of Test."""
    for size, finer in ((64, (4, 8, 64)), (96, ()), (224, ())):
        for split in ("Val", "Test"):
            dataset = load_dataset(data, split=split, size=size)
            masks = torch.from_numpy(np.array(dataset.masks("infection")[dataset.has_mask("infection")])) != 0
            masks = masks[masks.flatten(1).any(1)]
            chance = float(masks.double().flatten(1).mean(1).mean())
            for side in (math.ceil(size / STRIDE), *(finer if split == "Val" else ())):
                best = float(measures.pointing_ceiling(masks, (side, side)).mean())
                said = f"{best:.3f} (chance {chance:.3f})" + (": no hit rate is stated" if best < chance else "")
                what = f"hit rate at best, {side} x {side} cells, {size} pixels, {split} masks alone, n {len(masks)}"
                yield what, "not said", said


# --- a map behind a gate ---------------------------------------------------------------------------------------------


def gate(folder: Path, data: Path) -> Iterator[Row]:
    """Maps of a gated run on validation images beside those of random weights, and the lungs that its gate finds."""
    run = load_run(folder)
    dataset = load_dataset(data, "Val", run.size, classes=run.classes)
    names = ("layercam@gate", "layercam-smooth@gate", "layercam@-2", "gradcam")
    options = ExplanationRecipe(methods=names, corruptions=(), sample=0)
    found = summarise(scores.score(run, dataset, options), images=len(dataset))
    for name in names:
        part = found[name]
        about = f"{folder.name}, Val, n {part.n}, {name} ({part.cells} cells)"
        for measure in catalogue.TOLD_OF_MAPS:
            figure = part.figure(measure)
            if figure.value is None:
                yield f"{about}, {catalogue.MEASURES[measure].label}", "stated", part.withheld
                continue
            low, high = figure.interval or (math.nan, math.nan)
            before = f"{figure.value:.3f} [{low:.3f}, {high:.3f}], chance {figure.chance:.3f}"
            void = ": void" if measure in part.void else ""
            after = f"random weights {figure.randomised:.3f}{void}"
            yield f"{about}, {catalogue.MEASURES[measure].label}", before, after
        yield f"{about}, what it shows", "not said", part.survives or part.verdict
    raised = verdicts.alarms(found)
    yield "- alarms that a map survives randomising the network", "0", f"{len(raised)} of {len(names)} methods"
    yield from _dice(run, dataset)


def _dice(run: Run, dataset: Dataset) -> Iterator[Row]:
    """How much of the lungs the gate finds on the film, and where all but the lungs is black or grey."""
    rows = np.flatnonzero(dataset.has_mask("lung"))
    images = to_pixels(torch.from_numpy(dataset.batch(rows)))
    lungs = torch.from_numpy(np.array(dataset.masks("lung")[rows]))[:, None] != 0
    grey = torch.full_like(images, float(run.model.gate.level))  # type: ignore[arg-type]
    shown = {
        "the film": images,
        "lungs only on black": images * lungs,
        "lungs only on grey": torch.where(lungs, images, grey),
    }
    for name, pixels in shown.items():
        score = f"{float(lung_segmenter.dice(_lungs(run, pixels), lungs).mean()):.2f}"
        what = f"{run.folder.name}, Val, n {len(rows)}, Dice of the gate with the lungs, {name}"
        yield what, score if "grey" not in name else "not measured", score


@torch.no_grad()
def _lungs(run: Run, images: Tensor) -> Tensor:
    return torch.cat([run.model.gate.logits(part) > 0 for part in images.split(64)])  # type: ignore[operator]


def compared() -> Iterator[Row]:
    """How many verdicts of the committed comparison held a gated run's map at the gate against one without a gate."""
    rows = list(csv.DictReader((RESULTS / "localisation-covidqu-mini-comparisons.csv").open()))
    gated = [row for row in rows if row["method"].endswith("@gate") and "gate" in row["background"]]
    what = "comparisons of gated with ungated `@gate` maps, of the committed study localisation"
    yield what, f"{len(gated)} of {len(rows)}", "none is made any more"


# --- verdicts --------------------------------------------------------------------------------------------------------


def verdict(folder: Path, data: Path) -> Iterator[Row]:
    """A network whose logits are a thousand times larger, and one that adds noise, under attack on validation films."""
    run = load_run(folder)
    dataset = load_dataset(data, "Val", run.size, classes=run.classes)
    conditions = (AttackRecipe(name="fgsm"), AttackRecipe(name="pgd"))
    before = {
        "logits times 1,000": "of the trial: FGSM 77.8 %, PGD 75.6 %, “No masked gradients found”",
        "noise when it answers": "nothing said",
    }
    for name, model in (("logits times 1,000", _sharpened(run)), ("noise when it answers", _Noisy(run.model))):
        changed = replace(run, model=model)  # type: ignore[arg-type]
        table = predictions.predict(changed, dataset, conditions, views=False)
        document = summary.describe(changed, table)
        under = ", ".join(f"{row.attack.upper()} {percent(row.accuracy.value)}" for row in document.attacks)
        judged = document.masking.because if document.masking else ""
        about = f"{folder.name}, Val, n {len(dataset)}, {name}"
        yield about, before[name], f"clean {percent(document.clean.accuracy.value)}, {under}; {judged}"


def _sharpened(run: Run) -> nn.Module:
    model = deepcopy(run.model)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        head.weight.mul_(1000)
        head.bias.mul_(1000)
    return model


class _Noisy(nn.Module):
    """Adds noise before it answers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images + 0.05 * torch.randn_like(images))


def words() -> Iterator[Row]:
    """FGSM that rises with epsilon, and what deletion is called."""
    document = RunDocument(
        clean=Classification(accuracy=Share(value=0.8, ci=(0.77, 0.83)), n=570),
        attacks=[
            AttackResult(
                attack="fgsm", epsilon=epsilon, steps=1, accuracy=Share(value=v, ci=(v - 0.04, v + 0.04)), n=570
            )
            for epsilon, v in ((0.01, 0.3), (0.02, 0.5))
        ],
    )
    kinds = [sign.kind for sign in alarms.verdict(document).signs]
    yield "accuracy under FGSM that rises from 30 % to 50 % with epsilon: alarms", "1", f"{len(kinds)}"
    yield "deletion, which blurs, is called", "deletion", catalogue.MEASURES["deletion"].label
