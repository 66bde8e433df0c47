"""audit.json in sentences: what was given, what was examined, what may be relied on and what may not."""

from trustcxr.registry import WORST_CASE, format_attack
from trustcxr.report.load import find_lowest
from trustcxr.report.terminal import format_percent, format_share
from trustcxr.statistics import format_probability
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AuditDocument, AuditPair, Draws, OperatingPoint, Share, Submitted


def describe_audit(document: AuditDocument) -> list[str]:
    """An audit, a line each."""
    given_lines, examined = describe_model(document)
    return [
        *(f"Given: {line}" for line in given_lines[:1]),
        *(f"ModelUnderTest: {line}" for line in examined),
        *(f"  note: {note}" for note in given_lines[1:]),
        *_entry_checks(document),
        "Figures, which may NOT be relied on (see below):" if document.unreliable else "May be relied on:",
        *(f"  {line}" for line in describe_results(document)),
        *describe_operating_points(document),
        "May not be relied on:",
        *(f"  {line}" for line in describe_limits(document)),
    ]


def describe_model(document: AuditDocument) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What was given, with what is worth saying of it; and what was examined, by what."""
    model, data = document.model, document.data
    weights = f", {model.parameters:,} parameters" if model.parameters else ""
    protocol = document.protocol or "other options than a fixed protocol's, so it compares with no other audit"
    what = f"{model.name} ({model.kind}{weights}), classes {', '.join(document.classes)}"
    images = f"{data.images} images of {data.name}, split {document.split}, by {protocol}"
    return (what, *model.notes), (images,)


def _entry_checks(document: AuditDocument) -> list[str]:
    marks = {True: "ok", False: "LOOK", None: "not checked"}
    return [f"  {marks[check.passed]}: {check.check}: {check.text}" for check in document.entry_checks]


def describe_results(document: AuditDocument) -> tuple[str, ...]:
    """What accuracy is left as images are, under attack, and of images that went wrong."""
    clean = document.clean
    what, common = "images", "the commonest class"
    if clean.findings:
        what, common = "decisions on findings (each finding on each image)", "the commoner answer to each finding"
    lines = [
        f"of {what} as they are, {format_share(clean.accuracy)} are answered rightly; always giving {common} would "
        f"have {format_percent(clean.constant_answer)}{format_draws(clean.draws)}",
    ]
    for row in document.attacks:
        if row.accuracy.value is not None:
            name = format_attack(row.attack, row.steps)
            left = f"at most {format_share(row.accuracy)} still are{format_draws(row.draws)}"
            lines.append(f"under {name} at epsilon {row.epsilon:g}, {left}")
    lines += [format_submitted(found) for found in document.submitted]
    if mean := document.corruptions_mean:
        worst = find_lowest(document.corruptions)
        name = worst.corruption.replace("_", " ") if worst else ""
        at_worst = f"; at worst ({name}) {format_percent(worst.accuracy.value)}" if worst else ""
        lines.append(
            f"of images that went wrong in {mean.conditions} ways, {format_share(mean.accuracy)} on average{at_worst}"
        )
    return tuple(lines)


def format_draws(found: Draws | None) -> str:
    """Of a model that answers at random, what one answer is worth, and how often every one is right; else nothing."""
    if found is None:
        return ""
    one, each = format_share(found.one), format_share(found.each)
    return f" (it answers at random: one answer is right in {one}, every one of {found.count} in {each})"


def format_submitted(found: Submitted) -> str:
    """What images that were handed in add to our own worst case."""
    return (
        f"on {found.n} images that {found.by} made at epsilon {found.epsilon:g}, {format_share(found.accuracy)} are "
        f"answered rightly; {found.found_alone} of them mislead it where ours did not, ours {found.missed} where they "
        "did not: the worse of the two counts, image by image"
    )


def describe_operating_points(document: AuditDocument) -> list[str]:
    """Errors of both kinds of each class or finding, as images are and under the attack that leaves least."""
    lines = []
    for point in document.operating_points:
        if point.attack == CLEAN:
            lines.append(f"  {point.finding}, {format_threshold(point)}: {format_rates(point)}")
            lines += [f"    {line}" for line in describe_attacked(document, point.finding)]
    return ["At the operating point:", *lines] if lines else []


def describe_attacked(document: AuditDocument, finding: str) -> list[str]:
    """A sentence of the attack that leaves least of a finding, and what that is; none where nothing was measured."""
    worst = find_hardest(document, finding)
    if worst is None:
        return []
    name = format_attack(worst.attack, worst.steps)
    return [f"under {name} at epsilon {worst.epsilon:g}{format_targeted(worst)}: {format_rates(worst)}"]


def find_hardest(document: AuditDocument, finding: str) -> OperatingPoint | None:
    """The attack under which a finding's sensitivity and specificity together are least; None without any measured."""
    attacked = [p for p in document.operating_points if p.finding == finding and p.attack != CLEAN]
    measured = [p for p in attacked if (p.sensitivity.value, p.specificity.value) != (None, None)]
    return min(measured, key=lambda point: (_youden(point), point.attack != WORST_CASE), default=None)


def _youden(point: OperatingPoint) -> float:
    return (point.sensitivity.value or 0.0) + (point.specificity.value or 0.0)


def format_targeted(point: OperatingPoint) -> str:
    """What an attack was made against, and so how far its figures reach; nothing where nobody wrote it down."""
    if point.target_class == "answer":
        return ", made against the answer and not against this threshold, at most"
    return ", made against this threshold, at most" if point.target_class else ""


def format_threshold(point: OperatingPoint) -> str:
    """Where the line is drawn, and who drew it."""
    return (
        point.origin if point.threshold is None else f"from {format_probability(point.threshold)} on ({point.origin})"
    )


def format_rates(point: OperatingPoint) -> str:
    """Sensitivity, specificity, likelihood ratios and AUROC with their intervals, in words."""
    parts = [("sensitivity", point.sensitivity), ("specificity", point.specificity), ("AUROC", point.auroc)]
    said = [f"{name} {format_share(share)}" for name, share in parts]
    return ", ".join([*said[:2], *_ratios(point), *said[2:]])


def _ratios(point: OperatingPoint) -> list[str]:
    """Both likelihood ratios with their intervals; of those that are 0 by 0, or not in the document, nothing."""
    found, noticed = point.sensitivity.value, point.specificity.value
    if found is None or noticed is None:
        return []
    parts = [
        ("LR+", point.likelihood_positive, found > 0 and noticed == 1),
        ("LR-", point.likelihood_negative, found < 1 and noticed == 0),
    ]
    return [f"{name} {_ratio(ratio)}" for name, ratio, endless in parts if endless or ratio.value is not None]


def _ratio(found: Share) -> str:
    """A ratio with its interval; of either an end without limit is infinite."""
    low, high = found.ci or (None, None)
    inside = "" if low is None else f" [{low:.3g}, {'∞' if high is None else f'{high:.3g}'}]"
    return ("∞" if found.value is None else f"{found.value:.3g}") + inside


def describe_limits(document: AuditDocument) -> tuple[str, ...]:
    """Why its figures may not be relied on, where they may not, and what they say nothing of."""
    lines: list[str] = []
    if document.unreliable:
        lines.append(document.reasons)
    if why := document.withdrawn:
        gone = {format_attack(row.attack, row.steps) for row in document.attacks if row.accuracy.value is None}
        lines.append(f"withdrawn: {', '.join(sorted(gone))}: {why}")
    if not document.attacks:
        lines.append("robustness: nothing was attacked, so nothing is known of it")
    lines += [alarm.text for alarm in document.alarms if not (document.unreliable and alarm.text in document.reasons)]
    lines += [division.text for division in document.subgroups]
    lines += [f"{found.name}: not judged: {found.why}" for found in document.findings if not found.judged]
    unknown = [f"{found.name} {found.unknown}" for found in document.findings if found.judged and found.unknown]
    lines += [f"images left out since their label is not known: {', '.join(unknown)}"] if unknown else []
    lines.append("attacks bound accuracy from above: a stronger one may leave less; other hospitals' images are others")
    return tuple(lines)


def list_pairs(found: AuditPair) -> list[dict[str, str | int | None]]:
    """Two audits side by side, for the terminal."""
    return [
        {
            "measure": row.measure,
            "A": format_percent(row.first),
            "B": format_percent(row.second),
            "B less A": f"{_signed(row.difference.value)} [{', '.join(map(_signed, row.difference.ci or ()))}]",
            "p, corrected": "-" if row.p_corrected is None else f"{row.p_corrected:.2g}",
            "differ": "yes" if row.settled else "not settled",
            "n": row.n,
        }
        for row in found.rows
    ]


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"


def describe_pairs(found: AuditPair) -> list[str]:
    """What must be known beside the rows."""
    names = zip((found.first, found.second), found.unreliable, strict=True)
    lines = [f"The audit of {name} says that its figures may not be relied on" for name, bad in names if bad]
    if found.data.partial:
        lines.append(f"Compared on {found.data.images} images at most: one of them has no score of the others")
    if found.same_pixels is False and len(found.rows) > 1:  # of scores alone there is nothing but the clean row
        lines.append(
            "The same images at different sizes: each model was attacked, and images corrupted, at its own size"
        )
    if found.withdrawn:
        lines.append(f"Not compared, since withdrawn in one of them: {', '.join(found.withdrawn)}")
    if found.other_lungs:
        lines.append(f"Not compared, since by other lung masks in one of them: {', '.join(found.other_lungs)}")
    handed = list(zip((found.first, found.second), found.submitted, strict=False))
    if len([by for _, by in handed if by]) == 1:
        ((name, by),) = [(name, by) for name, by in handed if by]
        lines.append(
            f"The worst case of {name} alone counts images that {', '.join(dict.fromkeys(by))} handed in: the other "
            "was attacked with less, and no lead of it there counts as settled"
        )
    return lines
