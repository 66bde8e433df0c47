"""Check the documents: words of a page, length of its sentences, links that lead nowhere. Run by `make lint`.

Run: python scripts/check_documents.py

Prints one line for each problem and ends with exit code 1 if there is any.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_WORDS = {"README.md": 1300}
MOST_WORDS_OF_A_PAGE = 1200
MOST_LINES_OF_A_HOW_TO = 80
LONGEST_MEAN_SENTENCE = 18
LONG = ("docs/reference/", "CHANGELOG.md", "CONTRIBUTING.md")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def list_pages(root: Path = ROOT) -> list[Path]:
    """Return the pages that people read."""
    return sorted(page for part in ("*.md", "docs/**/*.md", "studies/**/*.md") for page in root.glob(part))


def split_sentences(text: str) -> list[list[str]]:
    """Return the words of each sentence of a page's prose; code, tables and headings are none."""
    text = re.sub(r"<!--.*?-->|<[^>]+>", "", FENCE.sub("", text), flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"^(\||#).*$", "\n", text, flags=re.MULTILINE)
    blocks = re.split(r"\n\s*\n|^\s*(?:[-*]|\d+\.)\s", text, flags=re.MULTILINE)
    parts = [part for block in blocks for part in re.split(r"[.!?](?=[\s*\")\]]|$)", block)]
    return [words for part in parts if (words := re.findall(r"\w[\w'’.,-]*", part))]


def find_anchors(text: str) -> set[str]:
    """Return the addresses of a page's headings."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def find_dead_links(page: Path) -> list[str]:
    """Return the links of a page of the repository to a file or a heading that is not there."""
    dead = []
    text = re.sub(r"`[^`\n]*`(?!\])", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (heading and heading not in find_anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    return dead


def find_problems(page: Path, root: Path = ROOT) -> Iterator[str]:
    """Yield what is wrong with a page."""
    name, text = page.relative_to(root).as_posix(), page.read_text(encoding="utf-8")
    yield from (f"dead link: {link}" for link in find_dead_links(page))
    if name.startswith(LONG):
        return
    count, most = len(text.split()), MOST_WORDS.get(name, MOST_WORDS_OF_A_PAGE)
    if count > most:
        yield f"{count} words, more than {most}. Shorten it, or split it."
    if name.startswith("docs/howto/") and (lines := len(text.splitlines())) > MOST_LINES_OF_A_HOW_TO:
        yield f"{lines} lines, more than {MOST_LINES_OF_A_HOW_TO}. Shorten it, or split it."
    sentences = split_sentences(text)
    mean = sum(map(len, sentences)) / max(len(sentences), 1)
    if mean > LONGEST_MEAN_SENTENCE:
        yield f"{mean:.1f} words a sentence, more than {LONGEST_MEAN_SENTENCE}. Shorten the longest ones."


def main() -> None:
    """Check every page."""
    pages = list_pages()
    problems = [f"{page.relative_to(ROOT)}: {text}" for page in pages for text in find_problems(page)]
    print("\n".join(problems) or f"{len(pages)} pages: length, sentences and links are in style")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
