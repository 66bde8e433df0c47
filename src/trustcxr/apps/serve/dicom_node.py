"""Run a DICOM node: receive images by C-STORE, and send the two answer objects, or a report of why not, to one peer.

By default only this machine can connect. Images stay in memory until they are answered, and are never named. A worker
decodes and classifies them, as for the page.
"""

import logging
import math
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from trustcxr.apps.serve.api_models import Reply, WorkItem
from trustcxr.apps.serve.worker import Limits, Worker
from trustcxr.console import log, plural
from trustcxr.data.images.dicom_files import IMAGES, INSTALL, RESULT_REASON
from trustcxr.errors import UserError, require

if TYPE_CHECKING:
    from pydicom import Dataset

REPORT = "1.2.840.10008.5.1.4.1.1.88.33"  # Comprehensive SR: an archive may send our answers back
STORED, FULL, NO_IMAGE = 0x0000, 0xA700, 0xA900  # statuses of PS3.4 B.2.3
_WITH_WARNING = (0xB000, 0xB006, 0xB007)  # stored, with a warning
_RETRY_AFTER = (1.0, 5.0)  # seconds until an answer is sent again


class Peer(NamedTuple):
    """Another node: AE title, host and port."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Peer":
        """Parse TITLE@HOST:PORT. Raises UserError for anything else."""
        title, at, address = text.rpartition("@")
        host, colon, port = address.rpartition(":")
        if not (at and colon and host and port.isdecimal() and 0 < int(port) < 65536):
            raise UserError(f"'{text}': a DICOM peer is TITLE@HOST:PORT, such as ORTHANC@127.0.0.1:4242")
        try:
            host.encode("idna")  # as the system's name lookup does
        except UnicodeError:
            raise UserError(f"'{text}': {host} is not a host name; a peer is TITLE@HOST:PORT") from None
        return cls(check_title(title), host.strip("[]"), int(port))


@dataclass(frozen=True)
class NodeOptions:
    """Title and address of the node, AE titles that may send, and the peer that gets the answers.

    log_accession: log the accession number of each image that is not answered.
    """

    peer: Peer
    callers: tuple[str, ...]
    title: str = "TRUSTCXR"
    host: str = "127.0.0.1"
    port: int = 11112  # IANA's for DICOM without a privileged port
    log_accession: bool = False

    @classmethod
    def from_peer(cls, peer: str, *, callers: tuple[str, ...] = (), **options: Any) -> "NodeOptions":
        """Return options for a peer as typed. Without callers, only the peer may send."""
        parsed = Peer.parse(peer)
        node = cls(parsed, tuple(check_title(caller) for caller in callers) or (parsed.title,), **options)
        return replace(node, title=check_title(node.title))


def check_title(title: str) -> str:
    """Return a valid AE title (PS3.5 6.2): 1 to 16 printable characters without a backslash."""
    text = title.strip()
    if not 1 <= len(text) <= 16 or "\\" in text or not (text.isascii() and text.isprintable()):
        raise UserError(f"'{title}': an AE title has 1 to 16 printable characters and no backslash")
    return text


class Node:
    """A DICOM node, until it is closed. answered, refused, lost: image counts. options.port is the real port."""

    def __init__(self, run: Path, options: NodeOptions, limits: Limits) -> None:
        """Load the run, listen, and answer what arrives. Raises UserError if a package or the port is missing."""
        require("serve --dicom needs", INSTALL, "highdicom", "pynetdicom")
        self.run, self.limits = run, limits
        self.answered = self.refused = self.lost = 0
        self._images: queue.Queue[bytes | None] = queue.Queue(limits.waiting)
        self._bytes: WeakKeyDictionary[Any, float] = WeakKeyDictionary()  # of each association's current message
        self._sending: Any = None  # the current association with the peer
        self._ending = threading.Event()
        self._worker = self._new_worker()
        self._server = self._listen(options)
        self.options = replace(options, port=self._server.server_address[1])
        self._thread = threading.Thread(target=self._work, name="trustcxr-dicom", daemon=True)
        self._thread.start()
        log(
            f"DICOM: {options.title} at {options.host}:{self.options.port} accepts images from "
            f"{', '.join(options.callers)}, sends answers of {run.name} to {options.peer.title}"
        )

    def close(self) -> None:
        """Stop; queued images are not answered, and their number is logged."""
        self._ending.set()
        self._server.shutdown()
        woken = 0
        with suppress(queue.Full):
            self._images.put_nowait(None)
            woken = 1
        self._worker.kill()
        with suppress(AttributeError, OSError):  # there is no association, or it has just ended
            self._sending.dul.socket.close()  # do not wait for a silent peer
        self._thread.join(5)
        if left := self._images.unfinished_tasks - woken:
            log(f"DICOM: received but not answered: {plural(left, 'image')}. Send them again.")

    def _listen(self, options: NodeOptions) -> Any:
        from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, _config, evt

        # The log of pynetdicom quotes data sets and titles.
        _config.LOG_HANDLER_LEVEL = "none"
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
        entity = AE(ae_title=options.title)
        entity.require_called_aet = True
        entity.require_calling_aet = list(options.callers)
        entity.maximum_associations, entity.maximum_pdu_size = 4, 1 << 17
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.limits.upload
        entity.add_supported_context("1.2.840.10008.1.1")  # C-ECHO
        for kind in (*IMAGES, REPORT):
            entity.add_supported_context(kind, ALL_TRANSFER_SYNTAXES)
        handlers: Any = [(evt.EVT_C_STORE, self._receive), (evt.EVT_DATA_RECV, self._limit_size)]
        try:
            return entity.start_server((options.host, options.port), block=False, evt_handlers=handlers)
        except OSError as problem:
            self._worker.kill()
            where, reason = f"{options.host}:{options.port}", problem.strerror or problem
            raise UserError(f"{where}: cannot listen there ({reason}); choose another --dicom-port") from None

    def _limit_size(self, event: Any) -> None:
        """Abort an association whose message is larger than the limit for an image."""
        self._bytes[event.assoc] = self._bytes.get(event.assoc, 0) + len(event.data)
        if self._bytes[event.assoc] > self.limits.most_bytes + (1 << 20):  # a message is more than its image
            self._bytes[event.assoc] = -math.inf  # it is aborted: what comes late is not refused again
            self._refuse(f"more than {self.limits.most_bytes >> 20} MB")
            event.assoc.abort(block=False)

    def _receive(self, event: Any) -> int:
        """Queue an image; the worker decodes and checks it."""
        self._bytes[event.assoc] = 0
        kind = event.request.AffectedSOPClassUID
        if kind == REPORT:  # accepted: otherwise its sender stops before the images that follow
            self._refuse("it is a report, not an image")
            return STORED
        if kind not in IMAGES:
            return NO_IMAGE
        try:
            self._images.put_nowait(event.encoded_dataset())
        except queue.Full:
            self._refuse("the queue is full")
            return FULL
        return STORED

    def _work(self) -> None:
        while not self._ending.is_set() and (image := self._images.get()) is not None:
            try:
                if not self._answer(image):
                    return
            except Exception as problem:  # its text may quote the image
                self.lost += 1
                log(f"DICOM: an image was lost: {type(problem).__name__}")
            self._images.task_done()

    def _answer(self, image: bytes) -> bool:
        """Answer one image. Returns False if the node stopped first."""
        start = time.monotonic()
        reply = self._ask(WorkItem("dicom", image))
        if self._ending.is_set():
            return False
        if reply.code:
            self._report(image, reply.message)
        elif self._send(reply.files):
            self.answered += 1
            log(f"DICOM: an image was answered, {time.monotonic() - start:.1f} s")
        else:
            return not self._ending.is_set()
        return True

    def _report(self, image: bytes, why: str) -> None:
        """Send a report of why an image is not answered, and log it; a result of ours needs no report."""
        if why == RESULT_REASON:
            return self._refuse(why)
        reply = self._ask(WorkItem("refusal", image, why=why))
        sent = not reply.code and self._send(reply.files)
        accession = f", accession number {reply.accession}" if self.options.log_accession and reply.accession else ""
        unsent = "" if sent else f"; {reply.message or 'its report was not sent'}"
        return self._refuse(f"{why}{accession}{unsent}")

    def _ask(self, item: WorkItem) -> Reply:
        try:
            if not self._worker.alive:
                self._worker = self._new_worker()
        except (UserError, OSError) as problem:
            return Reply(503, code="busy", message=str(problem))
        return self._worker.ask(item)

    def _new_worker(self) -> Worker:
        worker = Worker([self.run], self.limits, 1)
        worker.load()
        return worker

    def _refuse(self, why: str) -> None:
        self.refused += 1
        log(f"DICOM: an image was not answered: {why}")

    def _send(self, files: tuple[bytes, ...]) -> bool:
        """Send the DICOM files of an answer, with retries. Returns True if the peer has accepted all."""
        import pydicom

        left: list[Dataset] = [pydicom.dcmread(BytesIO(file)) for file in files]
        for wait in (0.0, *_RETRY_AFTER):
            if self._ending.wait(wait):
                return False
            if not (left := self._send_objects(left)):
                return True
        self.lost += 1
        peer = self.options.peer
        log(f"DICOM: an answer could not be sent: {peer.title} at {peer.host}:{peer.port} does not accept it")
        return False

    def _send_objects(self, objects: "list[Dataset]") -> "list[Dataset]":
        """Send objects, and return those that the peer did not accept."""
        from pynetdicom import AE, evt

        def opened(event: Any) -> None:
            self._sending = event.assoc

        entity = AE(ae_title=self.options.title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.limits.upload
        for each in objects:
            entity.add_requested_context(each.SOPClassUID, each.file_meta.TransferSyntaxUID)
        peer, handlers = self.options.peer, cast(Any, [(evt.EVT_CONN_OPEN, opened)])
        try:
            association = entity.associate(peer.host, peer.port, ae_title=peer.title, evt_handlers=handlers)
        except OSError:  # unknown host
            return objects
        if not association.is_established:
            return objects
        try:
            return [each for each in objects if not _is_stored(association, each)]
        finally:
            association.release()
            self._sending = None


def _is_stored(association: Any, each: "Dataset") -> bool:
    try:
        status = association.send_c_store(each).get("Status")
    except (RuntimeError, ValueError, AttributeError):  # the association ended, or does not accept this kind
        return False
    return status == STORED or status in _WITH_WARNING
