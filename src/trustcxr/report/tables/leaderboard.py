"""The page's tables as plain rows: every cell knows its text, its exact value, and the small print under it."""

from dataclasses import replace
from typing import Any

from trustcxr.report import words
from trustcxr.report.ranking import Headline, better_than_constant, constant_answer
from trustcxr.report.study_folder import Run
from trustcxr.report.summary import chance_verdict
from trustcxr.report.tables.cells import Cell, Table, _names, plain, share, whole


def _balanced(run: Run) -> tuple[Any, Any]:
    """Balanced accuracy and its interval; macro recall is the same figure in documents that do not have it."""
    name = "balanced_accuracy" if run.clean("balanced_accuracy") is not None else "recall_macro"
    return run.clean(name), run.clean(f"{name}_ci")


def leaderboard(runs: list[Run], head: Headline) -> Table:
    """Accuracy clean and under each headline attack, and what else the clean test says."""
    at = f" at {words.epsilon(head.epsilon)}, %"
    attacks = head.attacks or ("fgsm", "pgd")
    names = [head.names.get(name, words.attack(name)) + (at if head.attacks else ", %") for name in attacks]
    header = ["Model", "Defence", "Clean accuracy, %", *names, "Balanced accuracy, %", "Macro F1", "AUROC"]
    header += ["Calibration error", "n"]
    rows = []
    for run in runs:
        entries = [run.attacked(name, head.epsilon) for name in attacks]
        counts = [words.finite(e.get("n")) for e in entries if e]
        clean_n = words.finite(run.clean("n"))
        fewer = sorted({c for c in counts if c is not None and c != clean_n})
        attacked = f"attacks {words.listed([words.count(c) for c in fewer])}" if fewer else ""
        drawn = words.finite(run.clean("groups"))
        groups = f"{words.count(drawn)} groups" if drawn is not None and drawn != clean_n else ""
        clean = share(run.clean("accuracy"), run.clean("accuracy_ci"))
        constant = None if better_than_constant(run) else constant_answer(run)
        if constant is not None:
            clean = replace(clean, beside=f"constant answer {words.hundred(constant)}", note="bad")
        rows.append(
            [
                *_names(run),
                clean,
                *[share(e.get("accuracy"), e.get("accuracy_ci")) for e in entries],
                share(*_balanced(run)),
                plain(run.clean("f1_macro"), 3, run.clean("f1_macro_ci")),
                plain(run.clean("auroc_macro"), 3, run.clean("auroc_macro_ci")),
                plain(run.clean("ece"), 3, run.clean("ece_ci")),
                Cell(words.count(clean_n), attacked, groups, clean_n),
            ]
        )
    return Table(header, rows, heads=2)


def sweeps(runs: list[Run]) -> Table:
    """Accuracy at every epsilon that was tested, a row per run, attack and number of steps."""
    epsilons = sorted({round(float(e["epsilon"]), 9) for run in runs for e in run.attacks})
    rows = []
    for run in runs:
        for attack, steps in run.efforts():
            entries = [run.attacked(attack, e, steps) for e in epsilons]
            counts = sorted({n for n in (words.finite(e.get("n")) for e in entries) if n is not None})
            cells = [share(e.get("accuracy"), e.get("accuracy_ci")) for e in entries]
            n = Cell(words.listed([words.count(c) for c in counts]), value=counts[0] if len(counts) == 1 else None)
            rows.append([*_names(run), Cell(words.attack(attack, steps)), *cells, n])
    header = ["Model", "Defence", "Attack", *[f"{words.epsilon(e)}, %" for e in epsilons], "n"]
    return Table(header, rows, heads=3)


def per_class(run: Run, classes: tuple[str, ...]) -> Table:
    """Precision, recall and F1 of each class on the clean test images."""
    documents = run.clean("per_class")
    documents = documents if isinstance(documents, dict) else {}
    rows = []
    for name in [*classes, *[str(k) for k in documents if str(k) not in classes]]:
        document = documents.get(name)
        cells = [
            share(words.get(document, key), words.get(document, f"{key}_ci")) for key in ("precision", "recall", "f1")
        ]
        rows.append([Cell(name), *cells, whole(words.get(document, "n"))])
    totals = [share(run.clean(f"{key}_macro"), run.clean(f"{key}_macro_ci")) for key in ("precision", "recall", "f1")]
    rows.append([Cell("mean of classes", note="quiet"), *totals, whole(run.clean("n"))])
    return Table(["Class", "Precision, %", "Recall, %", "F1, %", "n"], rows)


_EXPLANATION = ("infection_energy", "infection_iou", "pointing_hit_rate", "lung_energy")


def explanations(runs: list[Run], *, perturbed: bool = False) -> Table:
    """Each localisation measure beside chance, then stability, blank maps and counts, a row per run and method.

    `perturbed`: the same measures on the perturbed images, where they were measured.
    """
    header = ["Model", "Defence", "Method", *[_title(name) for name in _EXPLANATION]]
    header += ["Stability (SSIM)", "Blank maps, %", "n"]
    rows = []
    for run in runs:
        for method, whole_document in run.saliency_methods().items():
            if method == "random" and run is not runs[-1]:  # the same map for every run
                continue
            document = whole_document.get("perturbed") if perturbed else whole_document
            if not isinstance(document, dict):
                continue
            own = _names(run) if method != "random" else [Cell("any", note="quiet"), Cell(words.DASH)]
            cells = [*own, Cell(words.method(method), _condition(document, whole_document))]
            measured = run.measured(method, perturbed=perturbed)
            for name in _EXPLANATION:
                value = plain(document.get(name), 3, document.get(f"{name}_ci"))
                sign, note = {"above": ("> ", "good"), "below": ("< ", "bad")}.get(
                    chance_verdict(document, name), ("", "")
                )
                beside = f"{sign}chance {words.decimal(document.get(f'{name}_chance'))}"
                if words.finite(document.get(f"{name}_centre")) is not None:
                    beside += f", centre {words.decimal(document.get(f'{name}_centre'))}"
                n = measured.get(name)
                if n is not None and n != words.finite(document.get("n")):
                    beside += f", n\u00a0=\u00a0{n}"
                cells.append(Cell(value.text, value.small, beside, value.value, note))
            without = words.finite(document.get("without_mask"))
            left_out = f"{words.count(without)} without mask left out" if without else ""
            cells += [
                plain(document.get("stability_ssim"), 3, document.get("stability_ssim_ci")),
                share(document.get("null_map_rate")),
                Cell(words.count(document.get("n")), left_out, value=words.finite(document.get("n"))),
            ]
            rows.append(cells)
    return Table(header, rows, heads=3)


def _title(measure: str) -> str:
    return _capital(words.measure(measure))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _condition(document: dict[str, Any], whole_document: dict[str, Any]) -> str:
    """`clean, true class` or `FGSM 0.02, true class`: the images, and the class that was explained."""
    attack = document.get("attack") or document.get("condition") or "clean"
    name = "clean" if attack == "clean" else f"{words.attack(attack)} {words.epsilon(document.get('epsilon'))}"
    target = whole_document.get("target")
    return f"{name}, {'true class' if target == 'label' else target}" if target else name


def shortcuts(runs: list[Run]) -> Table | None:
    """Accuracy with parts of the picture taken away; None where no run has it."""
    found = {run.name: _shortcut_entries(run.metrics.get("shortcuts")) for run in runs}
    keys = list(dict.fromkeys(key for entries in found.values() for key in entries))
    if not keys:
        return None
    rows = []
    for run in runs:
        entries = [found[run.name].get(key, {}) for key in keys]
        counts = [e.get("n") for e in entries if words.finite(e.get("n")) is not None]
        clean = share(run.clean("accuracy"), run.clean("accuracy_ci"))
        cells = [share(e.get("accuracy"), e.get("accuracy_ci")) for e in entries]
        rows.append([*_names(run), clean, *cells, whole(counts[0] if counts else None)])
    titles = [f"{words.measure(key).capitalize()}, %" for key in keys]
    return Table(["Model", "Defence", "Whole picture, %", *titles, "n"], rows, heads=2)


def _shortcut_entries(value: Any) -> dict[str, dict[str, Any]]:
    """Accept {name: number}, {name: {accuracy, accuracy_ci, n}} and [{shortcut: name, accuracy, ...}]."""
    if isinstance(value, list):
        named = {str(e.get("shortcut") or e.get("name") or e.get("condition")): e for e in words.records(value)}
    elif isinstance(value, dict):
        named = value
    else:
        return {}
    entries = {str(k): v if isinstance(v, dict) else {"accuracy": v} for k, v in named.items()}
    return {k: e for k, e in entries.items() if words.finite(e.get("accuracy")) is not None}
