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

from small_networks import annotated, rows_of, scores_of, stages_of
from trustcxr import attacks, corruptions, explain
from trustcxr.data import load_dataset
from trustcxr.data.lesion_edits import EditInputs
from trustcxr.data.phantom import render_image, write_files
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import Run
from trustcxr.explain import (
    baseline_scores,
    baselines,
    evaluate,
    examples,
    faithfulness,
    lesion_effect,
    measures,
    methods,
)
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
    counts = {"Train": 1, "Val": 2, "Test": 3}
    return write_files.write(tmp_path_factory.mktemp("scoring") / "phantom", counts, size=SIZE)


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
    return annotated(held_out)


def column(table: pd.DataFrame, ids: np.ndarray, *which: str, condition: str = "clean", name: str = "value") -> Any:
    """The figures of these images, of a measure and a method."""
    return rows_of(table, *which, condition=condition).loc[ids, name].to_numpy(dtype=float)


def same(found: np.ndarray, wanted: Tensor) -> None:
    np.testing.assert_allclose(found, wanted.double().numpy(), atol=1e-5, equal_nan=True)


def test_each_measure_is_beside_what_it_must_beat(table: pd.DataFrame, run: Run, batch: Any, levels: Any) -> None:
    blank = table[(table["measure"] == "null_map") & (table["condition"] == "clean")].groupby("method")["value"].mean()
    assert (blank <= 0.5).all(), "maps that are blank would measure nothing"
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

    def shown(measure: str, name: str = "value") -> Any:
        return column(table, ids, measure, "layercam@-2", name=name)

    for measure, function in functions.items():
        same(shown(measure), function(maps, infection))
        same(shown(measure, "chance"), measures.chance(function, maps, infection))
        same(shown(measure, "centre"), function(centre, infection))
        same(shown(measure, "lung"), function(lung.float(), infection))
    same(shown("infection_energy_given_lung"), measures.energy_inside(maps, infection, within=lung))
    same(shown("lung_energy"), measures.energy_inside(maps, lung))
    same(shown("infection_iou_tuned"), measures.iou(maps, infection, levels["layercam@-2"]))
    assert (shown("infection_iou_tuned", "threshold") == levels["layercam@-2"]).all()
    energy, given = rows_of(table, "infection_energy"), rows_of(table, "infection_energy_given_lung")
    # The lung mask as the map is no better than the infection's share of the lung.
    np.testing.assert_allclose(energy["lung"], energy["lesion"], atol=1e-9)
    np.testing.assert_allclose(given["chance"], given["lesion"], atol=1e-9)


def test_the_random_map_is_always_scored_and_scores_chance_whatever_the_model(table: pd.DataFrame) -> None:
    assert list(dict.fromkeys(table["method"])) == [*METHODS, "random"]
    assert evaluate.add_random_map(("random", "GradCAM", "gradcam")) == ("random", "gradcam")
    # The random map is no method with something to be stable: once, under FGSM, to see what that scores.
    assert set(table[table["method"] == "random"]["condition"]) == {"clean", "fgsm"}


def test_a_threshold_has_the_best_mean_iou_on_validation(run: Run, folder: Path, levels: Any, bars: list) -> None:
    images, labels, infection, *_ = annotated(radiographs(folder, "Val"))
    maps = explain.grad_cam(run.model, images, labels)

    def mean_iou(level: float) -> float:
        above = maps > level
        return float(((above & infection).sum((1, 2)) / (above | infection).sum((1, 2))).mean())

    assert levels["gradcam"] == pytest.approx(max(np.round(np.arange(1, 20) * 0.05, 2), key=mean_iou))
    assert set(levels) == {*METHODS, "random", "centre"}
    evaluate.tune_thresholds(run, radiographs(folder, "Val"), METHODS[:1], batch_size=2)
    assert bars[-1] == (f"thresholds for the maps of {run.name}", 3, 3)


def test_stability_is_measured_under_each_change_on_the_images_own_draw(table: Any, run: Any, batch: Any) -> None:
    images, labels, infection, _, ids = batch
    clean = explain.grad_cam(run.model, images, labels)
    changed = explain.grad_cam(run.model, corruptions.corrupt(images, "jpeg", 3, keys=list(ids)), labels)
    for name in ("ssim", "rank_correlation"):
        same(column(table, ids, f"stability_{name}", condition="jpeg"), getattr(measures, name)(clean, changed))
    same(column(table, ids, "stability_top_tenth", condition="jpeg"), measures.top_tenth_overlap(clean, changed))
    assert "artefact_gain" not in set(table[table["condition"] == "jpeg"]["measure"])
    attacked = explain.grad_cam(run.model, attacks.fgsm(run.model, images, labels, epsilon=0.02), labels)
    same(column(table, ids, "stability_ssim", condition="fgsm"), measures.ssim(clean, attacked))
    same(column(table, ids, "infection_energy", condition="fgsm"), measures.energy_inside(attacked, infection))
    assert set(evaluate.UNDER) == set(corruptions.CORRUPTIONS) - {"rotation"}, "a turned image is no test of stability"
    assert set(corruptions.ARTEFACTS) <= set(evaluate.UNDER)


def test_what_moves_onto_an_artefact_is_the_energy_there_after_minus_before(table: Any, run: Any, batch: Any) -> None:
    images, labels, _, _, ids = batch
    marked, drawn = corruptions.artefact(images, "letters", 3, keys=list(ids))
    before, after = (explain.grad_cam(run.model, pixels, labels) for pixels in (images, marked))
    gain = measures.energy_inside(after, drawn) - measures.energy_inside(before, drawn)
    nothing = measures.null_map(before) | measures.null_map(after)
    same(column(table, ids, "artefact_gain", condition="letters"), gain.masked_fill(nothing, torch.nan))
    area = drawn.flatten(1).double().mean(1)
    same(column(table, ids, "artefact_energy", condition="letters", name="chance"), area)


@pytest.mark.slow
def test_dear_measures_are_of_one_sample_for_all_runs(table: pd.DataFrame, run: Run, held_out: Any, batch: Any) -> None:
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


def test_each_map_is_judged_by_what_filling_regions_does(table: pd.DataFrame, run: Any, batch: Any) -> None:
    images, labels, infection, lung, ids = batch
    rows = table[table["measure"] == "ranked_by_cause"]
    assert set(rows["method"]) == {*METHODS, "random"}
    chosen = np.isin(ids, list(set(rows["sample_id"])))
    some, inside = images[chosen], lung[chosen]
    falls = lesion_effect.measure_causes(run.model, EditInputs(some, inside, infection[chosen]), labels[chosen])
    own = lesion_effect.rank_by_cause(explain.grad_cam(run.model, some, labels[chosen]), falls)
    bright = lesion_effect.rank_by_cause(some[:, 0] * inside, falls)
    same(column(table, ids[chosen], "ranked_by_cause"), own)
    told = column(table, ids[chosen], "ranked_by_cause", name="brightness")
    assert told == pytest.approx(bright.numpy(), nan_ok=True)
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
def test_the_size_of_a_batch_changes_no_number(table: Any, run: Run, held_out: Any, levels: Any) -> None:
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    state = torch.get_rng_state()
    whole = scores_of(run, held_out, OPTIONS, thresholds=levels, batch_size=64)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert all(p.grad is None for p in run.model.parameters())
    assert not any(m._forward_hooks for m in run.model.modules())
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


def test_the_summary_is_the_means_with_what_stands_beside_them(table: pd.DataFrame, held_out: Any, levels: Any) -> None:
    document = summarise(table, images=len(held_out), resamples=200)
    assert list(document) == [*METHODS, "random"]
    found, part, energy = document["gradcam"], document["gradcam"].plain(), rows_of(table, "infection_energy")
    assert (part["n"], part["without_mask"]) == (len(energy), len(held_out) - len(energy))

    def gaps(measure: str, *more: str) -> dict[str, pd.Series]:
        """What the map has over each reference that was measured."""
        rows = rows_of(table, measure)
        names = [name for name in (*REFERENCES, *more) if name != "randomised" and rows[name].notna().any()]
        return {name: rows["value"] - rows[name] for name in names}

    for measure in ("infection_energy", "infection_auroc", "lung_energy", "infection_iou_tuned"):
        rows, figure = rows_of(table, measure), part[measure]
        assert figure["value"] == pytest.approx(rows["value"].mean())
        untuned = () if measure == "infection_iou_tuned" else ("brightness", "edges")  # no threshold is tuned for them
        for control in ("chance", "centre", "lung", *untuned):
            assert figure[control] == pytest.approx(rows[control].mean())
        least = next(r for r in part["beyond"] if r["measure"] == measure)
        means = {name: gap.mean() for name, gap in gaps(measure).items()}
        assert least["difference"]["value"] == pytest.approx(min(means.values()))
        assert least["baseline"] == min(means, key=means.__getitem__)
        for share in (figure, least["difference"]):
            assert share["ci"][0] <= share["value"] <= share["ci"][1]
    over = {(lead.measure, lead.baseline): lead.difference for lead in found.over_baselines}
    assert {control for measure, control in over if measure == "infection_energy"} == set(
        gaps("infection_energy", *baseline_scores.SHARPENED)
    )
    withheld = {HIT_RATE} if part["withheld"] else set()
    assert {measure for measure, _ in over} == {*HEADLINE_MEASURES, "ranked_by_cause"} - withheld
    led = gaps("ranked_by_cause")["brightness"].mean()
    assert over["ranked_by_cause", "brightness"].value == pytest.approx(led)
    for control, gap in gaps("infection_energy", *baseline_scores.SHARPENED).items():
        lead = over["infection_energy", control]
        assert lead.value == pytest.approx(gap.mean())
        low, high = lead.interval
        assert low <= lead.value <= high
        # Of one image a group the bootstrap's interval is about the normal one of paired differences.
        assert high - low == pytest.approx(2 * 1.96 * gap.std() / np.sqrt(gap.notna().sum()), rel=0.4)
    right = energy[energy["predicted"] == energy["class"]]
    assert part["correct"]["n"] == len(right)
    value = part["correct"].get("infection_energy", {"value": np.nan})["value"]
    assert value == pytest.approx(right["value"].mean(), nan_ok=True)
    assert part["threshold"] == levels["gradcam"]
    changes = {row["condition"]: row for row in part["stability"]}
    kinds = {"fgsm": "attack", "jpeg": "corruption", "letters": "artefact", "pgd": "attack"}
    assert {name: row["kind"] for name, row in changes.items()} == kinds
    assert changes["pgd"]["n"] == OPTIONS.sample
    for name, change, measure in (
        ("corruption_ssim", "jpeg", "stability_ssim"),
        ("stability_ssim", "fgsm", "stability_ssim"),
        ("artefact_gain", "letters", "artefact_gain"),
    ):
        assert part[name]["value"] == pytest.approx(changes[change][measure]["value"])
    assert part["faithfulness"]["n"] == OPTIONS.sample
    assert {"insertion", "deletion", "road"} <= set(part["faithfulness"])
    assert {"part", "ssim", "rank_correlation", "null"} <= set(part["sanity"][0].keys())
    assert part["perturbed"]["attack"] == "fgsm"
    assert document["random"].faithfulness is not None
    atomic.to_json(document)


def stratified(lesion: np.ndarray) -> list[dict[str, Any]]:
    names = [f"i{k}" for k in range(len(lesion))]
    rows = {"sample_id": names, "group": names, "method": "gradcam", "cells": "", "severity": 0, "threshold": np.nan}
    rows |= {"condition": "clean", "epsilon": 0.0, "measure": "infection_energy", "value": lesion / 2}
    rows |= {"class": "a", "predicted": "a", "lesion": lesion}
    return summarise(pd.DataFrame(rows), images=len(lesion), resamples=100)["gradcam"].plain()["by_lesion"]


def test_measures_are_told_by_the_size_of_the_lesion_which_is_its_share_of_the_lungs() -> None:
    lung = torch.zeros(4, 10, 10, dtype=torch.bool)
    lung[:3, :, :5] = True
    infection = torch.zeros_like(lung)
    infection[0, :, :5] = True  # the whole lung
    infection[1, :5] = True  # half of it, and as much beside it
    infection[3, 0] = True  # no lung is known
    shares = baseline_scores.Masks(infection, lung).lesion
    np.testing.assert_array_equal(shares, [1.0, 0.5, np.nan, np.nan])
    found = {row["stratum"]: row for row in stratified(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.95, 1.0]))}
    counts = {"covers the lungs": 2, "part of the lungs": 7, "smallest third": 3, "middle third": 3, "largest third": 3}
    assert {name: row["n"] for name, row in found.items()} == counts
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
    assert feature_maps.find_layer(run.model, -1) is run.model.cam_layer
    assert feature_maps.find_layer(run.model, "layer3") is dict(run.model.named_modules())["net.layer3"]


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
def test_an_unknown_method_or_layer_is_named_before_any_work(name: str, words: str, run: Run, held_out: Any) -> None:
    with pytest.raises(UserError, match=words):
        scores_of(run, held_out, ExplanationRecipe(methods=(name,)))


def test_images_without_a_mask_are_counted_and_data_or_options_without_any_are_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = radiographs(write_files.write(tmp_path / "odd", {"Train": 1, "Val": 1, "Test": 2}, size=SIZE))
    evaluate.log_masks(dataset, len(evaluate.find_annotated(dataset)))
    assert "images have no mask to measure against and are left out" in capsys.readouterr().err
    for name in render_image.CLASSES:
        (tmp_path / "bare" / name).mkdir(parents=True)
        Image.fromarray(np.full((SIZE, SIZE), 90, np.uint8)).save(tmp_path / "bare" / name / "a.png")
    bare = load_dataset(tmp_path / "bare", size=SIZE, classes=render_image.CLASSES, workers=1)
    with pytest.raises(UserError, match="no infection or lung masks here"):
        scores_of(run, bare)
    with pytest.raises(UserError, match="unknown corruption 'jpg': did you mean jpeg"):
        evaluate.check_options(ExplanationRecipe(corruptions=("jpg",)))
    with pytest.raises(UserError, match="explanation"):
        validate(StudyRecipe, {"name": "x", "models": ["vgg16"], "explanation": {"methods": []}}, "test")


def test_examples_are_drawn_by_seed_then_the_best_and_worst_by_each_measure(table: pd.DataFrame, held_out: Any) -> None:
    chosen = examples.choose_images(held_out, [table, table], count=2, method="gradcam")
    at_random = [row for row, why in chosen.items() if examples.AT_RANDOM in why]
    rows = evaluate.find_annotated(held_out)
    assert at_random == sorted(np.random.default_rng(0).permutation(rows)[:2].tolist())
    for measure in examples.MAIN:
        mine = rows_of(table, measure)
        above = mine["value"] - mine["chance"]
        for word, value in (("best", above.max()), ("worst", above.min())):
            (row,) = (row for row, why in chosen.items() if f"{word} {measure} above chance" in why)
            assert above[held_out.sample_ids[row]] == pytest.approx(value)
    assert examples.choose_images(held_out, [table], count=0, method="gradcam") == {}
    ids = held_out.sample_ids[rows]
    of = {"sample_id": ids[:3], "measure": "infection_energy", "condition": "clean", "method": "gradcam", "chance": 0.1}
    both = [pd.DataFrame(of | {"value": values}) for values in ([0.9, 0.6, 0.0], [0.0, 0.6, 0.1])]
    chosen = examples.choose_images(held_out, both, count=1, method="gradcam")
    why = {held_out.sample_ids[row]: text for row, text in chosen.items()}
    assert "best infection_energy above chance" in why[ids[1]], "over all runs"
    assert "worst infection_energy above chance" in why[ids[2]]


def test_panels_hold_what_the_page_shows(run: Run, held_out: Any, batch: Any) -> None:
    rows, (images, labels, _, _, ids) = evaluate.find_annotated(held_out), batch
    chosen = {int(rows[3]): "drawn at random", int(rows[0]): "best infection_energy above chance"}
    arrays = examples.make_panels(run, held_out, chosen, method="layercam@-2")
    assert arrays["sample_id"].tolist() == ids[[3, 0]].tolist()
    assert arrays["why"].tolist() == list(chosen.values())
    maps = explain.layer_cam(run.model, images[[3, 0]], labels[[3, 0]], layer=-2)
    np.testing.assert_allclose(arrays["saliency"], maps.numpy(), atol=1e-6)
    infection = torch.from_numpy(arrays["infection"])
    np.testing.assert_allclose(arrays["infection_energy"], measures.energy_inside(maps, infection), atol=1e-6)


def test_the_activation_of_the_layer_stands_beside_its_map_unasked(run: Run, held_out: Any, table: Any) -> None:
    assert "activation" not in set(table["method"])
    asked = ExplanationRecipe(methods=(*METHODS, "activation"), corruptions=(), sample=0)
    own = scores_of(run, held_out, asked)
    for measure in (HIT_RATE, "infection_energy"):
        found = rows_of(table, measure)
        shown = rows_of(own, measure, "activation")["value"].loc[found.index]
        assert found["activation"].notna().any()
        pd.testing.assert_series_equal(found["activation"], shown, check_names=False)
    part = summarise(table, images=72, resamples=100)["gradcam"]
    expected = shown[found["value"].notna()].mean()
    assert part.figure("infection_energy").activation == pytest.approx(expected)


def test_the_mean_mask_of_training_is_a_control(run: Run, folder: Path, held_out: Any, batch: Any) -> None:
    options = OPTIONS.model_copy(update={"methods": ("layercam",), "corruptions": (), "sample": 0})
    mean = baselines.mean_mask(radiographs(folder, "Train").masks("infection"))
    table = scores_of(run, held_out, options, mean_mask=mean)
    _, _, lesion, inside, ids = batch
    expected = measures.energy_inside(mean * inside, lesion).masked_fill(~inside.flatten(1).any(1), np.nan)
    found = column(table, ids, "infection_energy", "layercam", name="mean_mask")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert rows_of(table, "infection_energy", "layercam")["mean_mask_as_sharp"].notna().any()
    without = scores_of(run, held_out, options)
    assert without["mean_mask"].isna().all()
    for some, value in ((table, pytest.approx(np.nanmean(found))), (without, None)):
        part = summarise(some, images=len(held_out), resamples=100)["layercam"]
        assert part.figure("infection_energy").mean_mask == value
