"""What of saliency a model that somebody gave us does not allow: refused where a map needs it, else left out, and said.

A map that follows gradients needs a model that torch can follow, a CAM one whose last feature map torch can see.
Random weights, which a map must be above before it shows anything, need a network whose weights torch sees.
"""

from collections.abc import Sequence

import torch

from trustcxr.audit.formats import ExternalModel
from trustcxr.audit.formats.torch_files import ExportedNet
from trustcxr.audit.formats.wrapper import WrappedModel
from trustcxr.errors import UserError
from trustcxr.explain import randomisation
from trustcxr.explain.base import LeftOut
from trustcxr.explain.methods import COMBINE, parse
from trustcxr.models.feature_maps import before_mixing
from trustcxr.registry import SALIENCY, Method


def check_supported(given: ExternalModel, methods: Sequence[str]) -> WrappedModel:
    """The model to explain; UserError, before any work, where these methods cannot explain what was given."""
    name, model = given.name, given.model
    if model is None:
        raise UserError(
            f"{given.origin.path}: only scores of {name} were given, and a map is made by asking the model: give the "
            "model itself"
        )
    follow = [typed for typed in methods if SALIENCY[Method.parse(typed).base].gradients]
    if given.origin.gradients == "none" and follow:
        raise UserError(
            f"{name}: torch can follow no gradients in it, and {' and '.join(follow)} cannot do without; name methods "
            f"that can: {_offered(gradients=False)}"
        )
    cams = [typed for typed in methods if parse(typed)[0] in COMBINE and parse(typed)[1] in (None, -1, "cam_layer")]
    if cams and model.cam_call is None and before_mixing(model.net) is None:
        raise UserError(
            f"{name}: torch sees no last feature map in it, which {' and '.join(cams)} would read; name methods that "
            f"read none: {_offered(gradients=True)}"
        )
    return model


def _offered(*, gradients: bool) -> str:
    """The methods pixel by pixel, which work on any model, as options; those without gradients unless asked for."""
    pixels = [s for s in SALIENCY.values() if s.function.startswith("attribution:")]
    return " or ".join(f"--method {s.name}" for s in pixels if gradients or not s.gradients)


def left_out(given: ExternalModel, model: WrappedModel) -> LeftOut:
    """What cannot be measured of a model that `check` let through."""
    attacks = weights = cascade = ""
    if given.origin.gradients == "none":
        attacks = "stability under FGSM and PGD is not measured: torch can follow no gradients in the model"
    try:
        randomisation.random_network(model)
    except UserError as problem:
        weights = f"no map is held against random weights, so none is said to show what was learnt ({problem})"
    if not weights and any(isinstance(module, torch.jit.ScriptModule | ExportedNet) for module in model.modules()):
        cascade = (
            "maps are not followed as the network is made random part by part: its parts are not called one by one"
        )
    return LeftOut(attacks, weights, cascade)
