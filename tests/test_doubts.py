"""Reasons for doubt: each is given when it holds, and when it could not be looked at."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import served
from dicom_images import chest
from trustcxr.explain import counterfactual_view, heatmap_io, predict
from trustcxr.explain.counterfactual_view import Flip, Map, MapBaseline, Spoilt
from trustcxr.storage.schemas import SaliencyDocument

CLASSES = ("COVID-19", "Non-COVID", "Normal")
BLANK = torch.zeros(4, 4)


def flip(epsilon: float) -> Flip:
    return Flip(epsilon, BLANK, BLANK, predicted=1, probability=0.6, steps=10)


SHOWS = SaliencyDocument(verdict="above its other controls", shows=["infection_energy"])


@pytest.mark.parametrize(
    ("found", "changed", "reasons"),
    [
        (flip(0.02), (), []),
        (flip(0.005), (), []),
        (flip(0.0049), (), ["a change of at most 1.2 grey levels of 255 (epsilon 0.0049) flips it to Non-COVID"]),
        (flip(0.02), ("gaussian_noise",), ["it changes under Gaussian noise (severity 3 of 5)"]),
        (None, (), ["no change up to 0.3 flips the answer: the attack may have failed, so nothing is known"]),
        (flip(0.001), ("gaussian_noise", "letters"), ["a change of at most 0.3", "it changes under Gaussian noise, "]),
    ],
)
def test_an_answer_that_may_not_be_stable(found: Flip | None, changed: tuple[str, ...], reasons: list[str]) -> None:
    corrupted = [Spoilt(name, BLANK, int(name in changed), 0.5) for name in counterfactual_view.SPOILT_BY]
    given = counterfactual_view.describe_changes(found, corrupted, 0, CLASSES)
    assert len(given) == len(reasons)
    assert all(text.startswith(reason) for text, reason in zip(given, reasons, strict=True))


@pytest.mark.parametrize(
    ("likeness", "measured", "reason"),
    [
        (0.5, SHOWS, ""),
        (0.95, SHOWS, "Grad-CAM: the map shows no more than the image's own brightness (correlation 0.95)"),
        (math.nan, SHOWS, "Grad-CAM: the map is even, so it shows nothing"),
        (0.5, SaliencyDocument(verdict="says nothing of what the network has learnt"), "says nothing of what"),
        (0.5, SHOWS.model_copy(update={"survives": "the map survives randomising"}), "survives randomising"),
        (0.5, SaliencyDocument(), "it is not known that the maps of this run are better than baseline maps"),
        (0.5, None, "it is not known that the maps of this run are better than baseline maps"),
    ],
)
def test_a_map_no_better_than_baseline_maps(likeness: float, measured: SaliencyDocument | None, reason: str) -> None:
    metrics = SimpleNamespace(saliency={"gradcam": measured} if measured else {})
    one = Map("gradcam", BLANK, (2, 2), [MapBaseline("the image's own brightness", BLANK, likeness)])
    given = counterfactual_view.describe_maps([one], SimpleNamespace(metrics=metrics))
    assert len(given) == bool(reason)
    assert all(reason in text for text in given)


@pytest.mark.parametrize(
    ("elements", "child"),
    [
        # Each is on the other side of 18 years in another unit of DICOM.
        *(({"PatientAge": age}, True) for age in ("007Y", "215M", "930W", "999D")),
        *(({"PatientAge": age}, False) for age in ("018Y", "217M", "950W")),
        ({"PatientBirthDate": "20100101"}, True),  # the study is of 2024
        ({"PatientBirthDate": "19520311"}, False),
        ({"PatientBirthDate": "20991231"}, False),
        ({"PatientBirthDate": None, "PatientAge": "old"}, False),
    ],
)
def test_a_child_by_the_header_is_named(tmp_path: Path, elements: dict[str, object], child: bool) -> None:
    image = predict.read_source(chest(tmp_path / "x.dcm", **elements))
    assert image.doubts == ((counterfactual_view.CHILD,) if child else ())


def test_a_map_of_few_cells_is_drawn_as_cells() -> None:
    cells = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    smooth = torch.nn.functional.interpolate(cells[None, None], (16, 16), mode="bilinear", align_corners=False)[0, 0]
    drawn = counterfactual_view.draw_cells(smooth, (2, 2))
    assert drawn.shape == (16, 16)
    assert len(drawn.unique()) == 4
    assert torch.allclose(drawn, torch.kron(cells, torch.ones(8, 8)), atol=0.06)
    for cells_of in (None, (64, 64)):  # every pixel, or many cells
        assert counterfactual_view.draw_cells(smooth, cells_of) is smooth
    picture = heatmap_io.overlay(np.zeros((64, 64), np.uint8), drawn.numpy(), smooth=False)
    assert len(picture.getcolors()) == 4


def test_predict_lists_every_reason_at_once(tmp_path: Path) -> None:
    run = served.untrained_run(tmp_path / "run")
    chest(tmp_path / "x.dcm", PatientAge="003Y", side=64)
    (answer,) = predict.predict(run, [tmp_path / "x.dcm"], out=tmp_path / "out")
    texts = "; ".join(answer.warnings)
    assert counterfactual_view.CHILD in texts
    assert predict.NOT_FITTED in texts
    assert "better than baseline maps" in texts
    assert ("flips it to" in texts) == (answer.smallest_change < counterfactual_view.SMALL)
