"""Name the files of runs, studies and audits, and check that a folder holds one of them."""

import hashlib
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trustcxr.errors import UserError
from trustcxr.storage import atomic, locks
from trustcxr.version import __version__

RUN_FILE, WEIGHTS_FILE, TRAINING_FILE = "run.yaml", "model.safetensors", "training.json"
HISTORY_FILE, PREDICTIONS_FILE, SALIENCY_FILE = "history.csv", "predictions.parquet", "saliency.parquet"
CERTIFIED_FILE = "certified.parquet"  # a row per image and epsilon: whether its answer is proved not to change
OOD_FILE = "ood.safetensors"  # statistics of the training images
LESIONS_FILE = "lesion_effects.parquet"  # answers with and without the lesion
METRICS_FILE, EXAMPLES_FILE = "metrics.json", "example_maps.npz"
AUDIT_FILE = "audit.json"
FAILURES_FILE = "failures.npz"  # of an audit: images of the most confident wrong answers
SMALLEST_CHANGES_FILE = "smallest_changes.npz"  # of an audit: images before and after the smallest change of an answer
MODEL_FILES = (".yaml", ".yml")  # endings of a model file
ONE_VS_REST_FILE = "one_vs_rest.parquet"  # of an audit: predictions under attacks on the threshold of one class each
VALIDATION_FILE = "validation.parquet"  # predictions on the validation images
BEFORE_REFIT = "before_refit"  # the training before a refit, whose weights validation judged
IMAGES_FILE = "training_images.parquet"  # names and checksums of the training images
FAILURE_FILE = "failure.json"  # why a study could not finish a run
TIMINGS_FILE = "timings.json"  # of a study: seconds in all, times of a dry run; of a run: seconds of each step
DATA_FILE = "data.yaml"  # of a study: the path of the images
STUDY_FILE, STUDY_RESULTS, REPORT_FILE = "study.yaml", "study.json", "report.html"
DATA_CHECK_FILE = "data-check.json"  # of a study: the report of `data check`
STEP_FILES = {  # the steps of a run in a study, in their order, and the file that each writes
    "train": TRAINING_FILE,
    "validate": VALIDATION_FILE,
    "test": PREDICTIONS_FILE,
    "explain": SALIENCY_FILE,
    "describe": METRICS_FILE,
}


def check_run(folder: Path) -> Path:
    """Return the folder. Raises UserError, with what is missing or which process trains it, if it is no trained run."""
    if folder.is_file():
        raise UserError(f"{folder}: a file, not the folder of a run; `audit` and `explain` take model files")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; a run is made by `trustcxr train` or `trustcxr study`")
    if missing := [name for name in (RUN_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]:
        locks.check_unlocked(folder)
        runs = sorted(p.parent.name for p in folder.glob(f"runs/*/{RUN_FILE}"))
        if runs:
            hint = f"it is a study; its runs are {', '.join(runs)} in {folder / 'runs'}"
        elif (folder / RUN_FILE).is_file():
            hint = "its training is not finished: run the same command again"
        else:
            hint = "give the folder of a run"
        raise UserError(f"{folder}: not a trained run ({' and '.join(missing)} missing): {hint}")
    return folder


def checksums(run: Path, classes: object) -> dict[str, str]:
    """Return the SHA-256 of a run's weights and of its classes in their order, as run.yaml has them."""
    names = map(str, classes) if isinstance(classes, Iterable) else ()
    named = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return {WEIGHTS_FILE: atomic.checksum(run / WEIGHTS_FILE), "classes": named}


def check_sums(run: Path, content: Mapping[str, Any]) -> None:
    """Raise UserError if the weights or classes of a trained run changed, or run.yaml lost its checksums."""
    before = content.get("checksums")
    if not isinstance(before, dict):
        if (run / TRAINING_FILE).is_file():
            raise UserError(f"{run / RUN_FILE}: cut off, its checksums are missing: restore it, or train again")
        return
    now = checksums(run, content["classes"])
    if before.get("classes") != now["classes"]:
        raise UserError(f"{run / RUN_FILE}: classes other than those of the training, or in another order; restore it")
    if before.get(WEIGHTS_FILE) != now[WEIGHTS_FILE]:
        raise UserError(f"{run / WEIGHTS_FILE}: damaged or replaced since the training: restore it, or train again")


def before_refit(run: Path) -> Path:
    """Return the folder of the weights that validation judged: the run, or the training before its refit."""
    return run / BEFORE_REFIT if (run / BEFORE_REFIT).is_dir() else run


def check_study(folder: Path) -> Path:
    """Return the folder. Raises UserError if it holds no study with results."""
    check_begun(folder, STUDY_RESULTS)
    return folder


def check_begun(folder: Path, file: str = STUDY_FILE) -> None:
    """Raise UserError if no study was begun in a folder, or if it has not written this file yet."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such study folder; a study is made by `trustcxr study`")
    if not (folder / file).is_file():
        inside = sorted(p.parent.name for p in folder.glob(f"*/{STUDY_FILE}"))
        hint = "give the folder that `trustcxr study --out` wrote"
        hint += f"; there is {', '.join(inside[:5])} in it" if inside else ""
        if (folder / STUDY_FILE).is_file():
            hint = "started but not finished: run the same `trustcxr study` again"
        raise UserError(f"{folder}: no {file} here: {hint}")


def read_study(folder: Path) -> dict[str, object]:
    """Read study.yaml. Raises UserError, with what to do, if it is missing or damaged."""
    again = "delete it, and `trustcxr study` with the recipe that the study was begun with writes it again"
    return atomic.read_yaml(folder / STUDY_FILE, advice=again)


def check_foreign(folder: Path, written: Iterable[str], markers: Iterable[str]) -> None:
    """Raise UserError if a folder holds files named like those to be `written`, and none of our `markers`."""
    if any(any(folder.glob(pattern)) for pattern in markers):
        return
    if names := sorted({path.name for pattern in written for path in folder.glob(pattern)}):
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise UserError(
            f"{folder}: holds {some}, which this command did not write and would lose; choose another --out"
        )


def check_model(model: str | Path) -> None:
    """Raise UserError if a run's folder, a model file or a model is missing; the loader checks others."""
    path = Path(model)
    if path.is_dir():
        check_run(path)
    elif path.suffix in MODEL_FILES and not path.exists():
        raise UserError(f"{model}: no such model file")
    elif not (path.exists() or path.suffix or ":" in str(model)):
        raise UserError(f"{model}: no such run folder, model file or model")


def check_audit(folder: Path) -> Path:
    """Return the folder. Raises UserError if it holds no audit."""
    if not (folder / AUDIT_FILE).is_file():
        raise UserError(f"{folder}: no {AUDIT_FILE} here; run `trustcxr audit` with this folder as --out first")
    return folder


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("torch", "timm", "pytorch-lightning", "numpy")
    return {"trustcxr": __version__, "python": platform.python_version()} | {name: version(name) for name in packages}
