"""Several networks that answer together: their logits are averaged."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trustcxr.errors import UserError


class Ensemble(nn.Module):
    """Networks that see the same image: their logits are averaged.

    An average of networks errs less than each (Hansen and Salamon 1990), and an attack must turn most of them at once.
    `means` and `stds` are those of the pixels that each was made for; images come as the first one wants them.
    """

    def __init__(self, nets: Sequence[nn.Module], means: Sequence[float], stds: Sequence[float]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.means, self.stds = tuple(means), tuple(stds)

    def seen_by(self, index: int, images: Tensor) -> Tensor:
        """Images (B, 1, H, W), normalised for the first network, as the one at `place` was made for."""
        if (self.means[index], self.stds[index]) == (self.means[0], self.stds[0]):
            return images
        return (images * self.stds[0] + self.means[0] - self.means[index]) / self.stds[index]

    def forward_features(self, images: Tensor) -> Tensor:
        """The networks' last feature maps (B, K, h, w) one after another: (B, sum of K, h, w)."""
        maps = [net.forward_features(self.seen_by(i, images)) for i, net in enumerate(self.nets)]  # type: ignore[operator]
        for net, features in zip(self.nets, maps, strict=True):
            if features.ndim != 4 or features.shape[1] != net.num_features or features.shape[2:] != maps[0].shape[2:]:
                raise UserError(
                    "the members of an ensemble need last feature maps (B, K, h, w) of the same h and w, not "
                    + " and ".join(str(tuple(m.shape)) for m in maps)
                )
        return torch.cat(maps, 1)

    def forward_head(self, features: Tensor) -> Tensor:
        """What `forward_features` gives -> logits (B, C)."""
        parts = features.split([net.num_features for net in self.nets], 1)
        return torch.stack([net.forward_head(p) for net, p in zip(self.nets, parts, strict=True)]).mean(0)  # type: ignore[operator]
