"""Choose the headline of a study and the order of its runs; summarise its alarms, question and findings."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trustcxr.registry import DEFENCES, HEADLINE_ATTACKS, Effort, is_linf
from trustcxr.report import formatting, html
from trustcxr.report.load import Run, StudyFolder
from trustcxr.storage import atomic
from trustcxr.storage.schemas import AttackResult, Classification, StudyDocument
from trustcxr.storage.schemas.run_document import CONSTANT

SHORT = {kind: texts["short"] for kind, texts in html.read_yaml("alarms.yaml").items()}
SHORT |= {"trained_on": "tested on images of its training"}
_ENERGY = "infection_energy"
Numbers = Callable[[Run], Classification | AttackResult]
_USUAL_EPSILON = 0.02  # arXiv 2311.14227; used if the recipe names none


@dataclass(frozen=True)
class Headline:
    """The attacks and the epsilon of the leaderboard and the summary."""

    epsilon: float | None
    attacks: tuple[Effort, ...]  # weakest first, as far as known
    split: str
    classes: tuple[str, ...]
    strongest: Effort | None = None  # the attack with the lowest mean accuracy over the runs


def choose_headline(study: StudyDocument, runs: list[Run]) -> Headline:
    """Choose the epsilon that the recipe trains against if tested, else the usual 0.02, else the one tested most."""
    tested = Counter(round(e.epsilon, 9) for run in runs for e in run.attacks if e.epsilon is not None)
    wanted = _recipe_epsilon(study.recipe) or _USUAL_EPSILON
    chosen = min(tested, key=lambda e: (abs(e - wanted) > 1e-9, -tested[e], abs(e - wanted)), default=None)
    attacks = _list_attacks(runs, chosen)
    splits = Counter(run.metrics.split for run in runs if run.metrics.split)
    split = max(splits, key=lambda name: splits[name], default=formatting.DASH)
    classes = study.classes or next((run.metrics.classes for run in runs if run.metrics.classes), [])
    return Headline(chosen, attacks, split, tuple(classes), _find_strongest(runs, attacks, chosen))


def _list_attacks(runs: Sequence[Run], epsilon: float | None) -> tuple[Effort, ...]:
    """Return the attacks tried at an epsilon; each effort is one, such as PGD-10 and PGD-40."""
    efforts = {entry.effort for run in runs for entry in run.at(epsilon)}
    usual = {name: index for index, name in enumerate(HEADLINE_ATTACKS)}
    order = lambda e: (usual.get(e.attack, len(usual)), e.attack, e.steps or 0, e.queries or 0)  # noqa: E731
    return tuple(sorted(efforts, key=order))


def _find_strongest(runs: list[Run], attacks: Sequence[Effort], epsilon: float | None) -> Effort | None:
    """Return the attack with the lowest mean accuracy over the runs that it was tried on; the later of equals."""
    means: dict[Effort, float] = {}
    for effort in attacks:
        values = [v for run in runs if (v := run.attacked(effort, epsilon).accuracy.value) is not None]
        if values and (is_linf(effort.attack) or len(attacks) == 1):
            means[effort] = sum(values) / len(values)
    return min(reversed(list(means)), key=lambda effort: means[effort], default=None)


def _recipe_epsilon(recipe: Mapping[str, Any]) -> float | None:
    """Return the epsilon of the first defence that trains on an attack; other defences have the key too."""
    defences = atomic.records(recipe, "defences") or [atomic.section(recipe, "defence")]
    attacking = [name for name, entry in DEFENCES.items() if entry.attacks]
    epsilon = next((defence.get("epsilon") for defence in defences if defence.get("name") in attacking), None)
    return epsilon if isinstance(epsilon, int | float) else None


def rank_runs(runs: list[Run], head: Headline) -> list[Run]:
    """Return runs by lowest accuracy under attack in whole percent, so that noise does not rank, then by clean.

    Then come runs with failing gradients, and last those not shown to be better than a constant answer.
    """

    def key(run: Run) -> tuple[bool, bool, float, float, str]:
        under, clean = run.strongest(head.epsilon).accuracy.value, run.clean.accuracy.value
        order = (-round(100 * under) if under is not None else 1, -clean if clean is not None else 1, run.label)
        return (run.alarmed(CONSTANT), run.masked is True, *order)

    return sorted(runs, key=key)


def group_by_model(runs: list[Run]) -> dict[str, list[Run]]:
    """Return runs by network, networks in the order given, `standard` first within each."""
    ordered = sorted(runs, key=lambda run: (_defence_index(run.defence), run.label))
    return {model: [run for run in ordered if run.model == model] for model in dict.fromkeys(r.model for r in runs)}


def list_defences(runs: list[Run]) -> list[str]:
    """Return the defences of these runs, `standard` first."""
    return sorted({run.defence for run in runs}, key=lambda name: (_defence_index(name), name))


def _defence_index(defence: str) -> int:
    return list(DEFENCES).index(defence) if defence in DEFENCES else len(DEFENCES)


def describe_compared(runs: list[Run], head: Headline) -> str:
    """Return the networks of the study, its test images, and the accuracy of a constant answer."""
    if not runs:
        return "Nothing has been tested yet."
    networks = formatting.plural(len(group_by_model(runs)), "network")
    what = runs[0].label if len(runs) == 1 else f"{formatting.plural(len(runs), 'run')} of {networks}"
    counts = formatting.join_counts(run.clean.n for run in runs)
    text = f"{what}, on {counts} images of the split “{head.split}”."
    answers = {round(value, 6) for run in runs if (value := run.clean.constant_answer) is not None}
    constant = f" Always giving the commonest class would score {formatting.percent(min(answers, default=None))}."
    return text + constant * (len(answers) == 1)


def summarise(study: StudyDocument, runs: list[Run], head: Headline) -> dict[str, str]:
    """Return what the study found, by subject: unperturbed images, images under attack, where the networks look."""
    if (best := best_by(runs, lambda run: run.clean)) is None:
        return {"Found": "This study has no tested run yet."}
    summary = {"Unperturbed": _clean(runs, best), "Under attack": _attacked(runs, head)}
    return summary | {"Where they look" if len(runs) > 1 else "Where it looks": _heatmaps(study, runs)}


def best_by(runs: list[Run], numbers: Numbers) -> Run | None:
    """Return the run of highest accuracy, better than a constant answer if one is; None without any accuracy."""
    scored = [run for run in runs if numbers(run).accuracy.value is not None]
    scored = [run for run in scored if not run.alarmed(CONSTANT)] or scored
    return max(scored, key=lambda run: numbers(run).accuracy.value or 0.0, default=None)


def _lead(best: Run, runs: list[Run], numbers: Numbers) -> tuple[str, str]:
    """Return the best run with the number of its equals, and how far it leads the next; empty without a lead."""
    others, accuracy = [run for run in runs if run is not best], numbers(best).accuracy
    same = sum(numbers(run).accuracy.value == accuracy.value for run in others)
    name = f"{best.label} (and {formatting.plural(same, 'other')} with the same figure)" if same else best.label
    value, second = accuracy.value or 0.0, best_by(others, numbers)
    if second is None or value <= (numbers(second).accuracy.value or 0.0):
        return name, ""
    other = numbers(second).accuracy
    text = f", {formatting.decimal(100 * (value - (other.value or 0.0)), 1)} points above the next ({second.label}"
    overlap = accuracy.interval and other.interval and accuracy.interval[0] <= other.interval[1]
    return name, text + ("; their intervals overlap)" if overlap else ")")


def _clean(runs: list[Run], best: Run) -> str:
    figure = formatting.with_count(best.clean.accuracy, best.clean.n)
    if best.alarmed(CONSTANT):
        return f"No run is shown to be better than always giving the commonest class: at most {figure} ({best.label})."
    if len(runs) == 1:
        return f"On unperturbed images its accuracy is {figure}."
    name, lead = _lead(best, runs, lambda run: run.clean)
    return f"On unperturbed images {name} is most accurate: {figure}{lead}."


def _attacked(runs: list[Run], head: Headline) -> str:
    """Describe the run with the highest worst-attack accuracy among runs whose gradients do not fail."""
    if not head.attacks:
        return "No attack was measured, so nothing is known about robustness."

    def lowest(run: Run) -> AttackResult:
        return run.strongest(head.epsilon)

    one, trusted = len(runs) == 1, [run for run in runs if run.masked is not True]
    best, at = best_by(trusted, lowest), formatting.epsilon(head.epsilon)
    if not trusted:
        return f"The gradients of {'this run' if one else 'every run'} fail, so figures under attack are unreliable."
    if best is None:
        which = "no L-infinity attack" + ("" if one else " on a run whose gradients hold")
        return f"At epsilon {at} {which} was measured, so nothing is known about robustness."
    entry, constant = lowest(best), best.clean.constant_answer
    figure, levels = formatting.with_count(entry.accuracy, entry.n), formatting.decimal(255 * (head.epsilon or 0.0), 1)
    name, lead = _lead(best, trusted, lowest)
    name = "its accuracy is" if one else f"{name} is most accurate:"
    text = f"If every pixel may change by at most {at} ({levels} of 255 grey levels), {name} {figure} "
    text += f"under {entry.effort.name}, its strongest attack{lead}."
    low = entry.accuracy.interval[0] if entry.accuracy.interval else entry.accuracy.value
    if constant is not None and low is not None:
        text += f" This is {'better' if low > constant else 'not shown to be better'} than a constant answer."
    if best.masked is None:
        text += " Its gradients could not be checked."
    if left := len(runs) - len(trusted):
        text += f" {formatting.plural(left, 'run')} with failing gradients {'is' if left == 1 else 'are'} left out."
    return text


def _heatmaps(study: StudyDocument, runs: list[Run]) -> str:
    """Say if robust heatmaps agree better with the masks, and in how many runs the heatmap is informative."""
    measured = [run for run in runs if run.metrics.saliency]
    text = _robust_heatmaps(study) or (_energy(measured[0]) if len(runs) == 1 and measured else "")
    if text:
        return f"{text}.{_above_baselines(measured)}"
    if measured:
        return "Robust and standard heatmaps were not compared."
    return "Where the networks look was not measured."


def _robust_heatmaps(study: StudyDocument) -> str:
    """Return in how many comparisons robust heatmaps agree better with the masks, by the main method."""
    rows = [row for row in study.comparisons if row.measure == _ENERGY and row.difference.value is not None]
    rows = [row for row in rows if row.method == rows[0].method]
    if not rows:
        return ""
    outcomes = [row.outcome for row in rows]
    gains = sorted(row.difference.value or 0.0 for row in rows)
    method = f"{formatting.method(rows[0].method)}, " if rows[0].method else ""
    inside = formatting.range_text(rows[0].difference.interval, reveal=True)
    ends = f" to {formatting.signed(gains[-1])}" if len(rows) > 1 else f", 95\u00a0% CI {inside}" if inside else ""
    return (
        f"Robust heatmaps agree better with the infection masks in {outcomes.count('higher')} of "
        f"{formatting.plural(len(rows), 'comparison')}, worse in {outcomes.count('lower')} ({method}"
        f"{formatting.join_counts(row.n for row in rows)} images, difference {formatting.signed(gains[0])}{ends})"
    )


def _energy(run: Run) -> str:
    figure, method = run.main_saliency.figure(_ENERGY), formatting.method(next(iter(run.metrics.saliency)))
    if figure.value is None:
        return f"Its {method} heatmaps were not compared with infection masks"
    inside = formatting.range_text(figure.interval)
    ends = f"95\u00a0% CI {inside}; " if inside else ""
    return (
        f"The infection masks hold {formatting.decimal(figure.value)} of the energy of its {method} heatmaps "
        f"({ends}chance {formatting.decimal(figure.chance)})"
    )


def _above_baselines(runs: list[Run]) -> str:
    """Return in how many runs the main heatmap is above its baselines and above random weights."""
    tested = [run.main_saliency for run in runs if run.main_saliency.shows is not None]
    if not tested:
        return ""
    count = sum(bool(part.shows) and not part.survives for part in tested)
    text = f" The heatmap is above its baseline maps and above random weights in {count} of "
    text += formatting.plural(len(tested), "run")
    others = "in the others it shows" if count else "it shows"
    return f"{text}." if count == len(tested) else f"{text}; {others} nothing that the network learned."


@dataclass
class AlarmGroup:
    """Alarms of one kind, with a line and the label of the run for each."""

    kind: str
    title: str
    meaning: str
    lines: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)  # each run once


def gather_alarms(folder: StudyFolder, runs: list[Run]) -> dict[str, Any]:
    """Return the alarms of the runs and of the study by kind, what was looked for, and what could not be checked."""
    run_names = {run.name for run in runs}
    alarms = [(alarm, run.label) for run in runs for alarm in run.metrics.alarms]
    alarms += [(alarm, "") for alarm in folder.study.alarms if alarm.run not in run_names]  # it repeats those of runs
    kinds = html.read_yaml("alarms.yaml")
    groups = {kind: AlarmGroup(kind, texts["title"], texts["meaning"]) for kind, texts in kinds.items()}
    for alarm, label in alarms:
        kind = alarm.kind or "other"
        title, text = formatting.measure(kind).capitalize(), alarm.text or alarm.kind or "an alarm without text"
        group = groups.setdefault(kind, AlarmGroup(kind, title, "Recorded by the study."))
        group.lines.append(f"{label}: {text}" if label else text)
        if label and label not in group.labels:
            group.labels.append(label)
    failed = [f"{f.run or formatting.DASH}: {f.reason or formatting.DASH}" for f in folder.study.failures]
    groups["failed"] = AlarmGroup("failed", "Runs that failed", "They are not in the tables of this page.", failed)
    counts = [formatting.plural(n, what) for n, what in ((len(alarms), "alarm"), (len(failed), "failed run")) if n]
    titles = [texts["title"] for texts in kinds.values()]
    return {
        "groups": [group for group in groups.values() if group.lines],
        "count_text": formatting.join_words(counts),
        "looked_for": [title if title[1].isupper() else title[0].lower() + title[1:] for title in titles],
        "unchecked": _list_unchecked(runs),
    }


def _list_unchecked(runs: list[Run]) -> list[str]:
    lines = []
    if count := sum(run.masked is None for run in runs):
        lines.append(f"failing gradients in {formatting.plural(count, 'run')}: the verdict of each gives the reason")
    robust = [run for run in runs if run.defence != formatting.STANDARD]
    if count := sum(run.history is None or "val_pgd_accuracy" not in run.history for run in robust):
        lines.append(f"overfitting in {formatting.plural(count, 'run')} without PGD accuracy in its history")
    return lines
