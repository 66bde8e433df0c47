"""Wrap an external network as a module from pixel space to logits, differentiable if the network is."""

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from trustcxr.attacks.adaptive import plain_name, tensors_in
from trustcxr.audit.formats.model_file import InputSpec, Kind, OutputSpec
from trustcxr.audit.formats.outputs import FixedBatch, unwrap_single
from trustcxr.errors import UserError

TINY = 1e-30  # the smallest probability whose logarithm is taken
_SOFTMAX = {"softmax", "_softmax"}
_SIGMOID = {"sigmoid", "expit"}
_LAYERS = {"linear", "addmm", "matmul", "mm", "conv2d", "convolution", "_convolution"}
_SUMS = {"mean", "sum", "add", "sub", "__add__", "__sub__", "stack", "cat", "__getitem__", "chunk"}
_FORMS = {"flatten", "reshape", "view", "squeeze", "float"}
# Functions that bound numbers, and those that a written-out sigmoid uses: a layer behind them makes no logits.
_BOUNDS = {"sigmoid", "softmax", "_softmax", "tanh", "hardtanh", "hardsigmoid", "clamp", "clip", "expit", "exp"}
_BOUNDS |= {"div", "true_divide", "__truediv__", "__rtruediv__", "__div__", "__rdiv__", "reciprocal"}
_CLOSE = 1e-4  # relative tolerance between a float32 answer and the softmax or sigmoid it came from


class WrappedModel(nn.Module):
    """`net` as a module from images (B, 1, H, W), float, in [0, 1], to logits (B, C).

    Resizing, range, RGB and normalisation happen inside, so gradients are in pixel space. Probabilities become logits:
    the input of their softmax or sigmoid if torch sees it, else their clamped logarithm. The last feature map passes
    through `cam_layer`, an identity, once `find_cam_layer` has found it (with a fixed batch size for the first batch).
    """

    def __init__(self, net: nn.Module, input_spec: InputSpec, output_spec: OutputSpec) -> None:
        super().__init__()
        self.net, self.input_spec, self.output_spec = net, input_spec, output_spec
        self.batch = net.size if isinstance(net, FixedBatch) else None  # the one batch size that it takes; None for any
        self.cam_layer = nn.Identity()
        self.cam_call: int | None = None  # number of the call that makes the last feature map
        self.decision: tuple[int, float] | None = None  # index and logit threshold of the only finding to answer
        scale, shift = _affine(input_spec)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.training = net.training  # of this module alone: the layers of the net keep theirs

    def prepare(self, images: Tensor) -> Tensor:
        """Convert pixel space (B, 1, H, W) in [0, 1] to the network's input (B, channels, size, size)."""
        images = resized(images, self.input_spec.size, self.input_spec.resize)
        images = (images * self.scale + self.shift).expand(-1, self.input_spec.channels, -1, -1)
        return images if getattr(self.net, "takes_equal_channels", False) else images.contiguous()

    def answers(self, images: Tensor) -> Tensor:
        """Return the network's own outputs (B, C) on images in pixel space: logits or probabilities as declared."""
        return self._checked(self.net(self.prepare(images)), len(images))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of images (B, 1, H, W) in [0, 1], or (B, 2) of one finding: absent, present."""
        logits = self._logits(images)
        return logits if self.decision is None else as_states(logits, *self.decision)

    def _logits(self, images: Tensor) -> Tensor:
        prepared = self.prepare(images)
        with Watch(self.cam_layer, self.cam_call) as watch:
            output = self.net(prepared)
        squashed, kind = watch.squashed.get(id(unwrap_single(output))), self.output_spec.kind
        output = self._checked(output, len(images))
        if kind == "logits":
            return output
        if squashed is not None and squashed[0] == kind and _is_unchanged(*squashed):
            source = squashed[2].float()
            return F.log_softmax(source, 1) if kind == "probabilities" else source
        return logits_of_probabilities(output, kind)

    def of_kind(self, kind: Kind) -> "WrappedModel":
        """Return the same network with its outputs read as logits, probabilities or sigmoids."""
        other = copy(self)
        other.output_spec = self.output_spec.model_copy(update={"kind": kind})
        return other

    def of_finding(self, index: int, cut: float) -> "WrappedModel":
        """Return the same network restricted to one finding, present if its logit is above `cut`."""
        other = copy(self)
        other.decision = (index, cut)
        return other

    def find_cam_layer(self, images: Tensor) -> bool:
        """Find the call that makes the last feature map; False if torch sees none."""
        prepared = self.prepare(images[: self.batch])
        with torch.no_grad(), Watch(self.cam_layer, None, prepared) as watch:
            self.net(prepared)
        self.cam_call = watch.last_map
        return watch.last_map is not None

    def _checked(self, output: Any, count: int) -> Tensor:
        output, classes = unwrap_single(output), len(self.output_spec.classes)
        if not isinstance(output, Tensor):
            raise UserError(f"the model answers with {type(output).__name__}, not with a tensor (B, {classes})")
        if output.ndim == 1 and classes == 1:
            output = output[:, None]
        if output.ndim != 2 or output.shape != (count, classes):
            shape = tuple(output.shape)
            raise UserError(f"{classes} classes are declared, but the model answers {shape}: see output.classes")
        return output.float()


def as_states(logits: Tensor, index: int, cut: float) -> Tensor:
    """Return logits (B, 2) of one finding, absent and present, from logits (B, C): 0 and the margin above its cut."""
    logit = logits[:, index]
    margin = (logit.double() - cut).to(logit.dtype)
    return torch.stack([torch.zeros_like(margin), margin], dim=1)


class Watch(TorchFunctionMode):
    """Record softmax and sigmoid inputs while a network runs, and the last feature map if it is given its images.

    A map (B, K, h, w) or (B, h, w, K), as opposed to attention's table of tokens, has the images' aspect ratio to
    within one cell. It comes from another map or has no more rows than the smallest so far. A table has a row a token,
    and a map has more tokens than rows.
    """

    def __init__(self, cam_layer: nn.Module, cam_call: int | None, images: Tensor | None = None) -> None:
        super().__init__()
        self.cam_layer, self.cam_call = cam_layer, cam_call
        self.height, self.width = (0, 0) if images is None else images.shape[-2:]
        self.smallest, self.maps = self.height, WeakTensorKeyDictionary()
        if images is not None:
            self.maps[images] = self.height
        # By the id of a 2-D softmax or sigmoid result, or rows of it: kind, result (which keeps the id taken), input.
        self.squashed: dict[int, tuple[Kind, Tensor, Tensor]] = {}
        self.last_map: int | None = None  # number of the last call that made a map
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call, record it, and pass the last feature map through the CAM layer."""
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor):
            return result
        if result.ndim == 4 and result.is_floating_point() and min(result.shape[-2:]) > 1 and _four_sided(args):
            call, self.calls = self.calls, self.calls + 1
            if self.maps and self._is_map(result, args):
                self.last_map = call
            if call == self.cam_call:
                return self.cam_layer(result)
        elif result.ndim == 2 and args:
            return self._record_squashed(func, args, kwargs or {}, result)
        return result

    def _is_map(self, tensor: Tensor, args: tuple[Any, ...]) -> bool:
        """Return whether a 4-D tensor computed from these arguments is a map, and record it if so."""
        from_a_map = any(part in self.maps for part in _four_sided(args))
        for rows, columns in (tensor.shape[2:], tensor.shape[1:3]):
            fits = abs(rows * self.width - columns * self.height) <= max(self.height, self.width)
            if fits and (from_a_map or rows <= self.smallest):
                self.maps[tensor], self.smallest = rows, min(self.smallest, rows)
                return True
        return False

    def _record_squashed(
        self, func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any], result: Tensor
    ) -> Tensor:
        name, first = plain_name(func), args[0]
        if name in _SOFTMAX | _SIGMOID and isinstance(first, Tensor):
            result = result.clone()  # the gradient needs this value: a network may change its answer in place
            self.squashed[id(result)] = ("probabilities" if name in _SOFTMAX else "sigmoid", result, first)
            return result
        parts = [self.squashed.get(id(part)) for part in (first if isinstance(first, list | tuple) else [first])]
        entries = [part for part in parts if part is not None]
        if name in ("__getitem__", "cat") and entries and len(entries) == len(parts) and named.keys() <= {"dim"}:
            sources = [entry[2] for entry in entries]
            joined = func(sources if name == "cat" else sources[0], *args[1:], **named)
            self.squashed[id(result)] = (entries[0][0], result, joined)
        return result


def _is_unchanged(kind: Kind, output: Tensor, source: Tensor) -> bool:
    """Return whether the output is still the squashed source: neither was changed in place."""
    if source.shape != output.shape:
        return False
    # Not under no_grad: the search for stopped gradients would count it as the network's.
    wide = source if source.dtype == torch.float64 else source.float()
    squashed = wide.softmax(1) if kind == "probabilities" else wide.sigmoid()
    precision = torch.finfo(output.dtype)
    tolerance = max(_CLOSE, 4 * precision.eps)
    return torch.allclose(squashed.float(), output.float(), rtol=tolerance, atol=precision.tiny, equal_nan=True)


def _four_sided(args: tuple[Any, ...]) -> list[Tensor]:
    return [tensor for tensor in tensors_in(args) if tensor.ndim == 4]


def resized(images: Tensor, size: int, how: str) -> Tensor:
    """Resize images (B, 1, H, W) to squares of side `size`, differentiably: `how` is squeeze, pad or crop."""
    height, width = images.shape[-2:]
    if how != "squeeze" and height != width:
        side = max(height, width) if how == "pad" else min(height, width)
        top, left = int((side - height) / 2), int((side - width) / 2)  # negative padding crops
        images = F.pad(images, (left, side - width - left, top, side - height - top))
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def logits_of_probabilities(probabilities: Tensor, kind: Kind) -> Tensor:
    """Return logits (B, C) of probabilities (B, C), clamped away from 0 (sigmoids also from 1)."""
    if kind == "probabilities":
        return probabilities.clamp(min=TINY).log()
    half = torch.finfo(probabilities.dtype).eps / 2
    return probabilities.clamp(TINY, 1 - half).log() - (1 - probabilities.clamp(max=1 - half)).log()


def saturation(outputs: Tensor, kind: Kind) -> float:
    """Return the share in [0, 1] of outputs (B, C) that are 0 or 1 to rounding; 0 for logits."""
    if kind == "logits" or not len(outputs):
        return 0.0
    full = (outputs <= TINY) | (outputs >= 1 - torch.finfo(outputs.dtype).eps / 2)
    return float(full.any(1).float().mean() if kind == "probabilities" else full.float().mean())


def _affine(spec: InputSpec) -> tuple[Tensor, Tensor]:
    """Return factor and offset of images in [0, 1], each (1, channels, 1, 1): one channel if all are equal."""
    low, high = spec.range
    span = high - low
    mean = torch.tensor(spec.mean or (0.0,), dtype=torch.float64)
    std = torch.tensor(spec.std or (1.0,), dtype=torch.float64)
    unit = span if spec.std else 1.0  # of the std, in units of the range
    scale = span / (std * unit)
    shift = -mean * span / (std * unit) if spec.mean else low / (std * unit)
    scale, shift = (part.float().reshape(1, -1, 1, 1) for part in torch.broadcast_tensors(scale, shift))
    return scale.clone(), shift.clone()


def is_layer_output(net: nn.Module, inputs: Tensor) -> bool:
    """Return whether `net` answers its inputs (B, channels, size, size) with numbers of its last layer.

    Such numbers, or means, sums and differences of them, are logits even if they lie in [0, 1]. False if another
    function follows, if the layer's input was bounded just before, or if torch cannot see how they were computed.
    """
    with torch.no_grad(), _Layers() as seen:
        return seen.is_from_layer(unwrap_single(net(inputs)))


class _Layers(TorchFunctionMode):
    """Record the outputs of layers, and sums of them, that are not changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[Tensor, int]] = {}  # by id, which stays taken as long as the tensor is here
        self.bounded: dict[int, Tensor] = {}  # outputs of bounding functions, and sums and layers of them

    def is_from_layer(self, value: Any) -> bool:
        """Return whether the value is a recorded output."""
        tensor, version = self.outputs.get(id(value), (None, 0))
        return tensor is not None and tensor._version == version

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call and record its output if it comes from layers."""
        result, name, parts = func(*args, **(kwargs or {})), plain_name(func), tensors_in(args)
        bounds = name in _BOUNDS or name.rstrip("_") in _BOUNDS
        bounded = bounds or (name in _LAYERS | _SUMS | _FORMS and any(id(part) in self.bounded for part in parts))
        terms = [part for part in parts if not isinstance(part, nn.Parameter)]  # without a layer's own bias
        layers = name in _LAYERS or (name in _SUMS | _FORMS and bool(terms) and all(map(self.is_from_layer, terms)))
        for output in tensors_in((result,)):
            if bounded:
                self.bounded[id(output)] = output
            elif layers:
                self.outputs[id(output)] = (output, output._version)
        return result
