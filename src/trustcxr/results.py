"""Run and study folders: read, write, check. Files are written under a temporary name and renamed."""

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import trustcxr
from trustcxr.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

RUN_FILE, WEIGHTS_FILE, TRAINING_FILE = "run.yaml", "model.safetensors", "training.json"
HISTORY_FILE, PREDICTIONS_FILE, SALIENCY_FILE = "history.csv", "predictions.parquet", "saliency.parquet"
METRICS_FILE, PANELS_FILE = "metrics.json", "panels.npz"
VALIDATION_FILE = "validation.parquet"  # predictions on the validation images: to choose by, and to calibrate on
VALIDATED = "validated"  # of a run that was trained once more on validation images: the run that validation judged
STUDY_FILE, STUDY_RESULTS, REPORT_FILE = "study.yaml", "study.json", "report.html"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write one JSON document; NaN becomes null, so that any reader takes it."""
    with replacing(path) as temporary:
        temporary.write_text(to_json(content), encoding="utf-8")


def to_json(content: Any) -> str:
    """A JSON document without NaN."""
    return json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value


def read_json(path: Path) -> Any:
    """One JSON document; UserError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as problem:
        raise UserError(f"{path}: not readable as JSON ({problem})") from None


def write_yaml(path: Path, content: Any) -> None:
    """Write one YAML document."""
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(_plain(content), sort_keys=False, allow_unicode=True), encoding="utf-8")


def read_yaml(path: Path, *, what: str = "file") -> dict[str, Any]:
    """One YAML document with keys and values; UserError where it is missing or broken. `what` is its name there."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(problem).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Write a table as CSV or Parquet, by the ending of `path`."""
    with replacing(path) as temporary:
        if path.suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)


def write_batches(path: Path, tables: "Iterable[pd.DataFrame]") -> None:
    """Write tables of the same columns one after the other into one Parquet file; one at a time is in memory."""
    import pyarrow as pa
    from pyarrow import parquet

    with replacing(path) as temporary:
        writer = None
        try:
            for table in tables:
                if writer is None:
                    schema = pa.Schema.from_pandas(table, preserve_index=False)
                    writer = parquet.ParquetWriter(temporary, schema)
                writer.write_table(pa.Table.from_pandas(table, schema=writer.schema, preserve_index=False))
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            raise ValueError(f"{path.name}: no table to write")


def read_table(path: Path) -> "pd.DataFrame":
    """A table from CSV or Parquet; UserError where it is missing or broken."""
    import pandas as pd

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except Exception as problem:
        raise UserError(f"{path}: not readable as a table ({type(problem).__name__})") from problem


def check_run(folder: Path) -> Path:
    """The folder itself; UserError, saying what is missing, where it does not hold a trained run."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; a run is made by `trustcxr train` or `trustcxr study`")
    missing = [name for name in (RUN_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        runs = sorted(p.parent.name for p in folder.glob(f"runs/*/{RUN_FILE}"))
        if runs:
            hint = f"it is a study; its runs are {', '.join(runs)} in {folder / 'runs'}"
        elif (folder / RUN_FILE).is_file():
            hint = "its training is not finished: run the same command again"
        else:
            hint = "give the folder of a run"
        raise UserError(f"{folder}: not a trained run ({' and '.join(missing)} missing): {hint}")
    return folder


def validated(run: Path) -> Path:
    """The folder of the weights that validation judged: the run itself, unless it was trained once more after that."""
    return run / VALIDATED if (run / VALIDATED).is_dir() else run


def check_study(folder: Path) -> Path:
    """The folder itself; UserError where it holds no study with results."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such study folder; a study is made by `trustcxr study`")
    if not (folder / STUDY_RESULTS).is_file():
        hint = (
            "started but not finished: run the same `trustcxr study` again"
            if (folder / STUDY_FILE).is_file()
            else ("give the folder that `trustcxr study --out` wrote")
        )
        raise UserError(f"{folder}: no {STUDY_RESULTS} here: {hint}")
    return folder


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"trustcxr": trustcxr.__version__, "python": platform.python_version()}
    for package in ("torch", "timm", "pytorch-lightning", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def once(path: Path, make: Callable[[], object]) -> bool:
    """Call `make` unless the file that it ends with is there; True where it was called."""
    if path.is_file():
        return False
    make()
    return True


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write named arrays as .npz (numbers and text only, so that nothing needs unpickling)."""
    import numpy as np

    if objects := [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]:
        raise TypeError(f"{path.name}: {objects[0]} is neither numbers nor text")
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)
