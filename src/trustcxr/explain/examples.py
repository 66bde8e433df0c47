"""Choose the images of the report: drawn at random, and the best and worst by each main measure."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from trustcxr.data.dataset import Dataset
from trustcxr.evaluation.trained_run import Run
from trustcxr.explain import measures, methods
from trustcxr.explain.evaluate import find_annotated, load_batch, predict_classes
from trustcxr.registry import MEASURES
from trustcxr.storage.prediction_table import CLEAN

MAIN = ("infection_energy", "infection_iou_area", "infection_auroc")
AT_RANDOM = "drawn at random"


def choose_images(
    dataset: Dataset, tables: Sequence[pd.DataFrame], *, count: int, method: str, seed: int = 0
) -> dict[int, str]:
    """Return rows to show, and why: `count` drawn by `seed`, then the best and worst by each of MAIN above chance.

    An image's figure is its mean over `tables` (saliency.parquet) of all runs, so that all show the same images.
    """
    rows = find_annotated(dataset)
    reasons = {int(row): [AT_RANDOM] for row in np.sort(np.random.default_rng(seed).permutation(rows)[:count])}
    row_of = {name: row for row, name in enumerate(dataset.sample_ids)}
    for measure in MAIN if count else ():
        parts = [t[(t["measure"] == measure) & (t["condition"] == CLEAN) & (t["method"] == method)] for t in tables]
        scores = pd.concat(parts) if parts else pd.DataFrame()
        if not len(scores):
            continue
        above = (scores["value"] - scores["chance"]).groupby(scores["sample_id"]).mean().dropna()
        for word, name in (("best", above.idxmax()), ("worst", above.idxmin())) if len(above) else ():
            reasons.setdefault(row_of[str(name)], []).append(f"{word} {measure} above chance")
    return {row: "; ".join(why) for row, why in reasons.items()}


def make_panels(run: Run, dataset: Dataset, chosen: Mapping[int, str], *, method: str) -> dict[str, np.ndarray]:
    """Return arrays for the report's panels of the rows `chosen`: images, masks, saliency, predictions, figures."""
    rows = np.array(list(chosen), dtype=int)
    images, labels, masks = load_batch(run, dataset, rows)
    maps = methods.maps(run.model, images, labels, [method])[method]
    figures = {name: measures.measure_function(MEASURES[name])(maps, masks.infection) for name in MAIN}
    return {
        "image": np.array(dataset.images[rows])[:, 0],
        "infection": np.array(dataset.masks("infection")[rows]),
        "lung": np.array(dataset.masks("lung")[rows]),
        "saliency": maps.float().cpu().numpy(),
        "sample_id": np.array(dataset.sample_ids[rows], dtype=str),
        "class_name": np.array([run.classes[k] for k in dataset.labels[rows]], dtype=str),
        "predicted": np.array(predict_classes(run, images), dtype=str),
        "why": np.array(list(chosen.values()), dtype=str),
        "method": np.array([method] * len(rows), dtype=str),
        **{name: values.double().cpu().numpy() for name, values in figures.items()},
    }
