"""Describe the reasons to doubt an answer that its maps, perturbations and corruptions give."""

import math
from collections.abc import Sequence

from trustcxr.evaluation.trained_run import Run
from trustcxr.explain.counterfactual_view import HIGHEST, SEVERITY, Flip, Map, Spoilt
from trustcxr.registry import CORRUPTIONS, Method

SHOWN = "gradcam"  # the method of the heatmap
CHILD = "the patient is a child, and it is not known that the network was trained on images of children"
SMALL = 0.005  # a smaller change than this must not flip an answer
ALIKE = 0.9  # correlation from which a map shows no more than its baseline map


def describe_maps(maps: Sequence[Map], run: Run) -> list[str]:
    """Return why maps are no better than their baseline maps, for this image or for the run's test images.

    The first map must have been measured on the test images; of others it is told if they were.
    """
    measured = run.metrics.saliency if run.metrics else {}
    labels: dict[str, list[str]] = {}  # reason -> methods
    for saliency in maps:
        part = measured.get(saliency.method)
        reasons = [_compare(each.likeness, each.label) for each in saliency.baselines]
        if part is not None and (part.survives or not part.shows):
            reasons.append(part.survives or part.verdict)
        for text in dict.fromkeys(filter(None, reasons)):
            labels.setdefault(text, []).append(Method.parse(saliency.method).label)
    texts = [f"{', '.join(names)}: {text}" for text, names in labels.items()]
    first = measured.get(maps[0].method)
    if first is None or not (first.survives or first.verdict):
        advice = "Measure them: trustcxr explain RUN --data PATH"
        texts.append(f"it is not known that the maps of this run are better than baseline maps. {advice}")
    return texts


def _compare(likeness: float, label: str) -> str:
    if not math.isfinite(likeness):
        return "the map is even, so it shows nothing"
    return f"the map shows no more than {label} (correlation {likeness:.2f})" if likeness >= ALIKE else ""


def describe_changes(
    flip: Flip | None, corrupted: Sequence[Spoilt], predicted: int, classes: Sequence[str]
) -> list[str]:
    """Return why the answer is not stable: a small change flips it, or noise and other corruptions do."""
    texts = []
    if flip is None:
        texts.append(f"no change up to {HIGHEST:g} flips the answer: the attack may have failed, so nothing is known")
    elif flip.epsilon < SMALL:
        levels = f"{255 * flip.epsilon:.1f} grey levels of 255"
        texts.append(f"a change of at most {levels} (epsilon {flip.epsilon:.4f}) flips it to {classes[flip.predicted]}")
    if changed := [CORRUPTIONS[each.name].label for each in corrupted if each.predicted != predicted]:
        texts.append(f"it changes under {', '.join(changed)} (severity {SEVERITY} of 5)")
    return texts
