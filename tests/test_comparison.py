"""Standard against robust over the same images."""

from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from small_runs import recipe
from trustcxr import registry, statistics
from trustcxr.evaluation.trained_run import About
from trustcxr.explain import saliency_summary
from trustcxr.explain.methods import COMBINE, METHODS
from trustcxr.recipes.evaluation_recipe import ExplanationRecipe
from trustcxr.registry import HIGHER_IS_BETTER, Method
from trustcxr.storage import atomic
from trustcxr.storage.schemas import Comparison, RunDocument, read_schema
from trustcxr.study import comparison
from trustcxr.study.comparison import Key

IMAGES = 60
Right = dict[str, np.ndarray]  # which answers are right, by name
BASELINES = {f"{model}-standard-s{seed}" for model in ("vgg16", "resnet50") for seed in (0, 1)}


def rows(attack: str, epsilon: float, right: np.ndarray, steps: int = 0, first: int = 0) -> pd.DataFrame:
    """Predictions that are right where `right` says so."""
    logits = np.where(right[:, None], [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]).astype(np.float32)
    names = [(f"i{k + first}", f"p{(k + first) // 2}") for k in range(len(right))]
    found = pd.DataFrame(names, columns=["sample_id", "group"])
    return found.assign(label=0, attack=attack, epsilon=epsilon, steps=steps, logits=list(logits))


def saliency(values: np.ndarray, method: str, measure: str = "infection_iou", condition: str = "clean") -> pd.DataFrame:
    found = pd.DataFrame([(f"i{k}", f"p{k // 2}") for k in range(len(values))], columns=["sample_id", "group"])
    found = found.assign(method=method, condition=condition, measure=measure, value=values)
    return found.assign(cells="", activation=np.nan)


def make_run(folder: Path, defence: str, *tables: pd.DataFrame, saliency: Any = None, **of: Any) -> Path:
    """The folder of a run with these predictions; `of`: other fields of metrics.json, such as its model and seed."""
    document = {"model": "vgg16", "seed": 0, "defence": defence, "split": "Test"} | of
    place = folder / f"{document['model']}-{defence}-s{document['seed']}"
    atomic.write_json(place / "metrics.json", document)
    atomic.write_table(place / "predictions.parquet", pd.concat(tables))
    if saliency is not None:
        atomic.write_table(place / "saliency.parquet", saliency)
    return place


def against(folders: list[Path], baselines: Container[str] = BASELINES, *, resamples: int = 100) -> list[Comparison]:
    documents = {folder: read_schema(RunDocument, folder / "metrics.json") for folder in folders}
    return comparison.standard_against_robust(documents, baselines, resamples=resamples)


def pair(folder: Path, *saliency_of: pd.DataFrame, robust: pd.DataFrame | None = None) -> list[Comparison]:
    """The comparison of a standard run with a robust one, by their maps; all that they answer is right."""
    clean, maps = rows("clean", 0, np.ones(IMAGES, dtype=bool)), pd.concat(saliency_of)
    other = maps if robust is None else robust
    made = [make_run(folder, name, clean, saliency=table) for name, table in (("standard", maps), ("fgsm", other))]
    return against(made)


@pytest.fixture
def right() -> Right:
    random = np.random.default_rng(0)
    return {name: random.random(IMAGES) < share for name, share in (("a", 0.9), ("b", 0.5), ("c", 0.7), ("d", 0.6))}


def by_coins(sums: np.ndarray) -> float:
    """How often sums of -2 to 2, each with a random sign, add up to as much: two binomials."""
    ones, twos = int(np.sum(np.abs(sums) == 1)), int(np.sum(np.abs(sums) == 2))
    heads, pairs = np.meshgrid(np.arange(ones + 1), np.arange(twos + 1))
    total = 2 * heads - ones + 2 * (2 * pairs - twos)
    chance = stats.binom.pmf(heads, ones, 0.5) * stats.binom.pmf(pairs, twos, 0.5)
    return float(chance[np.abs(total) >= abs(sums.sum())].sum())


def test_every_measure_is_compared_over_the_same_images(tmp_path: Path, right: Right) -> None:
    base = make_run(tmp_path, "standard", rows("clean", 0, right["a"]), rows("fgsm", 0.02, right["b"], 1))
    robust = make_run(tmp_path, "fgsm", rows("fgsm", 0.02, right["c"], 1).sample(frac=1), rows("clean", 0, right["d"]))
    compared = against([robust, base], resamples=300)
    found = {row.measure: row.plain() for row in compared}
    assert set(found) == {"clean accuracy", "fgsm accuracy @0.02"}
    row = found["fgsm accuracy @0.02"]
    assert (row["model"], row["seed"], row["defence"], row["split"], row["n"]) == ("vgg16", 0, "fgsm", "Test", IMAGES)
    assert row["standard"] == pytest.approx(right["b"].mean())
    assert row["robust"] == pytest.approx(right["c"].mean())
    assert row["difference"]["value"] == pytest.approx(right["c"].mean() - right["b"].mean())
    assert row["difference"]["ci"][0] < row["difference"]["value"] < row["difference"]["ci"][1]
    gained = int((right["c"] & ~right["b"]).sum())
    assert row["improved"] == pytest.approx(gained / IMAGES)
    # Two images a patient: the patients that gain or lose one, or two at once, by a fair coin.
    sums = (right["c"].astype(int) - right["b"]).reshape(-1, 2).sum(1)
    assert row["p_value"] == pytest.approx(by_coins(sums))


def test_runs_are_paired_by_model_and_seed_on_the_images_that_they_share(tmp_path: Path, right: Right) -> None:
    made = [
        make_run(tmp_path, defence, rows("clean", 0, right[name], first=first), model=model, seed=seed)
        for defence, model, seed, name, first in (
            ("standard", "vgg16", 0, "a", 0),
            ("standard", "vgg16", 1, "b", 0),
            ("fgsm", "vgg16", 1, "c", 20),
            ("fgsm", "resnet50", 0, "d", 0),  # its standard run is missing
        )
    ]
    (row,) = (r.plain() for r in against(made))
    assert (row["model"], row["seed"], row["n"]) == ("vgg16", 1, IMAGES - 20)
    assert row["standard"] == pytest.approx(right["b"][20:].mean())
    assert row["robust"] == pytest.approx(right["c"][: IMAGES - 20].mean())


def test_of_several_numbers_of_steps_the_strongest_counts(tmp_path: Path, right: Right) -> None:
    both = (rows("pgd", 0.02, right["a"], 10), rows("pgd", 0.02, right["b"], 20), rows("pgd", 0.01, right["c"], 20))
    found = comparison.figures(make_run(tmp_path, "standard", *both))
    assert set(found) == {Key("pgd accuracy @0.02"), Key("pgd accuracy @0.01")}
    assert found[Key("pgd accuracy @0.02")]["value"].mean() == pytest.approx(right["b"].mean())
    assert len(found[Key("pgd accuracy @0.02")]) == IMAGES
    swapped = (rows("pgd", 0.02, right["a"], 20), rows("pgd", 0.02, right["b"], 10))
    (only,) = comparison.figures(make_run(tmp_path, "fgsm", *swapped)).values()
    assert only["value"].mean() == pytest.approx(right["b"].mean()), "the lowest accuracy, not the most steps"


def test_corruptions_are_one_figure_and_views_have_no_radius(tmp_path: Path, right: Right) -> None:
    tables = [rows("clean", 0, right["a"]).assign(severity=0), rows(registry.VIEWS[0], 0, right["a"])]
    tables += [rows("jpeg", 0, right[name]).assign(severity=k) for k, name in ((1, "b"), (2, "c"))]
    found = comparison.figures(make_run(tmp_path, "standard", *tables))
    assert set(found) == {Key(f"{name} accuracy") for name in ("clean", "corruptions", registry.VIEWS[0])}
    figure = found[Key("corruptions accuracy")]["value"]
    assert figure.mean() == pytest.approx((right["b"].mean() + right["c"].mean()) / 2)
    assert len(figure) == IMAGES


def test_saliency_is_of_clean_images_method_by_method(tmp_path: Path, right: Right) -> None:
    random = np.random.default_rng(1)
    values = {name: random.random(IMAGES) for name in ("layercam", "gradcam", "fgsm", "ssim")}
    tables = [
        saliency(values["layercam"], "layercam"),
        saliency(values["gradcam"], "gradcam"),
        saliency(values["fgsm"], "gradcam", condition="fgsm"),
        saliency(values["ssim"], "gradcam", "stability_ssim", "fgsm"),
        saliency(values["fgsm"], "gradcam", "stability_ssim", "pgd"),
        saliency(np.zeros(IMAGES), "gradcam", "null_map"),
        saliency(values["fgsm"], "random"),
    ]
    folder = make_run(tmp_path, "standard", rows("clean", 0, right["a"]), saliency=pd.concat(tables))
    found = {key: table["value"].tolist() for key, table in comparison.figures(folder).items()}
    of_map = {Key("infection_iou", "layercam"): "layercam", Key("infection_iou", "gradcam"): "gradcam"}
    of_map[Key("stability_ssim", "gradcam")] = "ssim"
    assert list(found) == [Key("clean accuracy"), *of_map], "as in the table"
    assert {key: found[key] for key in of_map} == {key: values[name].tolist() for key, name in of_map.items()}


def test_changes_are_one_figure_an_image_over_corruptions_and_one_over_artefacts() -> None:
    random, ssim = np.random.default_rng(2), "stability_ssim"
    a, b, c, d, gain = (random.random(IMAGES) for _ in range(5))
    tables = [saliency(v, "gradcam", ssim, name) for name, v in (("jpeg", b), ("gamma", c), ("letters", d))]
    table = pd.concat([*tables, saliency(gain, "gradcam", "artefact_gain", "letters")]).assign(severity=3)
    attacked = saliency(a, "gradcam", ssim, "fgsm").assign(severity=0)
    found = saliency_summary.average_changes(pd.concat([table, attacked]))
    wanted = {"corruption_ssim": (b + c) / 2, "artefact_ssim": d, "artefact_gain": gain}
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name]["value"], values)


@pytest.mark.parametrize(
    ("measure", "shift", "beginning"),
    [
        ("infection_energy", -0.05, "No: infection energy (layercam) falls by 0.0"),
        ("infection_energy", 0.05, "Yes: infection energy (layercam) rises by 0.0"),
        ("deletion", -0.05, "Yes: deletion (layercam) falls by 0.0"),
        ("artefact_gain", 0.05, "No: artefact gain (layercam) rises by 0.0"),
        ("infection_energy", 0.0, "Not settled: infection energy (layercam) changes by "),
    ],
)
def test_the_verdict_is_a_sentence_that_can_say_no(tmp_path: Path, measure: str, shift: float, beginning: str) -> None:
    random = np.random.default_rng(3)
    before = random.random(IMAGES) * 0.3 + 0.1
    after = before + shift + random.normal(0, 0.03, IMAGES)
    tables = [saliency(values, "layercam", measure) for values in (before, after)]
    (row,) = (found.plain() for found in pair(tmp_path, tables[0], robust=tables[1]) if found.measure == measure)
    assert row["verdict"].startswith(beginning), row["verdict"]
    assert row["method"] == "layercam"
    good = (after > before).mean() if row["better"] == "higher" else (after < before).mean()
    assert row["improved"] == pytest.approx(good)


def test_holm_is_the_step_down_of_the_paper() -> None:
    # Worked by hand: sorted 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, never smaller than the one before, at most 1.
    np.testing.assert_allclose(statistics.holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(statistics.holm([0.5, np.nan, 0.6]), [1.0, np.nan, 1.0])
    assert len(statistics.holm([])) == 0


def test_a_small_p_among_many_comparisons_settles_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    before, noise = random.random(IMAGES), random.normal(0, 0.03, IMAGES)
    more = HIGHER_IS_BETTER[1:]

    def table(values: np.ndarray) -> pd.DataFrame:
        first = saliency(values, "gradcam", "infection_energy")
        return pd.concat([first, *(saliency(before, "gradcam", name) for name in more if name != "stability_ssim")])

    robust = table(before + noise - noise.mean() + 0.010)
    found = {r.measure: r.plain() for r in pair(tmp_path, table(before), robust=robust)}
    row = found["infection_energy"]
    assert row["comparisons"] == len(more)  # of the saliency measures; accuracy is a family of its own
    assert row["p_value"] < 0.05 < row["p_corrected"]
    assert row["p_corrected"] == pytest.approx(row["p_value"] * len(more))
    assert row["verdict"].startswith("Not settled")
    assert found["clean accuracy"]["comparisons"] == 1


@pytest.mark.parametrize(("how", "also"), [("swap", {"background": "swap"}), ("guided", {"label": "guided"})])
def test_another_standard_run_is_no_baseline(how: str, also: dict[str, str], tmp_path: Path, right: Right) -> None:
    base = make_run(tmp_path, "standard", rows("clean", 0, right["a"]))
    other = make_run(tmp_path / how, "standard", rows("clean", 0, right["b"]), **also).rename(tmp_path / "other")
    robust = make_run(tmp_path, "fgsm", rows("clean", 0, right["c"]))
    first, second = against([other, robust, base])
    assert [(row.defence, row.label, row.background) for row in (first, second)] == [
        ("standard", also.get("label", ""), also.get("background", "full")),
        ("fgsm", "", "full"),
    ]
    assert first.standard == second.standard == pytest.approx(right["a"].mean())
    assert against([other, robust]) == []


def test_controls_and_a_map_of_one_cell_are_not_compared(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    control, other = random.random(IMAGES) * 0.5, random.random(IMAGES) * 0.5
    tables = [
        saliency(control + 0.2, "layercam@gate").assign(activation=control),
        saliency(other, "layercam-smooth@gate").assign(activation=other),
        saliency(other, "gradcam").assign(cells="3 x 3"),
        saliency(other, "integrated-gradients"),
        saliency(other, "random"),
        saliency(control, "layercam@gate", "insertion"),
        saliency(other, "layercam").assign(activation=other - 0.1, cells="1 x 1"),  # the same everywhere
    ]
    looking = {"layercam@gate", "layercam-smooth@gate", "gradcam", "integrated-gradients"}
    assert {row.method for row in pair(tmp_path, *tables)} == {None, *looking}


def test_every_cam_has_a_control_and_so_has_evidence_also_in_capitals() -> None:
    controls = {"activation", "activation-smooth"}
    cams = set(COMBINE) - controls
    assert {name for name in METHODS if Method(name).baseline} == cams | {"evidence"}
    assert str(Method("evidence").baseline) == "evidence-features"
    assert {str(Method(name).baseline) for name in cams} == controls
    for name, control in (
        ("layercam-smooth@-2", "activation-smooth@-2"),
        ("gradcam", "activation"),
        ("LayerCAM@gate", "activation@gate"),
    ):
        assert str(Method.parse(name).baseline) == control
    assert Method.parse("integrated-gradients").baseline is None
    assert str(Method.parse(" LayerCAM@gate ")) == "layercam@gate"
    assert ExplanationRecipe(methods=("LayerCAM@gate",)).methods == ("layercam@gate",)


def test_maps_at_a_gate_are_compared_between_gated_runs_alone(tmp_path: Path) -> None:
    names = ("layercam@gate", "layercam-smooth@gate", "gradcam")
    maps = pd.concat([saliency(np.random.default_rng(3).random(IMAGES), name) for name in names])
    clean = rows("clean", 0.0, np.ones(IMAGES, dtype=bool))
    bare, behind, gated = (
        make_run(tmp_path / background, defence, clean, saliency=maps, background=background)
        for defence, background in (("standard", "full"), ("fgsm", "gate"), ("standard", "gate"))
    )
    assert {row.method for row in against([bare, behind])} == {None, "gradcam"}
    assert {row.method for row in against([gated, behind])} == {None, *names}


@pytest.mark.parametrize(("ceiling", "allowed"), [(0.9, {"pointing_hit_rate"}), (0.05, set())])
def test_an_impossible_hit_rate_is_not_compared(ceiling: float, allowed: set[str], tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    values = {name: random.random(IMAGES) for name in ("pointing_hit_rate", "infection_energy")}
    values["pointing_ceiling"] = np.full(IMAGES, ceiling)
    tables = [saliency(row, "gradcam", name).assign(cells="2 x 2", chance=0.1) for name, row in values.items()]
    assert {row.measure for row in pair(tmp_path, *tables) if row.method} == {"infection_energy", *allowed}


def test_worst_cases_of_unequal_effort_are_not_compared(tmp_path: Path, right: Right) -> None:
    def worst(name: str, steps: int, queries: int) -> pd.DataFrame:
        return rows("worst-case", 0.02, right[name], steps).assign(queries=queries)

    clean = rows("clean", 0.0, right["a"])
    made = [
        make_run(tmp_path, "standard", clean, worst("a", 30, 300)),
        make_run(tmp_path, "fgsm", clean, worst("b", 30, 300)),
        make_run(tmp_path, "pgd", clean, worst("b", 50, 1000)),
    ]
    compared = against(made, resamples=50)
    measures = {(row.defence, row.measure) for row in compared}
    assert ("fgsm", "worst-case-30/300 accuracy @0.02") in measures
    assert {measure for defence, measure in measures if defence == "pgd"} == {"clean accuracy"}
    assert set(comparison.figures(made[2])) == {Key("clean accuracy"), Key("worst-case-50/1000 accuracy @0.02")}


def test_guided_training_is_another_one_than_unguided_training() -> None:
    ways = [{}, {"guidance": 0.5, "guidance_on": "gradients"}]
    abouts = [About.trained(recipe("fgsm", seed=seed, **way)) for way in ways for seed in (0, 1)]
    assert [about.label for about in abouts] == ["", "", "guided", "guided"]
    clean = [{"n": 9, "accuracy": {"value": value}} for value in (0.2, 0.4, 0.6, 0.8)]
    about = [{"run": a.name, "model": a.model, "defence": a.defence, "seed": a.seed, "label": "x"} for a in abouts]
    runs = [RunDocument.model_validate(a | {"clean": c}) for a, c in zip(about, clean, strict=True)]
    groups = comparison.over_seeds(runs)
    assert [(group.seeds, group.figures[0].mean) for group in groups] == [
        ([0, 1], pytest.approx(0.3)),
        ([0, 1], pytest.approx(0.7)),
    ]
