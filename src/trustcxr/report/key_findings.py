"""The questions asked of a study or of one run, and the answer in three sentences with their intervals."""

from collections.abc import Callable

from trustcxr.report import formatting
from trustcxr.report.load import Run
from trustcxr.report.ranking import (
    Headline,
    better_than_constant,
    constant_answer,
    group_by_model,
    main_method,
    shared_constant_answer,
)
from trustcxr.storage.schemas import AttackResult, Classification, StudyDocument

_ENERGY = "infection_energy"
Numbers = Callable[[Run], Classification | AttackResult]


def describe_question(runs: list[Run], head: Headline) -> str:
    """Return the questions, of which networks, and on which images."""
    if not runs:
        return "Nothing has been tested yet."
    one, networks = len(runs) == 1, len(group_by_model(runs))
    who, verb = (runs[0].label, "does") if one else (formatting.plural(networks, "network"), "do")
    questions = [f"How often are X-rays answered rightly by {who}?"]
    if head.attacks:
        how = f"{formatting.epsilon(head.epsilon)}, which is {head.grey_levels()} of 255 grey levels"
        questions.append(f"How many answers are left when an attacker may change every pixel by at most {how}?")
    if any(run.saliency_methods() for run in runs):
        questions.append(f"And {verb} {'it' if one else 'they'} look where radiologists marked the disease?")
    constant = shared_constant_answer(runs)
    beside = (
        "" if constant is None else f"; always giving the commonest class would have {formatting.percent(constant)}"
    )
    sizes = formatting.join_words(
        formatting.count(n) for n in sorted({run.clean.n for run in runs if run.clean.n is not None})
    )
    tested = "" if one else f"{formatting.plural(len(runs), 'run')} of {who} were tested: "
    return f"{' '.join(questions)} {formatting.capital(f'{tested}{sizes} X-rays of the split “{head.split}”{beside}')}."


def summarise(study: StudyDocument, runs: list[Run], head: Headline) -> list[str]:
    """Return three sentences: X-rays as they are; under attack; where the networks look."""
    best = best_by(runs, lambda run: run.clean)
    if best is None:
        return ["This study holds no tested run yet, so there is nothing to say."]
    return [_clean(runs, best), _attacked(runs, head), _looking(study, runs)]


def best_by(runs: list[Run], numbers: Numbers) -> Run | None:
    """Return the run of highest accuracy, of those better than a constant answer if there are; None without any."""
    scored = [run for run in runs if numbers(run).accuracy.value is not None]
    scored = [run for run in scored if better_than_constant(run)] or scored
    return max(scored, key=lambda run: numbers(run).accuracy.value or 0.0, default=None)


def _named(best: Run, runs: list[Run], numbers: Numbers) -> str:
    """Return the best run's label, and how many others have the very same accuracy."""
    mine = numbers(best).accuracy.value
    same = sum(numbers(run).accuracy.value == mine for run in runs if run is not best)
    return f"{best.label} (and {formatting.plural(same, 'other')} with the same figure)" if same else best.label


def _clean(runs: list[Run], best: Run) -> str:
    figure = formatting.with_count(best.clean.accuracy, best.clean.n)
    if not better_than_constant(best):
        return f"No run is shown to be better than always giving the commonest class: at most {figure} ({best.label})."
    if len(runs) == 1:
        return f"Of X-rays as they are it answers {figure} rightly."
    return f"Of X-rays as they are, {_named(best, runs, lambda run: run.clean)} answers most rightly: {figure}."


def _attacked(runs: list[Run], head: Headline) -> str:
    """Return the lowest figure under any attack of the run that keeps most, of those whose gradients do not fail."""
    if not head.attacks:
        return "No attack was measured, so nothing is known about robustness."

    def lowest(run: Run) -> AttackResult:
        return run.strongest(head.epsilon)

    trusted = [run for run in runs if run.masked is not True]
    best = best_by(trusted, lowest)
    if best is None and trusted:
        which = "no L-infinity attack" + (" on a run whose gradients hold" if len(runs) > 1 else "")
        at = formatting.epsilon(head.epsilon)
        return f"At epsilon {at} {which} was measured, so nothing is known about robustness."
    if best is None:
        who = "its" if len(runs) == 1 else "every run’s"
        return f"Under attack nothing may be relied on: {who} gradients fail, and hide the way that an attack takes."
    entry, constant = lowest(best), constant_answer(best)
    who = "it keeps" if len(runs) == 1 else f"{_named(best, trusted, lowest)} keeps most,"
    low = entry.accuracy.interval[0] if entry.accuracy.interval else entry.accuracy.value
    doubt = ""
    if constant is not None and low is not None:
        doubt = ", better than a constant answer" if low > constant else ", not shown to beat a constant answer"
    left = len(runs) - len(trusted)
    out = (
        f"; {formatting.plural(left, 'run')} whose gradients fail {'is' if left == 1 else 'are'} left out"
        if left
        else ""
    )
    unknown = "; whether its gradients fail could not be looked for" if best.masked is None else ""
    return (
        f"When every pixel may change by at most {formatting.epsilon(head.epsilon)}, {who} "
        f"{formatting.with_count(entry.accuracy, entry.n)} under {formatting.attack(entry.attack, entry.steps)}, "
        f"the strongest attack tried on it{doubt}{unknown}{out}."
    )


def _looking(study: StudyDocument, runs: list[Run]) -> str:
    """Return whether robust heatmaps agree better with the masks; of one run, whether its heatmap says anything."""
    measured = [run for run in runs if run.saliency_methods()]
    text = _robust_heatmaps(study) or (_energy(measured[0]) if len(runs) == 1 and measured else "")
    if not text:
        if not measured:
            return "Where the networks look was not measured."
        return "Whether robust heatmaps agree better with the infection masks was not compared."
    return f"{text}{_above_baselines(measured)}."


def _robust_heatmaps(study: StudyDocument) -> str:
    """Return in how many comparisons robust heatmaps agree better with the masks, by the main method."""
    rows = [row for row in study.comparisons if row.measure == _ENERGY and row.difference.value is not None]
    rows = [row for row in rows if row.method == rows[0].method]
    if not rows:
        return ""
    outcomes = [row.outcome for row in rows]
    gains = sorted(row.difference.value or 0.0 for row in rows)
    sizes = formatting.join_words(formatting.count(n) for n in sorted({row.n for row in rows if row.n is not None}))
    by = f"{formatting.method(rows[0].method)}, " if rows[0].method else ""
    inside = formatting.range_text(rows[0].difference.interval, reveal=True)
    ends = f" to {formatting.signed(gains[-1])}" if len(rows) > 1 else f", 95\u00a0% CI {inside}" if inside else ""
    return (
        f"Robust heatmaps agree better with the infection masks in {outcomes.count('higher')} of "
        f"{formatting.plural(len(rows), 'comparison')}, worse in {outcomes.count('lower')} ({by}{sizes} images, "
        f"difference {formatting.signed(gains[0])}{ends})"
    )


def _energy(run: Run) -> str:
    methods = run.saliency_methods()
    name = main_method(methods)
    figure = methods[name].figure(_ENERGY)
    if figure.value is None:
        return f"Its {formatting.method(name)} heatmaps were not held against infection masks"
    inside = formatting.range_text(figure.interval)
    ends = f"95\u00a0% CI {inside}; " if inside else ""
    return (
        f"Of the energy of its {formatting.method(name)} heatmaps {formatting.decimal(figure.value)} ({ends}chance "
        f"{formatting.decimal(figure.chance)}) lies inside the infection masks"
    )


def _above_baselines(runs: list[Run]) -> str:
    """Return in how many runs the main heatmap is above its controls and random weights, so that it says anything."""
    methods = [run.saliency_methods() for run in runs]
    known = [part for part in (of_run[main_method(of_run)] for of_run in methods) if part.shows is not None]
    if not known:
        return ""
    able = sum(bool(part.shows) and not part.survives for part in known)
    text = f"; above both its controls and the same network with random weights the heatmap is in {able} of "
    text += formatting.plural(len(known), "run")
    if able == len(known):
        return text
    return f"{text}; {'in the others it says' if able else 'it says'} nothing of what the network has learnt"
