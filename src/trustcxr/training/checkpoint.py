"""Write and load the checkpoint of a training: complete or absent; a damaged one is removed."""

import errno
import io
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from trustcxr.console import log
from trustcxr.errors import UserError, is_out_of_memory
from trustcxr.storage import atomic
from trustcxr.storage.os_errors import writing

FOLDER, LAST, BEST = "checkpoint", "last.ckpt", "best.safetensors"
NEXT = "next.safetensors"  # better weights than the last checkpoint's


class WholeCheckpoints(TorchCheckpointIO):
    """Write checkpoints under a temporary name in their folder, and rename.

    Lightning writes to the system's temporary folder and copies: a kill in between leaves half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, complete or not at all."""
        content = io.BytesIO()  # torch's writer fails on a full disk with a traceback
        torch.save(checkpoint, content)
        with atomic.atomic_write(Path(path), needed=content.getbuffer().nbytes) as temporary:
            temporary.write_bytes(content.getbuffer())


def load_checkpoint(run: Path) -> dict[str, Any] | None:
    """Load the last checkpoint of a run; None if there is none. A damaged one is removed, which is logged.

    Nothing is unpickled; the checksums in the file are verified. Raises UserError if the file may be whole but cannot
    be read now, such as on a network disk that is away.
    """
    path = run / FOLDER / LAST
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise ValueError(f"{broken} is damaged")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return content
    except Exception as problem:
        if (why := _for_now(problem)) is not None:
            raise UserError(
                f"{path}: cannot be read now ({why}). Try again, or delete {path.parent} to train from the start"
            ) from None
        remove(run)
        reason = str(problem) if isinstance(problem, ValueError) else type(problem).__name__
        log(f"{path}: cannot be read as tensors alone ({reason}): training starts again")
        return None


def _for_now(problem: Exception) -> str | None:
    """Return why a checkpoint that may be whole cannot be read; None if it is damaged (EINVAL: a wrong offset)."""
    if is_out_of_memory(problem) or "unable to mmap" in str(problem):
        return "out of memory"
    number = problem.errno if isinstance(problem, OSError) else None
    return None if number in (None, errno.EINVAL) else os.strerror(number)


def choose_best(run: Path, best_sum: str) -> None:
    """Keep the weights whose checksum is in the last checkpoint as the best.

    Better weights wait in NEXT until a checkpoint refers to them: a run interrupted in between trains that epoch again.
    """
    later = run / FOLDER / NEXT
    if later.is_file():
        with writing(run / FOLDER / BEST):
            if atomic.checksum(later) == best_sum:
                later.replace(run / FOLDER / BEST)
            else:
                later.unlink()


def remove(run: Path) -> None:
    """Delete a run's checkpoints."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
