"""Test reliance on planted shortcuts: redraw synthetic images with a shortcut removed or moved to another class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from trustcxr import attacks
from trustcxr.data.loader import to_pixels
from trustcxr.errors import UserError
from trustcxr.evaluation.metrics import share
from trustcxr.evaluation.trained_run import Run
from trustcxr.statistics import Bootstrap
from trustcxr.storage.schemas import Accuracy, PlantedShortcut

_COLUMN = "shortcut_"
HOW = ("as_is", "removed", "moved")


@dataclass(frozen=True)
class Shortcut:
    """A shortcut planted on the images of one class, and the class that it is moved to."""

    kind: str
    carrier: str
    moved_to: str


def audit(
    run: Run, data: Path, *, split: str, batch_size: int = 64, resamples: int = 2000
) -> dict[str, PlantedShortcut]:
    """Return "planted_shortcuts" of metrics.json: {kind: accuracy as is, removed, and moved to another class only}.

    `data` is a folder of `trustcxr data phantom`, redrawn from its seeds. "follows" is the share of images with the
    moved shortcut that are predicted as the class it came from, "follows_before" without it. Raises UserError for data
    that are not synthetic or without planted shortcuts.
    """
    table, shortcuts = _planted(data, run.classes)
    images = table[table["split"] == split]
    if images.empty:
        raise UserError(f"{data}: no split '{split}'. Choose from: {', '.join(sorted(set(table['split'])))}")
    labels = np.array([run.classes.index(name) for name in images["class"]])
    bootstrap = Bootstrap.over(images["group_id"], resamples=resamples)
    with Image.open(data / images["path"].iloc[0]) as image:
        side = image.size[0]
    results = {}
    for shortcut in shortcuts:
        answers = {how: _answers(run, images, side, shortcut, how, batch_size) for how in HOW}
        onto = images["class"].to_numpy() == shortcut.moved_to
        carrier = run.classes.index(shortcut.carrier)
        shares = {how: share(bootstrap, bootstrap.means(answers[how] == labels)) for how in HOW}
        results[shortcut.kind] = PlantedShortcut(
            carrier=shortcut.carrier,
            moved_to=shortcut.moved_to,
            n=len(images),
            **{how: Accuracy(accuracy=part) for how, part in shares.items()},
            follows=(answers["moved"][onto] == carrier).mean(),
            follows_before=(answers["removed"][onto] == carrier).mean(),
        )
    return results


def _planted(data: Path, classes: Sequence[str]) -> tuple[pd.DataFrame, list[Shortcut]]:
    """Return one row per image, and the shortcuts planted on any split, since training may have used another."""
    file = data / "manifest.csv"
    table = pd.read_csv(file) if file.is_file() else pd.DataFrame()
    kinds = [str(c).removeprefix(_COLUMN) for c in table.columns if str(c).startswith(_COLUMN)]
    if not kinds or "seed" not in table:
        raise UserError(f"{data}: not synthetic X-rays, so no shortcut is known. `trustcxr data phantom` makes some")
    table = table[table["class"].isin(classes)].drop_duplicates(["class", "seed"]).reset_index(drop=True)
    shortcuts = []
    for kind in kinds:
        carriers = list(dict.fromkeys(table["class"][table[_COLUMN + kind] > 0]))
        free = [name for name in classes if name not in carriers]
        if carriers and free:
            after = classes.index(carriers[0]) + 1
            moved_to = next(name for name in [*classes[after:], *classes] if name in free)
            shortcuts.append(Shortcut(kind, carriers[0], moved_to))
    if not shortcuts:
        raise UserError(f"{data}: no shortcut was planted. Plant one: `trustcxr data phantom --shortcut marker=1.0`")
    return table, shortcuts


def _answers(run: Run, images: pd.DataFrame, side: int, shortcut: Shortcut, how: str, batch_size: int) -> np.ndarray:
    """Return the predicted class of each image, drawn again with its shortcuts as they are, or this one otherwise."""
    kinds = [str(c).removeprefix(_COLUMN) for c in images.columns if str(c).startswith(_COLUMN)]
    rows, answers = images.to_dict("records"), []
    for first in range(0, len(rows), batch_size):
        drawn = []
        for row in rows[first : first + batch_size]:
            marks = [kind for kind in kinds if row[_COLUMN + kind] and (how == "as_is" or kind != shortcut.kind)]
            moved = [shortcut.kind] if how == "moved" and row["class"] == shortcut.moved_to else []
            drawn.append(_draw(row, side, [*marks, *moved], run.size))
        pixels = torch.from_numpy(np.stack(drawn))[:, None]
        # Not inference_mode: TorchScript refuses its tensors after an attack.
        with torch.no_grad(), attacks.preserve_state(run.model):
            answers.append(run.model(to_pixels(pixels.to(run.device))).argmax(1).cpu().numpy())
    return np.concatenate(answers)


def _draw(row: Mapping[Any, Any], side: int, planted: Sequence[str], size: int) -> np.ndarray:
    from trustcxr.data.images.read import resize_image
    from trustcxr.data.phantom.render_image import render

    image = render(row["class"], int(row["seed"]), side, tuple(planted), conspicuity=float(row["conspicuity"]))
    return np.array(resize_image(image.image, size))
