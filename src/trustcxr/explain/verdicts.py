"""What a map may be said to show of the network: it is above its controls and above random weights, or it says nothing.

A map that stays when the network's weights are random (Adebayo et al. 2018) is of the image, or of the method: what it
hits, the network has not found.
"""

from collections.abc import Mapping

from trustcxr.explain.baseline_scores import SIMILARITY
from trustcxr.registry import AGAINST_MASKS, CONTROLS, HEADLINE_MEASURES, MEASURES, SALIENCY, Method, format_control
from trustcxr.storage.schemas import Alarm, Lead, SaliencyDocument

SURVIVES = "survives_randomisation"
ALIKE = 0.9  # mean SSIM with the maps of random weights, from which on it is the same map


def set_verdict(method: str, part: SaliencyDocument) -> None:
    """Fill in `shows`, `verdict` and `survives` of a method that looks at the network; controls have none.

    By each measure of HEADLINE_MEASURES a map shows something where the whole interval of its lead over the closest
    of its other controls, and that of its lead over random weights, lie above 0.
    """
    base = Method.parse(method).base
    over = {lead.measure: lead for lead in part.random_weights.leads} if part.random_weights else {}
    beyond = {lead.measure: lead for lead in part.beyond}
    told = [name for name in HEADLINE_MEASURES if name in over and name in beyond]
    if base in CONTROLS or base not in SALIENCY or not told:
        return
    part.shows = [name for name in told if _above(beyond[name]) and _above(over[name])]
    both = {name: (beyond[name], over[name]) for name in told}
    if part.shows:
        leads = "; ".join(f"{_label(name)} {_led(both[name])}" for name in part.shows)
        part.verdict = f"above its other controls and above random weights: {leads}"
    else:
        short = "; ".join(f"{_label(name)} {_led(tuple(x for x in both[name] if not _above(x)))}" for name in told)
        part.verdict = f"says nothing of what the network has learnt: {short}"
    part.survives = _survives(part, over)
    part.void = [*AGAINST_MASKS] if _alike(part) else voided(part)


def alarms(saliency: Mapping[str, SaliencyDocument]) -> list[Alarm]:
    """An alarm for each method whose map stays when the network is random."""
    told = {name: part.survives for name, part in saliency.items() if part.survives}
    return [Alarm(kind=SURVIVES, text=f"{Method.parse(name).label}: {text}") for name, text in told.items()]


def voided(part: SaliencyDocument) -> list[str]:
    """The measures that are above chance, and as high with random weights."""
    over = {lead.measure: lead for lead in part.random_weights.leads} if part.random_weights else {}
    return [
        n for n in HEADLINE_MEASURES if n in over and part.figure(n).against_chance == "above" and not _above(over[n])
    ]


def _survives(part: SaliencyDocument, over: Mapping[str, Lead]) -> str:
    """Why the map is not of what the network has learnt; empty where it is."""
    void, alike = voided(part), part.figure(SIMILARITY).value
    reasons = []
    for name in void:
        figure, lead = part.figure(name), over[name].difference
        trained, random = f"{figure.value:.3f}", f"{figure.randomised:.3f}"
        reasons.append(f"{_label(name)} is {random} with random weights, {trained} with its own{_ends(lead.interval)}")
    if _alike(part):
        reasons.append(f"SSIM with the map of random weights is {alike or 0:.2f}")
    if not reasons:
        return ""
    if _alike(part):
        return f"the map survives randomising the network: {'; '.join(reasons)}: no figure of it is of the network"
    names = " and ".join(", ".join(_label(name) for name in void).rsplit(", ", 1))
    verb = "is" if len(void) == 1 else "are"
    return f"the map survives randomising the network: {'; '.join(reasons)}: {names} {verb} not of the network"


def _alike(part: SaliencyDocument) -> bool:
    """Whether the map is the same with random weights."""
    return (part.figure(SIMILARITY).value or 0.0) >= ALIKE


def _above(lead: Lead) -> bool:
    return lead.difference.interval is not None and lead.difference.interval[0] > 0


def _led(leads: tuple[Lead, ...]) -> str:
    return ", ".join(
        f"{lead.difference.value:+.3f}{_ends(lead.difference.interval)} over {format_control(lead.control)}"
        for lead in leads
    )


def _ends(pair: tuple[float, float] | None) -> str:
    return f" [{pair[0]:+.3f}, {pair[1]:+.3f}]" if pair else ""


def _label(measure: str) -> str:
    return MEASURES[measure].label
