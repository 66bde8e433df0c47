"""A run and a data set -> saliency of every annotated image -> its measures against the masks."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from trustcxr import attacks
from trustcxr.console import Progress
from trustcxr.data.batches import to_pixels
from trustcxr.errors import UserError
from trustcxr.explain import cam, controls, measures
from trustcxr.statistics import Bootstrap, interval, share_interval

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset
    from trustcxr.evaluation import Run

CLEAN = "clean"
COLUMNS = ("value", "chance", "centre")  # a measure of the map, what chance has, what the centre of the image has
AGAINST_MASK: dict[str, dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "infection": {
        "infection_energy": measures.energy_inside,
        "infection_iou": measures.iou_otsu,
        "pointing_hit_rate": measures.pointing_hit,
    },
    "lung": {"lung_energy": measures.energy_inside},
}


def annotated(dataset: "Dataset") -> np.ndarray:
    """Rows of the images with a non-empty infection mask; where the data has none, of those with a lung mask."""
    for kind in ("infection", "lung"):
        rows = np.flatnonzero(dataset.has_mask(kind))
        rows = rows[[bool(dataset.masks(kind)[row].any()) for row in rows]] if len(rows) else rows
        if len(rows):
            return rows
    raise UserError(f"{dataset.root}: no infection or lung masks here, so saliency has nothing to be measured against")


def score(
    run: "Run", dataset: "Dataset", *, method: str = "gradcam", epsilon: float = 0.02, batch_size: int = 32
) -> pd.DataFrame:
    """The table of saliency.parquet: a row for each annotated image, condition and measure.

    The class explained is the image's true class, whatever the model answers. Conditions are the clean image and its
    FGSM perturbation at `epsilon`, against which stability is measured.
    """
    saliency_of = cam.method(method)
    rows = annotated(dataset)
    tables = []
    with Progress(f"explaining {run.name} on {len(rows)} images", len(rows)) as bar:
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            images = to_pixels(torch.from_numpy(dataset.images[some]).to(run.device))
            labels = torch.as_tensor(np.asarray(dataset.labels[some]), device=run.device)
            clean = saliency_of(run.model, images, labels)
            perturbed = attacks.fgsm(run.model, images, labels, epsilon=epsilon)
            shaken = saliency_of(run.model, perturbed, labels)
            for condition, radius, pixels, maps in (
                (CLEAN, 0.0, images, clean),
                ("fgsm", epsilon, perturbed, shaken),
            ):
                table = _measure(dataset, some, maps)
                if condition != CLEAN:
                    table.append(("stability_ssim", measures.ssim(clean, maps), None, None))
                common = _about(run, dataset, some, pixels)
                common |= {"method": method, "condition": condition, "epsilon": radius}
                tables += [
                    pd.DataFrame(common | {"measure": name, **dict(zip(COLUMNS, map(_numbers, columns), strict=True))})
                    for name, *columns in table
                ]
            bar.advance(len(some))
    return pd.concat(tables, ignore_index=True)


def _measure(
    dataset: "Dataset", rows: np.ndarray, maps: Tensor
) -> list[tuple[str, Tensor, Tensor | None, Tensor | None]]:
    """(measure, its values, by chance, of a map that always looks at the centre), each (B,)."""
    found: list[tuple[str, Tensor, Tensor | None, Tensor | None]] = []
    centre = controls.centre_prior(*maps.shape[1:]).to(maps.device).expand_as(maps)
    for kind, functions in AGAINST_MASK.items():
        mask = torch.from_numpy(np.array(dataset.masks(kind)[rows])).to(maps.device)
        for name, function in functions.items():
            found.append((name, function(maps, mask), measures.chance(function, maps, mask), function(centre, mask)))
    return [*found, ("null_map", measures.null_map(maps), None, None)]


def _about(run: "Run", dataset: "Dataset", rows: np.ndarray, pixels: Tensor) -> dict[str, Any]:
    with torch.inference_mode(), attacks.undisturbed(run.model):
        predicted = run.model(pixels).argmax(1).cpu().numpy()
    true = [run.classes[k] for k in dataset.labels[rows]]
    return {
        "sample_id": dataset.sample_ids[rows],
        "group": dataset.groups[rows],
        "split": dataset.splits[rows],
        "class": true,
        "predicted": [run.classes[k] for k in predicted],
        "target": true,
    }


def _numbers(values: Tensor | None) -> Any:
    return np.nan if values is None else values.double().cpu().numpy()


def summarise(table: pd.DataFrame, *, images: int, resamples: int = 2000) -> dict[str, Any]:
    """The part "saliency" of metrics.json: for each method every measure's mean, interval, chance and centre prior.

    Measures are of the clean images, and again under "perturbed" for the perturbed ones. `images` is how many there
    were in all; those without a mask are left out and counted.
    """
    document: dict[str, Any] = {}
    for method, rows in table.groupby("method", sort=True):
        clean, perturbed = rows[rows["condition"] == CLEAN], rows[rows["condition"] != CLEAN]
        n = clean["sample_id"].nunique()
        part = _means(clean, resamples)
        shaken = _means(perturbed, resamples)
        part |= {key: shaken.pop(key) for key in list(shaken) if key.startswith("stability_ssim")}
        document[str(method)] = part | {
            "target": "label",
            "n": n,
            "without_mask": images - n,
            "perturbed": shaken | {"attack": "fgsm", "epsilon": float(perturbed["epsilon"].max()), "n": n},
        }
    return document


def _means(rows: pd.DataFrame, resamples: int) -> dict[str, Any]:
    part: dict[str, Any] = {}
    for measure, values in rows.groupby("measure", sort=False):
        name = "null_map_rate" if measure == "null_map" else str(measure)
        bootstrap = Bootstrap.over(values["group"], resamples=resamples)
        means = bootstrap.means(values["value"])
        share = measure in ("null_map", "pointing_hit_rate")
        part |= {name: float(means[0]), f"{name}_ci": (share_interval(bootstrap, means) if share else interval(means))}
        for control in ("chance", "centre"):
            if control in values and values[control].notna().any():
                part[f"{name}_{control}"] = float(values[control].mean())
    return part


def panels(
    run: "Run", dataset: "Dataset", *, count: int, method: str = "gradcam", seed: int = 0
) -> dict[str, np.ndarray]:
    """Arrays for the report's panels: `count` annotated images drawn at random by `seed`, the same for every run."""
    rows = annotated(dataset)
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:count])
    images = to_pixels(torch.from_numpy(dataset.images[rows]).to(run.device))
    labels = torch.as_tensor(np.asarray(dataset.labels[rows]), device=run.device)
    maps = cam.method(method)(run.model, images, labels)
    about = _about(run, dataset, rows, images)
    infection = np.array(dataset.masks("infection")[rows])
    return {
        "image": np.array(dataset.images[rows])[:, 0],
        "infection": infection,
        "lung": np.array(dataset.masks("lung")[rows]),
        "saliency": maps.float().cpu().numpy(),
        "sample_id": np.array(about["sample_id"], dtype=str),
        "class_name": np.array(about["class"], dtype=str),
        "predicted": np.array(about["predicted"], dtype=str),
        "infection_energy": _numbers(measures.energy_inside(maps, torch.from_numpy(infection).to(maps.device))),
    }
