"""Temperature scaling and calibration under attack, against scikit-learn, torch and numbers known beforehand."""

from functools import lru_cache
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from trustcxr.evaluation import calibration
from trustcxr.statistics import Bootstrap, softmax

Tables = tuple[pd.DataFrame, pd.DataFrame]  # predictions on Test, and on Val


def drawn(count: int, sharpness: float, seed: int, images: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, `sharpness` times those of which labels are drawn; half of a patient's images share a draw. Patients."""
    random, patients = np.random.default_rng(seed), count // images
    honest = np.repeat(random.normal(0, 1.5, (patients, 3)), images, axis=0)
    shared = np.repeat(random.random(patients), images)
    draws = np.where(random.random(count) < 0.5, shared, random.random(count)) if images > 1 else shared
    labels = (draws[:, None] > softmax(honest).cumsum(1)).sum(1).clip(0, 2)
    return honest * sharpness, labels, np.repeat(np.arange(patients), images)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_is_what_the_logits_were_sharpened_by(sharpness: float) -> None:
    logits, labels, _ = drawn(6000, sharpness, 0)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(sharpness, rel=0.08)


def test_the_temperature_is_the_one_of_gradient_descent() -> None:
    logits, labels, _ = drawn(300, 2.0, 1)
    log = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(torch.tensor(logits) / log.exp(), torch.tensor(labels))
        loss.backward()
        return loss

    optimiser.step(closure)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(float(log.detach().exp()), rel=1e-3)


def test_a_fit_that_runs_away_stops_at_a_bound_and_no_images_have_none() -> None:
    assert np.isfinite(calibration.log_loss(np.array([[1e4, -1e4]]), np.array([1]))).all()
    labels = np.arange(30) % 3
    assert 0.05 < calibration.fit_temperature(10 * np.eye(3)[labels], labels) < 0.4
    assert calibration.fit_temperature(10 * np.eye(3)[labels], (labels + 1) % 3) == pytest.approx(20, rel=0.02)
    assert np.isnan(calibration.fit_temperature(np.zeros((0, 3)), np.zeros(0)))
    error, ends = calibration.debiased_error(np.zeros((11, 15, 3)))
    assert np.isnan([error, *ends]).all()


def table(logits: np.ndarray, labels: np.ndarray, split: str = "Test", **keys: object) -> pd.DataFrame:
    about = {"attack": "clean", "epsilon": 0.0, "steps": 0, "severity": 0} | keys
    names = [f"{split}/{i}" for i in range(len(labels))]
    rows = {"sample_id": names, "group": names, "split": split, "label": labels, "logits": list(logits)}
    return pd.DataFrame(rows).assign(**about)


@pytest.fixture(scope="module")
def tables() -> Tables:
    """Test predictions, clean and under attack, of a network that is twice too sure; and validation predictions."""
    validation = table(*drawn(2000, 2.0, 3)[:2], split="Val")
    logits, labels, _ = drawn(1500, 2.0, 4)
    attacked = logits.copy()
    attacked[np.arange(1500), labels] -= 2.5
    parts = [table(logits, labels), table(attacked, labels, attack="pgd", epsilon=0.02, steps=20)]
    parts += [table(attacked, labels, attack="lungs_only"), table(attacked, labels, attack="jpeg", severity=3)]
    extra = table(np.zeros((2000, 3)), validation["label"].to_numpy(), split="Val", attack="pgd", epsilon=0.02, steps=2)
    return pd.concat(parts), pd.concat([validation, extra])


def test_calibration_before_and_after_on_clean_images_and_under_attack(tables: Tables) -> None:
    predictions, validation = tables
    found = calibration.describe(predictions, validation, resamples=200).plain()
    assert found["temperature"] == pytest.approx(2, rel=0.1)
    assert (found["split"], found["n"]) == ("Val", 2000)
    assert [(part["attack"], part["epsilon"], part["steps"]) for part in found["attacks"]] == [("pgd", 0.02, 20)]
    for part, attack in ((found["clean"], "clean"), (found["attacks"][0], "pgd")):
        own = predictions[predictions["attack"] == attack]
        logits, labels = np.stack(own["logits"]), own["label"].to_numpy()
        for ending, scaled in (("", logits), ("_scaled", logits / found["temperature"])):
            ece = multiclass_calibration_error(torch.tensor(softmax(scaled)), torch.tensor(labels), 3, n_bins=15)
            assert part[f"ece_plug_in{ending}"] == pytest.approx(float(ece), abs=1e-6)
            assert part[f"ece{ending}"]["ci"][0] <= part[f"ece{ending}"]["value"] <= part[f"ece{ending}"]["ci"][1]
            assert part[f"log_loss{ending}"]["value"] == pytest.approx(log_loss(labels, softmax(scaled)))
            bins = part[f"bins{ending}"]
            assert sum(row["n"] for row in bins) == 1500 == part["n"]
            again = sum(abs(row["confidence"] - row["accuracy"]) * row["n"] for row in bins) / 1500
            assert again == pytest.approx(part[f"ece_plug_in{ending}"])
            confidence = sum(row["confidence"] * row["n"] for row in bins) / 1500
            assert confidence == pytest.approx(part[f"confidence{ending}"]["value"])
        assert part["accuracy"]["value"] == pytest.approx((logits.argmax(1) == labels).mean())
    clean, attacked = found["clean"]["ece_scaled"]["value"], found["attacks"][0]["ece_scaled"]["value"]
    assert clean < 0.5 * found["clean"]["ece"]["value"]
    assert attacked > 3 * clean, "it was fitted on clean images"


@pytest.mark.parametrize("refit", [True, False])
def test_there_is_no_temperature_of_another_network_or_of_no_image(refit: bool, tables: Tables) -> None:
    """The network before a refit is another one: its temperature says nothing of this."""
    predictions, validation = tables
    given = validation if refit else validation[validation["attack"] != "clean"]
    found = calibration.describe(predictions, given, resamples=100, refit=refit).plain()
    assert found["temperature"] is None
    assert refit or found["n"] == 0
    assert not [key for key in found["clean"] if "_scaled" in key]
    assert found["clean"]["ece"]["value"] > 0


SHARPNESS = (0.7, 1.0, 1.3, 2.0)


def totals(logits: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> np.ndarray:
    bootstrap = Bootstrap.over(groups, resamples=200, seed=seed)
    return bootstrap.totals(calibration.calibration_bins(softmax(logits), labels))


@lru_cache
def true_error(sharpness: float) -> float:
    """Of very many images, with the chance of being right in the place of right and wrong."""
    logits = np.random.default_rng(99).normal(0, 1.5, (200_000, 3)) * sharpness
    said, honest = softmax(logits), softmax(logits / sharpness)
    answer, confidence = said.argmax(1), said.max(1)
    place = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    return float(np.abs(np.bincount(place, honest[np.arange(len(said)), answer] - confidence, 15)).sum() / len(said))


def covered(sharpness: float, seed: int, images: int, trial: int) -> bool:
    """Whether the interval of one draw of 400 images holds the error of very many."""
    error, (low, high) = calibration.debiased_error(totals(*drawn(400, sharpness, seed, images), trial))
    assert low <= error <= high
    return low <= true_error(sharpness) + 1e-9 <= high + 1e-9


@pytest.mark.full
@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("sharpness", SHARPNESS)
def test_the_interval_of_the_calibration_error_holds_the_truth_as_often_as_said(sharpness: float, images: int) -> None:
    found = [covered(sharpness, trial, images, trial) for trial in range(120)]
    assert np.mean(found) >= 0.9 - 0.03, "at least 90 of 100, and chance"


def test_coverage_over_all_cases_is_neither_too_small_nor_too_large() -> None:
    cases = product(range(25), (1, 4), SHARPNESS)
    found = [covered(sharpness, 1000 + t, images, t) for t, (_, images, sharpness) in enumerate(cases)]
    assert 0.9 <= np.mean(found) <= 0.98


def test_the_debiased_error_is_nearer_the_truth_than_the_plug_in() -> None:
    """A calibrated network of 400 images: the plug-in says about 0.05, where there is nothing."""
    found, plug_in = [], []
    for trial in range(40):
        sums = totals(*drawn(400, 1.0, trial, 1), trial)
        found.append(calibration.debiased_error(sums)[0])
        plug_in.append(float(calibration.calibration_error(sums[0])))
    assert np.mean(found) < 0.5 * np.mean(plug_in)
    sure = [calibration.debiased_error(totals(*drawn(400, 2.0, trial, 1), trial))[0] for trial in range(40)]
    assert np.mean(np.abs(np.array(sure) - true_error(2.0))) < 0.03
