"""Read and classify images in a separate process, so that a hostile file can only harm that process."""

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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trustcxr.apps.serve.limits import Limits

if TYPE_CHECKING:
    from trustcxr.apps.serve.inference import ServedModel
    from trustcxr.explain.predict import LoadedImage

Kind = Literal["predict", "examine", "heatmap", "dicom", "refusal"]
Part = Literal["seen", "changed"]  # two workers share "examine"
JSON, PNG, DICOM = "application/json", "image/png", "application/dicom"
RETRY_AFTER = 2  # seconds until a refused client may retry


@dataclass(frozen=True)
class WorkItem:
    """One image and its task; run: index in the list of runs. why: for "refusal", why the image is not answered."""

    kind: Kind | Part
    data: bytes
    run: int = 0
    epsilon: float = 0.02
    method: str = "gradcam"
    anyway: bool = False
    why: str = ""


@dataclass(frozen=True)
class Reply:
    """A document or PNG; or an error with a code, whose message quotes nothing of the image.

    accession: accession number of a DICOM image that is not answered.
    """

    status: int
    body: bytes = b""
    media: str = JSON
    code: str = ""
    message: str = ""
    accession: str = ""


@dataclass(frozen=True)
class ModelInfo:
    """A loaded run."""

    name: str
    classes: tuple[str, ...]
    size: int
    calibrated: bool


TOO_LONG = Reply(422, code="too-slow", message="reading this file takes too long: send it as an 8-bit grey PNG")
BROKE = Reply(422, code="unreadable", message="reading this file broke its decoder: send the image as a PNG")
OVERLOADED = Reply(503, code="busy", message="the answer took too long: try again in a moment")


class Worker:
    """A worker process, as the server sees it. alive: True if it can answer or is busy."""

    def __init__(self, folders: Sequence[Path], limits: Limits, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process with threads may deadlock
        self.limits, self.alive = limits, False
        self.connection, other = context.Pipe()
        arguments = (other, list(folders), threads, limits.memory)
        self.process = context.Process(target=_work, args=arguments, daemon=True, name="trustcxr-image")
        self.process.start()
        other.close()

    def ready(self, seconds: float = 300.0) -> list[ModelInfo] | str:
        """Wait until the runs are loaded; return them, or the reason why they cannot be."""
        with suppress(EOFError, OSError):
            if self.connection.poll(seconds):
                models: list[ModelInfo] | str = self.connection.recv()
                self.alive = not isinstance(models, str)
                return models
        self.kill()
        return "a worker's process ended while it loaded the runs (out of memory?)"

    def ask(self, item: WorkItem) -> Reply:
        """Answer an item. A worker that takes too long or breaks is killed; `alive` is then False."""
        try:
            self.connection.send(item)
            if not self.connection.poll(self.limits.reading):
                return self._fail(TOO_LONG)
            first = self.connection.recv()
            if isinstance(first, Reply):
                return first
        except (EOFError, OSError):
            return self._fail(BROKE)
        try:
            if not self.connection.poll(self.limits.answer):
                return self._fail(OVERLOADED)
            return self.connection.recv()
        except (EOFError, OSError):
            return self._fail(OVERLOADED)

    def kill(self) -> None:
        """Kill the process. It writes no files."""
        self.alive = False
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _fail(self, reply: Reply) -> Reply:
        self.kill()
        return reply


def _work(connection: Connection, folders: list[Path], threads: int, memory: int) -> None:
    """Load the runs, then answer until the server ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C and ends this process
    import torch

    from trustcxr.errors import UserError

    torch.set_num_threads(threads)
    try:
        models = _load_models(folders)
    except UserError as problem:
        connection.send(str(problem))
        return
    connection.send([_describe_model(model) for model in models])
    _silence()
    _limit_memory(memory)
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            _answer(connection, connection.recv(), models)


def _load_models(folders: Sequence[Path]) -> "list[ServedModel]":
    from trustcxr.apps.serve.inference import ServedModel
    from trustcxr.evaluation.trained_run import load_run

    runs = [load_run(folder, on="cpu") for folder in folders]
    names = [run.name for run in runs]
    unique = [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
    return [ServedModel.prepare(name, run) for name, run in zip(unique, runs, strict=True)]


def _describe_model(model: "ServedModel") -> ModelInfo:
    from trustcxr.explain.predict import temperature

    return ModelInfo(model.name, model.run.classes, model.run.size, temperature(model.run) is not None)


def _silence() -> None:
    """Print nothing from now on: libraries quote the file in what they print."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.stdout.flush()
    sys.stderr.flush()
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)


def _limit_memory(most: int) -> None:
    """Limit the memory of this process, so that a huge image fails in its decoder."""
    with suppress(ImportError, OSError, ValueError, StopIteration):
        import resource

        now = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
        resource.setrlimit(resource.RLIMIT_AS, (int(now.split()[1]) * 1024 + most,) * 2)


def _answer(connection: Connection, item: WorkItem, models: "list[ServedModel]") -> None:
    from trustcxr.data.images.greyscale import UnreadableImage
    from trustcxr.errors import UserError
    from trustcxr.explain import predict

    since = time.monotonic()
    try:
        if item.kind == "refusal":
            connection.send("read")
            reply = _refuse(item, models[item.run])
        else:
            image = predict.read_source(item.data, anyway=item.anyway)
            connection.send("read")
            reply = _classify(item, models[item.run], image, since)
    except predict.NoChestImage as problem:
        reply = Reply(422, code="no-chest-image", message=str(problem))
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


def _refuse(item: WorkItem, model: "ServedModel") -> Reply:
    from trustcxr.apps.serve import inference
    from trustcxr.data.images import dicom_files, greyscale

    accession = dicom_files.read_accession(item.data)
    try:
        return Reply(200, inference.refusal(model, item.data, item.why), DICOM, accession=accession)
    except greyscale.UnreadableImage as problem:
        return Reply(422, code="unreadable", message=str(problem), accession=accession)


def _classify(item: WorkItem, model: "ServedModel", image: "LoadedImage", since: float) -> Reply:
    from trustcxr.apps.serve import inference

    if item.kind == "dicom":
        return Reply(200, inference.as_dicom(model, item.data, image, epsilon=item.epsilon), DICOM)
    if item.kind == "heatmap":
        return Reply(200, inference.heatmap(model, image, method=item.method), PNG)
    if item.kind == "changed":
        return Reply(200, inference.changed(model, image).model_dump_json().encode())
    classify = inference.predict if item.kind == "predict" else inference.look_at_image
    return Reply(200, classify(model, image, epsilon=item.epsilon, since=since).model_dump_json().encode())
