"""The summary in plain words, made from the numbers alone, and able to say no."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from trustcxr.catalogue import ATTACKS, Method
from trustcxr.report import words
from trustcxr.report.alarms import Findings
from trustcxr.report.ranking import (
    Headline,
    better_than_constant,
    by_model,
    constant_answer,
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


@dataclass(frozen=True)
class Tile:
    """One large figure: what it is, its value, its interval and count, and whose it is."""

    title: str
    value: str
    interval: str
    owner: str


def paragraph(study: StudyDocument, runs: list[Run], head: Headline, findings: Findings) -> str:
    """The answer in one paragraph: the best when clean, under each attack, and whether robust heatmaps agree better."""
    best = best_by(runs, clean_numbers)
    if best is None:
        return "This study holds no tested run yet, so there is nothing to say."
    name = named(best, runs, clean_numbers)
    parts = [f"On X-rays as they are, the most accurate run was {name}: {figure(clean_numbers(best))}."]
    constant = findings.runs_with("no_better_than_constant")
    if constant:
        of = words.plural(len(runs), "run")
        parts.append(
            f"In {constant} of {of} clean accuracy is not shown to be better than always giving the commonest class."
        )
    if not head.attacks:
        parts.append("No attack was measured, so nothing is known about robustness.")
    else:
        how = f"by at most {words.epsilon(head.epsilon)} ({head.grey_levels()} of 255 grey levels)"
        told = [text for text in (_best_under(runs, head, name) for name in head.attacks) if text]
        parts.append(f"When an attack may change every pixel {how}, the best was {'; '.join(told)}.")
        parts += [text for text in (_constant(runs, head), _masked(runs)) if text]
    rows = energy_comparisons(study)
    if rows:
        parts += [text for text in (answer(rows), _by_the_others(study, rows), _beside_activation(runs)) if text]
        parts += [text for text in (_above_controls(runs),) if text]
    elif any(run.saliency_methods() for run in runs):
        parts.append("Whether robust heatmaps agree better with the infection masks was not compared.")
    else:
        parts.append("Where the networks look was not measured.")
    return " ".join(parts)


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
    inside = words.between(entry.accuracy.interval, 1, scale=100)
    brackets = (f"95\u00a0% CI {inside}, " if inside else "") + f"n\u00a0=\u00a0{words.count(entry.n)}"
    return f"{words.percent(entry.accuracy.value)} ({brackets})"


def _best_under(runs: list[Run], head: Headline, attack: str) -> str:
    best = best_by(runs, under(head, attack))
    if best is None:
        return ""
    numbers = under(head, attack)
    return f"{named(best, runs, numbers)} under {head.names[attack]}, {figure(numbers(best))}"


def _constant(runs: list[Run], head: Headline) -> str:
    """Whether even the best run under the strongest attack is no better than a constant answer."""
    best = best_by(runs, under(head, head.strongest)) if head.strongest else None
    if best is None or head.strongest is None:
        return ""
    share, constant = under(head, head.strongest)(best).accuracy, constant_answer(best)
    low = share.interval[0] if share.interval else share.value
    if constant is None or low is None:
        return ""
    verb = "is" if low > constant else "is not shown to be"
    name = head.names[head.strongest]
    return f"Under {name} that {verb} better than always giving the commonest class ({words.percent(constant)})."


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
    for attack in head.attacks:
        moves = [m for m in (_moves(runs, head, attack, way) for way in ways(runs)) if m]
        about = f"{ATTACKS[attack].about} " if attack in ATTACKS and ATTACKS[attack].about else ""
        text = about + (f"{words.capital('; '.join(moves))}. " if moves else "")
        lead = f"Under {head.names[attack]}, epsilon {words.epsilon(head.epsilon)}"
        found.append(Point(lead, text + _rivals(runs, under(head, attack))))
    heatmaps = _heatmaps(study, runs)
    return [*found, Point("Heatmaps", heatmaps)] if heatmaps else found


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
    """How many runs have an interval that reaches the best one's: whether it is settled who is first."""
    best = best_by(runs, numbers)
    if best is None:
        return "Not measured."
    mine = numbers(best).accuracy.interval
    others = [numbers(run).accuracy.interval for run in runs if run is not best]
    if mine is None or not others:
        return f"The best was {best.label}."
    overlapping = sum(pair is not None and pair[1] >= mine[0] for pair in others)
    if not overlapping:
        return f"The best was {best.label}; no other run’s interval overlaps with its own."
    who = "that of one other run" if overlapping == 1 else f"those of {overlapping} other runs"
    return f"The best was {best.label}; its interval and {who} overlap, so who is first is not settled."


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
    for run in runs:
        methods = run.saliency_methods()
        main = main_method(methods)
        alone = methods.get(str(Method.parse(main).control))
        if alone is not None:
            pairs = [
                f"{name} {_measured(methods[main].figure(key))}, control {_measured(alone.figure(key))}"
                for key, name in ((_ENERGY, "energy"), ("pointing_hit_rate", "hit rate"))
            ]
            told.append(f"{run.label}: {'; '.join(pairs)}")
    return f"Beside the control, the layer’s activation without the network: {'. '.join(told)}." if told else ""


def _above_controls(runs: list[Run]) -> str:
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
    inside = words.between(found.interval, reveal=True)
    return words.decimal(found.value) + (f" (95\u00a0% CI {inside})" if inside else "")


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


def tiles(study: StudyDocument, runs: list[Run], head: Headline) -> list[Tile]:
    """Best clean accuracy, best under each headline attack, and in how many comparisons heatmaps got better."""
    found = [_tile("Best clean accuracy", runs, clean_numbers)]
    for attack in head.attacks[:2]:
        title = f"Best under {head.names[attack]} at {words.epsilon(head.epsilon)}"
        found.append(_tile(title, runs, under(head, attack)))
    rows = energy_comparisons(study)
    if rows:
        better = sum(row.outcome == "higher" for row in rows)
        worse = sum(row.outcome == "lower" for row in rows)
        detail = f"worse in {worse}, not settled in {len(rows) - better - worse}"
        whose = ", ".join(["infection energy", *_method_of(rows), "interval clear of zero"])
        # A control that is there must not be overlooked by who reads the large figures alone.
        whose += "; read it beside its control, below" if _beside_activation(runs) else ""
        whose += "; see what the maps show" if "says nothing" in _above_controls(runs) else ""
        found.append(Tile("Robust heatmaps agree better in", f"{better} of {len(rows)}", detail, whose))
    return [tile for tile in found if tile is not None]


def _tile(title: str, runs: list[Run], numbers: Numbers) -> Tile | None:
    best = best_by(runs, numbers)
    if best is None:
        return None
    entry = numbers(best)
    inside = words.between(entry.accuracy.interval, 1, scale=100)
    detail = (f"95\u00a0% CI {inside}, " if inside else "") + f"n = {words.count(entry.n)}"
    return Tile(title, words.percent(entry.accuracy.value), detail, best.label)
