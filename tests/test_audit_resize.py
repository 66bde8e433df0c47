"""Images become squares as the model file says, before anything is asked of the model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from test_audit_command import CLASSES, GREYS, Brightness, few_steps, model_file
from trustcxr.audit.run_audit import audit

SIDE, BEYOND = 16, 8


def tall(folder: Path) -> Path:
    """Write images of 16 by 32 pixels: the middle has the grey of its class, the rest that of the next."""
    random = np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            image = np.full((SIDE + 2 * BEYOND, SIDE), GREYS[(k + 1) % 3])
            image[BEYOND:-BEYOND] = GREYS[k] + 0.02 * random.standard_normal((SIDE, SIDE))
            Image.fromarray((255 * image).astype(np.uint8)).save(folder / name / f"{name}{number}.png")
    return folder


@pytest.mark.parametrize("resize", ["squeeze", "pad", "crop"])
def test_an_audit_reads_images_as_the_model_file_says(
    resize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_steps(monkeypatch)
    images, path = tall(tmp_path / "images"), model_file(tmp_path / "model", Brightness())
    path.write_text(path.read_text().replace("{size: 16}", f"{{size: 16, resize: {resize}}}"))
    found = audit(path, images, tmp_path / "audit", attacks=["fgsm"])
    assert found.clean.accuracy.value is not None
    assert (found.clean.accuracy.value == 1) == (resize == "crop"), "what lies beyond the middle misleads"
    assert "resize" not in {check.check for check in found.entry_checks}
    if resize == "crop":
        table = pd.read_parquet(tmp_path / "audit" / "predictions.parquet")
        row = table[table["attack"] == "clean"].set_index("sample_id").filter(like="bright3", axis=0)
        middle = np.asarray(Image.open(images / "bright" / "bright3.png"))[BEYOND:-BEYOND]
        wanted = Brightness()(torch.from_numpy(middle / 255).float()[None, None])[0]
        assert np.allclose(row["logits"].iloc[0], wanted.detach(), atol=1e-3)
