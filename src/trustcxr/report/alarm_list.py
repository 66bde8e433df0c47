"""Gather the alarms of a study by kind, with what each kind means."""

from dataclasses import dataclass, field

from trustcxr.report import formatting, html
from trustcxr.report.load import Run, StudyFolder
from trustcxr.storage.schemas import Alarm

SHORT = {kind: texts["short"] for kind, texts in html.read_yaml("alarms.yaml").items()}
SHORT |= {"trained_on": "tested on images of its training"}


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
    kinds = html.read_yaml("alarms.yaml")
    groups = {kind: AlarmGroup(kind, texts["title"], texts["meaning"]) for kind, texts in kinds.items()}
    for alarm, label in alarms:
        kind = alarm.kind or "other"
        title = formatting.measure(kind).capitalize()
        groups.setdefault(kind, AlarmGroup(kind, title, "Recorded by the study.")).add(alarm, label)
    failed = [f"{f.run or formatting.DASH}: {f.reason or formatting.DASH}" for f in folder.study.failures]
    groups["failed"] = AlarmGroup("failed", "Runs that failed", "They are not in the tables of this page.", failed)
    titles = [texts["title"] for texts in kinds.values()]
    titles = [title if title[1].isupper() else title[0].lower() + title[1:] for title in titles]
    return AlarmList([group for group in groups.values() if group.lines], titles, _list_unchecked(runs))


def _list_unchecked(runs: list[Run]) -> list[str]:
    lines = []
    if count := sum(run.masked is None for run in runs):
        lines.append(f"failing gradients in {formatting.plural(count, 'run')}: the verdict of each gives the reason")
    robust = [run for run in runs if run.defence != formatting.STANDARD]
    if count := sum(run.history is None or "val_pgd_accuracy" not in run.history for run in robust):
        lines.append(f"overfitting in {formatting.plural(count, 'run')} without PGD accuracy in its history")
    return lines
