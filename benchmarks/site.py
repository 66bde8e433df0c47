"""Add pages to the site as it is built: the studies, the leaderboard and what it takes from the repository's root.

A hook of MkDocs (mkdocs.yml). Pages of docs/ link files of the repository, so that the links work in a clone too. On
the site they lead to the pages that are made from these files.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from trustcxr.report import leaderboard  # noqa: E402
from trustcxr.version import NOTICE  # noqa: E402

STUDIES = ROOT / "studies"
LINK = re.compile(r"\]\(((?:\.\./)*[^)\s#:]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Add the studies to the navigation, and the pages of docs/ that it does not name."""
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    more = [path for path in sorted((ROOT / "docs").rglob("*.md")) if _address(path) not in named]
    studies = [path for path in sorted(STUDIES.rglob("README.md")) if path.parent != STUDIES]
    pages = {_title(path.read_text("utf-8")): path.relative_to(ROOT).as_posix() for path in studies}
    nav = list(config.nav)
    before = next((place for place, item in enumerate(nav) if "Leaderboard" in item), len(nav))
    nav[before:before] = [
        {"Studies": [{"All studies": "studies/README.md"}, *({name: page} for name, page in pages.items())]}
    ]
    if more:
        nav.append({"More": [{_title(path.read_text("utf-8")): _address(path)} for path in more]})
    config.nav = nav
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the studies and the written pages to those of docs/."""
    from mkdocs.structure.files import File

    for address, content in {**written(), **notebooks()}.items():
        files.append(File.generated(config, address, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace links to files of the repository by links to pages of the site."""
    return link_pages(markdown, page.file.src_uri)


def link_pages(markdown: str, address: str) -> str:
    """Return a page with links that hold on the site, where docs/ is the root and studies/ is in it."""
    file = ROOT / address if address.startswith("studies/") else ROOT / "docs" / address
    file = ROOT / "CONTRIBUTING.md" if address == "contributing.md" else file

    def link(match: re.Match[str]) -> str:
        target = os.path.relpath(os.path.normpath(file.parent / match[1]), ROOT)
        target = "contributing.md" if target == "CONTRIBUTING.md" else target.removeprefix("docs/")
        return f"]({os.path.relpath(target, Path(address).parent)}{match[2] or ''})"

    return LINK.sub(link, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Let a table wider than the window scroll in a region of its own, which the keyboard reaches."""
    html = re.sub(r"(?<=\d) (\[-?[\d.]+,) (-?[\d.]+\])", r"&nbsp;\1&nbsp;\2", html)  # an interval stays in one line
    around = r'<div class="scrolls" role="region" aria-label="Table" tabindex="0">\g<0></div>'
    return re.sub(r"<table\b.*?</table>", around, html, flags=re.DOTALL)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Name the theme's search, a dialog that a screen reader cannot announce otherwise."""
    return _named(output)


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """Name the search of the page for an address that is none."""
    return _named(output_content)


def _named(page: str) -> str:
    return page.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def written() -> dict[str, str | bytes]:
    """Return the pages and files that are not in docs/, by address."""
    board = leaderboard.gather_audits(ROOT / "leaderboard")
    kinds = {".md", ".csv", ".png", ".yaml"}
    studies = {
        path.relative_to(ROOT).as_posix(): path.read_bytes() if path.suffix == ".png" else path.read_text("utf-8")
        for path in sorted(STUDIES.rglob("*"))
        if path.suffix in kinds
    }
    return {
        **studies,
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text("utf-8"),
        "leaderboard.md": _leaderboard(board),
        "board.html": leaderboard.render(board),
    }


def notebooks() -> dict[str, str | bytes]:
    """The notebooks of docs/notebooks as pages, with the outputs that they were stored with, and their pictures."""
    from nbconvert import MarkdownExporter

    found: dict[str, str | bytes] = {}
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        page, resources = MarkdownExporter().from_filename(str(path), {"output_files_dir": f"{path.stem}_files"})
        download = f"[Download this notebook]({path.name})."
        page = re.sub(r"<style scoped>.*?</style>\s*", "", page, flags=re.DOTALL).replace(
            "![png]", "![What the cell shows]"
        )
        found[f"notebooks/{path.stem}.md"] = f"{page}\n{download}\n"
        found |= {f"notebooks/{name}": content for name, content in resources["outputs"].items()}
    return found


def _leaderboard(board: leaderboard.Board) -> str:
    """The entries as a table, with a link to the page that sorts."""
    which = (
        f"{len(board.entries)} audits by {board.protocol} on {board.data}, {board.n} images, best under attack first."
    )
    overlap = "The models were trained on images of the same collections."
    links = "[The page that sorts](board.html), [how to submit](howto/submit.md)."
    table = leaderboard.make_table(board).markdown()
    return f"# Leaderboard\n\n*{NOTICE}* {which} {overlap} {links}\n\n{table}\n"


def _address(path: Path) -> str:
    return path.relative_to(ROOT / "docs").as_posix()


def _title(text: str) -> str:
    return text.split("\n", 1)[0].lstrip("# ").strip()
