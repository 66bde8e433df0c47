"""Judge the images of an audit on a second instance of the model, loaded anew in another process.

It sees the adversarial images first, eight of them one by one, and the unperturbed images last. A model that remembers
images, counts them, or looks at its batch answers differently then.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trustcxr.audit.entry_checks import Check
from trustcxr.audit.formats import ExternalModel, WrappedModel
from trustcxr.audit.formats.wrapper import as_states
from trustcxr.audit.subject import Subject, open_model
from trustcxr.registry import CORRUPTIONS, VIEWS
from trustcxr.storage import atomic
from trustcxr.storage.memory import keep_freed_memory
from trustcxr.storage.prediction_table import CLEAN, Condition

ANOTHER_ORDER = "same answer in another order"  # the check of `judge_again`
ASKED = "asked"  # folder, among the parts of an audit
IMAGES = 256  # most images that the second instance judges, under each condition
ALONE = 8  # images that it is asked one by one
_BATCH = 8
_MOVED = 0.1  # of the typical largest logit: low precision, and the batch of a quantised network, move logits less
_SHARE = 0.01  # of the answers that may move further


@dataclass(frozen=True)
class AskedImages:
    """Writes a part of the images of an audit, with the logits that the first instance gave them, into a folder.

    `decision`: index and logit threshold of the finding whose logits (B, 2) these are; -1 for those of all classes.
    """

    folder: Path
    total: int  # images of the data set
    decision: tuple[int, float] = (-1, 0.0)

    def __call__(self, condition: Condition, rows: np.ndarray, pixels: Tensor, logits: np.ndarray) -> None:
        """Write an even part of a batch: `rows` of the data, pixels (B, 1, H, W), logits (B, C)."""
        name, chosen = condition[0], rows % -(-self.total // IMAGES) == 0
        if not chosen.any() or name in CORRUPTIONS or name in VIEWS:
            return
        path = self.folder / f"{name}-{condition[1]:g}-{rows[0]:06d}-{self.decision[0]}.npz"
        pixels_chosen = pixels.detach().cpu().numpy()[chosen]
        with atomic.atomic_write(path) as temporary:  # not compressed: perturbations are noise
            np.savez(temporary, pixels=pixels_chosen, logits=logits[chosen], decision=self.decision)


class _StoredImages:
    """Images (N, 1, H, W) of an audit, the logits that they had, whether they are attacked, and their decisions."""

    def __init__(self, folder: Path) -> None:
        parts = []
        for path in sorted(folder.glob("[!.]*.npz")):  # a kill leaves files under temporary names, with a dot
            with np.load(path, allow_pickle=False) as file:
                parts.append((not path.name.startswith(f"{CLEAN}-"), {key: file[key] for key in file.files}))
        counts = [len(part["logits"]) for _, part in parts]
        self.pixels = np.concatenate([part["pixels"] for _, part in parts])
        self.logits = [row for _, part in parts for row in part["logits"]]
        self.attacked = np.repeat([attacked for attacked, _ in parts], counts)
        self.decisions = np.repeat([part["decision"] for _, part in parts], counts, axis=0)

    def order(self) -> np.ndarray:
        """Return the order in which the second instance is asked: attacked images first, both shuffled."""
        random = np.random.default_rng(1)
        return np.concatenate([random.permutation(np.flatnonzero(self.attacked == state)) for state in (True, False)])


def copy_subject(subject: Subject) -> Subject | None:
    """Return a copy of a model that was given as a Python object, as it is before the audit; None if it has no copy."""
    try:
        return replace(subject, model=deepcopy(subject.model))  # type: ignore[arg-type]
    except Exception:  # whatever a foreign object raises when it is copied
        return None


def judge_again(
    model: str | Path | Subject | None, subject: Subject, examined: torch.nn.Module, folder: Path, *, trust: bool
) -> Check:
    """Compare the logits of an audit with those of a second instance of the model, on the images in a folder.

    `model` is loaded anew in another process; a copy of a Python object (`copy_subject`) is asked in this one.
    `examined` is the model whose logits these are; `trust` allows the code of the model's maker to run.
    """
    stored = _StoredImages(folder)
    if model is None:
        text = "the model cannot be copied, so no second instance could be asked"
        return Check(ANOTHER_ORDER, None, text, grave=True)
    request = {"model": str(model), "trust_code": trust, "threads": torch.get_num_threads(), "folder": str(folder)}
    if isinstance(examined, WrappedModel):
        converted = isinstance(subject, ExternalModel) and subject.model is not None and subject.original is not None
        request |= {"kind": examined.output_spec.kind, "conversion": converted}
    if not isinstance(model, str | Path):
        answers, alone = _ask(model, request)
    else:
        result = run_elsewhere(request)
        if isinstance(result, str):
            return Check(ANOTHER_ORDER, None, f"no second instance could be asked ({result[:160]})", grave=True)
        answers, alone = result
    moved = _moved(stored, answers, np.arange(len(answers)))
    moved_alone = _moved(stored, alone, stored.order()[: len(alone)])
    what = f"{int(stored.attacked.sum())} attacked and {int((~stored.attacked).sum())} unperturbed images"
    text = f"a second instance, loaded anew and asked in another order, answers {what} as the first did"
    other, single = float((moved > _MOVED).mean()), int((moved_alone > _MOVED).sum())
    if single > 0:
        text = f"asked one by one, a second instance answers {single} of {len(alone)} images differently"
    if other > _SHARE:
        text = f"a second instance, loaded anew and asked in another order, answers {other:.1%} of {what} differently"
    passed = other <= _SHARE and not single
    if not passed:
        text += ": the model remembers, counts or compares images, so no figure of it holds for one image"
    return Check(ANOTHER_ORDER, passed, text, grave=True)


def run_elsewhere(request: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | str:
    """Return `answer_request` of a new process, or why that failed. Nothing is written to a disk."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    # -P: Python would else import files of the current folder, which may be a stranger's, in place of its own.
    command = [sys.executable, "-P", "-m", "trustcxr.audit.second_instance"]
    done = subprocess.run(
        command, env=environment, input=json.dumps(request).encode(), capture_output=True, check=False
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {done.returncode}"
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as file:
        return file["answers"], file["alone"]


def _moved(stored: _StoredImages, answers: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return how far the logits of each row moved, as a share of the typical largest logit; (N,)."""

    def centred(logits: np.ndarray) -> np.ndarray:
        return logits - logits.mean() if len(logits) > 1 else logits

    decided = [
        answer if index < 0 else as_states(torch.from_numpy(answer[None]), int(index), cut)[0].numpy()
        for answer, (index, cut) in zip(answers, stored.decisions[rows], strict=True)
    ]
    largest = [np.abs(centred(logits)).max() for logits in stored.logits]
    typical = max(float(np.median(largest)), 1e-12)
    pairs = zip(decided, (stored.logits[row] for row in rows), strict=True)
    return np.array([np.abs(centred(new) - centred(old)).max() / typical for new, old in pairs])


def answer_request(request: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Load the model of a request, and return its logits in another order, and those of images one by one."""
    torch.set_num_threads(request["threads"])
    keep_freed_memory()
    return _ask(open_model(request["model"], trust_code=request["trust_code"]), request)


def _ask(subject: Subject, request: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of a second instance in another order, and those of images that it was asked one by one."""
    model: torch.nn.Module | None = subject.model
    if isinstance(subject, ExternalModel) and "kind" in request:
        if subject.original is not None and not request["conversion"]:
            model = subject.original
        assert isinstance(model, WrappedModel)
        model = model.of_kind(request["kind"])
    assert model is not None
    stored = _StoredImages(Path(request["folder"]))
    order = stored.order()

    def ask(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(stored.pixels[rows]).to(subject.device)).float().cpu().numpy()

    try:
        with torch.no_grad():
            model(torch.zeros(1, 1, subject.size, subject.size, device=subject.device))
        count = min(ALONE, len(order))
    except Exception:  # some networks refuse a batch of one, in many ways
        count = 0
    alone = [ask(order[[row]]) for row in range(count)]
    parts = [ask(order[start : start + _BATCH]) for start in range(0, len(order), _BATCH)]
    answers = np.empty((len(order), parts[0].shape[1]), np.float32)
    answers[order] = np.concatenate(parts)
    return answers, np.concatenate(alone) if alone else answers[:0]


def main() -> None:
    """Answer the request on stdin; the arrays go to stdout."""
    with os.fdopen(os.dup(1), "wb") as stdout:
        os.dup2(2, 1)  # what a model prints does not mix with its answers
        answers, alone = answer_request(json.load(sys.stdin))
        arrays = io.BytesIO()
        np.savez(arrays, answers=answers, alone=alone)
        stdout.write(arrays.getvalue())


if __name__ == "__main__":
    main()
