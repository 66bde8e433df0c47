"""What page, Markdown and terminal say of a map: above both controls, nothing, or void; and how it is drawn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from study_fixture import make_study
from trustcxr import report
from trustcxr.report import formatting, load, terminal
from trustcxr.report.figures import pictures
from trustcxr.report.tables import accuracy, saliency
from trustcxr.storage.schemas import Change, SaliencyDocument

WITHHELD = "withheld: the best of its 2 x 2 cells would hit 0.089 of the masks, chance 0.132"
LEADS = "infection energy +0.100 [+0.050, +0.150] over edges in the lungs"
ABOVE = f"above its other baseline maps and above random weights: {LEADS}"
NOTHING = "says nothing of what the network has learnt: infection energy +0.001 [-0.010, +0.010] over random weights"
SURVIVES = "the map survives randomising the network: infection energy is 0.120 with random weights, 0.121 with its own"


def lead(value: float, control: str, half: float) -> dict[str, Any]:
    ends = [value - half, value + half]
    return {"measure": "infection_energy", "baseline": control, "difference": {"value": value, "ci": ends}}


def said(shows: bool) -> dict[str, Any]:
    energy, found = ["infection_energy"], {"cells": "2 x 2", "verdict": ABOVE if shows else NOTHING}
    found |= {"shows": energy if shows else [], "survives": "" if shows else SURVIVES, "void": [] if shows else energy}
    found |= {"withheld": WITHHELD, "pointing_ceiling": {"value": 0.089, "ci": [0.08, 0.1], "chance": 0.132}}
    found["random_network_ssim"] = {"value": 0.41, "ci": [0.4, 0.42]}
    leads = [lead(0.1 if shows else 0.001, "randomised", 0.05)]
    return found | {"random_weights": {"n": 30, "draws": 3, "leads": leads}}


def rewrite(folder: Path, change: Callable[[dict[str, Any], dict[str, Any], int], None]) -> Path:
    """Change the document of each run: change(run, its Grad-CAM, number)."""
    document = json.loads((folder / "study.json").read_text())
    for number, run in enumerate(document["runs"]):
        change(run, run["saliency"]["gradcam"], number)
        (folder / "runs" / run["run"] / "metrics.json").write_text(json.dumps(run))
    (folder / "study.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two runs: the map of the first shows something, that of the second survives random weights."""

    def change(run: dict[str, Any], part: dict[str, Any], number: int) -> None:
        part["infection_energy"] |= {"randomised": 0.12, "noise": 0.11, "activation": 0.19}
        part |= said(number == 0) | {"pointing_hit_rate": {"value": None}}
        if number == 1:
            run["alarms"].append({"kind": "survives_randomisation", "text": f"Grad-CAM: {SURVIVES}"})

    return rewrite(make_study(tmp_path / "study", models=("ResNet18",)), change)


def row_of(table: Any, number: int, measure: str) -> list[Any]:
    return [row for row in table.rows if row[3].text == measure][number]


def test_each_map_stands_with_its_cells_and_what_it_shows(study: Path) -> None:
    runs = load.load_report(study).runs
    first, second = saliency.shown(runs).rows
    assert first[3].text == second[3].text == "2 x 2"
    assert (first[4].text, first[4].second) == ("0.089", "chance 0.132")
    assert first[5].value == 0.41
    assert (first[6].note, first[6].small) == ("good prose", WITHHELD)
    assert first[6].text.startswith("Above its other baseline maps and above random weights")
    assert second[6].note == "bad prose"
    assert second[6].text.startswith("The map survives randomising the network")


def test_a_figure_that_random_weights_have_is_void_and_a_hit_rate_without_cells_a_dash(study: Path) -> None:
    runs = load.load_report(study).runs
    table = saliency.measures(runs)
    assert all(len(row) == len(table.header) for row in table.rows)
    assert {"Random weights", "Random map, same cells", "Over random weights"} <= set(table.header)
    sound, void = row_of(table, 0, "infection energy"), row_of(table, 1, "infection energy")
    assert "void" not in sound[4].second
    assert void[4].second == "void: survives randomising the network"
    assert void[4].note == "bad"
    assert sound[table.header.index("Random weights")].value == 0.12
    assert sound[table.header.index("The layer’s activation")].value == 0.19
    over = table.header.index("Over random weights")
    assert (sound[over].note, void[over].note) == ("good", "")
    hit = row_of(table, 0, "pointing hit rate")
    assert (hit[4].text, hit[4].small) == ("–", WITHHELD)
    cells = [cell for row in accuracy.explanations(runs).rows for cell in row]
    assert sum(cell.small == WITHHELD and cell.text == "–" for cell in cells) == 2
    assert sum("void: survives randomising the network" in cell.second for cell in cells) == 1


def test_maps_measured_under_other_changes_say_under_which(study: Path) -> None:
    runs = load.load_report(study).runs
    documents = [run.metrics.saliency["gradcam"] for run in runs]
    changed = {"fgsm": {"epsilon": 0.02}, "jpeg": {"severity": 3}, "gamma": {"severity": 3}}
    alike = [Change(condition=name, **how) for name, how in changed.items()]
    for document in documents:
        document.stability = list(alike)
    assert [row[2].second for row in saliency.stability(runs).rows] == ["", ""]
    documents[1].stability = [Change(condition="fgsm", epsilon=0.05), Change(condition="letters", severity=5)]
    said = [row[2].second for row in saliency.stability(runs).rows]
    assert said == ["epsilon 0.02; JPEG and gamma at severity 3", "epsilon 0.05; letters at severity 5"]


def test_page_and_markdown_say_it(study: Path) -> None:
    page = report.write(study).read_text(encoding="utf-8")
    assert "The heatmap is above its baseline maps and above random weights in 1 of 2 runs" in page
    assert "in the others it shows nothing that the network learned" in page
    assert page.index("eatmaps survive randomising") < page.index("void: survives randomising"), "in the first table"
    assert "Heatmaps that survive randomising the network" in page
    text = saliency.shown(load.load_report(study).runs).markdown()
    assert (
        f"| 2 x 2 | 0.089 (0.080 to 0.100; chance 0.132) | 0.410 (0.400 to 0.420) | A{ABOVE[1:]} ({WITHHELD}) |" in text
    )
    assert SURVIVES[1:] in text


@pytest.mark.slow
def test_every_control_stands_beside_a_map_with_its_paired_difference_everywhere(study: Path) -> None:
    sharp = lead(-0.041, "brightness_as_sharp", 0.02)

    def change(_run: dict[str, Any], part: dict[str, Any], _number: int) -> None:
        part["infection_energy"]["value"] = 0.3
        part |= {"beyond": [sharp], "over_baselines": [lead(0.123, "chance", 0.02), sharp]}

    found = load.load_report(rewrite(study, change))
    table = saliency.over_baselines(found.runs)
    assert table.header[4:] == ["Chance", "Brightness in the lungs, as sharp as the map", "n"]
    assert [[cell.note for cell in row[4:6]] for row in table.rows] == [["good", "bad"]] * 2
    assert "Lead of each map over every baseline map" in report.write(study).read_text(encoding="utf-8")
    assert "| +0.123 (0.103 to 0.143) | −0.041 (−0.061 to −0.021) |" in table.markdown()
    shown = terminal.list_saliency(found.runs[0].metrics.saliency["gradcam"])
    (row,) = (row for row in shown if row["measure"] == "infection energy")
    assert row["lead over closest baseline"] == "-0.041 [-0.061, -0.021] brightness in the lungs, as sharp as the map"


def test_the_terminal_says_it() -> None:
    lines = terminal.describe_saliency(SaliencyDocument.model_validate(said(False)))
    first = ["2 x 2 cells", "random weights: 3 networks on 30 images", f"hit rate -: {WITHHELD}"]
    assert lines == [*first, f"it {NOTHING}", f"ALARM: {SURVIVES}"]
    assert terminal.describe_saliency(SaliencyDocument()) == []


def test_a_map_of_one_cell_is_a_dash_with_its_reason_and_never_zero(study: Path) -> None:
    why = "no map: what is read has one cell, so that it is the same everywhere; an earlier layer has more"
    flat: dict[str, object] = {"n": 30, "cells": "1 x 1", "null_map_rate": {"value": 1.0, "ci": [0.9, 1.0]}}
    flat |= {"withheld": why, "pointing_hit_rate": {"value": None}}
    rewrite(study, lambda run, part, number: run["saliency"].update(gradcam=part if number else flat))
    runs = load.load_report(study).runs
    first = [runs[0].model, runs[0].defence, "Grad-CAM"]
    mine = [row for row in saliency.measures(runs).rows if [cell.text for cell in row[:3]] == first]
    assert [(row[3].text, row[4].text, row[4].small) for row in mine] == [("every measure", "–", why)]
    cells = [cell for row in accuracy.explanations(runs).rows for cell in row]
    assert [cell.text for cell in cells if cell.small == why] == ["–"]
    assert terminal.describe_saliency(SaliencyDocument.model_validate(flat)) == ["1 x 1 cells", why]
    page = report.write(study).read_text(encoding="utf-8")
    assert page.count(why) == page.lower().count(why) >= 3  # its row, what it shows, the first table


def test_a_part_of_networks_side_by_side_is_named_by_its_place() -> None:
    assert formatting.part("net.layer4") == "layer4"
    assert formatting.part("net.nets.0.fc + net.nets.1.fc") == "0.fc + 1.fc"
    assert formatting.part("gate") == "gate"


GREY = np.full((64, 96), 100, np.uint8)
BOX = np.zeros_like(GREY)
BOX[8:24, 12:36] = 1  # near the top, left of the middle


def drawn(image: np.ndarray = GREY, **given: Any) -> np.ndarray:
    found = np.asarray(pictures.picture(image, **given)).astype(float)
    assert found.shape == (288, 288, 3)
    return found


def like(found: np.ndarray, colour: str) -> np.ndarray:
    return np.abs(found - 255 * np.array(to_rgb(colour))).max(2) < 40


def test_a_image_alone_is_the_image_stretched_to_a_square() -> None:
    image = np.repeat(np.arange(0, 192, 2, dtype=np.uint8)[None], 64, axis=0)
    found = drawn(image)
    assert np.ptp(found, axis=2).max() == 0
    assert np.ptp(found, axis=0).max() <= 1, "columns stay columns"
    assert found[0, :, 0] == pytest.approx(np.linspace(-0.33, 190.33, 288), abs=1.5)


@pytest.mark.parametrize(("name", "colour"), [("infection", pictures.INFECTION), ("lung", pictures.LUNG)])
def test_the_outline_runs_along_the_border_of_its_mask(name: str, colour: str) -> None:
    found = drawn(**{name: BOX})
    rows, columns = np.nonzero(like(found, colour))
    assert (rows.min(), rows.max()) == pytest.approx((8 * 4.5, 24 * 4.5), abs=2)
    assert (columns.min(), columns.max()) == pytest.approx((12 * 3, 36 * 3), abs=2)
    inside, outside = found[45:100, 45:100], found[150:]
    assert np.abs(inside - 100).max() <= 1
    assert np.abs(outside - 100).max() <= 1
    assert (found.max(2) < 85).sum() > 100, "a dark line beside it, so that it is seen on any image"


def test_a_mask_that_ends_with_the_image_has_its_whole_outline() -> None:
    found = like(drawn(infection=np.ones_like(GREY)), pictures.INFECTION)
    assert [found[2:-2, place].mean() > 0.9 for place in (0, -1)] == [True, True]
    assert [found[place, 2:-2].mean() > 0.9 for place in (0, -1)] == [True, True]


def test_a_mask_of_nothing_or_of_another_shape_is_left_out() -> None:
    assert np.array_equal(drawn(infection=np.zeros_like(GREY), lung=np.ones((3, 3), np.uint8)), drawn())


def test_a_heatmap_lies_where_its_map_is_high_with_the_borders_of_its_cells() -> None:
    heat = np.zeros(GREY.shape, np.float32)
    heat[:32, 48:] = 1
    found = drawn(saliency=heat)
    assert found[20:120, 180:].mean() > found[170:, :].mean() + 60, "top right"
    with_cells = drawn(saliency=heat, cells=(2, 3))
    rows, columns = np.nonzero(np.abs(with_cells - found).max(2) > 20)
    assert set(rows[(columns > 110) & (columns < 180)]) <= set(range(142, 147)), "one border between two rows"
    assert {96, 192} & set(columns) or {95, 191} & set(columns)
    assert np.abs(with_cells - found)[:, 100:185][:140].max() == 0
