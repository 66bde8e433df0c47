"""Find the images of folders and DICOM studies, classify them, and write the answers as a table.

Folders are walked, because a DICOMDIR may name missing files or omit files.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from trustcxr.apps.dicom import writer
from trustcxr.data.images import dicom_files, plausibility, read
from trustcxr.errors import CannotWrite, UserError, require
from trustcxr.report.tables.table import guarded
from trustcxr.storage.atomic import atomic_write
from trustcxr.storage.os_errors import escaped, file_kind
from trustcxr.storage.schemas import ImageAnswer

INDEX = "DICOMDIR"
MOST_FILES = 50_000  # in one folder; a disc of one patient has some hundreds
TABLE = "predictions.csv"


class DicomStudy(NamedTuple):
    """Images to classify, in order, and files left out, with reasons."""

    images: list[Path]
    left_out: list[ImageAnswer]


def predict(
    run: Path, paths: Sequence[Path], *, epsilon: float = 0.02, out: Path, objects: bool = False, anyway: bool = False
) -> list[ImageAnswer]:
    """Classify images and the images of folders; files left out come last, with reasons.

    anyway: also classify what is no upright frontal chest radiograph. objects: also write the answers to DICOM images
    as DICOM.
    """
    from trustcxr.explain import predict as one_image

    if objects:
        require("DICOM answers need", dicom_files.INSTALL, "highdicom")
    study = expand(paths)
    answers = one_image.predict(run, study.images, epsilon=epsilon, out=out, anyway=anyway)
    for answer in answers:
        if objects and answer.heatmap is not None:
            _write_dicom(answer)
    return [*answers, *study.left_out]


def write_table(answers: Sequence[ImageAnswer], out: Path) -> Path:
    """Write `predictions.csv`, a row for each image: class, probabilities, reasons for doubt or for no class."""
    classes = list(dict.fromkeys(name for answer in answers for name in answer.probabilities))
    fields = ("image", "predicted", "smallest_change", "heatmap", "left_out", "error")
    with atomic_write(out / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow([*fields, "doubts", *(f"probability {name}" for name in classes)])
        for answer in answers:
            doubts = "; ".join([*answer.warnings, *([answer.border] if answer.border else [])])
            shares = [answer.probabilities.get(name, "") for name in classes]
            texts = [escaped(str(getattr(answer, name) or "")) for name in fields]
            rows.writerow([*map(guarded, (*texts, doubts)), *shares])
    return out / TABLE


def _write_dicom(answer: ImageAnswer) -> None:
    if not read.is_dicom(answer.image):
        answer.no_dicom = "the image is not DICOM, so there is no study to belong to"
        return
    try:
        answer.dicom = writer.write(Path(answer.image), answer)
    except writer.NoDicomAnswer as why:
        answer.no_dicom = str(why)
    except CannotWrite as problem:  # the other answers are not lost
        answer.error = f"no DICOM answer: {problem}"


def expand(paths: Sequence[Path]) -> DicomStudy:
    """Return files as they are, and the images of each folder (or DICOMDIR).

    DICOM files without a frontal chest image, by their headers, are left out with a reason; files that are neither
    DICOM nor called as an image are counted. A damaged or unreadable DICOM file counts as an image, so that reading it
    reports the error. Raises UserError if a folder has none.
    """
    study = DicomStudy([], [])
    for path in paths:
        folder = path.parent if path.name == INDEX and path.is_file() else path
        if folder.is_dir():
            _add_folder(study, folder)
        else:
            study.images.append(path)
    return study


def _add_folder(study: DicomStudy, folder: Path) -> None:
    images, left_out, others = [], [], 0
    for path in _list_files(folder):
        if os.access(path, os.R_OK) and not read.is_dicom(path):
            if path.suffix.lower() in read.SUFFIXES:
                images.append(path)
            else:
                others += 1
        elif path.name != INDEX:
            reason = dicom_files.reason_not_image(path) or plausibility.find_wrong_kind(path)
            if reason is None:
                images.append(path)
            else:
                left_out.append(ImageAnswer(image=str(path), left_out=reason))
    if others:
        files = "1 file that is" if others == 1 else f"{others} files that are"
        left_out.append(ImageAnswer(image=str(folder), left_out=f"{files} no image"))
    if not images:
        raise UserError(f"{folder}: no image here: {_join_reasons(left_out)}")
    study.images.extend(images)
    study.left_out.extend(left_out)


def _list_files(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder, sorted. Raises UserError beyond MOST_FILES."""
    count = 0
    for parent, folders, names in os.walk(folder, onerror=_raise_unreadable):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if file_kind(path.lstat().st_mode) is None:
                count += 1
                if count > MOST_FILES:
                    raise UserError(f"{folder}: more than {MOST_FILES:,} files. Give a smaller folder")
                yield path


def _raise_unreadable(problem: OSError) -> None:
    raise UserError(f"{problem.filename}: cannot be read: {(problem.strerror or '').lower()}") from None


def _join_reasons(left_out: Sequence[ImageAnswer]) -> str:
    """Return each reason once, with its count. File names are left out: they may name a patient."""
    counts = Counter(str(answer.left_out) for answer in left_out)
    texts = [reason if count == 1 else f"{count} times {reason}" for reason, count in counts.items()]
    return "; ".join(texts) or "it is empty; give the folder of a study, or an image"
