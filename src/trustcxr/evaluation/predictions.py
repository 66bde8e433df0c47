"""Predict a data set: clean, attacked, corrupted and masked images.

A random model is judged by the mean over draws, in the worst case by the worst draw: an attacker may try repeatedly.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from trustcxr import attacks
from trustcxr.attacks import base
from trustcxr.attacks.adaptive import AttackView
from trustcxr.console import Progress, log
from trustcxr.corruptions import corrupt
from trustcxr.data.dataset import Dataset, has_filled_mask
from trustcxr.data.loader import loader, to_pixels
from trustcxr.data.lung_masks import soften
from trustcxr.errors import NotFiniteError, UserError
from trustcxr.evaluation import gradient_masking, parallel
from trustcxr.evaluation.trained_run import AnyModel, Run, load_run
from trustcxr.models.classifier import LEVEL
from trustcxr.models.preserve_state import is_randomised
from trustcxr.recipes.evaluation_recipe import AttackRecipe, CorruptionsRecipe, check_repeats
from trustcxr.recipes.parsing import validate
from trustcxr.registry import ATTACKS, BLACK_BOX, GROUPINGS, STOCHASTIC_DRAWS, VIEWS, WORST_CASE
from trustcxr.storage import atomic, layout
from trustcxr.storage.prediction_table import CLEAN, RIGHT_SHARE, Condition

Options = dict[str, Any]  # of an attack, by name; or columns of the table
View = tuple[Condition, np.ndarray, Tensor]  # some images under one condition: rows of the data, their pixels
Keep = Callable[[Condition, np.ndarray, Tensor, np.ndarray], None]  # condition, rows of the data, pixels, logits
CarryOut = Callable[[AttackRecipe, Tensor, Tensor, float, Options], Tensor]  # runs an attack on some images
PROBED = 128  # most images whose input gradient is measured
_SEED = 2_311_142_270  # of the first batch of a random model
_CONDITION = ("attack", "epsilon", "steps", "severity")
# Further columns, of a condition without them.
_DETAILS: Options = {"moved": np.nan, "broken_by": "", "gradient": np.nan, "queries": 0, "rounded": False}
SILHOUETTE = (0.25, 0.65)  # grey of the lungs and of all else where only their shape is shown, as in an image
BORDER = 24 / 256  # width of the frame that is left where the border alone is shown, as a share of the side
SWEEP = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)  # epsilons of a whole curve


class OverDraws(AttackView):
    """A random model that returns the mean of STOCHASTIC_DRAWS draws."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, draws=STOCHASTIC_DRAWS)

    def each(self, images: Tensor) -> Tensor:
        """Return the logits of each draw, (draws, B, C), for images (B, 1, H, W) in [0, 1].

        The seed is derived from torch's random state, so an attack that starts from the same state has not seen the
        draws.
        """
        torch.manual_seed(int(torch.randint(2**31, ())))
        return torch.stack([self.model(images).float() for _ in range(self.draws)])


@dataclass(frozen=True)
class _BatchPlan:
    """Conditions of each batch: attacks, corruptions at their severities, views."""

    run: AnyModel
    dataset: Dataset
    about: pd.DataFrame
    attacks: Sequence[AttackRecipe]
    corruptions: Sequence[tuple[str, int]]
    views: bool
    carry_out: CarryOut | None
    clean: bool = True
    random: bool = False
    keep: Keep | None = None

    @property
    def steps(self) -> int:
        """Number of conditions of a batch, without views, which take no time."""
        return self.clean + sum(len(attack.epsilons) for attack in self.attacks) + len(self.corruptions)

    def pixels(self, raw: Tensor) -> Tensor:
        """Turn raw images into float32 in [0, 1] on the model's device."""
        return to_pixels(raw.to(self.run.device)).contiguous(memory_format=torch.channels_last)

    def predict(self, number: int, raw: Tensor, labels: Tensor, rows: np.ndarray, bar: Progress) -> pd.DataFrame:
        """Return the rows of one batch: raw pixels (B, H, W), labels (B,), `rows` of the data (B,)."""
        tables = []
        with attacks.preserve_state(self.run.model) if self.random else nullcontext():
            if self.random:  # so that resumed work is the same
                torch.manual_seed(_SEED + number)
            for (condition, shown, pixels), details in self._versions(number, self.pixels(raw), labels, rows):
                name, epsilon, _, severity = condition
                logits, drawn = _final_logits(self.run, pixels, labels, at_worst=name == WORST_CASE)
                columns: Options = dict(zip(_CONDITION, condition, strict=True))
                columns |= _DETAILS | drawn | details
                tables.append(self.about.iloc[shown].assign(**columns, logits=list(logits)))
                if self.keep is not None and not self.random:
                    self.keep(condition, shown, pixels, logits)
                if name not in VIEWS:
                    bar.advance(note=f"{name} {severity or epsilon:g}")
        return pd.concat(tables, ignore_index=True)

    def _versions(
        self, number: int, images: Tensor, labels: Tensor, rows: np.ndarray
    ) -> Iterator[tuple[View, Options]]:
        """Yield the images of a batch under each condition, with its details as columns of the table."""
        run, names = self.run, self.about["sample_id"].iloc[rows].tolist()
        if self.clean:
            yield ((CLEAN, 0.0, 0, 0), rows, images), {"gradient": self._gradients(images, labels, rows)}
        arguments = labels.to(run.device), self.attacks
        yield from _attacked(run, rows, images, *arguments, seed=number, carry_out=self.carry_out)
        for name, severity in self.corruptions:
            changed = corrupt(images, name, severity, keys=names)  # an image's own draw, in any data set and batch
            yield ((name, 0.0, 0, severity), rows, changed.contiguous(memory_format=torch.channels_last)), {}
        if self.views:
            yield from ((view, {}) for view in generate_views(self.dataset, rows, images))

    def _gradients(self, images: Tensor, labels: Tensor, rows: np.ndarray) -> np.ndarray | float:
        """Measure the input gradient on an even part of the images, if there is a gradient attack."""
        if all(attack.name in BLACK_BOX for attack in self.attacks):
            return np.nan
        probed = torch.from_numpy(rows % math.ceil(len(self.dataset) / PROBED) == 0)
        return gradient_masking.measure_input_gradients(self.run.model, images, labels, probed)


def predict(
    run: AnyModel,
    dataset: Dataset,
    conditions: Sequence[AttackRecipe] = (),
    *,
    corruptions: CorruptionsRecipe | None = None,
    views: bool = True,
    clean: bool = True,
    batch_size: int = 64,
    carry_out: CarryOut | None = None,
    parts: Path | None = None,
    at_once: bool = True,
    keep: Keep | None = None,
    title: str = "",
) -> pd.DataFrame:
    """Return logits of every image, clean and under every attack and epsilon: the table of predictions.parquet.

    Further columns: `moved` (largest change of a pixel), `broken_by` (worst-case: the attack that succeeded),
    `gradient` (size of the input gradient, on a part of the clean images), `surrogate` (transfer: its run), `queries`
    (of Square, in the worst case too), `rounded` (whether the worse of floats and of 8-bit files counts). A random
    model (`OverDraws`) has `right_share`, the share of correct draws; its logits are the mean, but those of
    the worst draw under worst-case.

    `corruptions` are in the column `attack` too, at epsilon 0, with their `severity`. So are `views`
    (`generate_views`), if the data has lung masks. The label of `lungs_on_another_image` is that of the lungs: a model
    that relies on the background scores below chance. `carry_out` makes adversarial images (attack, images, labels,
    epsilon, options) in another way. `keep` gets each batch of images with its logits, unless the model is random.
    `parts` is a folder of finished batches, for resuming. UserError for a repeated condition.
    """
    check_repeats(conditions)
    named = corruptions.conditions() if corruptions else ()
    plan = _BatchPlan(run, dataset, about_images(dataset), conditions, named, views, carry_out, clean, keep=keep)
    batches = loader(dataset, batch_size)
    first = plan.pixels(torch.from_numpy(dataset.batch(np.arange(min(batch_size, len(dataset))))))
    plan = replace(plan, random=is_randomised(run.model, first[:1]))
    if plan.random and conditions and not isinstance(run.model, OverDraws):
        log(f"{run.name} has random outputs: attack and test see the same draw, so its robustness is overestimated")
    threads = parallel.threads_for(run.model, first, len(batches)) if at_once else 1
    title = f"{title or f'evaluating {run.name}'} on {len(dataset)} images"
    with Progress(title, len(batches) * plan.steps) as bar:

        def work(batch: tuple[int, Any]) -> pd.DataFrame | Path:
            number, (raw, labels, indices) = batch
            path = None if parts is None else parts / f"{number:06d}.parquet"
            if path is not None and path.is_file():
                bar.skip(plan.steps)
                return path
            whole = plan.predict(number, raw, labels, indices.numpy(), bar)
            if path is None:
                return whole
            atomic.write_table(path, whole)
            return path  # a table in memory would lie between the freed tensors of a batch, so that others need more

        done = list(parallel.parallel_map(work, enumerate(batches), threads=threads, model=run.model))
        table = pd.concat((atomic.read_table(p) if isinstance(p, Path) else p for p in done), ignore_index=True)
    numbers = table.groupby(list(_CONDITION), sort=False).ngroup()  # of the conditions, in their order
    table = table.iloc[np.argsort(numbers, kind="stable")].reset_index(drop=True)
    if views and (empty := int(dataset.has_mask("lung").sum()) - int((table["attack"] == VIEWS[0]).sum())):
        log(f"{empty} of {len(dataset)} images have an empty lung mask: left out of the views")
    return table


def about_images(dataset: Dataset) -> pd.DataFrame:
    """Describe every image: sample_id, group, source, split, class, label, and other columns that divide the data."""
    also = [name for name in GROUPINGS if name in dataset.table and dataset.table[name].notna().any()]
    groupings = {name: dataset.table[name].fillna("").astype(str).to_numpy() for name in also if name != "source"}
    return pd.DataFrame(
        {
            "sample_id": dataset.sample_ids,
            "group": dataset.groups,
            "source": dataset.table["source"].fillna("").astype(str).to_numpy(),
            "split": dataset.splits,
            "class": [dataset.classes[k] for k in dataset.labels],
            "label": np.asarray(dataset.labels),
            **groupings,
        }
    )


def _attacked(
    run: AnyModel,
    rows: np.ndarray,
    images: Tensor,
    labels: Tensor,
    conditions: Sequence[AttackRecipe],
    *,
    seed: int,
    carry_out: CarryOut | None,
) -> Iterator[tuple[View, Options]]:
    """Yield every attack at every epsilon, the smallest first, so that worst-case starts from earlier images."""
    earlier: list[tuple[float, Tensor]] = []  # L-infinity radius, perturbed images
    for attack in sorted(conditions, key=lambda attack: attack.name == WORST_CASE):
        options: Options = dict(attack.options())
        if attack.entry.stops_when_wrong:
            options["stop_when_wrong"] = True
        if attack.entry.seeded:
            options["seed"] = seed
        made_on: Options = {}
        if attack.surrogate is not None:
            other = _surrogate(run, attack.surrogate)
            options["surrogate"], made_on["surrogate"] = other.model, other.name
        for epsilon in sorted(attack.epsilons):
            if attack.name == WORST_CASE:
                options["start"] = [images_ for radius, images_ in earlier if radius <= epsilon]
            broken: Sequence[str] = ()
            if carry_out is not None:
                perturbed = carry_out(attack, images, labels, epsilon, dict(options))
            elif attack.name == WORST_CASE:
                report = attacks.worst_case_report(run.model, images, labels, epsilon=epsilon, **options)
                perturbed, broken = report.images, [name or "" for name in report.broken_by]
            else:
                perturbed = attacks.get(attack.name)(run.model, images, labels, epsilon=epsilon, **options)
            base.check_result(attack.name, images, perturbed, epsilon, attack.entry.norm)
            moved = (perturbed - images).flatten(1).abs().amax(1).float().cpu().numpy()
            both = attack.name == WORST_CASE or (carry_out is not None and attack.entry.norm == "linf")
            details = {"moved": moved, "broken_by": broken or "", "queries": attack.queries or 0, "rounded": both}
            yield ((attack.name, epsilon, attack.effort, 0), rows, perturbed), details | made_on
            if attack.entry.norm == "linf":
                earlier.append((epsilon, perturbed))


def _surrogate(run: AnyModel, folder: str) -> Run:
    """Return the run that transfer attacks; UserError unless it has the classes of `run`."""
    surrogate = _loaded(folder, on=str(run.device))
    if surrogate.classes != run.classes:
        listed = f"{', '.join(surrogate.classes)} instead of {', '.join(run.classes)}"
        raise UserError(f"{folder}: not a surrogate for {run.name}: its classes are {listed}")
    return surrogate


_loaded = lru_cache(maxsize=1)(load_run)  # every batch needs it


def _final_logits(run: AnyModel, images: Tensor, labels: Tensor, *, at_worst: bool) -> tuple[np.ndarray, Options]:
    """Return logits (B, C), and for a random model the column RIGHT_SHARE; UserError for NaN or infinity."""
    # Not inference_mode: TorchScript refuses its tensors after an attack.
    with torch.no_grad(), attacks.preserve_state(run.model):
        logits, right_share = predict_logits(run.model, images, labels.to(run.device), at_worst=at_worst)
    try:
        base.check_finite(logits)
    except NotFiniteError as problem:
        raise NotFiniteError(f"{run.name}: {problem}, so nothing can be measured. Train it again") from None
    return logits.cpu().numpy(), {} if right_share is None else {RIGHT_SHARE: right_share}


def conditions(
    names: Sequence[str],
    epsilons: Sequence[float],
    *,
    steps: int | None = None,
    queries: int | None = None,
    surrogate: str | Path | None = None,
) -> tuple[AttackRecipe, ...]:
    """Build attack recipes from names and radii of the command line; an option goes to the attacks that take it.

    An unused option is logged.
    """
    typed = {"steps": steps, "queries": queries, "surrogate": None if surrogate is None else str(surrogate)}
    if surrogate is not None and "transfer" not in names:
        raise UserError(f"surrogate {surrogate}: only the attack transfer has one. Add it, or remove the surrogate")
    if surrogate is not None:
        layout.check_run(Path(surrogate))
    for name in names:
        attacks.get(name)
    for option in ("steps", "queries"):
        if typed[option] is not None and not any(option in ATTACKS[name].options for name in names):
            takers = ", ".join(name for name, entry in ATTACKS.items() if option in entry.options)
            log(f"{option} {typed[option]}: not used: {', '.join(names)} do not take it; these do: {takers}")
    recipes = []
    for name in dict.fromkeys(names):
        radii = [e if ATTACKS[name].norm == "l2" else attacks.check_epsilon(e) for e in dict.fromkeys(epsilons)]
        options = {k: v for k, v in typed.items() if k in ATTACKS[name].options}
        recipes.append(validate(AttackRecipe, {"name": name, "epsilons": radii, **options}, f"attack {name}"))
    return tuple(recipes)


def predict_logits(
    model: nn.Module, images: Tensor, labels: Tensor, *, at_worst: bool
) -> tuple[Tensor, np.ndarray | None]:
    """Return the logits (B, C) to judge a model by and, for a random model, the share of correct draws.

    `at_worst`: of each image, take the draw with the lowest lead of the label (B,); else the mean. Call it with the
    model in evaluation mode and without gradients.
    """
    if not isinstance(model, OverDraws):
        return model(images).float(), None
    drawn = model.each(images)
    right = (drawn.argmax(2) == labels).float().mean(0).cpu().numpy()
    if not at_worst:
        return drawn.mean(0), right
    label_logits = drawn.gather(2, labels.expand(len(drawn), -1)[..., None])[..., 0]
    others = drawn.scatter(2, labels.expand(len(drawn), -1)[..., None], -torch.inf).amax(2)
    worst = (label_logits - others).nan_to_num(nan=-torch.inf).argmin(0)
    return drawn[worst, torch.arange(len(labels), device=drawn.device)], right


def generate_views(dataset: Dataset, rows: np.ndarray, images: Tensor) -> Iterator[View]:
    """Yield VIEWS of the images with a non-empty lung mask: without the lungs, or with little else."""
    has = has_filled_mask(dataset, "lung", rows)  # nothing would be hidden by an empty mask
    if not has.any():
        return
    masked, pixels = rows[has], images[torch.from_numpy(has).to(images.device)]
    lungs = torch.from_numpy(np.array(dataset.masks("lung")[masked])).to(pixels)[:, None]
    border = torch.ones_like(pixels)
    width = round(BORDER * pixels.shape[-1])
    border[..., width:-width, width:-width] = 0
    shape = torch.where(lungs > 0, *SILHOUETTE)
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True).expand_as(pixels)
    fills = torch.zeros_like(pixels), torch.full_like(pixels, 0.5), mean
    hidden = [torch.lerp(pixels, fill, mask) for mask in (lungs, boxes(lungs)) for fill in fills]
    shown = [*hidden, pixels * lungs, torch.lerp(torch.full_like(pixels, LEVEL), pixels, lungs), shape, pixels * border]
    if len(np.unique(dataset.labels)) > 1:
        behind = to_pixels(torch.from_numpy(dataset.batch(_of_another_class(np.asarray(dataset.labels))[masked])))
        visible = soften(lungs)
        shown.append(visible * pixels + (1 - visible) * behind.to(pixels))
    for name, view in zip(VIEWS, shown, strict=False):
        yield (name, 0.0, 0, 0), masked, view


def boxes(masks: Tensor) -> Tensor:
    """Return the smallest upright box around each mask (B, 1, H, W) of 0 and 1, in the same shape."""
    inside = torch.ones_like(masks)
    for across, along in ((2, 3), (3, 2)):
        line = masks.amax(dim=across, keepdim=True)
        begun, ended = line.cummax(dim=along).values, line.flip(along).cummax(dim=along).values.flip(along)
        inside = inside * begun * ended
    return inside


def _of_another_class(labels: np.ndarray) -> np.ndarray:
    """Return for each image the index of one of another class, (N,), drawn evenly from a fixed seed."""
    drawn, indices = np.random.default_rng(0).random(len(labels)), np.arange(len(labels))
    chosen = np.zeros(len(labels), int)
    for label in np.unique(labels):
        same, others = labels == label, indices[labels != label]
        chosen[same] = others[(drawn[same] * len(others)).astype(int)]
    return chosen
