"""The Markdown page of a study and its CSV files: every figure of the documents, and none that is not there."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from study_fixture import make_study
from trustcxr.cli import app
from trustcxr.recipes.study import Selection, StudyRecipe, load_study, tracked, with_seeds
from trustcxr.report import markdown, study_folder
from trustcxr.results.documents import BeyondControl, RunDocument, Share, StudyDocument

OLD = Path(__file__).parent / "studies" / "v0.1"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"), panels=0, models=("ResNet18",))


def changed(study: Path, folder: Path, **keys: Any) -> Path:
    """A copy of the study whose first run has these keys too."""
    shutil.copytree(study, folder)
    document = json.loads((folder / "study.json").read_text())
    document["runs"][0] |= keys
    (folder / "study.json").write_text(json.dumps(document))
    return folder


def cells(text: str, row: str) -> dict[str, str]:
    """The first line of a table that starts with `row`, by the table's header."""
    lines = text.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith(f"| {row} |"))
    head = next(lines[i - 1] for i in range(place, 0, -1) if lines[i].startswith("| ---"))
    split = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in (head, lines[place])]
    return dict(zip(*split, strict=True))


def test_a_map_of_one_cell_has_no_figures_and_is_named(study: Path, tmp_path: Path) -> None:
    runs = json.loads((study / "study.json").read_text())["runs"]
    saliency = runs[0]["saliency"] | {"gradcam": runs[0]["saliency"]["gradcam"] | {"cells": "1 x 1"}}
    text = markdown.render(study_folder.read(changed(study, tmp_path / "one-cell", saliency=saliency)))
    grad_cam = text.split("(`gradcam`)")[1].split("###")[0]
    first, second = (cells(grad_cam, run["run"]) for run in runs[:2])
    assert first["infection energy"] == first["pointing hit rate"] == "no map (one cell)"
    assert "no map (one cell)" not in second.values()
    assert f"\n\nNo map: {runs[0]['run']}. What Grad-CAM reads there has one cell" in grad_cam
    assert "No map" not in markdown.render(study_folder.read(study))


LESION = {"condition": "pgd", "epsilon": 0.02, "fill": "mirror", "control": "lung", "before": 0.61, "without": 0.4}
LESION |= {"beside": 0.6, "whole": 0.2, "share": 0.5, "effect": 0.2, "effect_ci": [0.1, 0.3], "flipped": 0.3}
LESION |= {"flipped_ci": [0.2, 0.4], "flipped_control": 0.1, "films": 40, "left_out": 3}
SIZE = {"above": 0.25, "up_to": 0.5, "films": 12, "effect": 0.123, "low": 0.05, "high": 0.19}


def test_what_removing_the_lesion_does_is_on_the_page_and_in_the_csv(study: Path, tmp_path: Path) -> None:
    first = LESION | {"condition": "clean", "epsilon": 0.0, "fill": "grey", "by_size": [SIZE]}
    folder = changed(study, tmp_path / "lesions", lesions=[first, LESION])
    page, figures, _ = markdown.write(folder, out=tmp_path)
    text = page.read_text(encoding="utf-8")
    asked = text.split("## Is the lesion the reason?")[1].split("\n## ")[0]
    rows = [line for line in asked.splitlines() if line.startswith("| ResNet18")]
    assert "| healthy grey | healthy lung | 0.610 | 0.400 | 0.600 | 0.200 | +0.200 (0.100 to 0.300) |" in rows[0]
    assert "mirrored lung (under PGD, epsilon 0.02)" in rows[1]
    assert "25\u00a0% to 50\u00a0%" in rows[2]
    assert "0.123" in rows[2]
    assert "Is the lesion the reason?" not in markdown.render(study_folder.read(study)), "nothing was measured"
    with figures.open(encoding="utf-8") as file:
        found = {row["measure"]: row for row in csv.DictReader(file) if row["measure"].startswith("lesion_effect")}
    assert set(found) == {"lesion_effect_grey_lung", "lesion_effect_mirror_lung"}
    mirror = found["lesion_effect_mirror_lung"]
    assert [mirror[key] for key in ("condition", "epsilon", "value", "low", "high", "n")] == [
        "pgd", "0.02", "0.2", "0.1", "0.3", "40",
    ]  # fmt: skip


def test_how_a_map_ranks_regions_by_cause_stands_beside_it(study: Path, tmp_path: Path) -> None:
    saliency = json.loads((study / "study.json").read_text())["runs"][0]["saliency"]
    cause = {"n": 64, "ranked_by_cause": 0.31, "ranked_by_cause_ci": [0.2, 0.4], "ranked_by_cause_brightness": 0.05}
    saliency["gradcam"] |= {"faithfulness": (saliency["gradcam"].get("faithfulness") or {}) | cause}
    page, figures, _ = markdown.write(changed(study, tmp_path / "cause", saliency=saliency), out=tmp_path)
    text = page.read_text(encoding="utf-8")
    run = json.loads((study / "study.json").read_text())["runs"][0]["run"]
    grad_cam = text[text.index("### Grad-CAM") :]
    assert "Ranks regions by cause, of a sample" in text
    assert "Ranks regions by cause" not in markdown.render(study_folder.read(study)), "nothing ranked"
    assert cells(grad_cam, run)["ranks regions by cause"] == "0.310 [0.200, 0.400], n 64"
    assert cells(grad_cam, "*brightness in the lungs*")["ranks regions by cause"] == "0.050"
    with figures.open(encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if row["measure"] == "ranked_by_cause" and row["run"] == run]
    assert [(row["condition"], row["value"], row["n"]) for row in found] == [("gradcam", "0.31", "64")]


def test_the_page_has_the_figures_of_study_json(study: Path, tmp_path: Path) -> None:
    page, figures, comparisons = markdown.write(study, out=tmp_path, name="a")
    assert [path.name for path in (page, figures, comparisons)] == ["a.md", "a.csv", "a-comparisons.csv"]
    document = json.loads((study / "study.json").read_text())
    text = page.read_text(encoding="utf-8")
    for run in document["runs"]:
        shown = cells(text, run["run"])
        low, high = run["clean"]["accuracy_ci"]
        assert shown["clean"] == f"{100 * run['clean']['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        pgd = next(a for a in run["attacks"] if (a["attack"], a["epsilon"]) == ("pgd", 0.02))
        assert shown["PGD-20"].startswith(f"{100 * pgd['accuracy']:.1f} [")
        assert (shown["epochs"], shown["minutes"]) == ("8", "3.5")
    assert "| FGSM | PGD-20 |" in text
    assert "## Epsilon 0.005" in text
    energy = document["runs"][0]["saliency"]["gradcam"]
    first = cells(text[text.index("### Grad-CAM") :], document["runs"][0]["run"])
    assert first["infection energy"].startswith(f"{energy['infection_energy']:.3f} [")
    assert cells(text[text.index("### Grad-CAM") :], "*chance*")["infection energy"] == "0.121"
    assert "None" not in text
    assert "nan" not in text
    assert markdown.write(study, out=tmp_path, name="a")[0].read_text(encoding="utf-8") == text


def test_the_csv_has_every_figure_with_its_interval(study: Path, tmp_path: Path) -> None:
    _, figures, comparisons = markdown.write(study, out=tmp_path)
    document = json.loads((study / "study.json").read_text())
    with figures.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {(r["run"], r["condition"], r["epsilon"], r["effort"], r["measure"]): r for r in rows}
    assert len(found) == len(rows)
    for run in document["runs"]:
        for attack in run["attacks"]:
            key = (run["run"], attack["attack"], str(attack["epsilon"]), str(attack.get("steps", 1)), "accuracy")
            assert float(found[key]["value"]) == attack["accuracy"]
            assert [float(found[key][end]) for end in ("low", "high")] == attack["accuracy_ci"]
        for name in ("accuracy", "f1_macro", "auroc_macro", "ece"):
            assert float(found[run["run"], "clean", "0", "", name]["value"]) == run["clean"][name]
        energy = found[run["run"], "gradcam", "0", "", "infection_energy"]
        assert float(energy["chance"]) == run["saliency"]["gradcam"]["infection_energy_chance"]
        worst = [r for r in rows if r["run"] == run["run"] and r["condition"] == "leads_and_tubes"]
        assert [r["effort"] for r in worst] == ["1", "5"]
    with comparisons.open(encoding="utf-8") as file:
        assert [float(row["difference"]) for row in csv.DictReader(file)] == [
            row["difference"] for row in document["comparisons"]
        ]


def test_the_lungs_are_hidden_in_the_way_that_leaves_the_most(study: Path, tmp_path: Path) -> None:
    """Black is not the worst: a network that learned what blacked-out lungs look like falls there alone."""
    shortcuts = {
        "lungs_blacked_out": {"accuracy": 0.35, "accuracy_ci": [0.3, 0.4], "n": 90},
        "box_in_grey": {"accuracy": 0.62, "accuracy_ci": [0.5, 0.7], "n": 90},
        "lungs_only": {"accuracy": 0.8, "accuracy_ci": [0.7, 0.9], "n": 90},
        "lungs_on_another_film": {"accuracy": 0.5, "accuracy_ci": [0.4, 0.6], "n": 90},
    }
    path = changed(study, tmp_path / "s", shortcuts=shortcuts)
    shown = cells(markdown.write(path)[0].read_text(), "resnet18-standard-s0")
    assert shown["lungs hidden, at worst"] == "62.0 [50.0, 70.0] (box of the lungs in mid-grey)"
    assert shown["lungs on another film"] == "50.0 [40.0, 60.0]"


def test_what_is_proved_stands_beside_the_attacks(study: Path, tmp_path: Path) -> None:
    proof = {"epsilon": 0.02, "accuracy": 0.3, "accuracy_ci": [0.2, 0.4], "n": 90}
    text = markdown.write(changed(study, tmp_path / "s", certified=[proof]))[0].read_text()
    assert cells(text, "resnet18-standard-s0")["certified"] == "30.0 [20.0, 40.0]"
    assert cells(text, "resnet18-fgsm-s0")["certified"] == ""
    assert (
        "resnet18-standard-s0,Test,certified,0.02,,accuracy,0.3,0.2,0.4,,90" in (tmp_path / "s/report.csv").read_text()
    )


def test_data_from_elsewhere_stand_under_the_name_of_their_folder(tmp_path: Path) -> None:
    """Whatever split they are of: a folder is called NAME-all or NAME-Test."""
    shutil.copytree(OLD, tmp_path / "s")
    for folder in (tmp_path / "s").glob("runs/*/evaluations/elsewhere-all"):
        folder.rename(folder.with_name("elsewhere-Test"))
    page, figures, _ = markdown.write(tmp_path / "s")
    text = page.read_text()
    assert "## Data from elsewhere: elsewhere-Test" in text
    (run,) = [run for run in study_folder.read(tmp_path / "s").runs if run.evaluations]
    shown = cells(text[text.index("## Data from elsewhere") :], run.name)
    document = run.evaluations["elsewhere-Test"]
    assert shown["clean"] == markdown.percent(document.clean.accuracy)
    assert shown["drop from internal"] == markdown.percent(document.drop_from_internal[0].drop)
    assert f"{run.name},elsewhere-Test,clean,0,,accuracy,{document.clean.accuracy.value}" in figures.read_text()


def test_what_the_recipe_asked_for_and_was_not_tried_is_said(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "s")
    document = json.loads((tmp_path / "s" / "study.json").read_text())
    document["recipe"]["evaluation"]["attacks"] = [{"name": "square", "epsilons": [0.01, 0.02]}, {"name": 3}, "x"]
    (tmp_path / "s" / "study.json").write_text(json.dumps(document))
    assert (
        "resnet18-standard-s0: square at 0.01, 0.02; resnet18-fgsm-s0" in markdown.write(tmp_path / "s")[0].read_text()
    )


def test_what_a_map_adds_to_its_layer_is_shown_where_it_was_compared(study: Path, tmp_path: Path) -> None:
    row = BeyondControl(
        method="layercam@gate", measure="infection_energy", difference=Share(value=0.02, ci=(-0.01, 0.05))
    )
    text = markdown.write(study, out=tmp_path, beyond={"resnet18-fgsm-s0": [row]}, note="By hand.")[0].read_text()
    part = text[text.index("## Beyond the film's own brightness") :]
    assert cells(part, "resnet18-fgsm-s0")["infection energy"] == "+0.020 [-0.010, +0.050]"
    assert "By hand." in text
    assert "Beyond the film's own brightness" not in markdown.write(study, out=tmp_path)[0].read_text()


def test_a_name_with_a_bar_or_a_line_break_stays_in_its_cell() -> None:
    assert markdown.table(["a|b", "c"], [["d\ne", "f"]]) == ["| a\\|b | c |", "| --- | --- |", "| d e | f |"]
    assert markdown.row(["A<script>alert(1)</script>", "p < 0.001"]) == (
        "| A&lt;script>alert(1)&lt;/script> | p < 0.001 |"
    )


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"runs": []},
        {"runs": [{}], "recipe": {"evaluation": 3}},
        {"runs": [{"run": "a", "clean": None, "attacks": [{"attack": "fgsm"}, 3], "saliency": {"gradcam": {}}}]},
        {"runs": "no", "classes": "no", "data": [], "comparisons": {}, "recipe": [1]},
        {"runs": [{"clean": {"accuracy": float("nan"), "accuracy_ci": [None, 1]}, "certified": [{}]}]},
        {"comparisons": [{}], "runs": [{"saliency": {"x": {"perturbed": 1}}, "shortcuts": {"lungs_blacked_out": {}}}]},
        {"runs": [{"attacks": [{"attack": "pgd-l2", "epsilon": 1, "accuracy": 0.5}]}]},
    ],
)
def test_any_gap_in_study_json_is_survived(tmp_path: Path, document: dict[str, Any]) -> None:
    (tmp_path / "study.json").write_text(json.dumps(document))
    text = markdown.write(tmp_path)[0].read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "None" not in text


@pytest.mark.slow
def test_the_command_writes_page_and_tables(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "s")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "s"), "--markdown"])
    assert done.exit_code == 0, done.output
    said = [Path(line).name for line in done.output.split()]
    assert said == ["report.html", "report.md", "report.csv", "report-comparisons.csv"]
    assert all((tmp_path / "s" / name).is_file() for name in said)
    assert CliRunner().invoke(app, ["report", str(tmp_path / "s")]).output.split()[-1].endswith("report.html")


def test_a_share_without_a_value_is_an_empty_cell() -> None:
    assert (markdown.percent(Share()), markdown.decimal(Share())) == ("", "")
    assert markdown.percent(Share(value=0.5)) == "50.0"
    assert markdown.percent(RunDocument().clean.accuracy) == ""


def test_it_begins_as_the_page_does_and_ends_with_the_methods(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", models=("ResNet18",), panels=0, images=60, resamples=20)
    check = {"verdict": "Mend it first.", "findings": [{"severity": "fault", "text": "2 files are broken", "count": 2}]}
    (folder / "data-check.json").write_text(json.dumps(check))
    text = markdown.render(study_folder.read(folder))
    assert text.index("How many answers are left when an attacker") < text.index("**FGSM overstates**: ResNet18")
    assert text.index("**FGSM overstates**") < text.index("answers most rightly") < text.index("| run |")
    assert "| fault | 2 files are broken | 2 |" in text
    for said in ("FGSM (Goodfellow et al. 2015) at epsilon 0.005, 0.01 and 0.02", "Grad-CAM (Selvaraju et al. 2017)"):
        assert said in text[text.index("## Methods") :]
    assert "\n\n\n" not in text


def test_the_command_in_the_first_line_names_a_recipe_of_the_package_only_where_it_is_that(tmp_path: Path) -> None:
    def first(recipe: StudyRecipe) -> str:
        study = StudyDocument(study=recipe.name, recipe=recipe.model_dump(mode="json"))
        return markdown.render(study_folder.StudyFolder(tmp_path / "done", study, [], [])).splitlines()[2]

    quick = load_study("quick")
    assert first(quick).startswith("`trustcxr study quick --data DATA --out done`, then `trustcxr report done")
    assert "study quick --seeds 3 --data" in first(with_seeds(quick, 3))
    assert "study quick --data" in first(tracked(quick, "tensorboard"))
    own = "`trustcxr study RECIPE.yaml --data DATA --out done` with what study.yaml says below `recipe` as RECIPE.yaml"
    assert first(quick.model_copy(update={"name": "tiny"})).startswith(own)
    assert first(quick.model_copy(update={"selection": Selection(count=1)})).startswith(own)
