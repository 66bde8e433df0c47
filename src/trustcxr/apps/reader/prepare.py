"""From a study to what its readers see: images drawn at random, and of each the map of every arm, drawn alike.

An arm is a run, or a run by another saliency method. Maps that the study has saved are used; where data is given, they
are made again from the runs, as `examples.panels` makes those.
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

SHOWN = 640  # pixels of an image's side on the page
_FEWEST, _MOST = 2, 3
_OWN_METHOD = "gradcam"  # what a study's saved maps are by, where they do not say


@dataclass(frozen=True)
class Arm:
    """A run and the method of its maps."""

    run: load.Run
    method: str

    @property
    def name(self) -> str:
        """As it is typed and told: RUN:METHOD."""
        return f"{self.run.name}:{self.method}"


@dataclass(frozen=True)
class PreparedMap:
    """Images in the order drawn: pixels (K, H, W) uint8, masks (K, H, W), and of each arm maps (K, H, W) in [0, 1]."""

    samples: list[str]
    pixels: np.ndarray
    masks: np.ndarray
    maps: list[np.ndarray]


def arms(study: Path, said: Sequence[str]) -> list[Arm]:
    """The arms as typed, RUN or RUN:METHOD; without any, the runs of a study that has two or three.

    UserError for other counts and for unknown names.
    """
    from trustcxr.explain import methods

    runs = {run.name: run for run in load.load_report(study).runs}
    given = list(said) or list(runs)
    if not _FEWEST <= len(given) <= _MOST:
        raise UserError(f"{study}: say two or three times --arm RUN or RUN:METHOD; its runs are {', '.join(runs)}")
    found = []
    for text in given:
        name, _, method = text.partition(":")
        methods.parse(method or _OWN_METHOD)
        found.append(Arm(lookup(runs, "run", name), method or _OWN_METHOD))
    if len({arm.name for arm in found}) < len(found):
        raise UserError(f"{study}: an arm is said twice: {', '.join(arm.name for arm in found)}")
    return found


def draw_images(chosen: Sequence[Arm], *, data: Path | None, count: int, seed: int) -> list[StudyImage]:
    """What the readers are shown of `count` images, from the study's saved maps, or from the data where it is given."""
    shown = _saved(chosen, count, seed) if data is None else _made(chosen, data, count, seed)
    group = _groups(chosen[0].run)
    return [
        StudyImage(
            sample=sample,
            group=group.get(sample, sample),
            picture=_png(_enlarged(shown.pixels[k], Image.Resampling.BICUBIC)),
            mask=_png(Image.fromarray((shown.masks[k] != 0).astype(np.uint8))),
            maps=tuple(_over(shown.pixels[k], maps[k]) for maps in shown.maps),
        )
        for k, sample in enumerate(shown.samples)
    ]


def _saved(chosen: Sequence[Arm], count: int, seed: int) -> PreparedMap:
    """From example_maps.npz of each run: only images that all of them have, by the methods asked."""
    needed = "give --data with the study's data, and the maps are made again from the runs"
    kept = []
    for arm in chosen:
        panels = arm.run.panels
        if panels is None or "infection" not in panels or "sample_id" not in panels:
            raise UserError(f"{arm.run.name}: the study has saved no maps of it: {needed}")
        by = set(np.asarray(panels.get("method", [_OWN_METHOD])).astype(str))
        if by != {arm.method}:
            raise UserError(f"{arm.name}: the study's saved maps are by {', '.join(sorted(by))}: {needed}")
        kept.append({str(name): k for k, name in enumerate(panels["sample_id"])})
    shared = sorted(set.intersection(*map(set, kept)))
    if len(shared) < count:
        raise UserError(f"the study has saved the maps of {len(shared)} images, {count} are asked for: {needed}")
    drawn = [shared[k] for k in np.random.default_rng(seed).permutation(len(shared))[:count]]
    first = [kept[0][name] for name in drawn]
    panels = chosen[0].run.panels or {}
    maps = [
        (arm.run.panels or {})["saliency"][[rows[name] for name in drawn]]
        for arm, rows in zip(chosen, kept, strict=True)
    ]
    return PreparedMap(drawn, panels["image"][first], panels["infection"][first], maps)


def _made(chosen: Sequence[Arm], data: Path, count: int, seed: int) -> PreparedMap:
    """From the runs: annotated images of the run's test split, drawn by seed, each explained for its true class."""
    from trustcxr.evaluation.trained_run import load_run
    from trustcxr.explain.evaluate import annotated
    from trustcxr.runs import test_data as study_images

    first = load_run(chosen[0].run.folder)
    dataset = study_images.load(first, study_images.Source(data))
    if study_images.are_other_images(first, dataset):
        raise UserError(f"{data}: {first.name} was not tested on these images; give the data of the study")
    if "infection" not in dataset.mask_kinds:
        raise UserError(f"{data}: no infection masks here, which what readers mark is held against")
    rows = annotated(dataset)
    if len(rows) < count:
        raise UserError(f"{data}: {len(rows)} images with a mask, {count} are asked for: say fewer --images")
    drawn = np.random.default_rng(seed).permutation(rows)[:count]
    loaded = {arm.run.name: first if arm is chosen[0] else load_run(arm.run.folder) for arm in chosen}
    odd = [name for name, run in loaded.items() if (run.size, run.classes) != (first.size, first.classes)]
    if odd:
        raise UserError(f"{odd[0]}: other classes or another size than {first.name}: such maps cannot be compared")
    maps = [_maps(loaded[arm.run.name], dataset, drawn, arm.method) for arm in chosen]
    masks = np.array(dataset.masks("infection")[drawn])
    return PreparedMap([str(dataset.sample_ids[k]) for k in drawn], np.array(dataset.images[drawn])[:, 0], masks, maps)


def _maps(run: "Run", dataset: "Dataset", rows: np.ndarray, method: str) -> np.ndarray:
    """Maps (K, H, W) of one run by one method, a few images at a time."""
    from trustcxr.console import track
    from trustcxr.explain import examples

    parts = [rows[start : start + 16] for start in range(0, len(rows), 16)]
    found = [
        examples.panels(run, dataset, dict.fromkeys(map(int, part), ""), method=method)["saliency"]
        for part in track(parts, f"maps of {run.name}")
    ]
    return np.concatenate(found)


def _groups(run: load.Run) -> dict[str, str]:
    """Which patient or group each image belongs to, as the study's table of saliency has it."""
    table = run.saliency
    if table is None or not {"sample_id", "group", "condition"} <= set(table):
        return {}
    once = table[table["condition"] == CLEAN].drop_duplicates("sample_id")
    return dict(zip(once["sample_id"].astype(str), once["group"].astype(str), strict=True))


def _over(pixels: np.ndarray, saliency: np.ndarray) -> bytes:
    image = np.asarray(_enlarged(pixels, Image.Resampling.BICUBIC))
    return _png(heatmap_io.overlay(image, saliency, strength=0.55))


def _enlarged(pixels: np.ndarray, way: Image.Resampling) -> Image.Image:
    height, width = pixels.shape
    scale = SHOWN / max(height, width)
    return Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), way)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=6)  # no text chunk: nothing in it tells whose map it is
    return file.getvalue()
