"""Run batches of an evaluation in parallel threads, one core each, with the same bits as in sequence.

A network's passes release Python's lock, and batches share nothing. Threads within one operation would wait for each
other after each.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

from trustcxr.models.preserve_state import is_randomised

Item = TypeVar("Item")
Done = TypeVar("Done")
_AT_ONCE = 4 * 64 * 128**2  # pixels of all batches that are worked on: feature maps of more would not fit many machines
_AHEAD = 4  # batches for each thread that are read before they are worked on


class _Stopped(Exception):
    """Another batch failed, or the user pressed Ctrl-C."""


def threads_for(model: nn.Module, images: Tensor, batches: int) -> int:
    """Return how many batches such as `images` (B, 1, H, W) may run in parallel: up to one for each core of torch.

    1 on an accelerator, for large batches, or for a random model: threads share one random state.
    """
    most = min(torch.get_num_threads(), batches, _AT_ONCE // max(1, images.numel()))
    if most < 2 or images.device.type != "cpu" or is_randomised(model, images[:1]):
        return 1
    return most


def parallel_map(
    work: Callable[[Item], Done], items: Iterable[Item], *, threads: int, model: nn.Module
) -> Iterator[Done]:
    """Apply `work` to each item in `threads` threads, and yield the results in order.

    If one fails or the caller stops, the others end at their next pass through `model`. Torch's state is restored.
    """
    if threads < 2:
        yield from map(work, items)
        return
    cores, state, stopped = torch.get_num_threads(), torch.get_rng_state(), threading.Event()

    def look(*_: object) -> None:
        if stopped.is_set():
            raise _Stopped

    hook = model.register_forward_pre_hook(look)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(max(1, cores // threads),))
    waiting: deque[Future[Done]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
        hook.remove()
        torch.set_num_threads(cores)
        torch.set_rng_state(state)
