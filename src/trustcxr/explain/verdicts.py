"""Judge what saliency maps show of the network: they beat their baseline maps and random weights, or say nothing.

A map that stays with random weights (Adebayo et al. 2018) depends on the image or the method, not on the network.
"""

from collections.abc import Mapping

from trustcxr import registry
from trustcxr.explain.baseline_scores import SIMILARITY
from trustcxr.storage.schemas import Alarm, Lead, SaliencyDocument

SURVIVES = "survives_randomisation"
SAME_MAP = 0.9  # mean SSIM with the maps of random weights from which it counts as the same map


def set_verdict(method: str, part: SaliencyDocument) -> None:
    """Set `shows`, `verdict`, `survives` and `void` of a method that depends on the network; baseline maps have none.

    A map shows something by a measure of HEADLINE_MEASURES if two intervals lie above 0: those of its leads over the
    closest baseline map and over random weights.
    """
    base = registry.Method.parse(method).base
    over = {lead.measure: lead for lead in part.random_weights.leads} if part.random_weights else {}
    beyond = {lead.measure: lead for lead in part.beyond}
    names = [name for name in registry.HEADLINE_MEASURES if name in over and name in beyond]
    if base in registry.BASELINE_MAPS or base not in registry.SALIENCY or not names:
        return
    part.shows = [name for name in names if _above(beyond[name]) and _above(over[name])]
    both = {name: (beyond[name], over[name]) for name in names}
    if part.shows:
        leads = "; ".join(f"{_label(name)} {_format_leads(both[name])}" for name in part.shows)
        part.verdict = f"above its other baseline maps and above random weights: {leads}"
    else:
        short = "; ".join(
            f"{_label(name)} {_format_leads(tuple(x for x in both[name] if not _above(x)))}" for name in names
        )
        part.verdict = f"says nothing of what the network has learnt: {short}"
    part.survives = _survives(part, over)
    part.void = [*registry.AGAINST_MASKS] if _is_same_map(part) else list_void(part)


def list_alarms(saliency: Mapping[str, SaliencyDocument]) -> list[Alarm]:
    """Return an alarm for each method whose map stays with random weights."""
    reasons = {name: part.survives for name, part in saliency.items() if part.survives}
    return [Alarm(kind=SURVIVES, text=f"{registry.Method.parse(name).label}: {text}") for name, text in reasons.items()]


def list_void(part: SaliencyDocument) -> list[str]:
    """Return the measures that are above chance, and as high with random weights."""
    over = {lead.measure: lead for lead in part.random_weights.leads} if part.random_weights else {}
    names = [name for name in registry.HEADLINE_MEASURES if name in over and not _above(over[name])]
    names = [name for name in names if over[name].difference.interval is not None]
    return [name for name in names if part.figure(name).against_chance == "above"]


def _survives(part: SaliencyDocument, over: Mapping[str, Lead]) -> str:
    """Return why the map does not depend on what the network learnt; empty if it does."""
    void, similarity = list_void(part), part.figure(SIMILARITY).value
    reasons = []
    for name in void:
        figure, lead = part.figure(name), over[name].difference
        trained, random = f"{figure.value:.3f}", f"{figure.randomised:.3f}"
        reasons.append(
            f"{_label(name)} is {random} with random weights, {trained} with its own{_format_interval(lead.interval)}"
        )
    if _is_same_map(part):
        reasons.append(f"SSIM with the map of random weights is {similarity or 0:.2f}")
    if not reasons:
        return ""
    if _is_same_map(part):
        return f"the map survives randomising the network: {'; '.join(reasons)}: no figure of it is of the network"
    names = " and ".join(", ".join(_label(name) for name in void).rsplit(", ", 1))
    verb = "is" if len(void) == 1 else "are"
    return f"the map survives randomising the network: {'; '.join(reasons)}: {names} {verb} not of the network"


def _is_same_map(part: SaliencyDocument) -> bool:
    """Return True if the map is the same with random weights."""
    return (part.figure(SIMILARITY).value or 0.0) >= SAME_MAP


def _above(lead: Lead) -> bool:
    return lead.difference.interval is not None and lead.difference.interval[0] > 0


def _format_leads(leads: tuple[Lead, ...]) -> str:
    return ", ".join(
        f"{lead.difference.value:+.3f}{_format_interval(lead.difference.interval)} over "
        f"{registry.format_baseline(lead.baseline)}"
        for lead in leads
    )


def _format_interval(pair: tuple[float, float] | None) -> str:
    return f" [{pair[0]:+.3f}, {pair[1]:+.3f}]" if pair else ""


def _label(measure: str) -> str:
    return registry.MEASURES[measure].label
