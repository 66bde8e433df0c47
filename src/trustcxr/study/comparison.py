"""Standard against robust, paired over the same images: measure by measure, corrected for how many were compared."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from trustcxr.explain.saliency_summary import average_changes, cells_of, describe_ceiling, means_over_severities
from trustcxr.registry import (
    ACTIVATION,
    AGAINST_MASKS,
    BACKGROUNDS,
    CONTROL,
    CONTROLS,
    HIGHER_IS_BETTER,
    HIT_RATE,
    LOWER_IS_BETTER,
    ONE_CELL,
    STABILITY_ATTACK,
    VIEWS,
    Method,
    direction,
)
from trustcxr.statistics import holm, paired
from trustcxr.storage import atomic
from trustcxr.storage.layout import METRICS_FILE, PREDICTIONS_FILE, SALIENCY_FILE
from trustcxr.storage.prediction_table import CLEAN, logits_of
from trustcxr.storage.schemas import BeyondControl, Comparison, RunDocument, Share, read_schema


class Key(NamedTuple):
    """What is compared: a measure, and for saliency the method it was computed for."""

    measure: str
    method: str = ""


def standard_against_robust(folders: list[Path], *, resamples: int = 2000) -> list[Comparison]:
    """Every other run of a study against the standard run of its model and seed, measure by measure.

    A row says the means, their difference with its bootstrap interval over groups, the share of images improved, the
    test's p-value and the same corrected (Holm 1979) for all comparisons of its kind (accuracy, or saliency) in the
    study, and the verdict in words. Standard is the run without a defence and with the full background; where there is
    none, that with the run's own background. Maps at a lung gate are compared between gated runs alone: without one
    they are of the image itself. A hit rate is not compared where a map's cells are too few to hit.
    """
    about = {folder: read_schema(RunDocument, folder / METRICS_FILE) for folder in folders}
    return compared(about, resamples=resamples)


def compared(about: Mapping[Path, RunDocument], *, resamples: int = 2000) -> list[Comparison]:
    """The same of folders with the documents of their runs."""
    standard: dict[tuple[str, int | None, str], Path] = {}
    for folder, document in about.items():
        if document.defence == "standard":
            standard.setdefault((document.model, document.seed, document.background), folder)
    found, known = [], {folder: figures(folder) for folder in about}
    for folder, document in about.items():
        model, background = (document.model, document.seed), document.background
        base = standard.get((*model, "full")) or standard.get((*model, background))
        if base is None or base == folder or (document.defence, background) == ("standard", "full"):
            continue
        gates = {_gated(other) for other in (document, about[base])}
        for key, before in known[base].items():
            said = Method.parse(key.method)
            if key in known[folder] and said.base not in CONTROLS and not (len(gates) > 1 and said.at_gate):
                found.append(_row(document, key, before, known[folder][key], resamples))
    _correct(found)
    for row in found:
        row.verdict = sentence(row)
    return found


def _gated(document: RunDocument) -> bool:
    background = BACKGROUNDS.get(document.background)
    return background is not None and background.gate


def beyond_activation(folder: Path, *, resamples: int = 2000) -> list[BeyondControl]:
    """Each CAM of a run against the activation of the very layer that it reads: what the gradient, so the model, adds.

    A row for each measure against the masks: method, control, their means, the difference with its bootstrap interval
    over groups, the test's p-value corrected (Holm 1979) for all rows, n. Empty where no such control was measured.
    """
    found: list[BeyondControl] = []
    table = atomic.read_table(folder / SALIENCY_FILE)
    for method, rows in _maps(table):
        known = rows[rows["condition"] == CLEAN].dropna(subset=[ACTIVATION])
        for measure in [name for name in AGAINST_MASKS if (known["measure"] == name).any()]:
            own = known[known["measure"] == measure]
            result = paired(own[ACTIVATION], own["value"], own["group"], resamples=resamples)
            found.append(
                BeyondControl(
                    method=method,
                    measure=measure,
                    control=result.first,
                    value=result.second,
                    difference=Share(value=result.difference, ci=result.difference_ci),
                    n=result.n,
                    p_value=result.p_value,
                )
            )
    for row, corrected in zip(found, holm([_p_value(row) for row in found]), strict=True):
        row.p_corrected = _known(corrected)
    return found


def beyond_activations(study: Path) -> dict[str, list[BeyondControl]]:
    """The same for every run of a study that has the tables for it, by the run's name."""
    whole = [path.parent for path in sorted(study.glob(f"runs/*/{SALIENCY_FILE}"))]
    return {run.name: beyond_activation(run) for run in whole if (run / PREDICTIONS_FILE).is_file()}


def _p_value(row: Comparison | BeyondControl) -> float:
    return float("nan") if row.p_value is None else row.p_value


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _row(document: RunDocument, key: Key, first: pd.DataFrame, second: pd.DataFrame, resamples: int) -> Comparison:
    shared = first.index.intersection(second.index)
    before, after = first.loc[shared], second.loc[shared]
    result = paired(before["value"], after["value"], before["group"], resamples=resamples)
    better = direction(key.measure)
    moved = np.asarray(after["value"] - before["value"], dtype=float)
    improved = float((better * moved[np.isfinite(moved)] > 0).mean()) if result.n and better else result.improved
    return Comparison(
        model=document.model,
        seed=document.seed,
        defence=document.defence,
        label=document.label,
        background=document.background,
        split=document.split,
        measure=key.measure,
        method=key.method or None,
        better="higher" if better > 0 else "lower" if better < 0 else None,
        standard=result.first,
        robust=result.second,
        difference=Share(value=result.difference, ci=result.difference_ci),
        improved=improved,
        p_value=result.p_value,
        n=result.n,
    )


def _correct(rows: list[Comparison]) -> None:
    """Adds p_corrected and how many comparisons it is corrected for; accuracy and saliency each are a family."""
    for of_saliency in (False, True):
        family = [row for row in rows if bool(row.method) is of_saliency]
        for row, p_value in zip(family, holm([_p_value(row) for row in family]), strict=True):
            row.p_corrected, row.comparisons = _known(p_value), len(family)


def sentence(row: Comparison) -> str:
    """The comparison in one sentence: yes, no or not settled, and by how much."""
    name = row.measure.replace("_", " ") + (f" ({row.method})" if row.method else "")
    if not row.n or row.difference.value is None:
        return f"Not settled: {name} was not measured on the same images."
    went, change = row.outcome, row.difference.value
    ends = ", ".join("unknown" if end is None else f"{end:+.3f}" for end in row.difference.ci or ())
    corrected = "unknown" if row.p_corrected is None else f"{row.p_corrected:.2g}"
    numbers = f"[{ends}], n = {row.n}, corrected p = {corrected}"
    if went == "not settled":
        return f"Not settled: {name} changes by {change:+.3f} {numbers}."
    answer = "Yes" if went == row.better else "No" if row.better else "Neither"
    verb = "rises" if went == "higher" else "falls"
    return f"{answer}: {name} {verb} by {abs(change):.3f} {numbers}."


def figures(folder: Path) -> dict[Key, pd.DataFrame]:
    """Per-image figures of a run: for each measure (and saliency method) a table of value and group, by sample."""
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
        name = f"{attack} accuracy" if attack in (CLEAN, *VIEWS) else f"{attack} accuracy @{epsilon:g}"
        if "steps" in rows:  # of one attack with several numbers of steps the strongest counts: the lowest accuracy
            rows = rows[rows["steps"] == rows.groupby("steps")["value"].mean().sort_index(ascending=False).idxmin()]
        tables[Key(name)] = rows.set_index("sample_id")[["value", "group"]]
    if np.any(corrupted):  # an image's share of corruptions and severities that leave the answer right
        tables[Key("corruptions accuracy")] = means_over_severities(predictions[corrupted])
    return tables


def _maps(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each method but the random one; of no map of one cell, and without a hit rate that no cell allows."""
    for method, rows in table[table["method"] != CONTROL].groupby("method", sort=False):
        if cells_of(rows) != ONE_CELL:
            yield str(method), rows[rows["measure"] != HIT_RATE] if describe_ceiling(rows) else rows


def _saliency(table: pd.DataFrame) -> dict[Key, pd.DataFrame]:
    tables: dict[Key, pd.DataFrame] = {}
    for method, rows in _maps(table):
        stability = (rows["measure"] == "stability_ssim") & (rows["condition"] == STABILITY_ATTACK)
        kept = rows[(rows["condition"] == CLEAN) | stability]
        named = {str(measure): means_over_severities(some) for measure, some in kept.groupby("measure", sort=False)}
        if "severity" in rows:
            named |= average_changes(rows)
        tables |= {Key(m, method): named[m] for m in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER) if m in named}
    return tables
