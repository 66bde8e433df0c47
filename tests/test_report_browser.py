"""The report in a browser, as people use it: read, sorted, filtered, slid, printed; and what such looks notice."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import SIZES, opened, sideways, violations
from study_fixture import make_study
from trustcxr import report
from trustcxr.report.tables import table

CHECK = {
    "verdict": "Results on it would flatter: 3 images are in two splits.",
    "findings": [{"kind": "duplicate", "severity": "leak", "text": "3 images are in two splits", "count": 3}],
    "probes": [
        {"view": "outer frame", "accuracy": {"value": 0.61, "ci": [0.5, 0.7]}, "chance": 0.333, "how": "tested on Test"}
    ],
}
GOOD = '<!DOCTYPE html><html lang="en"><title>A page</title><body><main><h1>A page</h1></main>'
BAD = '<!DOCTYPE html><html><img src="http://127.0.0.1:9/x.png"><p style="width:900px">a</p><script>nope()</script>'
SMALLEST = """() => Math.min(...[...document.querySelectorAll('main *')].filter(e =>
    e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())
    && !e.closest('.unseen, .tools')).map(e => {
    const drawn = e.ownerSVGElement;
    const scale = drawn ? drawn.getBoundingClientRect().width / drawn.viewBox.baseVal.width : 1;
    return scale * parseFloat(getComputedStyle(e).fontSize);
  }))"""
PRINTED = 688  # CSS pixels of A4 within its margins


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("ResNet18", "tf_efficientnet_lite0-smooth")
    study = make_study(tmp_path_factory.mktemp("study"), models=names, images=60, resamples=50)
    (study / "data-check.json").write_text(json.dumps(CHECK))
    document = json.loads((study / "study.json").read_text())
    for run in document["runs"]:
        run["saliency"]["gradcam"]["cells"] = "2 x 2"
    (study / "study.json").write_text(json.dumps(document))
    return report.write(study, tables=True)


def unfold(found: Any, which: str = "details.question") -> None:
    found.page.evaluate(f"document.querySelectorAll('{which}').forEach(fold => {{ fold.open = true; }})")


@pytest.fixture
def seen(browser: Any, page: Path) -> Iterator[Any]:
    """The page on a desktop, with every question open; it complains of nothing, whatever a test does."""
    with opened(browser, page) as found:
        unfold(found)
        yield found
        assert found.complaints == []


@pytest.mark.sample("light-desktop")
@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_opens_whole_and_can_be_used_by_everybody(browser: Any, page: Path, size: str, dark: bool) -> None:
    with opened(browser, page, size=size, dark=dark) as seen:
        assert seen.problems(page.as_uri()) == []
        back = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert back == ("rgb(16, 22, 29)" if dark else "rgb(255, 255, 255)")
        first = seen.page.evaluate("document.querySelector('#summary').innerText")
        assert first.index("alarm") < first.index("most accurate"), "before anything that flatters"
        assert "Best" not in first


@pytest.mark.slow
@pytest.mark.parametrize(("size", "most"), [("desktop", 2100), ("phone", 4200)])
def test_the_page_of_six_runs_is_short_and_cuts_nothing(browser: Any, tmp_path: Path, size: str, most: int) -> None:
    models = ("ResNet18", "tf_efficientnet_lite0", "densenet121")
    page = report.write(make_study(tmp_path / "s", models=models, images=60, resamples=20))
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
    with opened(browser, page, size=size, scripts=False) as seen:
        assert seen.page.evaluate("document.documentElement.scrollHeight") < most
        answers = seen.page.locator(".answers").bounding_box()
        assert answers["y"] + answers["height"] < (900 if size == "desktop" else 1600)
        seen.page.locator("nav a[href='#alarms'], .answers a[href='#alarms']").locator("visible=true").first.click()
        assert seen.page.locator("details.question[open]").count() == 1, "without a script"
    with opened(browser, page, size=size) as seen:
        unfold(seen, "details")
        assert seen.page.evaluate(f"{wide}.map(e => e.ariaLabel)") == []
        assert sideways(seen.page) == 0
        for name in ("The models", "Leaderboard"):
            boxes = [cell.bounding_box() for cell in seen.page.locator(f'[aria-label="{name}"] tbody td').all()]
            assert boxes
            assert all(box and box["width"] > 0 and box["x"] + box["width"] <= SIZES[size][0] for box in boxes)


def _column(seen: Any, place: int) -> list[float]:
    script = "(rows, p) => rows.filter(r => !r.hidden).map(r => Number(r.cells[p].querySelector('data').value))"
    return seen.page.eval_on_selector_all('[aria-label="Leaderboard"] tbody tr', script, place)


@pytest.mark.full
def test_the_leaderboard_sorts_by_key_and_filters(seen: Any) -> None:
    head = seen.page.locator('[aria-label="Leaderboard"] thead th').nth(2)
    button = head.get_by_role("button", name="Clean accuracy, %")
    before = _column(seen, 2)
    button.focus()
    seen.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert _column(seen, 2) == sorted(before, reverse=True) != before
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert _column(seen, 2) == sorted(before)
    assert seen.page.locator('[aria-label="Leaderboard"] [aria-sort]').count() == 1
    field = seen.page.get_by_role("searchbox", name="Filter: Leaderboard")
    field.fill("smooth fgsm")
    assert len(_column(seen, 2)) == 1
    assert "1 of 4 rows" in seen.page.locator('#leaderboard [role="status"]').inner_text()
    field.fill("")
    assert len(_column(seen, 2)) == 4


@pytest.mark.full
def test_the_slider_shows_one_defence_beside_another(seen: Any) -> None:
    example = seen.page.locator(".example").first
    example.locator("summary").click()
    left, right = example.locator("select").all()
    assert left.locator("option:checked").inner_text() != right.locator("option:checked").inner_text()
    one, other = example.locator(".stack img").all()
    source, clip = other.get_attribute("src"), "e => getComputedStyle(e).clipPath"
    assert one.get_attribute("src") != source
    at_half = other.evaluate(clip)
    slide = example.locator('input[type="range"]')
    assert "standard" in str(slide.get_attribute("aria-label"))
    slide.focus()
    for _ in range(20):
        seen.page.keyboard.press("ArrowRight")
    assert other.evaluate(clip) != at_half
    assert "70%" in str(example.locator(".stack").get_attribute("style"))
    right.select_option("2")
    assert other.get_attribute("src") != source
    assert violations(seen.page) == []
    assert "2 × 2 cells" in example.inner_text()


@pytest.mark.full
def test_a_mark_says_its_value_under_the_pointer(seen: Any) -> None:
    tip = seen.page.locator("#tip")
    assert tip.is_hidden()
    seen.page.locator("#accuracy svg use.titled").first.hover()
    assert tip.is_visible()
    assert "95\u00a0% CI" in tip.inner_text()
    seen.page.locator("h1").hover()
    assert tip.is_hidden()


@pytest.mark.full
def test_the_dark_is_switched_on_by_hand_and_stays(seen: Any) -> None:
    seen.page.get_by_role("button", name="Dark").click()
    dark = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == "rgb(16, 22, 29)"
    seen.page.reload()
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    seen.page.get_by_role("button", name="Unfold all").click()
    assert seen.page.locator("details:not([open])").count() == 0
    assert violations(seen.page) == [], "also of what was folded"


@pytest.mark.full
def test_tables_are_downloaded_from_the_page_as_the_command_writes_them(seen: Any, page: Path) -> None:
    for kind in ("CSV", "LaTeX"):
        with seen.page.expect_download() as waiting:
            seen.page.get_by_role("link", name=f"Leaderboard as {kind}").click()
        name = waiting.value.suggested_filename
        ours = (page.parent / table.FOLDER / name).read_bytes()
        assert Path(waiting.value.path()).read_bytes() == ours
    names = seen.page.eval_on_selector_all("a[download]", "all => all.map(a => a.download)")
    assert sorted([*names, "tables.md"]) == sorted(path.name for path in (page.parent / table.FOLDER).iterdir())
    assert len(list(csv.reader(io.StringIO((page.parent / table.FOLDER / "the-models.csv").read_text())))) == 5


@pytest.mark.full
def test_without_scripts_it_says_everything(browser: Any, page: Path) -> None:
    with opened(browser, page) as with_them:
        told = with_them.page.evaluate("document.querySelector('main').textContent")
        figures = with_them.page.eval_on_selector_all("data", "all => all.map(d => d.value)")
    with opened(browser, page, scripts=False) as seen:
        assert seen.page.locator("#theme").is_hidden()
        body = seen.page.content()
        assert sorted(figures) == sorted(seen.page.locator("data").evaluate_all("all => all.map(d => d.value)"))
    for sentence in ("3 images are in two splits", "Outer frame", "FGSM overstates", "Generated from the recipe"):
        assert all(sentence in text for text in (told, body)), sentence


@pytest.mark.full
def test_in_print_nothing_is_cut_or_too_small(browser: Any, page: Path, tmp_path: Path) -> None:
    with opened(browser, page) as seen:
        pages = seen.page.pdf(format="A4", prefer_css_page_size=True).count(b"/Type /Page\n")
        seen.page.emulate_media(media="print")
        seen.page.set_viewport_size({"width": PRINTED, "height": 900})
        smallest = seen.page.evaluate(SMALLEST)
        wide = seen.page.evaluate(
            "[...document.querySelectorAll('table')].filter(t => t.checkVisibility())"
            f".filter(t => t.getBoundingClientRect().right > {PRINTED} + 1).map(t => t.parentNode.ariaLabel)"
        )
    assert smallest * 0.75 >= 6, "points"
    assert wide == []
    assert 0 < pages <= 18


@pytest.mark.full
def test_the_page_of_the_papers_study_is_small_and_opens_at_once(browser: Any, tmp_path: Path) -> None:
    """21 networks, six of them trained again: below 8 MB, in chromium in less than 2 seconds of its processor time."""
    names = tuple(f"Network{place:02}" for place in range(21))
    study = make_study(tmp_path / "s", models=names, images=90, panels=6, side=224, resamples=20)
    document = json.loads((study / "study.json").read_text())
    kept = {*names[:6]}
    document["runs"] = [run for run in document["runs"] if run["defence"] == "standard" or run["model"] in kept]
    document["comparisons"] = [row for row in document["comparisons"] if row["model"] in kept]
    assert len(document["runs"]) == 27
    (study / "study.json").write_text(json.dumps(document))
    page = report.write(study)
    assert page.stat().st_size < 8_000_000
    with opened(browser, page) as seen:
        watch = seen.page.context.new_cdp_session(seen.page)
        watch.send("Performance.enable", {"timeDomain": "threadTicks"})
        seen.page.reload()
        spent = {row["name"]: row["value"] for row in watch.send("Performance.getMetrics")["metrics"]}
        assert spent["TaskDuration"] < 2, spent
        assert seen.complaints == []
        assert sideways(seen.page) == 0


@pytest.mark.slow
def test_complaints_requests_width_and_violations_are_seen(browser: Any, tmp_path: Path) -> None:
    for name, text in (("good", GOOD), ("bad", BAD)):
        (tmp_path / f"{name}.html").write_text(text)
    with opened(browser, tmp_path / "good.html", size="phone") as good:
        assert good.problems(tmp_path.as_uri()) == []
    with opened(browser, tmp_path / "bad.html", size="phone") as bad:
        assert bad.elsewhere(tmp_path.as_uri()) == ["http://127.0.0.1:9/x.png"]
        problems = "\n".join(bad.problems(tmp_path.as_uri()))
        for words in ("nope is not defined", "http://127.0.0.1:9/x.png", "too wide", "html-has-lang (", "image-alt ("):
            assert words in problems
