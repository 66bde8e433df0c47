"""A finished run with a damaged file: what can be made again is taken away, so that the study makes it again."""

import shutil
from pathlib import Path

from trustcxr.console import say
from trustcxr.errors import UserError
from trustcxr.results import files, folders

# Each file, and those that are made from it and go with it.
_TABLES = (
    folders.VALIDATION_FILE,
    folders.PREDICTIONS_FILE,
    folders.SALIENCY_FILE,
    folders.LESIONS_FILE,
)
_MADE_FROM_TABLES = (folders.METRICS_FILE, folders.PANELS_FILE)


def mend(run: Path) -> None:
    """Take away what is damaged of a run in a study, and what was made from it; each is said in a line.

    A run whose weights or recipe are gone or damaged is trained again; tables and documents are computed again.
    """
    if not any((run / name).exists() or (run / name).is_symlink() for name in (folders.TRAINING_FILE, *_TABLES)):
        return
    if (why := _untrained(run)) is not None:
        say(f"{run.name}: {why}: trained again")
        for name in (
            *_TABLES,
            *_MADE_FROM_TABLES,
            folders.TRAINING_FILE,
            folders.WEIGHTS_FILE,
            folders.RUN_FILE,
            folders.FILMS_FILE,
        ):
            _remove(run / name)
        return
    damaged = [name for name in _TABLES if _is_there(run / name) and not _table_reads(run / name)]
    if _is_there(run / folders.METRICS_FILE) and not _document_reads(run / folders.METRICS_FILE):
        damaged.append(folders.METRICS_FILE)
    for name in damaged:
        say(f"{run.name}/{name} is damaged: made again")
        _remove(run / name)
    if damaged:
        for name in _MADE_FROM_TABLES:
            _remove(run / name)


def _untrained(run: Path) -> str | None:
    """Why a run that says it is trained cannot be used; None where it can, or where it does not say so."""
    if not _is_there(run / folders.TRAINING_FILE):
        return None
    if not _document_reads(run / folders.TRAINING_FILE):
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


def _document_reads(path: Path) -> bool:
    try:
        return isinstance(files.read_json(path), dict)
    except UserError:
        return False


def _table_reads(path: Path) -> bool:
    """Whether a Parquet file is whole: its end holds the index of all the rest."""
    from pyarrow import parquet

    try:
        parquet.read_metadata(path)
    except Exception:  # damaged, forbidden, a folder
        return False
    return True


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
