"""Draw the random images of a reader study at their own resolution, with the map of every arm over each.

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
from trustcxr.data.images import read as squares
from trustcxr.data.images.greyscale import UnreadableImage
from trustcxr.data.images.read import read_image
from trustcxr.errors import UserError, lookup
from trustcxr.explain import heatmap_io
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.report import load
from trustcxr.storage import atomic, layout
from trustcxr.storage.prediction_table import CLEAN

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset
    from trustcxr.evaluation.trained_run import Run

MOST_SIDE = 4096  # pixels of the longer side of an image; a larger one is reduced
MAP_SIDE = 1024  # pixels of the longer side of a map over its image
_ALIKE = 8.0  # grey levels: mean difference of a file from the saved image of the same name
_FEWEST, _MOST = 1, 3
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
    """Drawn images: their files, masks (K, H, W), and for each arm maps (K, H, W) in [0, 1].

    pixels: (K, H, W) uint8 as the network sees them, resized from the files by `resize`.
    """

    samples: list[str]
    files: list[Path]
    resize: str
    pixels: np.ndarray
    masks: np.ndarray
    maps: list[np.ndarray]


def parse_arms(study: Path, names: Sequence[str]) -> list[Arm]:
    """Return the one to three arms named RUN or RUN:METHOD; default: all runs of the study.

    Raises UserError for another number of arms or an unknown name.
    """
    from trustcxr.explain import methods

    runs = {run.name: run for run in load.load_report(study).runs}
    chosen = list(names) or list(runs)
    if not _FEWEST <= len(chosen) <= _MOST:
        raise UserError(f"{study}: say one to three times --arm RUN or RUN:METHOD; its runs are {', '.join(runs)}")
    result = []
    for text in chosen:
        name, _, method = text.partition(":")
        methods.parse(method or _DEFAULT_METHOD)
        result.append(Arm(lookup(runs, "run", name), method or _DEFAULT_METHOD))
    if len({arm.name for arm in result}) < len(result):
        raise UserError(f"{study}: an arm is said twice: {', '.join(arm.name for arm in result)}")
    return result


def draw_images(
    chosen: Sequence[Arm], *, data: Path | None, count: int, seed: int, study: Path | None = None
) -> list[StudyImage]:
    """Draw `count` images with maps: the maps saved by the study or, with `data`, new ones.

    Without `data` the files of the images are those of the data of `study`.
    """
    shown = _load_saved(chosen, study, count, seed) if data is None else _compute_maps(chosen, data, count, seed)
    group = _load_groups(chosen[0].run)
    return [_draw_image(shown, k, group.get(sample, sample)) for k, sample in enumerate(shown.samples)]


def _draw_image(shown: PreparedImages, k: int, group: str) -> StudyImage:
    """Draw one image. Raises UserError if its file is not the image that the network saw."""
    path, size = shown.files[k], shown.pixels.shape[1]
    try:
        image = read_image(path)
    except UnreadableImage as problem:
        raise UserError(f"{path}: {problem}. Readers need the images. Restore the data.") from None
    difference = squares.resize_image(image, size, shown.resize).astype(float) - shown.pixels[k]
    if np.abs(difference).mean() > _ALIKE:
        raise UserError(f"{path}: not the image whose map is shown. Give --data with the data of the study.")
    if shown.resize == "crop":
        side = min(image.shape)
        top, left = ((length - side) // 2 for length in image.shape)
        image = image[top : top + side, left : left + side]
    part = squares.to_original(size, image.shape, shown.resize)
    mask = Image.fromarray((shown.masks[k][part] != 0).astype(np.uint8))
    picture, small = Image.fromarray(image), Image.fromarray(image)
    picture.thumbnail((MOST_SIDE, MOST_SIDE), reducing_gap=3.0)
    small.thumbnail((MAP_SIDE, MAP_SIDE), reducing_gap=3.0)
    return StudyImage(
        sample=shown.samples[k],
        group=group,
        picture=_to_png(picture),
        mask=_to_png(mask.resize((size, size), Image.Resampling.NEAREST)),
        maps=tuple(_to_png(heatmap_io.overlay(np.asarray(small), maps[k][part], strength=0.55)) for maps in shown.maps),
    )


def _find_files(run: load.Run, study: Path | None, samples: Sequence[str]) -> tuple[list[Path], str]:
    """Return the file of each sample in the data of a study, and how images are resized."""
    from trustcxr.runs import test_data

    about = run.folder / layout.RUN_FILE
    recipe = (
        validate(RunRecipe, atomic.section(atomic.read_yaml(about), "recipe"), str(about)) if about.is_file() else None
    )
    source = (study or run.folder) / layout.DATA_FILE
    advice = "Give --data PATH: readers see the images themselves, not the network's small copies."
    if not source.is_file():
        raise UserError(f"{source}: missing, so the images are not found. {advice}")
    data = Path(str(atomic.read_yaml(source)["path"]))
    if not data.exists():
        raise UserError(f"{data}: the images of the study are no longer there. {advice}")
    manifest = test_data.manifest_of(data, None, recipe.data.listing() if recipe else None)
    paths = dict(zip(manifest.table["sample_id"].astype(str), manifest.table["path"], strict=True))
    if missing := next((sample for sample in samples if sample not in paths), None):
        raise UserError(f"{data}: has no image {missing}. {advice}")
    return [manifest.root / paths[sample] for sample in samples], recipe.data.resize if recipe else "squeeze"


def _load_saved(chosen: Sequence[Arm], study: Path | None, count: int, seed: int) -> PreparedImages:
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
    files, resize = _find_files(chosen[0].run, study, drawn)
    return PreparedImages(drawn, files, resize, panels["image"][first], panels["infection"][first], maps)


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
        [str(dataset.sample_ids[k]) for k in drawn],
        [dataset.root / str(dataset.table["path"].iloc[k]) for k in drawn],
        dataset.resize,
        np.array(dataset.images[drawn])[:, 0],
        masks,
        maps,
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


def _to_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=6)  # without text: a map must not name its model
    return file.getvalue()
