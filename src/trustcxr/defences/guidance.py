"""Guide explanations to the lesion masks during training (Rao et al., ICCV 2023).

The explanation is one of ON: the evidence of an evidence network, Grad-CAM of a layer, or pixels times gradient, each
of the label's class. Only training needs masks. A class without masks (Non-COVID here) is unguided, except that its
evidence must lie in the lungs.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustcxr.data.lung_masks import has_lungs
from trustcxr.defences.counterfactual_loss import LesionBatch
from trustcxr.models.evidence_networks import EvidenceNet
from trustcxr.models.feature_maps import arrangement, find_layer

DEPTH = 1.0  # default weight of `_depth` in training


class Pass(NamedTuple):
    """One forward pass: `source` of the map (head output, features or images), logits (B, C), kind of map, model."""

    source: Tensor
    logits: Tensor
    on: str
    model: nn.Module


@contextmanager
def followed(model: nn.Module, on: str = "evidence", *, layer: int = -1, wanted: bool = True) -> Iterator[list[Pass]]:
    """Record the training passes inside the context; none if not `wanted`. `layer`: of a CAM, as in `grad_cam`.

    Raises UserError for a layer that the model does not have.
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
        # A view, so that free training's hook on the images is unaffected.
        read[:] = [inputs[0].view_as(inputs[0]) if inputs[0].requires_grad else inputs[0].detach().requires_grad_(True)]
        return (read[0],)

    def features(module: nn.Module, _: object, output: Tensor) -> None:
        if learns(module):
            read[:] = [output]

    def answer(module: nn.Module, _: object, output: Tensor) -> None:
        if learns(module):
            passes.append(Pass(read[0], output, on, module))

    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_hook(answer))
        if on == "gradients":
            hooks.enter_context(model.register_forward_pre_hook(images))
        else:
            explained_layer = find_layer(model, layer if on == "cam" else "head")
            hooks.enter_context(explained_layer.register_forward_hook(features))
        yield passes


def guidance(forward_pass: Pass, batch: LesionBatch, *, loss: str = "energy", depth: float = 0.0) -> Tensor:
    """Return the distance of a pass's explanations from the lesions: a scalar with a gradient in the weights.

    Rows of the pass beyond the batch are ignored. `loss` compares the positive part of each map with the mask: "energy"
    is 1 minus its share inside, "l1" the mean distance of the map, scaled to peak 1 (both Rao et al. 2023). The gates
    of evidence are also held to the lungs, by cross-entropy. `depth` weighs how far below 0 a map without a positive
    part lies at the lesion, where both losses have no gradient and maps would vanish for good. It is a mean over the
    images with a lesion (with lungs); for a part of a batch, its part of the whole batch's mean.
    """
    ill, breathing = (None, None) if batch.shares is None else batch.shares
    if forward_pass.on == "evidence":
        evidence, gates = EvidenceNet.weighed(forward_pass.source[: len(batch.labels)].float())
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
    """Return the map of each image's label (B, 1, h, w), of any sign: Grad-CAM, or pixels times gradient.

    It keeps the graph of its backward pass, so that a loss on the map reaches the weights.
    """
    score = forward_pass.logits[torch.arange(len(batch.labels), device=batch.labels.device), batch.labels].float().sum()
    (slope,) = torch.autograd.grad(score, forward_pass.source, create_graph=True)
    read, slope = forward_pass.source[: len(batch.labels)].float(), slope[: len(batch.labels)].float()
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
    """Return how far below 0 a map without a positive part lies at the lesion, in its mean sizes; 0 for other maps."""
    depth = -(maps * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1e-6)
    depth = depth / maps.detach().abs().mean((1, 2, 3)).clamp(min=1e-6)
    return torch.where((maps > 0).flatten(1).any(1), torch.zeros_like(depth), depth)


def _mean_over(values: Tensor, chosen: Tensor, share: Tensor | None) -> Tensor:
    """Return the mean of the chosen values; with `share`, the part of the whole batch's mean."""
    return (values * chosen).sum() / (chosen.sum().clamp(min=1) if share is None else share * len(values))
