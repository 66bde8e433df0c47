"""Pages in a real browser: Debian's chromium, headless, through Playwright; and axe-core over what it shows.

One chromium for a file of tests, never for more: Playwright's loop would be in the way of tests that start their own.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SIZES = {"desktop": (1280, 900), "tablet": (768, 1024), "phone": (400, 800)}  # CSS pixels
PROGRAM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@dataclass
class Opened:
    """A page, with what its console complained of and every address that it asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def elsewhere(self, *own: str) -> list[str]:
        """What it asked for of no address that begins with one of `own` (data: and blob: are its own)."""
        return [address for address in self.asked if not address.startswith((*own, "data:", "blob:"))]

    def problems(self, *own: str) -> list[str]:
        """What is wrong with the page as it stands: complaints, foreign addresses, barriers, a width to scroll."""
        wide = [f"{sideways(self.page)} pixels too wide"] if sideways(self.page) else []
        return self.complaints + self.elsewhere(*own) + violations(self.page) + wide


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser (playwright's Browser) while the block lasts; the test skips, saying so, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    if PROGRAM is None:
        pytest.skip("no chromium here: nothing was looked at in a browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=QUIET)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Any, address: str | Path, *, size: str = "desktop", dark: bool = False, scripts: bool = True
) -> Iterator[Opened]:
    """A page at one of SIZES, light or dark, in a profile of its own. `scripts` False: as who has them turned off."""
    viewport, scheme = dict(zip(("width", "height"), SIZES[size], strict=True)), "dark" if dark else "light"
    context = browser.new_context(viewport=viewport, color_scheme=scheme, java_script_enabled=scripts)
    try:
        found = Opened(context.new_page())
        loud = {"error", "warning"}
        found.page.on("console", lambda line: found.complaints.extend([line.text] * (line.type in loud)))
        found.page.on("pageerror", lambda problem: found.complaints.append(str(problem)))
        found.page.on("request", lambda request: found.asked.append(request.url))
        found.page.goto(address.resolve().as_uri() if isinstance(address, Path) else address)
        yield found
    finally:
        context.close()


def violations(page: Any, *, impacts: tuple[str, ...] = ("serious", "critical")) -> list[str]:
    """What axe-core finds on the page as it stands, a line each: rule, impact, and where."""
    package = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    if not page.evaluate("typeof window.axe === 'object'"):
        page.evaluate((Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {rule['help']}: {'; '.join(str(n['target']) for n in rule['nodes'][:5])}"
        for rule in found
        if rule["impact"] in impacts
    ]


def sideways(page: Any) -> int:
    """By how many CSS pixels the page as a whole is wider than the window: 0 where nobody has to scroll sideways."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
