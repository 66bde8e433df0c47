"""Batches of an evaluation side by side: a thread for each, one core for each thread, the same bits as one by one.

The passes of a network spend their time in torch, which lets other threads go on meanwhile, and two batches at once
share nothing; the threads of one operation wait for each other after each of them.
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
    """Another batch failed, or somebody pressed Ctrl-C."""


def threads_for(model: nn.Module, images: Tensor, batches: int) -> int:
    """How many batches such as `images` (B, 1, H, W) may be worked on at once: one for each core that torch may use.

    One where an accelerator does the work, where a batch is large, or where the model answers at random: all threads
    draw from one random state.
    """
    most = min(torch.get_num_threads(), batches, _AT_ONCE // max(1, images.numel()))
    if most < 2 or images.device.type != "cpu" or is_randomised(model, images[:1]):
        return 1
    return most


def parallel_map(
    work: Callable[[Item], Done], items: Iterable[Item], *, threads: int, model: nn.Module
) -> Iterator[Done]:
    """`work` done on each item, in the order of the items, on so many of them at once.

    Where one fails, or the caller stops, the others end at their next pass through `model`. Torch's number of threads
    and its random state are left as they were.
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
