"""The documentation: its commands exist and run, its pages are built strictly, and ask nothing of other hosts."""

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

import click
import pytest
import typer
from benchmarks import site
from scripts import check_documents, write_reference

import trustcxr as tx
from browser import chromium, opened, sideways, violations
from docs_blocks import ROOT, blocks, carry_out, commands
from trustcxr import cli, registry

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "studies").rglob("*.md"))]
RUNS = ("sh", "python")
HOW_TO = [
    page
    for page in sorted((DOCS / "howto").glob("*.md"))
    if any(block.file or block.language in RUNS for block in blocks(page))
]


def name_page(page: Path) -> str:
    """Return the name of a page within a test's."""
    return f"{page.parent.name}/{page.name}"


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
    found: Any = typer.main.get_command(cli.app)
    rest = list(words)
    while isinstance(found, click.Group) or hasattr(found, "commands"):
        if not rest or rest[0].startswith("-"):
            return []
        name = rest.pop(0)
        if name not in found.commands:
            return [name]
        found = found.commands[name]
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    said = [word.split("=")[0].strip(",.;") for word in rest if word.startswith("--")]
    return [option for option in said if option not in known | {"--help"}]


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_every_command_of_a_page_is_one(page: Path) -> None:
    wrong = {}
    for words in typed(page):
        if words[0].split("/")[-1] == "trustcxr" and (none := unknown_options(words[1:])):
            wrong[" ".join(words)] = none
    assert wrong == {}


def test_a_command_that_is_none_is_seen() -> None:
    assert unknown_options(["train", "--data", "x", "--colour", "red"]) == ["--colour"]
    assert unknown_options(["paint", "x"]) == ["paint"]
    assert unknown_options(["data", "check", "x", "--json"]) == []


@pytest.mark.parametrize(
    "page", [path for path in PAGES if path.name != "index.md"], ids=lambda page: page.parent.name + "/" + page.name
)
def test_every_page_says_that_it_is_no_diagnosis(page: Path) -> None:
    assert "not for diagnosis" in page.read_text(encoding="utf-8").lower() or page.name == "architecture.md"


def public_functions() -> list[str]:
    """The names in the reference, with the listed functions of a module."""
    text = (DOCS / "reference/python.md").read_text(encoding="utf-8")
    names = []
    for name, members in re.findall(r"^::: (\S+)\n(?:    options:\n      members: \[(.*)\])?", text, re.M):
        names += [f"{name}.{member}" for member in members.split(", ")] if members else [name]
    return names


@pytest.mark.parametrize("name", public_functions())
def test_every_function_of_the_reference_has_an_example_that_make_runs(name: str) -> None:
    function = pkgutil.resolve_name(name)
    assert ">>>" in inspect.getdoc(function)
    examples = re.search(r"^EXAMPLES := \$\(addprefix (\S+),(.*?)\)$", (ROOT / "Makefile").read_text(), re.M | re.S)
    file, tree = Path(inspect.getsourcefile(function)), ROOT / examples[1]
    assert any(file.is_relative_to(tree / part) for part in examples[2].replace("\\", "").split())


def test_every_public_function_stands_in_the_reference() -> None:
    listed = {pkgutil.resolve_name(name) for name in public_functions()}
    own = [getattr(tx, name) for name in tx.__all__]
    own += [getattr(package, name) for package in (tx.explain, tx.plot) for name in vars(package)]
    functions = [one for one in own if inspect.isfunction(one) and one.__module__.startswith("trustcxr")]
    functions += [tx.audit.run, tx.certify.prove, *(tx.attacks.get(name) for name in registry.ATTACKS)]
    functions = [getattr(one, "func", one) for one in functions]  # an attack with options that are fixed
    assert [one.__name__ for one in functions if one not in listed and one.__name__[0] != "_"] == []


def test_every_page_is_short_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    pages = check_documents.list_pages()
    assert len(pages) > 40
    found = {str(page.relative_to(ROOT)): list(check_documents.find_problems(page)) for page in pages}
    assert {name: problems for name, problems in found.items() if problems} == {}
    (tmp_path / "a.md").write_text("# One head\n[a](b.md) [b](a.md#one-head) [c](#none) [d](https://example.org)\n")
    assert check_documents.find_dead_links(tmp_path / "a.md") == ["b.md", "#none"]
    (tmp_path / "README.md").write_text("Word " * 20 + ". " + "word " * 1300)
    assert [text.split(",")[0] for text in check_documents.find_problems(tmp_path / "README.md", tmp_path)] == [
        "1321 words",
        "660.0 words a sentence",
    ]


def test_sentences_are_those_of_the_prose() -> None:
    text = "# A head\nOne two three. Four `five six` [seven](a.md)!\n\n| a | b |\n\n- Eight nine\n- ten\n```\nno\n```\n"
    assert [len(words) for words in check_documents.split_sentences(text)] == [3, 3, 2, 1]


def test_links_to_files_of_the_repository_are_pages_of_the_site() -> None:
    found = site.link_pages(
        "[a](../../CONTRIBUTING.md) [b](../../studies/x/README.md#y) [c](../audit.md)", "howto/x.md"
    )
    assert found == "[a](../contributing.md) [b](../studies/x/README.md#y) [c](../audit.md)"
    found = site.link_pages("[a](../../docs/paper.md) [b](figure.png) [c](https://a.b)", "studies/x/README.md")
    assert found == "[a](../../paper.md) [b](figure.png) [c](https://a.b)"


def test_pages_that_the_program_writes_are_current() -> None:
    assert write_reference.stale_pages() == [], "run: python -m scripts.write_reference"


def test_every_measure_says_what_it_is_and_what_it_does_not_mean() -> None:
    page = write_reference.write_measures()
    for entry in registry.MEASURES.values():
        part = page[page.index(f"`{entry.name}`") :].split("\n### ")[0]
        assert entry.beware in part
        assert len(part.split("\n\n")[1]) > 20, f"{entry.name}: what it is"
    for table in (registry.ATTACKS, registry.DEFENCES, registry.CORRUPTIONS, registry.SALIENCY):
        assert [name for name in table if f"| `{name}` |" not in page] == []


# --- slow: what a reader does, from the top to the bottom -------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the tutorial was carried out."""
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TRUSTCXR_CACHE", str(folder / "cache"))
        assert carry_out(DOCS / "tutorial.md") >= 6
    return folder


@pytest.mark.full
def test_the_tutorial_does_what_it_says(taught: Path) -> None:
    for name in ("out/standard/report.html", "out/fgsm/model.safetensors"):
        assert (taught / name).is_file(), name
    assert list((taught / "out/standard/evaluations").glob("*/metrics.json"))
    assert list((taught / "out/heatmaps").glob("*.png"))


@pytest.mark.full
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_page_runs_after_the_tutorial(
    page: Path, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(taught, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    runnable = [block for block in blocks(page) if block.file or block.language in RUNS]
    assert carry_out(page) == len(runnable)


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
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = f"http://127.0.0.1:{server.server_port}/"
        try:
            with chromium() as browser:
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
                        assert found.complaints == [], name
                        assert found.elsewhere(own) == [], name
                        assert sideways(found.page) == 0, name
                        assert violations(found.page) == [], name
        finally:
            server.shutdown()
