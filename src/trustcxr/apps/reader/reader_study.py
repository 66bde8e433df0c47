"""Create a reader study, serve it to its readers until Ctrl-C, and write its results.

Random images are drawn at their own resolution, with the map of every arm over each. An arm is a run with a saliency
method. Maps are those that the study saved. With data they are computed as `examples.make_panels` does.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from trustcxr.apps.reader.database import FILE, FOLDER, Store, StudyImage
from trustcxr.console import log, plural, track
from trustcxr.data.images import read
from trustcxr.data.images.greyscale import UnreadableImage
from trustcxr.errors import UserError, lookup
from trustcxr.explain import heatmap_io
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import DataRecipe
from trustcxr.report import load
from trustcxr.storage import atomic, layout, locks
from trustcxr.storage.os_errors import shell_quote
from trustcxr.storage.prediction_table import CLEAN

MOST_SIDE = 4096  # pixels of the longer side of an image; a larger one is reduced
MAP_SIDE = 1024  # pixels of the longer side of a map over its image
_ALIKE = 8.0  # grey levels: mean difference of a file from the saved image of the same name
_DEFAULT_METHOD = "gradcam"  # of saved maps that name none
_DEFAULT_IMAGES = 30


class ReaderOptions(NamedTuple):
    """Options of a new reader study: see `trustcxr reader-study --help`."""

    arms: Sequence[str] = ()
    data: Path | None = None
    images: int | None = None
    seed: int | None = None


def database_path(study: Path) -> Path:
    """Return the database of the reader study of a study or a run. Raises UserError if there is neither."""
    checked = layout.check_run(study) if (study / layout.RUN_FILE).is_file() else layout.check_study(study)
    return checked / FOLDER / FILE


def open_or_create(study: Path, options: ReaderOptions) -> Store:
    """Open the reader study, or create it. Raises UserError if it exists with other options."""
    path = database_path(study)
    if not path.exists():
        chosen = parse_arms(study, options.arms)
        with locks.folder_lock(path.parent):
            if not path.exists():  # another process may just have created it
                seed, count = options.seed or 0, options.images or _DEFAULT_IMAGES
                images = draw_images(chosen, data=options.data, count=count, seed=seed, study=study)
                store = Store.create(path, arms=[arm.name for arm in chosen], images=images, seed=seed)
                maps = plural(len(store.arms), "map")
                log(f"a new reader study: {plural(store.images, 'image')}, {maps} of each, in {path}")
                return store
    store = Store(path)
    if options.arms and [arm.name for arm in parse_arms(study, options.arms)] != store.arms:
        raise UserError(
            f"{path}: shows {', '.join(store.arms)}; move that folder away to begin another, or leave --arm out"
        )
    if options.images not in (None, store.images):
        raise UserError(f"{path}: shows {plural(store.images, 'image')}; move that folder away to begin another")
    if options.seed not in (None, store.seed):
        raise UserError(f"{path}: its images were drawn by seed {store.seed}; move that folder away to begin another")
    if options.data is not None:
        log(f"{path}: this reader study has its images and maps already: --data is ignored")
    return store


def serve(study: Path, options: ReaderOptions, names: Sequence[str], *, host: str, port: int) -> None:
    """Print the link of each reader, and serve until Ctrl-C. Raises UserError for wrong options or address."""
    from trustcxr.apps.serve import server

    server.check_installed()
    valid_names, path = [_clean_name(name) for name in names], database_path(study)
    if not valid_names and not (path.exists() and Store(path).readers()):
        command = f"trustcxr reader-study {shell_quote(study)} --reader NAME"
        raise UserError(f"{study}: there are no readers yet. Name them: {command}, once for each.")
    store = open_or_create(study, options)
    for name in valid_names:
        store.add_reader(name)
    from trustcxr.apps.reader import reader_page
    from trustcxr.apps.serve import middleware

    with server.open_listener(host, port) as listener:
        app = reader_page.build(store, hosts=middleware.allowed_hosts(host))
        for reader in store.readers():
            log(f"{reader.name}: {server.make_link(host, listener.getsockname()[1], reader.token)}")
        log("each link is for one reader; Ctrl-C ends, and saved answers stay")
        server.make_server(app).run(sockets=[listener])


def write_results(study: Path) -> list[Path]:
    """Write the result tables into the reader study's folder, and return their paths."""
    from trustcxr.apps.reader import reader_results

    path = database_path(study)
    return reader_results.write_tables(reader_results.gather(Store(path)), load.load_report(study).runs, path.parent)


def _clean_name(name: str) -> str:
    text = " ".join(name.split())
    if not text or len(text) > 60 or not text.isprintable():
        raise UserError(f"--reader {name!r}: a name, or a pseudonym, of 1 to 60 printable characters")
    return text


class Arm(NamedTuple):
    """A run and the method of its maps."""

    run: load.Run
    method: str

    @property
    def name(self) -> str:
        """RUN:METHOD, as typed."""
        return f"{self.run.name}:{self.method}"


class PreparedImages(NamedTuple):
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
    if not 1 <= len(chosen) <= 3:
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
        image = read.read_image(path)
    except UnreadableImage as problem:
        raise UserError(f"{path}: {problem}. Readers need the images. Restore the data.") from None
    difference = read.resize_image(image, size, shown.resize).astype(float) - shown.pixels[k]
    if np.abs(difference).mean() > _ALIKE:
        raise UserError(f"{path}: not the image whose map is shown. Give --data with the data of the study.")
    part = read.to_original(size, image.shape, shown.resize)
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
    content = atomic.section(atomic.read_yaml(about), "recipe") if about.is_file() else {}
    recipe = validate(DataRecipe, atomic.section(content, "data"), str(about))
    source = (study or run.folder) / layout.DATA_FILE
    advice = "Give --data PATH: readers see the images themselves, not the network's small copies."
    if not source.is_file():
        raise UserError(f"{source}: missing, so the images are not found. {advice}")
    data = Path(str(atomic.read_yaml(source)["path"]))
    if not data.exists():
        raise UserError(f"{data}: the images of the study are no longer there. {advice}")
    manifest = test_data.manifest_of(data, None, recipe.listing())
    paths = dict(zip(manifest.table["sample_id"].astype(str), manifest.table["path"], strict=True))
    if missing := next((sample for sample in samples if sample not in paths), None):
        raise UserError(f"{data}: has no image {missing}. {advice}")
    return [manifest.root / paths[sample] for sample in samples], recipe.resize


def _load_saved(chosen: Sequence[Arm], study: Path | None, count: int, seed: int) -> PreparedImages:
    """Draw from the saved maps of the runs: only images that all runs have, by the chosen methods."""
    needed = "give --data with the study's data, to compute the maps again"
    panels_of, rows_of = [], []
    for arm in chosen:
        panels = arm.run.panels
        if panels is None or "infection" not in panels or "sample_id" not in panels:
            raise UserError(f"{arm.run.name}: the study has saved no maps of it: {needed}")
        by = set(np.asarray(panels.get("method", [_DEFAULT_METHOD])).astype(str))
        if by != {arm.method}:
            raise UserError(f"{arm.name}: the study's saved maps are by {', '.join(sorted(by))}: {needed}")
        panels_of.append(panels)
        rows_of.append({str(name): k for k, name in enumerate(panels["sample_id"])})
    shared = sorted(set.intersection(*map(set, rows_of)))
    if len(shared) < count:
        raise UserError(f"the study has saved the maps of {len(shared)} images, {count} are asked for: {needed}")
    drawn = [shared[k] for k in np.random.default_rng(seed).permutation(len(shared))[:count]]
    rows = [[numbers[name] for name in drawn] for numbers in rows_of]
    maps = [panels["saliency"][numbers] for panels, numbers in zip(panels_of, rows, strict=True)]
    pixels, masks = (panels_of[0][name][rows[0]] for name in ("image", "infection"))
    files, resize = _find_files(chosen[0].run, study, drawn)
    return PreparedImages(drawn, files, resize, pixels, masks, maps)


def _compute_maps(chosen: Sequence[Arm], data: Path, count: int, seed: int) -> PreparedImages:
    """Draw annotated test images, and explain each for its true class by every arm."""
    from trustcxr.evaluation.trained_run import load_run
    from trustcxr.explain import examples
    from trustcxr.explain.evaluate import find_annotated
    from trustcxr.runs import test_data as study_images

    loaded = {arm.run.name: load_run(arm.run.folder) for arm in chosen}
    first = loaded[chosen[0].run.name]
    dataset = study_images.load(first, study_images.Source(data))
    if study_images.are_other_images(first, dataset):
        raise UserError(f"{data}: {first.name} was not tested on these images; give the data of the study")
    if "infection" not in dataset.mask_kinds:
        raise UserError(f"{data}: no infection masks, with which marks are compared. Give data that has them.")
    rows = find_annotated(dataset)
    if len(rows) < count:
        raise UserError(f"{data}: {len(rows)} images with a mask, {count} are asked for: say fewer --images")
    drawn = np.random.default_rng(seed).permutation(rows)[:count]
    if odd := [name for name, run in loaded.items() if (run.size, run.classes) != (first.size, first.classes)]:
        raise UserError(f"{odd[0]}: other classes or another size than {first.name}: such maps cannot be compared")
    parts = [dict.fromkeys(map(int, drawn[start : start + 16]), "") for start in range(0, count, 16)]
    maps = []
    for arm in chosen:
        run, followed = loaded[arm.run.name], track(parts, f"maps of {arm.run.name}")
        drawn_maps = [examples.make_panels(run, dataset, part, method=arm.method)["saliency"] for part in followed]
        maps.append(np.concatenate(drawn_maps))
    files = [dataset.root / str(path) for path in dataset.table["path"].iloc[drawn]]
    pixels, masks = np.array(dataset.images[drawn])[:, 0], np.array(dataset.masks("infection")[drawn])
    return PreparedImages([str(dataset.sample_ids[k]) for k in drawn], files, dataset.resize, pixels, masks, maps)


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
