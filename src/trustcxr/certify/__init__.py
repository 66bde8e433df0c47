"""Proofs: lower bounds of what a model's answers withstand, beside the attacks' upper bounds."""

from typing import TYPE_CHECKING

from trustcxr.certify import contract, crown, ibp
from trustcxr.certify.ibp import Interval
from trustcxr.certify.proofs import Effort, effort, least_margins
from trustcxr.lazily import attach

if TYPE_CHECKING:
    from trustcxr.certify import contract, crown, ibp
    from trustcxr.certify.ibp import Interval
    from trustcxr.certify.proofs import Effort, effort, least_margins
else:
    __getattr__, __dir__, __all__ = attach(__name__)
