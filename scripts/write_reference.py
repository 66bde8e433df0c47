"""Write the pages of the documentation that the program knows itself: commands, recipe keys and measures.

Run: python -m scripts.write_reference [--check]

`--check` writes nothing, and ends with exit code 1 if a page is older than the program.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from scripts.draw_data_flow import draw_data_flow
from trustcxr import cli, registry
from trustcxr.recipes.parsing import model_in
from trustcxr.recipes.study_recipe import StudyRecipe, recipe_titles
from trustcxr.registry import Measure
from trustcxr.report import formatting
from trustcxr.report.tables.table import markdown_rows
from trustcxr.version import NOTICE

DOCS = Path(__file__).parents[1] / "docs"
BETTER = {"higher": "more", "lower": "less", None: "neither: it is no matter of better or worse"}
CHANCE = {"share": "the mask's share of the area", "half": "0.5", "pixels": "as many random pixels"}
COMMANDS = """# Commands

*{notice}* Written from the program by `scripts/write_reference.py`. Each command has `--help` with an example.

A RUN is the folder of a run, the name of a trained model (`trustcxr models`), or an address `hf://owner/name`. `--json`
prints one JSON document on stdout. Exit codes: 0 done, 1 a fault of the program, 2 wrong input, 3 a criterion of
`audit --fail` that is not met, 130 stopped.
"""
RECIPE = """# Recipe keys

*{notice}* Written from the program by `scripts/write_reference.py`.

A recipe is a YAML file that defines a study. `trustcxr recipe NAME > mine.yaml` writes a shipped one with every key.
`training` of a model or of a defence replaces these keys of the study. `--set KEY=VALUE` of `trustcxr train` sets one
key of a run.
"""
MEASURES = """# What each measure means, and does not mean

*{notice}* Written from the program by `scripts/write_reference.py`.

## Accuracy under attack

Accuracy under an attack is an upper bound: a stronger attack may leave less. What is certified is a lower bound.
Epsilon is the L-infinity radius with pixels in [0, 1]: 0.02 is 5.1 grey levels of 255.
"""
MAPS = """## Saliency maps, and images with parts hidden

A figure against masks means nothing alone. Beside it is the figure of chance, of a blob in the centre, of the image's
brightness, and of the same network with random weights.
"""


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """Return a Markdown table whose cells cannot end a column."""
    return markdown_rows(head, [[" ".join(cell.split()).replace("|", "/") for cell in row] for row in rows])


# --- commands --------------------------------------------------------------------------------------------------------


def write_commands() -> str:
    """Return the page of all commands with their options."""
    commands = list(_commands(typer.main.get_command(cli.app), "trustcxr"))
    rows = [[f"[`{name}`](#{name.replace(' ', '-')})", _sentence(command)] for name, command in commands]
    parts = [COMMANDS.format(notice=NOTICE), table(("command", "what it does"), rows)]
    return "\n\n".join([*parts, *(_describe(name, command) for name, command in commands)]) + "\n"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    for word in sorted(getattr(command, "commands", {})):
        yield from _commands(command.commands[word], f"{name} {word}")
    if not hasattr(command, "commands"):
        yield name, command


def _sentence(command: Any) -> str:
    return inspect.cleandoc(command.help or "").split("\n\n")[0].replace("\b", "")


def _describe(name: str, command: Any) -> str:
    """Return the part of one command: what it does, its arguments and its options."""
    shown = [p for p in command.params if p.name != "help" and not p.hidden]
    arguments = {p.name: p.metavar or p.name.upper() for p in shown if p.param_type_name == "argument"}
    rows = [[f"`{arguments[p.name]}`", p.help or "", ""] for p in shown if p.name in arguments]
    options = [p for p in shown if p.name not in arguments]
    rows += [[", ".join(f"`{name}`" for name in p.opts), p.help or "", _default(p)] for p in options]
    usage = " ".join([name, *arguments.values(), "..." * bool(options)]).strip()
    parts = [f"## {name}", _sentence(command), f"`{usage}`"]
    return "\n\n".join([*parts, *([table(("option", "meaning", "default"), rows)] if rows else [])])


def _default(parameter: Any) -> str:
    value = parameter.default
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return f"`{value}`" if plain and str(value) else ""


# --- recipe keys -----------------------------------------------------------------------------------------------------


def write_recipe_keys() -> str:
    """Return the page of the keys of a recipe."""
    shipped = table(("recipe", "what it compares"), [[f"`{name}`", title] for name, title in recipe_titles().items()])
    sections = "\n\n".join(
        f"## {name or 'The study'}\n\n{table(('key', 'meaning', 'default'), rows)}" for name, rows in _sections()
    )
    return f"{RECIPE.format(notice=NOTICE)}\n{shipped}\n\n{sections}\n"


def _sections() -> Iterator[tuple[str, list[list[str]]]]:
    waiting: list[tuple[str, type[BaseModel]]] = [("", StudyRecipe)]
    while waiting:
        name, kind = waiting.pop(0)
        rows = []
        for key, field in kind.model_fields.items():
            inner = model_in(field.annotation)
            path = f"{name}.{key}".lstrip(".")
            if inner is not None:
                waiting.append((path, inner))
            meaning = field.description or (f"see [{path}](#{path.replace('.', '')})" if inner else "")
            default = field.get_default(call_default_factory=True)
            simple = default is not PydanticUndefined and not isinstance(default, BaseModel) and inner is None
            rows.append([f"`{key}`", meaning, f"`{default}`" if simple and default not in ("", None, {}, ()) else ""])
        yield name, rows


# --- measures --------------------------------------------------------------------------------------------------------


def write_measures() -> str:
    """Return the page of what each measure means, from the registry and the docstrings."""
    attacks = [[f"`{a.name}`", a.label, a.paper, _first("attacks", a.function)] for a in registry.ATTACKS.values()]
    defences = [
        [f"`{d.name}`", d.paper or formatting.DASH, _first("defences", d.function)] for d in registry.DEFENCES.values()
    ]
    corruptions = [[f"`{c.name}`", c.about] for c in registry.CORRUPTIONS.values()]
    methods = [[f"`{s.name}`", s.label, s.paper or formatting.DASH] for s in registry.SALIENCY.values()]
    parts = [
        MEASURES.format(notice=NOTICE),
        table(("name", "in tables", "paper", "what it is"), attacks),
        MAPS,
        *(_measure(entry) for entry in registry.MEASURES.values()),
        "## Ways to train",
        table(("name", "paper", "what it is"), defences),
        "## Saliency methods",
        table(("name", "in tables", "paper"), methods),
        "## Corruptions",
        table(("name", "what went wrong"), corruptions),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _measure(entry: Measure) -> str:
    means = entry.about or _first("explain", str(entry.function))
    by_chance = f" A map that knows nothing has {CHANCE[entry.chance]}." if entry.mask else ""
    return "\n\n".join(
        [
            f"### {formatting.capital(entry.label)}",
            f"`{entry.name}`{f', {entry.paper}' if entry.paper else ''}",
            means,
            f"*It does not mean:* {entry.beware}",
            f"Better: {BETTER[entry.better]}.{by_chance}",
        ]
    )


def _first(package: str, function: str) -> str:
    """Return the first paragraph of a docstring in one line."""
    text = (inspect.getdoc(registry.load_function(package, function)) or "").split("\n\n")[0]
    text = re.sub(r"\s+", " ", text).removeprefix("Return ")
    return formatting.capital(text).replace("|", "/").replace("[", "\\[")


PAGES = {
    "reference/commands.md": write_commands,
    "reference/recipe.md": write_recipe_keys,
    "reference/measures.md": write_measures,
    "figures/data-flow.svg": draw_data_flow,
}


def stale_pages() -> list[str]:
    """Return the pages that the program would write otherwise."""
    return [
        name
        for name, write in PAGES.items()
        if not (DOCS / name).is_file() or (DOCS / name).read_text(encoding="utf-8") != write()
    ]


def main() -> None:
    """Write the pages, or check them."""
    if "--check" in sys.argv[1:]:
        stale = stale_pages()
        sys.exit(f"older than the program: {', '.join(stale)}. Run: python -m scripts.write_reference" if stale else 0)
    for name, write in PAGES.items():
        (DOCS / name).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / name).write_text(write(), encoding="utf-8")


if __name__ == "__main__":
    main()
