"""`trustcxr evaluate` beyond the run's own clean images: the sweep, corruptions, other data, calibration."""

import re
import shutil
from pathlib import Path

import pytest

from pack import Pack
from small_runs import newest
from test_cli import complaint, run
from trustcxr import corruptions
from trustcxr.evaluation import predictions, run_figures
from trustcxr.evaluation.trained_run import load_run
from trustcxr.report import terminal
from trustcxr.runs import run_folder
from trustcxr.storage import atomic


@pytest.fixture(scope="module")
def images(pack: Pack) -> Path:
    """16, 8 and 2 images of each class: what the run was trained on, and its own Val and Test."""
    pack.training_images()
    return pack.folder / "training-images" / "phantom"


@pytest.fixture
def trained(pack: Pack, tmp_path: Path) -> Path:
    return shutil.copytree(pack.run("standard"), tmp_path / "run")


def other(images: Path, place: Path) -> Path:
    """The images of two classes as another hospital has them: class folders, and a list of their sources."""
    lines = ["path,source_repo"]
    for number, name in enumerate(("COVID-19", "Normal")):
        (place / name).mkdir(parents=True)
        for image in sorted(images.glob(f"Lung*/Lung*/Train/{name}/images/*")):
            shutil.copy(image, place / name / image.name)
            lines.append(f"{name}/{image.name},{'one' if number or len(lines) % 2 else 'other'}")
    (place / "manifest.csv").write_text("\n".join(lines))
    return place


@pytest.mark.slow
def test_the_sweep_goes_to_where_all_is_lost(trained: Path, images: Path) -> None:
    done = run("evaluate", trained, "--data", images, "--sweep", "--steps", 3)
    document = atomic.read_json(newest(trained) / "metrics.json")
    for attack in ("fgsm", "pgd"):
        assert tuple(row["epsilon"] for row in document["attacks"] if row["attack"] == attack) == predictions.SWEEP
    at_zero = [row["accuracy"]["value"] for row in document["attacks"] if row["epsilon"] == 0]
    assert at_zero == [document["clean"]["accuracy"]["value"]] * 2
    assert "about zero at 0.3" in document["masking"]["looked_for"]
    assert "; ".join(document["masking"]["reasons"]) in " ".join(done.stdout.split())


@pytest.mark.slow
def test_corruptions_by_name_and_severity(trained: Path, images: Path) -> None:
    options = ["--corruption", "jpeg", "--corruption", "device", "--severity", 2, "--severity", 5]
    done = run("evaluate", trained, "--data", images, "--attack", "fgsm", *options)
    document = atomic.read_json(newest(trained) / "metrics.json")
    found = [(row["corruption"], row["severity"]) for row in document["corruptions"]]
    assert found == [("jpeg", 2), ("jpeg", 5), ("device", 2), ("device", 5)]
    assert all(row["n"] == 6 and 0 <= row["flip_rate"]["value"] <= 1 for row in document["corruptions"])
    assert "over 4, " in done.stdout
    assert "; worst " in done.stdout
    run("evaluate", trained, "--data", images, "--attack", "fgsm", "--corruption", "all", "--severity", 3)
    place = newest(trained)
    document = atomic.read_json(place / "metrics.json")
    measured = [(row["corruption"], row["severity"]) for row in document["corruptions"]]
    assert measured == [(name, 3) for name in corruptions.CORRUPTIONS]
    again = run_figures.describe(load_run(trained), atomic.read_table(place / "predictions.parquet"), resamples=2000)
    assert again.plain()["corruptions"] == document["corruptions"], "from the table, the same numbers"


def test_bad_corruptions_are_one_line(trained: Path, images: Path) -> None:
    at = ["evaluate", trained, "--data", images]
    assert "unknown corruption 'jpg': did you mean jpeg?" in complaint(*at, "--corruption", "jpg")
    assert "6" in complaint(*at, "--corruption", "jpeg", "--severity", 6)
    assert "no shortcut was planted" in complaint(*at, "--shortcuts")


@pytest.mark.slow
def test_other_data_say_what_is_lost_from_the_runs_own(trained: Path, images: Path, tmp_path: Path) -> None:
    outside = other(images, tmp_path / "outside")
    first, _ = run_folder.evaluate(trained, outside, attacks=["fgsm"])
    assert "drop_from_internal" not in first.plain(), "the run's own test images were not evaluated yet"
    assert "calibration" not in first.plain()
    own, _ = run_folder.evaluate(trained, images, attacks=["fgsm", "pgd"], steps=3)
    external, place = run_folder.evaluate(trained, outside, attacks=["pgd"], epsilons=[0.02, 0.1], steps=3)
    assert place.parent == trained / "evaluations"
    assert place.name.startswith("outside-all-")
    document, internal = external.plain(), own.plain()
    drops = document["drop_from_internal"]
    assert [(row["attack"], row["epsilon"]) for row in drops] == [("clean", 0.0), ("pgd", 0.02)]
    again, first_place = run_folder.evaluate(trained, outside, attacks=["fgsm"])
    assert first_place != place
    known = [row["attack"] for row in again.plain()["drop_from_internal"]]
    assert known == ["clean", "fgsm"], "its own images are known by now"
    assert drops[0]["internal"] == internal["clean"]["accuracy"]["value"]
    assert drops[0]["external"] == document["clean"]["accuracy"]["value"]
    assert (drops[0]["n_internal"], drops[0]["n_external"]) == (6, 32)
    low, high = drops[0]["drop"]["ci"]
    assert low <= drops[0]["drop"]["value"] <= high
    assert {name: part["n"] for name, part in document["by_source"].items()} == {"one": 24, "other": 8}
    said = "\n".join(terminal.describe_metrics(external))
    parts = ("Drop from internal, clean: ", "Drop from internal, PGD-3 at 0.02: ", "one: ")
    assert [part for part in parts if part not in said] == []
    assert "drop_from_internal" not in internal
    assert document["calibration"]["split"] == "Val", "the temperature of the run's own validation images"


@pytest.mark.slow
def test_calibration_is_fitted_on_validation_and_never_judged_by_it(trained: Path, images: Path) -> None:
    evaluated, place = run_folder.evaluate(trained, images, attacks=["fgsm"])
    table, document = atomic.read_table(place / "validation.parquet"), evaluated.plain()
    calibration, before = document["calibration"], document["clean"]["ece"]
    assert set(table["split"]) == {"Val"}
    assert set(table["attack"]) == {"clean"}
    assert len(table) == 24 == calibration["n"]
    assert [row["attack"] for row in calibration["attacks"]] == ["fgsm"]
    assert calibration["clean"]["ece"]["value"] == pytest.approx(before["value"])
    error = "{:.3f} [{:.3f}, {:.3f}]".format(before["value"], *before["ci"])
    assert terminal.list_accuracies(evaluated)[0]["calibration error"] == error
    said = next(line for line in terminal.describe_metrics(evaluated) if line.startswith("Calibration"))
    assert len(re.findall(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", said)) == 2, "before and with the temperature"
    on_validation, place = run_folder.evaluate(trained, images, split="Val", attacks=["fgsm"])
    assert place.name.startswith("phantom-Val-")
    assert "calibration" not in on_validation.plain()


def test_without_validation_images_there_is_no_calibration(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(images, tmp_path / "phantom")
    for folder in list(data.rglob("Val")):
        shutil.rmtree(folder)
    document, _ = run_folder.evaluate(trained, data, attacks=["fgsm"])
    assert "calibration" not in document.plain()
    assert "calibration is not measured" in capsys.readouterr().err
