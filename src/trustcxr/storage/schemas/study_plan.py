"""Define the output of `status` and `study --dry-run`: the state of a study, and the time left."""

from typing import Literal

from trustcxr.storage.schemas.document import Document, Number
from trustcxr.storage.schemas.study_document import Hardware

State = Literal["done", "running", "failed", "waiting", "if chosen"]


class WayCost(Document):
    """Measured seconds of one network and defence.

    `step`: one training step on `batch` images, timed with `timed` of them. `forward` and `gradient`: one image,
    without and with the gradient in its pixels.
    """

    step: Number = None
    batch: int | None = None
    timed: int | None = None
    forward: Number = None
    gradient: Number = None


class CostDocument(Document):
    """Times of every network and defence on one machine; `counts`: images by role, and those with masks."""

    measured: str = ""
    hardware: Hardware = Hardware()
    size: int | None = None
    counts: dict[str, int] = {}
    ways: dict[str, WayCost] = {}
    notes: list[str] = []


class RunPlan(Document):
    """A run of a study. `seconds`: the most that each remaining step takes (None: unknown). `epoch`: finished ones."""

    run: str = ""
    model: str = ""
    way: str = ""
    seed: int | None = None
    state: State = "waiting"
    step: str = ""
    epoch: int | None = None
    epochs: int | None = None
    holder: str = ""
    reason: str = ""
    seconds: dict[str, float | None] = {}

    @property
    def left(self) -> float | None:
        """Seconds of all remaining steps; None if one is unknown."""
        seconds = [part for part in self.seconds.values() if part is not None]
        return sum(seconds) if len(seconds) == len(self.seconds) else None

    @property
    def at(self) -> str:
        """The current, interrupted or next step; of a failed run the reason."""
        if self.state == "failed":
            return self.reason
        epoch = f"train, epoch {min(self.epoch + 1, self.epochs or 0)} of {self.epochs}" if self.epoch else ""
        if self.state == "running":
            return epoch if self.step == "train" and epoch else self.step
        if self.state == "waiting" and self.step == "train" and epoch:
            return f"cut off in {epoch}"
        return f"{self.step} comes next" if self.state == "waiting" and self.step not in ("", "train") else ""


class StudyPlan(Document):
    """Every run of a study. `least` and `most`: seconds left with the cheapest and most expensive choice of networks.

    Both are None if a run has no estimate. `to_choose`: networks that validation will choose. `at_once`: running runs.
    """

    study: str = ""
    folder: str = ""
    notice: str = ""
    holder: str = ""
    at_once: int = 0
    to_choose: int = 0
    runs: list[RunPlan] = []
    least: Number = None
    most: Number = None
    costs: CostDocument | None = None
