"""Proofs: lower bounds of what a model's answers withstand, beside the attacks' upper bounds."""

from trustcxr.certify import contract, crown, ibp
from trustcxr.certify.ibp import Interval
from trustcxr.certify.proofs import Effort, effort, least_margins

__all__ = ["Effort", "Interval", "contract", "crown", "effort", "ibp", "least_margins"]
