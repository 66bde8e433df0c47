"""Set a run with a lost or damaged training aside, so that it is trained again."""

import itertools
from pathlib import Path

from trustcxr.console import log
from trustcxr.errors import UserError
from trustcxr.runs.provenance import TABLES
from trustcxr.storage import atomic, layout

_MEASURED = (*TABLES, layout.METRICS_FILE)
_OTHERS = (layout.EXAMPLES_FILE, layout.OOD_FILE, layout.AUDIT_FILE, layout.HISTORY_FILE, layout.IMAGES_FILE)
_ALSO = ("evaluations", "report.*", "report-*.csv", "model_card.md", "model.onnx*", "model.yaml", "program.*")
_STAYS = ("checkpoint", layout.FAILURE_FILE, layout.TIMINGS_FILE)


def check_foreign(folder: Path) -> None:
    """Raise UserError if a folder to train a run in holds other results."""
    markers = (layout.RUN_FILE, layout.TRAINING_FILE, layout.WEIGHTS_FILE)
    layout.check_foreign(folder, (*_MEASURED, *_OTHERS, *_ALSO, "checkpoint", layout.BEFORE_REFIT), markers)


def supersede_damaged(run: Path) -> None:
    """Move the files of a trained run that cannot be used into superseded-N; leave an unfinished training alone.

    Tables need no repair: a damaged one, or one of other weights, is not current and is measured again.
    """
    if not any(_exists(run / name) for name in (layout.TRAINING_FILE, *_MEASURED)):
        if _exists(run / layout.BEFORE_REFIT / layout.TRAINING_FILE):
            supersede_damaged(run / layout.BEFORE_REFIT)
        return
    if (why := untrained(run)) is None:
        return
    number = next(n for n in itertools.count(1) if not (run / f"superseded-{n}").exists())
    target = run / f"superseded-{number}"
    log(f"{run.name}: {why}: trained again; all that was there is moved to {target.name}")
    target.mkdir()
    last = (*_MEASURED, layout.TRAINING_FILE)  # so that a move that is cut off resumes at the next start
    for path in sorted(run.iterdir(), key=lambda path: (path.name in last, path.name == layout.TRAINING_FILE)):
        if not path.name.startswith((".", "superseded-")) and path.name not in _STAYS:
            path.rename(target / path.name)


def untrained(run: Path) -> str | None:
    """Return why a run is not trained or cannot be used; None if it can be used."""
    if not _exists(run / layout.TRAINING_FILE):
        return f"{layout.TRAINING_FILE} is missing"
    if not atomic.is_readable(run / layout.TRAINING_FILE):
        return f"{layout.TRAINING_FILE} is damaged"
    try:
        content = atomic.read_yaml(layout.check_run(run) / layout.RUN_FILE)
        if not isinstance(content["recipe"], dict) or not content["classes"]:
            return f"{layout.RUN_FILE} is damaged"
        layout.check_sums(run, content)
    except UserError as problem:
        return str(problem)
    except (KeyError, TypeError):
        return f"{layout.RUN_FILE} is damaged"
    except OSError as problem:
        return f"{problem.filename or run}: {(problem.strerror or str(problem)).lower()}"
    return None


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()
