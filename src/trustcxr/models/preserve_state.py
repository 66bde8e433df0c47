"""Run a model without changing its modes, buffers, the random state or autocast's cache."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from trustcxr.errors import unknown

Mode = Literal["eval", "train"]


@contextmanager
def preserve_state(
    model: nn.Module, mode: Mode = "eval", *, seed: int | None = None, autocast_cache: bool = True
) -> Iterator[None]:
    """Run the model in `mode` and leave no trace: flags of every module, running statistics, random state.

    `seed`: start of the random numbers inside. `autocast_cache`: False for passes without gradients (see `uncached`).
    Raises UserError for any other mode.
    """
    if mode not in get_args(Mode):
        raise unknown("mode", mode, get_args(Mode))
    flags = [(module, module.training) for module in model.modules()]
    # In training mode buffers move (running statistics, counters), so the model gets copies of them.
    buffers = [(m, name, b) for m in model.modules() for name, b in m._buffers.items()] if mode == "train" else []
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices), nullcontext() if autocast_cache else uncached():
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed_all(seed)
            if torch.backends.mps.is_available():
                torch.mps.manual_seed(seed)
        try:
            if mode == "train":
                model.train()
            else:  # flag by flag: a module's own train() may do more
                for module, _ in flags:
                    module.training = False
            for module, name, buffer in buffers:
                module._buffers[name] = None if buffer is None else buffer.clone()
            yield
        finally:
            for module, name, buffer in buffers:
                module._buffers[name] = buffer
            for module, was_training in flags:
                module.training = was_training


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute in full float32 on a GPU: TF32 rounds each factor 8,192 times as coarsely as float32 does."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


@contextmanager
def uncached() -> Iterator[None]:
    """Stop autocast from caching weights that are cast inside.

    Before torch 2.10 it also caches those cast without gradients, and a training step would then use them.
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def is_randomised(model: nn.Module, images: Tensor) -> bool:
    """Return True if the logits (evaluation mode) of images (B, 1, H, W) depend on torch's random state."""
    with torch.no_grad(), preserve_state(model, seed=0):
        first = model(images)
        torch.manual_seed(1)
        return not torch.equal(first, model(images))
