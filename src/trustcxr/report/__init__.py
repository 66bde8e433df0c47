"""From a study folder to one self-contained page, and tables for the terminal and for papers.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr.lazily import loader

_NAMES = {
    "print_rows": "trustcxr.report.terminal",
    "print_study": "trustcxr.report.terminal",
    "print_table": "trustcxr.report.terminal",
    "write": "trustcxr.report.page",
}
__all__ = ["print_rows", "print_study", "print_table", "write"]
__getattr__ = loader(__name__, _NAMES)

if TYPE_CHECKING:
    from trustcxr.report.page import write
    from trustcxr.report.terminal import print_rows, print_study, print_table


def __dir__() -> list[str]:
    return __all__
