"""Set the limits of a server: size of an upload, times, queue, workers and their memory."""

import os
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    most_bytes: size of an upload. upload, reading, answer: seconds to receive, decode and classify an image.
    queue: seconds to wait for a worker. workers: processes, each with all runs in memory. waiting: queued requests.
    memory: bytes that a worker may allocate after its start.
    """

    most_bytes: int = 64 << 20
    upload: float = 30.0
    reading: float = 20.0
    answer: float = 300.0  # long, because restarting a worker on a busy machine makes it busier
    queue: float = 60.0
    workers: int = field(default_factory=lambda: max(2, min(os.cpu_count() or 1, 4)))
    waiting: int = 6
    memory: int = 3 << 30
