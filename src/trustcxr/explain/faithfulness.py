"""Measure the faithfulness of saliency by insertion, deletion and ROAD: hide or show what a map marks.

No mask is needed. Compare each figure with that of `baselines.random_map`.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trustcxr.errors import UserError
from trustcxr.explain.base import Target, check_images, target_classes
from trustcxr.models.preserve_state import preserve_state


class Curve(NamedTuple):
    """The probability of a class as more and more of the image is shown or hidden."""

    share: Tensor  # (S,): the share of pixels shown or hidden, from 0 to 1
    probability: Tensor  # (B, S): the probability of the class explained
    area: Tensor  # (B,): the area under the curve, [0, 1]


class Ends(NamedTuple):
    """Start and end of every curve of the same images, for any map."""

    classes: Tensor  # (B,): the classes explained
    blurred: Tensor  # (B, 1, H, W): the blurred images
    of_whole: Tensor  # (B,): the probability of the class for the whole image
    of_blurred: Tensor  # (B,): the probability of the class for the blurred image


def ends(model: nn.Module, x: Tensor, target: Target = None, *, blur: float | None = None) -> Ends:
    """Return what `insertion` and `deletion` of several maps share; `target` as there.

    `blur`: standard deviation in pixels, by default a tenth of the shorter side.
    """
    from torchvision.transforms.functional import gaussian_blur  # importing it takes two seconds

    check_images(x)
    shorter = min(x.shape[-2:])
    sigma = shorter / 10 if blur is None else blur
    if not (sigma > 0 and round(2 * sigma) < shorter):
        raise UserError(f"blur must be above 0 and below half the shorter side of {shorter} pixels; got {blur}")
    with preserve_state(model, autocast_cache=False), torch.no_grad():
        logits = model(x.clone())
        classes = target_classes(target, logits)
        blurred = gaussian_blur(x, [2 * round(2 * sigma) + 1] * 2, [sigma] * 2)
        return Ends(classes, blurred, _class_probability(logits, classes), _class_probability(model(blurred), classes))


def insertion(
    model: nn.Module, x: Tensor, saliency: Tensor, target: Target | Ends = None, *, steps: int = 20, show: bool = True
) -> Curve:
    """Show the most salient pixels first, from a blurred image on: a high area is good (Petsiuk et al. 2018, RISE).

    `x`: images (B, 1, H, W) in [0, 1]. `saliency`: (B, H, W). `target`: as in `grad_cam`, by default the class
    predicted on the whole image; or the `ends` of these images. `steps`: a forward pass each. `show` False blurs them
    first instead: `deletion`.

    Equally salient pixels come in a fixed random order. The model's state is preserved. Raises UserError for shapes
    that do not fit and for an unknown class.
    """
    _check(x, saliency)
    if steps < 1:
        raise UserError(f"steps must be 1 or more; got {steps}")
    ends_ = target if isinstance(target, Ends) else ends(model, x, target)
    with preserve_state(model, autocast_cache=False), torch.no_grad():
        before, after = (ends_.blurred, x) if show else (x, ends_.blurred)
        first, last = (ends_.of_blurred, ends_.of_whole) if show else (ends_.of_whole, ends_.of_blurred)
        rank = _most_salient_first(saliency).argsort(dim=1).reshape(len(x), 1, *x.shape[-2:])
        share = torch.linspace(0, 1, steps + 1, device=x.device)
        between = [
            _class_probability(model(torch.where(rank < part * saliency[0].numel(), after, before)), ends_.classes)
            for part in share.tolist()[1:-1]
        ]
        probability = torch.stack([first, *between, last], dim=1)
        return Curve(share, probability, torch.trapezoid(probability, share, dim=1))


def deletion(model: nn.Module, x: Tensor, saliency: Tensor, target: Target | Ends = None, *, steps: int = 20) -> Curve:
    """Measure deletion (blurred): blur the most salient pixels first; a low area is good. All else as `insertion`.

    Petsiuk et al. 2018 (RISE) use a constant instead, so figures do not compare.
    """
    return insertion(model, x, saliency, target, steps=steps, show=False)


def road(
    model: nn.Module,
    x: Tensor,
    saliency: Tensor,
    target: Target | Ends = None,
    *,
    shares: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8),
    noise: float = 0.01,
    seed: int = 0,
) -> Tensor:
    """Return ROAD, remove and debias (Rong et al. 2022): (B,), [-0.5, 0.5]; high is good, 0 is chance.

    Half the difference between two falls of the probability: without the most salient pixels, and without as many of
    the least salient. It is the mean over `shares` of pixels removed (the grad-cam package's ROADCombined, of
    probabilities). Removed pixels are filled by `impute` with `noise` and `seed`. All else as `insertion`.
    """
    _check(x, saliency)
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise UserError(f"shares of pixels removed lie between 0 and 1; got {shares}")
    with preserve_state(model, autocast_cache=False), torch.no_grad():
        classes = target.classes if isinstance(target, Ends) else target_classes(target, model(x))
        order = _most_salient_first(saliency)
        falls = []
        for share in shares:
            count = round(share * order.shape[1])
            after = []
            for hidden in (order[:, :count], order[:, order.shape[1] - count :]):
                removed = torch.zeros_like(order, dtype=torch.bool).scatter_(1, hidden, True).reshape(saliency.shape)
                after.append(_class_probability(model(impute(x, removed, noise=noise, seed=seed)), classes))
            falls.append((after[1] - after[0]) / 2)
        return torch.stack(falls).mean(dim=0)


def impute(x: Tensor, removed: Tensor, *, noise: float = 0.01, seed: int = 0) -> Tensor:
    """Fill in removed pixels from the others by ROAD's noisy linear imputation.

    `x`: (B, C, H, W). `removed`: (B, H, W), bool. Every removed pixel is the mean of its eight neighbours, those at a
    side counting twice: one sparse linear system an image. `noise`: standard deviation added. If all pixels are
    removed, the image becomes its mean.
    """
    check_images(x)
    filled = x.detach().double().cpu().numpy().copy()
    for image, hole in zip(filled, removed.cpu().numpy(), strict=True):
        if hole.all():
            image[:] = image.mean(axis=(1, 2), keepdims=True)
        elif hole.any():
            image[:, hole] = _harmonic_fill(image, hole).T
        # The same draw for every image, so that batches do not matter.
        random = np.random.default_rng(seed).standard_normal((len(image), hole.sum()))
        image[:, hole] = np.clip(image[:, hole] + noise * random, 0, 1)
    return torch.from_numpy(filled).to(x.device, x.dtype)


@lru_cache(maxsize=4)
def _neighbours(height: int, width: int) -> Any:
    """Return the weight of each pixel's neighbours, sparse (H W, H W): one by a side counts twice one by a corner."""
    from scipy.sparse import diags_array, eye_array, kron

    down, across = (diags_array([1.0, 2.0, 1.0], offsets=[-1, 0, 1], shape=(n, n)) for n in (height, width))
    return ((kron(down, across) - 4 * eye_array(height * width)) / 12).tocsr()


def _harmonic_fill(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Return the values (N, C) of the N pixels of the hole, each the weighted mean of its neighbours in the image."""
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import spsolve

    weights = _neighbours(*hole.shape)[np.flatnonzero(hole)]
    system = diags_array(weights.sum(1)) - weights[:, np.flatnonzero(hole)]
    constants = weights[:, np.flatnonzero(~hole)] @ image[:, ~hole].T
    return spsolve(system.tocsc(), constants).reshape(constants.shape)


def _check(x: Tensor, saliency: Tensor) -> None:
    check_images(x)
    if saliency.shape != (len(x), *x.shape[-2:]):
        raise UserError(f"saliency {tuple(saliency.shape)} does not fit images {tuple(x.shape)}: (B, H, W) of the same")


def _most_salient_first(saliency: Tensor) -> Tensor:
    """Return pixel numbers (B, H W) by falling saliency; ties in a fixed random order."""
    flat = saliency.flatten(1)
    shuffled = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0)).to(flat.device)
    return shuffled[flat[:, shuffled].argsort(dim=1, descending=True, stable=True)]


def _class_probability(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.float().softmax(dim=1).gather(1, classes[:, None])[:, 0]
