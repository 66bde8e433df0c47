"""The shell of every page: one template, one style sheet, light and dark, one script that the page can do without."""

import base64
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from trustcxr.report import written
from trustcxr.report.figures.colours import palette
from trustcxr.report.tables.cells import Table

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDED_ABOVE = 6  # longer lists start folded
_LIGHT, _DARK = "/* drawings, light */", "/* drawings, dark */"


@lru_cache(maxsize=1)
def environment() -> "Environment":
    """Templates of this package, with styles, script and the policy that lets no other script run; compiled once."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=PackageLoader("trustcxr.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    here = Path(__file__).with_name("templates")
    script = (here / "page.js").read_text(encoding="utf-8")
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    made.globals |= {
        "css": Markup((here / "page.css").read_text(encoding="utf-8")),
        "dark_css": Markup((here / "dark.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_source": f"'sha256-{known}'",
        "folded_above": FOLDED_ABOVE,
    }
    return made


def filled(template: str, parts: Mapping[str, object]) -> str:
    """A template with its parts: every table with its files, every drawing in the colours of light and dark."""
    names = {id(table): name for name, table in written.tables(parts)}

    def downloads(table: Table) -> list[written.Download]:
        return written.downloads(names[id(table)], table) if id(table) in names else []

    page = environment().get_template(template).render({**parts, "downloads": downloads})
    colours = list(palette(page))
    for mark, values in ((_LIGHT, (f"{name}:{on_white}" for name, on_white, _ in colours)), (_DARK, _dark(colours))):
        page = page.replace(mark, f":root{{{';'.join(values)}}}", 1)
    return page


def _dark(colours: list[tuple[str, str, str]]) -> list[str]:
    return [f"{name}:{dark}" for name, _, dark in colours]
