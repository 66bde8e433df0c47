"""Download runs from a Hugging Face hub, and upload them to a hub or a folder: weights, run.yaml, card and figures.

An address is `hf://owner/name`, with `@revision` if wanted. Only these two functions use the network.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trustcxr.errors import UserError
from trustcxr.storage import atomic, evaluations, layout
from trustcxr.storage.os_errors import is_full, writing

PREFIX = "hf://"
CARD_FILE = "README.md"
_ADDRESS = re.compile(r"hf:/+(?P<repository>[^/@\s]+/[^/@\s]+)(@(?P<revision>[^\s]+))?/?")
_MODEL = (layout.RUN_FILE, layout.WEIGHTS_FILE, layout.TRAINING_FILE)
_FILES = (
    *_MODEL,
    *(layout.HISTORY_FILE, layout.METRICS_FILE, layout.OOD_FILE, layout.IMAGES_FILE),
    # The weights before a refit, on which thresholds are chosen.
    *(f"{layout.BEFORE_REFIT}/{name}" for name in _MODEL),
)


def is_address(address: str | Path) -> bool:
    """Return whether this is a hub's address, also as a path."""
    return re.match(r"hf:/", str(address)) is not None


def fetch(address: str | Path) -> Path:
    """Download the run of a hub's repository, or find it in the hub's cache, and return its folder.

    Raises UserError for an invalid address, or if the repository cannot be downloaded.
    """
    repository, revision = _parse_address(str(address))
    import huggingface_hub

    with _hub_errors(f"{PREFIX}{repository}{f'@{revision}' if revision else ''}"):
        patterns = [*_FILES, CARD_FILE]
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))


def push(run: Path, target: str, card: str, *, private: bool = True) -> str:
    """Upload a run and its model `card` to a hub's repository, or copy it to a new or empty folder; return the target.

    Files of another training are deleted there. Training images are listed by checksum only: names may be patients'.
    """
    layout.check_run(run)
    if not is_address(target):
        return _copy_to_folder(run, Path(target), card)
    repository, _ = _parse_address(target)
    import huggingface_hub

    with tempfile.TemporaryDirectory() as staged:
        stage(run, Path(staged), card)
        hub = huggingface_hub.HfApi()
        with _hub_errors(target):
            hub.create_repo(repository, private=private, exist_ok=True)
            message, old = f"{run.name}, by TrustCXR", list(_FILES)
            hub.upload_folder(repo_id=repository, folder_path=staged, commit_message=message, delete_patterns=old)
    return f"{PREFIX}{repository}"


def _copy_to_folder(run: Path, folder: Path, card: str) -> str:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder}: is not empty. Choose a new or an empty folder, or hf://owner/name")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as staging:
            stage(run, staged := Path(staging) / "run", card)
            staged.replace(folder)
    return str(folder)


def stage(run: Path, folder: Path, card: str = "") -> None:
    """Copy the files of a run to publish into a folder, with its card if there is one."""
    figures = evaluations.own_figures(run)
    for name in _FILES:
        if name == layout.METRICS_FILE and figures is not None:
            atomic.write_json(folder / name, figures.document)
        elif name == layout.IMAGES_FILE and (run / name).is_file():
            atomic.write_table(folder / name, atomic.read_table(run / name)[["image"]])
        elif (run / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, folder / name)
    if card:
        (folder / CARD_FILE).write_text(card, encoding="utf-8")


def _parse_address(address: str) -> tuple[str, str | None]:
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"{address}: not a hub's address. Write hf://owner/name, or hf://owner/name@revision")
    return match["repository"], match["revision"]


@contextmanager
def _hub_errors(address: str) -> Iterator[None]:
    """Raise UserError in one line for all that the hub refuses inside."""
    try:
        yield
    except Exception as problem:
        if is_full(problem):
            raise
        reason = " ".join(str(problem).split())[:200]
        raise UserError(
            f"{address}: the hub refused or cannot be reached ({type(problem).__name__}: {reason}). Check the name, "
            "the network, and `hf auth login`"
        ) from None
