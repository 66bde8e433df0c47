"""Judge an audit from its document: is the measurement sound, and how good is the model?

A sound measurement has passed every grave check, has no sign of failing gradients, and was made on a model that is
better than a constant answer. The limits of the answers about the model are explained in `docs/reference/audit.md`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

from trustcxr.audit.subgroups import OTHERS, SMALLEST
from trustcxr.evaluation.gradient_masking import FAILING
from trustcxr.registry import CORRUPTIONS, GREY_LEVELS, LUNGS_ONLY, is_linf
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AttackResult, AuditDocument, CorruptionsMean, Share, Statement, Verdict
from trustcxr.storage.schemas.run_document import CONSTANT

EPSILON = 0.02  # at which a model must be robust
KEPT_UNDER_ATTACK = 0.8  # least share of the clean accuracy that the worst case leaves
KEPT_WHEN_CORRUPTED = 0.9  # least share of the clean accuracy that ordinary damage leaves
WORSE = 0.05  # accuracy by which no group may be below all others
CALIBRATION_ERROR = 0.05  # largest error of a calibrated model, without the part that is chance
COMMONEST = "always giving the commonest class would score"
_OPEN = {False: "NOT MEASURED", True: "NOT SETTLED"}  # by whether there are figures


class Answer(NamedTuple):
    """An answer about the model: `figures` is the sentence before the colon, `yes` and `no` are the words after it.

    `stands`: "no" holds although the measurement is not sound, since an attack broke right answers.
    """

    question: str
    met: bool | None
    figures: str
    yes: str
    no: str
    measured: bool = True
    stands: bool = False

    def statement(self, *, sound: bool) -> Statement:
        """Return the answer as in audit.json. A measurement that is not sound settles nothing, but what `stands`."""
        stands = sound or (self.met is False and self.stands)
        met = self.met if stands else None
        word = _OPEN[self.measured] if met is None else self.yes if met else self.no
        if not sound and self.met is not None:
            word += ", although the measurement is not sound" if stands else ", since the measurement is not sound"
        return Statement(question=self.question, met=met, text=f"{self.figures}: {word}.")


def judge(document: AuditDocument, criteria: Iterable[Answer] = ()) -> Verdict:
    """Return the verdict of an audit with its entry checks; the answers to acceptance criteria come last."""
    reasons = list(dict.fromkeys(_reasons(document)))
    questions = (_accurate, _robust, _stable, _lungs, _subgroups, _calibrated)
    answers = [*(answer(document) for answer in questions), *criteria]
    sound = not reasons
    return Verdict(sound=sound, reasons=reasons, model=[answer.statement(sound=sound) for answer in answers])


def _reasons(document: AuditDocument) -> Iterator[str]:
    """Yield why the measurement is not sound: grave checks, an accuracy of a constant answer, failing gradients."""
    for check in document.entry_checks:
        if check.grave and check.passed is not True:
            yield f"{check.check}{'' if check.passed is False else ' not checked'}: {check.text}"
    if document.clean.accuracy.value is None:
        yield "accuracy on clean images was not measured"
    constant = [alarm.text for alarm in document.alarms if alarm.kind == CONSTANT and not document.findings]
    intervals = [point.auroc.interval for point in document.operating_points if point.attack == CLEAN]
    if document.findings and intervals and all(pair is None or pair[0] <= 0.5 for pair in intervals):
        constant = ["no finding is shown to be ranked better than by chance"]
    yield from constant
    yield from _gradient_reasons(document, constant=bool(constant))


def _gradient_reasons(document: AuditDocument, *, constant: bool) -> Iterator[str]:
    """Yield signs of failing gradients, or why none were sought; a `constant` model cannot be attacked."""
    if document.withdrawn:
        yield f"figures under attack withdrawn: {document.withdrawn}"
    masking, signs = document.masking, list[str]()
    if masking is not None:
        signs = [sign.text for sign in masking.signs if sign.kind in FAILING]
        signs = signs or (masking.reasons if masking.masked else [])
        if masking.at_random:
            signs.append("its outputs are random, and an attack sees the draw that it is tested on")
    alarms = [alarm.text for alarm in document.alarms if alarm.kind in FAILING]
    signs += [text for text in alarms if not any(text.startswith(sign) for sign in signs)]
    yield from (f"gradients fail: {sign}" for sign in signs)
    unknown = masking is None or masking.masked is None
    if document.attacks and unknown and not (signs or constant or document.withdrawn):
        why = "; ".join(masking.reasons) if masking is not None else ""
        yield "it is not known whether gradients fail" + (f": {why}" if why else "")


def _accurate(document: AuditDocument) -> Answer:
    """Compare clean accuracy with a constant answer and the makers' claim; findings also by their AUROC."""
    clean, claim = document.clean, document.model.reported.clean
    accuracy, least, base = clean.accuracy, clean.constant_answer, clean.accuracy
    text = f"Accuracy is {_text(accuracy)} on {_images(clean.n)}; {COMMONEST} {_percent(least)}"
    yes, no = "BETTER THAN A CONSTANT ANSWER", "NOT BETTER THAN A CONSTANT ANSWER"
    if document.findings:
        base, least = clean.auroc_macro, 0.5
        text = f"AUROC is {_text(base)} on average over {clean.findings} findings. {_text(accuracy)} of {clean.n} "
        text += f"decisions are right, {_percent(clean.constant_answer)} by the commoner answer to each finding"
        yes, no = "BETTER THAN CHANCE", "NOT BETTER THAN CHANCE"
    if base.interval is None or least is None:
        return Answer("accurate", None, text, yes, no, measured=base.value is not None)
    met = base.interval[0] > least
    if claim is not None:
        source = f" ({document.model.reported.paper})" if document.model.reported.paper else ""
        text += f"; its makers claim {_percent(claim)}{source}"
        if met and accuracy.interval is not None and accuracy.interval[1] < claim:
            met, no = False, "LESS THAN CLAIMED"
        yes += " AND NOT BELOW THE CLAIM"
    return Answer("accurate", met, text, yes, no)


def _robust(document: AuditDocument) -> Answer:
    """Compare the worst case up to EPSILON with the clean accuracy of the same images and a constant answer."""
    rows, yes, no = _worst_by_epsilon(document), "ROBUST", "NOT ROBUST"
    before, constant = _before(document, rows[-1] if rows else AttackResult())
    if not rows or before.value is None:
        why = "its figures were withdrawn" if document.withdrawn else "no attack was run"
        return Answer("robust", None, f"How it answers under attack is not known: {why}", yes, no, measured=False)
    bound = max(KEPT_UNDER_ATTACK * before.value, constant)
    reached = rows[-1].is_at(EPSILON)
    met = _above([_share_of(document, row) for row in rows], bound)
    met = None if met and not reached else met
    worst, others = rows[-1], rows[-2::-1]
    text = f"{_describe_change(document, before, worst)} when each pixel may change by "
    text += f"{_grey(worst)} of {GREY_LEVELS} grey levels ({worst.effort.name}"
    text += "".join(f"; {_text(_share_of(document, row))} by {_grey(row)}" for row in others) + f"); {_asked(bound)}"
    useful = before.interval is not None and before.interval[0] > constant
    return Answer("robust", met, text, yes, no, stands=useful)


def _worst_by_epsilon(document: AuditDocument) -> list[AttackResult]:
    """Return the attack that leaves least at each L-infinity epsilon up to EPSILON, the smallest epsilon first."""
    rows = [row for row in document.attacks if row.epsilon and row.epsilon <= EPSILON + 1e-9 and is_linf(row.attack)]
    values = [(_share_of(document, row).value, row) for row in rows]
    descending = sorted(((value, row) for value, row in values if value is not None), key=lambda pair: -pair[0])
    worst = {row.epsilon: row for _, row in descending}  # the last of each epsilon
    return sorted(worst.values(), key=lambda row: row.epsilon or 0.0)


def _stable(document: AuditDocument) -> Answer:
    """Compare the mean accuracy under corruptions with the clean accuracy of the same images."""
    mean, yes, no = document.corruptions_mean, "STABLE", "NOT STABLE"
    clean, constant = _before(document, mean or CorruptionsMean())
    if mean is None or _share_of(document, mean).value is None or clean.value is None:
        text = "How it answers on noisy, blurred or wrongly exposed images is not known: none was shown to it"
        return Answer("stable", None, text, yes, no, measured=False)
    bound = max(KEPT_WHEN_CORRUPTED * clean.value, constant)
    met = _above([_share_of(document, mean)], bound)
    text = f"{_describe_change(document, clean, mean)} on average over "
    text += f"{mean.conditions} kinds of ordinary damage"
    measured = [row for row in document.corruptions if row.accuracy.value is not None]
    if measured and not document.findings:
        worst = min(measured, key=lambda row: row.accuracy.value or 0.0)
        entry = CORRUPTIONS.get(worst.corruption)
        text += f" (worst: {entry.label if entry else worst.corruption}, {_text(worst.accuracy)})"
    text += f"; {_asked(bound)}"
    return Answer("stable", met, text, yes, no)


def _lungs(document: AuditDocument) -> Answer:
    """Compare accuracy without the lungs with a constant answer, and accuracy by the lungs alone."""
    yes, no = "READS THE LUNGS", "READS MORE THAN THE LUNGS"
    hidden = document.without_lungs
    if hidden is None or hidden.accuracy.interval is None or hidden.constant_answer is None:
        text = "Where it looks is not known: no image could be shown without its lungs"
        return Answer("lungs", None, text, yes, no, measured=False)
    text = f"With the lungs hidden, accuracy is {_text(hidden.accuracy)} of {_images(hidden.n, document)}; "
    text += f"{COMMONEST} {_percent(hidden.constant_answer)}"
    views = [document.shortcuts[name] for name in LUNGS_ONLY if name in document.shortcuts]
    alone, met = [view for view in views if view.accuracy.interval is not None], None
    if alone:
        best = max(alone, key=lambda view: view.accuracy.value or 0.0)
        text += f"; with the lungs alone it is {_text(best.accuracy)}"
        met = True if best.constant_answer is not None and _above([best.accuracy], best.constant_answer) else None
    if hidden.accuracy.interval[0] > hidden.constant_answer:
        met = False
    return Answer("lungs", met, text, yes, no)


def _subgroups(document: AuditDocument) -> Answer:
    """Find the group of one value whose accuracy is most below that of all others, after correction for all groups."""
    yes, no = f"NO GROUP IS WORSE BY MORE THAN {_percent(WORSE)}", "WORSE FOR THIS GROUP"
    groups = [
        (group.gap.value, *group.gap.interval, division.column, group)
        for division in document.subgroups
        for group in division.groups
        if group.gap.value is not None and group.gap.interval is not None
        if group.name != OTHERS and (group.images or 0) >= SMALLEST
    ]
    if not groups:
        text = f"For whom it is worse is not known: no column of the data has a group of {SMALLEST} images"
        return Answer("subgroups", None, text, yes, no, measured=False)
    settled = [one for one in groups if one[-1].settled and one[0] < 0]
    gap, low, high, column, worst = min(settled or groups, key=itemgetter(0))
    text = f"Accuracy is {_text(worst.accuracy)} on {_images(worst.n, document)} with {column} = {worst.name}, "
    text += f"{100 * gap:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] against all others; "
    text += f"{len(groups)} groups were compared"
    bounded = all(lowest >= -WORSE for _, lowest, *_ in groups)
    return Answer("subgroups", False if settled else bounded or None, text, yes, no)


def _calibrated(document: AuditDocument) -> Answer:
    """Compare the calibration error, from which the part that is chance was removed, with CALIBRATION_ERROR."""
    clean, yes, no = document.clean, "CALIBRATED", "NOT CALIBRATED"
    if clean.ece.interval is None:
        return Answer("calibrated", None, "Its calibration error is not known", yes, no, measured=False)
    low, high = clean.ece.interval
    met = True if high <= CALIBRATION_ERROR else False if low > CALIBRATION_ERROR else None
    text = f"Stated confidence and accuracy differ by {_text(clean.ece)} on {_images(clean.n, document)}, beyond what "
    text += f"a calibrated model of as many images would have; at most {_percent(CALIBRATION_ERROR)} is allowed"
    return Answer("calibrated", met, text, yes, no)


def _above(shares: Sequence[Share], bound: float) -> bool | None:
    """Return True if all intervals are above a bound, False if one is below it, and None if neither is settled."""
    intervals = [share.interval or (-math.inf, math.inf) for share in shares]
    if any(high <= bound for _, high in intervals):
        return False
    return True if all(low > bound for low, _ in intervals) else None


def _share_of(document: AuditDocument, row: AttackResult | CorruptionsMean) -> Share:
    """Return the accuracy of a condition; of findings it is balanced, since "absent" for all is often right."""
    return row.balanced_accuracy if document.findings else row.accuracy


def _before(document: AuditDocument, row: AttackResult | CorruptionsMean) -> tuple[Share, float]:
    """Return the clean accuracy of the images of a condition, and that of a constant answer to them."""
    clean = document.clean
    if document.findings:
        part = row.clean_balanced_accuracy
        return clean.balanced_accuracy if part.value is None else part, 0.5
    constant = clean.constant_answer if row.constant_answer is None else row.constant_answer
    return clean.accuracy if row.clean.value is None else row.clean, constant or 0.0


def _describe_change(document: AuditDocument, before: Share, row: AttackResult | CorruptionsMean) -> str:
    after, name = _share_of(document, row), "balanced accuracy" if document.findings else "accuracy"
    start, change = f"On {_images(row.n, document)}, {name}", (after.value or 0.0) - (before.value or 0.0)
    if not change:
        return f"{start} stays at {_text(after)}"
    return f"{start} {'falls' if change < 0 else 'rises'} from {_text(before)} to {_text(after)}"


def _asked(bound: float) -> str:
    return f"more than {_percent(bound)} is asked, by the whole interval"


def _text(share: Share) -> str:
    """Return a figure with its interval."""
    ends = "" if share.interval is None else f" [{share.interval[0]:.1%}, {share.interval[1]:.1%}]"
    return ("not known" if share.value is None else f"{share.value:.1%}") + ends


def _percent(value: float | None) -> str:
    return "not known" if value is None else f"{value:.0%}" if round(value, 6) == round(value, 2) else f"{value:.1%}"


def _grey(row: AttackResult) -> str:
    return f"{GREY_LEVELS * (row.epsilon or 0.0):.2g}"


def _images(count: int | None, document: AuditDocument | None = None) -> str:
    """Return the number of images; of decisions, if a model answers several findings."""
    unit = "decisions" if document is not None and document.findings else "images"
    return unit if count is None else f"{count:,} {unit}"
