"""Read tables of text in any usual format; errors name the row."""

import shlex
import warnings
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trustcxr.errors import UserError

_HEADER = "header"  # key of a table's `attrs`: the file's column names, if pandas had to number duplicates
_UNKNOWN_WORDS = ("not recorded", "unknown", "unspecified")
_UNKNOWN = frozenset(["", "na", "n/a", "nan", "none", "null", "-", "--", "?"])
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_table(file: Path) -> pd.DataFrame:
    """Read a table of text from a CSV, tab- or space-separated, or Parquet file. Raises UserError."""
    try:
        if file.suffix.lower() == ".parquet":
            return _read_parquet(file)
        with open(file, encoding="utf-8-sig") as lines:
            head = lines.readline(1 << 20)
        if "\0" in head:
            raise _other_encoding(file, 1, "looks like UTF-16")
        separator = max(",;\t", key=head.count)
        if separator not in head:
            # COVIDx: no header, and the source of an image only in some lines.
            rows = [line.split() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
            return pd.DataFrame(list(zip_longest(*zip_longest(*rows)))).astype(object)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return _separated(file, separator)
    except pd.errors.ParserWarning:
        raise UserError(
            f"{file}: its rows have more cells than its header. Remove a '{separator}' at their end, or quote texts "
            "that contain one"
        ) from None
    except UnicodeDecodeError:
        raise _encoding_error(file) from None
    except (ValueError, OSError) as fault:  # pandas' and pyarrow's faults are ValueErrors
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise UserError(f"{file}: not a readable table: {reason}. Save it again as CSV or Parquet") from None


def _read_parquet(file: Path) -> pd.DataFrame:
    """Read a table with None for unknown values, a named index as columns, and lists joined by `|` as findings are."""
    table = pd.read_parquet(file)
    unnamed = [name for name in table.index.names if name is None or name in table.columns]
    table = table.reset_index(drop=len(unnamed) == len(table.index.names))
    for name in [name for name in table if pd.api.types.is_object_dtype(table[name])]:
        table[name] = table[name].map(lambda v: "|".join(map(str, v)) if isinstance(v, np.ndarray) else v)
    return table.astype(object).where(table.notna(), None)


def _separated(file: Path, separator: str) -> pd.DataFrame:
    # Without `index_col`, the first cell of rows longer than the header would become the index.
    how: Any = {"sep": separator, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig", "index_col": False}
    table = pd.read_csv(file, **how)
    names = [str(name) for name in table.columns]
    if any(name.rpartition(".")[0] in names for name in names if name.rpartition(".")[2].isdecimal()):
        table.attrs[_HEADER] = pd.read_csv(file, header=None, nrows=1, **how).iloc[0].tolist()
    return table


def _encoding_error(file: Path) -> UserError:
    """Return the error with the row of the first byte that is not UTF-8."""
    content = file.read_bytes()
    if content[:2] in _UTF16 or b"\0" in content[:1000]:
        return _other_encoding(file, 1, "looks like UTF-16")
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        before = content[: fault.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return _other_encoding(file, before.count(b"\n") + 1, f"has the byte 0x{content[fault.start]:02x}")
    return UserError(f"{file}: changed while it was read. Try again")


def _other_encoding(file: Path, row: int, why: str) -> UserError:
    return UserError(
        f"{file}: row {row} is not UTF-8 text ({why}). Save it as UTF-8, which spreadsheets call 'CSV UTF-8'"
    )


def row_number(table: pd.DataFrame, file: Path, index: int) -> int:
    """Convert a table's row index to the file's row number, as spreadsheets count: the header is row 1."""
    has_header = file.suffix.lower() != ".parquet" and any(isinstance(name, str) for name in table.columns)
    return index + (2 if has_header else 1)


def _header(table: pd.DataFrame) -> list[Any]:
    """Return the column names of the file, with duplicates."""
    return list(table.attrs.get(_HEADER, table.columns))


def find_columns_like(table: pd.DataFrame, column: str, *, exactly: bool) -> list[int]:
    """List the indices of columns with a name; unless `exactly`, other capitals and blanks match too."""
    return [
        index
        for index, name in enumerate(_header(table))
        if name == column or (not exactly and isinstance(name, str) and _plain(name) == _plain(column))
    ]


def check_distinct_columns(table: pd.DataFrame, file: Path, indices: Sequence[int], word: str | None = None) -> None:
    """Raise UserError if there are several columns; `word` is ours for the column, if the user can choose one."""
    if len(indices) < 2:
        return
    names, numbers = [str(_header(table)[i]) for i in indices], " and ".join(map(str, indices))
    if len(set(names)) == 1:
        problem = f"columns {numbers}, counted from 0, are both called '{names[0]}'"
        first = str(indices[0])
    else:
        problem = f"the columns {' and '.join(map(repr, names))} differ only in capitals or blanks"
        first = shlex.quote(names[0])
    choose = f", or choose one, such as --column {word}={first}" if word else ""
    raise UserError(f"{file}: {problem}. Rename or remove one{choose}")


def _plain(name: str) -> str:
    return name.strip().lower()


def is_blank(value: str) -> bool:
    """Tell whether a value means that a patient, source or view is unknown."""
    return value.strip().lower() in _UNKNOWN or has_unknown_word(value)


def has_unknown_word(value: str) -> bool:
    """Tell whether a value contains a word for unknown."""
    return any(word in value.lower() for word in _UNKNOWN_WORDS)
