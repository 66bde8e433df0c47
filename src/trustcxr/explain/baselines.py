"""Make baseline maps, which do not depend on the model: a saliency method has to beat them."""

from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trustcxr.explain.base import Target, check_images, to_saliency

CELLS = (7, 7)  # of a random map: those of a CAM of a network of 224 pixels
_BLUR = 0.03  # of the side: the standard deviation of the smoothed brightness


def random_map(count: int, height: int, width: int, *, seed: int = 0, cells: int | tuple[int, int] = CELLS) -> Tensor:
    """Return random saliency (count, height, width), float32, in [0, 1], on the CPU.

    Uniform values on a grid of `cells` (rows and columns, or one number for both), upsampled bilinearly and divided by
    the maximum: as smooth as a CAM of that grid. The same seed gives the same maps.

    >>> import trustcxr as tx
    >>> tx.explain.random_map(2, 32, 32, seed=1).shape
    torch.Size([2, 32, 32])
    """
    rows, columns = (cells, cells) if isinstance(cells, int) else cells
    grid = torch.rand((count, 1, rows, columns), generator=torch.Generator().manual_seed(seed))
    maps = functional.interpolate(grid, (height, width), mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax(dim=(1, 2), keepdim=True)


def centre_prior(height: int, width: int) -> Tensor:
    """Return a Gaussian at the centre of the image, (height, width), float32, in [0, 1], on the CPU.

    Its standard deviation is a quarter of each side (after Judd et al. 2012).

    >>> import trustcxr as tx
    >>> float(tx.explain.centre_prior(33, 33)[16, 16])
    1.0
    """
    rows = (torch.arange(height) - (height - 1) / 2) / (height / 4)
    columns = (torch.arange(width) - (width - 1) / 2) / (width / 4)
    prior = torch.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / 2)
    return prior / prior.amax()


def random_saliency(
    model: nn.Module | None, x: Tensor, target: Target = None, *, cells: tuple[int, int] = CELLS
) -> Tensor:
    """Return a `random_map` for each image (B, C, H, W), seeded by its pixels: (B, H, W). `model` is not used.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("resnet10t", classes=3).eval()
    >>> tx.explain.method("random")(model, torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 32, 32])
    """
    check_images(x)
    seeds = [crc32(image.detach().float().cpu().numpy().tobytes()) for image in x]
    maps = [random_map(1, *x.shape[-2:], seed=seed, cells=cells) for seed in seeds]
    return torch.cat([torch.zeros(0, *x.shape[-2:]), *maps]).to(x.device)


def centre_saliency(model: nn.Module, x: Tensor, target: Target = None) -> Tensor:
    """Return `centre_prior` as a saliency method: the same map for every image.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("resnet10t", classes=3).eval()
    >>> tx.explain.method("centre")(model, torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 32, 32])
    """
    check_images(x)
    return centre_prior(*x.shape[-2:]).to(x.device).repeat(len(x), 1, 1)


def brightness_map(x: Tensor, cells: tuple[int, int]) -> Tensor:
    """Return the brightness of images (B, 1, H, W) on a grid of `cells`, as coarse as a CAM: (B, H, W) in [0, 1].

    >>> import torch
    >>> from trustcxr.explain.baselines import brightness_map
    >>> brightness_map(torch.rand(2, 1, 32, 32), (4, 4)).shape
    torch.Size([2, 32, 32])
    """
    check_images(x)
    return to_saliency(functional.adaptive_avg_pool2d(x.float(), cells).mean(1), *x.shape[-2:])


def image_baselines(images: Tensor, lung: Tensor, mean_mask: Tensor | None = None) -> dict[str, Tensor]:
    """Return maps (B, H, W), not negative, of the image or its lungs, by their names in REFERENCES.

    images (B, 1, H, W) in [0, 1]; lung (B, H, W) bool; `mean_mask` (H, W): the mean lesion mask of training.
    """
    from torchvision.transforms.functional import gaussian_blur  # importing it takes two seconds

    inside = lung.to(images.dtype)
    sigma = _BLUR * images.shape[-1]
    size = 2 * round(3 * sigma) + 1
    bright = gaussian_blur((images[:, 0] * inside)[:, None], [size, size], [sigma, sigma])[:, 0]
    maps = {
        "centre": centre_prior(*lung.shape[1:]).to(lung.device).expand(lung.shape),
        "lung": lung.float(),
        "brightness": bright * inside,
        "edges": edges(images) * inside,
    }
    return maps if mean_mask is None else maps | {"mean_mask": mean_mask.to(images) * inside}


def edges(images: Tensor) -> Tensor:
    """Return the length of Sobel's gradient at each pixel, (B, H, W), in [0, 1]."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(images) / 8
    kernels = torch.stack([across, across.T])[:, None]
    slope = functional.conv2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), kernels)
    return slope.square().sum(1).sqrt()


def mean_mask(masks: np.ndarray) -> Tensor:
    """Average the lesion masks (N, H, W) of 0 and 1 that are not empty: (H, W) in [0, 1]."""
    some = masks[masks.reshape(len(masks), -1).any(1)]
    return torch.from_numpy(some.mean(0) if len(some) else np.zeros(masks.shape[1:])).float()


def likeness(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation of two maps (B, H, W) over their pixels, (B,); NaN if one is constant."""
    one, other = (m.flatten(1).double() - m.flatten(1).double().mean(1, keepdim=True) for m in (a, b))
    scale = one.norm(dim=1) * other.norm(dim=1)
    return torch.where(scale > 1e-9, (one * other).sum(1) / scale.clamp(min=1e-9), torch.nan)
