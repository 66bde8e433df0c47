"""Tables of text as others wrote them: lists, manifests, side-cars; what cannot be read is said with its row."""

import shlex
import warnings
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from trustcxr.errors import UserError

_HEADER = "header"  # in a table's `attrs`: its columns as the file names them, where pandas had to number some
_UNKNOWN_WORDS = ("not recorded", "unknown", "unspecified")
_UNKNOWN = frozenset(["", "na", "n/a", "nan", "none", "null", "-", "--", "?"])
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_table(file: Path) -> pd.DataFrame:
    """A table of text from a CSV, tab- or space-separated, or Parquet file. Raises UserError."""
    try:
        if file.suffix.lower() == ".parquet":
            return pd.read_parquet(file).astype(object)
        with open(file, encoding="utf-8-sig") as lines:
            head = lines.readline(1 << 20)
        if "\0" in head:
            raise _other_encoding(file, 1, "looks like UTF-16")
        separator = max(",;\t", key=head.count)
        if separator not in head:
            # COVIDx: no header, and the source of an image only in some lines. Its places are its names.
            rows = [line.split() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
            return pd.DataFrame(list(zip_longest(*zip_longest(*rows)))).astype(object)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return _separated(file, separator)
    except pd.errors.ParserWarning:
        raise UserError(
            f"{file}: its rows have more cells than its header names columns: a '{separator}' at their end, or in a "
            "text that is not quoted"
        ) from None
    except UnicodeDecodeError:
        raise _not_utf8(file) from None
    except (ValueError, OSError) as fault:  # pandas' and pyarrow's faults are ValueErrors
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise UserError(f"{file}: not a readable table ({reason})") from None


def _separated(file: Path, separator: str) -> pd.DataFrame:
    # `index_col`: else rows of one cell more than the header would have their first taken for a name.
    how: Any = {"sep": separator, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig", "index_col": False}
    table = pd.read_csv(file, **how)
    names = [str(name) for name in table.columns]
    if any(name.rpartition(".")[0] in names for name in names if name.rpartition(".")[2].isdecimal()):
        table.attrs[_HEADER] = pd.read_csv(file, header=None, nrows=1, **how).iloc[0].tolist()
    return table


def _not_utf8(file: Path) -> UserError:
    """Where in a file the first byte stands that is not UTF-8."""
    content = file.read_bytes()
    if content[:2] in _UTF16 or b"\0" in content[:1000]:
        return _other_encoding(file, 1, "looks like UTF-16")
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        before = content[: fault.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return _other_encoding(file, before.count(b"\n") + 1, f"has the byte 0x{content[fault.start]:02x}")
    return UserError(f"{file}: was changed while it was read: try again")


def _other_encoding(file: Path, row: int, why: str) -> UserError:
    return UserError(
        f"{file}: row {row} is not UTF-8 text ({why}): save it as UTF-8, which spreadsheets call 'CSV UTF-8'"
    )


def row_number(table: pd.DataFrame, file: Path, place: int) -> int:
    """The row of a file that a row of its table is, as editors and spreadsheets count: the header is row 1."""
    has_header = file.suffix.lower() != ".parquet" and any(isinstance(name, str) for name in table.columns)
    return place + (2 if has_header else 1)


def file_header(table: pd.DataFrame) -> list[Any]:
    """The columns of a table as its file names them, where two may have one name."""
    found: list[Any] = table.attrs.get(_HEADER, list(table.columns))
    return found


def find_columns_like(table: pd.DataFrame, column: str, *, exactly: bool) -> list[int]:
    """The places of the columns that have a column's name, or, unless exactly, one of other capitals or blanks."""
    return [
        place
        for place, name in enumerate(file_header(table))
        if name == column or (not exactly and isinstance(name, str) and _plain(name) == _plain(column))
    ]


def check_distinct_columns(table: pd.DataFrame, file: Path, places: Sequence[int], word: str | None = None) -> None:
    """UserError where these are several columns; `word` is ours for what one of them must be, if it can be chosen."""
    if len(places) < 2:
        return
    names, numbers = [str(file_header(table)[place]) for place in places], " and ".join(map(str, places))
    if len(set(names)) == 1:
        said = f"columns {numbers}, counted from 0, are both called '{names[0]}'"
        chosen = str(places[0])
    else:
        said = f"the columns {' and '.join(map(repr, names))} differ only in capitals or blanks"
        chosen = shlex.quote(names[0])
    choose = f", or choose one, such as --column {word}={chosen}" if word else ""
    raise UserError(f"{file}: {said}: rename or remove one{choose}")


def _plain(name: str) -> str:
    return name.strip().lower()


def is_blank(value: str) -> bool:
    """Tell whether a value of a table is one of the ways to write that a patient, source or view is not known."""
    return value.strip().lower() in _UNKNOWN or has_unknown_word(value)


def has_unknown_word(value: str) -> bool:
    """Tell whether a value says in words that nothing is known."""
    return any(word in value.lower() for word in _UNKNOWN_WORDS)
