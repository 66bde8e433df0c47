"""Build the tables of accuracy, localisation and shortcuts, of standard against robust runs, and over seeds."""

from collections.abc import Sequence

from trustcxr.registry import HIT_RATE, NULL_MAPS, RANDOM_MAP, USUAL_ATTACKS, Effort
from trustcxr.report import formatting
from trustcxr.report.key_findings import SHORT, Headline
from trustcxr.report.load import Run
from trustcxr.report.tables.table import Cell, Table, method_cells, plain, run_cells, share, whole
from trustcxr.storage import schemas
from trustcxr.storage.prediction_table import CLEAN, logits_of
from trustcxr.storage.schemas.run_document import CONSTANT

_ENERGY = "infection_energy"
_Measures = schemas.SaliencyDocument | schemas.Perturbed
_EXPLANATION = (_ENERGY, "infection_iou", "pointing_hit_rate", "lung_energy")
VOID = "void: survives randomising the network"


def models(runs: list[Run], head: Headline) -> Table:
    """Return a row per run: alarms, clean accuracy, the lowest under attack, energy inside the infection masks."""
    explained = any(run.metrics.saliency for run in runs)
    header = ["Model", "Defence", "Alarms", "Clean, %"]
    header += [f"Lowest under attack at {formatting.epsilon(head.epsilon)}, %"] if head.attacks else []
    header += ["Heatmap energy inside the infection"] if explained else []
    rows = []
    for run in runs:
        cells = [*run_cells(run), _alarms(run), share(run.clean.accuracy)]
        cells += [_lowest(run, head)] if head.attacks else []
        rows.append(cells + ([_energy(run)] if explained else []))
    return Table("The run" if len(runs) == 1 else "The models", header, rows, heads=2)


def _alarms(run: Run) -> Cell:
    alarms = list(dict.fromkeys(SHORT.get(alarm.kind, formatting.measure(alarm.kind)) for alarm in run.metrics.alarms))
    if alarms:
        return Cell(formatting.capital("; ".join(alarms)), note="bad prose")
    return Cell("No alarm" if run.masked is not None else "No alarm; gradients not checked", note="quiet prose")


def _lowest(run: Run, head: Headline) -> Cell:
    """Return the lowest accuracy under attack with the attack's name, marked if gradients fail."""
    entry = run.strongest(head.epsilon)
    failing = run.masked is True and entry.accuracy.value is not None
    return share(entry.accuracy, entry.effort.name + "; gradients fail" * failing, "bad" * failing)


def _energy(run: Run) -> Cell:
    """Return the energy of the main saliency method with chance, marked if random weights have as much."""
    document = run.main_saliency
    figure, void = document.figure(_ENERGY), _ENERGY in document.void
    if figure.value is None:
        return plain(figure)
    return plain(figure, second=f"chance {formatting.decimal(figure.chance)}" + f"; {VOID}" * void, note="bad" * void)


def leaderboard(runs: list[Run], head: Headline) -> Table:
    """Return accuracy clean and under each headline attack, and the other figures of the clean test."""
    at = f" at {formatting.epsilon(head.epsilon)}, %"
    attacks = head.attacks or tuple(map(Effort, USUAL_ATTACKS))
    names = [effort.name + (at if head.attacks else ", %") for effort in attacks]
    header = ["Model", "Defence", "Clean accuracy, %", *names, "Balanced accuracy, %", "Macro F1", "AUROC"]
    header += ["Calibration error", "n"]
    rows = []
    for run in runs:
        test, entries = run.clean, [run.attacked(effort, head.epsilon) for effort in attacks]
        fewer = {entry.n for entry in entries if entry.n != test.n}
        attacked = f"attacks {formatting.join_counts(fewer)}" if fewer - {None} else ""
        groups = f"{formatting.count(test.groups)} groups" if test.groups not in (None, test.n) else ""
        clean, constant = share(test.accuracy), test.constant_answer if run.alarmed(CONSTANT) else None
        if constant is not None:
            clean = share(test.accuracy, f"constant answer {formatting.percent_number(constant)}", "bad")
        cells = [clean, *[share(entry.accuracy) for entry in entries], share(test.balanced_accuracy)]
        cells += map(plain, (test.f1_macro, test.auroc_macro, test.ece))
        rows.append([*run_cells(run), *cells, whole(test.n, attacked, groups)])
    return Table("Leaderboard" if len(runs) > 1 else "Figures", header, rows, heads=2)


def sweeps(runs: list[Run]) -> Table:
    """Return accuracy at every epsilon tested, a row per run, attack and effort."""
    epsilons = sorted({round(e.epsilon, 9) for run in runs for e in run.attacks if e.epsilon is not None})
    rows = []
    for run in runs:
        for effort in run.efforts():
            entries = [run.attacked(effort, e) for e in epsilons]
            counts = {entry.n for entry in entries if entry.n is not None}
            n = Cell(formatting.join_counts(counts)) if len(counts) > 1 else whole(max(counts, default=None))
            rows.append([*run_cells(run), Cell(effort.name), *[share(entry.accuracy) for entry in entries], n])
    header = ["Model", "Defence", "Attack", *[f"{formatting.epsilon(e)}, %" for e in epsilons], "n"]
    return Table("Accuracy at each epsilon", header, rows, heads=3)


def per_class(run: Run, classes: tuple[str, ...]) -> Table:
    """Return precision, recall and F1 of each class on the clean test images."""
    documents, clean, rows = run.clean.per_class, run.clean, []
    for name in dict.fromkeys([*classes, *documents]):
        result = documents.get(name, schemas.ClassResult())
        rows.append([Cell(name), *map(share, (result.precision, result.recall, result.f1)), whole(result.n)])
    totals = map(share, (clean.precision_macro, clean.balanced_accuracy, clean.f1_macro))
    rows.append([Cell("mean of classes", note="quiet"), *totals, whole(clean.n)])
    return Table(f"Per class, {run.label}", ["Class", "Precision, %", "Recall, %", "F1, %", "n"], rows)


def explanations(runs: list[Run], *, perturbed: bool = False) -> Table:
    """Return localisation with chance, stability, blank maps and counts by run and method; or on perturbed images."""
    header = ["Model", "Defence", "Method", *[formatting.capital(formatting.measure(name)) for name in _EXPLANATION]]
    header += ["Stability (SSIM)", "Blank maps, %", "n"]
    rows = []
    for run in runs:
        for method, document in run.metrics.saliency.items():
            part = document.perturbed if perturbed else document
            if part is None or (method == RANDOM_MAP and run is not runs[-1]):  # the same for every run
                continue
            counts = run.measured(method, perturbed=perturbed)
            without = None if perturbed else document.without_mask
            left_out = f"{formatting.count(without)} without mask" if without else ""
            cells = [_localisation(document, part, key, counts.get(key, part.n)) for key in _EXPLANATION]
            cells += [plain(part.figure("stability_ssim")), share(part.figure(NULL_MAPS).value)]
            rows.append([*method_cells(run, method, _condition(part, document)), *cells, whole(part.n, left_out)])
    return Table("Explanations" + " on perturbed images" * perturbed, header, rows, heads=3)


def _localisation(document: schemas.SaliencyDocument, part: _Measures, name: str, count: int | None) -> Cell:
    """Return a measure with its baselines; void if random weights have as much. `count`: of images with a value."""
    if name == HIT_RATE and document.withheld:
        return Cell(formatting.DASH, document.withheld, note="quiet")
    figure = part.figure(name)
    sign, note = {"above": ("> ", "good"), "below": ("< ", "bad")}.get(figure.against_chance, ("", ""))
    second = f"{sign}chance {formatting.decimal(figure.chance)}"
    for baseline, value in (("centre", figure.centre), ("random weights", figure.randomised)):
        second += "" if value is None else f", {baseline} {formatting.decimal(value)}"
    second += "" if count == part.n else f", n\u00a0=\u00a0{count}"
    if name in document.void and figure.value is not None:
        second, note = f"{second}; {VOID}", "bad"
    return plain(figure, second=second, note=note)


def _condition(part: _Measures, document: schemas.SaliencyDocument) -> str:
    """Return the images and the class explained: `clean, true class` or `FGSM 0.02, true class`."""
    attack, epsilon = (part.attack, part.epsilon) if isinstance(part, schemas.Perturbed) else (part.condition, None)
    name = f"{formatting.attack(attack)} {formatting.epsilon(epsilon)}" if attack not in ("", CLEAN) else CLEAN
    target = document.target
    return f"{name}, {'true class' if target == 'label' else target}" if target else name


def shortcuts(runs: list[Run]) -> Table | None:
    """Return accuracy with parts of the image removed; None if no run has it."""
    views = [masked_views(run) for run in runs]
    keys = list(dict.fromkeys(key for entries in views for key in entries))
    rows = []
    for run, parts in zip(runs, views, strict=True):
        entries = [parts.get(key, schemas.Accuracy()) for key in keys]
        n = next((entry.n for entry in entries if entry.n is not None), None)
        rows.append([*run_cells(run), *map(share, [run.clean.accuracy, *[e.accuracy for e in entries]]), whole(n)])
    header = ["Whole image, %", *[f"{formatting.measure(key).capitalize()}, %" for key in keys], "n"]
    return Table("Shortcuts", ["Model", "Defence", *header], rows, heads=2) if keys else None


def masked_views(run: Run) -> dict[str, schemas.Accuracy]:
    """Return accuracy by the part of the image that was removed."""
    return {name: part for name, part in run.metrics.shortcuts.items() if part.accuracy.value is not None}


SHADE = 0.7  # largest opacity, so that black text is readable
RIGHT, WRONG = "31,78,121", "179,38,30"


def shaded(colour: str, share: float) -> str:
    """Return a CSS background: the colour, as opaque as a share of one."""
    return f"rgba({colour},{SHADE * share:.3f})"


def matrices(run: Run, head: Headline) -> list[Table]:
    """Return the matrices of a run: clean, and under the headline's strongest attack."""
    classes = list(run.metrics.classes or head.classes)
    clean = run.clean.confusion
    tables = []
    if classes and [len(row) for row in clean] == [len(classes)] * len(classes):
        tables.append(_matrix(run, "clean", classes, clean))
    if attacked := under_attack(run, head, len(classes)):
        assert head.strongest is not None  # else there are no counts
        tables.append(_matrix(run, f"{head.strongest.name} at {formatting.epsilon(head.epsilon)}", classes, attacked))
    return tables


def under_attack(run: Run, head: Headline, classes: int) -> list[list[int]] | None:
    """Return (C, C) counts, rows true, under the headline's strongest attack; None without predictions.parquet."""
    import numpy as np

    entry = run.attacked(head.strongest or "", head.epsilon)
    table = run.predictions() if entry.attack else None
    if table is None or head.epsilon is None:
        return None
    rows = table[(table["attack"] == entry.attack) & ((table["epsilon"] - head.epsilon).abs() < 1e-6)]
    for column, wanted in (("steps", entry.steps), ("split", run.metrics.split)):
        rows = rows[rows[column] == wanted] if wanted else rows
    if rows.empty:
        return None
    predicted, labels = logits_of(rows).argmax(axis=1), rows["label"].to_numpy()
    inside = (predicted < classes) & (labels < classes)
    counts = np.bincount(labels[inside] * classes + predicted[inside], minlength=classes**2)
    return counts.reshape(classes, classes).tolist()


def _matrix(run: Run, condition: str, classes: list[str], counts: Sequence[Sequence[int]]) -> Table:
    rows = []
    for i, (name, row) in enumerate(zip(classes, counts, strict=True)):
        shares = [value / (sum(row) or 1) for value in row]
        cells = [
            Cell(formatting.count(value), formatting.percent(share, 0), shade=shaded(RIGHT if i == j else WRONG, share))
            for j, (value, share) in enumerate(zip(row, shares, strict=True))
        ]
        rows.append([Cell(name), *cells])
    caption = f"{condition}, n = {formatting.count(sum(map(sum, counts)))}"
    return Table(f"Confusion matrix, {run.label}, {condition}", ["", *classes], rows, caption=caption)


def comparisons(study: schemas.StudyDocument) -> Table:
    """Return standard against robust on the same images: difference, interval, p, n and outcome."""
    header = ["Model", "Robust defence", "Measure", "Standard", "Robust", "Difference", "95 % CI", "p", "n", "Outcome"]
    rows = []
    for c, qualifier in zip(study.comparisons, formatting.qualifiers(study.comparisons), strict=True):
        percent = "accuracy" in c.measure
        scale, digits, cell = (100, 1, share) if percent else (1, 3, plain)
        difference, ends = c.difference.value, c.difference.interval
        signed = formatting.signed(None if difference is None else scale * difference, digits)
        note = {"better": "good", "worse": "bad"}.get(c.side or "", "quiet")
        corrected = "" if c.p_corrected is None else f"corrected {formatting.p_value(c.p_corrected)}"
        rows.append(
            [
                Cell(c.model or formatting.DASH),
                Cell(c.defence or formatting.DASH, qualifier),
                _name_measure(c.measure or formatting.DASH, c.method, percent=percent),
                *map(cell, (c.standard, c.robust)),
                Cell(signed, value=difference),
                Cell(formatting.range_text(ends, digits, scale=scale, reveal=True) or formatting.DASH),
                Cell(formatting.p_value(c.p_value), corrected, value=c.p_value),
                whole(c.n),
                Cell("the same" if ends == (0.0, 0.0) else c.outcome, note=f"{note} text"),
            ]
        )
    return Table("Standard against robust", header, rows, heads=3)


def _name_measure(measure: str, method: str | None, *, percent: bool) -> Cell:
    """Return the measure with its saliency method and unit: clean accuracy, %."""
    return Cell(formatting.measure(measure) + (f", {formatting.method(method)}" if method else "") + ", %" * percent)


def over_seeds(study: schemas.StudyDocument) -> Table | None:
    """Return a row per network, training and figure; None if every run has one seed."""
    rows = []
    for group in study.over_seeds:
        first = [Cell(group.model), Cell(group.defence, formatting.variant(group.background, group.label))]
        for figure in group.figures:
            percent = " accuracy" in figure.measure
            name = _name_measure(figure.measure, figure.method, percent=percent)
            values = (figure.mean, figure.deviation, figure.lowest, figure.highest)
            n = whole(figure.n, formatting.join_words(map(str, group.seeds)))
            rows.append([*first, name, *map(share if percent else plain, values), n])
    header = ["Model", "Defence", "Figure", "Mean", "Standard deviation", "Lowest", "Highest", "Seeds"]
    return Table("Figures over seeds", header, rows, heads=3) if rows else None
