"""Build the table of certified accuracy with the lowest accuracy under attack."""

from dataclasses import dataclass

from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.report.tables.table import Cell, Table, run_cells, share, whole
from trustcxr.storage.schemas import AttackResult, CertifiedResult

SCOPE = "The proof is of the pixels that the network sees, after decoding and resizing, not of the file."


@dataclass(frozen=True)
class Gap:
    """One run at one epsilon: certified accuracy and the strongest attack, which is empty if none was run."""

    run: Run
    epsilon: float
    certified: float  # share of one
    entry: CertifiedResult
    lowest: AttackResult

    @property
    def attacked(self) -> float | None:
        """Return accuracy under the strongest attack."""
        return self.lowest.accuracy.value


def gaps(runs: list[Run]) -> list[Gap]:
    """Return every run and epsilon that was certified."""
    return [
        Gap(run, entry.epsilon, entry.accuracy.value, entry, run.strongest(entry.epsilon))
        for run in runs
        for entry in run.metrics.certified
        if entry.epsilon is not None and entry.accuracy.value is not None
    ]


def by_intervals(runs: list[Run]) -> str:
    """Return the runs and epsilons that were certified without CROWN; empty without any."""
    rows = [gap for gap in gaps(runs) if gap.entry.method == "ibp"]
    return ", ".join(f"epsilon {formatting.epsilon(gap.epsilon)} of {gap.run.name}" for gap in rows)


def proved(runs: list[Run]) -> Table | None:
    """Return a row per run and epsilon that was certified; None without any."""
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
                Cell(gap.lowest.effort.name if gap.attacked is not None else formatting.DASH),
                Cell(formatting.percent_number(between), value=between),
                share(gap.run.clean.accuracy),
                whole(gap.entry.n),
            ]
        )
    titles = ["Epsilon", "Certified, %", "Balanced, %", "Under attack, %", "Strongest", "Open, points", "Clean, %", "n"]
    return Table("Certified accuracy and attacks", ["Model", "Defence", *titles], rows, heads=2) if rows else None
