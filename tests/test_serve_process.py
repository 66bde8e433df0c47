"""The server as a process of its own: its page in a browser, load, memory, hostile uploads, workers that break."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from benchmarks.speed import serve as bench

import browser as browsers
import served

pytest.importorskip("fastapi", reason="the page's server is not installed: pip install '.[serve]'")

DROP = """([slot, name, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name));
  document.querySelectorAll(".drop")[slot].dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bench.Served]:
    folder = tmp_path_factory.mktemp("served")
    runs = [served.untrained_run(folder / name, seed) for seed, name in enumerate(("one", "two"))]
    with bench.served(runs[0], folder / "log", str(runs[1])) as found:
        yield found
    secrets = ("DOE", "JANE", "Traceback", "image.png", "etc/passwd", "script")
    assert not any(word in found.log.read_text() for word in secrets), found.log.read_text()


def choose(page: Any, data: bytes, *, slot: int = 0, name: str = "JANE-DOE.png", panels: int = 2) -> None:
    page.locator(f"#file-{slot}").set_input_files({"name": name, "mimeType": "image/png", "buffer": data})
    wait(page, panels)


def wait(page: Any, panels: int) -> None:
    shown = page.locator(".answers:not([hidden]), .panel .problem:not([hidden])")
    shown.nth(panels - 1).wait_for(timeout=120_000)
    assert shown.count() == panels


@pytest.mark.sample("desktop-False")
@pytest.mark.slow
@pytest.mark.parametrize(("size", "dark"), [("desktop", False), ("tablet", True), ("phone", False), ("desktop", True)])
def test_a_image_is_answered_on_every_screen(server: bench.Served, browser: Any, size: str, dark: bool) -> None:
    with browsers.opened(browser, server.url, size=size, dark=dark) as found:
        page = found.page
        choose(page, served.image(1))
        assert page.locator(".notice").is_visible()
        page.mouse.wheel(0, 4000)
        assert page.locator(".notice").is_visible()  # always in sight
        assert page.locator(".problem:visible").count() == 0
        assert "Not for diagnosis" in page.locator("header").inner_text()
        assert page.locator(".classes li").count() == 6
        assert "JANE" not in page.locator("main").inner_text()
        assert found.problems(server.url) == []


@pytest.mark.full
def test_all_is_reached_by_keyboard_and_changes_what_is_seen(server: bench.Served, browser: Any) -> None:
    with browsers.opened(browser, server.url) as found:
        page = found.page
        choose(page, served.image(1))
        page.evaluate("document.activeElement.blur()")
        reached = set()
        for _ in range(16):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.className || document.activeElement.id"))
        assert {"file-0", "file-1", "clear", "method", "baseline", "opacity"} <= reached
        panel = page.locator(".panel").first
        slider, map_ = panel.locator(".opacity"), panel.locator(".map").first
        slider.focus()
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        assert panel.locator("output").inner_text() == "70 %"
        assert map_.evaluate("e => e.style.opacity") == "0.7"
        before, control = map_.get_attribute("src"), panel.locator(".other").get_attribute("src")
        panel.locator(".method").select_option(label="HiResCAM, stage −2")
        assert map_.get_attribute("src") != before
        panel.locator(".baseline").select_option(index=1)
        assert panel.locator(".other").get_attribute("src") != control
        assert "does not depend on the answer" in panel.locator(".of-baseline").inner_text()
        assert "two maps" in panel.locator(".likeness").inner_text()
        assert all(page.evaluate("[...document.querySelectorAll('.answers img')].map(i => i.naturalWidth > 0)"))


@pytest.mark.full
def test_dicom_png_and_what_is_no_image_are_dropped_and_cleared(server: bench.Served, browser: Any) -> None:
    pytest.importorskip("pydicom")
    with browsers.opened(browser, server.url) as found:
        page = found.page
        page.evaluate(DROP, [0, "DOE^JANE.dcm", list(served.dicom())])
        wait(page, 2)
        page.evaluate(DROP, [1, "image.png", list(served.image(2))])
        wait(page, 4)
        titles = page.locator(".panel h2").all_inner_texts()
        assert [title[:7] for title in titles] == ["Image 1", "Image 1", "Image 2", "Image 2"]
        assert len({title.partition(", ")[2] for title in titles}) == 2  # two runs
        assert "IDENTIFIER" not in page.content()
        page.locator("#clear").click()
        assert page.locator(".panel").count() == 0
        assert found.complaints == []
        choose(page, b"no image", name="<img src=x onerror=alert(1)>.png")
        problem = page.locator(".panel .problem").first.inner_text()
        assert problem == "No answer: damaged, or not a supported image format."
        assert browsers.violations(page) == []


@pytest.mark.full
def test_a_page_without_its_token_asks_for_it(tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUSTCXR_TOKEN", "secret-of-the-test")
    with bench.served(served.untrained_run(tmp_path), tmp_path / "log", "--workers", "1") as own:
        url = own.url
        with browsers.opened(browser, url) as found:
            page = found.page
            page.locator("#token").fill("secret-of-the-test")
            page.locator("#key button").click()
            choose(page, served.image(1), panels=1)
        with browsers.opened(browser, f"{url}/#token=secret-of-the-test") as found:
            choose(found.page, served.image(1), panels=1)
            assert "secret" not in found.page.url
            assert json.dumps(found.asked).count("secret") <= 1  # the address that was typed, and no request after it
        with browsers.opened(browser, f"{url}/#token=another") as found:
            found.page.locator("#status", has_text="This token is not the server's.").wait_for()
            found.page.goto(f"{url}/#token=secret-of-the-test")  # the right link, in the same tab
            found.page.locator("#served", has_text="Network: ").wait_for()
            choose(found.page, served.image(1), panels=1)


@pytest.mark.full
def test_hostile_uploads_are_answered_in_words_and_nothing_breaks(server: bench.Served) -> None:
    answers, sent = bench.Answers(), list(bench.hostile(160))
    for upload in sent:
        bench.send(server.url, upload, answers)
    assert answers.faults == []
    assert sum(answers.statuses.values()) == len(sent)
    assert set(answers.statuses) <= {200, 400, 413, 415, 422}
    assert max(answers.seconds) < 60
    assert bench.ask(server.url, "GET", "/healthz")[0] == 200


def test_the_check_itself_sees_faults() -> None:
    answers = bench.Answers()
    error = b'{"error": {"code": "x", "message": "y"}}'
    answers.add("a", 500, {}, error, 0.1)
    answers.add("b", 503, {}, error, 0.1)
    answers.add("c", 422, {}, b"<html>", 0.1)
    answers.add("d", 200, {}, b'{"file": "/tmp/x"}', 0.1)
    assert [fault[0] for fault in answers.faults] == ["a", "b", "c", "d"]


@pytest.mark.full
def test_under_load_the_only_refusal_is_a_clean_503(server: bench.Served) -> None:
    answers = bench.load(server.url, clients=32, seconds=6)
    assert answers.faults == []
    assert set(answers.statuses) == {200, 503}


@pytest.mark.full
def test_memory_stays_as_it_is(server: bench.Served) -> None:
    answers, early, late = bench.many(server, 160, first=60)
    assert set(answers.statuses) == {200}
    assert sum(late) < sum(early) + 40, (early, late)


@pytest.mark.full
def test_the_schema_holds_for_what_schemathesis_thinks_of(server: bench.Served) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    names = (
        "not_a_server_error",
        *(f"{part}_conformance" for part in ("status_code", "content_type", "response_schema")),
    )
    checks = [getattr(schemathesis.checks, name) for name in names]
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 6
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def holds(case: object) -> None:
            case.validate_response(case.call(), checks=checks)  # type: ignore[attr-defined]

        holds()


@pytest.mark.full
def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    from trustcxr.apps.serve.api_models import Reply, WorkItem
    from trustcxr.apps.serve.worker import Limits, Pool

    async def ask(pool: Pool) -> Reply:
        return await pool.ask(WorkItem("predict", served.image(1)))

    async def scene() -> None:
        pool = Pool([served.untrained_run(tmp_path)], Limits(workers=1))
        await pool.start()
        try:
            (worker,) = pool._all
            os.kill(worker.process.pid, signal.SIGSTOP)
            pool.limits.__dict__["reading"] = 1.0
            slow = await ask(pool)
            assert (slow.status, slow.code) == (422, "too-slow")
            await asyncio.sleep(0.3)
            assert pool.alive == 0  # the next one loads its runs, and says nothing yet
            pool.limits.__dict__["reading"] = 60.0
            assert (await ask(pool)).status == 200
            assert pool.restarts == 1
            (worker,) = pool._all
            os.kill(worker.process.pid, signal.SIGKILL)
            broken = await ask(pool)
            assert (broken.status, broken.code) == (422, "unreadable")
            assert (await ask(pool)).status == 200
        finally:
            await pool.stop()
        assert pool.alive == 0

    with ThreadPoolExecutor(1) as threads:  # a browser's loop may run in this one
        threads.submit(asyncio.run, scene()).result()
