"""torch's zip archives (.pt2, TorchScript, .pth), looked at before anything is read into memory."""

import io
import math
import pickle
import struct
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from trustcxr.errors import UserError

_SMALL = 64 * 2**20  # bytes that code and JSON may take once unpacked
_SIZES = {"Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}
_DESCRIBED, _UTF8 = 0x8, 0x800  # flags of a record: sizes stand behind it too, its name is UTF-8
_SIZES |= {"Bool": 1, "ComplexFloat": 8, "ComplexDouble": 16, "Untyped": 1}


class Archive:
    """The records of one archive, by name without the folder that they all lie in.

    Raises UserError for a file that is no zip archive, whose records claim more than the file holds, or which torch
    could read otherwise than we do, so that it would run what was not looked at here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            records = self._zip.infolist()
        except (OSError, zipfile.BadZipFile):
            raise UserError(f"{path}: not an archive that torch wrote; nothing in it was read") from None
        if sum(r.file_size for r in records if r.compress_type == zipfile.ZIP_STORED) > path.stat().st_size:
            raise UserError(f"{path}: its records claim more bytes than the file has")
        if sum(r.file_size for r in records if r.compress_type != zipfile.ZIP_STORED) > _SMALL:
            raise UserError(f"{path}: compressed records that unpack to more than {_SMALL >> 20} MB")
        with path.open("rb") as file:
            problem = _doubtful_names(records) or _doubtful_layout(file, records)
        if problem is not None:
            raise UserError(f"{path}: not an archive as torch writes it ({problem}); nothing in it was read")
        self._records = {r.filename.partition("/")[2]: r for r in records}

    @property
    def names(self) -> list[str]:
        """Every record's name."""
        return list(self._records)

    def size(self, name: str) -> int:
        """Bytes of a record; -1 where there is none."""
        return self._records[name].file_size if name in self._records else -1

    def read(self, name: str) -> bytes:
        """A record's bytes; UserError where it is missing or damaged."""
        try:
            return self._zip.read(self._records[name])
        except KeyError:
            raise UserError(f"{self.path}: '{name}' is missing in it: not a whole file") from None
        except Exception as problem:
            raise UserError(f"{self.path}: '{name}' in it is damaged ({type(problem).__name__})") from None


def _doubtful_names(records: list[zipfile.ZipInfo]) -> str | None:
    """Why torch could find other records: it looks in the folder of the first one, and whatever the letter case."""
    if odd := [r.orig_filename for r in records if r.filename != r.orig_filename or not r.filename.isprintable()]:
        return f"a record is named {odd[0]!r}"
    if any("/" not in r.filename for r in records) or len({r.filename.partition("/")[0] for r in records}) > 1:
        return "its records do not lie in one folder"
    twice = [name for name, count in Counter(r.filename.lower() for r in records).items() if count > 1]
    return f"several records are named {twice[0]!r}, but for letter case" if twice else None


def _doubtful_layout(file: BinaryIO, records: list[zipfile.ZipInfo]) -> str | None:
    """Why the file can be read in two ways: records lie one behind the other from its first byte on, then one table."""
    end = _table(file, len(records))
    if end is None:
        return "it does not end with one table of its records"
    ordered = sorted(records, key=lambda r: r.header_offset)
    starts = [r.header_offset for r in ordered] + [end]
    if starts[0] != 0 or any(_end(file, r) != following for r, following in zip(ordered, starts[1:], strict=True)):
        return "its records do not lie one behind the other"
    return None


def _table(file: BinaryIO, count: int) -> int | None:
    """Where the table of so many records begins; None where a reader could find another one, or another end of it."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 98))
    tail = file.read().rjust(98, b"\0")
    mark, *_, held, length, start, comment = struct.unpack("<4s4H2LH", tail[-22:])
    end = size - 22
    if tail[-42:-38] == b"PK\x06\x07":  # numbers of 64 bits, which torch always writes
        end = size - 98
        _, _, place, _ = struct.unpack("<4sLQL", tail[-42:-22])
        wide, _, _, _, _, _, _, held, length, start = struct.unpack("<4sQ2H2L4Q", tail[:-42])
        if (wide, place) != (b"PK\x06\x06", end):
            return None
    return start if (mark, comment, held, start + length) == (b"PK\x05\x06", 0, count, end) else None


def _end(file: BinaryIO, record: zipfile.ZipInfo) -> int | None:
    """Where a record ends; None where what it says of itself is not what the table says, or is not as torch writes."""
    file.seek(record.header_offset)
    mark, _, flags, name, extra = struct.unpack("<4s2H18x2H", file.read(30).rjust(30, b"\0"))
    stored = record.compress_type == zipfile.ZIP_STORED and record.compress_size == record.file_size
    if mark != b"PK\x03\x04" or flags != record.flag_bits or flags & ~(_DESCRIBED | _UTF8):
        return None
    if not stored and record.compress_type != zipfile.ZIP_DEFLATED:
        return None
    end = record.header_offset + 30 + name + extra + record.compress_size
    if not flags & _DESCRIBED:
        return end
    file.seek(end)
    mark, _, *sizes = struct.unpack("<4sL2L", (described := file.read(24).ljust(24, b"\0"))[:16])
    if sizes == [record.compress_size, record.file_size]:
        return end + 16 if mark == b"PK\x07\x08" else None
    mark, _, *sizes = struct.unpack("<4sL2Q", described)
    return end + 24 if (mark, *sizes) == (b"PK\x07\x08", record.compress_size, record.file_size) else None


def check_pickle(archive: Archive, name: str, *, tensors: str) -> None:
    """UserError where the pickle `name` claims tensors larger than their records, which lie under `tensors`.

    Nothing that the pickle names is imported or called: inert stand-ins take the place of everything.
    """
    reader = _Inert(archive, name, tensors)
    try:
        reader.load()
    except UserError:
        raise
    except Exception as problem:
        raise UserError(f"{archive.path}: '{name}' in it is no list of tensors ({type(problem).__name__})") from None


class _Thing:
    """What stands in for every class and function that a pickle names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> "_Thing":
        return _Thing()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None: ...
    def append(self, value: Any) -> None: ...
    def extend(self, values: Any) -> None: ...


class _Inert(pickle._Unpickler):  # the one in Python: torch writes calls whose arguments are lists
    """Reads a pickle without running any of it, and weighs the tensors that it claims."""

    def __init__(self, archive: Archive, name: str, tensors: str) -> None:
        super().__init__(io.BytesIO(archive.read(name)))
        self.archive, self.tensors = archive, tensors

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}".startswith(("torch.classes", "__torch__.torch.classes")):
            raise UserError(f"{self.archive.path}: it holds a {module}.{name}, whose code runs when it is read")
        if module == "torch._utils" and name.startswith("_rebuild_tensor"):
            return self._tensor
        return type(name, (_Thing,), {}) if name.isidentifier() else _Thing

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, count = pid[:5]
        name = getattr(kind, "__name__", str(kind)).removesuffix("Storage")
        held = self.archive.size(f"{self.tensors}/{key}")
        if not isinstance(count, int) or count * _SIZES.get(name, 1) > max(held, 0):
            raise UserError(
                f"{self.archive.path}: a tensor of {count} numbers is claimed where {max(held, 0)} bytes are"
            )
        return ("storage", count)

    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Any:
        reach = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 if math.prod(size) else 0
        if min((offset, *size, *stride), default=0) < 0 or reach > storage[1]:
            raise UserError(f"{self.archive.path}: a tensor of {tuple(size)} reaches beyond its {storage[1]} numbers")
        return _Thing()
