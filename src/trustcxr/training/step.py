"""Train one step: change a batch by the recipe, compute the defence's loss, and schedule the optimiser."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from trustcxr import defences
from trustcxr.data.loader import Batch, augment, to_pixels
from trustcxr.defences import backgrounds, counterfactual_loss, guidance
from trustcxr.defences.counterfactual_loss import LesionBatch
from trustcxr.models import classifier
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.registry import BACKGROUNDS, DEFENCES
from trustcxr.training.devices import ALONE, Devices


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
        devices: Devices = ALONE,
        batch_images: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.classes, self.steps_per_epoch = model, recipe, classes, steps_per_epoch
        self.total_steps = recipe.training.epochs * steps_per_epoch
        self.lungs, self.lesions = lungs, lesions  # (N, H, W) of 0 and 1, all 0 without a mask
        self.healthy = healthy  # the class of an image without its lesion
        self.defence, self.robust = defences.get(recipe.defence.name), recipe.defence.attacks
        ours = ("epsilon", "ramp", "replays")
        self.options = {k: getattr(recipe.defence, k) for k in DEFENCES[recipe.defence.name].options if k not in ours}
        self.perturbation: Tensor | None
        self.register_buffer("perturbation", _first_perturbation(recipe))
        self.average = _average(model, recipe.training.ema_decay)
        self.sums: dict[str, float] = {}
        self.devices, self.batch_images = devices, batch_images

    def epsilon(self, step: int) -> float:
        """Return the radius at a step: it grows evenly from 0 over the first `ramp` of training."""
        return self.recipe.defence.epsilon * self._grown(step)

    def radii(self, step: int, edited: Tensor | None = None) -> float | Tensor:
        """Return the radius at a step; images that are `edited` (B,) have the recipe's share of it."""
        share, radius = self.recipe.training.counterfactuals.epsilon, self.epsilon(step)
        if edited is None or share == 1:
            return radius
        return radius * torch.where(edited, share, 1.0).view(-1, 1, 1, 1)

    def _grown(self, step: int) -> float:
        ramp = self.recipe.defence.ramp * self.total_steps
        return min(1.0, step / ramp) if ramp else 1.0

    def defence_options(self, part: slice = slice(None), edited: Tensor | None = None) -> dict[str, Any]:
        """Return the defence's options at this step."""
        options = self.options | {"label_smoothing": self.recipe.training.label_smoothing}
        if self.robust:
            options["epsilon"] = self.radii(self.global_step, edited)
        if self.recipe.defence.certifies:
            options["grown"] = self._grown(self.global_step)
        if self.perturbation is not None:
            options["perturbation"] = self.perturbation[part]
        return options

    def candidate(self) -> nn.Module:
        """Return the model to validate and keep: the averaged one, if weights are averaged."""
        return self.model if self.average is None else self.average.module

    def on_train_epoch_start(self) -> None:
        """Reset the sums of an epoch."""
        self.sums = {}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Compute the defence's loss on a batch."""
        images, labels, rows = batch
        pixels, lungs, lesions = self._pixels(images, rows)
        if self.devices.parts > 1:
            self.trainer.optimizers[0].zero_grad()
        lesion_batch = None if lungs is None or lesions is None else LesionBatch(pixels, labels, lungs, lesions)
        if lesion_batch is not None and self.healthy is not None:
            lesion_batch = self._counterfactual(lesion_batch, self.healthy)
            pixels, labels = lesion_batch.pixels, lesion_batch.labels
        emptied = pixels[:0]  # drawn for the whole batch: each part would draw at least one
        if BACKGROUNDS[self.recipe.background].emptied and lungs is not None:
            emptied = backgrounds.emptied(pixels, lungs)
        images_of_all, emptied_of_all, lesion_batch = self._count_whole(labels, lesion_batch, len(emptied))
        counted = torch.zeros(3, device=self.device)
        for number in range(parts := min(self.devices.parts, len(labels))):
            part, few = (slice(n * number // parts, n * (number + 1) // parts) for n in (len(labels), len(emptied)))
            known_part = None if lesion_batch is None else lesion_batch.slice_rows(part)
            count = part.stop - part.start
            weight = len(emptied[few]) / max(emptied_of_all, 1) * images_of_all / count  # a mean of all emptied images
            loss, right = self._on(part, pixels[part], labels[part], known_part, emptied[few], weight)
            counted += torch.stack([loss.detach().float() * count, right, torch.ones_like(right) * count])
            if count * self.devices.world != images_of_all:  # processes are averaged, parts of a process summed
                loss = loss * (count * self.devices.world / images_of_all)
            if number + 1 < parts:  # Lightning runs the last one, which synchronises the processes
                self.trainer.strategy.backward(loss, None)
        totals = dict(zip(("loss", "right", "count"), self.devices.sum(counted).tolist(), strict=True))
        if not math.isfinite(totals["loss"]):
            raise FloatingPointError(f"the loss is {totals['loss'] / totals['count']} at step {self.global_step}")
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in totals.items()}
        return loss

    def _on(
        self,
        part: slice,
        pixels: Tensor,
        labels: Tensor,
        lesion_batch: LesionBatch | None,
        emptied: Tensor,
        emptied_weight: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss on a part of a batch, and the number of correct predictions."""
        training = self.recipe.training
        guided = training.guidance > 0 and lesion_batch is not None
        options = self.defence_options(part, None if lesion_batch is None else lesion_batch.edited)

        def learn(learner: nn.Module) -> tuple[Tensor, Tensor]:
            with_emptied: backgrounds.WithEmptiedLungs | None = None
            passes = guidance.followed(learner, training.guidance_on, wanted=guided)
            if len(emptied):
                learner = with_emptied = backgrounds.WithEmptiedLungs(learner, emptied)
            with passes as seen:
                loss, logits = self.defence(learner, pixels, labels, **options)
            if with_emptied is not None:
                loss = loss + emptied_weight * with_emptied.confusion_loss()
            if seen and lesion_batch is not None:
                loss = loss + training.guidance * guidance.guidance(seen[-1], lesion_batch)
            return loss, logits

        # Each member of an ensemble learns on its own attack, so that members stay different.
        learners = [self.model]
        if isinstance(self.model, classifier.Classifier) and self.recipe.model.is_ensemble:
            learners = list(self.model.members())
        learnt = [learn(learner) for learner in learners]
        logits = torch.stack([logits.detach() for _, logits in learnt]).mean(0)
        right = (logits.argmax(1) == labels).sum().float()
        return torch.stack([loss for loss, _ in learnt]).mean(), right

    def _count_whole(
        self, labels: Tensor, lesion_batch: LesionBatch | None, emptied: int
    ) -> tuple[int, float, LesionBatch | None]:
        """Count the images and the emptied images of the batch of all processes; give the lesion batch its shares."""
        if self.devices.parts == self.devices.world == 1:
            return len(labels), emptied, lesion_batch
        images = len(labels) if self.devices.world == 1 else self.batch_images
        counts = torch.zeros(3, device=self.device)
        counts[0] = emptied
        if lesion_batch is not None:
            counts[1], counts[2] = lesion_batch.ill().sum(), lesion_batch.with_lungs().sum()
        counts = self.devices.sum(counts)
        if lesion_batch is not None:
            lesion_batch = replace(lesion_batch, shares=counts[1:].clamp(min=1) / images)
        return images, float(counts[0]), lesion_batch

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Clear the gradients, unless the batch has parts, whose gradients must stay."""
        if self.devices.parts == 1:
            optimizer.zero_grad()

    def _counterfactual(self, lesion_batch: LesionBatch, healthy: int) -> LesionBatch:
        first = (self.recipe.seed + 1) * 1_000_033
        generator = torch.Generator().manual_seed(first + self.global_step // replays(self.recipe))
        edits = self.recipe.training.counterfactuals
        lesion_batch = counterfactual_loss.counterfactual(
            lesion_batch, healthy=healthy, share=edits.share, generator=generator, fills=edits.fills
        )
        return replace(lesion_batch, pixels=lesion_batch.pixels.contiguous(memory_format=torch.channels_last))

    def _pixels(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return a batch as the model sees it, with lung and lesion masks if the recipe needs them."""
        training, first = self.recipe.training, (self.recipe.seed + 1) * 1_000_003
        # By seed and step alone, so that a resumed run gives the same bits.
        torch.manual_seed(first + self.global_step + (self.devices.rank << 32))
        generator = torch.Generator().manual_seed(first + self.global_step // replays(self.recipe))
        pixels, lungs, lesions = to_pixels(images), None, None
        drawn: dict[str, Any] = training.augment.model_dump()
        if self.devices.world > 1:  # each process has the draws of its part of the batch
            drawn["part"] = self.devices.share(self.batch_images)[0], self.batch_images
        if self.lungs is None:
            pixels = augment(pixels, generator, **drawn)
        else:
            lungs, lesions = self._masks(self.lungs, rows, pixels), self._masks(self.lesions, rows, pixels)
            layers = [pixels, lungs] if lesions is None else [pixels, lungs, lesions]
            changed = augment(torch.cat(layers, 1), generator, **drawn)
            pixels, lungs, lesions = changed[:, :1], changed[:, 1:2], None if lesions is None else changed[:, 2:]
            pixels = backgrounds.change(
                pixels, lungs, training.background, share=backgrounds.SHARE, generator=generator
            )
        if not torch.isfinite(pixels).all():
            raise FloatingPointError(f"a pixel is not a number at step {self.global_step}")
        return pixels.contiguous(memory_format=torch.channels_last), lungs, lesions

    @staticmethod
    def _masks(masks: np.ndarray | None, rows: Tensor, like: Tensor) -> Any:
        return None if masks is None else torch.from_numpy(np.asarray(masks[rows.cpu().numpy()])).to(like)[:, None]

    def on_train_batch_end(self, *_: Any) -> None:
        """Update the averaged weights."""
        if self.average is not None:
            self.average.update_parameters(self.model)

    def configure_optimizers(self) -> Any:
        """Return Adam with a warm-up and then a cosine to zero (or a constant)."""
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
    """Return the optimiser steps for each batch: more than one only in free adversarial training."""
    return recipe.defence.replays if "replays" in DEFENCES[recipe.defence.name].options else 1


def _average(model: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel | None:
    if not decay:
        return None

    def move(averages: Any, current: Any, _: Any) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, current, 1 - decay)
        else:  # an average of indices or counters, rounded down, is not one of them
            torch._foreach_copy_(averages, current)

    average_model = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=move, use_buffers=True)
    return average_model.requires_grad_(False)  # processes that train together would wait for its gradients


def _first_perturbation(recipe: RunRecipe) -> Tensor | None:
    """Return the zeros that free adversarial training updates from step to step; None for other defences."""
    if "replays" not in DEFENCES[recipe.defence.name].options:
        return None
    return torch.zeros(recipe.training.batch_size, 1, recipe.data.size, recipe.data.size)
