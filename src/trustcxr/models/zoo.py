"""Find architectures by name: the 21 networks of the study, timm's, plain and evidence networks."""

from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import nn

from trustcxr.errors import UserError, unknown
from trustcxr.models import evidence_networks
from trustcxr.models.plain import PLAIN_MODELS
from trustcxr.registry import networks
from trustcxr.storage.atomic import parse_yaml

# Published name -> the timm architecture that carries it.
PAPER_MODELS: dict[str, str] = parse_yaml(Path(__file__).with_name("paper_models.yaml").read_text(encoding="utf-8"))


def architectures(name: str) -> list[str]:
    """Return the architectures of one name or of several with a + between: "ResNet18+vgg16" is an ensemble."""
    if not all(part.strip() for part in networks(name)):
        raise UserError(f"'{name}': the name of a network is missing beside a +")
    return [architecture(part) for part in networks(name)]


def architecture(name: str) -> str:
    """Return the architecture of a published, timm, plain or evidence network's name, in any letter case.

    Raises UserError, with the nearest names, for an unknown name.

    >>> import trustcxr as tx
    >>> tx.models.architecture("ResNet50")
    'resnet50'
    """
    by_lower = {published.lower(): arch for published, arch in PAPER_MODELS.items()}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    if name.lower() in PLAIN_MODELS or evidence_networks.is_evidence_network(name.lower()):
        return name.lower()
    if timm.is_model(name.lower()):
        try:
            timm.get_pretrained_cfg(name.lower(), allow_unregistered=True)
        except RuntimeError:  # what stands behind the dot are no weights of this architecture
            arch = name.lower().partition(".")[0]
            raise unknown("model", name, [arch, *timm.list_pretrained(f"{arch}.*")]) from None
        return name.lower()
    every = [
        *PAPER_MODELS,
        *PLAIN_MODELS,
        *timm.list_models(),
        *(f"evidence-{field}" for field in evidence_networks.KINDS),
    ]
    complaint = str(unknown("model", name, every)).split("valid: ")[0]
    ours = ", ".join([*PAPER_MODELS, *PLAIN_MODELS])
    raise UserError(f"{complaint}valid: {ours}, evidence-33 and its like, or any timm architecture")


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights.

    >>> import torch, trustcxr as tx
    >>> tx.models.count_parameters(torch.nn.Linear(4, 3))
    15
    """
    return sum(p.numel() for p in model.parameters())


class PaperModel(NamedTuple):
    """One of the 21: published name, timm architecture, parameters (one channel, three classes)."""

    model: str
    timm: str
    parameters: int


def paper_models() -> list[PaperModel]:
    """Return the 21, in the paper's order.

    >>> import trustcxr as tx
    >>> len(tx.models.paper_models())
    21
    """
    rows = []
    for name, arch in PAPER_MODELS.items():
        with torch.device("meta"):  # shapes alone, no weights
            net = timm.create_model(arch, num_classes=3, in_chans=1)
        rows.append(PaperModel(name, arch, count_parameters(net)))
    return rows
