"""A run and a data set -> predictions -> metrics."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from trustcxr import attacks, metrics, models, results
from trustcxr.console import Progress
from trustcxr.data.batches import loader, to_pixels
from trustcxr.errors import UserError
from trustcxr.metrics import CLEAN
from trustcxr.recipes import AttackRecipe, RunRecipe, validate

if TYPE_CHECKING:
    from trustcxr.data.dataset import Dataset


@dataclass
class Run:
    """A trained model and what is known of it."""

    folder: Path
    model: models.Classifier
    classes: tuple[str, ...]
    recipe: RunRecipe
    metrics: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name: <model>-<defence>-s<seed>."""
        return self.recipe.name

    @property
    def size(self) -> int:
        """Side in pixels of the images it was trained on."""
        return self.recipe.data.size

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


def device() -> torch.device:
    """The accelerator where there is one, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_run(folder: str | Path, *, on: torch.device | str | None = None) -> Run:
    """A trained run from its folder, in evaluation mode. Nothing is unpickled.

    Raises UserError where the folder is not a run, or its files do not belong together.
    """
    from trustcxr.training import load_weights

    path = results.check_run(Path(folder))
    content = results.read_yaml(path / results.RUN_FILE)
    try:
        recipe = validate(RunRecipe, content["recipe"], str(path / results.RUN_FILE))
        classes = tuple(str(name) for name in content["classes"])
    except (KeyError, TypeError) as problem:
        raise UserError(f"{path / results.RUN_FILE}: not the file of a run ({problem} is missing)") from None
    model = models.build(recipe.model.name, classes=len(classes))
    load_weights(model, path / results.WEIGHTS_FILE)
    model = model.eval().to(on or device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    optional = {
        key: results.read_json(path / name) if (path / name).is_file() else None
        for key, name in (("metrics", results.METRICS_FILE), ("training", results.TRAINING_FILE))
    }
    return Run(path, model, classes, recipe, optional["metrics"], optional["training"] or {})


def predict(
    run: Run, dataset: "Dataset", conditions: Sequence[AttackRecipe] = (), *, batch_size: int = 64
) -> pd.DataFrame:
    """Logits of every image, clean and under every attack and epsilon: the table of predictions.parquet."""
    plan = [(attack, epsilon) for attack in conditions for epsilon in attack.epsilons]
    found: dict[tuple[str, float, int], list[np.ndarray]] = {}
    batches = loader(dataset, batch_size)
    with Progress(f"evaluating {run.name} on {len(dataset)} images", len(batches) * (1 + len(plan))) as bar:
        for number, (raw, labels, _) in enumerate(batches):
            images = to_pixels(raw.to(run.device)).contiguous(memory_format=torch.channels_last)
            targets = labels.to(run.device)
            found.setdefault((CLEAN, 0.0, 0), []).append(_logits(run, images))
            bar.advance()
            for attack, epsilon in plan:
                options = (
                    {"steps": attack.steps, "stop_when_wrong": True, "seed": number} if attack.name == "pgd" else {}
                )
                perturbed = attacks.get(attack.name)(run.model, images, targets, epsilon=epsilon, **options)
                steps = attack.steps if attack.name == "pgd" else 1
                found.setdefault((attack.name, epsilon, steps), []).append(_logits(run, perturbed))
                bar.advance(note=f"{attack.name} {epsilon:g}")
    common = {
        "sample_id": dataset.sample_ids,
        "group": dataset.groups,
        "split": dataset.splits,
        "class": [dataset.classes[k] for k in dataset.labels],
        "label": np.asarray(dataset.labels),
    }
    return pd.concat(
        [
            pd.DataFrame(
                common | {"attack": name, "epsilon": epsilon, "steps": steps, "logits": list(np.concatenate(parts))}
            )
            for (name, epsilon, steps), parts in found.items()
        ],
        ignore_index=True,
    )


def _logits(run: Run, images: torch.Tensor) -> np.ndarray:
    with torch.inference_mode(), attacks.undisturbed(run.model):
        return run.model(images).float().cpu().numpy()


def describe(run: Run, predictions: pd.DataFrame, *, resamples: int = 2000) -> dict[str, Any]:
    """The document of metrics.json (DESIGN.md), without saliency, from predictions of one split."""
    splits = sorted(predictions["split"].unique())
    document = {
        "run": run.name,
        "model": run.recipe.model.name,
        "defence": run.recipe.defence.name,
        "background": "full",
        "seed": run.recipe.seed,
        "classes": list(run.classes),
        "split": "+".join(splits),
        **metrics.from_predictions(predictions, run.classes, resamples=resamples),
        "corruptions": [],
        "saliency": {},
    }
    document["alarms"] = metrics.alarms(document)
    if "alarm" in run.training:
        document["alarms"].append({"kind": "catastrophic_overfitting", "text": run.training["alarm"]})
    return document


def conditions(names: Sequence[str], epsilons: Sequence[float], *, steps: int = 20) -> tuple[AttackRecipe, ...]:
    """Attack recipes from names and radii as typed on the command line."""
    for name in names:
        attacks.get(name)
    radii = tuple(attacks.check_epsilon(e) for e in epsilons)
    return tuple(AttackRecipe.model_validate({"name": name, "epsilons": radii, "steps": steps}) for name in names)
