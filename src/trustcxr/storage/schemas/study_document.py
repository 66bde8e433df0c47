"""Define study.json: all runs of a study, compared."""

from typing import Any, Literal

from trustcxr.storage.schemas.document import Document, Number, Share
from trustcxr.storage.schemas.run_document import Alarm, RunDocument

LEVEL = 0.05  # of a p-value, corrected for the number of comparisons


class Comparison(Document):
    """A robust run less the standard one on the same images, by one measure; `better`: the good direction, if any.

    `p_least`: the p-value if all these images changed in one direction. Larger than LEVEL after correction, it cannot
    settle anything.
    """

    model: str = ""
    seed: int | None = None
    defence: str = ""
    label: str = ""  # of the defence, or guided or counterfactual
    background: str = "full"
    split: str = ""
    measure: str = ""
    method: str | None = None
    better: Literal["higher", "lower"] | None = "higher"
    standard: Number = None
    robust: Number = None
    difference: Share = Share()
    improved: Number = None
    p_value: Number = None
    p_least: Number = None
    n: int | None = None
    p_corrected: Number = None
    comparisons: int | None = None
    verdict: str = ""

    @property
    def outcome(self) -> Literal["higher", "lower", "not settled"]:
        """The direction on which the interval and the corrected test agree."""
        ends = self.difference.interval
        if ends is None or ends[0] <= 0 <= ends[1] or (self.p_corrected is not None and self.p_corrected >= LEVEL):
            return "not settled"
        return "higher" if ends[0] > 0 else "lower"

    @property
    def side(self) -> Literal["better", "worse"] | None:
        """Return whether the robust run is better or worse; None if neither is settled or good."""
        if self.better is None or self.outcome == "not settled":
            return None
        return "better" if self.outcome == self.better else "worse"


class SeedFigure(Document):
    """One figure over `n` seeds of a network and defence; `deviation` is their standard deviation."""

    measure: str = ""
    method: str | None = None
    mean: Number = None
    deviation: Number = None
    lowest: Number = None
    highest: Number = None
    n: int | None = None


class OverSeeds(Document):
    """The spread of the figures of a network and defence over its seeds."""

    model: str = ""
    defence: str = ""
    label: str = ""
    background: str = "full"
    split: str = ""
    seeds: list[int] = []
    figures: list[SeedFigure] = []


class Ranked(Document):
    """A network's figure on validation, and whether it is chosen for robust training."""

    model: str = ""
    value: Number = None
    chosen: bool = False


class DataDescription(Document):
    """The data as they were read: images by split and class, masks and groups by split."""

    root_name: str = ""
    layout: str = ""
    notes: list[str] = []
    counts: dict[str, dict[str, int]] = {}
    skipped: int | None = None
    size: int | None = None
    infection_masks: dict[str, int] = {}
    fingerprint: str = ""
    fingerprints: dict[str, str] = {}
    groups: dict[str, int] = {}


class DataFinding(Document):
    """One issue of `data check`; `severity` is fault, leak, warning or note."""

    kind: str = ""
    severity: str = ""
    text: str = ""
    count: int | None = None


class DataProbe(Document):
    """Balanced accuracy of a linear model of the classes on one view of the images."""

    view: str = ""
    accuracy: Share = Share()
    chance: Number = None
    trained_on: int | None = None
    tested_on: int | None = None
    how: str = ""


class DataCheck(Document):
    """data-check.json: the part of `trustcxr data check --json` that a report needs."""

    data: str = ""
    images: int | None = None
    verdict: str = ""
    findings: list[DataFinding] = []
    probes: list[DataProbe] = []


class Hardware(Document):
    """The machine, and its torch threads within an operation and for parallel operations."""

    processor: str | None = None
    cores: int | None = None
    threads: int | None = None
    interop_threads: int | None = None
    accelerator: str | None = None
    system: str | None = None


class FailedRun(Document):
    """A run that is not in the tables, and why."""

    run: str = ""
    reason: str = ""


class Selection(Document):
    """The networks chosen for robust training; `left_out`: unfinished standard runs removed from the recipe."""

    split: str = ""
    by: str = ""
    count: int | None = None
    ranking: list[Ranked] = []
    left_out: list[FailedRun] = []


class StudyDocument(Document):
    """study.json: all runs of a study, their metrics, comparisons and provenance."""

    version: int | None = None
    study: str = ""
    title: str = ""
    notice: str = ""
    created: str = ""
    trustcxr: str = ""
    versions: dict[str, str] = {}
    hardware: Hardware = Hardware()
    source: dict[str, str | bool] | None = None  # the commit of TrustCXR, and whether its files were changed
    seconds: Number = None
    data: DataDescription = DataDescription()
    recipe: dict[str, Any] = {}
    classes: list[str] = []
    selection: Selection = Selection()
    runs: list[RunDocument] = []
    over_seeds: list[OverSeeds] = []
    comparisons: list[Comparison] = []
    alarms: list[Alarm] = []
    failures: list[FailedRun] = []
