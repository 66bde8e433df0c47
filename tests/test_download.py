"""Bringing COVID-QU-Ex: what is said, what is checked, and one line for each thing that can go wrong."""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from trustcxr.data import download
from trustcxr.data.layouts import folders
from trustcxr.errors import UserError

kagglehub = pytest.importorskip("kagglehub")


@pytest.mark.slow
def test_no_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    def no_network(*_: object, **__: object) -> None:
        raise requests.ConnectionError("Max retries exceeded\nwith url")

    monkeypatch.setattr(requests.Session, "send", no_network)  # below kagglehub, which is the real one
    monkeypatch.delenv("KAGGLEHUB_CACHE", raising=False)
    said: list[str] = []
    with pytest.raises(UserError, match="no connection to Kaggle") as caught:
        download.download_covidqu(tmp_path / "data", tell=said.append)
    assert "\n" not in str(caught.value)
    for part in (str(tmp_path / "data"), "33,920"):
        assert any(part in line for line in said)
    assert "KAGGLEHUB_CACHE" not in os.environ


def test_no_room_or_no_kagglehub_is_said_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_NEEDED_BYTES", 1 << 60)
    monkeypatch.setattr(kagglehub, "dataset_download", lambda *_: pytest.fail("brought"))
    with pytest.raises(UserError, match="GB needed"):
        download.download_covidqu(tmp_path / "not/yet/there", tell=lambda _: None)
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(UserError, match=r"pip install 'trustcxr\[download\]'"):
        download.download_covidqu()


def test_what_arrived_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = tmp_path / "Infection Segmentation Data/Infection Segmentation Data/Train/COVID-19"
    for sub in ("images", "infection masks"):
        (part / sub).mkdir(parents=True)
        Image.new("L", (8, 8)).save(part / sub / "covid_1.png")
    monkeypatch.setattr(kagglehub, "dataset_download", lambda handle: str(tmp_path))
    monkeypatch.setattr(download, "_NEEDED_BYTES", 0)
    with pytest.raises(UserError, match=r"not complete \(COVID-19 1 of 11,956; .*infection masks 1 of 5,826"):
        download.download_covidqu(tmp_path, tell=lambda _: None)
    monkeypatch.setattr(folders, "PUBLISHED", {"COVID-QU-Ex": {"COVID-19": 1}, "its infection part": {"COVID-19": 1}})
    said: list[str] = []
    assert download.download_covidqu(tmp_path, tell=said.append) == tmp_path
    assert any(line.startswith("Complete: 1 images (COVID-19 1)") for line in said)
