"""The second instance of a model answers from another process, through pipes alone."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trustcxr.audit import second_instance
from trustcxr.audit.second_instance import AskedImages, answer_request, run_elsewhere


class Talkative(nn.Module):
    """For `python: test_second_instance:Talkative`: a network that prints."""

    def forward(self, images: Tensor) -> Tensor:
        print("a line that is no answer")
        os.write(1, b"nor is this")
        return images.mean((2, 3)) * torch.arange(3.0)


def ask(folder: Path, function: str) -> dict[str, object]:
    folder.mkdir()
    model = folder / "model.yaml"
    output = "output: {kind: logits, classes: [COVID-19, Non-COVID, Normal]}\n"
    model.write_text(f"python: test_second_instance:{function}\ninput: {{size: 8}}\n{output}")
    rows, pixels = np.arange(10), torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    AskedImages(folder, 10)(("clean", 0.0), rows, pixels, Talkative()(pixels).numpy())
    request = {"model": str(model), "trust_code": True, "threads": 1, "folder": str(folder), "kind": "logits"}
    return request | {"conversion": False}


def test_what_a_model_prints_does_not_mix_with_its_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    request = ask(tmp_path / "asked", "Talkative")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numpy.py").write_text("raise SystemExit('a file of the current folder was imported')")
    (tmp_path / "asked" / ".clean-0-000000.123.npz").write_bytes(b"cut off by a kill")
    before = {path.name for path in (tmp_path / "asked").iterdir()}
    elsewhere = run_elsewhere(request)
    (tmp_path / "numpy.py").unlink()
    here = answer_request(request)
    assert not isinstance(elsewhere, str), elsewhere
    for one, other in zip(elsewhere, here, strict=True):
        assert np.allclose(one, other, atol=1e-6)
    assert elsewhere[0].shape == (10, 3)
    assert len(elsewhere[1]) == second_instance.ALONE
    assert list((tmp_path / "temporary").iterdir()) == []
    assert {path.name for path in (tmp_path / "asked").iterdir()} == before


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    result = run_elsewhere(ask(tmp_path / "asked", "Missing"))
    assert isinstance(result, str)
    assert "Missing" in result
