"""The page's tables as plain rows: every cell knows its text, its exact value, and the small print under it."""

from dataclasses import replace

from trustcxr.registry import CONTROL, HIT_RATE, NULL_MAPS, USUAL_ATTACKS
from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.report.ranking import Headline, better_than_constant, constant_answer
from trustcxr.report.tables.table import Cell, Table, plain, run_cells, share, whole
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import Accuracy, ClassResult, Figure, Perturbed, SaliencyDocument


def leaderboard(runs: list[Run], head: Headline) -> Table:
    """Accuracy clean and under each headline attack, and what else the clean test says."""
    at = f" at {formatting.epsilon(head.epsilon)}, %"
    attacks = head.attacks or USUAL_ATTACKS
    names = [head.names.get(name, formatting.attack(name)) + (at if head.attacks else ", %") for name in attacks]
    header = ["Model", "Defence", "Clean accuracy, %", *names, "Balanced accuracy, %", "Macro F1", "AUROC"]
    header += ["Calibration error", "n"]
    rows = []
    for run in runs:
        entries = [run.attacked(name, head.epsilon) for name in attacks]
        clean_n = run.clean.n
        fewer = sorted({entry.n for entry in entries if entry.n is not None and entry.n != clean_n})
        attacked = f"attacks {formatting.join_words([formatting.count(c) for c in fewer])}" if fewer else ""
        drawn = run.clean.groups
        groups = f"{formatting.count(drawn)} groups" if drawn is not None and drawn != clean_n else ""
        clean = share(run.clean.accuracy)
        constant = None if better_than_constant(run) else constant_answer(run)
        if constant is not None:
            clean = replace(clean, beside=f"constant answer {formatting.percent_number(constant)}", note="bad")
        rows.append(
            [
                *run_cells(run),
                clean,
                *[share(entry.accuracy) for entry in entries],
                share(run.clean.balanced_accuracy),
                plain(run.clean.f1_macro),
                plain(run.clean.auroc_macro),
                plain(run.clean.ece),
                replace(whole(clean_n), small=attacked, beside=groups),
            ]
        )
    return Table("Leaderboard" if len(runs) > 1 else "Figures", header, rows, heads=2)


def sweeps(runs: list[Run]) -> Table:
    """Accuracy at every epsilon that was tested, a row per run, attack and number of steps."""
    epsilons = sorted({round(e.epsilon, 9) for run in runs for e in run.attacks if e.epsilon is not None})
    rows = []
    for run in runs:
        for attack, steps in run.efforts():
            entries = [run.attacked(attack, e, steps) for e in epsilons]
            counts = sorted({entry.n for entry in entries if entry.n is not None})
            cells = [share(entry.accuracy) for entry in entries]
            n = Cell(
                formatting.join_words([formatting.count(c) for c in counts]),
                value=formatting.finite(counts[0]) if len(counts) == 1 else None,
            )
            rows.append([*run_cells(run), Cell(formatting.attack(attack, steps)), *cells, n])
    header = ["Model", "Defence", "Attack", *[f"{formatting.epsilon(e)}, %" for e in epsilons], "n"]
    return Table("Accuracy at each epsilon", header, rows, heads=3)


def per_class(run: Run, classes: tuple[str, ...]) -> Table:
    """Precision, recall and F1 of each class on the clean test images."""
    documents, clean, rows = run.clean.per_class, run.clean, []
    for name in [*classes, *[name for name in documents if name not in classes]]:
        result = documents.get(name, ClassResult())
        rows.append([Cell(name), *map(share, (result.precision, result.recall, result.f1)), whole(result.n)])
    totals = map(share, (clean.precision_macro, clean.balanced_accuracy, clean.f1_macro))
    rows.append([Cell("mean of classes", note="quiet"), *totals, whole(clean.n)])
    return Table(f"Per class, {run.label}", ["Class", "Precision, %", "Recall, %", "F1, %", "n"], rows)


_EXPLANATION = ("infection_energy", "infection_iou", "pointing_hit_rate", "lung_energy")


def explanations(runs: list[Run], *, perturbed: bool = False) -> Table:
    """Each localisation measure beside chance, then stability, blank maps and counts, a row per run and method.

    `perturbed`: the same measures on the perturbed images, where they were measured.
    """
    header = ["Model", "Defence", "Method", *[_title(name) for name in _EXPLANATION]]
    header += ["Stability (SSIM)", "Blank maps, %", "n"]
    rows = []
    for run in runs:
        for method, document in run.saliency_methods().items():
            if method == CONTROL and run is not runs[-1]:  # the same map for every run
                continue
            part = document.perturbed if perturbed else document
            if part is None:
                continue
            first_cells = run_cells(run) if method != CONTROL else [Cell("any", note="quiet"), Cell(formatting.DASH)]
            measured = run.measured(method, perturbed=perturbed)
            counts = {name: measured.get(name, part.n) for name in _EXPLANATION}
            without = None if perturbed else document.without_mask
            left_out = f"{formatting.count(without)} without mask left out" if without else ""
            rows.append(
                [
                    *first_cells,
                    Cell(formatting.method(method), _condition(part, document)),
                    *[_explained(document, part, name, counts[name]) for name in _EXPLANATION],
                    plain(part.figure("stability_ssim")),
                    share(part.figure(NULL_MAPS).value),
                    replace(whole(part.n), small=left_out),
                ]
            )
    title = "Explanations on perturbed X-rays" if perturbed else "Explanations beside chance"
    return Table(title, header, rows, heads=3)


def _title(measure: str) -> str:
    return formatting.capital(formatting.measure(measure))


def _explained(document: SaliencyDocument, part: SaliencyDocument | Perturbed, name: str, count: int | None) -> Cell:
    """A measure beside what it must beat; void where random weights have as much, a dash where it cannot be stated."""
    if name == HIT_RATE and document.withheld:
        return Cell(formatting.DASH, document.withheld, note="quiet")
    cell = _against_chance(part.figure(name), count, part.n)
    if name in document.void and cell.value is not None:
        return replace(cell, beside=f"{cell.beside}; void: survives randomising the network", note="bad")
    return cell


def _against_chance(figure: Figure, count: int | None, images: int | None) -> Cell:
    """A measure beside chance and the centre prior; `count` of the images have a value."""
    value = plain(figure)
    sign, note = {"above": ("> ", "good"), "below": ("< ", "bad")}.get(figure.against_chance, ("", ""))
    second_line = f"{sign}chance {formatting.decimal(figure.chance)}"
    if figure.centre is not None:
        second_line += f", centre {formatting.decimal(figure.centre)}"
    if figure.randomised is not None:
        second_line += f", random weights {formatting.decimal(figure.randomised)}"
    if count != images:
        second_line += f", n\u00a0=\u00a0{count}"
    return Cell(value.text, value.small, second_line, value.value, note)


def _condition(part: SaliencyDocument | Perturbed, document: SaliencyDocument) -> str:
    """`clean, true class` or `FGSM 0.02, true class`: the images, and the class that was explained."""
    attack, epsilon = (part.attack, part.epsilon) if isinstance(part, Perturbed) else (part.condition, None)
    name = f"{formatting.attack(attack)} {formatting.epsilon(epsilon)}" if attack not in ("", CLEAN) else CLEAN
    target = document.target
    return f"{name}, {'true class' if target == 'label' else target}" if target else name


def shortcuts(runs: list[Run]) -> Table | None:
    """Accuracy with parts of the picture taken away; None where no run has it."""
    views = {run.name: shown(run) for run in runs}
    keys = list(dict.fromkeys(key for entries in views.values() for key in entries))
    if not keys:
        return None
    rows = []
    for run in runs:
        entries = [views[run.name].get(key, Accuracy()) for key in keys]
        counts = [entry.n for entry in entries if entry.n is not None]
        cells = [share(entry.accuracy) for entry in entries]
        rows.append([*run_cells(run), share(run.clean.accuracy), *cells, whole(counts[0] if counts else None)])
    titles = [f"{formatting.measure(key).capitalize()}, %" for key in keys]
    return Table("Shortcuts", ["Model", "Defence", "Whole picture, %", *titles, "n"], rows, heads=2)


def shown(run: Run) -> dict[str, Accuracy]:
    """What is left of accuracy, by what was taken away."""
    return {name: part for name, part in run.metrics.shortcuts.items() if part.accuracy.value is not None}
