"""Standard against robust over the same images, and the engine that works through a list of runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from trustcxr import comparison, engines, metrics, results
from trustcxr.engines import Failure
from trustcxr.errors import UserError

IMAGES = 60


def rows(attack: str, epsilon: float, right: np.ndarray, steps: int = 0, first: int = 0) -> pd.DataFrame:
    """Predictions that are right where `right` says so."""
    logits = np.where(right[:, None], [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]).astype(np.float32)
    return pd.DataFrame(
        {
            "sample_id": [f"i{k + first}" for k in range(len(right))],
            "group": [f"p{(k + first) // 2}" for k in range(len(right))],
            "label": 0,
            "attack": attack,
            "epsilon": epsilon,
            "steps": steps,
            "logits": list(logits),
        }
    )


def saliency(values: np.ndarray, method: str, measure: str = "infection_iou", condition: str = "clean") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sample_id": [f"i{k}" for k in range(len(values))],
            "group": [f"p{k // 2}" for k in range(len(values))],
            "method": method,
            "condition": condition,
            "measure": measure,
            "value": values,
        }
    )


def make_run(
    folder: Path, defence: str, *tables: pd.DataFrame, model: str = "vgg16", seed: int = 0, **also: Any
) -> Path:
    document = {"model": model, "seed": seed, "defence": defence, "split": "Test"}
    place = folder / f"{model}-{defence}-s{seed}"
    results.write_json(place / "metrics.json", document)
    results.write_table(place / "predictions.parquet", pd.concat(tables))
    if "saliency" in also:
        results.write_table(place / "saliency.parquet", also["saliency"])
    return place


@pytest.fixture
def right() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.random(IMAGES) < share for name, share in (("a", 0.9), ("b", 0.5), ("c", 0.7), ("d", 0.6))}


def test_every_measure_is_compared_over_the_same_images(tmp_path: Path, right: dict[str, np.ndarray]) -> None:
    base = make_run(tmp_path, "standard", rows("clean", 0, right["a"]), rows("fgsm", 0.02, right["b"], 1))
    robust = make_run(tmp_path, "fgsm", rows("fgsm", 0.02, right["c"], 1).sample(frac=1), rows("clean", 0, right["d"]))
    found = {row["measure"]: row for row in comparison.standard_against_robust([robust, base], resamples=300)}
    assert set(found) == {"clean accuracy", "fgsm accuracy @0.02"}
    row = found["fgsm accuracy @0.02"]
    assert (row["model"], row["seed"], row["defence"], row["split"], row["n"]) == ("vgg16", 0, "fgsm", "Test", IMAGES)
    assert row["standard"] == pytest.approx(right["b"].mean())
    assert row["robust"] == pytest.approx(right["c"].mean())
    assert row["difference"] == pytest.approx(right["c"].mean() - right["b"].mean())
    assert row["difference_ci"][0] < row["difference"] < row["difference_ci"][1]
    gained, lost = int((right["c"] & ~right["b"]).sum()), int((right["b"] & ~right["c"]).sum())
    assert row["improved"] == pytest.approx(gained / IMAGES)
    assert row["p_value"] == pytest.approx(float(stats.binomtest(gained, gained + lost).pvalue))


def test_only_shared_images_count(tmp_path: Path, right: dict[str, np.ndarray]) -> None:
    base = make_run(tmp_path, "standard", rows("clean", 0, right["a"]))
    robust = make_run(tmp_path, "fgsm", rows("clean", 0, right["b"], first=20))
    (row,) = comparison.standard_against_robust([base, robust], resamples=100)
    assert row["n"] == IMAGES - 20
    assert row["standard"] == pytest.approx(right["a"][20:].mean())
    assert row["robust"] == pytest.approx(right["b"][: IMAGES - 20].mean())


def test_runs_are_paired_by_model_and_seed(tmp_path: Path, right: dict[str, np.ndarray]) -> None:
    made = [
        make_run(tmp_path, defence, rows("clean", 0, right[name]), model=model, seed=seed)
        for defence, model, seed, name in (
            ("standard", "vgg16", 0, "a"),
            ("standard", "vgg16", 1, "b"),
            ("fgsm", "vgg16", 1, "c"),
            ("fgsm", "resnet50", 0, "d"),  # its standard run is missing
        )
    ]
    (row,) = comparison.standard_against_robust(made, resamples=100)
    assert (row["model"], row["seed"]) == ("vgg16", 1)
    assert row["standard"] == pytest.approx(right["b"].mean())


def test_of_several_numbers_of_steps_the_strongest_counts(tmp_path: Path, right: dict[str, np.ndarray]) -> None:
    both = (rows("pgd", 0.02, right["a"], 10), rows("pgd", 0.02, right["b"], 20), rows("pgd", 0.01, right["c"], 20))
    folder = make_run(tmp_path, "standard", *both)
    found = comparison.figures(folder)
    assert set(found) == {"pgd accuracy @0.02", "pgd accuracy @0.01"}
    assert found["pgd accuracy @0.02"]["value"].mean() == pytest.approx(right["b"].mean())
    assert len(found["pgd accuracy @0.02"]) == IMAGES


def test_views_have_names_without_a_radius(tmp_path: Path, right: dict[str, np.ndarray]) -> None:
    found = comparison.figures(make_run(tmp_path, "standard", rows(metrics.VIEWS[0], 0, right["a"])))
    assert set(found) == {f"{metrics.VIEWS[0]} accuracy"}


def test_saliency_is_of_one_method_and_of_clean_images(tmp_path: Path, right: dict[str, np.ndarray]) -> None:
    random = np.random.default_rng(1)
    values = {name: random.random(IMAGES) for name in ("layercam", "gradcam", "fgsm", "ssim")}
    table = pd.concat(
        [
            saliency(values["layercam"], "layercam"),
            saliency(values["gradcam"], "gradcam"),
            saliency(values["fgsm"], "gradcam", condition="fgsm"),
            saliency(values["ssim"], "gradcam", "stability_ssim", "fgsm"),
            saliency(np.zeros(IMAGES), "gradcam", "null_map"),
        ]
    )
    folder = make_run(tmp_path, "standard", rows("clean", 0, right["a"]), saliency=table)
    found = comparison.figures(folder)
    assert set(found) == {"clean accuracy", "infection_iou", "stability_ssim"}
    assert found["infection_iou"]["value"].tolist() == values["gradcam"].tolist()
    assert found["stability_ssim"]["value"].tolist() == values["ssim"].tolist()
    alone = make_run(tmp_path, "fgsm", rows("clean", 0, right["a"]), saliency=saliency(values["layercam"], "layercam"))
    assert comparison.figures(alone)["infection_iou"]["value"].tolist() == values["layercam"].tolist()


# --- engines ---------------------------------------------------------------------------------------------------------


@dataclass
class Task:
    name: str


def work(task: Task) -> str:
    if task.name == "wrong":
        raise UserError("no weights here")
    if task.name == "broken":
        raise ZeroDivisionError("by nought")
    if task.name == "stopped":
        raise KeyboardInterrupt
    return task.name.upper()


def test_one_failure_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [Task("a"), Task("wrong"), Task("broken"), Task("b")]
    found = engines.get("local").map(work, tasks)
    assert found == ["A", Failure("wrong", "no weights here"), Failure("broken", "ZeroDivisionError: by nought"), "B"]
    said = capsys.readouterr().err
    assert "wrong: no weights here" in said
    assert said.count("Traceback") == 1, "a fault of the program shows where; the user's mistake is one line"


def test_control_c_stops_the_engine() -> None:
    with pytest.raises(KeyboardInterrupt):
        engines.get("local").map(work, [Task("stopped"), Task("a")])


def test_an_engine_that_is_not_there() -> None:
    with pytest.raises(UserError, match="unknown engine 'locl': did you mean local"):
        engines.get("locl")
