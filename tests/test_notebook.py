"""The notebook of the documentation: executed again it has no error, and the figures that it was stored with."""

import re
from typing import Any

import pytest

from docs_blocks import ROOT

PATH = ROOT / "docs/notebooks/first-steps.ipynb"
NUMBER = re.compile(r"\d+\.\d+")  # a whole number counts something, and is the same
TOLERANCE = 0.02  # other processors add in another order


def texts(notebook: Any) -> list[str]:
    """What each cell printed and showed, without the styles of tables; a picture is its kind."""
    shown = [
        "".join(
            o["text"] if o.output_type == "stream" else o.data.get("text/html", o.data["text/plain"])
            for o in cell.outputs
            if o.get("name") != "stderr"
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    return [re.sub(r"<style scoped>.*?</style>|<[^>]+>", " ", text, flags=re.DOTALL) for text in shown]


@pytest.fixture(scope="module")
def stored() -> Any:
    return pytest.importorskip("nbformat").read(PATH, as_version=4)


def test_the_stored_notebook_is_small_and_has_all_its_outputs(stored: Any) -> None:
    assert PATH.stat().st_size < 400_000
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for cell in cells)
    assert not re.search(r"/(home|root|tmp|work)/", PATH.read_text(encoding="utf-8"))
    assert any("not for diagnosis" in text.lower() for text in texts(stored))


@pytest.mark.slow
def test_the_notebook_gives_the_same_figures_again(stored: Any) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from scripts.run_notebook import execute

    again = execute(PATH)
    before, after = texts(stored), texts(again)
    assert [NUMBER.sub("#", text) for text in after] == [NUMBER.sub("#", text) for text in before]
    numbers = [[float(number) for text in all_ for number in NUMBER.findall(text)] for all_ in (before, after)]
    assert numbers[1] == pytest.approx(numbers[0], abs=TOLERANCE)
    pictures = [
        [sorted(output.get("data", {})) for cell in one.cells for output in cell.get("outputs", []) if "data" in output]
        for one in (stored, again)
    ]
    assert pictures[1] == pictures[0]
    errors = "".join(o.text for cell in again.cells for o in cell.get("outputs", []) if o.get("name") == "stderr")
    assert "evaluating covid-robust on 24 images: 100%" in errors, "no progress bar in the notebook"


@pytest.mark.slow
def test_the_page_of_the_site_has_the_outputs() -> None:
    pytest.importorskip("nbconvert")
    from benchmarks import site

    pages = site.notebooks()
    page = str(pages["notebooks/first-steps.md"])
    assert page.startswith("# First steps in Python")
    assert len(re.findall(r"!\[What the cell shows\]\(first-steps_files/[^)]+\.png\)", page)) == 4
    assert all(f"notebooks/{name}" in pages for name in re.findall(r"\((first-steps_files/[^)]+)\)", page))
    assert "<style" not in page
