"""JSON, YAML, tables and arrays: written under a temporary name and renamed, so whole or not at all."""

import copy
import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trustcxr.errors import UserError
from trustcxr.storage.os_errors import read_text, writing

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

REMAKE = "delete it, and the command that wrote it makes it again"
_MOST_JSON, _MOST_YAML = 1 << 30, 1 << 20  # bytes
_PROVENANCE = b"trustcxr"  # the key in a Parquet file's metadata
_MOST_VALUES = 100_000  # in one YAML document, aliases followed


@contextmanager
def atomic_write(path: Path, *, needed: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it if the block ends without an error.

    Raises CannotWrite, with the old file still whole, if the disk is full, read-only or forbidden. The message says how
    many bytes are `needed`: if that is not known, as many as the file had before, or had got to.
    """
    sizes = [needed]
    temporary = path.with_name(f".{path.stem[:200]}.{os.getpid()}{path.suffix}")
    with writing(path, needed=lambda: needed or max(sizes)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _to_disk(temporary)
            temporary.replace(path)
        finally:
            for known in (path, temporary):
                with suppress(OSError):
                    sizes.append(known.stat().st_size)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Have the system write what it holds of a file: a name must never outlive a power cut that its content did not."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def checksum(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write one JSON document, typed or plain; NaN becomes null, so that any reader takes it."""
    text = to_json(content).encode("utf-8")
    with atomic_write(path, needed=len(text)) as temporary:
        temporary.write_bytes(text)


def to_json(content: Any) -> str:
    """A JSON document without NaN."""
    return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """A value as JSON and YAML have it: documents, arrays and tuples as mappings, lists and numbers."""
    if hasattr(value, "plain"):  # a document
        return plain(value.plain())
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value


def read_json(path: Path) -> Any:
    """One JSON document; UserError where it is missing or broken."""
    try:
        return json.loads(read_text(path, most=_MOST_JSON))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{path}: not readable as JSON ({problem}); {REMAKE}") from None


def read_document(path: Path) -> dict[str, object]:
    """One JSON document with keys and values; UserError where it is missing, broken or something else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(content).__name__}; {REMAKE}")
    return content


def write_yaml(path: Path, content: Any) -> None:
    """Write one YAML document."""
    text = yaml.safe_dump(plain(content), sort_keys=False, allow_unicode=True).encode("utf-8")
    with atomic_write(path, needed=len(text)) as temporary:
        temporary.write_bytes(text)


def read_yaml(path: Path, *, what: str = "file", advice: str = "") -> dict[str, object]:
    """One YAML document with keys and values; UserError where it is missing or broken.

    `what` is its name there, `advice` what to do where it is broken.
    """
    then = f"; {advice}" if advice else ""
    try:
        content = parse_yaml(read_text(path, most=_MOST_YAML))
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None
    except (ValueError, yaml.YAMLError) as problem:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(problem).split())}{then}") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise UserError(f"{path}: expected keys and values, found {found}{then}")
    return content


def section(content: Mapping[str, object], key: str) -> dict[str, object]:
    """What stands under a key that has keys and values of its own; empty where there is nothing of the kind."""
    found = content.get(key)
    return found if isinstance(found, dict) else {}


def parse_yaml(text: str) -> Any:
    """The content of YAML text. ValueError where its aliases would unfold to more than a recipe can hold, or never end.

    yaml.YAMLError where it is not YAML, or a key stands twice beside its like.
    """
    return copy.deepcopy(_parsed(text))


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """Each step of a study reads the recipe and its run again, and to parse takes far longer than to copy."""
    try:
        content = yaml.load(text, _Once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _count_values(content, [0], ())
    return content


class _Once(yaml.SafeLoader):
    """YAML in which no key stands twice: the first of two would be lost in silence."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if (known := (key.tag, key.value)) in lines:
                    raise yaml.YAMLError(f"key '{key.value}' is there twice, in lines {lines[known]} and {line}")
                lines[known] = line
        return node


def _count_values(value: Any, counted: list[int], above: tuple[int, ...]) -> None:
    counted[0] += 1
    if counted[0] > _MOST_VALUES:
        raise ValueError(f"its aliases unfold to more than {_MOST_VALUES:,} values")
    if id(value) in above:
        raise ValueError("an alias holds itself")
    inside = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in inside:
        _count_values(part, counted, (*above, id(value)) if isinstance(value, dict | list) else above)


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Write a table as CSV or Parquet, by the ending of `path`."""
    with atomic_write(path) as temporary:
        if path.suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)


def write_batches(path: Path, tables: "Iterable[pd.DataFrame]", provenance: str = "") -> None:
    """Write tables of the same columns one after the other into one Parquet file; one at a time is in memory.

    `provenance` is stored in the file's own metadata.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with atomic_write(path) as temporary:
        writer = None
        try:
            for table in tables:
                if writer is None:
                    schema = pa.Schema.from_pandas(table, preserve_index=False)
                    schema = schema.with_metadata({**(schema.metadata or {}), _PROVENANCE: provenance})
                    writer = parquet.ParquetWriter(temporary, schema)
                writer.write_table(pa.Table.from_pandas(table, schema=writer.schema, preserve_index=False))
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            raise ValueError(f"{path.name}: no table to write")


def read_provenance(path: Path) -> str:
    """Return what `write_batches` stored beside a Parquet table; "" if the file is missing, damaged or has none."""
    from pyarrow import parquet

    try:
        found = parquet.read_metadata(path)
        return (found.metadata or {}).get(_PROVENANCE, b"").decode() if found.num_rows else ""
    except Exception:  # damaged, forbidden, a folder
        return ""


def read_table(path: Path, columns: list[str] | None = None, *, text: Sequence[str] = ()) -> "pd.DataFrame":
    """A table from CSV or Parquet, or some of its columns; UserError where it is missing or broken.

    `text`: lower-case names of columns that a CSV is read as it is written in, so that an id keeps its zeros.
    """
    import pandas as pd

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix != ".csv":
            return pd.read_parquet(path, columns=columns)
        names = pd.read_csv(path, nrows=0).columns if text else ()
        return pd.read_csv(path, usecols=columns, dtype={name: str for name in names if str(name).lower() in text})
    except PermissionError:
        raise UserError(f"{path}: cannot be read: permission denied") from None
    except Exception as problem:
        raise UserError(f"{path}: not readable as a table ({type(problem).__name__}); {REMAKE}") from problem


def is_readable(path: Path) -> bool:
    """Whether a file can be read by its format: a document, a table or arrays; of a Parquet file its end, its index.

    A table without a row holds nothing: none is written so.
    """
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            return bool(parquet.read_metadata(path).num_rows)
        if path.suffix == ".csv":
            return not read_table(path).empty
        if path.suffix in (".yaml", ".json"):
            return bool(read_yaml(path) if path.suffix == ".yaml" else read_document(path))
        return zipfile.is_zipfile(path)
    except Exception:  # damaged, forbidden, a folder
        return False


def write_arrays(path: Path, arrays: "Mapping[str, ArrayLike]") -> None:
    """Write named arrays as .npz (numbers and text only, so that nothing needs unpickling)."""
    import numpy as np

    if objects := [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]:
        raise TypeError(f"{path.name}: {objects[0]} is neither numbers nor text")
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]  # an array might be called as an option
