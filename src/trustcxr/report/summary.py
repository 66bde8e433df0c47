"""The figures of a study in plain words, a point per question, made from the numbers alone, and able to say no."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from trustcxr.catalogue import ATTACKS, HIT_RATE, Method
from trustcxr.report import words
from trustcxr.report.ranking import (
    Headline,
    better_than_constant,
    by_model,
    shared_constant_answer,
    ways,
)
from trustcxr.report.study_folder import Run
from trustcxr.results.documents import (
    AttackResult,
    Classification,
    Comparison,
    Figure,
    StudyDocument,
)
from trustcxr.results.gradient_masking import FGSM_OVERSTATES

_FEW = 4  # up to so many comparisons are told one by one
_ENERGY = "infection_energy"  # the measure that the summary speaks of
Numbers = Callable[[Run], Classification | AttackResult]


@dataclass(frozen=True)
class Point:
    """A question in a word or two, and its answer in full."""

    lead: str
    text: str


def clean_numbers(run: Run) -> Classification:
    """The numbers of the unperturbed test images."""
    return run.clean


def under(head: Headline, attack: str) -> Numbers:
    """A function to the numbers of one attack at the headline's epsilon."""
    return lambda run: run.attacked(attack, head.epsilon)


def best_by(runs: list[Run], numbers: Numbers) -> Run | None:
    """The run with the highest accuracy, of those better than a constant answer if there are; None without any."""
    scored = [run for run in runs if numbers(run).accuracy.value is not None]
    scored = [run for run in scored if better_than_constant(run)] or scored
    return max(scored, key=lambda run: _accuracy(run, numbers)) if scored else None


def _accuracy(run: Run, numbers: Numbers) -> float:
    return numbers(run).accuracy.value or 0.0


def named(best: Run, runs: list[Run], numbers: Numbers) -> str:
    """The best run's label, and how many others have the very same accuracy."""
    mine = _accuracy(best, numbers)
    values = [numbers(run).accuracy.value for run in runs if run is not best]
    same = sum(value is not None and abs(value - mine) < 1e-9 for value in values)
    return f"{best.label} (and {words.plural(same, 'other')} with the same figure)" if same else best.label


def figure(entry: Classification | AttackResult) -> str:
    """82.3 % (95 % CI 79.0 to 85.3, n = 570)."""
    return words.measured(entry.accuracy, entry.n)


def _masked(runs: list[Run]) -> str:
    """In how many runs gradients fail, and in how many FGSM overstates, by the verdict of each."""
    of = words.plural(len(runs), "run")
    failing = sum(run.masked is True for run in runs)
    unknown = sum(run.masked is None for run in runs)
    flattered = sum(run.alarmed(FGSM_OVERSTATES) for run in runs)
    told = [f"In {failing} of {of} gradients fail: their robust accuracy is too good to be true."] if failing else []
    if unknown:
        told.append(f"In {unknown} of {of} it could not be looked for whether gradients fail.")
    if not failing and not unknown:
        told.append("In no run was a sign of failing gradients seen.")
    if flattered:
        told.append(f"In {flattered} of {of} FGSM overstates: the stronger attack’s figure counts.")
    return " ".join(told)


def points(study: StudyDocument, runs: list[Run], head: Headline) -> list[Point]:
    """The same in detail, a point per question: what was tested, clean, each attack, heatmaps."""
    if not runs:
        return []
    found = [Point("What was tested", _scope(runs, head)), Point("X-rays as they are", _rivals(runs, clean_numbers))]
    found += [Point("Better than a constant answer?", text) for text in (_in_question(runs),) if text]
    for attack in head.attacks:
        moves = [m for m in (_moves(runs, head, attack, way) for way in ways(runs)) if m]
        about = f"{ATTACKS[attack].about} " if attack in ATTACKS and ATTACKS[attack].about else ""
        text = about + (f"{words.capital('; '.join(moves))}. " if moves else "")
        lead = f"Under {head.names[attack]}, epsilon {words.epsilon(head.epsilon)}"
        found.append(Point(lead, text + _rivals(runs, under(head, attack)) + _beware(runs, under(head, attack))))
    if head.attacks:
        found.append(Point("Are the gradients honest?", _masked(runs)))
    rows = energy_comparisons(study)
    by_others = _by_the_others(study, rows) if rows else ""
    heatmaps = " ".join(text for text in (_heatmaps(study, runs), by_others, _beside_activation(runs)) if text)
    return [*found, Point("Heatmaps", heatmaps)] if heatmaps else found


def _in_question(runs: list[Run]) -> str:
    """In how many runs clean accuracy is no more than a constant answer's, as far as is shown."""
    constant = sum(not better_than_constant(run) for run in runs)
    of = words.plural(len(runs), "run")
    text = f"In {constant} of {of} clean accuracy is not shown to be better than always giving the commonest class."
    return text if constant else ""


def _scope(runs: list[Run], head: Headline) -> str:
    sizes = sorted({n for n in (run.clean.n for run in runs) if n is not None})
    images = words.listed([words.count(n) for n in sizes])
    names = ways(runs)
    text = (
        f"{words.plural(len(by_model(runs)), 'network')}, {words.plural(len(names), 'way')} of training "
        f"({words.listed(names)}), {words.plural(len(runs), 'run')} in all, on {images} X-rays of the split "
        f"“{head.split}”."
    )
    constant = shared_constant_answer(runs)
    return text if constant is None else f"{text} The commonest class is {words.percent(constant)} of them."


def _rivals(runs: list[Run], numbers: Numbers) -> str:
    """How many runs have an interval that meets the best one's: whether it is settled who is first."""
    best = best_by(runs, numbers)
    if best is None:
        return "Not measured."
    if len(runs) == 1:
        return f"{words.capital(figure(numbers(best)))}."
    mine = numbers(best).accuracy.interval
    others = [(run, numbers(run).accuracy.interval) for run in runs if run is not best]
    known = [(run, pair) for run, pair in others if pair is not None]
    if mine is None or not others:
        return f"The best was {best.label}."
    overlapping = sum(pair[1] >= mine[0] and pair[0] <= mine[1] for _, pair in known)
    who = "that of one other run" if overlapping == 1 else f"those of {overlapping} other runs"
    said = f"its interval and {who} overlap, so who is first is not settled"
    said = said if overlapping else "no other run’s interval overlaps with its own"
    return f"The best was {best.label}; {said}.{_beside(known, mine[1], len(others) - len(known))}"


def _beside(known: list[tuple[Run, tuple[float, float]]], end: float, missing: int) -> str:
    """Who lies above the best that may be named, for a constant answer is not, and of how many nothing is known."""
    above = [run.label for run, pair in known if pair[0] > end]
    lie = "lies" if len(above) == 1 else "lie"
    text = f" Above it {lie} {words.listed(above)}, not shown to be better than a constant answer." if above else ""
    has = "has" if missing == 1 else "have"
    return text + (f" {words.plural(missing, 'other run')} {has} no interval." if missing else "")


def _beware(runs: list[Run], numbers: Numbers) -> str:
    """Why the best figure under an attack is not to be relied on; empty where no alarm says so."""
    best = best_by(runs, numbers)
    if best is None or not (best.masked or best.alarmed(FGSM_OVERSTATES)):
        return ""
    why = "its gradients fail" if best.masked else "of it FGSM overstates"
    return f" That figure is not to be relied on: {why}."


def _moves(runs: list[Run], head: Headline, attack: str, way: str) -> str:
    """`standard training: 82.3 % fell to 34.4 %`, or medians and the range where there are several such runs."""
    pairs = []
    for run in runs:
        before, after = run.clean.accuracy.value, run.attacked(attack, head.epsilon).accuracy.value
        if run.way == way and before is not None and after is not None:
            pairs.append((before, after))
    if not pairs:
        return ""
    what = "standard training" if way == words.STANDARD else f"training with {way}"
    if len(pairs) == 1:
        return f"with {what} accuracy went from {words.percent(pairs[0][0])} to {words.percent(pairs[0][1])}"
    lows = sorted(after for _, after in pairs)
    return (
        f"with {what} ({len(pairs)} runs) median accuracy went from {words.percent(median(b for b, _ in pairs))} to "
        f"{words.percent(median(lows))} (lowest {words.percent(lows[0])}, highest {words.percent(lows[-1])})"
    )


def energy_comparisons(study: StudyDocument) -> list[Comparison]:
    """The comparisons of infection energy by the main saliency method that have a difference."""
    rows = _all_energy_comparisons(study)
    main = main_method({str(row.method): row for row in rows})
    return [row for row in rows if str(row.method) == main]


def _all_energy_comparisons(study: StudyDocument) -> list[Comparison]:
    return [row for row in study.comparisons if row.measure == _ENERGY and row.difference.value is not None]


def main_method(methods: Mapping[str, object]) -> str:
    """Of several saliency methods the one that the summary speaks of: the first of the recipe."""
    return next(iter(methods), "")


def answer(rows: list[Comparison]) -> str:
    """Whether robust heatmaps agree better with the masks: yes, partly or no, with method, counts and images."""
    found = [row.outcome for row in rows]
    higher, lower, total = found.count("higher"), found.count("lower"), len(rows)
    sizes = sorted({n for n in (row.n for row in rows) if n is not None})
    told = _method_of(rows) + ([f"{words.listed([words.count(n) for n in sizes])} infected X-rays"] if sizes else [])
    images = f" ({', '.join(told)})" if told else ""
    made = "the one comparison made" if total == 1 else f"{total} comparisons"
    if higher == total:
        where = made if total == 1 else f"all {made}"
        return f"Robust heatmaps agree better with the infection masks in {where}{images}."
    if higher:
        return (
            f"Robust heatmaps agree better with the infection masks in {higher} of {made}{images}, worse in "
            f"{lower}, and {total - higher - lower} are not settled."
        )
    where = made if total == 1 else f"any of {made}"
    worse = "" if not lower else "; they agree worse" if total == 1 else f"; in {lower} they agree worse"
    return f"That robust heatmaps agree better with the infection masks was not seen in {where}{images}{worse}."


def _method_of(rows: list[Comparison]) -> list[str]:
    return [words.method(rows[0].method)] if rows and rows[0].method else []


def _by_the_others(study: StudyDocument, main: list[Comparison]) -> str:
    """In how many comparisons the heatmaps of each other method agree better: one that flatters is not left alone."""
    others: dict[str, list[Comparison]] = {}
    for row in _all_energy_comparisons(study):
        if row.method != main[0].method:
            others.setdefault(words.method(row.method), []).append(row)
    if not others:
        return ""
    told = [f"{n} in {sum(r.outcome == 'higher' for r in rows)} of {len(rows)}" for n, rows in others.items()]
    return f"Better by the other methods: {'; '.join(told)}."


def _beside_activation(runs: list[Run]) -> str:
    """What the layer that the heatmap reads shows without the network: a heatmap that is no better says little."""
    told = []
    for run in (run for run in runs if run.saliency_methods()):
        methods = run.saliency_methods()
        main = main_method(methods)
        alone, pairs = methods.get(str(Method.parse(main).control)), []
        for key, name in ((_ENERGY, "energy"), (HIT_RATE, "hit rate")):
            found = methods[main].figure(key)
            control = Figure(value=found.activation) if alone is None else alone.figure(key)
            if control.value is not None:
                pairs.append(f"{name} {_measured(found)}, control {_measured(control)}")
        told += [f"{run.label}: {'; '.join(pairs)}"] if pairs else []
    if not told or len(told) > _FEW:
        return ""  # of many runs each has it in the table of its map
    return f"Beside the control, the layer’s activation without the network: {'. '.join(told)}."


def above_controls(runs: list[Run]) -> str:
    """In how many runs the main heatmap is above both its controls and random weights, so that it says anything."""
    methods = [run.saliency_methods() for run in runs]
    judged = [part for part in (of_run[main_method(of_run)] for of_run in methods if of_run) if part.shows is not None]
    if not judged:
        return ""
    able = sum(bool(part.shows) and not part.survives for part in judged)
    of = words.plural(len(judged), "run")
    told = f"Above both its controls and the same network with random weights the heatmap is in {able} of {of}"
    if able == len(judged):
        return f"{told}."
    return f"{told}; {'in the others it says' if able else 'it says'} nothing of what the network has learnt."


def _measured(found: Figure) -> str:
    return words.decimal(found.value) + words.interval(found.interval, reveal=True)


def _heatmaps(study: StudyDocument, runs: list[Run]) -> str:
    rows, measured = energy_comparisons(study), [run for run in runs if run.saliency_methods()]
    if len(rows) <= _FEW:
        parts = [_one_comparison(row) for row in rows]
    else:
        values = sorted(row.difference.value for row in rows if row.difference.value is not None)
        ends = f"lowest {words.signed(values[0])}, highest {words.signed(values[-1])}"
        parts = [
            f"Energy inside the infection masks, robust minus standard: median {words.signed(median(values))} ({ends})."
        ]
    said = [f"By {_method_of(rows)[0]}:"] if _method_of(rows) else []
    return " ".join([*said, *parts, _beside_chance(measured)]).strip()


def _one_comparison(row: Comparison) -> str:
    found = {"higher": "it rose", "lower": "it fell", "not settled": "no difference is shown"}[row.outcome]
    if row.undone_by_correction:
        among = f" among {words.plural(row.comparisons, 'comparison')}" if row.comparisons else ""
        found += f"{among} (p corrected for their number =\u00a0{words.p_value(row.p_corrected)})"
    inside = words.between(row.difference.interval, reveal=True)
    interval = f", 95\u00a0% CI {inside}" if inside else ""
    p_value = words.p_value(row.p_value)
    p_value = p_value if p_value.startswith("<") else f"=\u00a0{p_value}"
    robust = words.way(row.defence or "robust training", row.background, row.label)
    return (
        f"{row.model or words.DASH}: energy inside the infection masks {words.decimal(row.standard)} with "
        f"standard training, {words.decimal(row.robust)} with {robust} "
        f"(difference {words.signed(row.difference.value)}{interval}, p\u00a0{p_value}, "
        f"n\u00a0=\u00a0{words.count(row.n)}): {found}."
    )


def _beside_chance(runs: list[Run]) -> str:
    methods = [run.saliency_methods() for run in runs]
    found = [of_run[main_method(of_run)].figure(_ENERGY).against_chance for of_run in methods]
    known = [v for v in found if v]
    if not known:
        return "Chance was not measured beside it." if runs else ""
    return (
        "A map without knowledge would have the mask’s share of the picture. The energy’s whole interval lies above "
        f"that in {known.count('above')} of {words.plural(len(known), 'run')}, below it in {known.count('below')}."
    )
