"""A network of any making behind the door of ours: pixel space -> logits, differentiable where the network is."""

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from trustcxr.audit.formats.model_file import InputSpec, Kind, OutputSpec
from trustcxr.audit.formats.outputs import InBatches, sole
from trustcxr.errors import UserError

TINY = 1e-30  # the smallest probability whose logarithm is taken
_SOFTMAX = {"softmax", "_softmax"}
_SIGMOID = {"sigmoid", "expit"}
_CLOSE = 1e-4  # how far, in proportion, an answer of 32 bits may lie from what its softmax or sigmoid made


class WrappedModel(nn.Module):
    """`net` as a module from images (B, 1, H, W), float, in [0, 1], to logits (B, C).

    Resizing, range, RGB and normalisation happen inside, so gradients come out in pixel space. Probabilities become
    logits: where they were made by a softmax or sigmoid that torch can see, by what went into it; otherwise by their
    logarithm, clamped. Of kind sigmoid the logit of each finding is that of its own probability. The last feature map
    passes through `cam_layer`, an identity, once `find_cam_layer` has found it. `batch` is the one size of batch that
    the network takes, None for any; then `cam_layer` is passed for the first batch alone. `decided` is the finding, its
    place and the logit from which it is there, that is all the module answers; None: it answers with all there are.
    """

    def __init__(self, net: nn.Module, taken: InputSpec, given: OutputSpec) -> None:
        super().__init__()
        self.net, self.taken, self.given = net, taken, given
        self.batch = net.size if isinstance(net, InBatches) else None
        self.cam_layer = nn.Identity()
        self.cam_place: int | None = None  # which call makes the last feature map
        self.decided: tuple[int, float] | None = None
        scale, shift = _affine(taken)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.training = net.training  # of this module alone: its net's layers keep theirs

    def prepare(self, images: Tensor) -> Tensor:
        """Pixel space (B, 1, H, W) in [0, 1] -> what the network wants (B, channels, size, size)."""
        images = resized(images, self.taken.size, self.taken.resize)
        return images.expand(-1, self.taken.channels, -1, -1) * self.scale + self.shift

    def answers(self, images: Tensor) -> Tensor:
        """What the network itself says of images in pixel space, (B, C): logits or probabilities as declared."""
        return self._checked(self.net(self.prepare(images)), len(images))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [0, 1] -> logits (B, C), or (B, 2) of one finding, absent and present."""
        answer = self._logits(images)
        return answer if self.decided is None else as_states(answer, *self.decided)

    def _logits(self, images: Tensor) -> Tensor:
        given = self.prepare(images)
        with Watch(self.cam_layer, self.cam_place) as seen:
            answer = self.net(given)
        squashed = seen.squashed.get(id(sole(answer)))
        answer = self._checked(answer, len(images))
        if self.given.kind == "logits":
            return answer
        if squashed is not None and squashed[0] == self.given.kind and _still(*squashed):
            before = squashed[2].float()
            return F.log_softmax(before, 1) if self.given.kind == "probabilities" else before
        return logits_of_probabilities(answer, self.given.kind)

    def of_kind(self, kind: Kind) -> "WrappedModel":
        """The same network, its answers taken as logits, probabilities or sigmoids."""
        other = copy(self)
        other.given = self.given.model_copy(update={"kind": kind})
        return other

    def of_finding(self, place: int, cut: float) -> "WrappedModel":
        """The same network asked of one finding alone, which is there where its logit is above `cut`."""
        other = copy(self)
        other.decided = (place, cut)
        return other

    def find_cam_layer(self, images: Tensor) -> bool:
        """Look where the last feature map is made, on some images; False where torch cannot see one."""
        given = self.prepare(images[: self.batch])
        with torch.no_grad(), Watch(self.cam_layer, None) as seen:
            seen.maps = Maps(given)
            self.net(given)
        self.cam_place = seen.last_map
        return seen.last_map is not None

    def _checked(self, answer: Any, count: int) -> Tensor:
        answer = sole(answer)
        if not isinstance(answer, Tensor):
            raise UserError(f"the model answers with {type(answer).__name__}, not with a tensor (B, {self._classes})")
        if answer.ndim == 1 and self._classes == 1:
            answer = answer[:, None]
        if answer.ndim != 2 or answer.shape != (count, self._classes):
            names = f"{self._classes} classes are declared"
            raise UserError(
                f"{names}, but the model answers {tuple(answer.shape)} for {count} images: see output.classes"
            )
        return answer.float()

    @property
    def _classes(self) -> int:
        return len(self.given.classes)


def as_states(logits: Tensor, place: int, cut: float) -> Tensor:
    """Logits (B, C) of findings -> those (B, 2) of one, absent and present: 0 and how far it is above its cut."""
    asked = logits[:, place]
    margin = (asked.double() - cut).to(asked.dtype)
    return torch.stack([torch.zeros_like(margin), margin], dim=1)


class Watch(TorchFunctionMode):
    """Looks on while a network runs: what each softmax and sigmoid was given, and where the last feature map is made.

    squashed: of each 2-D result of a softmax or sigmoid, of rows of one and of several joined, its id, the kind, itself
    (so that the id stays its own), and what went in. last_map: the number of the last call that made a map of the
    images out of another, where `maps` says which tensors are such maps.
    """

    def __init__(self, cam_layer: nn.Module, cam_place: int | None) -> None:
        super().__init__()
        self.cam_layer, self.cam_place = cam_layer, cam_place
        self.squashed: dict[int, tuple[Kind, Tensor, Tensor]] = {}
        self.maps: Maps | None = None
        self.last_map: int | None = None
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let the call through; note it, and pass the last feature map on through the CAM layer."""
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor):
            return result
        if result.ndim == 4 and result.is_floating_point() and min(result.shape[-2:]) > 1 and _has_map(args):
            place, self.calls = self.calls, self.calls + 1
            if self.maps is not None and self.maps.take(result, args):
                self.last_map = place
            if place == self.cam_place:
                return self.cam_layer(result)
        elif result.ndim == 2 and args:
            return self._note_squashed(func, args, kwargs or {}, result)
        return result

    def _note_squashed(
        self, func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any], result: Tensor
    ) -> Tensor:
        name, first = plain_name(func), args[0]
        if name in _SOFTMAX | _SIGMOID and isinstance(first, Tensor):
            result = result.clone()  # the gradient needs what was made: a network may finish its answer in place
            self.squashed[id(result)] = ("probabilities" if name in _SOFTMAX else "sigmoid", result, first)
            return result
        parts = [self.squashed.get(id(part)) for part in (first if isinstance(first, list | tuple) else [first])]
        known = [part for part in parts if part is not None]
        if name in ("__getitem__", "cat") and known and len(known) == len(parts) and named.keys() <= {"dim"}:
            before = [part[2] for part in known]
            joined = func(before if name == "cat" else before[0], *args[1:], **named)
            self.squashed[id(result)] = (known[0][0], result, joined)
        return result


def _still(kind: Kind, answer: Tensor, before: Tensor) -> bool:
    """Whether the answer is still what went in, squashed over the classes: neither was changed in place since."""
    if before.shape != answer.shape:
        return False
    # Not under no_grad, which whoever looks for stopped gradients would count as the network's.
    wide = before if before.dtype == torch.float64 else before.float()
    found = wide.softmax(1) if kind == "probabilities" else wide.sigmoid()
    about = torch.finfo(answer.dtype)
    near = max(_CLOSE, 4 * about.eps)
    return torch.allclose(found.float(), answer.float(), rtol=near, atol=about.tiny, equal_nan=True)


class Maps:
    """Which tensors (B, K, h, w) or (B, h, w, K) are maps of some images, and not attention's tables of tokens.

    A map has the images' proportions, to within one cell, and comes from another map or has no more rows than the
    smallest so far: a table has a row a token, and there are more tokens than a map of them has rows.
    """

    def __init__(self, images: Tensor) -> None:
        self.height, self.width = images.shape[-2:]
        self.smallest = self.height
        self.known = WeakTensorKeyDictionary()
        self.known[images] = self.height

    def take(self, made: Tensor, args: tuple[Any, ...]) -> bool:
        """Whether a tensor with four sides, made of these arguments, is a map; it is one from now on."""
        from_a_map = any(part in self.known for part in _four_sided(args))
        for rows, columns in (made.shape[2:], made.shape[1:3]):
            fits = abs(rows * self.width - columns * self.height) <= max(self.height, self.width)
            if fits and (from_a_map or rows <= self.smallest):
                self.known[made], self.smallest = rows, min(self.smallest, rows)
                return True
        return False


def plain_name(func: Callable[..., Any]) -> str:
    """The name of a torch function, whatever form it was called in: aten.softmax.int is softmax."""
    name = str(getattr(func, "_opname", None) or getattr(func, "__name__", ""))
    packet = getattr(func, "overloadpacket", None)
    return str(packet.__name__) if packet is not None else name


def _has_map(args: tuple[Any, ...]) -> bool:
    return bool(_four_sided(args))


def _four_sided(args: tuple[Any, ...]) -> list[Tensor]:
    flat = [t for a in args for t in (a if isinstance(a, list | tuple) else (a,))]
    return [a for a in flat if isinstance(a, Tensor) and a.ndim == 4]


def resized(images: Tensor, size: int, how: str) -> Tensor:
    """Images (B, 1, H, W) as squares of that side, differentiably; as they are where they have it already."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if how == "pad" and height != width:
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        images = F.pad(images, (left, side - width - left, top, side - height - top))
    if how == "crop" and height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        images = images[..., top : top + side, left : left + side]
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def logits_of_probabilities(answer: Tensor, kind: Kind) -> Tensor:
    """Logits (B, C) of probabilities (B, C), which are kept from 0 (and, of sigmoids, from 1) so that logs exist."""
    if kind == "probabilities":
        return answer.clamp(min=TINY).log()
    half = torch.finfo(answer.dtype).eps / 2
    return answer.clamp(TINY, 1 - half).log() - (1 - answer.clamp(max=1 - half)).log()


def saturation(answer: Tensor, kind: Kind) -> float:
    """Share of answers (B, C) so near 0 or 1 that their logarithm says nothing more; 0 for logits."""
    if kind == "logits" or not len(answer):
        return 0.0
    full = (answer <= TINY) | (answer >= 1 - torch.finfo(answer.dtype).eps / 2)
    return float(full.any(1).float().mean() if kind == "probabilities" else full.float().mean())


def _affine(taken: InputSpec) -> tuple[Tensor, Tensor]:
    """What an image in [0, 1] is multiplied by, and what is added, each (1, channels, 1, 1)."""
    low, high = taken.range
    span = high - low
    mean = torch.tensor(taken.mean or (0.0,), dtype=torch.float64)
    std = torch.tensor(taken.std or (1.0,), dtype=torch.float64)
    unit = span if taken.std else 1.0  # of the std, in units of the range
    scale = span / (std * unit)
    shift = -mean * span / (std * unit) if taken.mean else low / (std * unit)
    parts = torch.broadcast_tensors(scale, shift, torch.empty(taken.channels))[:2]
    return parts[0].float().reshape(1, -1, 1, 1).clone(), parts[1].float().reshape(1, -1, 1, 1).clone()
