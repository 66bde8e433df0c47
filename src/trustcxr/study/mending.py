"""A finished run with a damaged file: what can be made again is taken away, so that the study makes it again."""

import itertools
import shutil
from pathlib import Path

from trustcxr.console import say
from trustcxr.errors import UserError
from trustcxr.explain import familiarity
from trustcxr.results import files, folders

# Tables, and what is made from them and goes with them.
_TABLES = (
    folders.VALIDATION_FILE,
    folders.PREDICTIONS_FILE,
    folders.SALIENCY_FILE,
    folders.LESIONS_FILE,
    folders.CERTIFIED_FILE,
)
_MADE_FROM_TABLES = (folders.METRICS_FILE, folders.PANELS_FILE)
_OF_WEIGHTS = (*_TABLES, *_MADE_FROM_TABLES, folders.FAMILIARITY_FILE)
# Films from elsewhere, pages, and exports: what was made of a run when it was asked for.
_TOLD = ("evaluations", "report.*", "report-*.csv", "model_card.md", "model.onnx*", "model.yaml", "program.*")
_TRAINING = (folders.TRAINING_FILE, folders.WEIGHTS_FILE, folders.RUN_FILE, folders.FILMS_FILE)


def refuse_foreign(folder: Path) -> None:
    """UserError where a folder that a run is to be trained into holds other results, or files of other people."""
    own = (folders.RUN_FILE, folders.TRAINING_FILE, folders.WEIGHTS_FILE)
    written = (*_OF_WEIGHTS, *_TOLD, folders.AUDIT_FILE, folders.HISTORY_FILE, folders.FILMS_FILE, "checkpoint")
    folders.refuse_foreign(folder, (*written, folders.BEFORE_REFIT), own)


def mend(run: Path) -> None:
    """Take away what is damaged of a run in a study, and what was made from it; each is said in a line.

    A run whose training, weights or recipe are gone or damaged is trained again, and nothing that was measured of
    weights before stays; tables, documents and panels are made again.
    """
    trained = _is_there(run / folders.TRAINING_FILE)
    if not trained:
        _mend_unfinished(run)
        if not any(_is_there(run / name) for name in _OF_WEIGHTS):
            return
    if (why := untrained(run) or _not_validated(run)) is not None:
        say(f"{run.name}: {why}: trained again")
        for name in (*_OF_WEIGHTS, *((*_TRAINING, folders.BEFORE_REFIT) if trained else ())):
            _remove(run / name)
        _set_apart(run)
        return
    damaged = [name for name in _OF_WEIGHTS if _is_there(run / name) and not _reads(run / name)]
    for name in damaged:
        say(f"{run.name}/{name} is damaged: made again")
        _remove(run / name)
    if set(damaged) & {*_TABLES, folders.METRICS_FILE}:
        for name in _MADE_FROM_TABLES:
            _remove(run / name)


def _set_apart(run: Path) -> None:
    """Move what tells of the weights before, and nobody makes again unasked, out of the way of the new ones."""
    there = [path for name in _TOLD for path in sorted(run.glob(name)) if _is_there(path)]
    if not there:
        return
    number = next(n for n in itertools.count(1) if not (run / f"weights-before-{n}").exists())
    place = run / f"weights-before-{number}"
    place.mkdir()
    for path in there:
        path.rename(place / path.name)
    names = ", ".join(path.name for path in there)
    say(f"{run.name}: {names}: of the weights before, so moved to {place.name}; ask for them again")


def _mend_unfinished(run: Path) -> None:
    """Of a training that goes on: its recipe is written anew, and what validation judged is trained anew."""
    if _is_there(run / folders.RUN_FILE) and not files.reads(run / folders.RUN_FILE):
        say(f"{run.name}/{folders.RUN_FILE} is damaged: made again")
        _remove(run / folders.RUN_FILE)
    before = run / folders.BEFORE_REFIT
    if _is_there(before / folders.TRAINING_FILE) and (why := untrained(before)) is not None:
        say(f"{run.name}: {why}: trained again")
        _remove(before)


def _not_validated(run: Path) -> str | None:
    """Why the weights that validation judged cannot be used, where the run was refit and they are still asked for."""
    if not files.part(files.part(files.read_yaml(run / folders.RUN_FILE), "recipe"), "training").get("refit"):
        return None
    explained = (run / folders.SALIENCY_FILE).is_file() or (run / folders.METRICS_FILE).is_file()
    if (run / folders.VALIDATION_FILE).is_file() and explained:
        return None
    why = untrained(run / folders.BEFORE_REFIT)
    return None if why is None else f"{folders.BEFORE_REFIT}: {why}"


def untrained(run: Path) -> str | None:
    """Why a run is not trained, or cannot be used; None where it can."""
    if not _is_there(run / folders.TRAINING_FILE):
        return f"{folders.TRAINING_FILE} is missing"
    if not files.reads(run / folders.TRAINING_FILE):
        return f"{folders.TRAINING_FILE} is damaged"
    try:
        content = files.read_yaml(folders.check_run(run) / folders.RUN_FILE)
        if not isinstance(content["recipe"], dict) or not content["classes"]:
            return f"{folders.RUN_FILE} is damaged"
        folders.check_sums(run, content)
    except UserError as problem:
        return str(problem)
    except (KeyError, TypeError):
        return f"{folders.RUN_FILE} is damaged"
    except OSError as problem:
        return f"{problem.filename or run}: {(problem.strerror or str(problem)).lower()}"
    return None


def _reads(path: Path) -> bool:
    return _is_familiar(path.parent) if path.name == folders.FAMILIARITY_FILE else files.reads(path)


def _is_familiar(run: Path) -> bool:
    try:
        return familiarity.load(run) is not None
    except UserError:
        return False


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
