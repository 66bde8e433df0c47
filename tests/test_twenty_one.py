"""results/twenty-one-covidqu-midi.md: from what is kept of each finished run alone; what is missing is named."""

from pathlib import Path

import pandas as pd
from benchmarks.findings import twenty_one

from trustcxr.recipes.study import SHIPPED, load_study
from trustcxr.report import rows
from trustcxr.results import files
from trustcxr.results.documents import Classification, Share
from trustcxr.study import finished, planned

OLD = Path(__file__).parent / "studies" / "v0.1"


def test_the_page_is_what_its_files_say() -> None:
    page = twenty_one.PAGE.read_text(encoding="utf-8")
    assert page == "\n".join(twenty_one.lines(twenty_one.KEPT)) + "\n"
    assert planned.recipe_of(twenty_one.KEPT) == load_study("twenty-one")


def test_every_figure_of_every_finished_run_stands_in_the_table(tmp_path: Path) -> None:
    table = twenty_one.PAGE.with_suffix(".csv")
    runs = list(twenty_one.with_validation(twenty_one.KEPT))
    assert table.read_bytes() == rows.write_figures(runs, tmp_path / "again.csv").read_bytes()
    figures = pd.read_csv(table)
    assert set(figures["split"]) == {"Val", "Test"}
    assert set(figures["run"]) == {folder.name for folder in (twenty_one.KEPT / "runs").iterdir()}
    worst = figures[figures["condition"] == "worst-case"]
    assert worst["run"].is_unique
    assert worst[["value", "low", "high"]].notna().all(axis=None)
    assert len(worst) == figures["run"].nunique()


def test_what_is_finished_and_what_is_missing_is_said(tmp_path: Path) -> None:
    finished.keep(OLD, tmp_path)
    page = "\n".join(twenty_one.lines(tmp_path))
    assert "1 of 2 runs so far" in page
    assert "**Missing**: test_resnet-standard-s0." in page
    said = files.read_json(OLD / "runs" / "test_resnet-fgsm-s0" / "metrics.json")
    low, high = said["clean"]["accuracy_ci"]
    figure = f"{100 * said['clean']['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert any(line.startswith("| test_resnet-fgsm-s0 |") and figure in line for line in page.splitlines())
    assert "Research software. Not for diagnosis." in page


def test_where_the_last_map_is_of_one_cell_no_figure_is_made_of_it() -> None:
    page = twenty_one.PAGE.read_text(encoding="utf-8")
    grad_cam = page.split("### Grad-CAM (`gradcam`)")[1].split("###")[0]
    one_cell = ["inceptionv3-standard-s0", "inceptionresnetv2-standard-s0", "inceptionresnetv2-fgsm-s0"]
    for run in one_cell:
        (row,) = (line for line in grad_cam.splitlines() if line.startswith(f"| {run} |"))
        figures = row.strip("|").split(" | ")[1:]
        assert set(figures[:-2]) == {"no map (one cell)"}
        assert figures[-2].startswith("1.000"), "and every map a null map"
    assert grad_cam.count("no map (one cell)") == 3 * 10
    assert f"No map: {', '.join(one_cell)}. What Grad-CAM reads there has one cell" in grad_cam
    figures = pd.read_csv(twenty_one.PAGE.with_suffix(".csv")).query("condition == 'gradcam'")
    assert set(figures.loc[figures["run"].isin(one_cell), "measure"]) == {"null_map_rate"}
    text = (SHIPPED / "twenty-one.yaml").read_text(encoding="utf-8")
    assert "still has a map" not in text
    assert "The last map of InceptionV3 and of InceptionResNetV2 has\n# one cell there" in text


def test_a_comment_is_no_part_of_what_a_recipe_is_known_by(tmp_path: Path) -> None:
    bare = tmp_path / "twenty-one.yaml"
    lines = (SHIPPED / "twenty-one.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    bare.write_text("".join(line for line in lines if not line.lstrip().startswith("#")))
    assert load_study(bare) == load_study("twenty-one")
    finished.refuse_another(twenty_one.KEPT, load_study(bare), None)


def test_how_little_was_learnt_is_said() -> None:
    def judged(accuracy: float) -> Classification:
        return Classification(accuracy=Share(value=accuracy, ci=(0, 1)), constant_answer=0.486)

    (said, _) = twenty_one.near_constant({"a": judged(0.62), "b": judged(0.70), "c": judged(0.50)})
    assert said.startswith("**A constant answer has 48.6. Less than 15 points above it are 2 of 3: a, c**")
