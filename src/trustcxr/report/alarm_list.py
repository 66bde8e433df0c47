"""What on the page must not be believed at first sight: the alarms of each run, shown in groups, judged elsewhere."""

from dataclasses import dataclass, field

from trustcxr.report import formatting
from trustcxr.report.load import Run, StudyFolder
from trustcxr.storage.schemas import Alarm

KINDS = {
    "no_better_than_constant": (
        "No better than a constant answer",
        "On unperturbed X-rays the network is not shown to do better than always giving the commonest class. Its other "
        "figures, robustness and heatmaps among them, say nothing.",
    ),
    "vanishing_gradients": (
        "Failing gradients: there is none",
        "Where the gradient of the answer in the pixels is zero, an attack that follows it stands still. That it finds "
        "nothing is no robustness.",
    ),
    "unmoved_attack": (
        "Failing gradients: an attack that did not move",
        "The attack left images as they were, so accuracy under it is accuracy without it.",
    ),
    "weak_attack": (
        "Failing gradients: many steps weaker than one",
        "A stronger attack cannot help a network. Where it does, the gradient leads it astray.",
    ),
    "rising_with_epsilon": (
        "Failing gradients: accuracy that rises with epsilon",
        "A larger perturbation cannot be easier to resist than a smaller one. Where accuracy under many steps rises, "
        "the attack was misled and the figure is too good.",
    ),
    "left_at_large_epsilon": (
        "Failing gradients: accuracy where none can be",
        "At this epsilon any X-ray can be made into any other. What the attack leaves there it did not find.",
    ),
    "black_box_wins": (
        "Failing gradients: a black box wins",
        "An attack that sees answers alone breaks more than those that see the network. Its gradients hide the way.",
    ),
    "fgsm_overstates": (
        "FGSM overstates",
        "Accuracy under FGSM exceeds accuracy under a stronger attack at the same epsilon by more than ten points and "
        "than chance gives. The stronger figure counts; the resistance to FGSM is not robustness.",
    ),
    "catastrophic_overfitting": (
        "Catastrophic overfitting",
        "While training, accuracy under FGSM held and accuracy under PGD collapsed: the network learned that one "
        "attack and not to resist.",
    ),
    "survives_randomisation": (
        "Heatmaps that survive randomising the network",
        "With random weights in the network’s place the heatmap hits as often, or is the same map. It shows the image, "
        "or the method, and nothing of what the network has learnt: the figures named are void.",
    ),
}

SHORT = {
    "no_better_than_constant": "no better than a constant answer",
    "fgsm_overstates": "FGSM overstates",
    "catastrophic_overfitting": "overfitted to FGSM",
    "survives_randomisation": "heatmaps survive randomising",
    "trained_on": "tested on images of its training",
} | {kind: "gradients fail" for kind, (title, _) in KINDS.items() if title.startswith("Failing gradients")}


@dataclass
class AlarmGroup:
    """Alarms of one kind, with a line for each run."""

    kind: str
    title: str
    meaning: str
    lines: list[str] = field(default_factory=list)
    who: list[str] = field(default_factory=list)  # the runs' labels, each once

    def add(self, name: str, text: str) -> None:
        """One alarm, of a run or of the study as a whole."""
        self.lines.append(f"{name}: {text}" if name else text)
        if name and name not in self.who:
            self.who.append(name)


@dataclass
class AlarmList:
    """The alarms, which kinds were looked for, and what could not be looked at."""

    groups: list[AlarmGroup]
    looked_for: list[str]
    unchecked: list[str]

    @property
    def count(self) -> int:
        """How many there are: as many as the terminal says."""
        return sum(len(group.lines) for group in self.groups if group.kind != "failed")

    def runs_with(self, kind: str) -> int:
        """How many lines there are of a kind."""
        return next((len(group.lines) for group in self.groups if group.kind == kind), 0)


def gather_alarms(folder: StudyFolder, runs: list[Run]) -> AlarmList:
    """Gather the alarms of the runs and of the study into groups."""
    groups = {kind: AlarmGroup(kind, *KINDS[kind]) for kind in KINDS}
    for run in runs:
        for recorded in run.metrics.alarms:
            groups[_record(groups, recorded)].add(run.label, _text(recorded))
    run_names = {run.name for run in runs}
    for recorded in folder.study.alarms:
        if recorded.run not in run_names:  # the study repeats the alarms of its runs
            groups[_record(groups, recorded)].add("", _text(recorded))
    failed = [f"{f.run or formatting.DASH}: {f.reason or formatting.DASH}" for f in folder.study.failures]
    groups["failed"] = AlarmGroup("failed", "Runs that failed", "They are not in the tables of this page.", failed)
    titles = [title if title[1].isupper() else title[0].lower() + title[1:] for title, _ in KINDS.values()]
    return AlarmList([g for g in groups.values() if g.lines], titles, _unchecked(runs))


def _record(groups: dict[str, AlarmGroup], recorded: Alarm) -> str:
    kind = recorded.kind or "other"
    groups.setdefault(kind, AlarmGroup(kind, formatting.measure(kind).capitalize(), "Recorded by the study."))
    return kind


def _text(recorded: Alarm) -> str:
    return recorded.text or recorded.kind or "an alarm without words"


def _unchecked(runs: list[Run]) -> list[str]:
    """What could not be looked at, so that silence is not taken for safety."""
    lines = []
    not_looked = sum(run.masked is None for run in runs)
    if not_looked:
        lines.append(
            f"failing gradients in {formatting.plural(not_looked, 'run')}: why not stands in the verdict of each"
        )
    unwatched = sum(
        run.defence != formatting.STANDARD and (run.history is None or "val_pgd_accuracy" not in run.history)
        for run in runs
    )
    if unwatched:
        lines.append(f"overfitting in {formatting.plural(unwatched, 'run')} without PGD accuracy in its history")
    return lines
