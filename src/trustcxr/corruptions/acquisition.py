"""Corrupt images as acquisition does: dose, focus, movement, size, compression, tone, position; draw random numbers.

Each corruption takes images (B, 1, H, W) float32 in [0, 1], a severity 1 to 5 and draws; the caller clamps the result.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

WRITTEN_FOR = 224  # pixels of a side

NOISE = (0.02, 0.035, 0.06, 0.09, 0.13)  # standard deviation
QUANTA = (600.0, 250.0, 110.0, 55.0, 28.0)  # per white pixel
DEFOCUS = (1.2, 2.0, 3.0, 4.2, 6.0)  # radius of the disc, pixels
MOTION = (4.0, 7.0, 11.0, 16.0, 22.0)  # length of the line, pixels
COARSER = (1.6, 2.2, 3.0, 4.0, 5.5)  # times fewer pixels a side
QUALITY = (40.0, 25.0, 17.0, 12.0, 9.0)  # of JPEG, 1 to 100
CONTRAST = (1.25, 1.5, 1.85, 2.3, 2.9)  # times more or less
EXPOSURE = (0.06, 0.12, 0.18, 0.24, 0.30)  # brighter or darker
GAMMA = (1.25, 1.5, 1.9, 2.4, 3.0)  # exponent, or one over it
ROTATION = (3.0, 6.0, 10.0, 15.0, 22.0)  # degrees, either way
BREATH = 30.0  # degrees from upright within which a patient moves


class ImageRandom:
    """A stream of random numbers for each of B images, seeded by (seed, name, key). On the CPU, float32."""

    def __init__(self, name: str, seed: int, keys: Iterable[int | str]) -> None:
        digests = (hashlib.blake2b(f"{seed}/{name}/{key}".encode(), digest_size=8).digest() for key in keys)
        self.seeds = [int.from_bytes(digest, "big") >> 1 for digest in digests]
        self._generators = [torch.Generator().manual_seed(number) for number in self.seeds]

    def uniform(self, low: float, high: float) -> Tensor:
        """Draw one number in [low, high) for each image, (B,)."""
        return low + (high - low) * torch.tensor([torch.rand((), generator=g) for g in self._generators])

    def signs(self) -> Tensor:
        """Draw -1 or 1 for each image with equal probability, (B,)."""
        return torch.where(self.uniform(0, 1) < 0.5, -1.0, 1.0)

    def normal(self, height: int, width: int) -> Tensor:
        """Draw standard normal numbers for each image, (B, 1, height, width), independent within an image.

        Each image takes a random window and sign of one field of noise, which is much faster than new numbers.
        """
        field = _field(height, width)
        windows = torch.empty(len(self.seeds), 1, height, width)
        for window, generator in zip(windows, self._generators, strict=True):
            top, left, way = torch.randint(0, 1 << 30, (3,), generator=generator).tolist()
            top, left = top % (height + 1), left % (width + 1)
            torch.mul(field[top : top + height, left : left + width], 1.0 if way % 2 else -1.0, out=window[0])
        return windows

    def numpy(self) -> list[np.random.Generator]:
        """Return a NumPy generator for each image."""
        return [np.random.default_rng(number) for number in self.seeds]


@lru_cache(maxsize=4)
def _field(height: int, width: int) -> Tensor:
    """Return white noise of twice the height and width."""
    return torch.randn(2 * height, 2 * width, generator=torch.Generator().manual_seed(2311_14227))


def relative_size(images: Tensor) -> float:
    """Return the shorter side over that of the tables."""
    return min(images.shape[-2:]) / WRITTEN_FOR


def gaussian_noise(images: Tensor, severity: int, draws: ImageRandom) -> Tensor:
    """Add noise of equal variance to every pixel; smaller images get less in each pixel."""
    noise = draws.normal(*images.shape[-2:]).to(images.device)
    return torch.add(images, noise, alpha=NOISE[severity - 1] * relative_size(images))


def poisson_noise(images: Tensor, severity: int, draws: ImageRandom) -> Tensor:
    """Add quantum noise in its normal approximation: mean x, variance x / quanta of a white pixel."""
    # A pixel of a smaller image is larger, and collects more.
    quanta = QUANTA[severity - 1] / relative_size(images) ** 2
    noise = draws.normal(*images.shape[-2:]).to(images.device)
    return torch.addcmul(images, images.sqrt(), noise, value=quanta**-0.5)


def defocus_blur(images: Tensor, severity: int, draws: ImageRandom) -> Tensor:
    """Blur each point to a disc."""
    return convolve(images, disc_kernel(DEFOCUS[severity - 1] * relative_size(images)).to(images.device))


def motion_blur(images: Tensor, severity: int, draws: ImageRandom) -> Tensor:
    """Blur each point to a line; its direction is drawn for each image, near upright, as a chest breathes."""
    angles = torch.deg2rad(90 + draws.uniform(-BREATH, BREATH))
    return convolve(images, line_kernels(MOTION[severity - 1] * relative_size(images), angles).to(images.device))


def resolution(images: Tensor, severity: int, draws: ImageRandom) -> Tensor:
    """Average to fewer pixels, and enlarge again."""
    factor = 1 + (COARSER[severity - 1] - 1) * relative_size(images)
    height, width = (max(round(n / factor), 1) for n in images.shape[-2:])
    small = F.interpolate(images, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, size=tuple(images.shape[-2:]), mode="bilinear", align_corners=False)


def jpeg(images: Tensor, severity: int, draws: ImageRandom) -> Tensor:
    """Apply JPEG's loss (ITU-T T.81) on any device: round the cosines of 8 x 8 pixels to the steps of a quality.

    The rest of JPEG is lossless, so this equals writing and reading a file. Smaller images get finer steps in
    proportion, since a block has more of their content.
    """
    steps = quantisation_steps(QUALITY[severity - 1], relative_size(images)).to(images.device).flatten()
    cosines = _cosines().to(images.device)
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate") if height % 8 or width % 8 else images
    rows, columns = (n // 8 for n in padded.shape[-2:])
    levels = padded.mul(255).round_().sub_(128)
    blocks = levels.reshape(-1, rows, 8, columns, 8).transpose(2, 3).reshape(-1, 64)
    coefficients = (blocks @ (cosines / steps[:, None]).T).round_()
    blocks = (coefficients @ (steps[:, None] * cosines)).reshape(-1, rows, columns, 8, 8)
    levels = blocks.transpose(2, 3).reshape(padded.shape)
    return levels[..., :height, :width].round_().add_(128).div_(255)


def contrast(images: Tensor, severity: int, draws: ImageRandom) -> Tensor:
    """Increase or reduce contrast, as drawn for each image, about its mean."""
    factor = (CONTRAST[severity - 1] ** draws.signs()).to(images.device)[:, None, None, None]
    return (images * factor).add_(images.mean((1, 2, 3), keepdim=True) * (1 - factor))


def exposure(images: Tensor, severity: int, draws: ImageRandom) -> Tensor:
    """Brighten or darken, as drawn for each image."""
    return images + (EXPOSURE[severity - 1] * draws.signs()).to(images.device)[:, None, None, None]


def gamma(images: Tensor, severity: int, draws: ImageRandom) -> Tensor:
    """Raise to an exponent above or below 1, as drawn for each image."""
    exponent = (GAMMA[severity - 1] ** draws.signs()).to(images.device)[:, None, None, None]
    return images.log().mul_(exponent).exp_()  # three times as fast as a power


def rotation(images: Tensor, severity: int, draws: ImageRandom) -> Tensor:
    """Rotate about the centre, as drawn for each image, with black outside."""
    angle = torch.deg2rad(ROTATION[severity - 1] * draws.signs())
    height, width = images.shape[-2:]
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([cos, -sin * height / width, none, sin * width / height, cos, none], 1).unflatten(1, (2, 3))
    grid = F.affine_grid(matrix.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def convolve(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve images (B, 1, H, W) with kernels (1 or B, 1, K, K), K odd, by Fourier transform; edges are repeated."""
    reach = kernels.shape[-1] // 2
    height, width = images.shape[-2:]
    # Sizes that transform fast.
    rows, columns = (next_fast_len(n + 2 * reach, real=True) for n in (height, width))
    edges = (reach, columns - width - reach, reach, rows - height - reach)
    padded = F.pad(images, edges, mode="replicate")
    spectrum = torch.fft.rfft2(padded).mul_(torch.fft.rfft2(kernels, s=(rows, columns)))
    # irfft2 takes three times as long. The first 2 * reach rows and columns wrap around.
    whole = torch.fft.irfft(torch.fft.ifft(spectrum, dim=-2), n=columns, dim=-1)
    return whole[..., 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]


@lru_cache(maxsize=32)
def disc_kernel(radius: float) -> Tensor:
    """Return a disc of a radius in pixels: (1, 1, K, K), sum 1."""
    side = torch.linspace(-radius, radius, 8 * int(radius) + 17)
    down, across = (grid.flatten() for grid in torch.meshgrid(side, side, indexing="ij"))
    inside = down**2 + across**2 <= radius**2 * (1 + 1e-6)
    return _spread(down[None, inside], across[None, inside], int(radius) + 1)


def line_kernels(length: float, angles: Tensor) -> Tensor:
    """Return lines of a length in pixels in directions (B,) in radians: (B, 1, K, K), sum 1."""
    along = torch.linspace(-length / 2, length / 2, 4 * int(length) + 9)[None]
    return _spread(angles.sin()[:, None] * along, angles.cos()[:, None] * along, int(length / 2) + 1)


def _spread(down: Tensor, across: Tensor, reach: int) -> Tensor:
    """Spread points (B, N), in pixels from the centre, over four pixels each: (B, 1, K, K), sum 1."""
    pixels = torch.arange(-reach, reach + 1).float()
    shares = [(1 - (pixels - points[..., None]).abs()).clamp(min=0) for points in (down, across)]
    return torch.einsum("bny,bnx->byx", *shares)[:, None] / down.shape[1]


# ITU-T T.81, annex K: the luminance table that encoders scale by quality.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip


@lru_cache(maxsize=32)
def quantisation_steps(quality: float, finer: float = 1.0) -> Tensor:
    """Return the steps (8, 8) of the cosine transform at a quality, as in libjpeg; `finer` below 1 makes them finer."""
    percent = 5000 / quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(_LUMINANCE) * percent * finer + 50) / 100).floor().clamp(1, 255)


@lru_cache(maxsize=1)
def _cosines() -> Tensor:
    """Return the orthonormal cosine transform of 8 x 8 pixels, row by row: (64, 64)."""
    index = torch.arange(8, dtype=torch.float64)
    one = torch.cos((2 * index[None] + 1) * index[:, None] * torch.pi / 16) / 2
    one[0] /= 2**0.5
    return torch.kron(one, one).float()
