"""That the looks through a browser see what they are there for."""

from pathlib import Path
from typing import Any

import pytest

from browser import opened, sideways, violations

GOOD = (
    '<!DOCTYPE html><html lang="en"><head><title>A page</title></head><body><main><h1>A page</h1></main></body></html>'
)
BAD = (
    '<!DOCTYPE html><html><body><img src="http://127.0.0.1:9/x.png"><p style="width:900px">a</p><script>nope()</script>'
)


@pytest.mark.slow
def test_complaints_requests_width_and_violations_are_seen(browser: Any, tmp_path: Path) -> None:
    for name, text in (("good", GOOD), ("bad", BAD)):
        (tmp_path / f"{name}.html").write_text(text)
    with opened(browser, tmp_path / "good.html", size="phone") as good:
        assert not good.complaints
        assert not good.elsewhere(tmp_path.as_uri())
        assert sideways(good.page) == 0
        assert not violations(good.page)
    with opened(browser, tmp_path / "bad.html", size="phone") as bad:
        assert any("nope is not defined" in line for line in bad.complaints)
        assert bad.elsewhere(tmp_path.as_uri()) == ["http://127.0.0.1:9/x.png"]
        assert sideways(bad.page) > 0
        found = violations(bad.page)
        assert {line.split(" ")[0] for line in found} >= {"html-has-lang", "image-alt"}
