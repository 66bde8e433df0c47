"""Right for the right reasons: answers must not hang on what is outside the lungs.

Two ways: a penalty on the input's gradient out there (Ross et al. 2017), and images with emptied lungs, to which an
even answer is asked (Hendricks et al. 2018, "Women also snowboard", whose appearance confusion loss this is).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trustcxr.data.lungs import has_lungs

EMPTIED_SHARE = 0.25  # images with emptied lungs beside a batch, as a share of it
Passes = list[tuple[Tensor, Tensor]]  # the images of each pass, with a gradient, and what the model answered


@contextmanager
def recorded(model: nn.Module, *, wanted: bool = True) -> Iterator[Passes]:
    """Every pass of the model inside, so that a gradient in the images costs no pass of its own; none if not wanted."""
    passes: Passes = []
    if not wanted:
        yield passes
        return

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not torch.is_grad_enabled():
            return None
        (images,) = inputs
        return (with_gradient(images),)

    def after(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if torch.is_grad_enabled():
            passes.append((inputs[0], output))

    hooks = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def with_gradient(images: Tensor) -> Tensor:
    """The images, so that a gradient in them can be asked for."""
    # A view, so that a hook on the images themselves (of free training) does not take our gradient for its own.
    return images.view_as(images) if images.requires_grad else images.detach().requires_grad_(True)


def penalty(passes: Passes, logits: Tensor, outside: Tensor) -> Tensor:
    """Mean over images of the sum over pixels p outside of (d sum_c log p_c / d x_p) ** 2 (Ross et al. 2017).

    `logits` (B, C): the answer of one of the passes. `outside` (B, 1, H, W) in [0, 1]; 0 for images that do not count.
    A scalar that has a gradient in the weights: one backward more, through the one that is taken here.
    """
    images = next(images for images, answer in passes if answer is logits)
    summed = logits.float().log_softmax(1).sum()
    (slope,) = torch.autograd.grad(summed, images, create_graph=True)
    return (outside * slope).square().sum() / len(images)


class WithEmptiedLungs(nn.Module):
    """A learner whose passes in training take images with emptied lungs along, and answer for them apart.

    All in one pass, so that BatchNorm's statistics are of both and an attack finds the model that was trained.
    `forward`: images (B, 1, H, W) -> their logits (B, C); those of the emptied ones are in `answer` (E, C).
    """

    def __init__(self, learner: nn.Module, emptied: Tensor) -> None:
        super().__init__()
        self.learner, self.emptied, self.answer = learner, emptied, emptied.new_zeros(0)
        self.training = learner.training

    @property
    def net(self) -> nn.Module:
        """The learner's network, as a Classifier has it."""
        net: nn.Module = getattr(self.learner, "net", self.learner)
        return net

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of the images (B, 1, H, W)."""
        if not self.training:
            return self.learner(images)
        both = torch.cat([images, self.emptied]).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.learner(both)
        self.answer = logits[len(images) :]
        return logits[: len(images)]

    def confusion_loss(self) -> Tensor:
        """How far the answers to emptied lungs are from even: KL(even || answer), a mean of images; a scalar."""
        log_shares = self.answer.float().log_softmax(1)
        return -log_shares.mean() - math.log(log_shares.shape[1])


def emptied(images: Tensor, lungs: Tensor) -> Tensor:
    """Some of the images (B, 1, H, W) that have lungs, with these filled with one grey: (E, 1, H, W).

    E is a share of B, or as many as have lungs. The grey is drawn evenly from [0, 1] for each image, from torch's
    random state on the processor.
    """
    some = has_lungs(lungs).flatten().nonzero()[:, 0][: max(1, round(EMPTIED_SHARE * len(images)))]
    grey = torch.rand(len(some), 1, 1, 1).to(images)
    return images[some] * (1 - lungs[some]) + grey * lungs[some]
