"""Fill the templates of the pages, with style sheet, light and dark colours and script."""

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustcxr.storage.atomic import parse_yaml
from trustcxr.version import NOTICE, __version__

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).with_name("templates")
FOLDED_ABOVE = 6  # longer lists start folded
_COLOUR = re.compile(r"var\(--c([0-9a-f]{6})\)")
_LIGHT, _DARK = "/* drawings, light */", "/* drawings, dark */"
# Invert the lightness and retain the hue, so that colours that differ on white differ on dark.
_ON_DARK = "lab(from {} calc(100 - .94 * l) a b)"


@lru_cache(maxsize=1)
def load_templates() -> "Environment":
    """Return the templates with styles, script and the policy that allows no other script."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    templates = Environment(
        loader=PackageLoader("trustcxr.report"),
        autoescape=lambda name: str(name).endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    templates.globals |= {
        "css": Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        "dark_css": Markup((_FOLDER / "dark.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_source": f"'sha256-{digest}'",
        "folded_above": FOLDED_ABOVE,
        "notice": NOTICE,
        "version": __version__,
    }
    return templates


def fill_template(template: str, parts: Mapping[str, object]) -> str:
    """Return a template filled with its parts, with light and dark colours of each drawing."""
    page = load_templates().get_template(template).render(parts)
    colours = {f"--c{digits}": f"#{digits}" for digits in sorted(set(_COLOUR.findall(page)))}
    for mark, form in ((_LIGHT, "{}"), (_DARK, _ON_DARK)):
        variables = ";".join(f"{name}:{form.format(colour)}" for name, colour in colours.items())
        page = page.replace(mark, f":root{{{variables}}}", 1)
    return page


def fill_lines(name: str, parts: Mapping[str, object]) -> list[str]:
    """Return the lines of a template of plain text in `lines/`, without blank ones."""
    text = load_templates().get_template(f"lines/{name}.txt.j2").render(parts)
    return [line for line in text.splitlines() if line.strip()]


def fill_text(text: str, parts: Mapping[str, object]) -> str:
    """Return a template of plain text filled with its parts, in one line."""
    from jinja2 import Environment, StrictUndefined

    return re.sub("[ \n]+", " ", Environment(undefined=StrictUndefined).from_string(text).render(parts)).strip()


@lru_cache(maxsize=4)
def read_yaml(name: str) -> Any:
    """Read a document that lies beside the templates."""
    return parse_yaml((_FOLDER / name).read_text(encoding="utf-8"))
