"""The checkpoint of a training: written in the run's own folder, whole or not at all; a damaged one is not used."""

import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from trustcxr.console import say
from trustcxr.results import files

FOLDER, LAST, BEST = "checkpoint", "last.ckpt", "best.safetensors"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes under a temporary name in the checkpoint's own folder, and renames.

    Lightning's own way goes through the system's temporary folder, from which a file is copied where that is on another
    disk: a kill in between leaves half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, whole or not at all."""
        content = io.BytesIO()  # torch's own writer falls over a disk that fills, with a traceback
        torch.save(checkpoint, content)
        with files.replacing(Path(path)) as temporary:
            temporary.write_bytes(content.getbuffer())


def read(run: Path) -> dict[str, Any] | None:
    """The last checkpoint of a run; None where there is none, or it cannot be read, which is said, and it is removed.

    Nothing is unpickled, and every byte is held against the checksums within the file.
    """
    path = run / FOLDER / LAST
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise ValueError(f"{broken} is damaged")
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return found
    except Exception as problem:
        remove(run)
        reason = str(problem) if isinstance(problem, ValueError) else type(problem).__name__
        say(f"{path}: cannot be read as tensors alone ({reason}): training starts anew")
        return None


def remove(run: Path) -> None:
    """Take a run's checkpoints away, where there are any."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
