"""What on the page must not be believed at first sight: the study's own alarms, and the report's own second look."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from trustcxr.evaluation.gradient_masking import MASKING_GAP
from trustcxr.report import words
from trustcxr.report.ranking import constant_answer
from trustcxr.report.study_folder import Run, StudyFolder

RISE = 0.02  # accuracy that rises by more than this from one epsilon to the next: masked gradients, as in metrics.py
COLLAPSE = 0.20  # PGD accuracy on validation lost while FGSM accuracy is not: catastrophic overfitting

KINDS = {
    "no_better_than_constant": (
        "No better than a constant answer",
        "On unperturbed X-rays the network is not shown to do better than always giving the commonest class. Its other "
        "figures, robustness and heatmaps among them, say nothing.",
    ),
    "gradient_masking": (
        "Gradient masking",
        "Accuracy under FGSM exceeds accuracy under PGD at the same epsilon by more than ten points. The stronger "
        "attack finds what the weaker one misses, so the resistance to FGSM is not robustness.",
    ),
    "catastrophic_overfitting": (
        "Catastrophic overfitting",
        "While training, accuracy under FGSM rose or held and accuracy under PGD collapsed: the network learned that "
        "one attack and not to resist.",
    ),
    "rising_with_epsilon": (
        "Accuracy that rises with epsilon",
        "A larger perturbation cannot be easier to resist than a smaller one. Where accuracy rises by more than two "
        "points, the attack was misled and the figure is too good.",
    ),
    "inconsistent": (
        "Figures that do not match the predictions",
        "The clean accuracy in study.json is not the one that predictions.parquet gives.",
    ),
}


@dataclass
class Group:
    """Alarms of one kind, with a line for each run."""

    kind: str
    title: str
    meaning: str
    lines: list[str] = field(default_factory=list)


@dataclass
class Findings:
    """The alarms, which kinds were looked for, and what could not be looked at."""

    groups: list[Group]
    looked_for: list[str]
    unchecked: list[str]

    def runs_with(self, kind: str) -> int:
        """How many lines there are of a kind."""
        return next((len(group.lines) for group in self.groups if group.kind == kind), 0)


def gradient_masking(run: Run) -> str | None:
    """The epsilon where FGSM exceeds PGD the most, in words, if by more than MASKING_GAP."""
    worst: tuple[float, str] | None = None
    for fgsm in run.sweep("fgsm"):
        pgd = run.attacked("pgd", float(fgsm["epsilon"]))
        under = words.finite(pgd.get("accuracy"))
        if under is None or float(fgsm["accuracy"]) - under <= MASKING_GAP:
            continue
        gap = float(fgsm["accuracy"]) - under
        text = (
            f"{run.label}: {words.percent(fgsm['accuracy'])} under FGSM, {words.percent(under)} under "
            f"{words.attack('pgd', pgd.get('steps'))} at epsilon {words.epsilon(fgsm['epsilon'])}"
        )
        worst = max(worst or (gap, text), (gap, text))
    return worst[1] if worst else None


def rising_with_epsilon(run: Run) -> str | None:
    """The largest rise of accuracy between neighbouring epsilons of any attack, in words, if over RISE."""
    worst: tuple[float, str] | None = None
    for attack in sorted({entry["attack"] for entry in run.attacks}):
        entries = run.sweep(attack)
        for before, after in pairwise(entries):
            rise = float(after["accuracy"]) - float(before["accuracy"])
            if rise <= RISE:
                continue
            text = (
                f"{run.label}: {words.percent(before['accuracy'])} at epsilon {words.epsilon(before['epsilon'])}, "
                f"{words.percent(after['accuracy'])} at {words.epsilon(after['epsilon'])}, under "
                f"{words.attack(attack, after.get('steps'))}"
            )
            worst = max(worst or (rise, text), (rise, text))
    return worst[1] if worst else None


def catastrophic_overfitting(run: Run) -> str | None:
    """Training says that it stopped for it, or PGD accuracy on validation collapsed while FGSM accuracy did not."""
    recorded = words.get(run.metrics, "training", "alarm")
    if recorded or words.get(run.metrics, "training", "stopped") == "overfitting":
        return f"{run.label}: {recorded or 'training stopped for it'}"
    table = run.history
    names = ("epoch", "val_fgsm_accuracy", "val_pgd_accuracy")
    if table is None or any(name not in table for name in names):
        return None
    rows = table[list(names)].dropna()
    if len(rows) < 2:
        return None
    best, last = rows.iloc[int(rows["val_pgd_accuracy"].to_numpy().argmax())], rows.iloc[-1]
    lost = best["val_pgd_accuracy"] - last["val_pgd_accuracy"]
    if lost < COLLAPSE or last["val_fgsm_accuracy"] < best["val_fgsm_accuracy"]:
        return None
    ends = [f"{words.percent(row['val_pgd_accuracy'])} (epoch {words.count(row['epoch'])})" for row in (best, last)]
    return f"{run.label}: PGD accuracy on validation fell from {ends[0]} to {ends[1]}"


def recomputed(run: Run) -> float | None:
    """Clean accuracy again, from predictions.parquet; None where that cannot be done."""
    import numpy as np

    table = run.predictions()
    if table is None:
        return None
    rows = table[table["attack"] == "clean"]
    split = run.metrics.get("split")
    rows = rows[rows["split"] == split] if split else rows
    if rows.empty:
        return None
    predicted = np.stack(rows["logits"].to_list()).argmax(axis=1)
    return float((predicted == rows["label"].to_numpy()).mean())


def inconsistent(run: Run) -> str | None:
    """Whether the stated clean accuracy is another than the predictions give."""
    stated, again = words.finite(run.clean("accuracy")), recomputed(run)
    if stated is None or again is None or abs(stated - again) < 1e-6:
        return None
    return f"{run.label}: {words.percent(stated, 2)} stated, {words.percent(again, 2)} from the predictions"


def no_better_than_constant(run: Run) -> str | None:
    """Whether the interval of clean accuracy reaches down to what one and the same answer to everything would have."""
    constant, pair = constant_answer(run), words.interval(run.clean("accuracy_ci"))
    if constant is None or pair is None or pair[0] > constant:
        return None
    return (
        f"{run.label}: {words.percent(run.clean('accuracy'))} clean (95\u00a0% CI "
        f"{words.between(run.clean('accuracy_ci'), 1, scale=100)}), a constant answer {words.percent(constant)}"
    )


_CHECKS = {
    "no_better_than_constant": no_better_than_constant,
    "gradient_masking": gradient_masking,
    "catastrophic_overfitting": catastrophic_overfitting,
    "rising_with_epsilon": rising_with_epsilon,
    "inconsistent": inconsistent,
}


def find(folder: StudyFolder, runs: list[Run]) -> Findings:
    """All alarms: the report's own checks, and whatever the study and its runs recorded beyond them."""
    groups = {kind: Group(kind, *KINDS[kind]) for kind in KINDS}
    for run in runs:
        for kind, check in _CHECKS.items():
            line = check(run)
            if line:
                groups[kind].lines.append(line)
        for recorded in words.records(run.metrics.get("alarms")):
            kind = _record(groups, recorded)
            if kind not in KINDS or not any(line.startswith(run.label + ":") for line in groups[kind].lines):
                groups[kind].lines.append(f"{run.label}: {_text(recorded)}")
    in_runs = {_text(a) for run in runs for a in words.records(run.metrics.get("alarms"))}
    for recorded in words.records(folder.study.get("alarms")):
        # The study repeats the alarms of its runs; only what no run has said yet is new here.
        if _text(recorded) not in in_runs and not (recorded.get("run") and _said(groups, recorded, runs)):
            groups[_record(groups, recorded)].lines.append(_text(recorded))
    failed = [
        f"{f.get('run', words.DASH)}: {f.get('reason', words.DASH)}"
        for f in words.records(folder.study.get("failures"))
    ]
    groups["failed"] = Group("failed", "Runs that failed", "They are not in the tables of this page.", failed)
    titles = [KINDS[kind][0].lower() for kind in KINDS]
    return Findings([g for g in groups.values() if g.lines], titles, _unchecked(runs))


def _record(groups: dict[str, Group], recorded: dict[str, Any]) -> str:
    kind = str(recorded.get("kind") or "other")
    groups.setdefault(kind, Group(kind, words.measure(kind).capitalize(), "Recorded by the study."))
    return kind


def _said(groups: dict[str, Group], recorded: dict[str, Any], runs: list[Run]) -> bool:
    labels = [run.label for run in runs if run.name == recorded["run"]]
    return any(line.startswith(f"{label}:") for label in labels for line in groups[_record(groups, recorded)].lines)


def _text(recorded: dict[str, Any]) -> str:
    return str(recorded.get("text") or recorded.get("kind") or "an alarm without words")


def _unchecked(runs: list[Run]) -> list[str]:
    """What could not be looked at, so that silence is not taken for safety."""
    lines = []
    without_pair = sum(not (run.sweep("fgsm") and run.sweep("pgd")) for run in runs)
    if without_pair:
        lines.append(f"gradient masking in {words.plural(without_pair, 'run')} without both FGSM and PGD")
    single = sum(all(len(run.sweep(e["attack"])) < 2 for e in run.attacks) for run in runs)
    if single:
        lines.append(f"the fall with epsilon in {words.plural(single, 'run')} tested at fewer than two epsilons")
    unwatched = sum(
        run.defence != words.STANDARD and (run.history is None or "val_pgd_accuracy" not in run.history) for run in runs
    )
    if unwatched:
        lines.append(f"overfitting in {words.plural(unwatched, 'run')} without PGD accuracy in its history")
    return lines
