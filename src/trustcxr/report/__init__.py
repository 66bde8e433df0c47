"""From a study folder to one self-contained page, a table for the terminal and the figure of the README.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr.lazily import loader

_NAMES = {
    "leaderboard": "trustcxr.report.terminal",
    "over_seeds": "trustcxr.report.terminal",
    "print_rows": "trustcxr.report.columns",
    "readme_figure": "trustcxr.report.figures.pictures",
    "write": "trustcxr.report.page",
}
__all__ = [
    "leaderboard",
    "over_seeds",
    "print_rows",
    "readme_figure",
    "write",
]
__getattr__ = loader(__name__, _NAMES)

if TYPE_CHECKING:
    from trustcxr.report.columns import print_rows
    from trustcxr.report.figures.pictures import readme_figure
    from trustcxr.report.page import write
    from trustcxr.report.terminal import leaderboard, over_seeds


def __dir__() -> list[str]:
    return __all__
