"""Proofs: lower bounds of what a model's answers withstand, beside the attacks' upper bounds.

The names below are loaded on first use.
"""

from typing import TYPE_CHECKING

from trustcxr.lazily import loader

_NAMES = {
    "Effort": "trustcxr.certify.proofs",
    "Interval": "trustcxr.certify.ibp",
    "contract": "trustcxr.certify.contract",
    "crown": "trustcxr.certify.crown",
    "effort": "trustcxr.certify.proofs",
    "ibp": "trustcxr.certify.ibp",
    "least_margins": "trustcxr.certify.proofs",
}
__all__ = [
    "Effort",
    "Interval",
    "contract",
    "crown",
    "effort",
    "ibp",
    "least_margins",
]
__getattr__ = loader(__name__, _NAMES)

if TYPE_CHECKING:
    from trustcxr.certify import contract, crown, ibp
    from trustcxr.certify.ibp import Interval
    from trustcxr.certify.proofs import Effort, effort, least_margins


def __dir__() -> list[str]:
    return __all__
