"""The table of models at the head of the page: what must not be believed of each, then its three figures."""

from trustcxr.report import formatting
from trustcxr.report.alarm_list import SHORT
from trustcxr.report.load import Run
from trustcxr.report.ranking import Headline, main_method
from trustcxr.report.tables.table import Cell, Table, plain, run_cells, share
from trustcxr.storage.schemas import SaliencyDocument

_ENERGY = "infection_energy"


def models(runs: list[Run], head: Headline) -> Table:
    """A row for each run: alarms, clean accuracy, the lowest under any attack, energy inside the infection masks."""
    looked = any(run.saliency_methods() for run in runs)
    header = ["Model", "Defence", "Alarms", "Clean, %"]
    header += [f"Least under attack at {formatting.epsilon(head.epsilon)}, %"] if head.attacks else []
    header += ["Heatmap inside the infection"] if looked else []
    rows = []
    for run in runs:
        cells = [*run_cells(run), _alarms(run), share(run.clean.accuracy)]
        cells += [_least(run, head)] if head.attacks else []
        rows.append(cells + ([_energy(run)] if looked else []))
    return Table("The run" if len(runs) == 1 else "The models", header, rows, heads=2)


def _alarms(run: Run) -> Cell:
    alarms = list(dict.fromkeys(SHORT.get(alarm.kind, formatting.measure(alarm.kind)) for alarm in run.metrics.alarms))
    if alarms:
        return Cell(formatting.capital("; ".join(alarms)), note="bad prose")
    return Cell("No alarm" if run.masked is not None else "No alarm; gradients not looked at", note="quiet prose")


def _least(run: Run, head: Headline) -> Cell:
    """The lowest accuracy that any attack leaves, and which; a figure of failing gradients is marked."""
    entry = run.strongest(head.epsilon)
    cell = share(entry.accuracy)
    by = formatting.attack(entry.attack, entry.steps) if cell.value is not None else ""
    failing = run.masked is True and cell.value is not None
    second_line = f"{by}; gradients fail" if failing else by
    return Cell(cell.text, cell.small, second_line, cell.value, "bad" if failing else "")


def _energy(run: Run) -> Cell:
    """Of the main saliency method, beside chance; whatever survives random weights is marked."""
    methods = run.saliency_methods()
    document = methods.get(main_method(methods), SaliencyDocument())
    figure = document.figure(_ENERGY)
    cell = plain(figure)
    if cell.value is None:
        return cell
    void = _ENERGY in document.void
    second_line = f"chance {formatting.decimal(figure.chance)}" + (
        "; void: survives randomising the network" if void else ""
    )
    return Cell(cell.text, cell.small, second_line, cell.value, "bad" if void else "")
