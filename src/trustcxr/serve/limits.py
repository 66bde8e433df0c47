"""How much the server takes on: size, time, and how many at once."""

import os
from dataclasses import dataclass, field

RETRY_AFTER = 2  # seconds after which one who was turned away may come again


def _workers() -> int:
    return max(2, min(os.cpu_count() or 1, 4))


@dataclass(frozen=True)
class Limits:
    """What one request may take, and what all may take together.

    most_bytes: of an upload. upload, reading, answer: seconds that sending a film, decoding it and answering may take;
    queue: that it may wait for a worker.
    workers: processes that answer, each with the runs in memory; waiting: requests that may wait for them. memory:
    bytes that a worker may take beyond what it starts with.
    """

    most_bytes: int = 64 << 20
    upload: float = 30.0
    reading: float = 20.0
    answer: float = 300.0  # long: to end a worker because the machine is busy would make it busier
    queue: float = 60.0
    workers: int = field(default_factory=_workers)
    waiting: int = 6
    memory: int = 3 << 30

    @property
    def at_once(self) -> int:
        """Requests that may be in the house at once: those that are answered, and those that wait."""
        return self.workers + self.waiting
