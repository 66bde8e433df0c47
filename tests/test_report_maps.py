"""What page, Markdown and terminal say of a map: above both controls, nothing, or void; and why it has no hit rate."""

import json
from pathlib import Path
from typing import Any

import pytest

from study_fixture import make_study
from trustcxr import report
from trustcxr.report import formatting, load, terminal
from trustcxr.report.tables import accuracy, saliency
from trustcxr.storage.schemas import Change, SaliencyDocument

WITHHELD = "withheld: the best of its 2 x 2 cells would hit 0.089 of the masks, chance 0.132"
LEADS = "infection energy +0.100 [+0.050, +0.150] over edges in the lungs"
ABOVE = f"above its other baseline maps and above random weights: {LEADS}"
NOTHING = "says nothing of what the network has learnt: infection energy +0.001 [-0.010, +0.010] over random weights"
SURVIVES = "the map survives randomising the network: infection energy is 0.120 with random weights, 0.121 with its own"


def leads(value: float) -> list[dict[str, Any]]:
    ends = [value - 0.05, value + 0.05]
    return [{"measure": "infection_energy", "baseline": "randomised", "difference": {"value": value, "ci": ends}}]


def said(shows: bool) -> dict[str, Any]:
    energy, found = ["infection_energy"], {"cells": "2 x 2", "verdict": ABOVE if shows else NOTHING}
    found |= {"shows": energy if shows else [], "survives": "" if shows else SURVIVES, "void": [] if shows else energy}
    found |= {"withheld": WITHHELD, "pointing_ceiling": {"value": 0.089, "ci": [0.08, 0.1]}}
    found["pointing_ceiling"]["chance"] = 0.132
    found["random_network_ssim"] = {"value": 0.41, "ci": [0.4, 0.42]}
    return found | {"random_weights": {"n": 30, "draws": 3, "leads": leads(0.1 if shows else 0.001)}}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two runs: the map of the first shows something, that of the second survives random weights."""
    folder = make_study(tmp_path / "study", models=("ResNet18",))
    path = folder / "study.json"
    document = json.loads(path.read_text())
    for run, shows in zip(document["runs"], (True, False), strict=True):
        part = run["saliency"]["gradcam"]
        part["infection_energy"] |= {"randomised": 0.12, "noise": 0.11, "activation": 0.19}
        part |= said(shows) | {"pointing_hit_rate": {"value": None}}
        if not shows:
            run["alarms"].append({"kind": "survives_randomisation", "text": f"Grad-CAM: {SURVIVES}"})
            document["alarms"].append({"run": run["run"]} | run["alarms"][-1])
        (folder / "runs" / run["run"] / "metrics.json").write_text(json.dumps(run))
    path.write_text(json.dumps(document))
    return folder


def row_of(table: Any, number: int, measure: str) -> list[Any]:
    rows = [row for row in table.rows if row[3].text == measure]
    return rows[number]


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


def over(value: float, control: str) -> dict[str, Any]:
    ends = [value - 0.02, value + 0.02]
    return {"measure": "infection_energy", "baseline": control, "difference": {"value": value, "ci": ends}}


@pytest.mark.slow
def test_every_control_stands_beside_a_map_with_its_paired_difference_everywhere(study: Path) -> None:
    path = study / "study.json"
    document = json.loads(path.read_text())
    for run in document["runs"]:
        part = run["saliency"]["gradcam"]
        part["infection_energy"]["value"] = 0.3
        part["beyond"] = [over(-0.041, "brightness_as_sharp")]
        part["over_baselines"] = [over(0.123, "chance"), over(-0.041, "brightness_as_sharp")]
        (study / "runs" / run["run"] / "metrics.json").write_text(json.dumps(run))
    path.write_text(json.dumps(document))
    found = load.load_report(study)
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
    document = json.loads((study / "study.json").read_text())
    first = document["runs"][0]
    first["saliency"]["gradcam"] = flat
    (study / "runs" / first["run"] / "metrics.json").write_text(json.dumps(first))
    (study / "study.json").write_text(json.dumps(document))
    runs = load.load_report(study).runs
    rows = [row for row in saliency.measures(runs).rows if row[2].text == "Grad-CAM" and row[0].text == runs[0].model]
    mine = [row for row in rows if row[1].text == runs[0].defence]
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
