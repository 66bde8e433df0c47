"""Saliency scored: each number of the table by another way to it, and no map kept."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from small_networks import scores_of, stages_of
from trustcxr import attacks, corruptions, explain
from trustcxr.data import load_dataset
from trustcxr.data.lesion_edits import EditInputs
from trustcxr.data.loader import to_pixels
from trustcxr.data.phantom import render_image, write_files
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import Run
from trustcxr.explain import (
    baseline_scores,
    evaluate,
    examples,
    faithfulness,
    lesion_effect,
    measures,
    methods,
)
from trustcxr.explain.baseline_scores import SHARPENED
from trustcxr.explain.saliency_summary import summarise
from trustcxr.models import factory, feature_maps
from trustcxr.recipes.evaluation_recipe import ExplanationRecipe
from trustcxr.recipes.parsing import validate
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.study_recipe import StudyRecipe
from trustcxr.registry import HEADLINE_MEASURES, HIT_RATE, REFERENCES
from trustcxr.storage import atomic

SIZE = 64
METHODS = ("gradcam", "layercam@-2")
OPTIONS = ExplanationRecipe(methods=METHODS, corruptions=("jpeg", "letters"), sample=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files.write(
        tmp_path_factory.mktemp("scoring") / "phantom", {"Train": 1, "Val": 2, "Test": 3}, size=SIZE
    )


def radiographs(folder: Path, split: str = "Test") -> Any:
    return load_dataset(folder, split=split, size=SIZE, workers=1)


@pytest.fixture(scope="module")
def run() -> Run:
    torch.manual_seed(0)
    content = {"model": {"name": "test_resnet", "weights": "none"}, "data": {"size": SIZE}}
    model = factory.build("test_resnet", classes=3).eval()
    return Run(Path("nowhere"), model, render_image.CLASSES, validate(RunRecipe, content, "test"))


@pytest.fixture(scope="module")
def held_out(folder: Path) -> Any:
    return radiographs(folder)


@pytest.fixture(scope="module")
def levels(run: Run, folder: Path) -> dict[str, float]:
    return evaluate.tune_thresholds(run, radiographs(folder, "Val"), METHODS)


@pytest.fixture(scope="module")
def table(run: Run, held_out: Any, levels: dict[str, float]) -> pd.DataFrame:
    return scores_of(run, held_out, OPTIONS, thresholds=levels, batch_size=4)


@pytest.fixture
def batch(held_out: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, np.ndarray]:
    """Images, labels, infection and lung masks of all annotated images, and their ids."""
    rows = evaluate.find_annotated(held_out)
    infection, lung = (torch.from_numpy(np.array(held_out.masks(kind)[rows])) for kind in ("infection", "lung"))
    images = to_pixels(torch.from_numpy(held_out.batch(rows)))
    return images, torch.from_numpy(held_out.labels[rows]), infection, lung, held_out.sample_ids[rows]


def test_the_maps_measured_here_are_not_blank(table: pd.DataFrame) -> None:
    blank = table[(table["measure"] == "null_map") & (table["condition"] == "clean")].groupby("method")["value"].mean()
    assert (blank <= 0.5).all(), blank


def column(
    table: pd.DataFrame, ids: np.ndarray, measure: str, method: str = "gradcam", condition: str = "clean",
    name: str = "value",
) -> np.ndarray:  # fmt: skip
    rows = table[(table["method"] == method) & (table["condition"] == condition) & (table["measure"] == measure)]
    return rows.set_index("sample_id").loc[ids, name].to_numpy(dtype=float)


def same(found: np.ndarray, wanted: Tensor) -> None:
    np.testing.assert_allclose(found, wanted.double().numpy(), atol=1e-5, equal_nan=True)


def test_each_measure_is_that_of_the_true_class_beside_what_it_must_beat(
    table: pd.DataFrame, run: Run, batch: Any, levels: dict[str, float]
) -> None:
    images, labels, infection, lung, ids = batch
    maps = explain.layer_cam(run.model, images, labels, layer="net.layer3")
    functions = {
        "infection_energy": measures.energy_inside,
        "pointing_hit_rate": measures.pointing_hit,
        "infection_iou": measures.iou_otsu,
        "infection_iou_area": measures.iou_at_mask_area,
        "infection_rank_accuracy": measures.rank_accuracy,
        "infection_auroc": measures.pixel_auroc,
        "infection_ap": measures.average_precision,
    }
    centre = explain.centre_prior(SIZE, SIZE).expand_as(maps)
    for name, function in functions.items():
        same(column(table, ids, name, "layercam@-2"), function(maps, infection))
        same(column(table, ids, name, "layercam@-2", name="chance"), measures.chance(function, maps, infection))
        same(column(table, ids, name, "layercam@-2", name="centre"), function(centre, infection))
        same(column(table, ids, name, "layercam@-2", name="lung"), function(lung.float(), infection))
    given = measures.energy_inside(maps, infection, within=lung)
    same(column(table, ids, "infection_energy_given_lung", "layercam@-2"), given)
    same(column(table, ids, "lung_energy", "layercam@-2"), measures.energy_inside(maps, lung))
    tuned = measures.iou(maps, infection, levels["layercam@-2"])
    same(column(table, ids, "infection_iou_tuned", "layercam@-2"), tuned)
    assert (column(table, ids, "infection_iou_tuned", "layercam@-2", name="threshold") == levels["layercam@-2"]).all()


def test_the_lung_mask_as_the_map_is_no_better_than_the_infections_share_of_the_lung(table: pd.DataFrame) -> None:
    energy = table[(table["measure"] == "infection_energy") & (table["condition"] == "clean")]
    given = table[(table["measure"] == "infection_energy_given_lung") & (table["condition"] == "clean")]
    np.testing.assert_allclose(energy["lung"], energy["lesion"], atol=1e-9)
    np.testing.assert_allclose(given["chance"], given["lesion"], atol=1e-9)


def test_the_random_map_is_always_scored_and_scores_chance_whatever_the_model(table: pd.DataFrame) -> None:
    assert list(dict.fromkeys(table["method"])) == [*METHODS, "random"]
    assert evaluate.add_random_map(("random", "GradCAM", "gradcam")) == ("random", "gradcam")
    # The random map is no method with something to be stable: once, under FGSM, to see what that scores.
    assert set(table[table["method"] == "random"]["condition"]) == {"clean", "fgsm"}


def test_a_perturbed_image_is_measured_against_the_masks_too(table: pd.DataFrame, run: Any, batch: Any) -> None:
    images, labels, infection, _, ids = batch
    perturbed = attacks.fgsm(run.model, images, labels, epsilon=0.02)
    maps = explain.grad_cam(run.model, perturbed, labels)
    same(column(table, ids, "infection_energy", condition="fgsm"), measures.energy_inside(maps, infection))
    clean = explain.grad_cam(run.model, images, labels)
    same(column(table, ids, "stability_ssim", condition="fgsm"), measures.ssim(clean, maps))


def test_a_threshold_is_the_one_with_the_best_mean_iou_on_validation(run: Any, folder: Path, levels: Any) -> None:
    val = radiographs(folder, "Val")
    rows = evaluate.find_annotated(val)
    images, labels = to_pixels(torch.from_numpy(val.batch(rows))), torch.from_numpy(val.labels[rows])
    infection = np.array(val.masks("infection")[rows]) > 0
    maps = explain.grad_cam(run.model, images, labels).numpy()
    best = max(
        np.round(np.arange(1, 20) * 0.05, 2),
        key=lambda level: np.mean(
            [(m > level)[i].sum() / ((m > level) | i).sum() for m, i in zip(maps, infection, strict=True)]
        ),
    )
    assert levels["gradcam"] == pytest.approx(best)
    assert set(levels) == {*METHODS, "random", "centre"}


def test_the_time_that_is_left_of_tuning_is_said(run: Run, folder: Path, bars: list) -> None:
    evaluate.tune_thresholds(run, radiographs(folder, "Val"), METHODS[:1], batch_size=2)
    assert bars[-1] == (f"thresholds for the maps of {run.name}", 3, 3)


def test_stability_is_measured_under_each_change_on_the_images_own_draw(table: Any, run: Any, batch: Any) -> None:
    images, labels, _, _, ids = batch
    clean = explain.grad_cam(run.model, images, labels)
    changed = explain.grad_cam(run.model, corruptions.corrupt(images, "jpeg", 3, keys=list(ids)), labels)
    for name in ("ssim", "rank_correlation"):
        same(column(table, ids, f"stability_{name}", condition="jpeg"), getattr(measures, name)(clean, changed))
    same(column(table, ids, "stability_top_tenth", condition="jpeg"), measures.top_tenth_overlap(clean, changed))
    assert "artefact_gain" not in set(table[table["condition"] == "jpeg"]["measure"])


def test_what_moves_onto_an_artefact_is_the_energy_there_after_minus_before(table: Any, run: Any, batch: Any) -> None:
    images, labels, _, _, ids = batch
    marked, drawn = corruptions.artefact(images, "letters", 3, keys=list(ids))
    before, after = (explain.grad_cam(run.model, pixels, labels) for pixels in (images, marked))
    on_it, was = (measures.energy_inside(maps, drawn) for maps in (after, before))
    nothing = measures.null_map(before) | measures.null_map(after)
    same(column(table, ids, "artefact_gain", condition="letters"), (on_it - was).masked_fill(nothing, torch.nan))
    area = drawn.flatten(1).double().mean(1)
    same(column(table, ids, "artefact_energy", condition="letters", name="chance"), area)


def test_a_turned_image_is_no_test_of_stability() -> None:
    assert "rotation" not in evaluate.UNDER
    assert len(evaluate.UNDER) == len(corruptions.CORRUPTIONS) - 1
    assert set(corruptions.ARTEFACTS) <= set(evaluate.UNDER)


@pytest.mark.slow
def test_the_dear_measures_are_of_a_sample_that_is_the_same_for_every_run(
    table: pd.DataFrame, run: Run, held_out: Any, batch: Any
) -> None:
    images, labels, _, _, ids = batch
    sampled = set(table[table["measure"] == "road"]["sample_id"])
    assert len(sampled) == OPTIONS.sample
    assert sampled == set(table[table["condition"] == "pgd"]["sample_id"])
    assert sampled == set(table[table["measure"] == "randomised_ssim"]["sample_id"])
    again = scores_of(run, held_out, OPTIONS.model_copy(update={"methods": ("hirescam",), "corruptions": ()}))
    assert sampled == set(again[again["measure"] == "road"]["sample_id"])
    chosen = np.isin(ids, list(sampled))
    some, labelled = images[chosen], labels[chosen]
    maps = explain.grad_cam(run.model, some, labelled)
    curve = faithfulness.deletion(run.model, some, maps, labelled, steps=10)
    same(column(table, ids[chosen], "deletion"), curve.area)


def test_sanity_is_the_cascade_of_each_method(table: pd.DataFrame, run: Any, batch: Any) -> None:
    images, labels, _, _, ids = batch
    chosen = np.isin(ids, list(set(table[table["measure"] == "road"]["sample_id"])))
    stages = list(stages_of(run.model, images[chosen], explain.grad_cam, labels[chosen]))
    conditions = [c for c in dict.fromkeys(table["condition"]) if c.startswith("randomised:")]
    assert conditions == [f"randomised:{stage.part}" for stage in stages]
    for stage in stages:
        condition = f"randomised:{stage.part}"
        same(column(table, ids[chosen], "randomised_ssim", condition=condition), stage.ssim)
    assert not table[(table["method"] == "random") & table["condition"].str.startswith("randomised:")].size


def test_each_map_is_judged_by_what_filling_regions_does_to_the_answer(
    table: pd.DataFrame, run: Any, batch: Any
) -> None:
    images, labels, infection, lung, ids = batch
    rows = table[table["measure"] == "ranked_by_cause"]
    assert set(rows["method"]) == {*METHODS, "random"}
    chosen = np.isin(ids, list(set(rows["sample_id"])))
    some, inside = images[chosen], lung[chosen] != 0
    falls = lesion_effect.measure_causes(run.model, EditInputs(some, inside, infection[chosen] != 0), labels[chosen])
    own = lesion_effect.rank_by_cause(explain.grad_cam(run.model, some, labels[chosen]), falls).numpy()
    bright = lesion_effect.rank_by_cause(some[:, 0] * inside, falls).numpy()
    same(column(table, ids[chosen], "ranked_by_cause"), torch.from_numpy(own))
    told = rows[rows["method"] == "gradcam"].set_index("sample_id")["brightness"].reindex(ids[chosen])
    assert told.to_numpy() == pytest.approx(bright, nan_ok=True)
    part = summarise(table, images=9, resamples=100)["gradcam"].faithfulness
    assert part is not None
    assert part.figures["ranked_by_cause"].value == pytest.approx(np.nanmean(own))
    assert part.figures["ranked_by_cause"].brightness == pytest.approx(np.nanmean(told))


def test_no_sample_no_dear_measures(run: Run, held_out: Any) -> None:
    options = ExplanationRecipe(methods=("gradcam",), corruptions=(), sample=0)
    found = scores_of(run, held_out, options)
    assert set(found["condition"]) == {"clean", "fgsm"}
    document = summarise(found, images=len(held_out), resamples=100)["gradcam"]
    assert document.faithfulness is None
    assert document.sanity == []
    assert "infection_iou_tuned" not in document.figures  # nothing was tuned


@pytest.mark.slow
def test_the_size_of_a_batch_changes_no_number(table: Any, run: Any, held_out: Any, levels: Any) -> None:
    whole = scores_of(run, held_out, OPTIONS, thresholds=levels, batch_size=64)
    keys = ["sample_id", "method", "condition", "measure"]
    first, second = (t.sort_values(keys).reset_index(drop=True) for t in (table, whole))
    assert first[keys].equals(second[keys])
    np.testing.assert_allclose(first["value"], second["value"], atol=2e-3, equal_nan=True)
    close = np.isclose(first["value"], second["value"], atol=1e-5, equal_nan=True)
    assert close.mean() > 0.97, "thresholds and ranks may tip at rounding, the rest may not"


@pytest.mark.slow
def test_no_map_is_kept_from_one_batch_to_the_next(run: Run, held_out: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []
    original = methods.maps

    def watched(*arguments: Any) -> dict[str, Tensor]:
        found = original(*arguments)
        made.extend(weakref.ref(maps) for maps in found.values())
        return found

    monkeypatch.setattr(methods, "maps", watched)
    options = ExplanationRecipe(methods=("gradcam",), corruptions=("jpeg",), sample=2)
    for number, _ in enumerate(evaluate.score_batches(run, held_out, options, batch_size=2)):
        assert sum(reference() is not None for reference in made) == 0, number
    assert len(made) > 10


@pytest.mark.slow
def test_the_model_is_left_as_found(run: Run, held_out: Any) -> None:
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    state = torch.get_rng_state()
    scores_of(run, held_out, OPTIONS)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert all(p.grad is None for p in run.model.parameters())
    assert not any(m._forward_hooks for m in run.model.modules())


def test_the_summary_is_the_means_with_what_stands_beside_them(table: pd.DataFrame, held_out: Any, levels: Any) -> None:
    document = summarise(table, images=len(held_out), resamples=200)
    assert list(document) == [*METHODS, "random"]
    found = document["gradcam"]
    part = found.plain()
    clean = table[(table["method"] == "gradcam") & (table["condition"] == "clean")]
    n = clean["sample_id"].nunique()
    assert (part["n"], part["without_mask"]) == (n, len(held_out) - n)
    for measure in ("infection_energy", "infection_auroc", "lung_energy", "infection_iou_tuned"):
        rows = clean[clean["measure"] == measure]
        assert part[measure]["value"] == pytest.approx(rows["value"].mean())
        low, high = part[measure]["ci"]
        assert low <= part[measure]["value"] <= high
        for beside in ("chance", "centre", "lung", "brightness", "edges"):
            if measure != "infection_iou_tuned" or beside not in (
                "brightness",
                "edges",
            ):  # no threshold is tuned for them
                assert part[measure][beside] == pytest.approx(rows[beside].mean())
        least = next(r for r in part["beyond"] if r["measure"] == measure)
        gaps = {b: (rows["value"] - rows[b]).mean() for b in REFERENCES if b != "randomised" and rows[b].notna().any()}
        assert least["difference"]["value"] == pytest.approx(min(gaps.values()))
        assert least["baseline"] == min(gaps, key=gaps.__getitem__)
        low, high = least["difference"]["ci"]
        assert low <= least["difference"]["value"] <= high
    over = {(lead.measure, lead.baseline): lead.difference for lead in found.over_baselines}
    rows = clean[clean["measure"] == "infection_energy"]
    beside = [name for name in (*REFERENCES, *SHARPENED) if name != "randomised" and rows[name].notna().any()]
    gaps = {name: rows["value"] - rows[name] for name in beside}
    assert {control for measure, control in over if measure == "infection_energy"} == set(gaps)
    withheld = {HIT_RATE} if part["withheld"] else set()
    assert {measure for measure, _ in over} == {*HEADLINE_MEASURES, "ranked_by_cause"} - withheld
    ranked = clean[clean["measure"] == "ranked_by_cause"]
    led = over["ranked_by_cause", "brightness"].value
    assert led == pytest.approx((ranked["value"] - ranked["brightness"]).mean())
    for control, gap in gaps.items():
        lead = over["infection_energy", control]
        assert lead.value == pytest.approx(gap.mean())
        low, high = lead.interval
        assert low <= lead.value <= high
        # Of one image a group the bootstrap's interval is about the normal one of paired differences.
        assert high - low == pytest.approx(2 * 1.96 * gap.std() / np.sqrt(gap.notna().sum()), rel=0.4)
    right = clean[(clean["measure"] == "infection_energy") & (clean["predicted"] == clean["class"])]
    assert part["correct"]["n"] == len(right)
    energy = part["correct"].get("infection_energy", {"value": np.nan})
    assert energy["value"] == pytest.approx(right["value"].mean(), nan_ok=True)
    assert part["threshold"] == levels["gradcam"]
    by_change = {row["condition"]: row for row in part["stability"]}
    assert {name: row["kind"] for name, row in by_change.items()} == {
        "fgsm": "attack", "jpeg": "corruption", "letters": "artefact", "pgd": "attack",
    }  # fmt: skip
    assert by_change["pgd"]["n"] == OPTIONS.sample
    assert part["corruption_ssim"]["value"] == pytest.approx(by_change["jpeg"]["stability_ssim"]["value"])
    assert part["stability_ssim"]["value"] == pytest.approx(by_change["fgsm"]["stability_ssim"]["value"])
    assert part["artefact_gain"]["value"] == pytest.approx(by_change["letters"]["artefact_gain"]["value"])
    assert part["faithfulness"]["n"] == OPTIONS.sample
    assert {"insertion", "deletion", "road"} <= set(part["faithfulness"])
    assert {"part", "ssim", "rank_correlation", "null"} <= set(part["sanity"][0].keys())
    assert part["perturbed"]["attack"] == "fgsm"
    assert document["random"].faithfulness is not None
    atomic.to_json(document)


def test_the_size_of_the_lesion_is_its_share_of_the_lungs() -> None:
    lung = torch.zeros(4, 10, 10, dtype=torch.bool)
    lung[:3, :, :5] = True
    infection = torch.zeros_like(lung)
    infection[0, :, :5] = True  # the whole lung
    infection[1, :5] = True  # half of it, and as much beside it
    infection[3, 0] = True  # no lung is known
    found = baseline_scores.Masks(infection, lung).lesion.tolist()
    assert found[:2] == [1.0, 0.5]
    assert np.isnan(found[2:]).all()


def stratified(lesion: np.ndarray) -> list[dict[str, Any]]:
    names = [f"i{k}" for k in range(len(lesion))]
    rows = {"sample_id": names, "group": names, "method": "gradcam", "cells": "", "severity": 0, "threshold": np.nan}
    rows |= {"condition": "clean", "epsilon": 0.0, "measure": "infection_energy", "value": lesion / 2}
    rows |= {"class": "a", "predicted": "a", "lesion": lesion}
    return summarise(pd.DataFrame(rows), images=len(lesion), resamples=100)["gradcam"].plain()["by_lesion"]


def test_measures_are_told_by_the_size_of_the_lesion() -> None:
    lesion = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.95, 1.0])
    found = {row["stratum"]: row for row in stratified(lesion)}
    assert found["covers the lungs"]["n"] == 2
    assert found["part of the lungs"]["n"] == 7
    assert [found[f"{name} third"]["n"] for name in ("smallest", "middle", "largest")] == [3, 3, 3]
    assert found["smallest third"]["infection_energy"]["value"] == pytest.approx(0.1)
    assert found["covers the lungs"]["infection_energy"]["value"] == pytest.approx(0.975 / 2)
    assert stratified(np.full(3, np.nan)) == []


def test_methods_of_one_layer_share_one_pass(run: Run, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, *_ = batch
    calls = []
    forward = run.model.forward
    monkeypatch.setattr(run.model, "forward", lambda x: calls.append(len(x)) or forward(x))
    names = ["gradcam", "layercam", "hirescam", "gradcam++", "layercam@-2", "gradcam@layer3", "random"]
    found = methods.maps(run.model, images, labels, names)
    assert len(calls) == 2
    assert list(found) == names
    for name in names:
        torch.testing.assert_close(found[name], methods.method(name)(run.model, images, labels))


def test_a_number_is_the_last_layer_of_a_stage(run: Run) -> None:
    named = dict(run.model.named_modules())
    assert feature_maps.find_layer(run.model, -1) is feature_maps.find_layer(run.model, None) is run.model.cam_layer
    assert feature_maps.find_layer(run.model, -2) is named["net.layer3"] is feature_maps.find_layer(run.model, "layer3")
    assert feature_maps.find_layer(run.model, "net.layer3") is named["net.layer3"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gradcm", "unknown saliency method 'gradcm': did you mean gradcam"),
        ("occlusion@-2", "occlusion reads no layer; those that do are gradcam"),
        ("layercam@", "a layer's name or a number"),
        ("layercam@-9", "unknown layer -9: valid: -1 to -5, or a name such as"),
        ("layercam@3", "unknown layer 3: valid: -1 to -5"),
        ("layercam@layr3", "unknown layer 'layr3': did you mean net.layer3"),
        ("layercam@zzz", "valid: net.act1, net.layer1, net.layer2, net.layer3, net.layer4, or any"),
    ],
)
def test_a_method_or_layer_that_is_not_there_is_named_before_any_work(
    name: str, words: str, run: Run, held_out: Any
) -> None:
    with pytest.raises(UserError, match=".*".join(part for part in [words.replace("'", ".")])):
        scores_of(run, held_out, ExplanationRecipe(methods=(name,)))


def test_a_recipe_names_methods_and_corruptions_that_are_there() -> None:
    with pytest.raises(UserError, match="unknown corruption 'jpg': did you mean jpeg"):
        evaluate.check_options(ExplanationRecipe(corruptions=("jpg",)))
    with pytest.raises(UserError, match="explanation"):
        validate(StudyRecipe, {"name": "x", "models": ["vgg16"], "explanation": {"methods": []}}, "test")


def test_images_without_a_mask_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_files.write(tmp_path / "odd", {"Train": 1, "Val": 1, "Test": 2}, size=SIZE)
    dataset = radiographs(data)
    evaluate.log_masks(dataset, len(evaluate.find_annotated(dataset)))
    assert "images have no mask to measure against and are left out" in capsys.readouterr().err


def test_data_without_masks_is_refused_in_words(run: Run, tmp_path: Path) -> None:
    for name in render_image.CLASSES:
        (tmp_path / "bare" / name).mkdir(parents=True)
        Image.fromarray(np.full((SIZE, SIZE), 90, np.uint8)).save(tmp_path / "bare" / name / "a.png")
    bare = load_dataset(tmp_path / "bare", size=SIZE, classes=render_image.CLASSES, workers=1)
    with pytest.raises(UserError, match="no infection or lung masks here"):
        scores_of(run, bare)


def test_examples_are_drawn_by_seed_then_the_best_and_worst_by_each_measure(table: pd.DataFrame, held_out: Any) -> None:
    chosen = examples.choose_images(held_out, [table, table], count=2, method="gradcam")
    at_random = [row for row, why in chosen.items() if examples.AT_RANDOM in why]
    rows = evaluate.find_annotated(held_out)
    assert at_random == sorted(np.random.default_rng(0).permutation(rows)[:2].tolist())
    ids = held_out.sample_ids
    clean = table[(table["method"] == "gradcam") & (table["condition"] == "clean")]
    for measure in examples.MAIN:
        mine = clean[clean["measure"] == measure]
        above = pd.Series((mine["value"] - mine["chance"]).to_numpy(), index=mine["sample_id"])
        for word, value in (("best", above.max()), ("worst", above.min())):
            (row,) = (row for row, why in chosen.items() if f"{word} {measure} above chance" in why)
            assert above[ids[row]] == pytest.approx(value)
    assert examples.choose_images(held_out, [table], count=0, method="gradcam") == {}


def test_the_best_is_the_best_over_all_runs(table: pd.DataFrame, held_out: Any) -> None:
    ids = held_out.sample_ids[evaluate.find_annotated(held_out)]

    def made_up(values: list[float]) -> pd.DataFrame:
        rows = {"sample_id": ids[:3], "measure": "infection_energy", "condition": "clean", "method": "gradcam"}
        return pd.DataFrame(rows | {"value": values, "chance": 0.1})

    both = [made_up([0.9, 0.6, 0.0]), made_up([0.0, 0.6, 0.1])]
    chosen = examples.choose_images(held_out, both, count=1, method="gradcam")
    place = {name: row for row, name in enumerate(held_out.sample_ids)}
    assert "best infection_energy above chance" in chosen[place[ids[1]]]
    assert "worst infection_energy above chance" in chosen[place[ids[2]]]


def test_panels_hold_what_the_page_shows(run: Run, held_out: Any) -> None:
    rows = evaluate.find_annotated(held_out)
    chosen = {int(rows[3]): "drawn at random", int(rows[0]): "best infection_energy above chance"}
    arrays = examples.make_panels(run, held_out, chosen, method="layercam@-2")
    assert arrays["sample_id"].tolist() == held_out.sample_ids[rows[[3, 0]]].tolist()
    assert arrays["why"].tolist() == list(chosen.values())
    images, labels = (
        to_pixels(torch.from_numpy(held_out.batch(rows[[3, 0]]))),
        torch.from_numpy(held_out.labels[rows[[3, 0]]]),
    )
    maps = explain.layer_cam(run.model, images, labels, layer=-2)
    np.testing.assert_allclose(arrays["saliency"], maps.numpy(), atol=1e-6)
    infection = torch.from_numpy(arrays["infection"])
    np.testing.assert_allclose(arrays["infection_energy"], measures.energy_inside(maps, infection), atol=1e-6)


def test_what_a_layer_shows_without_the_answer_stands_beside_its_map_unasked(
    run: Run, held_out: Any, table: Any
) -> None:
    assert "activation" not in set(table["method"])
    asked = ExplanationRecipe(methods=(*METHODS, "activation"), corruptions=(), sample=0)
    own = pd.concat(evaluate.score_batches(run, held_out, asked))
    own = own[(own["method"] == "activation") & (own["condition"] == "clean")]
    beside = table[(table["method"] == "gradcam") & (table["condition"] == "clean")]
    for measure in ("infection_energy", HIT_RATE):
        values = own[own["measure"] == measure].set_index("sample_id")["value"]
        found = beside[beside["measure"] == measure].set_index("sample_id")["activation"]
        assert found.notna().any()
        pd.testing.assert_series_equal(found, values.loc[found.index], check_names=False)
    part = summarise(table, images=72, resamples=100)["gradcam"]
    energies = own[own["measure"] == "infection_energy"].set_index("sample_id")["value"]
    of_map = beside[beside["measure"] == "infection_energy"].set_index("sample_id")["value"]
    shown = energies.loc[of_map.dropna().index]
    assert part.figure("infection_energy").activation == pytest.approx(shown.mean())


def test_the_mean_mask_of_training_is_a_control_like_the_others(run: Run, folder: Path, held_out: Any) -> None:
    from trustcxr.explain.baselines import mean_mask

    options = OPTIONS.model_copy(update={"methods": ("layercam",), "corruptions": (), "sample": 0})
    mean = mean_mask(radiographs(folder, "Train").masks("infection"))
    table = pd.concat(evaluate.score_batches(run, held_out, options, mean_mask=mean))
    clean = table[(table["method"] == "layercam") & (table["condition"] == "clean")]
    rows = evaluate.find_annotated(held_out)
    inside = torch.from_numpy(np.array(held_out.masks("lung")[rows])) > 0
    lesion = torch.from_numpy(np.array(held_out.masks("infection")[rows])) > 0
    lungs = inside.flatten(1).any(1)
    expected = measures.energy_inside(mean * inside, lesion).masked_fill(~lungs, np.nan)
    found = clean[clean["measure"] == "infection_energy"]["mean_mask"].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert clean[clean["measure"] == "infection_energy"]["mean_mask_as_sharp"].notna().any()
    part = summarise(table, images=len(held_out), resamples=100)["layercam"]
    assert part.figure("infection_energy").mean_mask == pytest.approx(np.nanmean(found))
    without = pd.concat(evaluate.score_batches(run, held_out, options))
    assert without["mean_mask"].isna().all()
    part = summarise(without, images=len(held_out), resamples=100)["layercam"]
    assert part.figure("infection_energy").mean_mask is None
