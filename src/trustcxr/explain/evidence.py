"""Make the maps of evidence networks, whose logits are the sums of their maps."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from trustcxr.errors import UserError
from trustcxr.explain.base import Target, check_images, target_classes, to_saliency
from trustcxr.models import evidence_networks
from trustcxr.models.preserve_state import preserve_state


def evidence_map(model: nn.Module, x: Tensor, target: Target = None) -> Tensor:
    """Return the evidence for the target as saliency (B, H, W), float32, in [0, 1]; negative evidence is 0.

    Raises UserError for other networks. All else as `grad_cam`.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("evidence-33", classes=3).eval()
    >>> tx.explain.method("evidence")(model, torch.rand(2, 1, 64, 64)).shape
    torch.Size([2, 64, 64])
    """
    return to_saliency(signed_evidence(model, x, target), x.shape[-2], x.shape[-1])


def features_map(model: nn.Module, x: Tensor, target: Target = None) -> Tensor:
    """Return the baseline for `evidence_map`: the positive features before the head, summed over channels.

    `target` is checked, and changes nothing. All else as `evidence_map`.

    >>> import torch, trustcxr as tx
    >>> model = tx.models.build("evidence-33", classes=3).eval()
    >>> tx.explain.method("evidence-features")(model, torch.rand(2, 1, 64, 64)).shape
    torch.Size([2, 64, 64])
    """
    check_images(x)
    check_evidence(model)
    net = getattr(model, "net", model)
    heads = [one.head for one in getattr(net, "nets", [net])]
    with ExitStack() as hooked:
        seen = [hooked.enter_context(_record_inputs(head)) for head in heads]
        with preserve_state(model, autocast_cache=False), torch.no_grad():
            target_classes(target, model(x))
    features = torch.cat([inputs[-1] for inputs in seen], 1).float()
    return to_saliency(features.clamp(min=0).sum(1), x.shape[-2], x.shape[-1])


@contextmanager
def _record_inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Record the layer's inputs in this thread, pass by pass."""
    seen: list[Tensor] = []
    caller = threading.get_ident()

    def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == caller:  # another thread may use the same model
            seen.append(inputs[0])

    with layer.register_forward_pre_hook(note):
        yield seen


def signed_evidence(model: nn.Module, x: Tensor, target: Target = None) -> Tensor:
    """Return the signed evidence (B, h, w), float32, which sums to the target's logit."""
    check_images(x)
    check_evidence(model)
    layer: nn.Module = model.cam_layer  # type: ignore[assignment]  # an identity: what enters it leaves it
    with _record_inputs(layer) as seen, preserve_state(model, autocast_cache=False), torch.no_grad():
        classes = target_classes(target, model(x))
    evidence = evidence_networks.evidence_per_class(model, seen[-1]).float()
    return evidence[torch.arange(len(evidence), device=x.device), classes]


def check_evidence(model: nn.Module) -> None:
    """Raise UserError unless the model is an evidence network."""
    if not evidence_networks.reads_evidence(model) or not hasattr(model, "cam_layer"):
        raise UserError("saliency method evidence is of evidence networks (evidence-33 and its like); choose a CAM")
