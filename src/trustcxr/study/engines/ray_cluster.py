"""The cluster that a study runs on: reached or started, and looked at before hours are spent on it."""

import logging
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from trustcxr import console
from trustcxr.data import remote
from trustcxr.errors import UserError
from trustcxr.results import files, folders
from trustcxr.study.engines.contract import Needs, Outcome, Task, Work, told

_WAIT = 10.0  # seconds that an address has to answer
_NODE_WAIT = 180.0  # seconds that a node has to start a process
_SEEN = 5.0  # seconds that a file may take until every node sees it
_MARK = ".shared"  # written into a study's folder here, and looked for by every node
_STORE = 100 << 20  # bytes for what tasks pass each other: names alone


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`, or to one that is started here and ends with the block.

    A connection that is there already is used and left. Nothing is sent to anyone, and no dashboard is started.
    UserError where Ray is not installed, or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", "3")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its own future default, or it warns
    try:
        import ray
    except ImportError:
        raise UserError("the engine ray needs Ray: pip install '.[ray]'") from None
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
    """Connect; within seconds where nothing listens, since Ray itself tries for minutes and then ends the process."""
    hint = "start one with `ray start --head`, or leave --ray-address out: one is then started here"
    if address != "auto":
        place = re.fullmatch(r"(?:ray://)?\[?([^/\]]+?)\]?:(\d{1,5})", address)
        if place is None:
            raise UserError(f"--ray-address {address}: expected auto, HOST:PORT or ray://HOST:PORT")
        try:
            socket.create_connection((place[1], int(place[2])), timeout=_WAIT).close()
        except (OSError, OverflowError) as problem:
            raise UserError(f"--ray-address {address}: no Ray cluster answers there ({problem}); {hint}") from None
    try:
        ray.init(address, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError, SystemExit) as problem:
        raise UserError(f"--ray-address {address}: no Ray cluster to be joined ({reason(problem)}); {hint}") from None


def room(ray: Any, needs: Needs) -> Needs:
    """What each task is given. UserError where no node has that."""
    nodes = _nodes(ray)
    gpus = max(node["Resources"].get("GPU", 0.0) for node in nodes)
    needs = replace(needs, gpus=min(1.0, gpus) if needs.gpus is None else needs.gpus)
    rooms = [(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in nodes]
    if not any(cpus >= needs.cpus and gpus >= (needs.gpus or 0) for cpus, gpus in rooms):
        have = "; ".join(f"{cpus:g} cores, {gpus:g} cards" for cpus, gpus in sorted(set(rooms)))
        raise UserError(f"no node has {needs.cpus} cores and {needs.gpus:g} cards for a run; there is {have}")
    return needs


def _nodes(ray: Any) -> list[Any]:
    return [node for node in ray.nodes() if node["Alive"]]


def check(ray: Any, study: Path, needs: Needs) -> Needs:
    """As `room`; UserError also where a node does not see the study or its films."""
    needs, nodes = room(ray, needs), _nodes(ray)
    mark = secrets.token_hex(8)
    with files.replacing(study / _MARK) as temporary:
        temporary.write_text(mark)
    at = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = {
        look.options(scheduling_strategy=at(node["NodeID"], soft=False)).remote(study, mark): node for node in nodes
    }
    for answer, node in asked.items():
        name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            fault, versions = ray.get(answer, timeout=_NODE_WAIT)
        except ray.exceptions.TaskUnschedulableError:
            continue  # it was lost since the nodes were listed: the others go on
        except ray.exceptions.RayError as problem:
            raise UserError(
                f"{name}: cannot work for the study ({reason(problem)}); take it away, or mend it"
            ) from None
        if fault:
            raise UserError(f"{name}: {fault}")
        for package, here in folders.versions().items():
            if versions.get(package) != here:
                console.say(f"{name} has {package} {versions.get(package)}, this machine {here}: bits may differ")
    return needs


def _look(study: Path, mark: str) -> tuple[str, dict[str, str]]:
    """On a node: what it cannot see of a study, empty where all is there; and its versions."""
    until = time.monotonic() + _SEEN  # a network's file system may tell of a new file late
    while not (study / _MARK).is_file() and time.monotonic() < until:
        time.sleep(0.2)
    if not (study / _MARK).is_file() or (study / _MARK).read_text() != mark:
        return f"cannot see {study}; choose an --out on a disk that every node has at the same path", {}
    data = str(files.read_yaml(study / folders.DATA_FILE)["path"]) if (study / folders.DATA_FILE).is_file() else ""
    if data and not remote.is_address(data) and not Path(data).exists():
        return f"cannot see the films in {data}; put them where every node sees them, or give --data an address", {}
    return "", folders.versions()


def do(work: Work, task: Task, threads: int) -> Outcome:
    """On a node: do one task. Lines go to stderr, which Ray brings to whoever started the study; no bars."""
    console.tell(lambda text: print(text, file=sys.stderr, flush=True))
    return told(work, task, threads)


def reason(problem: BaseException) -> str:
    """What Ray says in many lines, in one."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {lines[0] if lines else ''}".rstrip(": ")
