"""What a run's training images are like: fitted, stored with the run, and held against its own test images."""

from collections.abc import Mapping
from pathlib import Path

import torch

from trustcxr.console import log
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.explain import ood
from trustcxr.recipes.run_recipe import Listing
from trustcxr.runs import test_data as tested
from trustcxr.runs.test_data import Source
from trustcxr.statistics import Bootstrap, share_interval
from trustcxr.storage.locks import folder_lock
from trustcxr.storage.schemas import FamiliarityDocument, Share


def fit(
    folder: Path, data: Path, *, labels: Mapping[str, str | None] | None = None, listing: Listing | None = None
) -> FamiliarityDocument:
    """Fit on the run's training images, set the threshold on its validation images, count false alarms on test images.

    Writes ood.safetensors into the run's folder. UserError where the data are not those of the run.
    """
    run, given = load_run(folder), Source(data, None, labels, listing)
    splits = run.trained_by.data.splits
    train, val, test = (tested.load(run, given, split) for split in (splits.train, splits.val, splits.test))
    if not tested.trained_on(run, train):
        raise UserError(f"{data}: {run.name} was not trained on these images; give the data that it was trained on")
    log(f"fitting on {len(train)} images")
    with folder_lock(folder):
        found = ood.fit(run, train, val)
        ood.save(found, folder)
    alarms = torch.cat([found.score(run, images) for images in ood.batches(test)]) > found.threshold
    bootstrap = Bootstrap.over(test.groups)
    share = Share(value=float(alarms.double().mean()), ci=_ends(bootstrap, alarms))
    counts = {"trained": len(train), "validated": len(val), "tested": len(test)}
    return FamiliarityDocument(
        run=run.name, accepted=ood.ACCEPTED, threshold=found.threshold, false_alarms=share, **counts
    )


def _ends(bootstrap: Bootstrap, alarms: torch.Tensor) -> tuple[float, float]:
    low, high = share_interval(bootstrap, bootstrap.means(alarms.double().numpy()))
    return low, high
