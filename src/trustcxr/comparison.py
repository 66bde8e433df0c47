"""Standard against robust, paired over the same images."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trustcxr import results
from trustcxr.metrics import CLEAN, VIEWS, logits_of
from trustcxr.statistics import paired

MAIN_METHOD = "gradcam"  # of several saliency methods measured on one run; without it the first
HIGHER_IS_BETTER = ("infection_energy", "infection_iou", "pointing_hit_rate", "lung_energy", "stability_ssim")


def standard_against_robust(folders: list[Path], *, resamples: int = 2000) -> list[dict[str, Any]]:
    """Every robust run of a study against the standard run of its model and seed, measure by measure."""
    about = {folder: results.read_json(folder / results.METRICS_FILE) for folder in folders}
    standard = {(d["model"], d["seed"]): f for f, d in about.items() if d["defence"] == "standard"}
    found = []
    for folder, document in about.items():
        base = standard.get((document["model"], document["seed"]))
        if document["defence"] == "standard" or base is None:
            continue
        first, second = figures(base), figures(folder)
        for measure in first:
            if measure not in second:
                continue
            shared = first[measure].index.intersection(second[measure].index)
            before, after = first[measure].loc[shared], second[measure].loc[shared]
            result = paired(before["value"], after["value"], before["group"], resamples=resamples)
            found.append(
                {
                    "model": document["model"],
                    "seed": document["seed"],
                    "defence": document["defence"],
                    "split": document["split"],
                    "measure": measure,
                    "standard": result.first,
                    "robust": result.second,
                    "difference": result.difference,
                    "difference_ci": result.difference_ci,
                    "improved": result.improved,
                    "p_value": result.p_value,
                    "n": result.n,
                }
            )
    return found


def figures(folder: Path) -> dict[str, pd.DataFrame]:
    """Per-image figures of a run by measure: tables of value and group, indexed by sample."""
    tables: dict[str, pd.DataFrame] = {}
    predictions = results.read_table(folder / results.PREDICTIONS_FILE)
    for (attack, epsilon), rows in predictions.groupby(["attack", "epsilon"], sort=False):
        name = f"{attack} accuracy" if attack in (CLEAN, *VIEWS) else f"{attack} accuracy @{epsilon:g}"
        if "steps" in rows:  # of one attack with several numbers of steps the strongest counts
            rows = rows[rows["steps"] == rows["steps"].max()]
        right = (logits_of(rows).argmax(1) == rows["label"].to_numpy()).astype(float)
        tables[name] = pd.DataFrame(
            {"value": right, "group": rows["group"].to_numpy()}, index=rows["sample_id"].to_numpy()
        )
    if (folder / results.SALIENCY_FILE).is_file():
        saliency = results.read_table(folder / results.SALIENCY_FILE)
        kept = saliency[saliency["measure"].isin(HIGHER_IS_BETTER)]
        methods = list(dict.fromkeys(kept["method"]))
        kept = kept[kept["method"] == (MAIN_METHOD if MAIN_METHOD in methods else methods[0])] if methods else kept
        stability = (kept["measure"] == "stability_ssim") & (kept["condition"] == "fgsm")
        kept = kept[(kept["condition"] == CLEAN) | stability]
        for measure, rows in kept.groupby("measure", sort=False):
            values = np.asarray(rows["value"], dtype=float)
            tables[str(measure)] = pd.DataFrame(
                {"value": values, "group": rows["group"].to_numpy()}, index=rows["sample_id"].to_numpy()
            )
    return tables
