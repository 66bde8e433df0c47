"""Define masked models with wrong gradients: reversed, of a decoy, or behind a last layer in another form."""

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.masked_models.base import Images, MaskedModel, SmallNetwork


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class _ReplaceForward(torch.autograd.Function):
    """The second tensor, with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Shuffle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        order = torch.randperm(gradient[0].numel(), generator=torch.Generator().manual_seed(0))
        return gradient.flatten(1)[:, order].reshape(gradient.shape)


def reverse(values: Tensor) -> Tensor:
    """Return the values, with the opposite gradient."""
    return _Reverse.apply(values)


def replace_forward(source: Tensor, value: Tensor) -> Tensor:
    """Return `value` with the gradient of `source`."""
    return _ReplaceForward.apply(source, value)


class OtherHead(MaskedModel):
    """Writes its last layer in another form, and reverses the gradient of what goes into it."""

    net: SmallNetwork

    def features(self, images: Tensor) -> Tensor:
        """Return the features (B, F), with a gradient that misleads."""
        return reverse(self.net.body((images - 0.5) / 0.25))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images), self.net.head.weight) + self.net.head.bias

    def head(self, features: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(features[:, :, None, None], weight[:, :, None, None]).flatten(1)


class ConvolutionHead(OtherHead):
    """Writes its last layer as a 1 x 1 convolution, and reverses the gradient of what goes into it."""


class DecoyHead(OtherHead):
    """Writes its last layer as a 1 x 1 convolution; the gradient is that of an untrained network."""

    def __init__(self, net: nn.Module, known: Images | None = None) -> None:
        super().__init__(net, known)
        self.decoy = deepcopy(self.net.body)
        with torch.no_grad():
            for number, weight in enumerate(self.decoy.parameters()):
                if weight.ndim > 1:
                    weight.normal_(std=0.2, generator=torch.Generator().manual_seed(number))

    def features(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            true = self.net.body((images - 0.5) / 0.25)
        return replace_forward(self.decoy((images - 0.5) / 0.25), true)


class EinsumHead(OtherHead):
    """Writes its last layer as an einsum, and reverses the gradient of what goes into it."""

    def head(self, features: Tensor, weight: Tensor) -> Tensor:
        return torch.einsum("bf,cf->bc", features, weight)


class SumHead(OtherHead):
    """Writes its last layer as a sum of products, and reverses the gradient of what goes into it."""

    def head(self, features: Tensor, weight: Tensor) -> Tensor:
        return (features[:, None] * weight).sum(-1)


class LoopHead(OtherHead):
    """Writes its last layer as a loop over the classes, and reverses the gradient of what goes into it."""

    def head(self, features: Tensor, weight: Tensor) -> Tensor:
        return torch.stack([(features * row).sum(1) for row in weight], 1)


class _HiddenHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.from_numpy(features.numpy() @ weight.numpy().T + bias.numpy())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return -gradient @ ctx.saved_tensors[0], None, None


class HiddenHead(MaskedModel):
    """Computes its last layer outside torch, with the opposite gradient."""

    net: SmallNetwork

    def forward(self, images: Tensor) -> Tensor:
        features = self.net.body((images - 0.5) / 0.25)
        return _HiddenHead.apply(features, self.net.head.weight.detach(), self.net.head.bias.detach())


class ReversedInput(MaskedModel):
    """Reverses the gradient at the image."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(reverse(images))


class ShuffledInput(MaskedModel):
    """Shuffles the pixels of the gradient."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(_Shuffle.apply(images))


class Hook(MaskedModel):
    """Reverses the gradient of the features by a hook on the tensor."""

    net: SmallNetwork

    def forward(self, images: Tensor) -> Tensor:
        features = self.net.body((images - 0.5) / 0.25)
        if features.requires_grad:
            features.register_hook(torch.neg)
        return self.net.head(features)


class NoisyGradient(MaskedModel):
    """Adds noise to the gradient, many times its size, by a hook on the image."""

    def forward(self, images: Tensor) -> Tensor:
        copied = images.clone()
        if copied.requires_grad:
            copied.register_hook(lambda gradient: gradient + 30 * gradient.std() * torch.randn_like(gradient))
        return self.net(copied)


class Smallest(MaskedModel):
    """Adds the remainder of a division to its features, so that they have no gradient."""

    net: SmallNetwork

    def forward(self, images: Tensor) -> Tensor:
        features = self.net.body((images - 0.5) / 0.25)
        return self.net.head(features - features.remainder(1 / 16))


class Winners(MaskedModel):
    """Keeps the largest tenth of its features (k winners take all), so that its gradient jumps."""

    net: SmallNetwork

    def forward(self, images: Tensor) -> Tensor:
        features = self.net.body((images - 0.5) / 0.25)
        least = features.topk(features.shape[1] // 10, dim=1).values[:, -1:]
        return self.net.head(features * (features >= least) * 4)


class Temperature(MaskedModel):
    """Multiplies its logits by up to a million, by a number that depends on the image."""

    def forward(self, images: Tensor) -> Tensor:
        factor = 10 ** (6 * (images.detach().flatten(1).sum(1) * 7).sin().clamp(min=0))
        return self.net(images) * factor[:, None]


MODELS: dict[str, type[MaskedModel]] = {
    "convolution head": ConvolutionHead,
    "convolution head of a decoy": DecoyHead,
    "einsum head": EinsumHead,
    "sum head": SumHead,
    "loop head": LoopHead,
    "hidden head": HiddenHead,
    "reversed gradient": ReversedInput,
    "shuffled gradient": ShuffledInput,
    "hook": Hook,
    "noisy gradient": NoisyGradient,
    "remainder": Smallest,
    "k winners take all": Winners,
    "temperature": Temperature,
}
