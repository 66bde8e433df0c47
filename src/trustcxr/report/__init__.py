"""From a study folder to one self-contained page, a table for the terminal and the figure of the README.

The names below are loaded on first use, so that `import trustcxr.report` brings no Matplotlib, pandas or rich with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "leaderboard": "trustcxr.report.terminal",
    "print_rows": "trustcxr.report.terminal",
    "readme_figure": "trustcxr.report.panels",
    "write": "trustcxr.report.page",
}
__all__ = ["leaderboard", "print_rows", "readme_figure", "write"]

if TYPE_CHECKING:
    from trustcxr.report.page import write
    from trustcxr.report.panels import readme_figure
    from trustcxr.report.terminal import leaderboard, print_rows


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'trustcxr.report' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)
