"""Write JSON, YAML, tables and arrays under a temporary name and rename them; read them back."""

import copy
import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trustcxr.errors import UserError
from trustcxr.storage.os_errors import open_regular, writing

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

REMAKE = "delete it, and the command that wrote it makes it again"
_MOST_JSON, _MOST_YAML = 1 << 30, 1 << 20  # bytes
_MOST_PARTS = 300_000  # keys, values and brackets in one YAML document, aliases followed
_PROVENANCE = b"trustcxr"  # the key in a Parquet file's metadata


@contextmanager
def atomic_write(path: Path, *, needed: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it if the block ends without an error.

    Raises CannotWrite, with the old file still whole, if the disk is full, read-only or forbidden. The message names
    the bytes `needed`: if unknown, the size of the old file or of what was written.
    """
    sizes = [needed]
    temporary = path.with_name(f".{path.stem[:200]}.{os.getpid()}{path.suffix}")
    with writing(path, needed=lambda: needed or max(sizes)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # a name must not outlive a power cut that its content did not
            temporary.replace(path)
        finally:
            for file_path in (path, temporary):
                with suppress(OSError):
                    sizes.append(file_path.stat().st_size)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # typeshed


def write_json(path: Path, content: Any) -> None:
    """Write one JSON document, typed or plain; NaN becomes null."""
    write_text(path, to_json(content))


def to_json(content: Any) -> str:
    """Return a JSON document without NaN."""
    return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Return a value as JSON and YAML have it: documents, arrays and tuples as mappings, lists and numbers."""
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
    """Read one JSON document. Raises UserError if it is missing or damaged."""
    try:
        return json.loads(_read_text(path, _MOST_JSON))
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{path}: not readable as JSON ({problem}); {REMAKE}") from None


def read_document(path: Path) -> dict[str, object]:
    """Read one JSON document with keys and values. Raises UserError if it is missing, damaged or something else."""
    return _require_keys(path, read_json(path), f"; {REMAKE}")


def write_yaml(path: Path, content: Any) -> None:
    """Write one YAML document."""
    write_text(path, yaml.safe_dump(plain(content), sort_keys=False, allow_unicode=True))


def read_yaml(path: Path, *, what: str = "file", advice: str = "") -> dict[str, object]:
    """Read one YAML document with keys and values. Raises UserError if it is missing or damaged.

    `what`: its name in the message. `advice`: what to do if it is damaged.
    """
    advice = f"; {advice}" if advice else ""
    try:
        content = parse_yaml(_read_text(path, _MOST_YAML, what))
    except (ValueError, yaml.YAMLError) as problem:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(problem).split())}{advice}") from None
    return _require_keys(path, content, advice)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8; what is no text is escaped."""
    content = text.encode("utf-8", "backslashreplace")
    with atomic_write(path, needed=len(content)) as temporary:
        temporary.write_bytes(content)


def _read_text(path: Path, most: int, what: str = "file") -> str:
    try:
        with open_regular(path, most=most) as file:
            return file.read().decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None


def _require_keys(path: Path, content: Any, advice: str) -> dict[str, object]:
    if not isinstance(content, dict):
        kind = "nothing" if content is None else type(content).__name__
        raise UserError(f"{path}: expected keys and values, found {kind}{advice}")
    return content


def section(content: Mapping[str, object], key: str) -> dict[str, object]:
    """Return the mapping under a key; empty if there is none."""
    part = content.get(key)
    return part if isinstance(part, dict) else {}


def records(content: Mapping[str, object], key: str) -> list[dict[str, Any]]:
    """Return the mappings in the list under a key; empty if there is none."""
    part = content.get(key)
    return [each for each in part if isinstance(each, dict)] if isinstance(part, list) else []


def parse_yaml(text: str) -> Any:
    """Parse YAML text. Raises ValueError if it is nested too deeply, or its aliases unfold to too many values.

    Raises yaml.YAMLError if it is no YAML, or a mapping has a key twice.
    """
    return copy.deepcopy(_parse_once(text))


@functools.lru_cache(maxsize=64)  # each step of a study reads the same recipe, and to parse takes longer than to copy
def _parse_once(text: str) -> Any:
    try:
        content = yaml.load(text, _UniqueKeyLoader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    values = json.JSONEncoder(skipkeys=True, default=str).iterencode(content)  # which refuses an alias in itself
    if any(number > _MOST_PARTS for number, _ in enumerate(values)):
        raise ValueError(f"its aliases unfold to more than {_MOST_PARTS:,} keys and values")
    return content


class _UniqueKeyLoader(yaml.SafeLoader):
    """Load YAML in which no mapping has a key twice: the first of two would be lost in silence."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if (name := (key.tag, key.value)) in lines:
                    raise yaml.YAMLError(f"key '{key.value}' is there twice, in lines {lines[name]} and {line}")
                lines[name] = line
        return node


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Write a table as CSV or Parquet, by the ending of `path`."""
    with atomic_write(path) as temporary:
        if path.suffix.lower() == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)


def write_batches(path: Path, tables: "Iterable[pd.DataFrame]", provenance: str = "") -> None:
    """Write tables of the same columns into one Parquet file, one at a time; `provenance` goes into its metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    batches = iter(tables)
    if (first := next(batches, None)) is None:
        raise ValueError(f"{path.name}: no table to write")
    schema = pa.Schema.from_pandas(first, preserve_index=False)
    schema = schema.with_metadata({**(schema.metadata or {}), _PROVENANCE: provenance})
    with atomic_write(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for table in chain([first], batches):
            writer.write_table(pa.Table.from_pandas(table, schema=schema, preserve_index=False))


def read_provenance(path: Path) -> str:
    """Return the provenance in a Parquet file; "" if it is no file, is damaged or has none."""
    from pyarrow import parquet

    if not path.is_file():  # a named pipe would be waited for without end
        return ""
    try:
        facts = parquet.read_metadata(path)
        return (facts.metadata or {}).get(_PROVENANCE, b"").decode() if facts.num_rows else ""
    except Exception:  # damaged, forbidden, a folder
        return ""


def read_table(path: Path, columns: list[str] | None = None, *, text: Sequence[str] = ()) -> "pd.DataFrame":
    """Read a table, or some of its columns, from CSV or Parquet. Raises UserError if it is missing or damaged.

    `text`: lower-case names of columns of a CSV that are read as text, so that an id keeps its zeros.
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
    """Return whether a file is whole by its format: a document, arrays, or a table with rows."""
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
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]  # an array could have an option's name
