"""Guidance: what explains an answer is held to the lesion masks while a network learns (Rao et al., ICCV 2023).

What explains it is one of ON: the evidence of an evidence network, which is the answer's own arithmetic; Grad-CAM of a
layer of any network; or its pixels times the gradient in them. Masks are needed in training alone. A class whose images
have none (Non-COVID here) is unguided: nothing tells its explanation where to lie, but of evidence that it must be in
the lungs. Maps are of the label's class.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.data.lung_masks import has_lungs
from trustcxr.defences.counterfactual_loss import LesionBatch
from trustcxr.models.evidence_networks import EvidenceNet
from trustcxr.models.feature_maps import arrangement, find_layer

DEPTH = 1.0  # weight in training of how far below 0 a map lies at the lesion that is not above it anywhere


class Pass(NamedTuple):
    """What a map is made of: the head's output, a layer's features or the images; the logits (B, C); and by whom."""

    read: Tensor
    logits: Tensor
    on: str
    model: nn.Module


@contextmanager
def followed(model: nn.Module, on: str = "evidence", *, layer: int = -1, wanted: bool = True) -> Iterator[list[Pass]]:
    """The passes of training inside, one after the other; none if not wanted. `layer`: of a CAM, as `grad_cam` has it.

    Raises UserError for a layer that the model has not.
    """
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
        # A view, so that a hook on the images themselves (of free training) is left alone.
        read[:] = [inputs[0].view_as(inputs[0]) if inputs[0].requires_grad else inputs[0].detach().requires_grad_(True)]
        return (read[0],)

    def features(module: nn.Module, _: object, output: Tensor) -> None:
        if learns(module):
            read[:] = [output]

    def answer(module: nn.Module, _: object, output: Tensor) -> None:
        if learns(module):
            passes.append(Pass(read[0], output, on, module))

    hooks = [model.register_forward_hook(answer)]
    if on == "gradients":
        hooks.append(model.register_forward_pre_hook(images))
    else:
        place = find_layer(model, layer if on == "cam" else "head")
        hooks.append(place.register_forward_hook(features))
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def guidance(forward_pass: Pass, batch: LesionBatch, *, loss: str = "energy", depth: float = 0.0) -> Tensor:
    """How far what explains the answers of a pass is from the lesions; a scalar, with a gradient in the weights.

    Rows of the pass beyond the batch are left out. The positive part of each map is held to the mask, by "energy": one
    less its share inside, or by "l1": the mean distance of the map, its peak at 1, from the mask (both Rao et al.
    2023). Of evidence, on images with lungs, the places that count are held to the lungs too, by cross-entropy.
    `depth` is the weight of how far below 0 maps without a positive part lie at the lesion: of these the two losses of
    Rao et al. have no gradient, and on real images guided CAMs went out one by one and none came back.
    It is a mean over the images with a lesion (with lungs); of a part of a batch, its part of the whole batch's mean.
    """
    ill, breathing = (None, None) if batch.shares is None else batch.shares
    if forward_pass.on == "evidence":
        evidence, gates = EvidenceNet.weighed(forward_pass.read[: len(batch.labels)].float())
        maps = evidence[torch.arange(len(evidence), device=evidence.device), batch.labels][:, None]
        lung = F.adaptive_avg_pool2d(batch.lung, (maps.shape[-2], maps.shape[-1]))
        where = F.binary_cross_entropy_with_logits(gates, lung, reduction="none").mean((1, 2, 3))
        placed = _mean_over(where, has_lungs(batch.lung).flatten(), breathing)
    else:
        maps, placed = explained(forward_pass, batch), forward_pass.logits.new_zeros(())
    inside = F.adaptive_avg_pool2d(batch.lesion, (maps.shape[-2], maps.shape[-1]))
    apart = {"energy": _energy, "l1": _l1}[loss](maps, inside)
    if depth:
        apart = apart + depth * _depth(maps, inside)
    return _mean_over(apart, batch.ill(), ill) + placed


def explained(forward_pass: Pass, batch: LesionBatch) -> Tensor:
    """The map of each image's label (B, 1, h, w), of any sign: Grad-CAM of the features, or pixels times gradient.

    One backward pass, whose graph is kept, so that what is asked of the map reaches the weights.
    """
    score = forward_pass.logits[torch.arange(len(batch.labels), device=batch.labels.device), batch.labels].float().sum()
    (slope,) = torch.autograd.grad(score, forward_pass.read, create_graph=True)
    read, slope = forward_pass.read[: len(batch.labels)].float(), slope[: len(batch.labels)].float()
    if forward_pass.on == "gradients":
        return read * slope
    upright = arrangement(read, batch.pixels.shape[-2], batch.pixels.shape[-1], forward_pass.model)
    weights = upright(slope).mean((2, 3), keepdim=True)
    return (weights * upright(read)).sum(1, keepdim=True)


def _energy(maps: Tensor, inside: Tensor) -> Tensor:
    maps = maps.clamp(min=0)
    return 1 - (maps * inside).sum((1, 2, 3)) / maps.sum((1, 2, 3)).clamp(min=1e-6)


def _l1(maps: Tensor, inside: Tensor) -> Tensor:
    maps = maps.clamp(min=0)
    peak = maps.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
    return (maps / peak - inside).abs().mean((1, 2, 3))


def _depth(maps: Tensor, inside: Tensor) -> Tensor:
    """How far below 0 a map without a positive part lies at the lesion, in mean sizes of it; 0 for every other map."""
    depth = -(maps * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1e-6)
    depth = depth / maps.detach().abs().mean((1, 2, 3)).clamp(min=1e-6)
    return torch.where((maps > 0).flatten(1).any(1), torch.zeros_like(depth), depth)


def _mean_over(values: Tensor, chosen: Tensor, share: Tensor | None) -> Tensor:
    """Mean of the chosen values; with the share of the whole batch that is chosen, over as many of these as that is."""
    return (values * chosen).sum() / (chosen.sum().clamp(min=1) if share is None else share * len(values))
