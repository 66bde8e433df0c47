"""What is proved: certified accuracy beside the lowest accuracy that an attack leaves, with the truth between them."""

from dataclasses import dataclass

from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.report.tables.table import Cell, Table, run_cells, share, whole
from trustcxr.storage.schemas import AttackResult, CertifiedResult


@dataclass(frozen=True)
class Gap:
    """One run at one epsilon: shares of one. `attacked` is None where no attack was tried at that epsilon."""

    run: Run
    epsilon: float
    certified: float  # what no attack can take
    entry: CertifiedResult
    lowest: AttackResult  # the attack that leaves the least; empty where there is none

    @property
    def attacked(self) -> float | None:
        """What the best attack that was tried has left."""
        return self.lowest.accuracy.value


def gaps(runs: list[Run]) -> list[Gap]:
    """Every run and epsilon that was certified, runs in their order."""
    results = []
    for run in runs:
        for entry in run.metrics.certified:
            if entry.epsilon is not None and entry.accuracy.value is not None:
                lowest = run.strongest(entry.epsilon)
                results.append(Gap(run, entry.epsilon, entry.accuracy.value, entry, lowest))
    return results


def by_intervals(runs: list[Run]) -> str:
    """Where intervals alone were tried, in words; nothing where CROWN was tried everywhere, or nobody noted it."""
    rows = [gap for gap in gaps(runs) if gap.entry.method == "ibp"]
    return formatting.join_words(f"epsilon {formatting.epsilon(gap.epsilon)} of {gap.run.name}" for gap in rows)


def proved(runs: list[Run]) -> Table | None:
    """A row for each run and epsilon that was certified; None where none was."""
    rows = []
    for gap in gaps(runs):
        between = None if gap.attacked is None else gap.attacked - gap.certified
        rows.append(
            [
                *run_cells(gap.run),
                Cell(formatting.epsilon(gap.epsilon)),
                share(gap.entry.accuracy),
                share(gap.entry.balanced_accuracy),
                share(gap.lowest.accuracy),
                Cell(formatting.attack(gap.lowest.attack) if gap.attacked is not None else formatting.DASH),
                # A bound of another bound: no number of study.json that it could be checked against.
                Cell(formatting.percent_number(between), value=None),
                share(gap.run.clean.accuracy),
                whole(gap.entry.n),
            ]
        )
    titles = ["Epsilon", "Certified, %", "Balanced, %", "Under attack, %", "Strongest", "Open, points", "Clean, %", "n"]
    return (
        Table("What is proved, beside what attacks leave", ["Model", "Defence", *titles], rows, heads=2)
        if rows
        else None
    )
