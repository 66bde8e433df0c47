"""The fenced blocks of documentation: commands and Python, run as a reader types them, from the top of a page down.

```sh holds commands, ```python a script, and a block with title="NAME" is that file; other blocks are only read.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from test_cli import run

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One block: its language (empty where none is said), the file that it is, and its text."""

    language: str
    file: str
    text: str

    @property
    def runs(self) -> bool:
        return bool(self.file) or self.language in ("sh", "python")


def blocks(page: Path) -> list[Block]:
    """Every block of a page, in order."""
    return [
        Block(next(iter(head.split()), ""), "".join(re.findall(r'title="([^"]+)"', head)), text)
        for head, text in FENCE.findall(page.read_text(encoding="utf-8"))
    ]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a block: without comments, with its continued lines."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def carry_out(page: Path) -> None:
    """Run a page's blocks in the folder that one is in."""
    for block in filter(lambda block: block.runs, blocks(page)):
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            run_python([sys.executable, "-c", block.text])
        else:
            for words in commands(block.text):
                _command(words)


def _command(words: list[str]) -> None:
    into = words[words.index(">") + 1] if ">" in words else None
    words = words[: words.index(">")] if into else words
    if words[0] == "trustcxr":
        printed = run(*words[1:]).stdout
    else:
        assert words[0] == "python", f"only trustcxr and python are run: {words}"
        printed = run_python([sys.executable, *words[1:]])
    if into:
        Path(into).write_text(printed, encoding="utf-8")


def run_python(command: list[str]) -> str:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), "."])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout
