"""Draw the random images of a reader study, with the map of every arm over each.

An arm is a run with a saliency method. Maps are those that the study saved. With data they are computed
as `examples.make_panels` does.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from trustcxr.apps.reader.database import StudyImage
from trustcxr.errors import UserError, lookup
from trustcxr.explain import heatmap_io
from trustcxr.report import load
from trustcxr.storage.prediction_table import CLEAN

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset
    from trustcxr.evaluation.trained_run import Run

SHOWN = 640  # pixels of the longer side on the page
_FEWEST, _MOST = 2, 3
_DEFAULT_METHOD = "gradcam"  # of saved maps that name none


@dataclass(frozen=True)
class Arm:
    """A run and the method of its maps."""

    run: load.Run
    method: str

    @property
    def name(self) -> str:
        """RUN:METHOD, as typed."""
        return f"{self.run.name}:{self.method}"


@dataclass(frozen=True)
class PreparedImages:
    """Drawn images: pixels (K, H, W) uint8, masks (K, H, W), and for each arm maps (K, H, W) in [0, 1]."""

    samples: list[str]
    pixels: np.ndarray
    masks: np.ndarray
    maps: list[np.ndarray]


def parse_arms(study: Path, names: Sequence[str]) -> list[Arm]:
    """Return the two or three arms named RUN or RUN:METHOD; default: all runs of the study.

    Raises UserError for another number of arms or an unknown name.
    """
    from trustcxr.explain import methods

    runs = {run.name: run for run in load.load_report(study).runs}
    chosen = list(names) or list(runs)
    if not _FEWEST <= len(chosen) <= _MOST:
        raise UserError(f"{study}: say two or three times --arm RUN or RUN:METHOD; its runs are {', '.join(runs)}")
    result = []
    for text in chosen:
        name, _, method = text.partition(":")
        methods.parse(method or _DEFAULT_METHOD)
        result.append(Arm(lookup(runs, "run", name), method or _DEFAULT_METHOD))
    if len({arm.name for arm in result}) < len(result):
        raise UserError(f"{study}: an arm is said twice: {', '.join(arm.name for arm in result)}")
    return result


def draw_images(chosen: Sequence[Arm], *, data: Path | None, count: int, seed: int) -> list[StudyImage]:
    """Draw `count` images with maps: the maps saved by the study or, with `data`, new ones."""
    shown = _load_saved(chosen, count, seed) if data is None else _compute_maps(chosen, data, count, seed)
    group = _load_groups(chosen[0].run)
    return [
        StudyImage(
            sample=sample,
            group=group.get(sample, sample),
            picture=_to_png(_enlarge(shown.pixels[k], Image.Resampling.BICUBIC)),
            mask=_to_png(Image.fromarray((shown.masks[k] != 0).astype(np.uint8))),
            maps=tuple(_draw_overlay(shown.pixels[k], maps[k]) for maps in shown.maps),
        )
        for k, sample in enumerate(shown.samples)
    ]


def _load_saved(chosen: Sequence[Arm], count: int, seed: int) -> PreparedImages:
    """Draw from the saved maps of the runs: only images that all runs have, by the chosen methods."""
    needed = "give --data with the study's data, to compute the maps again"
    rows_of = []
    for arm in chosen:
        panels = arm.run.panels
        if panels is None or "infection" not in panels or "sample_id" not in panels:
            raise UserError(f"{arm.run.name}: the study has saved no maps of it: {needed}")
        by = set(np.asarray(panels.get("method", [_DEFAULT_METHOD])).astype(str))
        if by != {arm.method}:
            raise UserError(f"{arm.name}: the study's saved maps are by {', '.join(sorted(by))}: {needed}")
        rows_of.append({str(name): k for k, name in enumerate(panels["sample_id"])})
    shared = sorted(set.intersection(*map(set, rows_of)))
    if len(shared) < count:
        raise UserError(f"the study has saved the maps of {len(shared)} images, {count} are asked for: {needed}")
    drawn = [shared[k] for k in np.random.default_rng(seed).permutation(len(shared))[:count]]
    first = [rows_of[0][name] for name in drawn]
    panels = chosen[0].run.panels or {}
    maps = [
        (arm.run.panels or {})["saliency"][[rows[name] for name in drawn]]
        for arm, rows in zip(chosen, rows_of, strict=True)
    ]
    return PreparedImages(drawn, panels["image"][first], panels["infection"][first], maps)


def _compute_maps(chosen: Sequence[Arm], data: Path, count: int, seed: int) -> PreparedImages:
    """Draw annotated test images, and explain each for its true class by every arm."""
    from trustcxr.evaluation.trained_run import load_run
    from trustcxr.explain.evaluate import find_annotated
    from trustcxr.runs import test_data as study_images

    first = load_run(chosen[0].run.folder)
    dataset = study_images.load(first, study_images.Source(data))
    if study_images.are_other_images(first, dataset):
        raise UserError(f"{data}: {first.name} was not tested on these images; give the data of the study")
    if "infection" not in dataset.mask_kinds:
        raise UserError(f"{data}: no infection masks, with which marks are compared. Give data that has them.")
    rows = find_annotated(dataset)
    if len(rows) < count:
        raise UserError(f"{data}: {len(rows)} images with a mask, {count} are asked for: say fewer --images")
    drawn = np.random.default_rng(seed).permutation(rows)[:count]
    loaded = {arm.run.name: first if arm is chosen[0] else load_run(arm.run.folder) for arm in chosen}
    odd = [name for name, run in loaded.items() if (run.size, run.classes) != (first.size, first.classes)]
    if odd:
        raise UserError(f"{odd[0]}: other classes or another size than {first.name}: such maps cannot be compared")
    maps = [_explain(loaded[arm.run.name], dataset, drawn, arm.method) for arm in chosen]
    masks = np.array(dataset.masks("infection")[drawn])
    return PreparedImages(
        [str(dataset.sample_ids[k]) for k in drawn], np.array(dataset.images[drawn])[:, 0], masks, maps
    )


def _explain(run: "Run", dataset: "Dataset", rows: np.ndarray, method: str) -> np.ndarray:
    """Return maps (K, H, W) of one run by one method, in batches of 16."""
    from trustcxr.console import track
    from trustcxr.explain import examples

    parts = [rows[start : start + 16] for start in range(0, len(rows), 16)]
    maps = [
        examples.make_panels(run, dataset, dict.fromkeys(map(int, part), ""), method=method)["saliency"]
        for part in track(parts, f"maps of {run.name}")
    ]
    return np.concatenate(maps)


def _load_groups(run: load.Run) -> dict[str, str]:
    """Return {sample: patient or group} from the saliency table of the run."""
    table = run.saliency
    if table is None or not {"sample_id", "group", "condition"} <= set(table):
        return {}
    once = table[table["condition"] == CLEAN].drop_duplicates("sample_id")
    return dict(zip(once["sample_id"].astype(str), once["group"].astype(str), strict=True))


def _draw_overlay(pixels: np.ndarray, saliency: np.ndarray) -> bytes:
    image = np.asarray(_enlarge(pixels, Image.Resampling.BICUBIC))
    return _to_png(heatmap_io.overlay(image, saliency, strength=0.55))


def _enlarge(pixels: np.ndarray, filter: Image.Resampling) -> Image.Image:
    height, width = pixels.shape
    scale = SHOWN / max(height, width)
    return Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), filter)


def _to_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=6)  # without text: a map must not name its model
    return file.getvalue()
