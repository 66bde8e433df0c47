"""From a study folder to one self-contained page, a table for the terminal and the figure of the README.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr.lazily import attach

if TYPE_CHECKING:
    from trustcxr.report.columns import print_rows
    from trustcxr.report.figures.pictures import readme_figure
    from trustcxr.report.page import write
    from trustcxr.report.terminal import leaderboard, over_seeds
else:
    __getattr__, __dir__, __all__ = attach(__name__)
