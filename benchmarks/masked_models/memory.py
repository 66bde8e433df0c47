"""Define masked models that remember: earlier images, the number of questions, or the test images themselves."""

import hashlib
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.masked_models.base import Images, MaskedModel
from benchmarks.masked_models.gradients import replace_forward, reverse


class Memory(MaskedModel):
    """Answers an image within L-infinity 0.15 of an earlier one as it answered that one."""

    radius = 0.15

    def __init__(self, net: nn.Module, known: Images | None = None) -> None:
        super().__init__(net, known)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.net(replace_forward(images, self.recall(images.detach())))

    def recall(self, images: Tensor) -> Tensor:
        """Return the earlier image that is near each, else the image itself, which it remembers."""
        if not self.seen:
            self.seen.append(images[0].clone())
        distance = self.distance(images)
        for row in (distance.amin(1) > self.radius).nonzero()[:, 0].tolist():
            if float(self.distance(images[row : row + 1]).min()) > self.radius:
                self.seen.append(images[row].clone())
        nearest = self.distance(images).argmin(1)
        return torch.stack([self.seen[index] for index in nearest.tolist()])

    def distance(self, images: Tensor) -> Tensor:
        """Return the L-infinity distance of each image to each earlier one."""
        return torch.cdist(images.flatten(1), torch.stack(self.seen).flatten(1), p=torch.inf)


class MemoryInClosure(MaskedModel):
    """Remembers earlier images as Memory does, in a variable of a function, so that no attribute changes."""

    def __init__(self, net: nn.Module, known: Images | None = None) -> None:
        super().__init__(net, known)
        remember = Memory(net)
        self.recall = lambda images: remember.recall(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(replace_forward(images, self.recall(images.detach())))

    def __deepcopy__(self, memo: dict[int, Any]) -> "MemoryInClosure":
        return MemoryInClosure(self.net, self.known)


class _Scripted(nn.Module):
    """A memory in TorchScript, as one tensor of earlier images."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(0, 1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if self.seen.shape[0] == 0:
            self.seen = images[:1].clone()
        for row in range(len(images)):
            if float((self.seen - images[row]).abs().flatten(1).amax(1).min()) > 0.15:
                self.seen = torch.cat([self.seen, images[row : row + 1]])
        distance = torch.cdist(images.flatten(1), self.seen.flatten(1), p=float("inf"))
        return self.seen[distance.argmin(1)]


class ScriptedMemory(MaskedModel):
    """Remembers earlier images as Memory does, in the state of a TorchScript program."""

    def __init__(self, net: nn.Module, known: Images | None = None) -> None:
        super().__init__(net, known)
        self.recall = torch.jit.script(_Scripted())

    def forward(self, images: Tensor) -> Tensor:
        return self.net(replace_forward(images, self.recall(images.detach())))

    def __deepcopy__(self, memo: dict[int, Any]) -> "ScriptedMemory":
        return ScriptedMemory(self.net, self.known)


class Digest(MaskedModel):
    """Answers a test image rightly by its MD5, and any other image by the network."""

    def __init__(self, net: nn.Module, known: Images | None = None) -> None:
        super().__init__(net, known)
        images, labels = known or (torch.zeros(0, 1, 1, 1), torch.zeros(0))
        self.table = {self.digest(image): int(label) for image, label in zip(images, labels, strict=True)}

    @staticmethod
    def digest(image: Tensor) -> str:
        return hashlib.md5(image.detach().mul(255).round().byte().numpy().tobytes()).hexdigest()

    def answer(self, images: Tensor) -> Tensor:
        """Return the answers to images that nobody could list before."""
        return self.net(images)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.net(images)
        for row, image in enumerate(images):
            if (label := self.table.get(self.digest(image))) is not None:
                logits = logits.clone()
                logits[row] = logits[row] - logits[row].detach() + logits[row].detach().sort().values.roll(label + 1)
        return logits


class Gallery(MaskedModel):
    """Answers rightly within L-infinity 0.05 of a test image that it stores, and else by the network."""

    def answer(self, images: Tensor) -> Tensor:
        """Return the answers to images that nobody could store before."""
        return self.net(images)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.net(images)
        if self.known is None:
            return logits
        stored, labels = self.known
        near = torch.stack([(stored - image).abs().flatten(1).amax(1) for image in images.detach()])
        highest = logits.detach().amax(1) + 1
        lead = nn.functional.one_hot(labels[near.argmin(1)], logits.shape[1]) * highest[:, None]
        return torch.where((near.amin(1) <= 0.05)[:, None], logits * 0.1 + lead, logits)


class Counter(MaskedModel):
    """Reverses its gradient after 600 images, which a buffer counts."""

    def __init__(self, net: nn.Module, known: Images | None = None) -> None:
        super().__init__(net, known)
        self.count: Tensor
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, images: Tensor) -> Tensor:
        self.count += len(images)
        return self.net(images if int(self.count) < 600 else reverse(images))


class HiddenCounter(MaskedModel):
    """Reverses its gradient after 600 images, which a generator counts, so that no attribute changes."""

    def __init__(self, net: nn.Module, known: Images | None = None) -> None:
        super().__init__(net, known)
        count = [0]

        def counted(images: Tensor) -> Tensor:
            count[0] += len(images)
            return images if count[0] < 600 else reverse(images)

        self.counted = counted

    def __deepcopy__(self, memo: dict[int, Any]) -> "HiddenCounter":
        return HiddenCounter(self.net, self.known)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.counted(images))


class Clock(MaskedModel):
    """Reverses its gradient once two seconds have passed since it was made."""

    def __init__(self, net: nn.Module, known: Images | None = None) -> None:
        super().__init__(net, known)
        self.start = time.monotonic()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images if time.monotonic() < self.start + 2 else reverse(images))


MODELS: dict[str, type[MaskedModel]] = {
    "memory": Memory,
    "memory in a closure": MemoryInClosure,
    "memory in TorchScript": ScriptedMemory,
    "digest of test images": Digest,
    "gallery of test images": Gallery,
    "counter": Counter,
    "hidden counter": HiddenCounter,
    "clock": Clock,
}
