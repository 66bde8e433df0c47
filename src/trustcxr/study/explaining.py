"""Saliency and removed lesions of a model on some films, as tables in a folder: of a run, and of any model alike."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from trustcxr.console import say
from trustcxr.evaluation.given import Examined
from trustcxr.evaluation.run import Run
from trustcxr.explain import controls, lesions, scores, summary
from trustcxr.explain.given import ALL_DONE, LeftOut
from trustcxr.recipes.testing import ExplanationRecipe
from trustcxr.results import files, folders
from trustcxr.study import made

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset


def measure(
    place: Path,
    run: Run | Examined,
    films: "Dataset",
    options: ExplanationRecipe,
    thresholds: Callable[[], Mapping[str, float]],
    *,
    tuned: bool,
    once: bool = False,
    left_out: LeftOut = ALL_DONE,
    train: "Dataset | None" = None,
) -> None:
    """saliency.parquet in `place`, and, where films have lesion masks, lesions.parquet.

    Other methods measured there before are kept. `thresholds` are asked for where maps are made; `tuned`: whether they
    are of validation films. `once`: what is there, made in the same way, is not made again. `train`: training films,
    whose lesion masks, averaged, a map must be better than.
    """
    path, mean_mask = place / folders.SALIENCY_FILE, _mean_mask(train, films)
    held_against, asked = made.masks(films), made.saliency(options, tuned=tuned, mean_mask=mean_mask)
    known, wanted = made.of(place, path.name), asked | held_against
    stale = path.is_file() and made.otherwise(known, held_against)
    if stale:
        scores.annotated(films)  # where nothing can be measured, what is there stays
        say(f"{path}: was held against other masks: made again, of what is asked for now")
    there = path.is_file() and set(asked) <= set(files.read_table(path, ["method"])["method"])
    if not (once and there and not made.otherwise(known, wanted)):
        batches = scores.batches(run, films, options, thresholds=thresholds(), left_out=left_out, mean_mask=mean_mask)
        if stale:
            known = {}
        else:
            left = _of_another_mean(path, known, asked)
            batches = summary.with_before(batches, path, [*scores.with_random(options.methods), *left])
            known = {name: how for name, how in known.items() if name not in left}
        files.write_batches(path, batches)
        made.note(place, path.name, known | wanted)
    path, wanted = place / folders.LESIONS_FILE, held_against | made.lesions(options)
    known = made.of(place, path.name) if path.is_file() else {}
    if not len(lesions.with_lesions(films)):
        if made.otherwise(known, held_against):
            say(f"{path}: was of other masks, and these have no lesion: taken away")
            path.unlink()
    elif not (once and path.is_file() and not made.otherwise(known, wanted)):
        epsilon = 0.0 if left_out.attacks else options.epsilon
        files.write_table(path, lesions.of_run(run, films, sample=options.sample, epsilon=epsilon))
        made.note(place, path.name, wanted)


def _of_another_mean(path: Path, known: made.Made, asked: made.Made) -> list[str]:
    """Methods of before that were held against another mean training mask: left out, which is said."""
    now = next(files.part(asked, name).get("mean_mask") for name in asked)
    others = [name for name in known if name not in asked and files.part(known, name)]
    found = [name for name in others if files.part(known, name).get("mean_mask", now) != now]
    if found:
        say(f"{path}: {', '.join(found)}: held against the mean of other training masks, and left out: ask again")
    return found


def _mean_mask(train: "Dataset | None", films: "Dataset") -> Tensor | None:
    """The lesion masks of training films, averaged, but of those explained or of their patients; None without any."""
    if train is None or "infection" not in train.mask_kinds:
        return None
    others = ~np.isin(train.groups, films.groups) & ~np.isin(train.film_sums, films.film_sums)
    mean = controls.mean_mask(train.masks("infection")[others]) if others.any() else None
    return mean if mean is not None and bool(mean.any()) else None


def thresholds_of(run: Path) -> dict[str, float]:
    """As they were tuned for the run's own test films, where they were."""
    if not (run / folders.SALIENCY_FILE).is_file():
        return {}
    before = files.read_table(run / folders.SALIENCY_FILE)
    tuned = before.dropna(subset=["threshold"]) if "threshold" in before else before[:0]
    return {str(name): float(value) for name, value in tuned.groupby("method")["threshold"].first().items()}
