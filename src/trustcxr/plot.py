"""Draw results with Matplotlib: a saliency map on its image, accuracy against epsilon, ROC curves.

Each function returns a figure; a notebook shows it.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trustcxr import registry
from trustcxr.errors import UserError
from trustcxr.storage.schemas import RunDocument

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def saliency(image: Any, saliency_map: Any, mask: Any = None) -> "Figure":
    """Draw an image beside itself under its saliency map, with the outline of a mask.

    Args:
        image: (H, W) or (1, H, W), in [0, 1] or uint8.
        saliency_map: (H, W) in [0, 1], such as one of `tx.explain.grad_cam`.
        mask: (H, W), above 0 inside the annotation; None draws no outline.

    Raises UserError if the shapes differ.

    Example:
        >>> import numpy as np
        >>> import trustcxr as tx
        >>> figure = tx.plot.saliency(np.zeros((8, 8)), np.eye(8), np.eye(8) > 0)
        >>> len(figure.axes)
        2
    """
    pixels, heat = _array(image), _array(saliency_map)
    outline = None if mask is None else _array(mask) > 0
    for name, other in (("the saliency map", heat), ("the mask", outline)):
        if other is not None and other.shape != pixels.shape:
            raise UserError(f"{name} has shape {other.shape}, and the image {pixels.shape}. Give both the same size.")
    figure = _figure(7.0, 3.6)
    left, right = figure.subplots(1, 2)
    for axes, title in ((left, "image"), (right, "saliency map")):
        axes.imshow(pixels, cmap="gray")
        axes.set_title(title)
        axes.set_axis_off()
        if outline is not None and outline.any() and not outline.all():
            axes.contour(outline, levels=[0.5], colors="#00e5ff", linewidths=1.2)
    right.imshow(heat, cmap="inferno", alpha=0.5, vmin=0.0, vmax=1.0)
    return figure


def robustness(results: RunDocument | Sequence[RunDocument], attack: str | None = None) -> "Figure":
    """Draw accuracy against epsilon, with 95 % intervals, for one result or several.

    Args:
        results: of `tx.evaluate` or `tx.audit.run`.
        attack: name of an L-infinity attack; by default the one that leaves the lowest accuracy at each epsilon.

    Raises UserError if a result has no such attack.

    >>> import trustcxr as tx
    >>> from trustcxr.storage.schemas import AttackResult, Classification, RunDocument, Share
    >>> clean = Classification(accuracy=Share(value=0.9))
    >>> attack = AttackResult(attack="pgd", epsilon=0.02, accuracy=Share(value=0.4))
    >>> figure = tx.plot.robustness(RunDocument(run="mine", clean=clean, attacks=[attack]))
    >>> figure.axes[0].lines[0].get_ydata().tolist()
    [0.9, 0.4]
    """
    documents = [results] if isinstance(results, RunDocument) else list(results)
    figure = _figure(5.6, 3.8)
    axes = figure.subplots()
    for document in documents:
        name = getattr(document.model, "name", "") or document.run
        points = {0.0: document.clean.accuracy}
        for row in document.attacks:
            suits = attack in (None, row.attack) and registry.is_linf(row.attack)
            if not suits or row.accuracy.value is None or row.epsilon is None:
                continue
            lowest = points.get(row.epsilon)
            if lowest is None or lowest.value is None or row.accuracy.value < lowest.value:
                points[row.epsilon] = row.accuracy
        if len(points) == 1:
            raise UserError(f"{name}: no accuracy under {attack or 'an attack'}. Evaluate it with --attack.")
        radii = sorted(points)
        values = [points[radius].value or 0.0 for radius in radii]
        (line,) = axes.plot(radii, values, marker="o", label=name)
        ends = [points[radius].interval or (value, value) for radius, value in zip(radii, values, strict=True)]
        low, high = zip(*ends, strict=True)
        axes.fill_between(radii, low, high, color=line.get_color(), alpha=0.15, lw=0)
    axes.set_xlabel("epsilon (L-infinity, pixels in [0, 1])")
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    return figure


def roc(labels: Any, probabilities: Any, classes: Sequence[str]) -> "Figure":
    """Draw the ROC curve of each class against the others, with its area.

    Args:
        labels: (N,) integers.
        probabilities: (N, C), such as the softmax of a model's logits.
        classes: the C names.

    Raises UserError if the shapes do not fit.

    >>> import trustcxr as tx
    >>> figure = tx.plot.roc([0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], ["healthy", "ill"])
    >>> figure.axes[0].get_legend().get_texts()[1].get_text()
    'ill, AUROC 1.000'
    """
    from sklearn.metrics import auc, roc_curve

    truth, scores = np.asarray(_array(labels), dtype=int), _array(probabilities)
    if scores.shape != (len(truth), len(classes)):
        raise UserError(
            f"probabilities of shape {scores.shape} do not fit {len(truth)} labels and {len(classes)} classes. "
            "Give an array of shape (N, C)."
        )
    figure = _figure(4.6, 4.2)
    axes = figure.subplots()
    for k, name in enumerate(classes):
        if 0 < (truth == k).sum() < len(truth):
            false_positives, true_positives, _ = roc_curve(truth == k, scores[:, k])
            area = auc(false_positives, true_positives)
            axes.plot(false_positives, true_positives, label=f"{name}, AUROC {area:.3f}")
    axes.plot([0, 1], [0, 1], color="grey", lw=0.9, ls=":")
    axes.set_xlabel("1 - specificity")
    axes.set_ylabel("sensitivity")
    axes.legend(loc="lower right", frameon=False)
    return figure


def _figure(width: float, height: float) -> "Figure":
    """Return a figure of that size in inches, which a notebook shows and no window keeps open."""
    from matplotlib.figure import Figure

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=110)
            return buffer.getvalue()

    return Shown(figsize=(width, height), layout="constrained")


def _array(values: Any) -> np.ndarray:
    """Return values or a tensor as an array, without axes of length one."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values).squeeze()
