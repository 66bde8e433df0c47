"""The page's tables as plain rows: every cell knows its text, its exact value, and the small print under it."""

from dataclasses import dataclass, replace
from typing import Any

from trustcxr.report import words
from trustcxr.report.alarms import no_better_than_constant
from trustcxr.report.folder import Run
from trustcxr.report.ranking import Headline, constant_answer
from trustcxr.report.summary import chance_verdict, verdict


@dataclass(frozen=True)
class Cell:
    """One cell. `value` is the exact number of study.json, so that a table can be checked against it."""

    text: str
    small: str = ""
    beside: str = ""  # a second line of small print
    value: float | None = None
    note: str = ""  # a class name of the style sheet: good, bad, quiet


@dataclass(frozen=True)
class Table:
    """A table with a header row; the first `heads` columns are row headers."""

    header: list[str]
    rows: list[list[Cell]]
    heads: int = 1
    caption: str = ""


def share(value: Any, ci: Any = None) -> Cell:
    """A share of one as a figure out of a hundred, its interval in small print."""
    return Cell(words.hundred(value), words.between(ci, 1, scale=100), value=words.finite(value))


def plain(value: Any, digits: int = 3, ci: Any = None) -> Cell:
    """A number as it is, its interval in small print."""
    return Cell(words.decimal(value, digits), words.between(ci, digits), value=words.finite(value))


def whole(value: Any) -> Cell:
    """A count."""
    return Cell(words.count(value), value=words.finite(value))


def _names(run: Run) -> list[Cell]:
    return [Cell(run.model), Cell(run.defence, run.qualifier)]


def leaderboard(runs: list[Run], head: Headline) -> Table:
    """Accuracy clean and under each headline attack, and what else the clean test says."""
    at = f" at {words.epsilon(head.epsilon)}, %"
    attacks = head.attacks or ("fgsm", "pgd")
    names = [head.names.get(name, words.attack(name)) + (at if head.attacks else ", %") for name in attacks]
    header = ["Model", "Defence", "Clean accuracy, %", *names, "Macro F1", "AUROC", "Calibration error", "n"]
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
        constant = constant_answer(run) if no_better_than_constant(run) else None
        if constant is not None:
            clean = replace(clean, beside=f"constant answer {words.hundred(constant)}", note="bad")
        rows.append(
            [
                *_names(run),
                clean,
                *[share(e.get("accuracy"), e.get("accuracy_ci")) for e in entries],
                plain(run.clean("f1_macro"), 3, run.clean("f1_macro_ci")),
                plain(run.clean("auroc_macro"), 3, run.clean("auroc_macro_ci")),
                plain(run.clean("ece"), 3, run.clean("ece_ci")),
                Cell(words.count(clean_n), attacked, groups, clean_n),
            ]
        )
    return Table(header, rows, heads=2)


def sweeps(runs: list[Run]) -> Table:
    """Accuracy at every epsilon that was tested, a row per run and attack."""
    epsilons = sorted({round(float(e["epsilon"]), 9) for run in runs for e in run.attacks})
    rows = []
    for run in runs:
        for attack in sorted({e["attack"] for e in run.attacks}):
            entries = [run.attacked(attack, e) for e in epsilons]
            steps = next((e.get("steps") for e in entries if e.get("steps")), None)
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


def comparisons(study: dict[str, Any]) -> Table:
    """Standard against robust on the same images: difference, interval, p and n, and what follows."""
    header = [
        "Model",
        "Robust defence",
        "Measure",
        "Standard",
        "Robust",
        "Difference",
        "95 % CI",
        "p",
        "n",
        "Robust is",
    ]
    rows = []
    seeds = {c.get("seed") for c in words.records(study.get("comparisons"))}
    for c in words.records(study.get("comparisons")):
        seed = f"seed {c['seed']}" if len(seeds) > 1 and "seed" in c else ""
        name = str(c.get("measure") or words.DASH)
        out_of_hundred = "accuracy" in name
        cell = share if out_of_hundred else plain
        scale, digits = (100, 1) if out_of_hundred else (1, 3)
        difference = words.finite(c.get("difference"))
        found = "the same" if words.interval(c.get("difference_ci")) == (0.0, 0.0) else verdict(c)
        rows.append(
            [
                Cell(str(c.get("model") or words.DASH)),
                Cell(str(c.get("defence") or words.DASH), _apart(c, seed)),
                Cell(words.measure(name) + (", %" if out_of_hundred else ""), _method(c)),
                cell(c.get("standard")),
                cell(c.get("robust")),
                Cell(words.signed(None if difference is None else scale * difference, digits), value=difference),
                Cell(words.between(c.get("difference_ci"), digits, scale=scale, reveal=True) or words.DASH),
                Cell(words.p_value(c.get("p_value")), _corrected(c), value=words.finite(c.get("p_value"))),
                whole(c.get("n")),
                Cell(found, note=_note(c, found)),
            ]
        )
    return Table(header, rows, heads=3)


def _apart(comparison: dict[str, Any], seed: str) -> str:
    background = str(comparison.get("background") or "full")
    return ", ".join(part for part in ("" if background == "full" else f"background {background}", seed) if part)


def _method(comparison: dict[str, Any]) -> str:
    return words.method(comparison["method"]) if comparison.get("method") else ""


def _corrected(comparison: dict[str, Any]) -> str:
    corrected = words.finite(comparison.get("p_corrected"))
    return "" if corrected is None else f"corrected {words.p_value(corrected)}"


def _note(comparison: dict[str, Any], found: str) -> str:
    """Green where the robust run is better, red where it is worse; of some measures less is better."""
    better = comparison.get("better", "higher")
    if found not in ("higher", "lower") or better is None:
        return "quiet"
    return "good" if found == better else "bad"


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


def counts(study: dict[str, Any], classes: tuple[str, ...]) -> Table | None:
    """Images per split and class, and how many have an infection mask."""
    splits = words.get(study, "data", "counts")
    if not isinstance(splits, dict) or not splits:
        return None
    names = list(classes) + sorted({str(c) for s in splits.values() if isinstance(s, dict) for c in s} - set(classes))
    rows = []
    for split, numbers in splits.items():
        values = [words.finite(words.get(numbers, name)) for name in names]
        total = sum(v for v in values if v is not None) if any(v is not None for v in values) else None
        masks = words.get(study, "data", "infection_masks", str(split))
        rows.append([Cell(str(split)), *[whole(v) for v in values], whole(total), whole(masks)])
    return Table(["Split", *names, "All", "With infection mask"], rows)


def selection(study: dict[str, Any]) -> Table | None:
    """The ranking on validation by which networks were chosen for robust training."""
    ranking = words.records(words.get(study, "selection", "ranking"))
    if not ranking:
        return None
    by = str(words.get(study, "selection", "by") or "figure")
    rows = []
    for place, entry in enumerate(ranking, start=1):
        value = share(entry.get("value")) if _is_share(entry.get("value")) else plain(entry.get("value"))
        chosen = Cell("chosen", note="good") if entry.get("chosen") else Cell("not chosen", note="quiet")
        rows.append([Cell(str(place)), Cell(str(entry.get("model") or words.DASH)), value, chosen])
    unit = ", %" if all(_is_share(e.get("value")) for e in ranking) else ""
    return Table(["Rank", "Model", f"{_capital(words.measure(by))}{unit}", ""], rows)


def _is_share(value: Any) -> bool:
    number = words.finite(value)
    return number is not None and 0 <= number <= 1


def training(runs: list[Run]) -> Table:
    """How each run was trained: epochs, what stopped it, time and size."""
    header = [
        "Model",
        "Defence",
        "Parameters",
        "Epochs",
        "Best epoch",
        "Chosen by",
        "Best value, %",
        "Stopped by",
        "Time",
    ]
    again = any(_refit_epochs(run) is not None for run in runs)
    header += ["Then on both, epochs"] if again else []
    rows = []
    for run in runs:
        document = run.metrics.get("training")
        rows.append(
            [
                *_names(run),
                whole(words.get(document, "parameters")),
                whole(words.get(document, "epochs")),
                whole(words.get(document, "best_epoch")),
                Cell(words.measure(words.get(document, "monitor") or words.DASH)),
                share(words.get(document, "best_value")),
                Cell(str(words.get(document, "stopped") or words.DASH)),
                Cell(words.seconds(words.get(document, "seconds")), value=words.finite(words.get(document, "seconds"))),
                *([whole(_refit_epochs(run))] if again else []),
            ]
        )
    return Table(header, rows, heads=2)


def _refit_epochs(run: Run) -> Any:
    """How long a run was trained once more, on training and validation images together; None where it was not."""
    return words.get(run.metrics, "training", "refit", "epochs")
