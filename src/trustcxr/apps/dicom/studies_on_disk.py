"""The images of study folders, and their answers. Of a folder: every DICOM file whose header says a frontal chest
image.

The folder is walked and DICOMDIR is not believed: it may name files that are elsewhere, or not all that are here.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trustcxr.data.images import dicom_files, plausibility, read
from trustcxr.errors import CannotWrite, UserError
from trustcxr.storage.os_errors import file_kind
from trustcxr.storage.schemas import ImageAnswer

INDEX = "DICOMDIR"
MOST_FILES = 5000  # in one folder: a study has a handful, a disc of one patient some hundreds


@dataclass
class DicomStudy:
    """What is to be answered, in order, and what of the folders is not, with its reason."""

    images: list[Path] = field(default_factory=list)
    left_out: list[ImageAnswer] = field(default_factory=list)


def predict(
    run: Path, paths: Sequence[Path], *, epsilon: float = 0.02, out: Path | None = None, objects: bool = False
) -> list[ImageAnswer]:
    """An answer for each image, and for each image of a folder; with `objects` also as DICOM, where the image is DICOM.

    Last what of the folders is left out, and why.
    """
    from trustcxr.apps.dicom import writer
    from trustcxr.explain import predict as one_image

    if objects:
        writer.check_installed()
    found = expand(paths)
    given = one_image.predict(run, found.images, epsilon=epsilon, out=out)
    for answer in given if objects else ():
        if answer.heatmap is not None:
            _as_dicom(Path(answer.image), answer)
    return [*given, *found.left_out]


def _as_dicom(image: Path, answer: ImageAnswer) -> None:
    from trustcxr.apps.dicom import writer

    if not read.is_dicom(image):
        answer.no_dicom = "the image is not DICOM, so there is no study to belong to"
        return
    try:
        answer.dicom = writer.write(image, answer)
    except writer.NoDicomAnswer as why:
        answer.no_dicom = str(why)
    except CannotWrite as problem:  # every image was answered by now: none of that is lost
        answer.error = f"no DICOM answer: {problem}"


def expand(paths: Sequence[Path]) -> DicomStudy:
    """Files as they are; of each folder (or its DICOMDIR) the frontal chest images, by what their headers say.

    What else is DICOM is left out, saying why; other files (a viewer, its pictures) are counted. A file whose header is
    damaged, or that may not be read, counts as an image: where it is read, it is said what is wrong. UserError where a
    folder holds no image, or one in it may not be read.
    """
    found = DicomStudy()
    for path in paths:
        folder = path.parent if path.name == INDEX and path.is_file() else path
        if not folder.is_dir():
            found.images.append(path)
            continue
        within = _of_folder(folder)
        if not within.images:
            raise UserError(f"{folder}: no frontal chest image here: {_why(within.left_out)}")
        found.images += within.images
        found.left_out += within.left_out
    return found


def _of_folder(folder: Path) -> DicomStudy:
    found, others = DicomStudy(), 0
    for path in _files(folder):
        if os.access(path, os.R_OK) and not read.is_dicom(path):
            others += 1
        elif path.name != INDEX:
            why = dicom_files.reason_not_image(path) or plausibility.find_wrong_kind(path)
            if why is None:
                found.images.append(path)
            else:
                found.left_out.append(ImageAnswer(image=str(path), left_out=why))
    if others:
        said = "1 file that is" if others == 1 else f"{others} files that are"
        found.left_out.append(
            ImageAnswer(image=str(folder), left_out=f"{said} not DICOM (pictures are named one by one)")
        )
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Regular files below a folder, in order; links and pipes are not followed. UserError beyond MOST_FILES."""
    count = 0
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if file_kind(path.lstat().st_mode) is not None:
                continue
            count += 1
            if count > MOST_FILES:
                raise UserError(f"{folder}: more than {MOST_FILES:,} files: give the folder of one study")
            yield path


def _unreadable(problem: OSError) -> None:
    """Images in a folder that may not be listed would else be passed over, and nobody told."""
    raise UserError(f"{problem.filename}: cannot be read: {(problem.strerror or '').lower()}") from None


def _why(left_out: Sequence[ImageAnswer]) -> str:
    """The reasons, each once with its count; no file's name, which may be a patient's."""
    reasons = [answer.left_out or "" for answer in left_out]
    counted = {reason: reasons.count(reason) for reason in reasons}
    said = [reason if count == 1 else f"{count} times {reason}" for reason, count in counted.items()]
    return "; ".join(said) or "it is empty; give the folder of a study, or an image"
