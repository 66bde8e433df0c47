"""Train with generated images: draws from Gaussians of the training images take a share of each batch. A trial.

python -m benchmarks.generated_images [--share 0.3] [--members 40] [--picture FILE] [--run RUN] -- OPTIONS

OPTIONS are those of `trustcxr train`. No part of the package. For each class and data set, the training images are
divided into clusters by k-means of their first principal components. Each cluster gives a Gaussian: its mean and its
covariance, in `--components` principal components. Clusters are drawn as often as they have images, data sets by their
share in the recipe, classes equally often. A generated image whose correlation with a training image, straight or
mirrored, is at least `--copy` is dropped. The pool is shuffled, and each image is used once before any is repeated.

--picture writes real images (upper half of a class's rows) and generated ones, and ends. --run names a run or a trained
model: it prints how many generated images that network answers as their label says.
run.yaml does not record the generated images: give the folder a name that does.
"""

import argparse
import sys
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.cluster.vq import kmeans2
from torch import Tensor

from trustcxr.cli import main as run_command
from trustcxr.console import log
from trustcxr.data.dataset import Dataset, JoinedDataset
from trustcxr.data.loader import to_pixels
from trustcxr.evaluation.trained_run import load_run
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.training import fit_run
from trustcxr.training.step import TrainingStep

COORDINATES = 30  # principal components that the clusters are made by
CHUNK = 1000
SHOWN = 24  # images in a row of the picture


def draw(images: np.ndarray, count: int, members: int, components: int, random: np.random.Generator) -> np.ndarray:
    """Draw `count` images (count, P) from Gaussians of the clusters of `images` (N, P)."""
    mean = images.mean(0)
    axes = np.linalg.eigh(np.cov(images - mean, rowvar=False))[1][:, ::-1][:, :components]
    points = (images - mean) @ axes
    member = np.zeros(len(images), dtype=int)
    if (clusters := len(images) // members) > 1:
        member = kmeans2(points[:, :COORDINATES], clusters, minit="++", rng=random)[1]
    drawn = []
    for cluster, number in zip(*np.unique(random.choice(member, count), return_counts=True), strict=True):
        part = points[member == cluster]
        spread = (part - part.mean(0)) / np.sqrt(len(part))  # its product with normal numbers has their covariance
        drawn.append(part.mean(0) + random.standard_normal((number, len(part))) @ spread)
    return np.concatenate(drawn) @ axes.T + mean


def standardise(images: np.ndarray) -> np.ndarray:
    """Return images (N, P) with mean 0 and length 1, so that products are correlations."""
    centred = images.astype(np.float32) - images.mean(1, keepdims=True, dtype=np.float32)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)


def correlate(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the highest correlation of each image (N, H, W) with any of `others` (M, H, W), straight or mirrored."""
    both = [standardise(view.reshape(len(images), -1)) for view in (images, images[:, :, ::-1])]
    reference = standardise(others.reshape(len(others), -1)).T
    parts = [
        np.maximum(*((view[first : first + CHUNK] @ reference).max(1) for view in both))
        for first in range(0, len(images), CHUNK)
    ]
    return np.concatenate(parts)


def generate(
    train: Dataset | JoinedDataset, recipe: RunRecipe, options: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """Return generated images uint8 (N, H, W) and their labels (N,), shuffled, without copies."""
    random = np.random.default_rng(recipe.seed)
    images, labels = np.asarray(train.images)[:, 0], train.labels
    numbers = getattr(train, "numbers", np.zeros(len(train), dtype=int))
    drawn, of_class = [], []
    for label in range(len(train.classes)):
        for number, share in enumerate(recipe.data.shares):
            rows = (labels == label) & (numbers == number)
            count = round(options.pool * share / len(train.classes))
            real = images[rows].reshape(rows.sum(), -1).astype(float)
            drawn.append(draw(real, count, options.members, options.components, random))
            of_class.append(np.full(count, label))
    pool = np.concatenate(drawn).clip(0, 255).round().astype(np.uint8).reshape(-1, *images.shape[1:])
    closest = correlate(pool, images)
    message = f"generated images: closest training image correlates {np.median(closest):.3f} in the median, at most "
    log(f"{message}{closest.max():.3f}; {(closest >= options.copy).mean():.1%} dropped at {options.copy:g}")
    chosen = random.permutation(np.flatnonzero(closest < options.copy))
    pool, kinds = pool[chosen], np.concatenate(of_class)[chosen]
    if options.run:
        model = load_run(options.run, on="cpu").model
        with torch.no_grad():
            answers = model(to_pixels(torch.from_numpy(pool[:CHUNK, None]))).argmax(1).numpy()
        right = [f"{name} {(answers == k)[kinds[:CHUNK] == k].mean():.1%}" for k, name in enumerate(train.classes)]
        log(f"generated images that {options.run} answers as labelled: {', '.join(right)}")
    if options.picture:
        some = random.permutation(len(images))
        views = [(images[some], labels[some]), (pool, kinds), (pool[SHOWN * 9 :], kinds[SHOWN * 9 :])]
        rows = [view[label == k][:SHOWN] for k in range(len(train.classes)) for view, label in views]
        strips = [np.concatenate(list(row), axis=1) for row in rows]
        Image.fromarray(np.concatenate(strips)).save(options.picture)
        sys.exit()
    return pool, kinds


def install(options: argparse.Namespace) -> None:
    """Make every training of this process see generated images."""
    usual_run, usual_step = fit_run._run, TrainingStep.training_step
    pool: dict[str, Tensor] = {}

    def run(recipe: RunRecipe, train: Dataset | JoinedDataset, *arguments: Any, **keys: Any) -> int:
        images, labels = generate(train, recipe, options)
        pool.update(images=torch.from_numpy(images)[:, None], labels=torch.from_numpy(labels))
        return usual_run(recipe, train, *arguments, **keys)

    def step(self: TrainingStep, batch: tuple[Tensor, Tensor, Tensor], index: int) -> Tensor:
        images, labels, rows = batch
        count = round(options.share * len(images))
        chosen = (self.global_step * count + torch.arange(count)) % len(pool["labels"])
        images = torch.cat([images[count:], pool["images"][chosen].to(images)])
        labels = torch.cat([labels[count:], pool["labels"][chosen].to(labels)])
        return usual_step(self, (images, labels, rows), index)

    fit_run._run = run
    TrainingStep.training_step = step  # type: ignore[assignment, method-assign]


def main() -> None:
    """Train with generated images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.3, help="of each batch that is generated")
    parser.add_argument("--members", type=int, default=40, help="images of a cluster in the mean")
    parser.add_argument("--components", type=int, default=400)
    parser.add_argument("--copy", type=float, default=0.97)
    parser.add_argument("--pool", type=int, default=40_000, help="images to generate")
    parser.add_argument("--picture", default="")
    parser.add_argument("--run", default="")
    parser.add_argument("train", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    install(options)
    sys.argv = ["trustcxr", "train", *(word for word in options.train if word != "--")]
    run_command()


if __name__ == "__main__":
    main()
