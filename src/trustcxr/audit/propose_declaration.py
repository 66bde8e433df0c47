"""Propose the model file of a model: try the usual declarations of its input and its classes on labelled images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import perm
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from trustcxr.audit.audit_data import balanced_rows, load_pixels
from trustcxr.audit.declaration_check import list_inputs, with_input
from trustcxr.audit.formats import ExternalModel, InputSpec, WrappedModel, load, read_model_file
from trustcxr.audit.formats.init_model_file import Draft, draft_model, format_draft
from trustcxr.console import Progress
from trustcxr.data import load_dataset
from trustcxr.errors import UserError
from trustcxr.recipes.run_recipe import Listing, Splits
from trustcxr.runs.test_data import manifest_of
from trustcxr.storage import layout

IMAGES = 500  # images to try the declarations on, at most: one of each patient, the classes in turn
_LEVEL = 0.95  # of the interval of a difference, over all declarations
_ORDERS = 1000  # orders of classes to try, at most
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Reading:
    """One declaration, with the images that it is right on."""

    input: InputSpec
    outputs: tuple[int, ...]  # of each class
    right: np.ndarray  # (N,) bool

    @property
    def accuracy(self) -> float:
        """Return the share of images that it is right on."""
        return float(self.right.mean())


def propose_declaration(
    model: str | Path,
    data: Path,
    *,
    split: str | None = None,
    labels: Mapping[str, str | None] | None = None,
    listing: Listing | None = None,
    trust_code: bool = False,
) -> str:
    """Return a model file for `model`, or for the model of a model file, with the declaration that is right most often.

    Declarations are tried on images of `split`, by default on validation, else training images, else on all. Comments
    tell the accuracy of each, and how sure the best one is. Raises UserError if the model cannot be asked or the data
    not read.
    """
    draft, external = _open(model, trust_code)
    network = external.original or external.model  # its own runtime is faster than a conversion
    assert network is not None
    manifest, splits = manifest_of(data, listing, None), Splits()
    split = split or next((name for name in (splits.val, splits.train) if name in manifest.splits), None)
    dataset = load_dataset(manifest, split, size=external.size, resize="squeeze", labels=labels or None)
    order = np.random.default_rng(0).permutation(len(dataset.groups))
    _, first = np.unique(np.asarray(dataset.groups)[order], return_index=True)  # one image of each patient
    rows = np.sort(order[first])
    rows = rows[balanced_rows(dataset.labels[rows], IMAGES)]
    images, truth = load_pixels(dataset, rows, external.device), np.asarray(dataset.labels)[rows]
    declared = [external.input.model_copy(update={"range": draft.range})]  # if the file itself tells its range
    inputs = list_inputs(external.input) if draft.range is None else declared
    readings = try_readings(network, images, truth, len(dataset.classes), inputs)
    where = f"{len(rows)} images of {split}" if split else f"{len(rows)} images (do not audit on the same ones)"
    draft.remarks.append(f"tried on {where}, one of each patient: {len(readings)} declarations")
    draft.remarks.append("the best score is no proof of a declaration: ask the makers, or read their code")
    best = {_format_input(reading.input): reading for reading in reversed(readings)}  # the best order of each input
    draft.table = [
        f"{one.accuracy:6.1%}  {_format_input(one.input):<46} "
        f"{', '.join(_names(one, dataset.classes, max(one.outputs) + 1))}"
        for one in readings
        if one in readings[:2] or one is best[_format_input(one.input)]
    ]
    _fill(draft, readings, dataset.classes, truth)
    return format_draft(draft)


def try_readings(
    model: WrappedModel, images: torch.Tensor, truth: np.ndarray, classes: int, inputs: Sequence[InputSpec]
) -> list[Reading]:
    """Try each declaration of the input with each order of the classes, and return them, the best first.

    The model is asked once for each input of the images (N, 1, H, W) of class `truth` (N,).
    """
    outputs = len(model.output_spec.classes)
    if outputs < classes or perm(outputs, classes) > _ORDERS:
        raise UserError(
            f"the model has {outputs} outputs for {classes} classes of the data: their order cannot be tried. Use "
            "--label to rename or leave out classes, or leave out --data"
        )
    readings = []
    with Progress("declarations", len(inputs)) as bar, torch.no_grad():
        for spec in inputs:
            other = with_input(model, spec)
            answers = torch.cat([other(part).argmax(1) for part in images.split(_BATCH)]).cpu().numpy()
            for order in permutations(range(outputs), classes):
                readings.append(Reading(spec, order, answers == np.array(order)[truth]))
            bar.advance()
    return sorted(readings, key=lambda reading: -reading.accuracy)  # stable: the likeliest first


def paired_interval(first: np.ndarray, second: np.ndarray, level: float) -> tuple[float, float, float]:
    """Return the difference in accuracy of two declarations, and its exact interval given where they differ."""
    more, less = int((first & ~second).sum()), int((second & ~first).sum())
    if more + less == 0:
        return 0.0, 0.0, 0.0
    share = binomtest(more, more + less).proportion_ci(level)
    low, high = ((more + less) * (2 * end - 1) / len(first) for end in (share.low, share.high))
    return (more - less) / len(first), low, high


def _open(model: str | Path, trust_code: bool) -> tuple[Draft, ExternalModel]:
    """Draft the model file of a model, and open it to be asked."""
    if Path(model).suffix in layout.MODEL_FILES:
        external, declared = load(model, trust_code=trust_code), read_model_file(Path(model))
        key = next(key for key in ("source", "python", "predictions") if getattr(declared, key))
        value = str(getattr(declared, key))
        draft = Draft(key, value if key == "python" else Path(value).name, declared.input.size, declared.input.channels)
        draft.kind, draft.outputs, draft.timm = declared.output.kind, len(declared.output.classes), declared.timm
    else:
        draft, external = draft_model(model, trust_code=trust_code), None
    if draft.key == "predictions" or draft.outputs is None or draft.timm == "?":
        raise UserError(
            f"{model}: it cannot be asked as it is, so no declaration can be tried. Write a model file without --data, "
            "and give that file to --init --data; a table of scores has no input to declare"
        )
    if external is None:
        parts: dict[str, Any] = {"size": draft.size or 224, "channels": draft.channels or 1, "timm": draft.timm}
        parts["classes"] = [f"class {k + 1}" for k in range(draft.outputs)]
        parts["output"] = draft.kind or draft.guess or "logits"
        external = load(model, trust_code=trust_code, **parts)
    return draft, external


def _format_input(spec: InputSpec) -> str:
    if spec.mean is not None:
        return f"mean {list(spec.mean)}, std {list(spec.std or ())}"
    return f"range [{spec.range[0]:g}, {spec.range[1]:g}]" + (" (inverted)" if spec.range[0] > spec.range[1] else "")


def _names(reading: Reading, classes: Sequence[str], outputs: int) -> list[str]:
    """Return the name of each output."""
    of_output = dict(zip(reading.outputs, classes, strict=True))
    return [of_output.get(k, f"class {k + 1}") for k in range(outputs)]


def _fill(draft: Draft, readings: Sequence[Reading], classes: Sequence[str], truth: np.ndarray) -> None:
    """Fill in the best declaration, with a question at what is not surely better than the next best."""
    best, level, in_file = readings[0], 1 - (1 - _LEVEL) / len(readings), draft.range is not None
    draft.classes = _names(best, classes, draft.outputs or len(classes))
    draft.range, draft.mean, draft.std = best.input.range, best.input.mean, best.input.std
    for key, part, name in (("classes", "outputs", "order of the classes"), ("range", "input", "input")):
        other = next((one for one in readings if getattr(one, part) != getattr(best, part)), None)
        if other is None or (key == "range" and in_file):
            continue
        gain, low, high = paired_interval(best.right, other.right, level)
        text = f"than the best with another {name}, {100 * gain:.1f} points [{100 * low:.1f}, {100 * high:.1f}]"
        draft.remarks.append(f"the first is {'' if low > 0 else 'NOT '}surely better {text}")
        if low <= 0:
            draft.doubts[key] = f"  # ? not surely better {text}"
    if draft.doubts:
        draft.remarks.append("more images may settle it: --split with another split, or more labelled data")
    draft.remarks.append(f"the intervals hold together at {_LEVEL:.0%}: each at {level:.2%} (Bonferroni)")
    chance = float(np.bincount(truth).max()) / len(truth)
    if binomtest(int(best.right.sum()), len(truth), chance, alternative="greater").pvalue > 1 - level:
        text = f"surely better than chance ({chance:.1%})"
        draft.doubts |= dict.fromkeys(("classes", "range"), f"  # ? no declaration is {text}")
        draft.remarks.append(f"none is {text}: is it the right model for these images?")
