"""What is proved: certified accuracy beside the lowest accuracy that an attack leaves, with the truth between them."""

from dataclasses import dataclass
from typing import Any

from trustcxr.report import words
from trustcxr.report.study_folder import Run
from trustcxr.report.tables.cells import Cell, Table, _names, share, whole


@dataclass(frozen=True)
class Gap:
    """One run at one epsilon: shares of one. `attacked` is None where no attack was tried at that epsilon."""

    run: Run
    epsilon: float
    entry: dict[str, Any]  # of `certified`
    lowest: dict[str, Any]  # of `attacks`: the one that leaves the least; empty where there is none

    @property
    def certified(self) -> float:
        """What no attack can take."""
        return float(self.entry["accuracy"])

    @property
    def attacked(self) -> float | None:
        """What the best attack that was tried has left."""
        return words.finite(self.lowest.get("accuracy"))


def gaps(runs: list[Run]) -> list[Gap]:
    """Every run and epsilon that was certified, runs in their order."""
    found = []
    for run in runs:
        for entry in words.records(run.metrics.get("certified")):
            epsilon = words.finite(entry.get("epsilon"))
            if epsilon is not None and words.finite(entry.get("accuracy")) is not None:
                found.append(Gap(run, epsilon, entry, _lowest(run, epsilon)))
    return found


def _lowest(run: Run, epsilon: float) -> dict[str, Any]:
    at = [e for e in run.attacks if abs(float(e["epsilon"]) - epsilon) < 1e-9 and e["attack"] != "pgd-l2"]
    known = [e for e in at if words.finite(e.get("accuracy")) is not None]
    return min(known, key=lambda e: float(e["accuracy"]), default={})


def proved(runs: list[Run]) -> Table | None:
    """A row for each run and epsilon that was certified; None where none was."""
    rows = []
    for gap in gaps(runs):
        attack, between = gap.lowest.get("attack"), None if gap.attacked is None else gap.attacked - gap.certified
        rows.append(
            [
                *_names(gap.run),
                Cell(words.epsilon(gap.epsilon)),
                share(gap.certified, gap.entry.get("accuracy_ci")),
                share(gap.entry.get("balanced_accuracy")),
                share(gap.attacked, gap.lowest.get("accuracy_ci")),
                Cell(words.attack(attack) if attack else words.DASH),
                # A bound of another bound: no number of study.json that it could be checked against.
                Cell(words.hundred(between), value=None),
                share(gap.run.clean("accuracy"), gap.run.clean("accuracy_ci")),
                whole(gap.entry.get("n")),
            ]
        )
    titles = ["Epsilon", "Certified, %", "Balanced, %", "Under attack, %", "Strongest", "Open, points", "Clean, %", "n"]
    return Table(["Model", "Defence", *titles], rows, heads=2) if rows else None
