"""Rank networks by validation; compare robust with standard runs on the same images, and runs over seeds."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from trustcxr import registry
from trustcxr.evaluation import metrics
from trustcxr.explain.saliency_summary import average_changes, cells_of, describe_ceiling, means_over_severities
from trustcxr.recipes.study_recipe import StudyRecipe, list_runs
from trustcxr.registry import BASELINE_MAPS, HIGHER_IS_BETTER, LOWER_IS_BETTER, Method, format_attack
from trustcxr.statistics import holm, paired
from trustcxr.storage import atomic
from trustcxr.storage.layout import PREDICTIONS_FILE, RUN_FILE, SALIENCY_FILE, VALIDATION_FILE
from trustcxr.storage.prediction_table import CLEAN, efforts_of, logits_of
from trustcxr.storage.schemas import LEVEL, Comparison, OverSeeds, Ranked, RunDocument, SeedFigure, Share

_ENERGY = "infection_energy"
_NAMES = ("model", "defence", "label", "background", "split")  # what runs of one training share


class Key(NamedTuple):
    """A measure, and for saliency its method."""

    measure: str
    method: str = ""


def ranked(recipe: StudyRecipe, study: Path, *, resamples: int = 100) -> list[Ranked]:
    """Return each network of a study by its mean over seeds on validation, best first, and whether it is chosen.

    Ties are in the order of names. Returns none if a run without validation figures could be the best.
    """
    runs, select = [(run, study / "runs" / run.name) for run in list_runs(recipe)], recipe.selection
    trained = [(run, folder) for run, folder in runs if (folder / VALIDATION_FILE).is_file()]
    if not trained or (trained != runs and select.count < len(recipe.models)):
        return []
    names = atomic.read_yaml(trained[0][1] / RUN_FILE).get("classes")
    classes = tuple(map(str, names if isinstance(names, list) else ()))
    values: dict[str, list[float]] = {}
    for run, folder in trained:
        table = atomic.read_table(folder / VALIDATION_FILE)
        labels, logits = table["label"].to_numpy(), logits_of(table)
        figures = metrics.classification(logits, labels, table["group"], classes, resamples=resamples)
        values.setdefault(run.model.called, []).append(float(getattr(figures, select.by).value or 0.0))
    order = sorted(((float(np.mean(v)), name) for name, v in values.items()), key=lambda pair: (-pair[0], pair[1]))
    return [Ranked(model=name, value=value, chosen=i < select.count) for i, (value, name) in enumerate(order)]


def describe_together(runs: Mapping[Path, RunDocument], standard: Container[str], *, resamples: int) -> dict[str, Any]:
    """Return what study.json says of all runs together: comparisons, spread over seeds, alarms."""
    return {
        "comparisons": standard_against_robust(runs, standard, resamples=resamples),
        "over_seeds": over_seeds(list(runs.values())),
        "alarms": [alarm.model_copy(update={"run": run.run}) for run in runs.values() for alarm in run.alarms],
    }


def standard_against_robust(
    runs: Mapping[Path, RunDocument], standard: Container[str], *, resamples: int = 2000
) -> list[Comparison]:
    """Compare every other run of a study with the baseline of its model and seed, measure by measure.

    A row has the means, their difference with its bootstrap interval over groups, the share of images improved, the
    p-value, and the verdict in words. P-values are corrected (Holm 1979) for all comparisons of accuracy, or of
    saliency. `runs`: folders and documents. `standard`: names of the runs that the recipe trains without any of its
    defences. Maps at a lung gate are compared between gated runs alone. A hit rate is not compared if a map has too few
    cells.
    """
    bases = {(run.model, run.seed): folder for folder, run in runs.items() if folder.name in standard}
    rows, tables = [], {folder: figures(folder) for folder in runs}
    for folder, document in runs.items():
        base = bases.get((document.model, document.seed))
        if base is None or base == folder:
            continue
        gates = {getattr(registry.BACKGROUNDS.get(other.background), "gate", False) for other in (document, runs[base])}
        for key, before in tables[base].items():
            method = Method.parse(key.method)
            if key in tables[folder] and method.base not in BASELINE_MAPS and not (len(gates) > 1 and method.at_gate):
                rows.append(_row(document, key, before, tables[folder][key], resamples))
    _correct(rows)
    for row in rows:
        row.verdict = sentence(row)
    return rows


def _row(document: RunDocument, key: Key, first: pd.DataFrame, second: pd.DataFrame, resamples: int) -> Comparison:
    shared = first.index.intersection(second.index)
    before, after = first.loc[shared], second.loc[shared]
    result = paired(before["value"], after["value"], before["group"], resamples=resamples)
    better = registry.direction(key.measure)
    moved = np.asarray(after["value"] - before["value"], dtype=float)
    improved = float((better * moved[np.isfinite(moved)] > 0).mean()) if result.n and better else result.improved
    return Comparison(
        **{name: getattr(document, name) for name in ("model", "seed", *_NAMES[1:])},
        measure=key.measure,
        method=key.method or None,
        better="higher" if better > 0 else "lower" if better < 0 else None,
        standard=result.first,
        robust=result.second,
        difference=Share(value=result.difference, ci=result.difference_ci),
        improved=improved,
        p_value=result.p_value,
        p_least=result.p_least,
        n=result.n,
    )


def _correct(rows: list[Comparison]) -> None:
    """Correct p-values for the number of comparisons; accuracy and saliency are a family each."""
    for of_saliency in (False, True):
        family = [row for row in rows if bool(row.method) is of_saliency]
        p_values = holm([float("nan") if row.p_value is None else row.p_value for row in family])
        for row, p_value in zip(family, p_values, strict=True):
            row.p_corrected, row.comparisons = float(p_value) if np.isfinite(p_value) else None, len(family)


def sentence(row: Comparison) -> str:
    """Say the comparison in one sentence: yes, no or not settled, and by how much."""
    name = row.measure.replace("_", " ") + (f" ({row.method})" if row.method else "")
    if not row.n or row.difference.value is None:
        return f"Not settled: {name} was not measured on the same images."
    went, change = row.outcome, row.difference.value
    ends = ", ".join("unknown" if end is None else f"{end:+.3f}" for end in row.difference.ci or ())
    corrected = "unknown" if row.p_corrected is None else f"{row.p_corrected:.2g}"
    numbers = f"[{ends}], n = {row.n}, corrected p = {corrected}"
    if went == "not settled":
        few = (row.p_least or 0.0) * (row.comparisons or 0) >= LEVEL
        why = f"; too few images differ to settle one of {row.comparisons} comparisons" if few else ""
        return f"Not settled: {name} changes by {change:+.3f} {numbers}{why}."
    answer = "Yes" if went == row.better else "No" if row.better else "Neither"
    verb = "rises" if went == "higher" else "falls"
    return f"{answer}: {name} {verb} by {abs(change):.3f} {numbers}."


def figures(folder: Path) -> dict[Key, pd.DataFrame]:
    """Return, for each measure (and saliency method) of a run, a table of value and group by sample."""
    tables = _accuracies(atomic.read_table(folder / PREDICTIONS_FILE))
    if (folder / SALIENCY_FILE).is_file():
        tables |= _saliency(atomic.read_table(folder / SALIENCY_FILE))
    return tables


def _accuracies(predictions: pd.DataFrame) -> dict[Key, pd.DataFrame]:
    right = (logits_of(predictions).argmax(1) == predictions["label"].to_numpy()).astype(float)
    predictions = predictions.drop(columns="logits").assign(value=right)
    tables: dict[Key, pd.DataFrame] = {}
    corrupted = predictions["severity"].fillna(0) > 0 if "severity" in predictions else np.zeros(len(right), dtype=bool)
    for (attack, epsilon), rows in predictions[~corrupted].groupby(["attack", "epsilon"], sort=False):
        name = f"{attack} accuracy" if attack in (CLEAN, *registry.VIEWS) else f"{attack} accuracy @{epsilon:g}"
        if attack == registry.WORST_CASE:  # only equal efforts compare
            efforts = [part for _, part in rows.groupby("steps")] if "steps" in rows else [rows]
            named = {f"{format_attack(attack, **efforts_of(part))} accuracy @{epsilon:g}": part for part in efforts}
            tables |= {Key(key): part.set_index("sample_id")[["value", "group"]] for key, part in named.items()}
            continue
        if "steps" in rows:  # of several numbers of steps the strongest attack counts
            rows = rows[rows["steps"] == rows.groupby("steps")["value"].mean().sort_index(ascending=False).idxmin()]
        tables[Key(name)] = rows.set_index("sample_id")[["value", "group"]]
    if np.any(corrupted):  # the share of corruptions and severities with the right answer
        tables[Key("corruptions accuracy")] = means_over_severities(predictions[corrupted])
    return tables


def _saliency(table: pd.DataFrame) -> dict[Key, pd.DataFrame]:
    """Return the measures of each method except of maps of one cell, and without hit rates of too few cells."""
    tables: dict[Key, pd.DataFrame] = {}
    for method, rows in table[table["method"] != registry.RANDOM_MAP].groupby("method", sort=False):
        if cells_of(rows) == registry.ONE_CELL:
            continue
        rows = rows[rows["measure"] != registry.HIT_RATE] if describe_ceiling(rows) else rows
        stability = (rows["measure"] == "stability_ssim") & (rows["condition"] == registry.STABILITY_ATTACK)
        named = {
            str(measure): means_over_severities(part)
            for measure, part in rows[(rows["condition"] == CLEAN) | stability].groupby("measure", sort=False)
        }
        if "severity" in rows:
            named |= average_changes(rows)
        tables |= {Key(m, str(method)): named[m] for m in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER) if m in named}
    return tables


def over_seeds(runs: Sequence[RunDocument]) -> list[OverSeeds]:
    """Return mean and spread of each figure, for every network and training with more than one seed."""
    groups: dict[tuple[str, ...], list[RunDocument]] = {}
    for run in runs:
        training = run.run.removesuffix(f"-s{run.seed}")
        groups.setdefault((*(getattr(run, name) for name in _NAMES), training), []).append(run)
    return [_spread(several) for several in groups.values() if sum(run.seed is not None for run in several) > 1]


def _spread(runs: list[RunDocument]) -> OverSeeds:
    values = [_figures(run) for run in runs]
    each = {key: [of_run[key] for of_run in values] for key in values[0] if all(key in of_run for of_run in values)}
    return OverSeeds(
        **{name: getattr(runs[0], name) for name in _NAMES},
        seeds=[run.seed for run in runs if run.seed is not None],
        figures=[
            SeedFigure(
                measure=key.measure,
                method=key.method or None,
                mean=fmean(of_seeds),
                deviation=stdev(of_seeds),
                lowest=min(of_seeds),
                highest=max(of_seeds),
                n=len(of_seeds),
            )
            for key, of_seeds in each.items()
        ],
    )


def _figures(run: RunDocument) -> dict[Key, float]:
    """Return each figure that was measured; of an attack the lowest accuracy of any number of steps."""
    clean, lowest = run.clean, dict[Key, float]()
    for attack in run.attacks:
        if (value := attack.accuracy.value) is not None:
            worst = attack.attack == registry.WORST_CASE  # only equal efforts share a row
            key = Key(f"{attack.effort.name if worst else attack.attack} accuracy @{attack.epsilon:g}")
            lowest[key] = min(value, lowest.get(key, 1.0))
    figures = {Key(f"{CLEAN} accuracy"): clean.accuracy.value, **lowest, Key("f1_macro"): clean.f1_macro.value}
    figures |= {Key("auroc_macro"): clean.auroc_macro.value, Key("ece"): clean.ece.value}
    figures |= {Key(_ENERGY, method): saliency.figure(_ENERGY).value for method, saliency in run.saliency.items()}
    return {key: value for key, value in figures.items() if value is not None}
