"""What a map may be said to show: on models that are known to use the lesion, and on maps that use no model."""

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import known_cause
from small_networks import annotated, rows_of, scores_of
from trustcxr import explain
from trustcxr.data import load_dataset
from trustcxr.data.loader import to_pixels
from trustcxr.data.phantom import render_image, write_files
from trustcxr.evaluation.trained_run import Run
from trustcxr.explain import baseline_scores, baselines, measures, methods, saliency_summary
from trustcxr.models import factory
from trustcxr.recipes.evaluation_recipe import ExplanationRecipe
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.registry import REFERENCES, SALIENCY, Saliency
from trustcxr.runs import explain_run
from trustcxr.storage import atomic
from trustcxr.storage.schemas import Alarm, Figure, Lead, RandomWeights, RunDocument, SaliencyDocument, Share

SIZE = 48
PLAIN = ExplanationRecipe(methods=("gradcam",), corruptions=(), sample=0)


class Tiny(nn.Module):
    """Four convolutions, of which those `halved` have a map of half the side: pixel space to three logits."""

    def __init__(self, halved: tuple[int, ...] = (1, 2, 3)) -> None:
        super().__init__()
        blocks = []
        for k, (before, after) in enumerate(pairwise((1, 8, 16, 24, 24))):
            blocks += [nn.Conv2d(before, after, 3, 2 if k in halved else 1, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.body, self.cam_layer = nn.Sequential(*blocks), nn.Identity()
        self.head = nn.Linear(24, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.cam_layer(self.body(images - 0.5)).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    count = {"Train": 80, "Val": 2, "Test": 24}
    return write_files.write(tmp_path_factory.mktemp("verdicts") / "phantom", count, size=SIZE, conspicuity=2.5)


def radiographs(folder: Path, split: str) -> Any:
    return load_dataset(folder, split=split, size=SIZE, workers=1)


def as_run(model: nn.Module) -> Run:
    content = {"model": {"name": "test_resnet", "weights": "none"}, "data": {"size": SIZE}}
    return Run(Path("nowhere"), model, render_image.CLASSES, RunRecipe.model_validate(content))  # type: ignore[arg-type]


def trained(folder: Path, network: nn.Module | None = None, *, epochs: int = 20) -> Run:
    """A network that was trained on images whose lesions are plain to see."""
    train = radiographs(folder, "Train")
    images = to_pixels(torch.from_numpy(train.batch(np.arange(len(train)))))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        known = known_cause.Images(images, torch.from_numpy(np.asarray(train.labels)))
        model = known_cause.fit(network or Tiny(), known, epochs=epochs, learning_rate=1e-2)
    assert known_cause.accuracy(model, known) > 0.9
    return as_run(model)


@pytest.fixture(scope="module")
def reader(folder: Path) -> Run:
    return trained(folder)


@pytest.fixture(scope="module")
def table(reader: Run, folder: Path) -> pd.DataFrame:
    return scores_of(reader, radiographs(folder, "Test"), PLAIN, batch_size=16)


def of_map(table: pd.DataFrame, method: str = "gradcam") -> SaliencyDocument:
    """What is said of the maps of one method."""
    return saliency_summary.summarise(table, images=72, resamples=300)[method]


def of_image(folder: Path, _model: nn.Module, x: Tensor, _target: Any = None) -> Tensor:
    """The image's brightness where a gate lets it through, whatever the network behind it."""
    test = radiographs(folder, "Test")
    known = to_pixels(torch.from_numpy(test.batch(np.arange(len(test)))))
    nearest = torch.cdist(x.flatten(1), known.flatten(1)).argmin(1)  # an attacked image has the lungs of the image
    bright = x[:, 0] * (torch.from_numpy(np.array(test.masks("lung")))[nearest] != 0)
    return bright / bright.amax((1, 2), keepdim=True)


@pytest.mark.slow
def test_grad_cam_of_a_network_that_reads_the_lesion_does_not_survive_randomising_it(folder: Path) -> None:
    # Maps of 24 x 24 cells: coarser ones are on some processors no further from random networks' than these from each
    # other, and so is the energy given the lungs, of which a random map may hold next to none.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        run = trained(folder, Tiny(halved=(1,)), epochs=30)
    part = of_map(scores_of(run, radiographs(folder, "Test"), PLAIN, batch_size=16))
    energy = part.figure("infection_energy")
    assert energy.against_chance == "above"
    assert energy.value > energy.randomised + 0.02
    assert "infection_energy" not in saliency_summary.list_void(part)
    assert set(saliency_summary.list_void(part)) <= {"pointing_hit_rate", "infection_energy_given_lung"}


@pytest.mark.slow
def test_brightness_behind_a_gate_survives(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SALIENCY, "of-image", Saliency("of-image", "brightness behind the gate", "", "nowhere:at_all"))
    monkeypatch.setitem(methods.METHODS, "of-image", partial(of_image, folder))
    run = as_run(factory.build("test_resnet", classes=3, lung_gate=True).eval())
    options = ExplanationRecipe(methods=("of-image",), corruptions=(), sample=0)
    found = scores_of(run, radiographs(folder, "Test"), options, batch_size=16)
    part = of_map(found, "of-image")
    hit = part.figure("pointing_hit_rate")
    assert hit.against_chance == "above"
    assert hit.randomised == pytest.approx(hit.value)
    assert "pointing_hit_rate" in saliency_summary.list_void(part)
    assert part.shows == []
    assert "infection_auroc" in part.void, "the same map: no figure of it is left"
    assert part.verdict.startswith("says nothing of what the network has learnt: pointing hit rate ")
    assert {lead.measure: lead.baseline for lead in part.beyond}["infection_energy"] == "brightness_as_sharp"
    assert "over brightness in the lungs, as sharp as the map" in part.verdict
    (alarm,) = saliency_summary.list_alarms({"of-image": part})
    assert alarm.kind == "survives_randomisation"
    assert f"pointing hit rate is {hit.value:.3f} with random weights, {hit.value:.3f} with its own" in alarm.text
    assert "SSIM with the map of random weights is 1.00: no figure of it is of the network" in alarm.text
    atomic.write_table(tmp_path / "saliency.parquet", found)
    document = RunDocument(alarms=[Alarm(kind="other", text="kept"), Alarm(kind="survives_randomisation", text="old")])
    explain_run.add_tables(document, tmp_path, images=len(radiographs(folder, "Test")), resamples=300)
    assert [(a.kind, a.text) for a in document.alarms] == [("other", "kept"), (alarm.kind, alarm.text)]


def judged(**leads: tuple[float, float, float]) -> SaliencyDocument:
    """A document with hit rate 0.5 (chance 0.1), by its leads over edges and over random weights: value, low, high."""
    shares = {name: Share(value=value, ci=(low, high)) for name, (value, low, high) in leads.items()}
    part = SaliencyDocument(
        beyond=[Lead(measure="pointing_hit_rate", baseline="edges", difference=shares["edges"])],
        random_weights=RandomWeights(
            n=9, draws=3, leads=[Lead(measure="pointing_hit_rate", baseline="randomised", difference=shares["random"])]
        ),
    )
    part.with_figures({"pointing_hit_rate": Figure(value=0.5, ci=(0.4, 0.6), chance=0.1, randomised=0.4)})
    saliency_summary.set_verdict("layercam", part)
    return part


def test_a_map_shows_something_only_above_both_controls() -> None:
    both = judged(edges=(0.2, 0.1, 0.3), random=(0.1, 0.02, 0.2))
    assert both.verdict == (
        "above its other baseline maps and above random weights: pointing hit rate +0.200 [+0.100, +0.300] over edges "
        "in the lungs, +0.100 [+0.020, +0.200] over random weights"
    )
    one = judged(edges=(0.2, 0.1, 0.3), random=(0.1, -0.02, 0.2))
    assert one.verdict == (
        "says nothing of what the network has learnt: pointing hit rate +0.100 [-0.020, +0.200] over random weights"
    )
    assert one.survives == (
        "the map survives randomising the network: pointing hit rate is 0.400 with random weights, 0.500 with its own "
        "[-0.020, +0.200]: pointing hit rate is not of the network"
    )
    other = judged(edges=(0.2, -0.1, 0.3), random=(0.1, 0.02, 0.2))
    assert "over edges in the lungs" in other.verdict
    assert both.survives == other.survives == ""
    assert (both.shows, one.shows, other.shows) == (["pointing_hit_rate"], [], [])
    assert (both.void, one.void, other.void) == ([], ["pointing_hit_rate"], [])


@pytest.mark.slow
def test_random_weights_are_the_mean_of_several_networks_on_a_bounded_number_of_images(
    table: pd.DataFrame, reader: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels, infection, _, ids = annotated(radiographs(folder, "Test"))
    networks = [explain.randomisation.random_network(reader.model, seed=seed) for seed in baseline_scores.DRAWS]
    assert len(networks) >= 3
    drawn = [explain.grad_cam(network, images, labels) for network in networks]
    energies = [measures.energy_inside(m, infection).masked_fill(measures.null_map(m), torch.nan) for m in drawn]
    wanted = torch.stack(energies).nanmean(0)
    found = rows_of(table, "infection_energy").loc[ids, "randomised"]
    np.testing.assert_allclose(found, wanted, atol=1e-5, equal_nan=True)
    part = of_map(table)
    assert part.figure("infection_energy").randomised == pytest.approx(np.nanmean(wanted))
    assert (part.random_weights.n, part.random_weights.draws) == (len(ids), len(baseline_scores.DRAWS))
    assert "randomised" in REFERENCES
    assert table[table["method"] == "random"]["randomised"].isna().all(), "what looks at no model has no such control"
    monkeypatch.setattr(baseline_scores, "CONTROLLED", 7)
    part = of_map(scores_of(reader, radiographs(folder, "Test"), PLAIN, batch_size=16))
    assert part.n > part.random_weights.n == 7


def test_one_more_network_with_random_weights_is_not_above_random_weights() -> None:
    random, above = np.random.default_rng(0), []
    for _ in range(2000):  # images are many: the draws are what varies
        own, *draws = random.normal(0.3, 0.05, 1 + len(baseline_scores.DRAWS))
        lead, spread = own - np.mean(draws), baseline_scores.spread_of_draws(draws)
        low, high = saliency_summary.widen_by_draws(lead, [lead - 0.005, lead + 0.005], spread)
        above.append(low > 0)
        assert low < lead < high
    assert 0.01 < np.mean(above) < 0.035, "by the interval over images it is nearly every second one"
    assert saliency_summary.widen_by_draws(0.2, [0.1, 0.4], 0.0) == pytest.approx([0.1, 0.4])
    means = [0.2, 0.3, 0.4, 0.3, 0.3]
    spread = 2.776 * np.std(means, ddof=1) * (1 + 1 / 5) ** 0.5  # Student's t of four degrees of freedom
    assert baseline_scores.spread_of_draws(means) == pytest.approx(spread, abs=1e-4)
    assert baseline_scores.spread_of_draws([*means[:4], np.nan]) > spread, "four draws say less than five"
    assert np.isnan(baseline_scores.spread_of_draws([0.2, np.nan, np.nan, np.nan, np.nan]))


def test_how_far_random_networks_lie_apart_widens_what_a_map_has_over_them(table: pd.DataFrame) -> None:
    def spread_by(spread: float) -> SaliencyDocument:
        spreads = table["randomised"].where(table["randomised"].isna(), spread)
        return of_map(table.assign(**{baseline_scores.SPREAD: spreads}))

    def over(spread: float) -> tuple[float, float]:
        leads = spread_by(spread).random_weights.leads
        (lead,) = [lead.difference for lead in leads if lead.measure == "infection_energy"]
        return lead.value - lead.interval[0], lead.interval[1] - lead.value

    assert over(0.1) == pytest.approx([(end**2 + 0.1**2) ** 0.5 for end in over(0.0)], abs=1e-3)
    unknown = spread_by(np.nan)
    assert all(lead.difference.interval is None for lead in unknown.random_weights.leads)
    assert (unknown.shows, unknown.survives) == ([], ""), "above random weights only if their variation is known"


def test_brightness_is_smoothed_and_a_random_map_has_the_cells_of_the_cam(table: pd.DataFrame, folder: Path) -> None:
    images, _, infection, lung, ids = annotated(radiographs(folder, "Test"))
    smoothed = baselines.image_baselines(images, lung)["brightness"]
    wanted, plain = (measures.pointing_hit(maps, infection) for maps in (smoothed, images[:, 0] * lung))
    assert not torch.equal(wanted, plain)
    np.testing.assert_allclose(rows_of(table, "pointing_hit_rate").loc[ids, "brightness"], wanted)
    assert set(rows_of(table, "infection_energy")["cells"]) == {"6 x 6"}
    noise = measures.energy_inside(baselines.random_saliency(None, images, cells=(6, 6)), infection)
    np.testing.assert_allclose(rows_of(table, "infection_energy").loc[ids, "noise"], noise, atol=1e-6)


def test_the_ceiling_is_what_the_best_cell_of_the_layer_that_is_read_hits(reader: Run) -> None:
    mask = torch.zeros(3, 32, 32)
    mask[0, :8, :8] = 1  # the corner, where the cell of a 2 x 2 map is flat
    mask[1, 15:17, 15:17] = 1  # between the cells
    cells = torch.eye(4).reshape(4, 1, 2, 2)
    maps = nn.functional.interpolate(cells, (32, 32), mode="bilinear", align_corners=False)
    best = [max(measures.pointing_hit(one, mask[k : k + 1]).item() for one in maps) for k in range(2)]
    found = measures.pointing_ceiling(mask, (2, 2))
    assert found[:2].tolist() == pytest.approx(best)
    assert found[2].isnan(), "no mask, no hit"
    assert found[1] == 0
    assert measures.pointing_ceiling(mask, (32, 32))[:2].tolist() == [1, 1]
    x, names = torch.rand(1, 1, SIZE, SIZE), ("gradcam", "layercam@body.2", "random")
    assert [methods.cells(reader.model, x, name) for name in names] == [(6, 6), (48, 48), baselines.CELLS]
    assert methods.cells(factory.build("test_resnet", classes=3), torch.rand(1, 1, 64, 64), "gradcam") is not None
    assert not any(module._forward_hooks for module in reader.model.modules())


def test_a_map_of_one_cell_has_no_figures_and_says_why(table: pd.DataFrame) -> None:
    whole = saliency_summary.summarise(table, images=72, resamples=100)
    flat = table.assign(cells=table["cells"].mask(table["method"] == "gradcam", "1 x 1"))
    found = saliency_summary.summarise(flat, images=72, resamples=100)
    part = found.pop("gradcam")
    why = "no map: what is read has one cell, so that it is the same everywhere; an earlier layer has more"
    assert part.withheld == why
    assert {name for name, figure in part.figures.items() if figure.value is not None} == {"null_map_rate"}
    assert (part.n, part.without_mask, part.cells) == (whole["gradcam"].n, whole["gradcam"].without_mask, "1 x 1")
    assert (part.beyond, part.verdict, part.stability) == ([], "", [])
    assert part.faithfulness is part.random_weights is None
    whole.pop("gradcam")
    assert {name: other.plain() for name, other in found.items()} == {name: o.plain() for name, o in whole.items()}


def test_a_map_whose_best_cell_hits_less_than_chance_has_no_hit_rate(table: pd.DataFrame) -> None:
    assert "pointing_hit_rate" in of_map(table).figures
    part = of_map(table.assign(value=table["value"].mask(table["measure"] == "pointing_ceiling", table["chance"] / 2)))
    assert part.plain()["pointing_hit_rate"] == {"value": None}, "the key is there, its figure is not"
    for some in (part.correct, part.perturbed, *(stratum for stratum in part.by_lesion if stratum.n)):
        assert some.figures["pointing_hit_rate"] == Figure(value=None)
    assert part.withheld.startswith("withheld: the best of its 6 x 6 cells would hit 0.0")
    assert part.shows is not None
    assert "pointing hit rate" not in part.verdict


def test_edges_are_where_the_image_is_steep_and_the_mean_mask_is_of_images_that_have_one() -> None:
    images = torch.zeros(1, 1, 9, 9)
    images[..., 5:] = 1
    found = baselines.edges(images)[0]
    assert found[4, 4] == found[4, 5] == found.max()
    assert found[:, :3].max() == 0
    assert baselines.edges(torch.full((1, 1, 9, 9), 0.7)).abs().max() < 1e-6
    masks = np.zeros((4, 2, 2), np.uint8)
    masks[0, 0, 0] = masks[1, 0] = 1
    assert baselines.mean_mask(masks).tolist() == [[1.0, 0.5], [0.0, 0.0]]
