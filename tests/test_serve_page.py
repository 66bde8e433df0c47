"""The page in a real browser: an image dropped, the slider moved, two images and two runs side by side."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import browser as browsers
import served

pytest.importorskip("fastapi", reason="the page's server is not installed: pip install '.[serve]'")

DROP = """([slot, name, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name));
  document.querySelectorAll(".drop")[slot].dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
}"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("served")
    runs = [served.untrained_run(place / name, seed) for seed, name in enumerate(("one", "two"))]
    with served.running(runs, log=place / "log") as found:
        yield found
    said = (place / "log").read_text()
    assert not any(word in said for word in ("DOE", "JANE", "Traceback", "image.png"))


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
def test_a_image_is_answered_on_every_screen(url: str, browser: Any, size: str, dark: bool, tmp_path: Path) -> None:
    with browsers.opened(browser, url, size=size, dark=dark) as found:
        page = found.page
        choose(page, served.image(1))
        assert page.locator(".notice").is_visible()
        page.mouse.wheel(0, 4000)
        assert page.locator(".notice").is_visible()  # always in sight
        assert page.locator(".problem:visible").count() == 0
        assert "Not for diagnosis" in page.locator("header").inner_text()
        assert page.locator(".classes li").count() == 6
        assert browsers.violations(page) == []
        assert browsers.sideways(page) == 0
        assert "JANE" not in page.locator("main").inner_text()
        assert found.complaints == []
        assert found.elsewhere(url) == []


@pytest.mark.full
def test_slider_method_and_control_change_what_is_seen(url: str, browser: Any) -> None:
    with browsers.opened(browser, url) as found:
        page = found.page
        choose(page, served.image(1))
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
def test_dicom_and_png_are_dropped_side_by_side_and_cleared(url: str, browser: Any) -> None:
    pytest.importorskip("pydicom")
    with browsers.opened(browser, url) as found:
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


@pytest.mark.full
def test_what_cannot_be_read_is_said_in_the_panel(url: str, browser: Any) -> None:
    with browsers.opened(browser, url) as found:
        choose(found.page, b"no image", name="<img src=x onerror=alert(1)>.png")
        said = found.page.locator(".panel .problem").first.inner_text()
        assert said == "No answer: damaged, or not a supported image format."
        assert browsers.violations(found.page) == []


@pytest.mark.full
def test_everything_can_be_reached_by_keyboard(url: str, browser: Any) -> None:
    with browsers.opened(browser, url) as found:
        page = found.page
        choose(page, served.image(1))
        page.evaluate("document.activeElement.blur()")
        reached = set()
        for _ in range(16):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.className || document.activeElement.id"))
        assert {"file-0", "file-1", "clear", "method", "baseline", "opacity"} <= reached


@pytest.mark.full
def test_a_page_without_its_token_asks_for_it(tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUSTCXR_TOKEN", "secret-of-the-test")
    run = served.untrained_run(tmp_path)
    with served.running([run], "--workers", "1", log=tmp_path / "log") as url:
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
