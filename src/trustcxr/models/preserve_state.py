"""Run a model and leave it as it was found: modes, buffers, random state, autocast's cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from trustcxr.errors import unknown

Mode = Literal["eval", "train"]


@contextmanager
def preserve_state(model: nn.Module, mode: Mode = "eval") -> Iterator[None]:
    """Run the model in `mode` and leave no trace: flags of every module, running statistics, random state.

    Modules are put back one by one: `model.train()` would thaw a BatchNorm that was frozen on purpose.
    Raises UserError for any other mode.
    """
    if mode not in get_args(Mode):
        raise unknown("mode", mode, get_args(Mode))
    flags = [(module, module.training) for module in model.modules()]
    # In training mode buffers move (running statistics, counters), so copies stand in for them.
    buffers = [(m, name, b) for m in model.modules() for name, b in m._buffers.items()] if mode == "train" else []
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        model.train(mode == "train")
        for module, name, buffer in buffers:
            module._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        for module, was_training in flags:
            module.training = was_training
        torch.set_rng_state(cpu_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def uncached() -> Iterator[None]:
    """Autocast keeps no weights that are cast inside.

    Before torch 2.10 it keeps those cast without gradients too, and a training step would then use them.
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)


@contextmanager
def evaluate_on(model: nn.Module, device: torch.device, *, seed: int | None = None) -> Iterator[None]:
    """Eval mode inside; outside, every module's own mode, the random state and autocast's cache as they were.

    `seed`: where random numbers inside start from; None for wherever they are.
    """
    training = [module for module in model.modules() if module.training]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), uncached():
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        try:
            # Flag by flag: a module's own train() may do more than set it.
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True


def is_randomised(model: nn.Module, images: Tensor) -> bool:
    """Whether the model's answers (evaluation mode) to these images (B, 1, H, W) hang on torch's random state.

    `preserve_state` puts that state back after every pass, so that an attack sees the very draw by which it is judged.
    """
    with torch.no_grad(), preserve_state(model):
        torch.manual_seed(0)
        first = model(images)
        torch.manual_seed(1)
        return not torch.equal(first, model(images))
