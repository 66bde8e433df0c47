"""Define the parts of audit.json that a committee asks for: facts of the audit, Table 1, failures, criteria."""

from trustcxr.storage.schemas.document import Document, Number, Share
from trustcxr.storage.schemas.study_document import Hardware
from trustcxr.storage.schemas.test_figures import Attacked


class FlowStep(Document):
    """Images that are left after a step, and those that it left out, with the reason."""

    step: str = ""
    n: int | None = None
    left_out: int = 0
    why: str = ""


class Characteristic(Document):
    """A value of a column of the data, with its count in each class; quartiles instead of counts for an age.

    `by_class`: of each class, the images with this value. `quartiles`: of each class, lower quartile, median and upper.
    """

    column: str = ""
    value: str = ""
    n: int | None = None
    by_class: dict[str, int] = {}
    quartiles: dict[str, tuple[Number, Number, Number]] = {}


class AuditFacts(Document):
    """Date, software, machine and images of an audit.

    `patients` is the number of known patients, None if no image names its patient; `without_patient`: images without
    one. `classes`: images with each class, or with each finding and a label of it, in `labelled`.
    """

    date: str = ""
    versions: dict[str, str] = {}
    hardware: Hardware = Hardware()
    patients: int | None = None
    without_patient: int | None = None
    classes: dict[str, int] = {}
    labelled: dict[str, int] = {}
    flow: list[FlowStep] = []
    characteristics: list[Characteristic] = []


class Failure(Document):
    """A wrong answer on an unperturbed image, and the probability that the model gave it."""

    sample_id: str = ""
    finding: str = ""
    label: str = ""
    answer: str = ""
    probability: Number = None


class PredictiveValue(Attacked):
    """Predictive values of an operating point at a prevalence, from its likelihood ratios."""

    finding: str = ""
    aimed_at: str = ""
    prevalence: Number = None
    n: int | None = None
    ppv: Share = Share()
    npv: Share = Share()


class CriterionResult(Document):
    """An acceptance criterion and its result; `met` is None if these images do not settle it.

    `result`: the figure, or its difference from that of another audit if `not_worse_than` names one. `bound` is what
    it is compared with, from `side` (at_least, at_most). `images_needed`: images that would settle it with a chance of
    80 % if the true value is this estimate. `beforehand`: whether the criterion was given before the audit had figures.
    """

    name: str = ""
    figure: str = ""
    side: str = ""
    bound: Number = None
    by: str = ""
    not_worse_than: str = ""
    margin: Number = None
    result: Share = Share()
    n: int | None = None
    met: bool | None = None
    images_needed: int | None = None
    beforehand: bool | None = None
    text: str = ""
