"""Standard against robust, paired over the same images: measure by measure, corrected for how many were compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from trustcxr.catalogue import (
    AGAINST_MASKS,
    ATTACKED,
    CONTROL,
    CONTROLS,
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    VIEWS,
    Method,
    direction,
)
from trustcxr.explain.summary import means_over_severities, over_changes
from trustcxr.results import files
from trustcxr.results.folders import METRICS_FILE, PREDICTIONS_FILE, SALIENCY_FILE
from trustcxr.results.tables import CLEAN, logits_of
from trustcxr.statistics import holm, paired

LEVEL = 0.05


class Key(NamedTuple):
    """A measure, and the saliency method that it is of; no method for accuracy."""

    measure: str
    method: str = ""


def standard_against_robust(folders: list[Path], *, resamples: int = 2000) -> list[dict[str, Any]]:
    """Every other run of a study against the standard run of its model and seed, measure by measure.

    A row says the means, their difference with its bootstrap interval over groups, the share of images improved, the
    test's p-value and the same corrected (Holm 1979) for all comparisons of its kind (accuracy, or saliency) in the
    study, and the verdict in words. Standard is the run without a defence and with the full background; where there is
    none, that with the run's own background.
    """
    about = {folder: files.read_json(folder / METRICS_FILE) for folder in folders}
    standard: dict[tuple[Any, ...], Path] = {}
    for folder, document in about.items():
        if document["defence"] == "standard":
            standard.setdefault((document["model"], document["seed"], _background(document)), folder)
    found, known = [], {folder: figures(folder) for folder in folders}
    for folder, document in about.items():
        model, background = (document["model"], document["seed"]), _background(document)
        base = standard.get((*model, "full")) or standard.get((*model, background))
        if base is None or base == folder or (document["defence"], background) == ("standard", "full"):
            continue
        for key, before in known[base].items():
            if key in known[folder] and Method.parse(key.method).base not in CONTROLS:
                found.append(_row(document, key, before, known[folder][key], resamples))
    _correct(found)
    return [row | {"verdict": sentence(row)} for row in found]


def beyond_activation(folder: Path, *, resamples: int = 2000) -> list[dict[str, Any]]:
    """Each CAM of a run against the activation of the very layer that it reads: what the gradient, so the model, adds.

    A row for each measure against the masks: method, control, their means, the difference with its bootstrap interval
    over groups, the test's p-value corrected (Holm 1979) for all rows, n. Empty where no such control was measured.
    """
    tables = figures(folder)
    found: list[dict[str, Any]] = []
    for key, own in tables.items():
        control = Key(key.measure, str(Method.parse(key.method).control))
        if key.measure not in AGAINST_MASKS or control not in tables:
            continue
        shared = own.index.intersection(tables[control].index)
        with_gradient, without = own.loc[shared], tables[control].loc[shared]
        result = paired(without["value"], with_gradient["value"], without["group"], resamples=resamples)
        found.append({"method": key.method, "measure": key.measure, "control": result.first, "value": result.second,
                      "difference": result.difference, "difference_ci": result.difference_ci, "n": result.n,
                      "p_value": result.p_value})  # fmt: skip
    for row, corrected in zip(found, holm([row["p_value"] for row in found]), strict=True):
        row["p_corrected"] = float(corrected)
    return found


def _background(document: dict[str, Any]) -> str:
    return str(document.get("background") or "full")


def _row(
    document: dict[str, Any], key: Key, first: pd.DataFrame, second: pd.DataFrame, resamples: int
) -> dict[str, Any]:
    shared = first.index.intersection(second.index)
    before, after = first.loc[shared], second.loc[shared]
    result = paired(before["value"], after["value"], before["group"], resamples=resamples)
    better = direction(key.measure)
    moved = np.asarray(after["value"] - before["value"], dtype=float)
    improved = float((better * moved[np.isfinite(moved)] > 0).mean()) if result.n and better else result.improved
    return {
        "model": document["model"],
        "seed": document["seed"],
        "defence": document["defence"],
        "background": _background(document),
        "split": document["split"],
        "measure": key.measure,
        "method": key.method or None,
        "better": {1: "higher", -1: "lower", 0: None}[better],
        "standard": result.first,
        "robust": result.second,
        "difference": result.difference,
        "difference_ci": result.difference_ci,
        "improved": improved,
        "p_value": result.p_value,
        "n": result.n,
    }


def _correct(rows: list[dict[str, Any]]) -> None:
    """Adds p_corrected and how many comparisons it is corrected for."""
    kinds: tuple[Callable[[dict[str, Any]], bool], ...] = (lambda r: r["method"] is None, lambda r: bool(r["method"]))
    for kind in kinds:
        family = [row for row in rows if kind(row)]
        for row, p_value in zip(family, holm([row["p_value"] for row in family]), strict=True):
            row |= {"p_corrected": float(p_value), "comparisons": len(family)}


def outcome(row: dict[str, Any]) -> str:
    """`higher`, `lower` or `not settled`: which way the interval and the corrected test agree that it went."""
    low, high = row["difference_ci"]
    if not row["n"] or not np.isfinite(low) or low <= 0 <= high or not row["p_corrected"] < LEVEL:
        return "not settled"
    return "higher" if low > 0 else "lower"


def sentence(row: dict[str, Any]) -> str:
    """The comparison in one sentence: yes, no or not settled, and by how much."""
    name = row["measure"].replace("_", " ") + (f" ({row['method']})" if row["method"] else "")
    if not row["n"]:
        return f"Not settled: {name} was not measured on the same images."
    went = outcome(row)
    low, high = row["difference_ci"]
    numbers = f"[{low:+.3f}, {high:+.3f}], n = {row['n']}, corrected p = {row['p_corrected']:.2g}"
    if went == "not settled":
        return f"Not settled: {name} changes by {row['difference']:+.3f} {numbers}."
    answer = "Yes" if went == row["better"] else "No" if row["better"] else "Neither"
    verb = "rises" if went == "higher" else "falls"
    return f"{answer}: {name} {verb} by {abs(row['difference']):.3f} {numbers}."


def figures(folder: Path) -> dict[Key, pd.DataFrame]:
    """Per-image figures of a run: for each measure (and saliency method) a table of value and group, by sample."""
    tables = _accuracies(files.read_table(folder / PREDICTIONS_FILE))
    if (folder / SALIENCY_FILE).is_file():
        tables |= _saliency(files.read_table(folder / SALIENCY_FILE))
    return tables


def _accuracies(predictions: pd.DataFrame) -> dict[Key, pd.DataFrame]:
    right = (logits_of(predictions).argmax(1) == predictions["label"].to_numpy()).astype(float)
    predictions = predictions.drop(columns="logits").assign(value=right)
    tables: dict[Key, pd.DataFrame] = {}
    corrupted = predictions["severity"].fillna(0) > 0 if "severity" in predictions else np.zeros(len(right), dtype=bool)
    for (attack, epsilon), rows in predictions[~corrupted].groupby(["attack", "epsilon"], sort=False):
        name = f"{attack} accuracy" if attack in (CLEAN, *VIEWS) else f"{attack} accuracy @{epsilon:g}"
        if "steps" in rows:  # of one attack with several numbers of steps the strongest counts
            rows = rows[rows["steps"] == rows["steps"].max()]
        tables[Key(name)] = rows.set_index("sample_id")[["value", "group"]]
    if np.any(corrupted):  # an image's share of corruptions and severities that leave the answer right
        tables[Key("corruptions accuracy")] = means_over_severities(predictions[corrupted])
    return tables


def _saliency(table: pd.DataFrame) -> dict[Key, pd.DataFrame]:
    tables: dict[Key, pd.DataFrame] = {}
    for method in [name for name in dict.fromkeys(table["method"]) if name != CONTROL]:
        rows = table[table["method"] == method]
        stability = (rows["measure"] == "stability_ssim") & (rows["condition"] == ATTACKED)
        kept = rows[(rows["condition"] == CLEAN) | stability]
        named = {str(measure): means_over_severities(some) for measure, some in kept.groupby("measure", sort=False)}
        if "severity" in rows:
            named |= over_changes(rows)
        tables |= {Key(m, method): named[m] for m in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER) if m in named}
    return tables
