"""What one training step is: a batch, changed as the recipe says, through the defence; and how the weights move."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from trustcxr import defences
from trustcxr.data.loader import Batch, augment, to_pixels
from trustcxr.data.lung_masks import has_lungs
from trustcxr.defences import backgrounds, counterfactual_loss, guidance, lung_losses
from trustcxr.defences.counterfactual_loss import LesionBatch
from trustcxr.models import classifier
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.registry import DEFENCES
from trustcxr.training.devices import Devices

ALONE = Devices()


@dataclass(frozen=True)
class Whole:
    """Counts of a whole batch, of all processes together, so that the gradients of its parts add up.

    `emptied`: images with emptied lungs beside the batch.
    """

    images: int
    emptied: float = 0.0


class TrainingStep(pl.LightningModule):
    """One defence applied to one model."""

    def __init__(
        self,
        model: nn.Module,
        recipe: RunRecipe,
        *,
        classes: int,
        steps_per_epoch: int,
        lungs: np.ndarray | None = None,
        lesions: np.ndarray | None = None,
        healthy: int | None = None,
        cards: Devices = ALONE,
        batch_images: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.classes, self.steps_per_epoch = model, recipe, classes, steps_per_epoch
        self.lungs, self.lesions = lungs, lesions  # (N, H, W) of 0 and 1, all 0 where there is no mask
        self.healthy = healthy  # the class of an image without its lesion
        self.defence, self.robust = defences.get(recipe.defence.name), recipe.defence.attacks
        ours = ("epsilon", "ramp", "replays")
        self.options = {k: getattr(recipe.defence, k) for k in DEFENCES[recipe.defence.name].options if k not in ours}
        self.perturbation: Tensor | None
        self.register_buffer("perturbation", _first_perturbation(recipe))
        self.average = _average(model, recipe.training.averaging)
        self.sums: dict[str, float] = {}
        self.cards, self.batch_images = cards, batch_images

    @property
    def total_steps(self) -> int:
        """Steps in the whole of training."""
        return self.recipe.training.epochs * self.steps_per_epoch

    def epsilon(self, step: int) -> float:
        """The radius at a step: it grows evenly from 0 over the first `ramp` of training."""
        return self.recipe.defence.epsilon * self._grown(step)

    def radii(self, step: int, edited: Tensor | None = None) -> float | Tensor:
        """Return the radius at a step; images that are `edited` (B,) have the recipe's share of it."""
        share, radius = self.recipe.training.counterfactual_epsilon, self.epsilon(step)
        if edited is None or share == 1:
            return radius
        return radius * torch.where(edited, share, 1.0).view(-1, 1, 1, 1)

    def _grown(self, step: int) -> float:
        ramp = self.recipe.defence.ramp * self.total_steps
        return min(1.0, step / ramp) if ramp else 1.0

    def defence_options(self, part: slice = slice(None), edited: Tensor | None = None) -> dict[str, Any]:
        """The options of the defence at this step (epsilon grows), beside model, images and labels."""
        options = self.options | {"label_smoothing": self.recipe.training.label_smoothing}
        if self.robust:
            options["epsilon"] = self.radii(self.global_step, edited)
        if self.recipe.defence.certifies:
            options["grown"] = self._grown(self.global_step)
        if self.perturbation is not None:
            options["perturbation"] = self.perturbation[part]
        return options

    def candidate(self) -> nn.Module:
        """The model that is validated and kept: the averaged weights where there are any."""
        return self.model if self.average is None else self.average.module

    def on_train_epoch_start(self) -> None:
        """Start the sums of an epoch."""
        self.sums = {}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step of the defence on a batch."""
        images, labels, rows = batch
        pixels, lungs, lesions = self._pixels(images, rows)
        if self.cards.parts > 1:
            self.trainer.optimizers[0].zero_grad()
        known = None if lungs is None or lesions is None else LesionBatch(pixels, labels, lungs, lesions)
        if known is not None and self.healthy is not None:
            known = self._counterfactual(known, self.healthy)
            pixels, labels = known.pixels, known.labels
        emptied = pixels[:0]  # drawn for the whole batch: each part would have one at least
        if self.recipe.empty_lungs and lungs is not None:
            emptied = lung_losses.emptied(pixels, lungs)
        whole, known = self._whole(labels, known, len(emptied))
        counted = torch.zeros(3, device=self.device)
        for number in range(parts := min(self.cards.parts, len(labels))):
            part, few = (slice(n * number // parts, n * (number + 1) // parts) for n in (len(labels), len(emptied)))
            known_part = None if known is None else known.of(part)
            loss, right = self._on(part, pixels[part], labels[part], known_part, emptied[few], whole)
            count = part.stop - part.start
            counted += torch.stack([loss.detach().float() * count, right, torch.ones_like(right) * count])
            if count * self.cards.world != whole.images:  # processes are averaged over, parts of a process added up
                loss = loss * (count * self.cards.world / whole.images)
            if number + 1 < parts:  # the last is Lightning's, and the one in which processes meet
                self.trainer.strategy.backward(loss, None)
        found = dict(zip(("loss", "right", "count"), self.cards.summed(counted).tolist(), strict=True))
        if not math.isfinite(found["loss"]):
            raise FloatingPointError(f"the loss is {found['loss'] / found['count']} at step {self.global_step}")
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in found.items()}
        return loss

    def _on(
        self,
        part: slice,
        pixels: Tensor,
        labels: Tensor,
        known: LesionBatch | None,
        emptied: Tensor,
        whole: Whole,
    ) -> tuple[Tensor, Tensor]:
        """The loss on a part of a batch, and how many of it are right."""
        # Members of an ensemble learn each for itself, on its own attack, so that they stay different.
        learners = [self.model]
        if isinstance(self.model, classifier.Classifier) and self.recipe.model.is_ensemble:
            learners = list(self.model.members())
        learnt = [self._learn(learner, pixels, labels, known, part, emptied, whole) for learner in learners]
        logits = torch.stack([logits.detach() for _, logits in learnt]).mean(0)
        right = (logits.argmax(1) == labels).sum().float()
        return torch.stack([loss for loss, _ in learnt]).mean(), right

    def _whole(self, labels: Tensor, known: LesionBatch | None, emptied: int) -> tuple[Whole, LesionBatch | None]:
        """What is to be known of the whole batch, of which this process has these; and what is known, with its shares.

        A batch in one part on one card is its own whole.
        """
        if self.cards.parts == self.cards.world == 1:
            return Whole(len(labels), emptied), known
        images = len(labels) if self.cards.world == 1 else self.batch_images
        counts = torch.zeros(3, device=self.device)
        counts[0] = emptied
        if known is not None:
            counts[1], counts[2] = known.ill().sum(), has_lungs(known.lung).sum()
        counts = self.cards.summed(counts)
        if known is not None:
            known = replace(known, shares=counts[1:].clamp(min=1) / images)
        return Whole(images, float(counts[0])), known

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Before Lightning's backward pass; where a batch has parts, the gradients of the first are there by then."""
        if self.cards.parts == 1:
            optimizer.zero_grad()

    def _learn(
        self,
        learner: nn.Module,
        pixels: Tensor,
        labels: Tensor,
        known: LesionBatch | None,
        part: slice,
        emptied: Tensor,
        whole: Whole,
    ) -> tuple[Tensor, Tensor]:
        """The loss of one network on a batch or a part of one, and its logits."""
        training, beside = self.recipe.training, None
        guided = training.guidance > 0 and known is not None
        watched = guidance.followed(learner, training.guidance_on, layer=training.guidance_layer, wanted=guided)
        if len(emptied):
            learner = beside = lung_losses.WithEmptiedLungs(learner, emptied)
        with watched as seen:
            options = self.defence_options(part, None if known is None else known.edited)
            loss, logits = self.defence(learner, pixels, labels, **options)
        if beside is not None:
            counts_for = len(emptied) / whole.emptied * whole.images / len(labels)  # a mean of all emptied images
            loss = loss + counts_for * beside.confusion_loss()
        if seen and known is not None:
            apart = guidance.guidance(seen[-1], known, loss=training.guidance_loss, depth=guidance.DEPTH)
            loss = loss + training.guidance * apart
        return loss, logits

    def _counterfactual(self, known: LesionBatch, healthy: int) -> LesionBatch:
        generator = torch.Generator().manual_seed((self.recipe.seed + 1) * 1_000_033 + self.global_step)
        training = self.recipe.training
        known = counterfactual_loss.counterfactual(
            known,
            healthy=healthy,
            share=training.counterfactuals,
            generator=generator,
            fills=training.counterfactual_fills,
        )
        return replace(known, pixels=known.pixels.contiguous(memory_format=torch.channels_last))

    def _pixels(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """A batch as the model sees it, with its lungs and its lesions where the recipe needs them.

        The random state of a step depends on seed and step alone, so that a resumed run is the same run; all replays of
        a batch are augmented alike.
        """
        training, first = self.recipe.training, (self.recipe.seed + 1) * 1_000_003
        torch.manual_seed(first + self.global_step + (self.cards.rank << 32))
        generator = torch.Generator().manual_seed(first + self.global_step // replays(self.recipe))
        pixels, lungs, lesions = to_pixels(images), None, None
        drawn: dict[str, Any] = training.augment.model_dump()
        if self.cards.world > 1:  # each process has the draws of its part of the batch
            drawn["part"] = self.cards.share(self.batch_images)[0], self.batch_images
        if self.lungs is None:
            pixels = augment(pixels, generator, **drawn)
        else:
            lungs, lesions = self._masks(self.lungs, rows, pixels), self._masks(self.lesions, rows, pixels)
            background = training.background
            if background == "crop":  # before augmentation, which would otherwise lose its shift and scale
                pixels, lungs = backgrounds.crop(pixels, lungs, share=backgrounds.SHARE, generator=generator)
            layers = [pixels, lungs] if lesions is None else [pixels, lungs, lesions]
            changed = augment(torch.cat(layers, 1), generator, **drawn)
            pixels, lungs, lesions = changed[:, :1], changed[:, 1:2], None if lesions is None else changed[:, 2:]
            pixels = backgrounds.change(pixels, lungs, background, share=backgrounds.SHARE, generator=generator)
        if not torch.isfinite(pixels).all():
            raise FloatingPointError(f"a pixel is not a number at step {self.global_step}")
        return pixels.contiguous(memory_format=torch.channels_last), lungs, lesions

    @staticmethod
    def _masks(masks: np.ndarray | None, rows: Tensor, like: Tensor) -> Any:
        return None if masks is None else torch.from_numpy(np.asarray(masks[rows.cpu().numpy()])).to(like)[:, None]

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the averaged weights."""
        if self.average is not None:
            self.average.update_parameters(self.model)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Nothing here: Monitor validates the kept weights once an epoch."""

    def configure_optimizers(self) -> Any:
        """Adam, with a warm-up and then a cosine to zero (or constant)."""
        training = self.recipe.training
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimiser]
        optimiser = kind(self.model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
        warm = max(1.0, training.warmup_epochs * self.steps_per_epoch)

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / (warm + 1)
            if training.schedule == "constant":
                return 1.0
            done = (step - warm) / max(1.0, self.total_steps - warm)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def replays(recipe: RunRecipe) -> int:
    """How many optimiser steps each batch has in a row: more than one in free adversarial training alone."""
    return recipe.defence.replays if "replays" in DEFENCES[recipe.defence.name].options else 1


def _average(model: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel | None:
    if not decay:
        return None
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    found = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    return found.requires_grad_(False)  # processes that train together would wait for its gradients


def _first_perturbation(recipe: RunRecipe) -> Tensor | None:
    """Of free adversarial training: zeros, to be kept from step to step and in checkpoints."""
    if "replays" not in DEFENCES[recipe.defence.name].options:
        return None
    return torch.zeros(recipe.training.batch_size, 1, recipe.data.size, recipe.data.size)
