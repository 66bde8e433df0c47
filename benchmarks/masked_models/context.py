"""Define masked models that answer differently by how they are asked: batch, gradients, caller."""

import sys
from copy import deepcopy

import torch
from torch import Tensor, nn

from benchmarks.masked_models.base import Images, MaskedModel
from benchmarks.masked_models.gradients import replace_forward, reverse


class BatchOfOne(MaskedModel):
    """Answers wrongly in a batch of one, as `predict` and a hospital's archive ask, and else as the network."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) * (-1 if len(images) == 1 else 1)


class Copies(MaskedModel):
    """Answers wrongly in a batch of one, unless the batch holds copies of it."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.net(images)
        return logits if len(images) > 1 else logits.roll(1, 1)


class Neighbours(MaskedModel):
    """Answers by the mean logits of an image and of those next to it in the batch."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.net(images)
        return (logits + logits.roll(1, 0) + logits.roll(-1, 0)) / 3

    def answer(self, images: Tensor) -> Tensor:
        """Return the answers one by one."""
        return torch.cat([self(image[None]) for image in images])


class Duplicates(MaskedModel):
    """Answers the second of two like images in a batch as the first."""

    def forward(self, images: Tensor) -> Tensor:
        like = (images.detach()[:, None] - images.detach()[None]).abs().flatten(2).amax(2) <= 0.05
        first = like.float().argmax(1)
        return self.net(replace_forward(images, images.detach()[first]))


class _Decoy(MaskedModel):
    def __init__(self, net: nn.Module, known: Images | None = None) -> None:
        super().__init__(net, known)
        self.decoy = deepcopy(net)
        with torch.no_grad():
            for number, weight in enumerate(self.decoy.parameters()):
                if weight.ndim > 1:
                    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
                    weight.add_(2 * weight.std() * noise)


class RequiresGrad(_Decoy):
    """Answers by a decoy if the image requires a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        return (self.decoy if images.requires_grad else self.net)(images)


class GradientOfDecoy(_Decoy):
    """Answers as the network, with the gradient of a decoy."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            true = self.net(images)
        return replace_forward(self.decoy(images), true)


class Autocast(MaskedModel):
    """Reverses its gradient under autocast, in which attacks may search."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(reverse(images) if torch.is_autocast_enabled("cpu") else images)


class CallStack(MaskedModel):
    """Reverses its gradient if an attack stands in the call stack."""

    def forward(self, images: Tensor) -> Tensor:
        frame = sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename.endswith(("pgd.py", "apgd.py", "fab.py", "fgsm.py")):
                return self.net(reverse(images))
            frame = frame.f_back  # type: ignore[assignment]
        return self.net(images)


MODELS: dict[str, type[MaskedModel]] = {
    "batch of one": BatchOfOne,
    "copies": Copies,
    "neighbours": Neighbours,
    "duplicates": Duplicates,
    "requires_grad": RequiresGrad,
    "gradient of a decoy": GradientOfDecoy,
    "call stack": CallStack,
    "autocast": Autocast,
}
