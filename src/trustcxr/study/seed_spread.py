"""Measure the spread of each figure over the seeds of a network and defence."""

from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

from trustcxr.registry import WORST_CASE
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import OverSeeds, RunDocument, SeedFigure

ENERGY = "infection_energy"


def over_seeds(runs: Sequence[RunDocument]) -> list[OverSeeds]:
    """Return mean and spread of each figure, for every network and defence with more than one seed."""
    groups: dict[tuple[str, ...], list[RunDocument]] = {}
    for run in runs:
        groups.setdefault((run.model, run.defence, run.label, run.background, run.split), []).append(run)
    spreads = []
    for (model, defence, label, background, split), several in groups.items():
        seeds = [run.seed for run in several if run.seed is not None]
        if len(seeds) > 1:
            names = {"model": model, "defence": defence, "label": label, "background": background, "split": split}
            spreads.append(OverSeeds(**names, seeds=seeds, figures=_spread([dict(_figures(run)) for run in several])))
    return spreads


def _spread(values: Sequence[dict[tuple[str, str], float]]) -> list[SeedFigure]:
    shared = [key for key in values[0] if all(key in other for other in values)]
    return [_figure(key, [other[key] for other in values]) for key in shared]


def _figure(key: tuple[str, str], values: list[float]) -> SeedFigure:
    measure, method = key
    return SeedFigure(
        measure=measure,
        method=method or None,
        mean=fmean(values),
        deviation=stdev(values),
        lowest=min(values),
        highest=max(values),
        n=len(values),
    )


def _figures(run: RunDocument) -> Iterator[tuple[tuple[str, str], float]]:
    """Yield (measure, saliency method) and value; of an attack the lowest accuracy of any number of steps."""
    clean = run.clean
    yield from _named(f"{CLEAN} accuracy", clean.accuracy.value)
    lowest: dict[str, float] = {}
    for attack in run.attacks:
        if attack.accuracy.value is not None:
            worst = attack.attack == WORST_CASE  # only equal efforts share a row
            name = f"{attack.effort.name if worst else attack.attack} accuracy @{attack.epsilon:g}"
            lowest[name] = min(attack.accuracy.value, lowest.get(name, 1.0))
    for name, value in lowest.items():
        yield from _named(name, value)
    for name, share in (("f1_macro", clean.f1_macro), ("auroc_macro", clean.auroc_macro), ("ece", clean.ece)):
        yield from _named(name, share.value)
    for method, saliency in run.saliency.items():
        yield from _named(ENERGY, saliency.figure(ENERGY).value, method)


def _named(measure: str, value: float | None, method: str = "") -> Iterator[tuple[tuple[str, str], float]]:
    if value is not None:
        yield (measure, method), value
