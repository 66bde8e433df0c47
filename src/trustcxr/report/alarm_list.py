"""Gather the alarms of a study by kind, with what each kind means."""

from dataclasses import dataclass, field

from trustcxr.report import formatting
from trustcxr.report.load import Run, StudyFolder
from trustcxr.storage.schemas import Alarm

_GRADIENTS = "Failing gradients: "
KINDS = {
    "no_better_than_constant": (
        "No better than a constant answer",
        "On unperturbed images the network is not shown to be better than always giving the commonest class. Its other "
        "figures, including robustness and heatmaps, mean nothing.",
    ),
    "vanishing_gradients": (
        f"{_GRADIENTS}they vanish",
        "An attack that follows a gradient of zero does not move. If it finds nothing, that is not robustness.",
    ),
    "unmoved_attack": (
        f"{_GRADIENTS}an attack that did not move",
        "The attack left images unchanged, so accuracy under it is accuracy without it.",
    ),
    "weak_attack": (
        f"{_GRADIENTS}many steps weaker than one",
        "A stronger attack cannot raise accuracy. If it does, the gradient points the wrong way.",
    ),
    "rising_with_epsilon": (
        f"{_GRADIENTS}accuracy that rises with epsilon",
        "A larger perturbation cannot be easier to resist than a smaller one. If accuracy rises, the attack failed and "
        "the figure is too high.",
    ),
    "left_at_large_epsilon": (
        f"{_GRADIENTS}accuracy at an epsilon that allows none",
        "At this epsilon any image can become any other. The attack failed to find what remains.",
    ),
    "black_box_wins": (
        f"{_GRADIENTS}a black-box attack is stronger",
        "An attack that sees only answers breaks more images than the attacks that use gradients.",
    ),
    "fgsm_overstates": (
        "FGSM overstates",
        "Accuracy under FGSM is more than ten points above accuracy under a stronger attack at the same epsilon, and "
        "more than chance explains. The stronger attack counts; resistance to FGSM is not robustness.",
    ),
    "catastrophic_overfitting": (
        "Catastrophic overfitting",
        "During training, accuracy under FGSM stayed high while accuracy under PGD collapsed. The network learned to "
        "resist only that one attack.",
    ),
    "survives_randomisation": (
        "Heatmaps that survive randomising the network",
        "With random weights the heatmap hits as often, or is the same map. It shows the image or the method, not what "
        "the network learned, so the figures named are void.",
    ),
}

SHORT = {
    "no_better_than_constant": "no better than a constant answer",
    "fgsm_overstates": "FGSM overstates",
    "catastrophic_overfitting": "overfitted to FGSM",
    "survives_randomisation": "heatmaps survive randomising",
    "trained_on": "tested on images of its training",
} | {kind: "gradients fail" for kind, (title, _) in KINDS.items() if title.startswith(_GRADIENTS)}


@dataclass
class AlarmGroup:
    """Alarms of one kind, with a line and the label of the run for each."""

    kind: str
    title: str
    meaning: str
    lines: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)  # each run once

    def add(self, alarm: Alarm, label: str = "") -> None:
        """Add an alarm of a run, or of the whole study if `label` is empty."""
        text = alarm.text or alarm.kind or "an alarm without text"
        self.lines.append(f"{label}: {text}" if label else text)
        if label and label not in self.labels:
            self.labels.append(label)


@dataclass
class AlarmList:
    """The alarms, the kinds that were looked for, and what could not be checked."""

    groups: list[AlarmGroup]
    looked_for: list[str]
    unchecked: list[str]

    @property
    def count(self) -> int:
        """Return the number of alarms, without failed runs."""
        return sum(len(group.lines) for group in self.groups if group.kind != "failed")

    @property
    def count_text(self) -> str:
        """Return the number of alarms and of failed runs."""
        failed = sum(len(group.lines) for group in self.groups if group.kind == "failed")
        counts = [(self.count, "alarm"), (failed, "failed run")]
        return formatting.join_words(formatting.plural(number, name) for number, name in counts if number)


def gather_alarms(folder: StudyFolder, runs: list[Run]) -> AlarmList:
    """Return the alarms of the runs and of the study by kind."""
    run_names = {run.name for run in runs}
    alarms = [(alarm, run.label) for run in runs for alarm in run.metrics.alarms]
    alarms += [(alarm, "") for alarm in folder.study.alarms if alarm.run not in run_names]  # it repeats those of runs
    groups = {kind: AlarmGroup(kind, *texts) for kind, texts in KINDS.items()}
    for alarm, label in alarms:
        kind = alarm.kind or "other"
        title = formatting.measure(kind).capitalize()
        groups.setdefault(kind, AlarmGroup(kind, title, "Recorded by the study.")).add(alarm, label)
    failed = [f"{f.run or formatting.DASH}: {f.reason or formatting.DASH}" for f in folder.study.failures]
    groups["failed"] = AlarmGroup("failed", "Runs that failed", "They are not in the tables of this page.", failed)
    titles = [title if title[1].isupper() else title[0].lower() + title[1:] for title, _ in KINDS.values()]
    return AlarmList([group for group in groups.values() if group.lines], titles, _list_unchecked(runs))


def _list_unchecked(runs: list[Run]) -> list[str]:
    lines = []
    if count := sum(run.masked is None for run in runs):
        lines.append(f"failing gradients in {formatting.plural(count, 'run')}: the verdict of each gives the reason")
    robust = [run for run in runs if run.defence != formatting.STANDARD]
    if count := sum(run.history is None or "val_pgd_accuracy" not in run.history for run in robust):
        lines.append(f"overfitting in {formatting.plural(count, 'run')} without PGD accuracy in its history")
    return lines
