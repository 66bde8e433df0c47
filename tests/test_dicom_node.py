"""`serve --dicom`: images in by C-STORE, two objects out, also through a real Orthanc; who may send, and how much."""

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")
pytest.importorskip("pynetdicom")
pytest.importorskip("prometheus_client")
from pydicom.dataset import Dataset  # noqa: E402
from pynetdicom import AE, evt  # noqa: E402

import small_runs  # noqa: E402
from dicom_images import CR, NUMBER, SECRET, answered, chest, complaints  # noqa: E402
from trustcxr.apps.dicom import writer  # noqa: E402
from trustcxr.apps.serve import dicom_node, inference  # noqa: E402
from trustcxr.apps.serve.api_models import Reply, WorkItem  # noqa: E402
from trustcxr.apps.serve.dicom_node import Node, NodeOptions, Peer  # noqa: E402
from trustcxr.apps.serve.worker import Limits  # noqa: E402
from trustcxr.data.images.dicom_files import RESULT_REASON  # noqa: E402
from trustcxr.errors import UserError  # noqa: E402

SC, SR = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.33"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.05)


@dataclass
class Archive:
    """A peer that keeps what it is sent."""

    port: int
    kept: list[Dataset]


@pytest.fixture
def archive() -> Iterator[Archive]:
    kept: list[Dataset] = []

    def keep(event: evt.Event) -> int:
        found = event.dataset
        found.file_meta = event.file_meta
        kept.append(found)
        return 0

    entity = AE(ae_title="ARCHIVE")
    for kind in (SC, SR):
        entity.add_supported_context(kind)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    yield Archive(server.server_address[1], kept)
    server.shutdown()


class Stub:
    """In a worker's place: it says what the test says."""

    alive = True

    def __init__(self, reply: Callable[[bytes], Reply]) -> None:
        self.reply, self.images = reply, []  # type: ignore[var-annotated]

    def ask(self, asked: WorkItem) -> Reply:
        if asked.kind == "refusal":  # as a worker does, without its run
            return inference.refuse(asked, "run")
        self.images.append(asked.data)
        return self.reply(asked.data)

    def kill(self) -> None:
        self.alive = False


@contextlib.contextmanager
def node(
    archive: Archive,
    monkeypatch: pytest.MonkeyPatch,
    reply: Callable[[bytes], Reply],
    log_accession: bool = False,
    **limits: object,
) -> Iterator[Node]:
    monkeypatch.setattr(Node, "_new_worker", lambda _: Stub(reply))
    options = {"callers": ("MODALITY",), "port": 0, "log_accession": log_accession}
    place = NodeOptions.from_peer(f"ARCHIVE@127.0.0.1:{archive.port}", **options)  # type: ignore[arg-type]
    with contextlib.closing(Node(Path("run"), place, Limits(**limits))) as found:  # type: ignore[arg-type]
        yield found


def send(to: Node, image: Path | Dataset, *, caller: str = "MODALITY", called: str = "TRUSTCXR") -> int | None:
    """The status of a C-STORE; None where there was none."""
    image = pydicom.dcmread(image) if isinstance(image, Path) else image
    entity = AE(ae_title=caller)
    entity.add_requested_context(image.SOPClassUID, image.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", to.options.port, ae_title=called)
    if not association.is_established:
        return None
    try:
        return association.send_c_store(image).get("Status")
    finally:
        association.release()


def real_answer(image: Path) -> Reply:
    heatmap = answered(image)
    with writer.Image.open(str(heatmap.heatmap)) as picture:
        objects = writer.make_objects(image, heatmap, picture)
    return Reply(200, files=tuple(map(writer.to_file, objects)))


def test_a_image_is_answered_with_both_objects(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    image = chest(tmp_path / "x.dcm")
    reply = real_answer(image)
    with node(archive, monkeypatch, lambda data: reply) as found:
        assert send(found, image) == 0
        until(lambda: found.answered == 1)
        (taken,) = found._worker.images
    assert [kept.SOPClassUID for kept in archive.kept] == [SC, SR]
    assert {kept.StudyInstanceUID for kept in archive.kept} == {pydicom.dcmread(image).StudyInstanceUID}
    assert pydicom.dcmread(pydicom.filebase.DicomBytesIO(taken)).SOPInstanceUID == pydicom.dcmread(image).SOPInstanceUID
    said = "".join(capfd.readouterr()) + caplog.text
    assert "an image was answered" in said
    assert not any(part in said for part in (*SECRET.split("^"), NUMBER, "MODALITY\n"))


def test_who_is_not_known_and_what_is_no_image_is_turned_away(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = chest(tmp_path / "x.dcm")
    ct = pydicom.dcmread(image)
    ct.SOPClassUID = ct.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    with node(archive, monkeypatch, lambda data: Reply(422, code="unreadable", message="a lateral view")) as found:
        assert found.options.host == "127.0.0.1"
        assert send(found, image, caller="STRANGER") is None
        assert send(found, image, called="ANOTHER") is None
        assert send(found, ct) is None
        assert found._worker.images == []
        assert found.refused == 0
    assert archive.kept == []


@pytest.mark.parametrize("logged", [False, True])
def test_an_image_without_an_answer_gets_a_report_of_why(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], logged: bool
) -> None:
    image = chest(tmp_path / "x.dcm", AccessionNumber="A-77\n")
    why = Reply(422, code="no-chest-image", message="no upright frontal chest radiograph: it is in colour")
    with node(archive, monkeypatch, lambda data: why, log_accession=logged) as found:
        assert send(found, image) == 0
        until(lambda: found.refused == 1)
    (report,) = archive.kept
    source = pydicom.dcmread(image)
    assert (report.SOPClassUID, report.StudyInstanceUID) == (SR, source.StudyInstanceUID)
    assert report.PatientID == source.PatientID
    texts = [str(item.value) for item in report.iterall() if item.keyword == "TextValue"]
    assert f"No class was answered: {why.message}" in texts
    assert not any(item.keyword == "MeasuredValueSequence" for item in report.iterall())
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    said = capfd.readouterr().err
    assert f"an image was not answered: {why.message}{', accession number A-77' if logged else ''}\n" in said
    assert ("A-77" in said) == logged
    assert not any(part in said for part in (*SECRET.split("^"), NUMBER))
    assert complaints(tmp_path / "report.dcm") == []


def test_an_image_whose_header_allows_no_report_is_logged(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = Reply(422, code="unreadable", message=RESULT_REASON)
    for image, reply in (
        (chest(tmp_path / "x.dcm", StudyInstanceUID=None), Reply(422, code="unreadable", message="a lateral view")),
        (chest(tmp_path / "own.dcm"), own),  # no report of a report: an archive may send our results back
    ):
        with node(archive, monkeypatch, lambda data, reply=reply: reply) as found:
            assert send(found, image) == 0
            until(lambda found=found: found.refused == 1)
    assert archive.kept == []
    said = capfd.readouterr().err
    assert "a lateral view; no DICOM report: its header has no StudyInstanceUID" in said
    assert said.count("was not answered") == 2


def test_no_message_is_larger_and_no_queue_longer_than_allowed(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = chest(tmp_path / "x.dcm")
    large = pydicom.dcmread(image)
    large.Rows = large.Columns = 2048
    large.PixelData = bytes(2 * 2048 * 2048)
    hold = []

    def slowly(_: bytes) -> Reply:
        until(lambda: hold)
        return Reply(422, code="unreadable", message="no")

    with node(archive, monkeypatch, slowly, most_bytes=1 << 20, waiting=1) as found:
        with contextlib.suppress(RuntimeError):
            assert send(found, large) is None
        until(lambda: found.refused == 1)
        assert send(found, image) == 0
        until(lambda: found._worker.images)
        assert send(found, image) == 0
        assert send(found, image) == dicom_node.FULL
        hold.append(1)


def test_a_peer_that_is_not_there_is_told_in_a_line(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = chest(tmp_path / "x.dcm")
    reply = real_answer(image)
    monkeypatch.setattr(dicom_node, "_RETRY_AFTER", (0.01,))
    gone = Archive(free_port(), [])
    with node(gone, monkeypatch, lambda data: reply) as found:
        assert send(found, image) == 0
        until(lambda: found.lost == 1)
        found.options = replace(found.options, peer=Peer("ARCHIVE", "no-such-host.invalid", 104))
        for lost in (2, 3):  # a name that nobody knows does not end the one who answers
            assert send(found, image) == 0
            until(lambda lost=lost: found.lost == lost)
    assert capfd.readouterr().err.count("could not be sent") == 3


def test_an_error_that_nobody_foresaw_costs_one_image_and_is_counted(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = chest(tmp_path / "x.dcm")
    replies = iter((real_answer(image), Reply(200, files=(b"no answer",)), real_answer(image)))
    with node(archive, monkeypatch, lambda data: next(replies)) as found:
        known = found.options
        found.options = replace(known, peer=Peer("ARCHIVE", "pacs..local", 104))
        for lost in (1, 2):
            assert send(found, image) == 0
            until(lambda lost=lost: found.lost == lost, 10)
        found.options = known
        assert send(found, image) == 0
        until(lambda: found.answered == 1, 10)
    said = capfd.readouterr().err
    assert "DICOM: an image was lost: UnicodeError" in said
    assert "not answered" not in said


def test_a_peer_that_never_answers_is_not_waited_for_when_it_ends(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = chest(tmp_path / "x.dcm")
    reply = real_answer(image)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with node(Archive(silent.getsockname()[1], []), monkeypatch, lambda data: reply) as found:
            assert send(found, image) == 0
            until(lambda: found._sending is not None)
            start = time.monotonic()
        assert time.monotonic() - start < 4
        assert not found._thread.is_alive()


def test_images_that_wait_when_it_ends_are_told(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = chest(tmp_path / "x.dcm")

    def slowly(_: bytes) -> Reply:
        until(found._ending.is_set)
        return Reply(503, code="busy", message="it was killed")

    with node(archive, monkeypatch, slowly) as found:
        for _ in range(3):
            assert send(found, image) == 0
    assert "DICOM: received but not answered: 3 images" in capfd.readouterr().err


def test_what_is_typed_is_checked() -> None:
    assert Peer.parse("ORTHANC@127.0.0.1:4242") == Peer("ORTHANC", "127.0.0.1", 4242)
    assert NodeOptions.from_peer("PACS@[::1]:104").callers == ("PACS",)
    typed = (
        "ORTHANC",
        "ORTHANC@here",
        "@here:1",
        "A@here:0",
        "A@here:70000",
        "x" * 17 + "@here:1",
        "A\\B@here:1",
        "A@here:²",
    )
    for text in (*typed, "PACS@pacs..local:104", f"PACS@{'x' * 64}.local:104"):
        with pytest.raises(UserError, match=r"TITLE@HOST:PORT|AE title"):
            Peer.parse(text)
    with pytest.raises(UserError, match="AE title"):
        NodeOptions.from_peer("ORTHANC@127.0.0.1:4242", title="x" * 17)


@dataclass
class Orthanc:
    """A real archive on this machine, started for the test."""

    http: int
    dicom: int

    @property
    def web(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def ask(self, path: str, body: bytes | None = None) -> object:
        with urllib.request.urlopen(urllib.request.Request(self.web + path, data=body), timeout=60) as answer:
            return json.loads(answer.read() or b"null")


@contextlib.contextmanager
def orthanc(folder: Path, ours: int) -> Iterator[Orthanc]:
    """Orthanc on free ports of the loopback, its own configuration and folder; skips where there is none."""
    program = shutil.which("Orthanc") or shutil.which("orthanc")
    plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    if program is None or not plugin.exists():
        pytest.skip("no Orthanc with DICOMweb here: Debian's orthanc and orthanc-dicomweb")
    found = Orthanc(free_port(), free_port())
    configuration = {
        "Name": "test", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": found.http, "DicomPort": found.dicom, "DicomAet": "ORTHANC", "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "Plugins": [str(plugin)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "DicomModalities": {"trustcxr": ["TRUSTCXR", "127.0.0.1", ours]}, "DicomCheckCalledAet": True,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:

        def answers_now() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(OSError):
                return bool(found.ask("/system"))
            return False

        until(answers_now, 120)
        yield found
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_round_trip_through_orthanc(tmp_path: Path) -> None:
    """In by DICOMweb (STOW), to us by C-STORE, back by C-STORE, out by DICOMweb: valid, and referring to the image."""
    dicomweb = pytest.importorskip("dicomweb_client.api")
    ours = free_port()
    image = chest(tmp_path / "x.dcm", side=256)
    source = pydicom.dcmread(image)
    run = small_runs.untrained(tmp_path / "run")
    with orthanc(tmp_path, ours) as archive:
        place = NodeOptions.from_peer(f"ORTHANC@127.0.0.1:{archive.dicom}", port=ours)
        web = dicomweb.DICOMwebClient(f"{archive.web}/dicom-web")
        web.store_instances([source])
        (stored,) = archive.ask("/instances")
        with contextlib.closing(Node(run, place, Limits(workers=1))) as found:
            archive.ask("/modalities/trustcxr/store", json.dumps([stored]).encode())
            until(lambda: found.answered + found.refused + found.lost, 120)
            assert (found.answered, found.refused, found.lost) == (1, 0, 0)
            # What is archived goes out to us again: an answer is no image, and is not answered.
            loop = [name for name in archive.ask("/instances") if name != stored]
            heatmap = next(n for n in loop if archive.ask(f"/instances/{n}/simplified-tags")["Modality"] == "OT")
            archive.ask("/modalities/trustcxr/store", json.dumps([heatmap]).encode())
            until(lambda: found.refused == 1, 60)
            series = web.search_for_series(study_instance_uid=source.StudyInstanceUID)
            assert len(series) == 3
            back = web.retrieve_study(source.StudyInstanceUID)
            # A whole study: the image is answered anew, and the report does not break it off.
            archive.ask("/modalities/trustcxr/store", json.dumps(archive.ask("/studies")).encode())
            until(lambda: (found.answered, found.refused) == (2, 3), 120)
    made = {str(each.SOPClassUID): each for each in back}
    assert set(made) == {CR, SC, SR}
    assert made[SC].SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    for kind in (SC, SR):
        assert made[kind].PatientID == source.PatientID
        made[kind].save_as(tmp_path / f"{kind}.dcm", enforce_file_format=True)
        assert complaints(tmp_path / f"{kind}.dcm") == []
    assert made[SR].CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID == source.StudyInstanceUID


@pytest.mark.slow
def test_the_command_listens_and_ends(tmp_path: Path) -> None:
    """`trustcxr serve RUN --dicom`, as it is typed: answers C-ECHO, takes a hostile image in a line, ends by Ctrl-C."""
    run, port = small_runs.untrained(tmp_path / "run"), free_port()
    image = pydicom.dcmread(chest(tmp_path / "x.dcm"))
    image.PixelData = image.PixelData[:100]
    options = f"--port 0 --workers 1 --dicom PEER@127.0.0.1:9 --dicom-port {port}".split()
    command = [sys.executable, "-m", "trustcxr", "serve", str(run), *options]
    with (tmp_path / "said").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
    said = tmp_path / "said"
    try:
        until(lambda: process.poll() is not None or b"open http" in said.read_bytes(), 180)
        other = SimpleNamespace(options=NodeOptions.from_peer("PEER@127.0.0.1:9", port=port))
        assert send(other, image, caller="PEER") == 0
        until(lambda: b"an image was not answered" in said.read_bytes())
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)
    finally:
        process.kill()
    text = said.read_text()
    assert "damaged DICOM file" in text
    assert "Traceback" not in text
    assert not any(part in text for part in (*SECRET.split("^"), NUMBER))
