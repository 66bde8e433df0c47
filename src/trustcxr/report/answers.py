"""What was asked of a study or of one run, and the answer in three sentences with their intervals."""

from trustcxr.report import words
from trustcxr.report.ranking import Headline, better_than_constant, by_model, constant_answer, shared_constant_answer
from trustcxr.report.study_folder import Run
from trustcxr.report.summary import (
    above_controls,
    answer,
    best_by,
    clean_numbers,
    energy_comparisons,
    figure,
    main_method,
    named,
)
from trustcxr.results.documents import AttackResult, StudyDocument

_ENERGY = "infection_energy"


def asked(runs: list[Run], head: Headline) -> str:
    """The questions that were put, to whom, and on what."""
    if not runs:
        return "Nothing has been tested yet."
    one, networks = len(runs) == 1, len(by_model(runs))
    who, verb = (runs[0].label, "does") if one else (words.plural(networks, "network"), "do")
    said = [f"How often are X-rays answered rightly by {who}?"]
    if head.attacks:
        how = f"{words.epsilon(head.epsilon)}, which is {head.grey_levels()} of 255 grey levels"
        said.append(f"How many answers are left when an attacker may change every pixel by at most {how}?")
    if any(run.saliency_methods() for run in runs):
        said.append(f"And {verb} {'it' if one else 'they'} look where radiologists marked the disease?")
    constant = shared_constant_answer(runs)
    beside = "" if constant is None else f"; always giving the commonest class would have {words.percent(constant)}"
    sizes = words.listed(words.count(n) for n in sorted({run.clean.n for run in runs if run.clean.n is not None}))
    tested = "" if one else f"{words.plural(len(runs), 'run')} of {who} were tested: "
    return f"{' '.join(said)} {words.capital(f'{tested}{sizes} X-rays of the split “{head.split}”{beside}')}."


def sentences(study: StudyDocument, runs: list[Run], head: Headline) -> list[str]:
    """X-rays as they are; under attack, of what may be relied on; where the networks look."""
    if best_by(runs, clean_numbers) is None:
        return ["This study holds no tested run yet, so there is nothing to say."]
    return [_clean(runs), _attacked(runs, head), _looking(study, runs)]


def _clean(runs: list[Run]) -> str:
    best = best_by(runs, clean_numbers)
    assert best is not None
    found = figure(clean_numbers(best))
    if not better_than_constant(best):
        return f"No run is shown to be better than always giving the commonest class: at most {found} ({best.label})."
    if len(runs) == 1:
        return f"Of X-rays as they are it answers {found} rightly."
    return f"Of X-rays as they are, {named(best, runs, clean_numbers)} answers most rightly: {found}."


def _attacked(runs: list[Run], head: Headline) -> str:
    """The lowest figure under any attack of the run that keeps most, of the runs whose gradients do not fail."""
    if not head.attacks:
        return "No attack was measured, so nothing is known about robustness."

    def lowest(run: Run) -> AttackResult:
        return run.strongest(head.epsilon)

    trusted = [run for run in runs if run.masked is not True]
    best = best_by(trusted, lowest)
    if best is None and trusted:
        which = "no L-infinity attack" + (" on a run whose gradients hold" if len(runs) > 1 else "")
        at = words.epsilon(head.epsilon)
        return f"At epsilon {at} {which} was measured, so nothing is known about robustness."
    if best is None:
        who = "its" if len(runs) == 1 else "every run’s"
        return f"Under attack nothing may be relied on: {who} gradients fail, and hide the way that an attack takes."
    entry, constant = lowest(best), constant_answer(best)
    name = words.attack(entry.attack, entry.steps)
    who = "it keeps" if len(runs) == 1 else f"{named(best, trusted, lowest)} keeps most,"
    low = entry.accuracy.interval[0] if entry.accuracy.interval else entry.accuracy.value
    doubt = ""
    if constant is not None and low is not None:
        doubt = ", better than a constant answer" if low > constant else ", not shown to beat a constant answer"
    left = len(runs) - len(trusted)
    out = f"; {words.plural(left, 'run')} whose gradients fail {'is' if left == 1 else 'are'} left out" if left else ""
    unknown = "; whether its gradients fail could not be looked for" if best.masked is None else ""
    return (
        f"When every pixel may change by at most {words.epsilon(head.epsilon)}, {who} {figure(entry)} under {name}, "
        f"the strongest attack tried on it{doubt}{unknown}{out}."
    )


def _looking(study: StudyDocument, runs: list[Run]) -> str:
    """Whether robust heatmaps agree better with the masks; of one run, whether its heatmap says anything."""
    rows, shows = energy_comparisons(study), above_controls(runs).rstrip(".")
    if rows:
        said = answer(rows).rstrip(".")
        gains = sorted(row.difference.value for row in rows if row.difference.value is not None)
        if len(rows) == 1:
            inside = words.between(rows[0].difference.interval, reveal=True)
            said += f" (difference {words.signed(gains[0])}" + (f", 95\u00a0% CI {inside})" if inside else ")")
        else:
            said += f" (differences {words.signed(gains[0])} to {words.signed(gains[-1])}; intervals below)"
        return f"{said}{'; ' + shows[0].lower() + shows[1:] if shows else ''}."
    measured = [run for run in runs if run.saliency_methods()]
    if not measured:
        return "Where the networks look was not measured."
    if len(runs) > 1:
        return "Whether robust heatmaps agree better with the infection masks was not compared."
    methods = measured[0].saliency_methods()
    name = main_method(methods)
    found = methods[name].figure(_ENERGY)
    if found.value is None:
        return f"Its {words.method(name)} heatmaps were not held against infection masks."
    inside = words.between(found.interval)
    ends = f"95\u00a0% CI {inside}; " if inside else ""
    told = f"Of the energy of its {words.method(name)} heatmaps {words.decimal(found.value)} ({ends}chance "
    told += f"{words.decimal(found.chance)}) lies inside the infection masks"
    return f"{told}{'; ' + shows[0].lower() + shows[1:] if shows else ''}."
