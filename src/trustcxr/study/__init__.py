"""The protocol: train, choose on validation, train robustly, test, explain, compare.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr.lazily import loader

_NAMES = {
    "Study": "trustcxr.study.protocol",
    "compare": "trustcxr.study.audit_pairs",
    "standard_against_robust": "trustcxr.study.comparison",
}
__all__ = [
    "Study",
    "compare",
    "standard_against_robust",
]
__getattr__ = loader(__name__, _NAMES)

if TYPE_CHECKING:
    from trustcxr.study.audit_pairs import compare
    from trustcxr.study.comparison import standard_against_robust
    from trustcxr.study.protocol import Study


def __dir__() -> list[str]:
    return __all__
