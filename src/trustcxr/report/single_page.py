"""Pages of their own beside a study's report: templates, and a style that is light or dark as the reader has it."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def environment() -> "Environment":
    """Templates of this package, with both style sheets at hand."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=PackageLoader("trustcxr.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    styles = [Path(__file__).with_name("templates") / name for name in ("report.css", "audit.css")]
    made.globals["css"] = Markup("\n".join(style.read_text(encoding="utf-8") for style in styles))
    return made
