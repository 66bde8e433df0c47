"""What `trustcxr compare` says: two audits by one protocol, paired image by image."""

from trustcxr.results.documents.audits import AuditedData
from trustcxr.results.flat import Document, Number, Share


class PairRow(Document):
    """One condition: accuracy of both, the second less the first with its interval, and whether they differ.

    `settled`: the interval and the test, corrected for the number of rows, both say that they do.
    """

    measure: str = ""
    first: Number = None
    second: Number = None
    difference: Share = Share()
    p_value: Number = None
    n: int | None = None
    p_corrected: Number = None
    settled: bool = False


class AuditPair(Document):
    """Two audits: the models' names, which of them may not be relied on, and what was withdrawn in one of them.

    `handed_in`: of each, who handed in adversarial images that alone changed its worst case.
    `data` as the audit has them of which fewer images have a score. `same_pixels`: whether both models were given the
    same pixels; not where they want films of different sizes. `other_lungs`: films on which the lungs are changed, by
    other lung masks in one of them, and so not compared.
    """

    first: str = ""
    second: str = ""
    protocol: str | None = None
    data: AuditedData = AuditedData()
    same_pixels: bool | None = None
    unreliable: list[bool] = []
    withdrawn: list[str] = []
    other_lungs: list[str] = []
    handed_in: list[list[str]] = []
    rows: list[PairRow] = []
