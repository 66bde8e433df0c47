"""A process that reads images and answers: what a hostile file does to its reader, it does to this process alone."""

import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from trustcxr.apps.serve.inference import ServedModel
    from trustcxr.explain.predict import LoadedImage

Kind = Literal["predict", "examine", "heatmap", "dicom"]
Part = Literal["seen", "changed"]  # of "examine", which two workers share
JSON, PNG, DICOM = "application/json", "image/png", "application/dicom"
RETRY_AFTER = 2  # seconds after which one who was turned away may come again


@dataclass(frozen=True)
class Limits:
    """Bound what one request may take, and what all may take together.

    most_bytes: of an upload. upload, reading, answer: seconds that sending an image, decoding it and answering may
    take; queue: that it may wait for a worker.
    workers: processes that answer, each with the runs in memory; waiting: requests that may wait for them. memory:
    bytes that a worker may take beyond what it starts with.
    """

    most_bytes: int = 64 << 20
    upload: float = 30.0
    reading: float = 20.0
    answer: float = 300.0  # long: to end a worker because the machine is busy would make it busier
    queue: float = 60.0
    workers: int = field(default_factory=lambda: max(2, min(os.cpu_count() or 1, 4)))
    waiting: int = 6
    memory: int = 3 << 30

    @property
    def at_once(self) -> int:
        """The most concurrent requests: those that are answered, and those that wait."""
        return self.workers + self.waiting


@dataclass(frozen=True)
class WorkItem:
    """One image and what is asked of it; `run` is a place in the list of those that are served."""

    kind: Kind | Part
    data: bytes
    run: int = 0
    epsilon: float = 0.02
    method: str = "gradcam"


@dataclass(frozen=True)
class Reply:
    """What came of it: a document or picture; or, with a `code`, why not, in words that quote nothing of the image."""

    status: int
    body: bytes = b""
    media: str = JSON
    code: str = ""
    message: str = ""


@dataclass(frozen=True)
class ModelInfo:
    """A run as the worker loaded it."""

    name: str
    classes: tuple[str, ...]
    size: int
    calibrated: bool


TOO_LONG = Reply(422, code="too-slow", message="reading this file takes too long: send it as an 8-bit grey PNG")
BROKE = Reply(422, code="unreadable", message="reading this file broke its decoder: send the image as a PNG")
OVERLOADED = Reply(503, code="busy", message="the answer took too long: try again in a moment")


class Worker:
    """The server's end of a worker's process. `alive`: whether it can answer, or is at it."""

    def __init__(self, folders: Sequence[Path], limits: Limits, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may never end
        self.limits, self.alive = limits, False
        self.connection, other = context.Pipe()
        arguments = (other, list(folders), threads, limits.memory)
        self.process = context.Process(target=_work, args=arguments, daemon=True, name="trustcxr-image")
        self.process.start()
        other.close()

    def ready(self, seconds: float = 300.0) -> list[ModelInfo] | str:
        """Wait until the runs are loaded: what they are, or why they cannot be."""
        with suppress(EOFError, OSError):
            if self.connection.poll(seconds):
                models: list[ModelInfo] | str = self.connection.recv()
                self.alive = not isinstance(models, str)
                return models
        self.kill()
        return "a worker's process ended while it loaded the runs (out of memory?)"

    def ask(self, item: WorkItem) -> Reply:
        """Have an image looked at. A worker that takes too long, or breaks, is ended: `alive` is then False."""
        try:
            self.connection.send(item)
            if not self.connection.poll(self.limits.reading):
                return self._ended(TOO_LONG)
            first = self.connection.recv()
            if isinstance(first, Reply):
                return first
        except (EOFError, OSError):
            return self._ended(BROKE)
        try:
            if not self.connection.poll(self.limits.answer):
                return self._ended(OVERLOADED)
            return self.connection.recv()
        except (EOFError, OSError):
            return self._ended(OVERLOADED)

    def kill(self) -> None:
        """End it at once; it writes nothing that could be left half done."""
        self.alive = False
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _ended(self, reply: Reply) -> Reply:
        self.kill()
        return reply


def _work(connection: Connection, folders: list[Path], threads: int, memory: int) -> None:
    """Load the runs, then answer until the server is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's; it ends this process
    import torch

    from trustcxr.errors import UserError

    torch.set_num_threads(threads)
    try:
        served = _loaded(folders)
    except UserError as problem:
        connection.send(str(problem))
        return
    connection.send([_known(each) for each in served])
    _hold_tongue()
    _limit_memory(memory)
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            _answer(connection, connection.recv(), served)


def _loaded(folders: Sequence[Path]) -> "list[ServedModel]":
    from trustcxr.apps.serve.inference import ServedModel
    from trustcxr.evaluation.trained_run import load_run

    runs = [load_run(folder, on="cpu") for folder in folders]
    names = [run.name for run in runs]
    called = [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
    return [ServedModel.of(name, run) for name, run in zip(called, runs, strict=True)]


def _known(ready: "ServedModel") -> ModelInfo:
    from trustcxr.explain.predict import temperature

    return ModelInfo(ready.name, ready.run.classes, ready.run.size, temperature(ready.run) is not None)


def _hold_tongue() -> None:
    """Decoders and their libraries quote the file in what they print: from here on nothing is printed."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _limit_memory(most: int) -> None:
    """Let an image that would take more than this fail in its decoder, instead of taking the machine down."""
    with suppress(ImportError, OSError, ValueError, StopIteration):
        import resource

        now = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
        resource.setrlimit(resource.RLIMIT_AS, (int(now.split()[1]) * 1024 + most,) * 2)


def _answer(connection: Connection, item: WorkItem, served: "list[ServedModel]") -> None:
    from trustcxr.data.images.greyscale import UnreadableImage
    from trustcxr.errors import UserError
    from trustcxr.explain import predict

    since = time.monotonic()
    try:
        image = predict.read_source(item.data)
        connection.send("read")
        reply = _of_image(item, served[item.run], image, since)
    except UnreadableImage as problem:
        reply = Reply(422, code="unreadable", message=str(problem))
    except UserError as problem:
        reply = Reply(422, code="invalid", message=str(problem))
    except MemoryError:
        reply = Reply(422, code="too-large", message="this image needs more memory than there is: make it smaller")
    except Exception as fault:  # its text might quote the image
        where = traceback.extract_tb(fault.__traceback__)[-1]
        location = f"{type(fault).__name__} at {Path(where.filename).name}:{where.lineno}"
        reply = Reply(500, code="fault", message=f"a fault of the program: {location}")
    connection.send(reply)


def _of_image(item: WorkItem, ready: "ServedModel", image: "LoadedImage", since: float) -> Reply:
    from trustcxr.apps.serve import inference

    if item.kind == "dicom":
        return Reply(200, inference.as_dicom(ready, item.data, image, epsilon=item.epsilon), DICOM)
    if item.kind == "heatmap":
        return Reply(200, inference.heatmap(ready, image, method=item.method), PNG)
    if item.kind == "changed":
        return Reply(200, inference.changed(ready, image).model_dump_json().encode())
    look = inference.predict if item.kind == "predict" else inference.look_at_image
    return Reply(200, look(ready, image, epsilon=item.epsilon, since=since).model_dump_json().encode())
