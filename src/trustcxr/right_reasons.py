"""Right for the right reasons (Ross et al. 2017): answers must not hang on pixels outside the lungs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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
        # A view, so that a hook on the images themselves (of free training) does not take our gradient for its own.
        return (images.view_as(images) if images.requires_grad else images.detach().requires_grad_(True),)

    def after(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if torch.is_grad_enabled():
            passes.append((inputs[0], output))

    hooks = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def penalty(passes: Passes, logits: Tensor, outside: Tensor) -> Tensor:
    """The squared gradient of the summed log-probabilities in the pixels outside, summed over pixels, a mean of images.

    `logits` (B, C): the answer of one of the passes. `outside` (B, 1, H, W) in [0, 1]; 0 for images that do not count.
    A scalar that has a gradient in the weights: one backward more, through the one that is taken here.
    """
    images = next(images for images, answer in passes if answer is logits)
    summed = logits.float().log_softmax(1).sum()
    (slope,) = torch.autograd.grad(summed, images, create_graph=True)
    return (outside * slope).square().sum() / len(images)
