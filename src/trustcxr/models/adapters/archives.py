"""torch's zip archives (.pt2, TorchScript, .pth), looked at before anything is read into memory."""

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

from trustcxr.errors import UserError

_SMALL = 64 * 2**20  # bytes that code and JSON may take once unpacked
_SIZES = {"Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}
_SIZES |= {"Bool": 1, "ComplexFloat": 8, "ComplexDouble": 16, "Untyped": 1}


class Archive:
    """The records of one archive, by name without the folder that they all lie in.

    Raises UserError for a file that is no zip archive, or whose records claim more than the file holds.
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
        self._records = {r.filename.partition("/")[2] or r.filename: r for r in records}

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
