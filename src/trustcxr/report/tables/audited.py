"""What a study's report shows of a run, of one model that was given: the same tables, from audit.json."""

from pathlib import Path

from trustcxr.report import words
from trustcxr.report.ranking import Headline
from trustcxr.report.study_folder import Run
from trustcxr.report.tables import confusion, leaderboard, robustness
from trustcxr.report.tables.cells import Cell, Table, share, whole
from trustcxr.results.documents import AuditDocument, RunDocument

Parts = dict[str, Table | list[confusion.Pair] | None]


def tables(document: AuditDocument) -> Parts:
    """The tables by their names in the template; None, or an empty list, of what was not measured."""
    run = as_run(document)
    head = Headline(None, (), {}, document.split, tuple(run.metrics.classes))
    pair = confusion.of(run, head)
    return {
        "clean": _clean(document),
        "matrices": [] if pair is None else [pair],
        "per_class": leaderboard.per_class(run, head.classes) if run.clean.per_class else None,
        "masking": _of_one(robustness.masking([run])) if document.attacks else None,
        "shortcuts": _shortcuts(run),
    }


def as_run(document: AuditDocument) -> Run:
    """A given model as the tables of a study take it; of a model of findings the classes are the answers to each.

    What was said of it stands, as it was withdrawn or not: nothing is judged anew.
    """
    own = {name: getattr(document, name) for name in document.model_fields_set & RunDocument.model_fields.keys()}
    classes = list(document.clean.per_class) if document.findings else document.classes
    metrics = RunDocument(**(own | {"model": document.model.name, "classes": classes}))
    run = Run(RunDocument(), Path(), [], label=document.model.name)
    run.metrics = metrics
    return run


def _clean(document: AuditDocument) -> Table | None:
    """The films as they are, in a row; None where nothing was asked of them."""
    clean = document.clean
    if clean.accuracy.value is None:
        return None
    n = whole(clean.n)
    patients = "" if clean.groups in (None, clean.n) else f"{words.count(clean.groups)} groups"
    row = [
        Cell(document.model.name),
        *(share(part) for part in (clean.accuracy, clean.balanced_accuracy, clean.constant_answer)),
        *(share(part) for part in (clean.f1_macro, clean.auroc_macro, clean.ece, clean.ece_plug_in)),
        Cell(n.text, patients, value=n.value),
    ]
    header = ["Model", "Accuracy, %", "Balanced, %", "Constant answer, %", "Macro F1, %", "AUROC, %"]
    return Table([*header, "Calibration error, %", "with chance in it, %", "n"], [row])


def _shortcuts(run: Run) -> Table | None:
    """What is left when parts of the picture are taken away, a row each; None where there were no lung masks."""
    found = leaderboard.shown(run)
    if not found:
        return None
    parts = [
        ("whole picture", run.clean.accuracy, run.clean.balanced_accuracy, run.clean.constant_answer, run.clean.n),
        *(
            (words.measure(name), part.accuracy, part.balanced_accuracy, part.constant_answer, part.n)
            for name, part in found.items()
        ),
    ]
    rows = [
        [Cell(words.capital(name)), share(accuracy), share(balanced), share(constant), whole(n)]
        for name, accuracy, balanced, constant, n in parts
    ]
    return Table(["What was shown", "Accuracy, %", "Balanced, %", "Constant answer, %", "n"], rows)


def _of_one(table: Table | None) -> Table | None:
    """A study's table without the defence, which a given model does not tell."""
    if table is None:
        return None
    return Table([table.header[0], *table.header[2:]], [[row[0], *row[2:]] for row in table.rows], table.heads - 1)
