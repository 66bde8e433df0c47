"""Read tables of text in any usual format; errors name the row."""

import codecs
import warnings
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trustcxr.errors import UserError

_UNKNOWN_WORDS = ("not recorded", "unknown", "unspecified")
_UNKNOWN = frozenset(["", "na", "n/a", "nan", "none", "null", "-", "--", "?"])


def read_table(file: Path) -> pd.DataFrame:
    """Read a table of text from a CSV, tab- or space-separated, or Parquet file. Raises UserError."""
    try:
        if file.suffix.lower() == ".parquet":
            return _read_parquet(file)
        text = _read_text(file)
        head = "".join(text[: 1 << 20].splitlines()[:1])
        separator = max(",;\t", key=head.count)
        if separator not in head:
            # COVIDx: no header, and the source of an image only in some lines.
            rows = [line.split() for line in text.splitlines() if line.strip()]
            return pd.DataFrame(list(zip_longest(*zip_longest(*rows)))).astype(object)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return _separated(file, text, separator)
    except pd.errors.ParserWarning:
        raise UserError(
            f"{file}: its rows have more cells than its header. Remove a '{separator}' at their end, or quote texts "
            "that contain one"
        ) from None
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


def _separated(file: Path, text: str, separator: str) -> pd.DataFrame:
    # Without `index_col`, the first cell of rows longer than the header would become the index.
    how: Any = {"sep": separator, "dtype": str, "keep_default_na": False, "index_col": False}
    header = pd.read_csv(StringIO(text), header=None, nrows=1, **how).iloc[0].tolist()
    if twice := next((name for name in header if name.strip() and header.count(name) > 1), None):
        numbers = " and ".join(str(index) for index, name in enumerate(header) if name == twice)
        raise UserError(f"{file}: columns {numbers}, counted from 0, are both called '{twice}'. Rename or remove one")
    return pd.read_csv(StringIO(text), **how)


def _read_text(file: Path) -> str:
    """Read UTF-8 text. The error names the row of the first other byte."""
    content = file.read_bytes()
    row, why = 1, "looks like UTF-16"
    if not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" not in content.partition(b"\n")[0]:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as fault:
            row, why = len((content[: fault.start] + b"x").splitlines()), f"has the byte 0x{content[fault.start]:02x}"
    raise UserError(
        f"{file}: row {row} is not UTF-8 text ({why}). Save it as UTF-8, which spreadsheets call 'CSV UTF-8'"
    )


def row_number(table: pd.DataFrame, file: Path, index: int) -> int:
    """Convert a table's row index to the file's row number, as spreadsheets count: the header is row 1."""
    has_header = file.suffix.lower() != ".parquet" and any(isinstance(name, str) for name in table.columns)
    return index + (2 if has_header else 1)


def is_blank(value: str) -> bool:
    """Tell whether a value means that a patient, source or view is unknown."""
    return value.strip().lower() in _UNKNOWN or has_unknown_word(value)


def has_unknown_word(value: str) -> bool:
    """Tell whether a value contains a word for unknown."""
    return any(word in value.lower() for word in _UNKNOWN_WORDS)
