"""Run tasks on the nodes of a Ray cluster, a Ray Core task a step; what is done is in the files, and nowhere else."""

import logging
import os
import re
import secrets
import socket
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from trustcxr import console
from trustcxr.console import Progress, log
from trustcxr.data import remote
from trustcxr.errors import UserError
from trustcxr.storage import atomic, layout
from trustcxr.study.engines.base import Engine, Failure, Needs, Order, Outcome, Outcomes, Task, Work, attempt

RETRIES = 3  # of a task whose process or node was lost; what it had written is kept, so it goes on there
_WAIT = 10.0  # seconds that an address has to answer
_NODE_WAIT = 180.0  # seconds that a node has to start a process
_SEEN = 5.0  # seconds that a file may take until every node sees it
_MARK = ".shared"  # written into a study's folder here, and looked for by every node
_STORE = 100 << 20  # bytes for what tasks pass each other: names alone


class RayEngine(Engine):
    """As many tasks at once as the cluster has room for, or `jobs`; the cluster at `address`, or one started here."""

    def __init__(self, needs: Needs, *, jobs: int | None = None, address: str | None = None) -> None:
        self.needs, self.jobs, self.address = needs, jobs, address
        self.threads = needs.cpus

    def preflight(self, study: Path) -> None:
        """Raise UserError if no cluster answers or can be started, or no node of it has what a run needs.

        One that is started here takes seconds to come up: it is kept for what follows, and ends with the engine.
        """
        with ExitStack() as joined:
            _fit(joined.enter_context(connected(self.address)), self.needs)
            if self.address is None:
                weakref.finalize(self, joined.pop_all().close)

    def map(self, work: Work, tasks: Sequence[Task], after: Callable[[], object] = lambda: None) -> Outcomes:
        """Do every task; the outcomes in their order, None for one that was done."""
        order = Order(tasks)
        busy: dict[Any, int] = {}
        if not tasks:
            return []
        with connected(self.address) as ray, Progress("runs on the cluster", len(tasks), timed=False) as bar:
            needs = _fit(ray, self.needs)
            _check_nodes(ray, tasks[0].study)
            do = ray.remote(num_cpus=needs.cpus, num_gpus=needs.gpus, max_retries=RETRIES)(_do)
            try:
                while order.left or busy:
                    while (self.jobs is None or len(busy) < self.jobs) and (index := order.next()) is not None:
                        busy[do.remote(work, tasks[index])] = index
                    (ready, *_), _ = ray.wait(list(busy))
                    index = busy.pop(ready)
                    order.settle(index, _outcome(ray, ready, tasks[index]), after, bar)
            finally:
                for left in busy:
                    ray.cancel(left, force=True)
        return order.outcomes()


def _outcome(ray: Any, ready: Any, task: Task) -> Outcome:
    try:
        outcome: Outcome = ray.get(ready)
    except ray.exceptions.RayError as problem:  # a node or a process that was lost once too often
        return Failure.of_lost(task, f"lost {RETRIES + 1} times: {_first_line(problem)}")
    return outcome


def _do(work: Work, task: Task) -> Outcome:
    """Do a task on a node. Lines go to stderr, which Ray brings to whoever started the study; no bars."""
    console.redirect(lambda text: print(text, file=sys.stderr, flush=True))
    return attempt(work, task)


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connect Ray to the cluster at `address`, or to one that is started here and ends with the block.

    A connection that is there already is used and left. Nothing is sent to anyone, and no dashboard is started.
    Raises UserError if Ray is not installed, or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", "3")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its own future default, or it warns
    try:
        import ray
    except ImportError:
        raise UserError("the engine ray needs Ray: pip install 'trustcxr[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    if address is None:
        ray.init("local", include_dashboard=False, object_store_memory=_STORE, logging_level=logging.ERROR)
    else:
        _join(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


def _join(ray: Any, address: str) -> None:
    """Connect; within seconds if nothing listens, since Ray itself tries for minutes and then ends the process."""
    hint = "start one with `ray start --head`, or leave --ray-address out: one is then started here"
    if address != "auto":
        parts = re.fullmatch(r"(?:ray://)?\[?([^/\]]+?)\]?:(\d{1,5})", address)
        if parts is None:
            raise UserError(f"--ray-address {address}: expected auto, HOST:PORT or ray://HOST:PORT")
        try:
            socket.create_connection((parts[1], int(parts[2])), timeout=_WAIT).close()
        except (OSError, OverflowError) as problem:
            raise UserError(f"--ray-address {address}: no Ray cluster answers there ({problem}); {hint}") from None
    try:
        ray.init(address, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError, SystemExit) as problem:
        why = _first_line(problem)
        raise UserError(f"--ray-address {address}: no Ray cluster to be joined ({why}); {hint}") from None


def _fit(ray: Any, needs: Needs) -> Needs:
    """Return what each task is given; UserError if no node has that."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = sorted({(one.get("CPU", 0.0), one.get("GPU", 0.0)) for one in resources})
    needs = replace(needs, gpus=min(1.0, max(gpus for _, gpus in there)) if needs.gpus is None else needs.gpus)
    if not any(cpus >= needs.cpus and gpus >= (needs.gpus or 0) for cpus, gpus in there):
        have = "; ".join(f"{cpus:g} cores, {gpus:g} GPUs" for cpus, gpus in there)
        raise UserError(f"no node has {needs.cpus} cores and {needs.gpus:g} GPUs for a run; there is {have}")
    return needs


def _check_nodes(ray: Any, study: Path) -> None:
    """Raise UserError if a node does not see the study or its images; log the nodes with other versions."""
    mark, nodes = secrets.token_hex(8), [node for node in ray.nodes() if node["Alive"]]
    with atomic.atomic_write(study / _MARK) as temporary:
        temporary.write_text(mark)
    on = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    answers = [look.options(scheduling_strategy=on(n["NodeID"], soft=False)).remote(study, mark) for n in nodes]
    for answer, node in zip(answers, nodes, strict=True):
        name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            fault, versions = ray.get(answer, timeout=_NODE_WAIT)
        except ray.exceptions.TaskUnschedulableError:
            continue  # it was lost since the nodes were listed: the others go on
        except ray.exceptions.RayError as problem:
            raise UserError(
                f"{name}: cannot work for the study ({_first_line(problem)}). Remove or repair it"
            ) from None
        if fault:
            raise UserError(f"{name}: {fault}")
        for package, here in layout.versions().items():
            if versions.get(package) != here:
                log(f"{name} has {package} {versions.get(package)}, this machine {here}: bits may differ")


def _look(study: Path, mark: str) -> tuple[str, dict[str, str]]:
    """Return, on a node, what it cannot see of a study, empty if all is there; and its versions."""
    path, until = study / _MARK, time.monotonic() + _SEEN  # a network's file system may show a new file late
    while not path.is_file() and time.monotonic() < until:
        time.sleep(0.2)
    if not path.is_file() or path.read_text() != mark:
        return f"cannot see {study}; choose an --out on a disk that every node has at the same path", {}
    data = str(atomic.read_yaml(study / layout.DATA_FILE)["path"]) if (study / layout.DATA_FILE).is_file() else ""
    if data and not remote.is_address(data) and not Path(data).exists():
        return f"cannot see the images in {data}; put them where every node sees them, or give --data an address", {}
    return "", layout.versions()


def _first_line(problem: BaseException) -> str:
    """Return the type and the first line of what Ray says in many."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {lines[0] if lines else ''}".rstrip(": ")
