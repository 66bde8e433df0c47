"""Runs on a handful of synthetic images, for the tests of training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from trustcxr.data import load_dataset
from trustcxr.data.phantom import write_files
from trustcxr.models import factory
from trustcxr.models.factory import save_weights
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.storage import atomic, layout
from trustcxr.training import monitor
from trustcxr.training.step import TrainingStep

MODEL = "test_resnet"  # timm's own network for tests
Splits = tuple[Any, Any]  # images to train on, images to validate


def seal(folder: Path) -> None:
    """Write the checksums of a run whose weights or classes were changed by hand."""
    content = atomic.read_yaml(folder / "run.yaml")
    sums = layout.checksums(folder, content["classes"])
    atomic.write_yaml(folder / "run.yaml", content | {"checksums": sums})


def flip(file: Path) -> None:
    """Turn one bit of a file round."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def make_images(folder: Path) -> tuple[Any, Any]:
    """Write 48 images to train on and 24 to validate, 32 pixels."""
    write_files.write(folder / "phantom", {"Train": 16, "Val": 8, "Test": 2}, size=32)
    return load_images(folder)


def load_images(folder: Path) -> tuple[Any, Any]:
    """Load what `make_images` wrote."""
    options: Any = {"size": 32, "cache": folder / "cache", "workers": 1}
    return tuple(load_dataset(folder / "phantom", split=split, **options) for split in ("Train", "Val"))  # type: ignore[return-value]


def recipe(
    defence: str | dict[str, Any] = "standard", seed: int = 0, model: dict[str, Any] | None = None, **options: Any
) -> RunRecipe:
    content = {
        "model": {"name": MODEL, "weights": "none"} | (model or {}),
        "defence": {"name": defence} if isinstance(defence, str) else defence,
        "seed": seed,
        "data": {"size": 32},
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 2e-3, "warmup_epochs": 0} | options,
    }
    return validate(RunRecipe, content, "test")


def untrained(folder: Path, classes: tuple[str, ...] = ("a", "b", "c"), seed: int = 0) -> Path:
    """A run's folder whose network was never trained: three classes, 32 pixels."""
    chosen = recipe(seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    save_weights(factory.build(chosen.model.name, classes=3), folder / "model.safetensors")
    content = {"classes": list(classes), "recipe": chosen.model_dump(mode="json"), "data": {"root_name": "images"}}
    atomic.write_yaml(folder / "run.yaml", content)
    seal(folder)
    return folder


def networks(*names: str) -> list[dict[str, str]]:
    """The networks of a recipe, none with weights of its own."""
    return [{"name": name, "weights": "none"} for name in names]


def newest(run: Path) -> Path:
    """The folder of the evaluation of a run that was measured last."""
    return max(run.glob("evaluations/*/metrics.json"), key=lambda path: path.stat().st_mtime_ns).parent


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def made_up(monkeypatch: pytest.MonkeyPatch, rows: list[tuple[float, ...]]) -> None:
    """Validation figures by epoch: (accuracy) or (accuracy, under FGSM, under PGD)."""
    names = ("val_accuracy", "val_fgsm_accuracy", "val_pgd_accuracy")
    left = iter(rows)
    monkeypatch.setattr(monitor, "validate", lambda *_: dict(zip(names, next(left), strict=False)))


def rise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation figures that rise, so that the last epoch is the one that is kept."""
    made_up(monkeypatch, [(0.4 + 0.01 * epoch,) * 3 for epoch in range(50)])


def spied_weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights of each epoch that training keeps as the best so far."""
    kept: list[dict[str, Tensor]] = []

    def save(model: torch.nn.Module, path: Path) -> None:
        kept.append({name: value.clone() for name, value in model.state_dict().items()})
        save_weights(model, path)

    monkeypatch.setattr(monitor, "save_weights", save)
    return kept


class PowerCut(Exception):
    """The machine goes off."""


def cut_at(monkeypatch: pytest.MonkeyPatch, step: int, problem: type[BaseException] = PowerCut) -> list[int]:
    """Let training fail at a step; the steps that were done are listed."""
    real, done = TrainingStep.training_step, []

    def training_step(self: TrainingStep, batch: Any, number: int) -> Tensor:
        if self.global_step == step:
            raise problem
        done.append(self.global_step)
        return real(self, batch, number)

    monkeypatch.setattr(TrainingStep, "training_step", training_step)
    return done
