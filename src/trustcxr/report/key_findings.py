"""Summarise a study or one run: the question, and three sentences with intervals that answer it."""

from collections.abc import Callable

from trustcxr.report import formatting, ranking
from trustcxr.report.load import Run
from trustcxr.storage.schemas import AttackResult, Classification, StudyDocument

_ENERGY = "infection_energy"
Numbers = Callable[[Run], Classification | AttackResult]


def describe_compared(runs: list[Run], head: ranking.Headline) -> str:
    """Return the networks of the study, its test images, and the accuracy of a constant answer."""
    if not runs:
        return "Nothing has been tested yet."
    networks = formatting.plural(len(ranking.group_by_model(runs)), "network")
    what = runs[0].label if len(runs) == 1 else f"{formatting.plural(len(runs), 'run')} of {networks}"
    counts = formatting.join_counts(run.clean.n for run in runs)
    text = f"{what}, on {counts} images of the split “{head.split}”."
    constant = ranking.shared_constant_answer(runs)
    if constant is None:
        return text
    return f"{text} Always giving the commonest class would score {formatting.percent(constant)}."


def summarise(study: StudyDocument, runs: list[Run], head: ranking.Headline) -> dict[str, str]:
    """Return what the study found, by subject: unperturbed images, images under attack, where the networks look."""
    best = best_by(runs, lambda run: run.clean)
    if best is None:
        return {"Found": "This study has no tested run yet."}
    summary = {"Unperturbed": _clean(runs, best), "Under attack": _attacked(runs, head)}
    return summary | {"Where they look" if len(runs) > 1 else "Where it looks": _heatmaps(study, runs)}


def best_by(runs: list[Run], numbers: Numbers) -> Run | None:
    """Return the run of highest accuracy, better than a constant answer if one is; None without any accuracy."""
    scored = [run for run in runs if numbers(run).accuracy.value is not None]
    scored = [run for run in scored if ranking.better_than_constant(run)] or scored
    return max(scored, key=lambda run: numbers(run).accuracy.value or 0.0, default=None)


def _name_best(best: Run, runs: list[Run], numbers: Numbers) -> str:
    """Return the best run's label, and the number of other runs with the same accuracy."""
    same = sum(numbers(run).accuracy.value == numbers(best).accuracy.value for run in runs if run is not best)
    return f"{best.label} (and {formatting.plural(same, 'other')} with the same figure)" if same else best.label


def _lead(best: Run, runs: list[Run], numbers: Numbers) -> str:
    """Return by how much the best run leads the next, and if their intervals overlap; empty without a lead."""
    accuracy, second = numbers(best).accuracy, best_by([run for run in runs if run is not best], numbers)
    value = accuracy.value or 0.0
    if second is None or value <= (numbers(second).accuracy.value or 0.0):
        return ""
    other = numbers(second).accuracy
    text = f", {formatting.decimal(100 * (value - (other.value or 0.0)), 1)} points above the next ({second.label}"
    overlap = accuracy.interval and other.interval and accuracy.interval[0] <= other.interval[1]
    return text + ("; their intervals overlap)" if overlap else ")")


def _clean(runs: list[Run], best: Run) -> str:
    figure = formatting.with_count(best.clean.accuracy, best.clean.n)
    if not ranking.better_than_constant(best):
        return f"No run is shown to be better than always giving the commonest class: at most {figure} ({best.label})."
    if len(runs) == 1:
        return f"On unperturbed images its accuracy is {figure}."
    name, lead = _name_best(best, runs, lambda run: run.clean), _lead(best, runs, lambda run: run.clean)
    return f"On unperturbed images {name} is most accurate: {figure}{lead}."


def _attacked(runs: list[Run], head: ranking.Headline) -> str:
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
    figure = formatting.with_count(entry.accuracy, entry.n)
    attack = entry.effort.name
    name = "its accuracy is" if one else f"{_name_best(best, trusted, lowest)} is most accurate:"
    lead = _lead(best, trusted, lowest)
    text = f"If every pixel may change by at most {at} ({head.grey_levels()} of 255 grey levels), {name} {figure} "
    text += f"under {attack}, its strongest attack{lead}."
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
    methods = run.metrics.saliency
    name = ranking.main_method(methods)
    figure, method = methods[name].figure(_ENERGY), formatting.method(name)
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
    parts = [methods[ranking.main_method(methods)] for methods in (run.metrics.saliency for run in runs)]
    tested = [part for part in parts if part.shows is not None]
    if not tested:
        return ""
    count = sum(bool(part.shows) and not part.survives for part in tested)
    text = f" The heatmap is above its baseline maps and above random weights in {count} of "
    text += formatting.plural(len(tested), "run")
    others = "in the others it shows" if count else "it shows"
    return f"{text}." if count == len(tested) else f"{text}; {others} nothing that the network learned."
