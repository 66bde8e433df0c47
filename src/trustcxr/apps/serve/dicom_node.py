"""A DICOM node beside the page: it receives images by C-STORE, and sends the answer's two objects to one peer.

It listens on this machine alone unless told otherwise, takes images from the callers that it knows, holds them in
memory until they are answered, and says of none whose it is. Decoding and answering are a worker's, as for the page.
"""

import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustcxr.apps.serve.worker import Limits, Reply, Worker, WorkItem
from trustcxr.console import log
from trustcxr.data.images.dicom_files import IMAGES, INSTALL
from trustcxr.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

TITLE = "TRUSTCXR"
PORT = 11112  # IANA's for DICOM without a privileged port
REPORT = "1.2.840.10008.5.1.4.1.1.88.33"  # Comprehensive SR: our answers, where an archive sends a whole study back
STORED, FULL, NO_IMAGE = 0x0000, 0xA700, 0xA900  # statuses of PS3.4 B.2.3
_WITH_WARNING = (0xB000, 0xB006, 0xB007)  # stored too
_CALLERS_AT_ONCE, _PDU = 4, 1 << 17
_AGAIN_AFTER = (1.0, 5.0)  # seconds until an answer is sent again to a peer that did not take it
_OVERHEAD = 1 << 20  # of a message beside the image
_ENDED = -(1 << 60)  # bytes held, so that what still arrives of an association that is ended is not told again


@dataclass(frozen=True)
class Peer:
    """Another node: its title and where it listens."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Peer":
        """TITLE@HOST:PORT; UserError for all else."""
        title, at, address = text.rpartition("@")
        host, colon, port = address.rpartition(":")
        if not (at and colon and host and port.isdigit() and 0 < int(port) < 65536):
            raise UserError(f"'{text}': a DICOM peer is TITLE@HOST:PORT, such as ORTHANC@127.0.0.1:4242")
        try:
            host.encode("idna")  # as the system does when it looks a name up
        except UnicodeError:
            raise UserError(f"'{text}': {host} is no name of a machine; a peer is TITLE@HOST:PORT") from None
        return cls(checked(title), host.strip("[]"), int(port))


@dataclass(frozen=True)
class NodeOptions:
    """Where the node listens and as what, who may send to it, and who gets the answers."""

    peer: Peer
    callers: tuple[str, ...]
    title: str = TITLE
    host: str = "127.0.0.1"
    port: int = PORT

    @classmethod
    def from_peer(cls, peer: str, *, callers: tuple[str, ...] = (), **options: Any) -> "NodeOptions":
        """As it is typed. Without callers the peer alone may send."""
        parsed = Peer.parse(peer)
        node = cls(parsed, tuple(checked(caller) for caller in callers) or (parsed.title,), **options)
        return replace(node, title=checked(node.title))


def checked(title: str) -> str:
    """An AE title as the standard allows it (PS3.5 6.2): 1 to 16 printable characters without a backslash."""
    text = title.strip()
    if not 1 <= len(text) <= 16 or "\\" in text or not (text.isascii() and text.isprintable()):
        raise UserError(f"'{title}': an AE title has 1 to 16 printable characters and no backslash")
    return text


@contextmanager
def listening(run: Path, options: NodeOptions, limits: Limits) -> Iterator["Node"]:
    """The node while the block runs. UserError where pynetdicom is not there, or the port cannot be had."""
    try:
        import highdicom  # noqa: F401
        import pynetdicom  # noqa: F401
    except ImportError as problem:
        raise UserError(f"serve --dicom needs {problem.name}: {INSTALL}") from None
    node = Node(run, options, limits)
    try:
        node.start()
        yield node
    finally:
        node.stop()


class Node:
    """`answered`, `refused`, `lost`: images since the start. `options.port` is the real one once it is started."""

    def __init__(self, run: Path, options: NodeOptions, limits: Limits) -> None:
        self.run, self.options, self.limits = run, options, limits
        self.answered = self.refused = self.lost = 0
        self._images: queue.Queue[bytes | None] = queue.Queue(limits.waiting)
        self._held: dict[int, int] = {}  # bytes of the message that an association is sending
        self._worker: Worker | None = None
        self._server: Any = None
        self._sending: Any = None  # the association with the peer, while there is one
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="trustcxr-dicom", daemon=True)

    def start(self) -> None:
        """Listen once the run is loaded."""
        self._worker = self._new_worker()
        self._server = self._listen()
        self.options = replace(self.options, port=self._server.server_address[1])
        self._thread.start()
        log(
            f"DICOM: {self.options.title} at {self.options.host}:{self.options.port} takes images from "
            f"{', '.join(self.options.callers)}, answers to {self.options.peer.title}"
        )

    def stop(self) -> None:
        """Listen no more and end; images that wait are not answered, and it says how many."""
        self._ending.set()
        if self._server is not None:
            self._server.shutdown()
        woken = 0
        with suppress(queue.Full):
            self._images.put_nowait(None)
            woken = 1
        if self._worker is not None:
            self._worker.kill()
        with suppress(AttributeError, OSError):  # there is none, or it ended just now
            self._sending.dul.socket.close()  # a peer that does not answer is waited for no longer
        if self._thread.is_alive():
            self._thread.join(5)
        if left := self._images.unfinished_tasks - woken:
            log(f"DICOM: {left} image(s) that were stored here were not answered: send them again")

    # --- receiving ---------------------------------------------------------------------------------------------------

    def _listen(self) -> Any:
        from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, _config, evt

        # Its log quotes data sets and titles; ours says what happened.
        _config.LOG_HANDLER_LEVEL = "none"
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
        entity = AE(ae_title=self.options.title)
        entity.require_called_aet = True
        entity.require_calling_aet = list(self.options.callers)
        entity.maximum_associations, entity.maximum_pdu_size = _CALLERS_AT_ONCE, _PDU
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.limits.upload
        entity.add_supported_context("1.2.840.10008.1.1")  # C-ECHO
        for kind in (*IMAGES, REPORT):
            entity.add_supported_context(kind, ALL_TRANSFER_SYNTAXES)
        handlers: Any = [
            (evt.EVT_C_STORE, self._take),
            (evt.EVT_DATA_RECV, self._weigh),
            (evt.EVT_CONN_CLOSE, self._forget),
        ]
        try:
            return entity.start_server((self.options.host, self.options.port), block=False, evt_handlers=handlers)
        except OSError as problem:
            where = f"{self.options.host}:{self.options.port}"
            reason = problem.strerror or problem
            raise UserError(f"{where}: cannot listen there ({reason}); choose another --dicom-port") from None

    def _weigh(self, event: Any) -> None:
        """End an association whose message is larger than an image may be: nothing bounds it otherwise."""
        key = id(event.assoc)
        self._held[key] = self._held.get(key, 0) + len(event.data)
        if self._held[key] > self.limits.most_bytes + _OVERHEAD:
            self._held[key] = _ENDED
            self._refuse(f"more than {self.limits.most_bytes >> 20} MB")
            event.assoc.abort(block=False)

    def _forget(self, event: Any) -> None:
        self._held.pop(id(event.assoc), None)

    def _take(self, event: Any) -> int:
        """Put an image in the queue, as it came: what is wrong with it is found where it is decoded."""
        self._held[id(event.assoc)] = 0
        kind = event.request.AffectedSOPClassUID
        if kind == REPORT:  # taken, since its sender would break off with the images behind it
            self._refuse("a report, and no image")
            return STORED
        if kind not in IMAGES:
            return NO_IMAGE
        try:
            self._images.put_nowait(event.encoded_dataset())
        except queue.Full:
            self._refuse("too many wait already; its sender is told so")
            return FULL
        return STORED

    # --- answering ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._ending.is_set() and (image := self._images.get()) is not None:
            try:
                if not self._answer(image):
                    return
            except Exception as problem:  # its words may be of the image; the next one is answered all the same
                self.lost += 1
                log(f"DICOM: an image was lost: {type(problem).__name__}")
            self._images.task_done()

    def _answer(self, image: bytes) -> bool:
        """Whether what becomes of the image is known: not where the node ends before."""
        start = time.monotonic()
        reply = self._ask(image)
        if self._ending.is_set():
            return False
        if reply.code:
            self._refuse(reply.message)
        elif self._send(reply.body):
            self.answered += 1
            log(f"DICOM: an image was answered, {time.monotonic() - start:.1f} s")
        else:
            return not self._ending.is_set()
        return True

    def _ask(self, image: bytes) -> Reply:
        worker = self._worker
        if worker is None or not worker.alive:
            try:
                self._worker = worker = self._new_worker()
            except (UserError, OSError) as problem:
                return Reply(503, code="busy", message=str(problem))
        return worker.ask(WorkItem("dicom", image))

    def _new_worker(self) -> Worker:
        worker = Worker([self.run], self.limits, 1)
        models = worker.ready()
        if isinstance(models, str):
            raise UserError(models)
        return worker

    def _refuse(self, why: str) -> None:
        self.refused += 1
        log(f"DICOM: an image was not answered: {why}")

    def _send(self, body: bytes) -> bool:
        """Send both objects, and again after each of _AGAIN_AFTER what the peer did not take; whether it has them."""
        from trustcxr.apps.dicom import writer

        left = writer.unpack_objects(body)
        for wait in (0.0, *_AGAIN_AFTER):
            if self._ending.wait(wait):
                return False
            if not (left := self._not_taken(left)):
                return True
        self.lost += 1
        peer = self.options.peer
        log(f"DICOM: an answer could not be sent: {peer.title} at {peer.host}:{peer.port} does not take it")
        return False

    def _not_taken(self, objects: "list[Dataset]") -> "list[Dataset]":
        """Send them; those that the peer did not take."""
        from pynetdicom import AE, evt

        def opened(event: Any) -> None:
            self._sending = event.assoc

        entity = AE(ae_title=self.options.title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.limits.upload
        for each in objects:
            entity.add_requested_context(each.SOPClassUID, each.file_meta.TransferSyntaxUID)
        peer = self.options.peer
        try:
            association = entity.associate(
                peer.host, peer.port, ae_title=peer.title, evt_handlers=[(evt.EVT_CONN_OPEN, opened)]
            )
        except OSError:  # its name is not known (now)
            return objects
        if not association.is_established:
            return objects
        try:
            return [each for each in objects if not _taken(association, each)]
        finally:
            association.release()
            self._sending = None


def _taken(association: Any, each: "Dataset") -> bool:
    try:
        status = association.send_c_store(each).get("Status")
    except (RuntimeError, ValueError, AttributeError):  # the association ended, or its other end refuses this kind
        return False
    return status == STORED or status in _WITH_WARNING
