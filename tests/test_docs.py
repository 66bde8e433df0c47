"""The documentation and its examples: they run, and the pages are built strictly and ask nothing of other hosts."""

import functools
import http.server
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from benchmarks import site
from scripts import check_documents, write_reference

import trustcxr as tx
from browser import chromium, opened
from docs_blocks import ROOT, blocks, carry_out, commands, run_python
from trustcxr import cli, registry

DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "notebooks/first-steps.ipynb"
NUMBER = re.compile(r"\d+\.\d+")  # a whole number counts something, and is the same
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "studies").rglob("*.md"))]


HOW_TO = [page for page in sorted((DOCS / "howto").glob("*.md")) if any(block.runs for block in blocks(page))]


def typed(page: Path) -> Iterator[list[str]]:
    """The commands of this program in a page's blocks, and within its lines."""
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        if block.language in ("", "sh") and not block.file:
            yield from commands(block.text)
    for line in re.findall(r"`(trustcxr [^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)):
        yield line.split()


def unknown_options(words: list[str]) -> list[str]:
    """What of a command is none: a name or an option; words in capitals stand for something."""
    command: Any = typer.main.get_command(cli.app)
    rest = list(words)
    while hasattr(command, "commands"):
        if not rest or rest[0].startswith("-"):
            return []
        name = rest.pop(0)
        if name not in command.commands:
            return [name]
        command = command.commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options = [word.split("=")[0].strip(",.;") for word in rest if word.startswith("--")]
    return [option for option in options if option not in known | {"--help"}]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_command_of_a_page_is_one_and_it_says_that_it_is_no_diagnosis(page: Path) -> None:
    ours = [words for words in typed(page) if words[0].split("/")[-1] == "trustcxr"]
    assert {" ".join(words): none for words in ours if (none := unknown_options(words[1:]))} == {}
    exempt = page.name in ("index.md", "architecture.md")
    assert "not for diagnosis" in page.read_text(encoding="utf-8").lower() or exempt


def test_a_command_that_is_none_is_seen() -> None:
    assert unknown_options(["train", "--data", "x", "--colour", "red"]) == ["--colour"]
    assert unknown_options(["paint", "x"]) == ["paint"]
    assert unknown_options(["data", "check", "x", "--json"]) == []


def public_functions() -> list[str]:
    """The names in the reference, with the listed functions of a module."""
    text = (DOCS / "reference/python.md").read_text(encoding="utf-8")
    names = []
    for name, members in re.findall(r"^::: (\S+)\n(?:    options:\n      members: \[(.*)\])?", text, re.M):
        names += [f"{name}.{member}" for member in members.split(", ")] if members else [name]
    return names


def test_the_reference_has_every_public_function_with_an_example_that_make_runs() -> None:
    listed = {pkgutil.resolve_name(name): name for name in public_functions()}
    examples = re.search(r"^EXAMPLES := \$\(addprefix (\S+),(.*?)\)$", (ROOT / "Makefile").read_text(), re.M | re.S)
    run = [ROOT / examples[1] / part for part in examples[2].replace("\\", "").split()]
    for function, name in listed.items():
        assert ">>>" in inspect.getdoc(function), name
        assert any(Path(inspect.getsourcefile(function)).is_relative_to(part) for part in run), name
    own = [getattr(tx, name) for name in tx.__all__]
    own += [getattr(package, name) for package in (tx.explain, tx.plot) for name in vars(package)]
    functions = [one for one in own if inspect.isfunction(one) and one.__module__.startswith("trustcxr")]
    functions += [tx.audit.run, tx.certify.prove, *(tx.attacks.get(name) for name in registry.ATTACKS)]
    functions = [getattr(one, "func", one) for one in functions]  # an attack with options that are fixed
    assert [one.__name__ for one in functions if one not in listed and one.__name__[0] != "_"] == []


def test_every_page_is_short_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    pages = check_documents.list_pages()
    assert len(pages) > 40
    assert {str(page): problems for page in pages if (problems := list(check_documents.find_problems(page)))} == {}
    (tmp_path / "a.md").write_text("# One head\n[a](b.md) [b](a.md#one-head) [c](#none) [d](https://example.org)\n")
    assert check_documents.find_dead_links(tmp_path / "a.md") == ["b.md", "#none"]
    (tmp_path / "README.md").write_text("Word " * 20 + ". " + "word " * 1300)
    problems = [text.split(",")[0] for text in check_documents.find_problems(tmp_path / "README.md", tmp_path)]
    assert problems == ["1321 words", "660.0 words a sentence"]


def test_pages_that_the_program_writes_are_current_and_say_what_a_measure_does_not_mean() -> None:
    assert write_reference.stale_pages() == [], "run: python -m scripts.write_reference"
    page = write_reference.write_measures()
    for entry in registry.MEASURES.values():
        part = page[page.index(f"`{entry.name}`") :].split("\n### ")[0]
        assert entry.beware in part
        assert len(part.split("\n\n")[1]) > 20, f"{entry.name}: what it is"
    for table in (registry.ATTACKS, registry.DEFENCES, registry.CORRUPTIONS, registry.SALIENCY):
        assert [name for name in table if f"| `{name}` |" not in page] == []


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the tutorial was carried out."""
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TRUSTCXR_CACHE", str(folder / "cache"))
        carry_out(DOCS / "tutorial.md")
    return folder


@pytest.mark.full
def test_the_tutorial_does_what_it_says(taught: Path) -> None:
    for name in ("out/standard/report.html", "out/fgsm/model.safetensors"):
        assert (taught / name).is_file(), name
    assert list((taught / "out/standard/evaluations").glob("*/metrics.json"))
    assert list((taught / "out/heatmaps").glob("*.png"))


@pytest.mark.full
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_page_runs(page: Path, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(taught, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    carry_out(page)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_the_site_is_built_strictly_and_loads_nothing_from_elsewhere(built: Path) -> None:
    pages = list(built.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]+?src="?(https?:|//)[^">]*', text)
        loaded += re.findall(r'<link[^>]+rel="?(?:stylesheet|preconnect|preload|icon)[^>]+href="?(https?:|//)', text)
        assert loaded == [], page.name
        links = [link.split("#")[0] for link in re.findall(r'<a[^>]+href="?([^" >]+)', text)]
        inside = [link for link in links if link and not re.match(r"[a-z]+:|/", link)]
        assert [link for link in inside if not (page.parent / link).exists()] == [], page.name
    reference = (built / "reference/python.html").read_text(encoding="utf-8")
    assert 'id="trustcxr.attacks.pgd.pgd"' in reference
    assert 'id="trustcxr.load_model"' in reference


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.full)], ids=["some", "all"])
def test_pages_of_the_site_in_a_browser(whole: bool, built: Path) -> None:
    pages = sorted(page.relative_to(built).with_suffix("").as_posix() for page in built.rglob("*.html"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(built))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, chromium() as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = f"http://127.0.0.1:{server.server_port}/"
        try:
            for name, size, dark in (
                ("index", "phone", False),
                ("explanation/how-to-read-an-audit", "desktop", False),
                ("tutorial", "phone", True),
                ("reference/commands", "desktop", True),
                ("studies/certified/index", "tablet", False),
                *((page, "desktop", True) for page in pages if whole),
            ):
                with opened(browser, f"{own}{name}.html", size=size, dark=dark) as found:
                    found.page.wait_for_load_state("networkidle")
                    assert found.problems(own) == [], name
        finally:
            server.shutdown()


EXAMPLES = {
    "attack_my_model": "answers that stay under PGD-20 at epsilon 0.02",
    "audit_onnx": "fgsm",
    "robust_model": "the class stays within epsilon 0.02 under",
    "heatmap_against_mask": "of the map lies inside the infection mask",
    "certify": "answers are proved not to change",
}


def test_each_example_is_tested_and_has_at_most_25_lines() -> None:
    scripts = {path.stem: path.read_text() for path in (ROOT / "examples").glob("*.py")}
    assert set(scripts) == set(EXAMPLES)
    lengths = {name: len([line for line in text.splitlines() if line.strip()]) for name, text in scripts.items()}
    assert max(lengths.values()) <= 25, lengths


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert EXAMPLES[name] in run_python([sys.executable, str(ROOT / "examples" / f"{name}.py")])


def texts(notebook: Any) -> list[str]:
    """What each cell printed and showed, without the styles of tables; a picture is its kind."""

    def show(output: Any) -> str:
        stream = output.output_type == "stream"
        return output.text if stream else output.data.get("text/html", output.data["text/plain"])

    cells = [[o for o in cell.outputs if o.get("name") != "stderr"] for cell in notebook.cells if "outputs" in cell]
    shown = ["".join(map(show, outputs)) for outputs in cells]
    return [re.sub(r"<style scoped>.*?</style>|<[^>]+>", " ", text, flags=re.DOTALL) for text in shown]


@pytest.fixture(scope="module")
def stored() -> Any:
    return pytest.importorskip("nbformat").read(NOTEBOOK, as_version=4)


def test_the_stored_notebook_is_small_and_has_all_its_outputs(stored: Any) -> None:
    assert NOTEBOOK.stat().st_size < 400_000
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for cell in cells)
    assert not re.search(r"/(home|root|tmp|work)/", NOTEBOOK.read_text(encoding="utf-8"))
    assert any("not for diagnosis" in text.lower() for text in texts(stored))


@pytest.mark.slow
def test_the_notebook_gives_the_same_figures_again(stored: Any) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from scripts.run_notebook import execute

    again = execute(NOTEBOOK)
    before, after = texts(stored), texts(again)
    assert [NUMBER.sub("#", text) for text in after] == [NUMBER.sub("#", text) for text in before]
    numbers = [[float(number) for text in all_ for number in NUMBER.findall(text)] for all_ in (before, after)]
    assert numbers[1] == pytest.approx(numbers[0], abs=0.02), "other processors add in another order"
    shown, seen = ([o for cell in one.cells for o in cell.get("outputs", [])] for one in (again, stored))
    assert [sorted(o.data) for o in shown if "data" in o] == [sorted(o.data) for o in seen if "data" in o]
    errors = "".join(o.text for o in shown if o.get("name") == "stderr")
    assert "evaluating covid-robust on 24 images: 100%" in errors, "no progress bar in the notebook"


@pytest.mark.slow
def test_the_page_of_the_site_has_the_outputs() -> None:
    pytest.importorskip("nbconvert")
    pages = site.notebooks()
    page = str(pages["notebooks/first-steps.md"])
    assert page.startswith("# First steps in Python")
    assert len(re.findall(r"!\[What the cell shows\]\(first-steps_files/[^)]+\.png\)", page)) == 4
    assert all(f"notebooks/{name}" in pages for name in re.findall(r"\((first-steps_files/[^)]+)\)", page))
    assert "<style" not in page
