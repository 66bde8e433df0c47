"""Fix the number of torch threads: another number adds up in another order, and so gives other bits."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trustcxr.errors import UserError


@contextmanager
def use_threads(number: int | None) -> Iterator[None]:
    """Compute with so many threads within the block; None leaves them as they are. UserError if it is below 1."""
    if number is None:
        yield
        return
    if number < 1:
        raise UserError(f"--threads {number}: a run needs a thread. Give 1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
