"""Runs on a Hugging Face hub, or in a folder that stands for one: weights as safetensors, run.yaml, card and figures.

A place is `hf://owner/name`, with `@revision` if wanted, or a folder. The network is used by these two functions alone,
when they are called with a hub's address.
"""

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trustcxr.errors import UserError
from trustcxr.storage import atomic, evaluations, layout
from trustcxr.storage.os_errors import is_full, writing

PREFIX = "hf://"
CARD_FILE = "README.md"  # what a hub shows of a repository
_ADDRESS = re.compile(r"hf:/+(?P<repository>[^/@\s]+/[^/@\s]+)(@(?P<revision>[^\s]+))?/?")
_SENT = (
    layout.RUN_FILE,
    layout.WEIGHTS_FILE,
    layout.TRAINING_FILE,
    layout.HISTORY_FILE,
    layout.METRICS_FILE,
    layout.OOD_FILE,
    layout.IMAGES_FILE,
    # Of a run that was trained once more: the weights that validation judged, by which thresholds are chosen.
    *(f"{layout.BEFORE_REFIT}/{name}" for name in (layout.RUN_FILE, layout.WEIGHTS_FILE, layout.TRAINING_FILE)),
)
_T = TypeVar("_T")


def is_address(place: str | Path) -> bool:
    """Whether this is a repository of a hub, also where it was taken for a path."""
    return re.match(r"hf:/", str(place)) is not None


def fetch(place: str | Path) -> Path:
    """The folder with the run of a hub's repository, from the hub's own cache where it is there already.

    Raises UserError for an address that is none, or a repository that cannot be had.
    """
    repository, revision = _parsed(str(place))
    import huggingface_hub

    return Path(
        _asked(
            place,
            lambda: huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=[*_SENT, CARD_FILE]
            ),
        )
    )


def push(run: Path, place: str, card: str, *, private: bool = True) -> str:
    """Put a run into a hub's repository, made if it is not there, or into a new or empty folder; return where it is.

    `card` is its model card. Files of another training leave the repository: its figures must not stand beside these
    weights. Of the images that the run was trained on their checksums go along and not their names, since a name may be
    a patient's.
    """
    layout.check_run(run)
    if not is_address(place):
        return _into_folder(run, Path(place), card)
    repository, _ = _parsed(place)
    import huggingface_hub

    with tempfile.TemporaryDirectory() as staged:
        _stage(run, Path(staged), card)
        hub = huggingface_hub.HfApi()

        def send() -> object:
            hub.create_repo(repository, private=private, exist_ok=True)
            said = f"{run.name}, by TrustCXR"
            return hub.upload_folder(
                repo_id=repository, folder_path=staged, commit_message=said, delete_patterns=list(_SENT)
            )

        _asked(place, send)
    return f"{PREFIX}{repository}"


def _into_folder(run: Path, place: Path, card: str) -> str:
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise UserError(f"{place}: is not empty. Choose a new or an empty folder, or hf://owner/name")
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as beside:
            _stage(run, staged := Path(beside) / "run", card)
            staged.replace(place)
    return str(place)


def _stage(run: Path, folder: Path, card: str) -> None:
    """Copy what is sent into a folder."""
    own = evaluations.own_figures(run)
    for name in _SENT:
        if name == layout.METRICS_FILE and own is not None:
            atomic.write_json(folder / name, own.document)
        elif name == layout.IMAGES_FILE and (run / name).is_file():
            atomic.write_table(folder / name, atomic.read_table(run / name)[["image"]])
        elif (run / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, folder / name)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def _parsed(place: str) -> tuple[str, str | None]:
    found = _ADDRESS.fullmatch(place)
    if found is None:
        raise UserError(f"{place}: no address of a hub: write hf://owner/name, or hf://owner/name@revision")
    return found["repository"], found["revision"]


def _asked(place: str | Path, ask: Callable[[], _T]) -> _T:
    """What a hub answers; UserError in one line for whatever it refuses, or where it cannot be reached."""
    try:
        return ask()
    except Exception as problem:
        if is_full(problem):
            raise
        said = " ".join(str(problem).split())[:200]
        raise UserError(
            f"{place}: the hub refused or cannot be reached ({type(problem).__name__}: {said}); see the name, the "
            "network, and `hf auth login`"
        ) from None
