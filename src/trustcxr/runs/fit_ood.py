"""Fit the detector of unlike images on a run's training images, and count its false alarms on test images."""

from collections.abc import Mapping
from pathlib import Path

import torch

from trustcxr.console import log, plural
from trustcxr.errors import UserError
from trustcxr.evaluation import trained_models
from trustcxr.evaluation.trained_run import load_run
from trustcxr.explain import ood
from trustcxr.recipes.run_recipe import Listing
from trustcxr.runs import test_data as tested
from trustcxr.runs.test_data import Source
from trustcxr.runs.training_data import add_data
from trustcxr.statistics import Bootstrap, share_interval
from trustcxr.storage.locks import folder_lock
from trustcxr.storage.schemas import OodDocument, Share


def fit(
    folder: Path, data: Path, *, labels: Mapping[str, str | None] | None = None, listing: Listing | None = None
) -> OodDocument:
    """Fit on training images, set the threshold on validation images, and count false alarms on test images.

    Writes ood.safetensors into the run's folder. Raises UserError if the data are not those of the run, or the run is a
    trained model of the package.
    """
    if name := trained_models.name_of(folder):
        raise UserError(f"{name}: comes with the statistics of its training images. It needs no fit-ood.")
    run, source = load_run(folder), Source(data, None, labels, listing)
    splits = run.recipe.data.splits
    train, val, test = (tested.load(run, source, split) for split in (splits.train, splits.val, splits.test))
    if not tested.trained_on(run, train):
        raise UserError(f"{data}: {run.name} was not trained on these images; give the data that it was trained on")
    images = add_data(train, run.recipe.data)
    log(f"fitting on {plural(len(images), 'image')}")
    with folder_lock(folder):
        detector = ood.fit(run, images, val)
        ood.save(detector, folder)
    scores = torch.cat([detector.score(run, images) for images in ood.batches(test)])
    alarms, bootstrap = (scores > detector.threshold).double(), Bootstrap.over(test.groups)
    low, high = share_interval(bootstrap, bootstrap.means(alarms.numpy()))
    return OodDocument(
        run=run.name,
        accepted=ood.ACCEPTED,
        threshold=detector.threshold,
        false_alarms=Share(value=float(alarms.mean()), ci=(low, high)),
        trained=len(images),
        validated=len(val),
        tested=len(test),
    )
