"""Define study.json: all runs of a study, compared."""

from typing import Any, Literal

from trustcxr.storage.schemas.document import Document, Number, Share
from trustcxr.storage.schemas.run_document import RunDocument
from trustcxr.storage.schemas.test_figures import Alarm

LEVEL = 0.05  # of a p-value, corrected for the number of comparisons


class Comparison(Document):
    """A robust run against the standard one on the same images, by one measure; `method` is None for accuracy.

    `better` says which way is good (None: neither); `difference` is robust minus standard, with its interval.
    """

    model: str = ""
    seed: int | None = None
    defence: str = ""
    label: str = ""  # of the defence, where the recipe gives one
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
    n: int | None = None
    p_corrected: Number = None
    comparisons: int | None = None
    verdict: str = ""

    @property
    def outcome(self) -> Literal["higher", "lower", "not settled"]:
        """Which way the interval and the test, corrected for the number of comparisons, agree that it went."""
        ends = self.difference.interval
        if ends is None or not self._leaves_out_0 or not self._test_shows:
            return "not settled"
        return "higher" if ends[0] > 0 else "lower"

    @property
    def undone_by_correction(self) -> bool:
        """Whether interval and test alone would show it, and the test, corrected for all comparisons, does not."""
        return not self._test_shows and self.p_value is not None and self.p_value < LEVEL and self._leaves_out_0

    @property
    def _leaves_out_0(self) -> bool:
        ends = self.difference.interval
        return ends is not None and not ends[0] <= 0 <= ends[1]

    @property
    def _test_shows(self) -> bool:
        return self.p_corrected is None or self.p_corrected < LEVEL

    @property
    def side(self) -> Literal["better", "worse"] | None:
        """Whether the robust run is better or worse; None where that is not settled, or neither way is good."""
        if self.better is None or self.outcome == "not settled":
            return None
        return "better" if self.outcome == self.better else "worse"


class BeyondControl(Document):
    """A CAM against the activation of its own layer: `value` less `control`, image by image."""

    method: str = ""
    measure: str = ""
    control: Number = None
    value: Number = None
    difference: Share = Share()
    n: int | None = None
    p_value: Number = None
    p_corrected: Number = None


class SeedFigure(Document):
    """One figure over the seeds of a way of training; `deviation` is their standard deviation, n how many there are."""

    measure: str = ""
    method: str | None = None
    mean: Number = None
    deviation: Number = None
    lowest: Number = None
    highest: Number = None
    n: int | None = None


class OverSeeds(Document):
    """A network and way of training with more than one seed: how far its figures move with another seed."""

    model: str = ""
    defence: str = ""
    label: str = ""
    background: str = "full"
    split: str = ""
    seeds: list[int] = []
    figures: list[SeedFigure] = []


class Ranked(Document):
    """A network's place on validation."""

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
    """One thing that `data check` found: `severity` is fault, leak, warning or note."""

    kind: str = ""
    severity: str = ""
    text: str = ""
    count: int | None = None


class DataProbe(Document):
    """How well a linear model tells the classes apart by one view of the images; balanced accuracies."""

    view: str = ""
    accuracy: Share = Share()
    chance: Number = None
    trained_on: int | None = None
    tested_on: int | None = None
    how: str = ""


class DataCheck(Document):
    """data-check.json: what `trustcxr data check --json` prints, as far as a report needs it."""

    data: str = ""
    images: int | None = None
    verdict: str = ""
    findings: list[DataFinding] = []
    probes: list[DataProbe] = []


class Hardware(Document):
    """The machine, and the torch threads that computed there: within one operation, and operations at once."""

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
    """Which networks were chosen for robust training, on which split, by what.

    `left_out`: standard runs that could not be finished, and that the recipe no longer has.
    """

    split: str = ""
    by: str = ""
    count: int | None = None
    ranking: list[Ranked] = []
    left_out: list[FailedRun] = []


class StudyDocument(Document):
    """study.json: all runs of a study with their metrics, their comparisons, and where they come from."""

    version: int | None = None
    study: str = ""
    title: str = ""
    notice: str = ""
    created: str = ""
    trustcxr: str = ""
    versions: dict[str, str] = {}
    hardware: Hardware = Hardware()
    source: dict[str, str | bool] | None = None  # the commit that TrustCXR ran from, and whether files were changed
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
