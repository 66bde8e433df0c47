"""Define what `status` and `study --dry-run` print: the state of a study, and what is left to pay for."""

from typing import Literal

from trustcxr.storage.schemas.document import Document, Number
from trustcxr.storage.schemas.study_document import Hardware

State = Literal["done", "running", "failed", "waiting", "if chosen"]


class WayCost(Document):
    """What one network costs, trained in one way, in seconds as measured.

    `step`: one step of training on `batch` images, timed with `timed` of them. `forward` and `gradient`: one image
    through the network, without and with the way back to its pixels.
    """

    step: Number = None
    batch: int | None = None
    timed: int | None = None
    forward: Number = None
    gradient: Number = None


class CostDocument(Document):
    """Times measured on one machine of every network and way of training.

    `counts`: images of each role (train, val, test), and of those with masks (annotated, annotated_val).
    """

    measured: str = ""
    hardware: Hardware = Hardware()
    size: int | None = None
    counts: dict[str, int] = {}
    ways: dict[str, WayCost] = {}
    notes: list[str] = []


class RunPlan(Document):
    """A run of a study. `seconds`: what each step that is not done will take at most; None where nobody measured it.

    `epoch` counts those that are finished, of at most `epochs`.
    """

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
        """All its steps that are not done; None where one of them was not measured."""
        known = [part for part in self.seconds.values() if part is not None]
        return sum(known) if len(known) == len(self.seconds) else None

    @property
    def at(self) -> str:
        """The step that it is at, was cut off in, or comes to next; of one that failed why."""
        if self.state == "failed":
            return self.reason
        epoch = f"train, epoch {min(self.epoch + 1, self.epochs or 0)} of {self.epochs}" if self.epoch else ""
        if self.state == "running":
            return epoch if self.step == "train" and epoch else self.step
        if self.state == "waiting" and self.step == "train" and epoch:
            return f"cut off in {epoch}"
        return f"{self.step} comes next" if self.state == "waiting" and self.step not in ("", "train") else ""


class StudyPlan(Document):
    """Every run of a study. `least` and `most`: seconds of work left, without and with the dearest that may be chosen.

    Both are None if a run has no estimate; `to_choose` networks are still to be chosen by validation. `at_once`:
    how many runs are worked on now.
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
