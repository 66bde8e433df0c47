"""Write a study folder as one self-contained page, and as tables for the terminal and for papers.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr._lazy import attach

if TYPE_CHECKING:
    from trustcxr.report.study_html import write, write_figures
    from trustcxr.report.terminal import print_rows, print_study, print_table
else:
    __getattr__, __dir__, __all__ = attach(__name__)
