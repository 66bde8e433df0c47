"""`serve --dicom`: images in by C-STORE, two objects out, also through a real Orthanc; who may send, and how much."""

import contextlib
import json
import logging
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")
pytest.importorskip("pynetdicom")
pytest.importorskip("prometheus_client")
from benchmarks.speed import serve as bench  # noqa: E402
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
Captured = pytest.CaptureFixture[str]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.05)


class Archive:
    """A peer that keeps what it is sent."""

    def __init__(self) -> None:
        self.objects: list[Dataset] = []
        entity = AE(ae_title="ARCHIVE")
        for kind in (SC, SR):
            entity.add_supported_context(kind)
        self.server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        self.port = self.server.server_address[1]

    def _store(self, event: evt.Event) -> int:
        made = event.dataset
        made.file_meta = event.file_meta
        self.objects.append(made)
        return 0


@pytest.fixture
def archive() -> Iterator[Archive]:
    peer = Archive()
    yield peer
    peer.server.shutdown()


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
def node(port: int, reply: Callable[[bytes], Reply] | Reply, logged: bool = False, **limits: int) -> Iterator[Node]:
    """A node whose peer is at the port, and whose worker says the reply, or what the function says of the data."""
    options = {"callers": ("MODALITY",), "port": 0, "log_accession": logged}
    chosen = NodeOptions.from_peer(f"ARCHIVE@127.0.0.1:{port}", **options)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Node, "_new_worker", lambda _: Stub((lambda _: reply) if isinstance(reply, Reply) else reply))
        with contextlib.closing(Node(Path("run"), chosen, Limits(**limits))) as started:  # type: ignore[arg-type]
            yield started


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return chest(tmp_path / "x.dcm")


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


def send_and_wait(to: Node, image: Path) -> tuple[int, int, int]:
    """How many images were answered, refused and lost, as soon as this one is."""
    before = to.answered + to.refused + to.lost
    assert send(to, image) == 0
    until(lambda: to.answered + to.refused + to.lost > before)
    return to.answered, to.refused, to.lost


def real_answer(image: Path) -> Reply:
    heatmap = answered(image)
    with writer.Image.open(str(heatmap.heatmap)) as picture:
        objects = writer.make_objects(image, heatmap, picture)
    return Reply(200, files=tuple(map(writer.to_file, objects)))


def test_an_image_gets_both_objects(
    archive: Archive, image: Path, capfd: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    source = pydicom.dcmread(image)
    with node(archive.port, real_answer(image)) as found:
        assert send_and_wait(found, image) == (1, 0, 0)
        (taken,) = found._worker.images
    assert [made.SOPClassUID for made in archive.objects] == [SC, SR]
    assert {made.StudyInstanceUID for made in archive.objects} == {source.StudyInstanceUID}
    assert pydicom.dcmread(pydicom.filebase.DicomBytesIO(taken)).SOPInstanceUID == source.SOPInstanceUID
    said = "".join(capfd.readouterr()) + caplog.text
    assert "an image was answered" in said
    assert not any(part in said for part in (*SECRET.split("^"), NUMBER, "MODALITY\n"))


def test_who_is_not_known_and_what_is_no_image_is_turned_away(archive: Archive, image: Path) -> None:
    ct = pydicom.dcmread(image)
    ct.SOPClassUID = ct.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    with node(archive.port, Reply(422, code="unreadable", message="a lateral view")) as found:
        assert found.options.host == "127.0.0.1"
        assert send(found, image, caller="STRANGER") is None
        assert send(found, image, called="ANOTHER") is None
        assert send(found, ct) is None
        assert (found._worker.images, found.refused) == ([], 0)
    assert archive.objects == []


@pytest.mark.parametrize("logged", [False, True])
def test_without_an_answer_a_report_says_why(archive: Archive, tmp_path: Path, capfd: Captured, logged: bool) -> None:
    image = chest(tmp_path / "x.dcm", AccessionNumber="A-77\n")
    why = Reply(422, code="no-chest-image", message="no upright frontal chest radiograph: it is in colour")
    with node(archive.port, why, logged) as found:
        assert send_and_wait(found, image) == (0, 1, 0)
    (report,) = archive.objects
    source = pydicom.dcmread(image)
    belongs = report.SOPClassUID, report.StudyInstanceUID, report.PatientID
    assert belongs == (SR, source.StudyInstanceUID, source.PatientID)
    texts = [str(item.value) for item in report.iterall() if item.keyword == "TextValue"]
    assert f"No class was answered: {why.message}" in texts
    assert not any(item.keyword == "MeasuredValueSequence" for item in report.iterall())
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    said = capfd.readouterr().err
    assert f"an image was not answered: {why.message}{', accession number A-77' if logged else ''}\n" in said
    assert ("A-77" in said) == logged
    assert not any(part in said for part in (*SECRET.split("^"), NUMBER))
    assert complaints(tmp_path / "report.dcm") == []


def test_an_image_that_gets_no_report_is_logged(archive: Archive, image: Path, tmp_path: Path, capfd: Captured) -> None:
    for path, message in (
        (chest(tmp_path / "no-study.dcm", StudyInstanceUID=None), "a lateral view"),
        (image, RESULT_REASON),  # no report of a report: an archive may send our results back
    ):
        with node(archive.port, Reply(422, code="unreadable", message=message)) as found:
            assert send_and_wait(found, path) == (0, 1, 0)
    assert archive.objects == []
    said = capfd.readouterr().err
    assert "a lateral view; no DICOM report: its header has no StudyInstanceUID" in said
    assert said.count("was not answered") == 2


def test_no_message_is_larger_and_no_queue_longer_than_allowed(archive: Archive, image: Path) -> None:
    large = pydicom.dcmread(image)
    large.Rows = large.Columns = 2048
    large.PixelData = bytes(2 * 2048 * 2048)
    hold = []

    def slowly(_: bytes) -> Reply:
        until(lambda: hold)
        return Reply(422, code="unreadable", message="no")

    with node(archive.port, slowly, most_bytes=1 << 20, waiting=1) as found:
        with contextlib.suppress(RuntimeError):
            assert send(found, large) is None
        until(lambda: found.refused == 1)
        assert send(found, image) == 0
        until(lambda: found._worker.images)
        assert send(found, image) == 0
        assert send(found, image) == dicom_node.FULL
        hold.append(1)


def test_what_cannot_be_sent_costs_one_image(
    archive: Archive, image: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    monkeypatch.setattr(dicom_node, "_RETRY_AFTER", (0.01,))
    good = real_answer(image)
    replies = iter((*[good] * 3, Reply(200, files=(b"no answer",)), good))
    with node(archive.port, lambda data: next(replies)) as found:
        known = found.options
        for lost, host in enumerate(("127.0.0.1", "no-such-host.invalid", "pacs..local"), 1):
            found.options = replace(known, peer=Peer("ARCHIVE", host, free_port()))
            assert send_and_wait(found, image) == (0, 0, lost)
        found.options = known
        assert send_and_wait(found, image) == (0, 0, 4)
        assert send_and_wait(found, image) == (1, 0, 4)
    lines = capfd.readouterr().err
    assert lines.count("could not be sent") == 2
    assert lines.count("DICOM: an image was lost: ") == 2
    assert "DICOM: an image was lost: UnicodeError" in lines, "nobody foresaw it"
    assert "not answered" not in lines


def test_a_peer_that_never_answers_is_not_waited_for_when_it_ends(image: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with node(silent.getsockname()[1], real_answer(image)) as found:
            assert send(found, image) == 0
            until(lambda: found._sending is not None)
            start = time.monotonic()
        assert time.monotonic() - start < 4
        assert not found._thread.is_alive()


def test_images_that_wait_when_it_ends_are_told(image: Path, capfd: Captured) -> None:
    def slowly(_: bytes) -> Reply:
        until(found._ending.is_set)
        return Reply(503, code="busy", message="it was killed")

    with node(free_port(), slowly) as found:
        for _ in range(3):
            assert send(found, image) == 0
    assert "DICOM: received but not answered: 3 images" in capfd.readouterr().err


def test_what_is_typed_is_checked() -> None:
    assert Peer.parse("ORTHANC@127.0.0.1:4242") == Peer("ORTHANC", "127.0.0.1", 4242)
    assert NodeOptions.from_peer("PACS@[::1]:104").callers == ("PACS",)
    for text in (
        "ORTHANC", "ORTHANC@here", "@here:1", "A@here:0", "A@here:70000", "x" * 17 + "@here:1", "A\\B@here:1",
        "A@here:²", "PACS@pacs..local:104", f"PACS@{'x' * 64}.local:104",
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"TITLE@HOST:PORT|AE title"):
            Peer.parse(text)
    with pytest.raises(UserError, match="AE title"):
        NodeOptions.from_peer("ORTHANC@127.0.0.1:4242", title="x" * 17)


@contextlib.contextmanager
def orthanc(folder: Path, port: int) -> Iterator[tuple[int, str, Callable[..., object]]]:
    """A real archive: its DICOM port, its address, and a function that asks it; skips where there is none."""
    program = shutil.which("Orthanc") or shutil.which("orthanc")
    plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    if program is None or not plugin.exists():
        pytest.skip("no Orthanc with DICOMweb here: Debian's orthanc and orthanc-dicomweb")
    http, dicom = free_port(), free_port()
    configuration = {
        "Name": "test", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": http, "DicomPort": dicom, "DicomAet": "ORTHANC", "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "Plugins": [str(plugin)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "DicomModalities": {"trustcxr": ["TRUSTCXR", "127.0.0.1", port]}, "DicomCheckCalledAet": True,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)

    def ask(path: str, body: object = None) -> object:
        assert process.poll() is None, (folder / "log").read_text()
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{http}{path}", data=data)
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    try:
        until(lambda: ask("/system"), 120)
        yield dicom, f"http://127.0.0.1:{http}", ask
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_round_trip_through_orthanc(tmp_path: Path) -> None:
    """In by DICOMweb (STOW), to us by C-STORE, back by C-STORE, out by DICOMweb: valid, and referring to the image."""
    dicomweb = pytest.importorskip("dicomweb_client.api")
    port = free_port()
    source = pydicom.dcmread(chest(tmp_path / "x.dcm", side=256))
    run = small_runs.untrained(tmp_path / "run")
    with orthanc(tmp_path, port) as (peer, address, ask):
        options = NodeOptions.from_peer(f"ORTHANC@127.0.0.1:{peer}", port=port)
        web = dicomweb.DICOMwebClient(f"{address}/dicom-web")
        web.store_instances([source])
        (stored,) = ask("/instances")
        with contextlib.closing(Node(run, options, Limits(workers=1))) as found:
            ask("/modalities/trustcxr/store", [stored])
            until(lambda: found.answered + found.refused + found.lost, 120)
            assert (found.answered, found.refused, found.lost) == (1, 0, 0)
            # What is archived goes out to us again: an answer is no image, and is not answered.
            loop = [name for name in ask("/instances") if name != stored]
            heatmap = next(n for n in loop if ask(f"/instances/{n}/simplified-tags")["Modality"] == "OT")
            ask("/modalities/trustcxr/store", [heatmap])
            until(lambda: found.refused == 1, 60)
            assert len(web.search_for_series(study_instance_uid=source.StudyInstanceUID)) == 3
            back = web.retrieve_study(source.StudyInstanceUID)
            # A whole study: the image is answered anew, and the report does not break it off.
            ask("/modalities/trustcxr/store", ask("/studies"))
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
    run, port, log = small_runs.untrained(tmp_path / "run"), free_port(), tmp_path / "log"
    image = pydicom.dcmread(chest(tmp_path / "x.dcm"))
    image.PixelData = image.PixelData[:100]
    options = f"--workers 1 --dicom PEER@127.0.0.1:9 --dicom-port {port}".split()
    with bench.served(run, log, *options) as server:
        assert send(SimpleNamespace(options=SimpleNamespace(port=port)), image, caller="PEER") == 0
        until(lambda: "an image was not answered" in log.read_text())
    assert server.process.returncode in (0, 130)
    assert "damaged DICOM file" in log.read_text()
    assert not any(part in log.read_text() for part in ("Traceback", *SECRET.split("^"), NUMBER))
