"""Folders and files of a data set, listed in one order; masks beside their images."""

import os
from pathlib import Path
from typing import Any

from trustcxr.data.images.reading import SUFFIXES, is_dicom

Record = dict[str, Any]


def _folders(folder: str | Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")


def _files(folder: str | Path) -> list[str]:
    """The image files in a folder, told by their names; where none is, the DICOM files, told by their content."""
    names = os.listdir(folder)
    images = [n for n in names if n[n.rfind(".") :].lower() in SUFFIXES and n[0] != "."]
    # DICOM files often have no suffix, or a number's.
    return sorted(images or [n for n in names if is_dicom(f"{folder}/{n}")])


class _Masks:
    """The mask files of a folder, found by an image's file name, else by its name without the suffix."""

    def __init__(self, folder: str, relative: str) -> None:
        names = _files(folder)
        self.paths = {n: f"{relative}/{n}" for n in names}
        self.stems = {os.path.splitext(n)[0]: f"{relative}/{n}" for n in names}

    def get(self, name: str) -> str | None:
        return self.paths.get(name) or self.stems.get(os.path.splitext(name)[0])
