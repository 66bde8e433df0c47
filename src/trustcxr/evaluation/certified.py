"""Compute certified accuracy: the share of images with a correct answer that provably does not change within epsilon.

The accuracy under the strongest possible attack lies between it and accuracy under `worst-case`.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch

from trustcxr.certify.verify import Effort, exact, least_margins
from trustcxr.console import Progress
from trustcxr.data.dataset import Dataset
from trustcxr.data.loader import loader, to_pixels
from trustcxr.evaluation import metrics
from trustcxr.evaluation.predictions import about_images
from trustcxr.evaluation.trained_run import Run
from trustcxr.models.preserve_state import preserve_state, without_tf32
from trustcxr.statistics import Bootstraps
from trustcxr.storage.schemas import CertifiedResult

EPSILONS = (0.005, 0.01, 0.02)


def prove(
    run: Run, dataset: Dataset, epsilons: Sequence[float] = EPSILONS, *, effort: Effort | None = None
) -> pd.DataFrame:
    """Return the table of certified.parquet: a row per image and epsilon.

    Columns, besides those of `about_images`: `epsilon`; `answer`, the predicted class index; `margin`, a lower bound of
    its margin over other classes within epsilon; `proved`, margin > 0; `certified`, proved and correct; `method`, crown
    or ibp; `tf32`, False: the model answers without TF32. Raises UserError with the layer's name if the model cannot
    be bounded.
    """
    layers, about, pieces = exact(run.model), about_images(dataset), []
    effort = effort or Effort()
    effort = replace(effort, neurons=effort.neurons * len(run.model.members()))
    batches = loader(dataset, 16)
    with Progress(f"certifying {run.name} on {len(dataset)} images", len(batches) * len(epsilons)) as bar:
        for raw, _, indices in batches:
            images, rows = to_pixels(raw.to(run.device)), about.iloc[indices.numpy()]
            with torch.no_grad(), preserve_state(run.model), without_tf32():
                answers = run.model(images).argmax(1)
            for epsilon in epsilons:
                margin = least_margins(layers, images, answers, epsilon, effort).cpu().numpy()
                proved, right = margin > 0, answers.cpu().numpy() == rows["label"].to_numpy()
                figures = {"margin": margin, "proved": proved, "certified": proved & right}
                pieces.append(rows.assign(epsilon=epsilon, answer=answers.cpu().numpy(), **figures))
                bar.advance(note=f"epsilon {epsilon:g}")
    table = pd.concat(pieces).sort_values("epsilon", kind="stable", ignore_index=True)
    return table.assign(method="crown" if effort.crown else "ibp", tf32=False)


def describe(table: pd.DataFrame, *, resamples: int = 2000) -> list[CertifiedResult]:
    """Return `certified` of metrics.json: an entry per epsilon, with intervals over groups."""
    bootstraps, results = Bootstraps(resamples=resamples), []
    for epsilon, rows in table.groupby("epsilon"):
        bootstrap, certified = bootstraps.over(rows["group"]), rows["certified"].to_numpy(dtype=bool)
        results.append(
            CertifiedResult(
                epsilon=float(str(epsilon)),
                accuracy=metrics.share(bootstrap, bootstrap.means(certified)),
                balanced_accuracy=metrics.balanced(bootstrap, rows, certified),
                proved=metrics.share(bootstrap, bootstrap.means(rows["proved"])),
                n=len(rows),
                method=str(rows["method"].iloc[0]),
                tf32=bool(rows["tf32"].any()),
            )
        )
    return results
