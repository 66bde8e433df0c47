"""The API behind the page: one image in, an answer out; who may ask, how much, and what is never said."""

import asyncio
import base64
import io
import json
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import AsyncMock, Mock
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

import served
from test_cli import complaint
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import load_run
from trustcxr.explain import counterfactual_view, predict
from trustcxr.version import NOTICE

fastapi = pytest.importorskip("fastapi")
from fastapi.testclient import TestClient  # noqa: E402

from trustcxr.apps.serve import app as application  # noqa: E402
from trustcxr.apps.serve import middleware, server  # noqa: E402
from trustcxr.apps.serve.worker import Limits  # noqa: E402

LOCAL = "http://localhost"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.untrained_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pool(run: Path) -> served.Here:
    return served.Here([run, run])


def client(pool: served.Here, *, token: str | None = None, local: bool = True, **limits: object) -> TestClient:
    hosts = middleware.allowed_hosts("127.0.0.1") if local else None
    built = application.build(pool, Limits(**limits), token=token, hosts=hosts)  # type: ignore[arg-type]
    return TestClient(built, base_url=LOCAL, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def api(pool: served.Here) -> Iterator[TestClient]:
    with client(pool) as found:
        yield found


def send(api: TestClient, data: bytes, kind: str = "predict", name: str = "image.png", **fields: object):
    return api.post(f"/api/v1/{kind}", files={"file": (name, data)}, data=fields)


def picture(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def code(response) -> str:
    assert response.headers["content-type"] == "application/json"
    return str(response.json()["error"]["code"])


def test_the_answer_is_that_of_predict(api: TestClient, run: Path, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(served.image(3))
    (told,) = predict.predict(run, [tmp_path / "image.png"], epsilon=0.01, out=tmp_path / "out")
    found = send(api, served.image(3), epsilon="0.01").json()
    assert {row["name"]: row["probability"] for row in found["classes"]} == pytest.approx(told.probabilities)
    assert found["classes"][0]["name"] == found["predicted"] == told.predicted
    assert {row["attack"]: row["survives"] for row in found["survives"]} == told.survives
    warnings = found["warnings"], [*told.warnings, *filter(None, [told.border])]
    one, other = ([w for w in part if "a change of at most" not in w] for part in warnings)
    assert one == other, "but for the search, which takes another number of steps"
    assert predict.NOT_FITTED in found["warnings"]
    assert (found["ood"], found["calibrated"], found["notice"]) == (None, False, NOTICE)
    assert "not calibrated" in found["calibration"]


def test_a_closer_look_has_maps_beside_controls_a_flip_and_corruptions(api: TestClient, run: Path) -> None:
    found = send(api, served.image(1), "examine").json()
    assert found["maps"][0]["method"] == "gradcam@-2", "the last stage of this network has one cell"
    for row in found["maps"]:
        assert row["baselines"][0]["label"] == "the image's own brightness"
        assert all(-1 <= c["likeness"] <= 1 for c in row["baselines"] if c["likeness"] is not None)
        assert picture(row["png"]).shape == (32, 32, 3)
    seen, changed = (picture(found[part]) for part in ("network_image", "image"))
    assert seen.shape == (32, 32)
    assert changed.shape == (found["height"], found["width"]) == (128, 128)
    flip = found["perturbation"]
    moved = np.abs(picture(flip["image"]).astype(int) - seen).max()
    assert moved <= np.ceil(flip["grey_levels"]) + 1
    assert flip["becomes"] != found["predicted"]
    assert {row["name"] for row in found["corruptions"]} >= {"gaussian_noise", "rotation"}
    assert all(row["changed"] == (row["predicted"] != found["predicted"]) for row in found["corruptions"])
    doubts = "; ".join(found["warnings"])  # one list, of both parts
    assert predict.NOT_FITTED in doubts
    assert "it is not known that the maps of this run are better than baseline maps" in doubts
    assert ("(epsilon" in doubts) == (flip["epsilon"] < 0.005)
    assert ("it changes under" in doubts) == any(row["changed"] for row in found["corruptions"])


def test_the_flip_that_is_shown_flips_the_network_and_not_a_faster_copy_alone(run: Path) -> None:
    class Turned(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return loaded.model(x).roll(1, 1)

    loaded = load_run(run)
    pixels = predict.as_input(predict.read_source(served.image(1)).pixels, loaded.size)
    predicted = int(loaded.model(pixels).argmax(1))
    flip = counterfactual_view.find_flip(loaded, pixels, predicted, steps=10)
    assert int(loaded.model(flip.image[None, None]).argmax(1)) == flip.predicted != predicted
    assert float((flip.image - pixels[0, 0]).abs().max()) <= flip.epsilon + 1e-6
    assert bool(((flip.image - pixels[0, 0]) == flip.change).all())
    again = counterfactual_view.find_flip(loaded, pixels, predicted, steps=10, searched=Turned().eval())
    assert (again.epsilon, again.predicted) == (flip.epsilon, flip.predicted)


def test_a_heatmap_is_a_png_with_its_notice(api: TestClient) -> None:
    found = send(api, served.image(1), "heatmap", method="layercam@-2")
    assert found.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(found.content)) as image:
        assert image.size == (128, 128)
        assert NOTICE in image.info.values()
    assert code(send(api, served.image(1), "heatmap", method="gradcm")) == "invalid"


def test_a_dicom_image_is_answered_and_nothing_it_says_of_a_patient_comes_back(api: TestClient) -> None:
    found = send(api, served.dicom(), "examine", name="DOE_JANE.dcm")
    assert found.status_code == 200
    refused = send(api, served.dicom(Modality="DOE", PatientName="DOE^JANE"))
    assert code(refused) == "unreadable"
    for text in (found.text, refused.text):
        assert not any(word in text.upper().replace("DOES", "") for word in ("DOE", "JANE", "IDENTIFIER"))


def test_what_is_no_image_is_refused_or_doubted_in_words(api: TestClient) -> None:
    for data in (b"", b"PK\x03\x04 a zip", served.image(1)[:300] + b"JANE DOE"):
        broken = send(api, data)
        assert code(broken) == "unreadable"
        assert "JANE" not in broken.text
    colour = served.packed(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for kind in ("predict", "examine", "heatmap"):
        refused = send(api, colour, kind)
        assert code(refused) == "no-chest-image"
        assert refused.json()["error"]["message"] == "no upright frontal chest radiograph: it is in colour"
    answered = send(api, colour, anyway="true").json()
    assert answered["predicted"]
    assert "no upright frontal chest radiograph: it is in colour" in answered["warnings"]
    assert code(send(api, colour, anyway="yes")) == "invalid"


def test_a_form_that_is_none_is_refused_by_what_is_wrong(api: TestClient) -> None:
    assert api.post("/api/v1/predict", json={}).status_code == 415
    assert code(api.post("/api/v1/predict", data={"run": "x"}, files={})) == "no-form"
    assert code(api.post("/api/v1/predict", files={"other": b"x"})) == "unknown-field"
    assert code(send(api, served.image(1), extra="1")) == "unknown-field"
    assert code(send(api, served.image(1), run="no such")) == "unknown-run"
    for epsilon in ("nan", "-1", "0.5", "much"):
        assert code(send(api, served.image(1), epsilon=epsilon)) == "invalid"
    headers = {"content-type": "multipart/form-data"}
    assert code(api.post("/api/v1/predict", content=b"x", headers=headers)) == "broken-form"
    assert code(api.get("/api/v1/predict")) == "wrong-method"
    assert code(api.get("/../../etc/passwd")) == "not-found"


def test_a_file_that_is_too_large_is_refused_before_it_is_read(pool: served.Here) -> None:
    before, headers = pool.asked, {"content-type": "multipart/form-data; boundary=b"}
    with client(pool, most_bytes=1 << 20) as api:
        assert send(api, bytes(3 << 20)).status_code == 413
        chunks = (b"x" * 65536 for _ in range(64))
        assert api.post("/api/v1/predict", content=chunks, headers=headers).status_code in (400, 413)
        declared = headers | {"content-length": str(10**12)}
        assert api.post("/api/v1/predict", content=iter(()), headers=declared).status_code == 413
    assert pool.asked == before


@pytest.mark.parametrize("full", [False, True])
def test_an_upload_that_is_cut_off_is_no_fault_of_the_program(pool: served.Here, full: bool) -> None:
    """What a browser does whose page is closed: the traceback would stand in the server's log."""
    built = application.build(pool, Limits(workers=0, waiting=0 if full else 1), token=None, hosts=None)  # type: ignore[arg-type]
    headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": "/api/v1/predict", "query_string": b"", "headers": headers}
    arriving = [{"type": "http.request", "body": b"--b\r\n", "more_body": True}, {"type": "http.disconnect"}]
    receive, answer = AsyncMock(side_effect=arriving), AsyncMock()
    asyncio.run(built(scope, receive, answer))
    assert answer.call_args_list[0].args[0]["status"] == (503 if full else 400)
    assert receive.call_count == 2


def test_a_fault_is_counted_and_says_nothing(pool: served.Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ask", AsyncMock(side_effect=RuntimeError("JANE")))
    with client(pool) as api:
        answer = send(api, served.image(1))
        assert (answer.status_code, code(answer)) == (500, "fault")
        assert "JANE" not in answer.text
        assert 'trustcxr_requests_total{route="predict",status="500"} 1.0' in api.get("/metrics").text


def test_no_upload_touches_the_disk(pool: served.Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", Mock(side_effect=AssertionError("a file")))
    with client(pool) as api:
        large = served.packed(np.random.default_rng(0).integers(0, 255, (1500, 1500), np.uint8))
        assert len(large) > 2 << 20
        assert send(api, large, anyway="true").status_code == 200


def test_who_comes_when_the_house_is_full_is_told_when_to_come_again(pool: served.Here) -> None:
    with client(pool, workers=1, waiting=1) as api:
        pool.hold = True
        with ThreadPoolExecutor(2) as threads:
            for _ in range(2):
                threads.submit(send, api, served.image(1))
            deadline = time.monotonic() + 10
            while "trustcxr_inside 2.0" not in api.get("/metrics").text and time.monotonic() < deadline:
                time.sleep(0.02)
            refused = send(api, served.image(1))
            pool.hold = False
        assert (refused.status_code, code(refused)) == (503, "busy")
        assert int(refused.headers["retry-after"]) > 0
        assert send(api, served.image(1)).status_code == 200


def test_beyond_this_machine_a_token_is_demanded(pool: served.Here) -> None:
    with client(pool, token="secret-of-the-test", local=False) as api:
        for path in ("/api/v1/runs", "/metrics"):
            assert code(api.get(path)) == "no-token"
        assert code(send(api, served.image(1))) == "no-token"
        for said in ("Bearer wrong", "Basic secret-of-the-test", "Bearer é".encode()):
            assert api.get("/api/v1/runs", headers={"authorization": said}).status_code == 401
        api.headers["authorization"] = "Bearer secret-of-the-test"
        assert send(api, served.image(1)).status_code == 200
        assert api.get("/metrics").status_code == 200
        del api.headers["authorization"]
        assert api.get("/healthz").json()["status"] == "ok"
        assert api.get("/").status_code == 200
        assert "secret-of-the-test" not in api.get("/").text + api.get("/openapi.json").text


def test_addresses_and_links() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        assert set(middleware.allowed_hosts(host)) == {"localhost", "127.0.0.1", "::1", host}
    assert {middleware.allowed_hosts(host) for host in ("0.0.0.0", "::", "192.168.1.7", "images.example")} == {None}
    assert server.make_link("127.0.0.1", 80, None) == "http://127.0.0.1:80/"
    everywhere = f"http://{socket.gethostname()}:80/#token=x"  # where nobody else could open 0.0.0.0
    assert [server.make_link(host, 80, "x") for host in ("::", "0.0.0.0")] == [everywhere] * 2
    assert server.make_link("fe80::1", 80, "x") == "http://[fe80::1]:80/#token=x"
    token = "k3+Zx/9&q==#%"
    assert parse_qs(urlsplit(server.make_link("::1", 80, token)).fragment) == {"token": [token]}


@pytest.mark.parametrize("token", ["pässwort", " blank", "two\nlines"])
def test_a_token_that_no_header_can_bring_is_refused(token: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(server.TOKEN, token)
    with pytest.raises(UserError, match=r"TRUSTCXR_TOKEN: not a valid token"):
        server.serve([run], port=0)


def test_other_sites_are_not_answered(api: TestClient) -> None:
    assert code(api.get("/api/v1/runs", headers={"host": "evil.example"})) == "wrong-host"
    for origin in ("http://evil.example", "null"):
        assert code(api.get("/api/v1/runs", headers={"origin": origin})) == "cross-site"
    assert api.get("/api/v1/runs", headers={"origin": LOCAL}).status_code == 200


def test_two_runs_of_one_name_are_told_apart(api: TestClient) -> None:
    names = {row["name"] for row in api.get("/api/v1/runs").json()["runs"]}
    assert len(names) == 2
    assert {send(api, served.image(1), run=name).json()["run"] for name in names} == names


def test_the_page_and_every_answer_allow_no_other_host_and_nothing_inline(api: TestClient) -> None:
    for path in ("/", "/page.js", "/api/v1/runs", "/nothing", "/openapi.json"):
        headers = api.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert not any(word in policy for word in ("unsafe", "http"))
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
    page = api.get("/").text
    assert NOTICE in page
    assert not any(word in page for word in ("style=", " onclick"))
    for path in ("/", "/page.js", "/page.css"):
        text = api.get(path).text
        assert not any(word in text for word in ("http:", "https:", "//cdn", "@import", "innerHTML", "eval("))


def test_the_schema_says_what_is_asked_and_answered(api: TestClient) -> None:
    schema = api.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/api/v1/predict", "/api/v1/examine", "/api/v1/heatmap", "/api/v1/runs", "/healthz", "/metrics",
    }  # fmt: skip
    form = schema["paths"]["/api/v1/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file"]
    assert {"200", "413", "415", "422", "503"} <= set(schema["paths"]["/api/v1/predict"]["post"]["responses"])
    for kind, name in (("predict", "Prediction"), ("examine", "Examination")):
        answer = schema["paths"][f"/api/v1/{kind}"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert answer == {"$ref": f"#/components/schemas/{name}"}
    told = json.dumps(schema)
    for folder in {Path(application.__file__).parents[3], Path.cwd(), Path.home(), Path(tempfile.gettempdir())}:
        assert folder == Path(folder.root) or str(folder) not in told


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        *(
            (f"run --dicom-{part} 1", f"--dicom-{part} needs --dicom TITLE@HOST:PORT")
            for part in ("title", "host", "port")
        ),
        ("nowhere", "nowhere: no such run folder"),
        ("", "Missing argument"),
    ],
)
def test_starting_it_wrongly_is_one_line(typed: str, why: str) -> None:
    assert why in complaint("serve", *typed.split())
