"""Test inputs that all processes of a session share. They are only read: a test that changes one copies it first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock


class Pack:
    """Folders below one that all processes share; the first process that asks for one builds it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def get(self, name: str, build: Callable[[Path], object]) -> Path:
        """Return a folder, built by `build(folder)` if no process has built it yet."""
        folder, built = self.folder / name, self.folder / f"{name}.built"
        with FileLock(self.folder / f"{name}.lock"):
            if not built.exists():
                build(folder)
                built.touch()
        return folder

    def images(self) -> Path:
        """Return synthetic images: three classes, 9, 4 and 4 of each in Train, Val and Test, 32 pixels."""
        from trustcxr.data.phantom import write_files

        splits = {"Train": 9, "Val": 4, "Test": 4}
        return self.get("images", lambda folder: write_files.write(folder / "phantom", splits, size=32)) / "phantom"

    def training_images(self) -> tuple[Any, Any]:
        """Return 48 images to train on and 24 to validate, 32 pixels."""
        from small_runs import load_images, make_images

        return load_images(self.get("training-images", make_images))

    def run(self, defence: str) -> Path:
        """Return a run of one epoch on `training_images`, "standard" or "fgsm"."""
        from small_runs import recipe
        from trustcxr.training import fit_run

        return self.get(
            f"run-{defence}", lambda to: fit_run.fit(recipe(defence, epochs=1), *self.training_images(), to)
        )

    def study(self) -> Path:
        """Return a study of `images`: two networks, the better one also by FGSM, worked on one after the other."""
        from test_engines import small
        from trustcxr.study import engines
        from trustcxr.study.run_study import Study

        return self.get("study", lambda to: Study(small(), self.images(), to, engines.get("local")).run())

    def greys(self) -> Path:
        """Return noisy images of three classes that differ in brightness, 12 of each."""
        from test_audit_command import write_greys

        return self.get("greys", lambda folder: write_greys(folder / "images")) / "images"

    def audits(self) -> Path:
        """Return two short audits of `greys`: `good`, and `bad`, of a model that takes bright images for grey."""
        return self.get("audits", self._write_audits) / "out"

    def _write_audits(self, folder: Path) -> None:
        from test_audit_command import REPORTED, Brightness, few_steps, model_file
        from test_cli import run

        with pytest.MonkeyPatch.context() as patch:
            few_steps(patch)
            for name, order in (("good", (0, 1, 2)), ("bad", (0, 1, 1))):
                model = model_file(folder / "models" / name, Brightness(order))
                model.write_text(model.read_text() + f"name: {name}\n" + REPORTED)
                run("audit", model, "--data", self.greys(), "--out", folder / "out" / name, "--json")
