"""Tables for the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trustcxr.catalogue import REFERENCES
from trustcxr.evaluation import gradient_masking
from trustcxr.evaluation.shortcuts import HOW
from trustcxr.report import words
from trustcxr.report.ranking import headline, ordered
from trustcxr.report.study_folder import Run, label

if TYPE_CHECKING:
    from rich.table import Table

_WIDEST = 22  # of a model's name


def leaderboard(study: dict[str, Any]) -> "Table":
    """A rich table of at most 100 columns from the document of study.json.

    Figures are percent, with the 95 % interval in whole percent; a dash is a value that was not measured.
    """
    from rich.table import Table

    runs = [Run(document, Path(), []) for document in words.records(study.get("runs"))]
    label(runs)
    head = headline(study, runs)
    attacks = (head.attacks or ("fgsm", "pgd"))[:3]
    title = f"Accuracy in % (95 % interval), split {head.split}"
    if head.attacks:
        title += f", attacks at epsilon {words.epsilon(head.epsilon)}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.title_style = "bold"
    # With three attacks an interval goes below its figure, so that names need not be cut up in 80 columns.
    between = "\n" if len(attacks) > 2 else " "
    table.add_column("Model", overflow="fold", min_width=9, max_width=_WIDEST)
    table.add_column("Defence", overflow="fold", min_width=10, max_width=16)
    for name in ["Clean", *[head.names.get(a, words.attack(a)) for a in attacks]]:
        table.add_column(name, justify="right", min_width=7)
    for name in ["F1", "AUROC", "ECE", "n"]:
        table.add_column(name, justify="right", no_wrap=True)
    for run in ordered(runs, head):
        entries = [run.metrics.get("clean"), *[run.attacked(a, head.epsilon) for a in attacks]]
        table.add_row(
            # Networks side by side stand one below the other, not broken in mid-word.
            _plain(run.model if len(run.model) <= _WIDEST else run.model.replace("+", "+\n")),
            _plain(f"{run.defence}, {run.qualifier}" if run.qualifier else run.defence),
            *[_share(entry, between) for entry in entries],
            words.decimal(run.clean("f1_macro"), 2),
            words.decimal(run.clean("auroc_macro"), 2),
            words.decimal(run.clean("ece"), 2),
            words.count(run.clean("n")),
        )
    return table


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """Rows as a table on stdout; in a narrow terminal cells wrap between words, so that nothing is cut."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for name, value in rows[0].items():
        text = isinstance(value, str) and not value[:1].isdigit()
        longest = max(
            len(word) for cell in (name, *(row[name] for row in rows)) for word in (str(cell).split() or [""])
        )
        table.add_column(name, justify="left" if text else "right", overflow="fold", min_width=longest)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _share(entry: Any, between: str) -> str:
    pair = words.interval(words.get(entry, "accuracy_ci"))
    inside = f"{between}({100 * pair[0]:.0f}–{100 * pair[1]:.0f})" if pair else ""
    return words.hundred(words.get(entry, "accuracy")) + inside


CALIBRATED = "probabilities are calibrated on the run's validation images; on films from elsewhere they may not be"
NOT_CALIBRATED = "probabilities are not calibrated: `trustcxr evaluate` on the run's own data fits a temperature"
SURVIVES = "to survive is to keep the class, whatever the attack changed within that radius; it is no proof"


def sentences(answer: dict[str, Any]) -> list[str]:
    """An answer in words."""
    if "error" in answer:
        return [f"{answer['image']}: not read: {answer['error']}"]
    if "left_out" in answer:
        return [f"{answer['image']}: left out: {answer['left_out']}"]
    ranked = sorted(answer["probabilities"].items(), key=lambda pair: -pair[1])
    lines = [f"{answer['image']}: " + ", ".join(f"{name} {p:.1%}" for name, p in ranked)]
    if warnings := answer.get("warnings"):
        lines.append(f"  DOUBTFUL: {'; '.join(warnings)}. The answer means nothing unless this is a frontal chest film")
    if "calibrated" in answer:
        lines.append(f"  {CALIBRATED if answer['calibrated'] else NOT_CALIBRATED}")
    changed = [name.upper() for name, survived in answer["survives"].items() if not survived]
    radius = f"epsilon {answer['epsilon']:g} ({answer['epsilon'] * 255:.1f} grey levels of 255)"
    if changed:
        lines.append(f"  the answer does NOT survive {radius}: {' and '.join(changed)} change it")
    else:
        names = " and ".join(name.upper() for name in answer["survives"])
        lines.append(f"  the answer survives {names} at {radius}; a stronger attack may still change it")
    lines.append(f"  {SURVIVES}")
    if "heatmap" in answer:
        lines.append(f"  heatmap of the predicted class: {answer['heatmap']}")
    return lines


def training_sentence(summary: dict[str, Any]) -> str:
    """A training.json in a line."""
    again = f"; then {summary['refit']['epochs']} with the validation images too" if "refit" in summary else ""
    return f"best {summary['monitor']} {summary['best_value']:.1%} after {summary['epochs']} epochs{again}"


def rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """A metrics document as rows for the terminal."""
    clean = document["clean"]
    names = ("condition", "epsilon", "accuracy", "balanced", "macro F1", "AUROC", "calibration error", "n")
    empty = dict.fromkeys(names, "")
    figures = {
        "accuracy": with_interval(clean, "accuracy"),
        "balanced": _percent(clean.get("balanced_accuracy")),
        "macro F1": f"{clean['f1_macro']:.3f}",
        "AUROC": _number(clean["auroc_macro"]),
        "calibration error": f"{clean['ece']:.3f}",
    }
    lines: list[dict[str, Any]] = [empty | {"condition": "clean", "n": clean["n"]} | figures]
    for attack in document["attacks"]:
        name = f"{attack['attack']}-{attack['steps']}" if "steps" in attack else attack["attack"]
        shown = {"accuracy": with_interval(attack, "accuracy"), "calibration error": f"{attack['ece']:.3f}"}
        shown["balanced"] = _percent(attack.get("balanced_accuracy"))
        lines.append(empty | {"condition": name, "epsilon": f"{attack['epsilon']:g}", "n": attack["n"]} | shown)
    return lines


def remarks(document: dict[str, Any]) -> list[str]:
    """What else metrics.json says, a line each: masking, the drop from internal data, shortcuts, calibration."""
    lines = [gradient_masking.sentence(document["masking"])]
    if mean := document.get("corruptions_mean"):
        worst = min(document["corruptions"], key=lambda row: row["accuracy"])
        lines.append(
            f"Corruptions: {with_interval(mean, 'accuracy')} on the mean of {mean['conditions']}, "
            f"{mean['flip_rate']:.1%} of answers change; worst {worst['corruption']} at {worst['severity']}: "
            f"{worst['accuracy']:.1%}"
        )
    for row in document.get("drop_from_internal", []):
        name = row["attack"] + (f"-{row['steps']}" if "steps" in row else "")
        at = f" at {row['epsilon']:g}" if row["epsilon"] else ""
        low, high = row["drop_ci"]
        ends = f"{row['internal']:.1%} internal, {row['external']:.1%} here"
        lines.append(f"Drop from internal, {name}{at}: {row['drop']:.1%} [{low:.1%}, {high:.1%}] ({ends})")
    if worst_view := document.get("without_lungs"):
        name = words.measure(worst_view["view"])
        lines.append(f"Without the lungs, at worst ({name}): {_beside_constant(worst_view)}")
    groups = document.get("by_group") or {"source": document.get("by_source", {})}
    for column, parts in groups.items():
        lines += [f"{column.replace('_', ' ')} {name}: {_beside_constant(part)}" for name, part in parts.items()]
    for kind, part in document.get("planted_shortcuts", {}).items():
        shown = ", ".join(f"{how.replace('_', ' ')} {with_interval(part[how], 'accuracy')}" for how in HOW)
        lines.append(
            f"Planted {kind} of {part['class']}, moved to {part['moved_to']}: {shown}; "
            f"{part['follows']:.1%} follow it ({part['follows_before']:.1%} without it)"
        )
    if part := document.get("calibration"):
        error = f"error on clean images {part['clean']['ece']:.3f}"
        lines.append(
            f"Calibration: {error}; trained anew on validation images, so no temperature could be fitted"
            if part["temperature"] is None
            else f"Calibration: temperature {part['temperature']:.2f} from {part['split']}; {error}, "
            f"{part['clean']['ece_scaled']:.3f} with it"
        )
    return lines


def saliency_rows(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The saliency of one method as rows for the terminal."""
    measured = part | part.get("faithfulness", {})
    names = [key for key in measured if f"{key}_ci" in measured]
    return [
        {
            "measure": name.replace("_", " "),
            "value": f"{_number(measured[name])} [{', '.join(_number(end) for end in measured[f'{name}_ci'])}]",
            **{beside: _number(measured.get(f"{name}_{beside}")) for beside in REFERENCES},
        }
        for name in names
    ]


def certified_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What is proved, beside the lowest accuracy that an attack leaves at the same epsilon, for the terminal."""
    lines = []
    for entry in document["certified"]:
        under = [a for a in document["attacks"] if abs(a["epsilon"] - entry["epsilon"]) < 1e-9]
        lowest: dict[str, Any] = min(under, key=lambda a: float(a["accuracy"]), default={})
        lines.append(
            {
                "epsilon": f"{entry['epsilon']:g}",
                "certified": with_interval(entry, "accuracy"),
                "balanced": f"{entry['balanced_accuracy']:.1%}",
                "lowest under attack": with_interval(lowest, "accuracy") if lowest else "",
                "attack": words.attack(lowest["attack"]) if lowest else "",
            }
        )
    return lines


def with_interval(part: dict[str, Any], key: str) -> str:
    """A share as percent with its 95 % interval."""
    low, high = part[f"{key}_ci"]
    return f"{part[key]:.1%} [{low:.1%}, {high:.1%}]"


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.1%}"


def _beside_constant(part: dict[str, Any]) -> str:
    """Accuracy and balanced accuracy of a part, what a constant answer has, and how many images."""
    balanced = f", balanced {_percent(part['balanced_accuracy'])}" if "balanced_accuracy" in part else ""
    return (
        f"{with_interval(part, 'accuracy')}{balanced}, constant answer {_percent(part.get('constant_answer'))}, "
        f"n {part['n']}"
    )
