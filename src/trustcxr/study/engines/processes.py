"""Several runs at once, in processes of this machine that share its cores and the pixel store."""

from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from trustcxr.console import Progress, say
from trustcxr.study.engines.contract import Order, Outcomes, Task, Work
from trustcxr.study.engines.workers import Worker


class ProcessesEngine:
    """`jobs` tasks at once, each in a process of its own with its share of the threads; one line of progress for all.

    A process that dies (out of memory, killed) fails its task alone. A script that uses this guards its main part with
    `if __name__ == "__main__":`, as whatever starts processes afresh asks for.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def preflight(self, study: Path) -> None:
        """Nothing: this machine is here."""

    def map(self, work: Work, tasks: Sequence[Task], after: Callable[[], object] = lambda: None) -> Outcomes:
        """What became of every task, in their order: None where it was done."""
        order = Order(tasks)
        busy: dict[Worker, int] = {}
        idle: list[Worker] = []
        try:
            with Progress(f"{self.jobs} runs at once", len(tasks), timed=False) as bar:
                while order.left or busy:
                    while len(busy) < self.jobs and (place := order.next()) is not None:
                        worker = idle.pop() if idle else Worker(self.jobs)
                        worker.begin(work, tasks[place])
                        busy[worker] = place
                    ready = wait([worker.connection for worker in busy])
                    for worker in [w for w in busy if w.connection in ready]:
                        for text in worker.hear():
                            say(text)
                        if worker.task is not None:
                            continue  # it said something, and is not done
                        place = busy.pop(worker)
                        if worker.alive:
                            idle.append(worker)
                        settled = order.end(place, worker.outcome)
                        after()
                        bar.advance(settled, note=f"{tasks[place].step} {tasks[place].run}")
        finally:
            for worker in (*busy, *idle):
                worker.kill()
        return order.outcomes()
