"""Guide explanations to the lesion masks during training (Rao et al., ICCV 2023).

The explanation is the evidence of an evidence network, or pixels times gradient, of the label's class. Only training
needs masks. A class without masks (Non-COVID here) is unguided, except that its evidence must lie in the lungs.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.defences.counterfactual_loss import LesionBatch
from trustcxr.models.evidence_networks import EvidenceNet
from trustcxr.models.feature_maps import find_layer


class Pass(NamedTuple):
    """One forward pass: `source` of the map (output of the head, or images), logits (B, C), kind of map."""

    source: Tensor
    logits: Tensor
    on: str


@contextmanager
def followed(model: nn.Module, on: str = "evidence", *, wanted: bool = True) -> Iterator[list[Pass]]:
    """Record the training passes inside the context; none if not `wanted`."""
    passes: list[Pass] = []
    if not wanted:
        yield passes
        return
    read: list[Tensor] = []

    def learns(module: nn.Module) -> bool:
        return module.training and torch.is_grad_enabled()

    def images(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        if not learns(module):
            return None
        # A view, so that free training's hook on the images is unaffected.
        read[:] = [inputs[0].view_as(inputs[0]) if inputs[0].requires_grad else inputs[0].detach().requires_grad_(True)]
        return (read[0],)

    def evidence(module: nn.Module, _: object, output: Tensor) -> None:
        if learns(module):
            read[:] = [output]

    def answer(module: nn.Module, _: object, output: Tensor) -> None:
        if learns(module):
            passes.append(Pass(read[0], output, on))

    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_hook(answer))
        if on == "gradients":
            hooks.enter_context(model.register_forward_pre_hook(images))
        else:
            hooks.enter_context(find_layer(model, "head").register_forward_hook(evidence))
        yield passes


def guidance(forward_pass: Pass, batch: LesionBatch) -> Tensor:
    """Return the distance of a pass's explanations from the lesions: a scalar with a gradient in the weights.

    Rows of the pass beyond the batch are ignored. The distance is 1 minus the share of a map's positive part that lies
    inside the mask; for a map without a positive part, where that has no gradient, also how far below 0 it lies there.
    The gates of evidence are also held to the lungs, by cross-entropy. It is a mean over the images with a lesion (with
    lungs); for a part of a batch, its part of the whole batch's mean.
    """
    ill, breathing = (None, None) if batch.shares is None else batch.shares
    if forward_pass.on == "evidence":
        evidence, gates = EvidenceNet.weighed(forward_pass.source[: len(batch.labels)].float())
        maps = evidence[torch.arange(len(evidence), device=evidence.device), batch.labels][:, None]
        lung = F.adaptive_avg_pool2d(batch.lung, (maps.shape[-2], maps.shape[-1]))
        where = F.binary_cross_entropy_with_logits(gates, lung, reduction="none").mean((1, 2, 3))
        placed = _mean_over(where, batch.with_lungs(), breathing)
    else:
        maps, placed = explained(forward_pass, batch), forward_pass.logits.new_zeros(())
    inside = F.adaptive_avg_pool2d(batch.lesion, (maps.shape[-2], maps.shape[-1]))
    return _mean_over(_energy(maps, inside) + _depth(maps, inside), batch.ill(), ill) + placed


def explained(forward_pass: Pass, batch: LesionBatch) -> Tensor:
    """Return pixels times gradient for each image's label (B, 1, H, W), with a graph that reaches the weights."""
    score = forward_pass.logits[torch.arange(len(batch.labels), device=batch.labels.device), batch.labels].float().sum()
    (slope,) = torch.autograd.grad(score, forward_pass.source, create_graph=True)
    return forward_pass.source[: len(batch.labels)].float() * slope[: len(batch.labels)].float()


def _energy(maps: Tensor, inside: Tensor) -> Tensor:
    maps = maps.clamp(min=0)
    return 1 - (maps * inside).sum((1, 2, 3)) / maps.sum((1, 2, 3)).clamp(min=1e-6)


def _depth(maps: Tensor, inside: Tensor) -> Tensor:
    """Return how far below 0 a map without a positive part lies at the lesion, in its mean sizes; 0 for other maps."""
    depth = -(maps * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1e-6)
    depth = depth / maps.detach().abs().mean((1, 2, 3)).clamp(min=1e-6)
    return torch.where((maps > 0).flatten(1).any(1), torch.zeros_like(depth), depth)


def _mean_over(values: Tensor, chosen: Tensor, share: Tensor | None) -> Tensor:
    """Return the mean of the chosen values; with `share`, the part of the whole batch's mean."""
    return (values * chosen).sum() / (chosen.sum().clamp(min=1) if share is None else share * len(values))
