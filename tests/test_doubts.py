"""Reasons for doubt: each is given when it holds, and when it could not be looked at."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import served
from dicom_images import chest
from trustcxr.data.images import dicom_files
from trustcxr.explain import counterfactual_view, heatmap_io, predict
from trustcxr.explain.counterfactual_view import Flip, Map, MapBaseline, Spoilt
from trustcxr.storage.schemas import SaliencyDocument

CLASSES = ("COVID-19", "Non-COVID", "Normal")
BLANK = torch.zeros(4, 4)


def flip(epsilon: float) -> Flip:
    return Flip(epsilon, BLANK, BLANK, predicted=1, probability=0.6, steps=10)


def run_with(**saliency: SaliencyDocument) -> SimpleNamespace:
    return SimpleNamespace(metrics=SimpleNamespace(saliency=saliency))


def one_map(likeness: float) -> Map:
    return Map("gradcam", BLANK, (2, 2), [MapBaseline("the image's own brightness", BLANK, likeness)])


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
def test_an_answer_that_is_not_stable_or_may_not_be(
    found: Flip | None, changed: tuple[str, ...], reasons: list[str]
) -> None:
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
def test_a_map_that_is_no_better_than_its_baseline_maps_or_may_not_be(
    likeness: float, measured: SaliencyDocument | None, reason: str
) -> None:
    metrics = {"gradcam": measured} if measured else {}
    given = counterfactual_view.describe_maps([one_map(likeness)], run_with(**metrics))
    assert len(given) == bool(reason)
    assert all(reason in text for text in given)


@pytest.mark.parametrize(
    ("elements", "child"),
    [
        ({"PatientAge": "007Y"}, True),
        ({"PatientAge": "018M"}, True),
        ({"PatientAge": "018Y"}, False),
        ({"PatientBirthDate": "20100101"}, True),  # the study is of 2024
        ({"PatientBirthDate": "19520311"}, False),
        ({"PatientBirthDate": "20991231"}, False),
        ({"PatientBirthDate": None, "PatientAge": "old"}, False),
    ],
)
def test_a_child_by_the_header_is_named(tmp_path: Path, elements: dict[str, object], child: bool) -> None:
    image = predict.read_source(chest(tmp_path / "x.dcm", **elements))
    assert image.doubts == ((counterfactual_view.CHILD,) if child else ())


def test_ages_in_the_units_of_dicom(tmp_path: Path) -> None:
    ages = {"730D": 2.0, "104W": 2.0, "024M": 2.0, "002Y": 2.0}
    for text, years in ages.items():
        path = chest(tmp_path / "x.dcm", PatientAge=text)
        assert dicom_files.read_age(path) == pytest.approx(years, abs=0.01)


def test_a_map_of_few_cells_is_drawn_as_cells() -> None:
    cells = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    smooth = torch.nn.functional.interpolate(cells[None, None], (16, 16), mode="bilinear", align_corners=False)[0, 0]
    drawn = counterfactual_view.draw_cells(smooth, (2, 2))
    assert drawn.shape == (16, 16)
    assert len(drawn.unique()) == 4
    for row in range(2):
        for column in range(2):
            part = drawn[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert part.unique().item() == pytest.approx(float(cells[row, column]), abs=0.06)
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
    assert answer.smallest_change is not None
    assert ("flips it to" in texts) == (answer.smallest_change < counterfactual_view.SMALL)
