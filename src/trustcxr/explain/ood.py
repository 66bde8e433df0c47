"""Score how unusual an image is for a run's training images, with a known false-alarm rate.

Two views of an image are scored: the channel means of the network's last two stages, and the image itself, small and of
even contrast. Each has a density fitted on training images: probabilistic principal components (Tipping and Bishop
1999), with Mahalanobis' distance as in Lee et al. 2018. The score is the larger distance, in units of the validation
images' spread; the threshold accepts ACCEPTED of these. Classes, masks and other data sets are not used.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional

from trustcxr.console import track
from trustcxr.data.dataset import Dataset, JoinedDataset
from trustcxr.data.images.chest_network import Components, fit_components
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import Run
from trustcxr.models.feature_maps import arrangement, find_layer
from trustcxr.models.preserve_state import preserve_state
from trustcxr.storage import atomic, layout

ACCEPTED = 0.95  # of validation images
SIDE = 32  # pixels of the small image
COMPONENTS = {"network": 256, "image": 64}  # at most; and no more than a quarter of the training images
EXTREME = 0.005  # share of training images beyond each limit of a sign
_TENSORS = ("middle", "spread", "scores", "low", "high")
_BATCH = 128


@dataclass(frozen=True)
class OodModel:
    """The density of a run's training images, and the scores of its validation images.

    middle, spread: (2,), median and interquartile range of the log distances of validation images. scores: (N,),
    theirs, ascending. threshold: the highest accepted score. low, high: (4,), limits of the signs of quality. about:
    the data.
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
        """Return the score of each view, network and image, (N, 2), of images (N, 1, H, W) in [0, 1]."""
        return (_distances(run, images, self.network, self.image) - self.middle) / self.spread

    def score(self, run: Run, images: Tensor) -> Tensor:
        """Return the score, (N,): above `threshold`, an image is unlike the training images."""
        return self.views(run, images).amax(1)

    def rarer_than(self, score: float) -> float:
        """Return the share of validation images with a lower score."""
        return float((self.scores < score).double().mean())


def fit(run: Run, train: Dataset | JoinedDataset, val: Dataset) -> OodModel:
    """Fit the densities on training images, and set the threshold on validation images."""
    followed = track(batches(train), f"training images of {run.name}", -(-len(train) // _BATCH))
    rows = [(_features(run, images), _small(images), signs(images)) for images in followed]
    features, radiographs, quality = (torch.cat(column) for column in zip(*rows, strict=True))
    network, radiograph = map(fit_components, (features, radiographs), COMPONENTS.values())
    followed = track(batches(val), f"validation images of {run.name}", -(-len(val) // _BATCH))
    distances = torch.cat([_distances(run, images, network, radiograph) for images in followed])
    quartiles = torch.quantile(distances, _shares(0.25, 0.5, 0.75), dim=0)
    middle, spread = quartiles[1], (quartiles[2] - quartiles[0]).clamp(min=1e-6)
    scores = ((distances - middle) / spread).amax(1).sort().values
    low, high = torch.quantile(quality, _shares(EXTREME, 1 - EXTREME), dim=0)
    threshold = float(scores[max(int(np.ceil(ACCEPTED * len(scores))), 1) - 1])
    about = {"train": train.fingerprint, "val": val.fingerprint, "images": str(len(train))}
    return OodModel(network, radiograph, middle, spread, scores, threshold, low, high, about)


def batches(data: Dataset | JoinedDataset) -> Iterator[Tensor]:
    """Yield the images of a data set, (B, 1, H, W) in [0, 1]."""
    for first in range(0, len(data), _BATCH):
        yield torch.from_numpy(data.batch(range(first, min(first + _BATCH, len(data))))).float().div_(255)


def save(ood_model: OodModel, folder: Path) -> None:
    """Write it into a run's folder as safetensors, with the checksum of the run's weights."""
    parts = {view: vars(getattr(ood_model, view)) for view in COMPONENTS}
    tensors = {f"{view}.{name}": value for view, part in parts.items() for name, value in part.items()}
    tensors |= {name: getattr(ood_model, name) for name in _TENSORS}
    tensors["threshold"] = torch.tensor(ood_model.threshold, dtype=torch.float64)
    about = ood_model.about | {"weights": atomic.checksum(folder / layout.WEIGHTS_FILE)}
    with atomic.atomic_write(folder / layout.OOD_FILE) as temporary:
        # By its bytes: safetensors would make the file readable for its owner alone.
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        temporary.write_bytes(save_tensors(whole, {"about": json.dumps(about)}))


def load(folder: Path) -> OodModel | None:
    """Load what was fitted for a run; None if nothing was. Raises UserError if it is damaged, or of other weights."""
    path = folder / layout.OOD_FILE
    if not path.is_file():
        return None
    advice = "Fit it again: trustcxr fit-ood"
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            tensors = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118
        network, image = (
            Components(*(tensors[f"{v}.{name}"] for name in ("mean", "axes", "rest"))) for v in COMPONENTS
        )
        values = {name: tensors[name] for name in _TENSORS}
        ood_model = OodModel(network, image, **values, threshold=float(tensors["threshold"]), about=about)
    except (KeyError, ValueError, SafetensorError) as problem:
        raise UserError(f"{path}: not readable ({type(problem).__name__}). {advice}") from None
    if about.get("weights") != atomic.checksum(folder / layout.WEIGHTS_FILE):
        raise UserError(f"{path}: belongs to other weights than those of the run. {advice}")
    return ood_model


def describe_outlier(ood_model: OodModel, score: float) -> str | None:
    """Return a warning if the score is above the threshold; None if not."""
    if score <= ood_model.threshold:
        return None
    share = min(ood_model.rarer_than(score), 0.999)
    return (
        f"it is unlike the images that the network was trained on: more unusual than {share:.1%} of its validation "
        f"images, of which {ACCEPTED:.0%} are accepted"
    )


def describe_quality(ood_model: OodModel, image: Tensor) -> list[str]:
    """Return warnings on the quality of one image (1, 1, H, W), compared with the training images."""
    values = signs(image)[0]
    beyond = torch.cat([values < ood_model.low - 1e-9, values > ood_model.high + 1e-9]).tolist()
    words = [text for text, is_beyond in zip(_TOO_LOW + _TOO_HIGH, beyond, strict=True) if text and is_beyond]
    return [f"poor quality: {text}, as on fewer than one training image in a hundred" for text in words]


_TOO_LOW = ("hardly any contrast", "blurred", "", "")
_TOO_HIGH = ("little between black and white", "grainy", "much of it is black", "much of it is white")


def signs(images: Tensor) -> Tensor:
    """Return signs of quality (N, 4) of images (N, 1, H, W) in [0, 1].

    spread: standard deviation of the pixels. sharpness: mean absolute second difference over the spread. dark, bright:
    shares of pixels at the lowest and highest grey levels.
    """
    pixels = images.double()
    inner, spread = pixels[..., 1:-1, 1:-1], pixels.flatten(1).std(1)
    second = 4 * inner - pixels[..., :-2, 1:-1] - pixels[..., 2:, 1:-1] - pixels[..., 1:-1, :-2] - pixels[..., 1:-1, 2:]
    sharpness = second.abs().flatten(1).mean(1) / spread.clamp(min=1e-3)
    dark, bright = ((part.flatten(1).double().mean(1)) for part in (pixels <= 2 / 255, pixels >= 253 / 255))
    return torch.stack([spread, sharpness, dark, bright], 1)


def _distances(run: Run, images: Tensor, network: Components, image: Components) -> Tensor:
    """Return the logarithm of each view's distance, (N, 2)."""
    distances = network.distance(_features(run, images)), image.distance(_small(images))
    return torch.stack(distances, 1).clamp(min=1e-12).log()


def _features(run: Run, images: Tensor) -> Tensor:
    """Return the channel means of the network's last two stages, (N, K); without stages, of its last map."""
    seen: dict[int, Tensor] = {}
    height, width = images.shape[-2:]

    def note(stage: int, output: Tensor) -> None:
        seen[stage] = arrangement(output, height, width, run.model)(output).detach().float().mean((2, 3))

    with torch.no_grad(), preserve_state(run.model, autocast_cache=False), ExitStack() as hooks:
        for stage, layer in enumerate(_stages(run.model)):
            hooks.enter_context(layer.register_forward_hook(lambda _, __, output, stage=stage: note(stage, output)))
        run.model(images.to(run.device))
    return torch.cat([seen[stage] for stage in sorted(seen)], 1).cpu().double()


def _stages(model: nn.Module) -> list[nn.Module]:
    try:
        return [find_layer(model, -2), find_layer(model, None)]
    except UserError:
        return [find_layer(model, None)]


def _small(images: Tensor) -> Tensor:
    """Resize images to SIDE x SIDE pixels of mean 0 and standard deviation 1, (N, SIDE * SIDE)."""
    small = functional.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", antialias=True).flatten(1).double()
    return (small - small.mean(1, keepdim=True)) / small.std(1, keepdim=True).clamp(min=0.02)


def _shares(*shares: float) -> Tensor:
    return torch.tensor(shares, dtype=torch.float64)
