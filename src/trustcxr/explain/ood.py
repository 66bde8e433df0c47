"""How like the images that a run was trained on is this one? A score whose false-alarm rate is known.

Two views of an image, each with a density fitted on training images, so that what one does not see the other may: the
channel means of the network's last two stages, and the image itself, made small and of even contrast. Both densities
are
probabilistic principal components (Tipping and Bishop 1999): Mahalanobis' distance within the components, as Lee et al.
2018 judge a network's features, and beside it what the components cannot redraw. An image's score is the larger of the
two distances, each in units of the validation images' own spread; the threshold accepts ACCEPTED of these. Neither
class nor mask is used, and no foreign picture: what such pictures score was not looked at to choose any of this.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional

from trustcxr.console import track
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import Run
from trustcxr.models.feature_maps import arrangement, find_layer
from trustcxr.models.preserve_state import evaluate_on
from trustcxr.storage import atomic, layout

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset

ACCEPTED = 0.95  # of validation images
SIDE = 32  # pixels of the image as it is judged by itself
COMPONENTS = {"network": 256, "image": 64}  # at most; and no more than a quarter of the training images
SIGNS = ("spread", "sharpness", "dark", "bright")  # of quality; see `signs`
EXTREME = 0.005  # share of training images beyond each end of what a sign may be
_BATCH = 128


@dataclass(frozen=True)
class Components:
    """A density of rows (K,): their mean, axes (K, R) each divided by the spread along it, the variance off them."""

    mean: Tensor
    axes: Tensor
    rest: Tensor

    def distance(self, rows: Tensor) -> Tensor:
        """Squared distance of rows (N, K) from the mean, each direction in units of its own spread: (N,)."""
        off = rows.double() - self.mean
        left = off.square().sum(1) - (off @ functional.normalize(self.axes, dim=0)).square().sum(1)
        return (off @ self.axes).square().sum(1) + left.clamp(min=0) / self.rest


@dataclass(frozen=True)
class Familiarity:
    """What a run's training images are like.

    middle, spread: (2,), median and interquartile range of the logarithm of each view's distance on validation images;
    scores: (N,), theirs, rising; threshold: what a score may be; low, high: (len(SIGNS),), within which each sign of
    quality is on all but a few training images; about: what it was fitted on.
    """

    network: Components
    image: Components
    middle: Tensor
    spread: Tensor
    scores: Tensor
    threshold: float
    low: Tensor
    high: Tensor
    about: dict[str, str]

    def views(self, run: Run, images: Tensor) -> Tensor:
        """The score of each view, network and image, (N, 2), of images (N, 1, H, W) in [0, 1] of the network's size."""
        return (_distances(run, images, self.network, self.image) - self.middle) / self.spread

    def score(self, run: Run, images: Tensor) -> Tensor:
        """The score, (N,): above `threshold`, an image is unlike those that the run was trained on."""
        return self.views(run, images).amax(1)

    def rarer_than(self, score: float) -> float:
        """The share of validation images with a lower score."""
        return float((self.scores < score).double().mean())


def fit(run: Run, train: "Dataset", val: "Dataset") -> Familiarity:
    """Fit on training images, and set the threshold on validation images, which nothing was fitted to."""
    followed = track(batches(train), f"training images of {run.name}", _count(train))
    rows = [(_features(run, images), _small(images), signs(images)) for images in followed]
    features, radiographs, quality = (torch.cat(column) for column in zip(*rows, strict=True))
    network, radiograph = _components(features, COMPONENTS["network"]), _components(radiographs, COMPONENTS["image"])
    followed = track(batches(val), f"validation images of {run.name}", _count(val))
    distances = torch.cat([_distances(run, images, network, radiograph) for images in followed])
    quartiles = torch.quantile(distances, _shares(0.25, 0.5, 0.75), dim=0)
    middle, spread = quartiles[1], (quartiles[2] - quartiles[0]).clamp(min=1e-6)
    scores = ((distances - middle) / spread).amax(1).sort().values
    low, high = torch.quantile(quality, _shares(EXTREME, 1 - EXTREME), dim=0)
    threshold = float(scores[max(int(np.ceil(ACCEPTED * len(scores))), 1) - 1])
    about = {"train": train.fingerprint, "val": val.fingerprint, "images": str(len(train))}
    return Familiarity(network, radiograph, middle, spread, scores, threshold, low, high, about)


def batches(data: "Dataset") -> Iterator[Tensor]:
    """The images of a data set, (B, 1, H, W) in [0, 1]."""
    for first in range(0, len(data), _BATCH):
        yield torch.from_numpy(np.array(data.images[first : first + _BATCH])).float().div_(255)


def _count(data: "Dataset") -> int:
    """How many `batches` there are."""
    return -(-len(data) // _BATCH)


def save(found: Familiarity, folder: Path) -> None:
    """Write it into a run's folder, as tensors alone, with the checksum of the weights that it belongs to."""
    tensors = {f"{view}.{name}": value for view in COMPONENTS for name, value in vars(getattr(found, view)).items()}
    tensors |= {name: getattr(found, name) for name in ("middle", "spread", "scores", "low", "high")}
    tensors["threshold"] = torch.tensor(found.threshold, dtype=torch.float64)
    about = found.about | {"weights": atomic.checksum(folder / layout.WEIGHTS_FILE)}
    with atomic.atomic_write(folder / layout.OOD_FILE) as temporary:
        # By its bytes: a file that safetensors opens itself nobody else may read.
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        temporary.write_bytes(save_tensors(whole, {"about": json.dumps(about)}))


def load(folder: Path) -> Familiarity | None:
    """What was fitted for a run; None where nothing was. UserError where it is broken, or of other weights."""
    path = folder / layout.OOD_FILE
    if not path.is_file():
        return None
    again = "fit it again with trustcxr familiarity"
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            tensors = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118
        found = _found(tensors, about)
    except (KeyError, ValueError, SafetensorError) as problem:
        raise UserError(f"{path}: not readable ({type(problem).__name__}); {again}") from None
    if about.get("weights") != atomic.checksum(folder / layout.WEIGHTS_FILE):
        raise UserError(f"{path}: belongs to other weights than those of the run; {again}")
    return found


def _found(tensors: dict[str, Tensor], about: dict[str, str]) -> Familiarity:
    network, image = (
        Components(tensors[f"{view}.mean"], tensors[f"{view}.axes"], tensors[f"{view}.rest"]) for view in COMPONENTS
    )
    return Familiarity(
        network=network,
        image=image,
        middle=tensors["middle"],
        spread=tensors["spread"],
        scores=tensors["scores"],
        threshold=float(tensors["threshold"]),
        low=tensors["low"],
        high=tensors["high"],
        about=about,
    )


def unlike(found: Familiarity, score: float) -> str | None:
    """Why an image of that score should not be answered, in words; None where it is like the training images."""
    if score <= found.threshold:
        return None
    share = min(found.rarer_than(score), 0.999)
    return (
        f"it is unlike the images that the network was trained on: more unusual than {share:.1%} of its validation "
        f"images, of which {ACCEPTED:.0%} are accepted"
    )


def poor(found: Familiarity, image: Tensor) -> list[str]:
    """What is wrong with the quality of one image (1, 1, H, W), beside the training images; empty where nothing is."""
    values = signs(image)[0]
    low, high = values < found.low - 1e-9, values > found.high + 1e-9
    return [words for place, words in enumerate(_TOO_LOW) if words and low[place]] + [
        words for place, words in enumerate(_TOO_HIGH) if words and high[place]
    ]


_FEW = "as on fewer than one training image in a hundred"
_TOO_LOW: Sequence[str] = (f"poor quality: hardly any contrast, {_FEW}", f"poor quality: blurred, {_FEW}", "", "")
_TOO_HIGH: Sequence[str] = (
    f"poor quality: little between black and white, {_FEW}",
    f"poor quality: grainy, {_FEW}",
    f"poor quality: much of it is black, {_FEW}",
    f"poor quality: much of it is white, {_FEW}",
)


def signs(images: Tensor) -> Tensor:
    """Signs of quality of images (N, 1, H, W) in [0, 1]: (N, 4).

    spread: standard deviation of the grey levels. sharpness: mean size of the second difference, beside the spread.
    dark, bright: share of the pixels of the two darkest levels of 256, and of the three brightest.
    """
    pixels = images.double()
    inner, spread = pixels[..., 1:-1, 1:-1], pixels.flatten(1).std(1)
    second = 4 * inner - pixels[..., :-2, 1:-1] - pixels[..., 2:, 1:-1] - pixels[..., 1:-1, :-2] - pixels[..., 1:-1, 2:]
    sharpness = second.abs().flatten(1).mean(1) / spread.clamp(min=1e-3)
    dark, bright = ((part.flatten(1).double().mean(1)) for part in (pixels <= 2 / 255, pixels >= 253 / 255))
    return torch.stack([spread, sharpness, dark, bright], 1)


def _distances(run: Run, images: Tensor, network: Components, image: Components) -> Tensor:
    """The logarithm of each view's distance, (N, 2)."""
    found = network.distance(_features(run, images)), image.distance(_small(images))
    return torch.stack(found, 1).clamp(min=1e-12).log()


def _features(run: Run, images: Tensor) -> Tensor:
    """Channel means of the network's last two stages, (N, K); of networks without stages, of their last map."""
    seen: dict[int, Tensor] = {}
    height, width = images.shape[-2:]

    def note(place: int, output: Tensor) -> None:
        seen[place] = arrangement(output, height, width, run.model)(output).detach().float().mean((2, 3))

    handles = [
        layer.register_forward_hook(lambda _, __, output, place=place: note(place, output))
        for place, layer in enumerate(_stages(run.model))
    ]
    try:
        with torch.no_grad(), evaluate_on(run.model, run.device):
            run.model(images.to(run.device))
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([seen[place] for place in sorted(seen)], 1).cpu().double()


def _stages(model: nn.Module) -> list[nn.Module]:
    try:
        return [find_layer(model, -2), find_layer(model, None)]
    except UserError:
        return [find_layer(model, None)]


def _small(images: Tensor) -> Tensor:
    """Images as SIDE x SIDE pixels of mean 0 and standard deviation 1, (N, SIDE * SIDE)."""
    small = functional.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", antialias=True).flatten(1).double()
    return (small - small.mean(1, keepdim=True)) / small.std(1, keepdim=True).clamp(min=0.02)


def _components(rows: Tensor, most: int) -> Components:
    """Principal components of rows (N, K) and the mean variance beyond them, rounded as they are stored."""
    mean = rows.mean(0)
    count = max(1, min(most, len(rows) // 4, rows.shape[1] - 1))
    values, axes = _spectrum(rows - mean)
    rest = (values[:-count].clamp(min=0).sum() / (rows.shape[1] - count)).clamp(min=1e-9)
    axes = axes[:, -count:] / torch.maximum(values[-count:], rest).sqrt()
    return Components(*(part.float().double() for part in (mean, axes, rest)))


def _spectrum(off: Tensor) -> tuple[Tensor, Tensor]:
    """Variances, rising, and their axes (K, V) of rows (N, K) of mean 0; where N < K without those that are nil."""
    freedom = max(len(off) - 1, 1)
    if len(off) >= off.shape[1]:
        return torch.linalg.eigh(off.T @ off / freedom)
    _, lengths, axes = torch.linalg.svd(off, full_matrices=False)
    return lengths.square().flip(0) / freedom, axes.T.flip(1)


def _shares(*shares: float) -> Tensor:
    return torch.tensor(shares, dtype=torch.float64)
