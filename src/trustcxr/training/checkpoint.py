"""The checkpoint of a training: written in the run's own folder, whole or not at all; a damaged one is not used."""

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
from trustcxr.errors import UserError, out_of_memory
from trustcxr.storage import atomic
from trustcxr.storage.os_errors import writing

FOLDER, LAST, BEST = "checkpoint", "last.ckpt", "best.safetensors"
NEXT = "next.safetensors"  # better weights that the last checkpoint does not know of yet


class WholeCheckpoints(TorchCheckpointIO):
    """Writes under a temporary name in the checkpoint's own folder, and renames.

    Lightning's own way goes through the system's temporary folder, from which a file is copied where that is on another
    disk: a kill in between leaves half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, whole or not at all."""
        content = io.BytesIO()  # torch's own writer falls over a disk that fills, with a traceback
        torch.save(checkpoint, content)
        with atomic.atomic_write(Path(path), needed=content.getbuffer().nbytes) as temporary:
            temporary.write_bytes(content.getbuffer())


def load_checkpoint(run: Path) -> dict[str, Any] | None:
    """The last checkpoint of a run; None where there is none, or it cannot be read, which is said, and it is removed.

    Nothing is unpickled, and every byte is held against the checksums within the file. UserError where it may be whole
    and cannot be read now, as where a network's disk is away.
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
                f"{path}: cannot be read now ({why}); it was left as it is. If it stays so, delete {path.parent}, and "
                "training starts anew"
            ) from None
        remove(run)
        reason = str(problem) if isinstance(problem, ValueError) else type(problem).__name__
        log(f"{path}: cannot be read as tensors alone ({reason}): training starts anew")
        return None


def _for_now(problem: Exception) -> str | None:
    """Why a checkpoint that may be whole cannot be read; None where it is damaged, or no checkpoint.

    A place that cannot be in a file is how a damaged one may look, too.
    """
    if out_of_memory(problem) or "unable to mmap" in str(problem):
        return "out of memory"
    number = problem.errno if isinstance(problem, OSError) else None
    return None if number in (None, errno.EINVAL) else os.strerror(number)


def choose_best(run: Path, best_sum: str) -> None:
    """Of two weights keep those that the last checkpoint speaks of, by their checksum, as the best.

    Better weights are written beside the best ones, which they follow once a checkpoint knows of them: were the run cut
    off in between, that epoch would be trained again, maybe with other bits, and be none that is kept.
    """
    later = run / FOLDER / NEXT
    if later.is_file():
        with writing(run / FOLDER / BEST):
            if atomic.checksum(later) == best_sum:
                later.replace(run / FOLDER / BEST)
            else:
                later.unlink()


def remove(run: Path) -> None:
    """Take a run's checkpoints away, where there are any."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
