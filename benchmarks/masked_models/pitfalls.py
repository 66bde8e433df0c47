"""Define masked models of the known pitfalls: scaled and saturated logits, quantised images, JPEG, random answers."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.masked_models.base import MaskedModel


class LogitsTimesThousand(MaskedModel):
    """Multiplies its logits by a thousand."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) * 1000


class Tanh(MaskedModel):
    """Answers by the hyperbolic tangent of its logits, which is 1 or -1 to rounding."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(1000 * self.net(images))


class ThreeBits(MaskedModel):
    """Rounds the image to eight grey levels."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(torch.round(images * 7) / 7)


class ThreeBitsOfIntegers(MaskedModel):
    """Rounds the image to eight grey levels, as whole numbers."""

    def forward(self, images: Tensor) -> Tensor:
        levels = (images * 7 + 0.5).to(torch.uint8)
        return self.net(levels.float() / 7)


class Jpeg(MaskedModel):
    """Compresses the image by JPEG first."""

    def forward(self, images: Tensor) -> Tensor:
        radiographs = [self.once(radiograph) for radiograph in images.detach().cpu().mul(255).byte().numpy()[:, 0]]
        return self.net(torch.from_numpy(np.stack(radiographs))[:, None].float() / 255)

    @staticmethod
    def once(image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=75)
        return np.array(Image.open(file))


class Noise(MaskedModel):
    """Adds random noise to the image."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images + 0.05 * torch.randn_like(images)).clamp(0, 1))


class EveryNoise(MaskedModel):
    """The mean over many fixed draws of Noise."""

    draws = 64

    def forward(self, images: Tensor) -> Tensor:
        one = images.shape[1:]
        draws = (0.05 * torch.randn(one, generator=torch.Generator().manual_seed(seed)) for seed in range(self.draws))
        shares = [self.net((images + draw).clamp(0, 1)).softmax(1) for draw in draws]
        return torch.stack(shares).mean(0).log()


class RandomResizing(MaskedModel):
    """Shrinks the image by up to a fifth and offsets it at random on black (Xie et al. 2018)."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.placed(images, *self.drawn(images.shape[-1])))

    @staticmethod
    def drawn(side: int, by: torch.Generator | None = None) -> tuple[int, int, int]:
        """A smaller side, and how far from the left and the top it is placed."""
        small = int(torch.randint(side - side // 5, side + 1, (), generator=by))
        left, top = (int(torch.randint(0, side - small + 1, (), generator=by)) for _ in range(2))
        return small, left, top

    @staticmethod
    def placed(images: Tensor, small: int, left: int, top: int) -> Tensor:
        rest = images.shape[-1] - small
        smaller = F.interpolate(images, (small, small), mode="bilinear", antialias=True)
        return F.pad(smaller, (left, rest - left, top, rest - top))


class EveryResizing(RandomResizing):
    """The mean over all draws of RandomResizing."""

    def forward(self, images: Tensor) -> Tensor:
        side, total = images.shape[-1], torch.zeros(())
        sizes = range(side - side // 5, side + 1)
        for small in sizes:
            offsets = [(left, top) for left in range(side - small + 1) for top in range(side - small + 1)]
            placed = torch.cat([self.placed(images, small, *offset) for offset in offsets])
            total = total + self.net(placed).unflatten(0, (len(offsets), -1)).mean(0)
        return total / len(sizes)


class FewerNoises(EveryNoise):
    """EveryNoise over fewer draws, for large networks."""

    draws = 16


class SomeResizings(RandomResizing):
    """The mean over some fixed draws of RandomResizing."""

    def forward(self, images: Tensor) -> Tensor:
        shares = []
        for seed in range(FewerNoises.draws):
            draw = self.drawn(images.shape[-1], torch.Generator().manual_seed(seed))
            shares.append(self.net(self.placed(images, *draw)).softmax(1))
        return torch.stack(shares).mean(0).log()


MODELS: dict[str, type[MaskedModel]] = {
    "logits x 1000": LogitsTimesThousand,
    "tanh(1000 logits)": Tanh,
    "3 bits": ThreeBits,
    "3 bits of integers": ThreeBitsOfIntegers,
    "jpeg": Jpeg,
    "noise": Noise,
    "random resizing": RandomResizing,
}
