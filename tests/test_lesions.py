"""Lesions removed and transplanted, and what that does to models whose reason is known."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from trustcxr import models
from trustcxr.data import lesion_edits, load_dataset
from trustcxr.data.lesion_edits import EditInputs
from trustcxr.data.phantom import write_files
from trustcxr.data.phantom.render_image import render
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import Run
from trustcxr.explain import lesion_effect as explained
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.recipes.training_recipe import ModelRecipe
from trustcxr.report.load import Run as ReportRun
from trustcxr.report.tables.saliency import least_lesion_effects, lesion_effects
from trustcxr.storage.schemas import RunDocument

SIZE, COUNT = 48, 12


@lru_cache
def _images(kind: str, shortcuts: tuple[str, ...] = ("marker",), seed: int = 0) -> EditInputs:
    radiographs = [render(kind, seed + k, SIZE, shortcuts, conspicuity=2.5) for k in range(COUNT)]
    images, lung, lesion = (
        torch.from_numpy(np.stack([getattr(radiograph, name) for radiograph in radiographs]))
        for name in ("image", "lung_mask", "infection_mask")
    )
    return EditInputs(images[:, None].float() / 255, lung > 0, lesion > 0)


class Reader(nn.Module):
    """Answers class 0 by how much brighter than `bare` (B, 1, H, W) an image is in `place` (B, H, W), and nothing else.

    `like` (B, 1, H, W) or (1, ...) are images on which it would be sure of it.
    """

    def __init__(self, bare: Tensor, place: Tensor, like: Tensor) -> None:
        super().__init__()
        self.bare, self.place = bare, place[:, None]
        self.most = self._brighter(like).clamp(min=1)

    def _brighter(self, images: Tensor) -> Tensor:
        return ((images - self.bare - 0.05).clamp(min=0) * self.place).sum((1, 2, 3))

    def forward(self, images: Tensor) -> Tensor:
        sure = 6 * (self._brighter(images) / self.most - 0.5)
        return torch.stack([sure / 2, -sure / 2], 1)


@pytest.fixture
def ill() -> EditInputs:
    return _images("COVID-19")


@pytest.fixture
def healthy() -> EditInputs:
    return _images("Normal", seed=30)


def _lesion_reader() -> Reader:
    return Reader(_images("Normal").images, _images("COVID-19").lung, _images("COVID-19").images)


def _marker_reader() -> Reader:
    return Reader(_images("COVID-19", ()).images, ~_images("COVID-19").lung, _images("COVID-19").images)


def _summarise(table: pd.DataFrame) -> Any:
    """Sum up an effect, each image a group of its own."""
    return explained.summarise_effect(table, table["image"].astype(str).to_numpy())


def test_a_model_that_reads_the_lesion_has_a_lesion_effect_by_every_fill_and_control(ill: EditInputs) -> None:
    model = _lesion_reader().train()
    table = explained.remove_lesions(model, ill, 0)
    assert model.training, "as it was found"
    assert set(table["fill"]) == set(lesion_edits.FILLS)
    assert set(table["control"]) == {"lung", "background"}
    assert table["fall"].to_numpy() == pytest.approx((table["before"] - table["without"]).to_numpy(), nan_ok=True)
    for (fill, control), rows in table.groupby(["fill", "control"]):
        found = _summarise(rows)
        assert found.effect.value > 0.1, (fill, control)
        assert found.effect.interval[0] > 0, (fill, control)
        assert found.images + found.left_out == COUNT
    with pytest.raises(UserError, match="one fill"):
        _summarise(table)
    lung = table[(table["fill"] == "grey") & (table["control"] == "lung")]
    sizes = explained.summarise_by_size(lung, lung["image"].astype(str).to_numpy())
    counts = [size.images or 0 for size in sizes]
    assert sum(counts) == lung["effect"].notna().sum()
    weighted = np.average([size.effect or 0 for size in sizes], weights=counts)
    assert weighted == pytest.approx(lung["effect"].mean()), "by size of the lesion the images are the same"


def test_a_model_that_reads_the_marker_has_none(ill: EditInputs) -> None:
    assert (_marker_reader()(ill.images).softmax(1)[:, 0] > 0.9).all(), "it does answer, by the letter"
    table = explained.remove_lesions(_marker_reader(), ill, 0, fills=("grey", "mirror"))
    assert set(table["control"]) == set(explained.CONTROLS)
    assert table["effect"].max() < 0.01, "an edge of the lungs may lie under the letter"
    assert table["flipped"].max() == 0
    assert table[table["control"] == "lung"]["effect"].abs().max() < 0.01


def test_the_background_takes_on_the_very_change_of_the_lesion(ill: EditInputs) -> None:
    uncut = EditInputs(torch.where(ill.lung[:, None], ill.images, 0.5), ill.lung, ill.lesion)
    model, seen = _marker_reader(), []
    model.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    explained.remove_lesions(model, uncut, 0, fills=("grey",))
    before, gone, other = (seen[k] for k in (0, 4, 5))  # as it is; whole; part and control, twice
    pair = explained.pairs(uncut)["background"]
    there, here = (((after - before).abs() > 1e-3)[:, 0] for after in (other, gone))
    assert there[pair.control].float().mean() > 0.9
    sizes = [(after - before).abs().sum((1, 2, 3)) for after in (gone, other)]
    assert (sizes[1] <= sizes[0] + 1e-3).all(), "less where the soft edge leaves the image"
    assert sizes[1].sum() > 0.97 * sizes[0].sum()
    assert not (here & there & pair.control & pair.lesion).any()


def test_what_lies_at_a_part_is_carried_to_its_control_and_back() -> None:
    lesion, field = torch.rand(40, 12, 14) > 0.9, torch.rand(40, 12, 14)
    allowed = torch.zeros_like(lesion)
    allowed[:, 2:9, 8:] = True
    pair = lesion_edits.match_controls(lesion, allowed)
    assert {flip for flip, _, _ in pair.moves} == {False, True}, "some are mirrored"
    assert torch.equal(pair.move_to_control(pair.lesion) & pair.control, pair.control)
    moved = pair.move_to_control(field) * pair.control
    assert torch.equal(pair.move_to_control(field * pair.lesion), moved)
    assert torch.equal(pair.move_to_lesion(moved) * pair.lesion, field * pair.lesion)


def test_mirrored_lung_is_taken_where_part_and_control_both_have_it(
    ill: EditInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, seen = lesion_edits.fill_region, []

    def spied(*given: Tensor, fill: str, only: Tensor | None = None) -> Tensor:
        seen.append((given[1], only))
        return asked(*given, fill=fill, only=only)

    monkeypatch.setattr(lesion_edits, "fill_region", spied)
    explained.remove_lesions(_lesion_reader(), ill, 0, fills=("mirror",))
    pair = explained.pairs(ill)["lung"]
    (part, at_part), (control, at_control) = seen[1:3]  # after the whole
    assert torch.equal(part, pair.lesion)
    assert torch.equal(control, pair.control)
    _, usable = lesion_edits.mirror_lungs(ill.images, ill.lung, ill.lesion)
    assert (at_part & part).flatten(1).sum(1).tolist() == (at_control & control).flatten(1).sum(1).tolist()
    assert not (at_part & ~usable).any()
    assert not (at_control & control & ~usable).any()
    assert (at_part & part).any()


def test_drawn_greys_are_of_healthy_lung_and_the_same_whatever_stands_beside(ill: EditInputs) -> None:
    whole, one = lesion_edits.fill_drawn(ill.images, ill.lesion, ill.lung, ill.lesion), ill[[4]]
    assert torch.equal(whole[4:5], lesion_edits.fill_drawn(one.images, one.lesion, one.lung, one.lesion))
    healthy = one.images[0, 0][one.lung[0] & ~one.lesion[0]]
    assert torch.isin(whole[4], healthy).all()
    assert whole[4].mean() == pytest.approx(healthy.mean().item(), abs=0.02)
    assert whole[4].std() == pytest.approx(healthy.std().item(), abs=0.02)
    full = (ill.images, ill.lung, ill.lung, ill.lung)
    assert torch.equal(lesion_edits.fill_drawn(*full), lesion_edits.fill_grey(*full)), "none is left to draw"


def test_a_transplanted_lesion_brings_the_answer_and_a_healthy_patch_of_lung_does_not(ill: EditInputs) -> None:
    into, donors, others = given = [_images("Normal"), _images("COVID-19", seed=50), _images("Normal", seed=90)]
    model = Reader(into.images, into.lung, ill.images)
    table = explained.transplant_lesions(model, *given, 0)
    assert _summarise(table).effect.interval > (0.1,)
    assert table["whole"].isna().all(), "nothing was removed"
    blind = explained.transplant_lesions(Reader(into.images, ~into.lung, into.images), *given, 0)
    assert blind["effect"].abs().max() < 1e-6, "what is put in stays inside the lungs"
    even = torch.arange(SIZE)[:, None] % 2 == 0
    narrow = EditInputs(others.images, others.lung & even, others.lesion)
    half = explained.transplant_lesions(model, into, donors, narrow, 0)["share"]
    assert half.mean() < 0.65 * table["share"].mean(), "where the donor has no lung neither lesion nor patch is put in"
    for place in range(3):
        without = [EditInputs(f.images, f.lung & (k != place), f.lesion) for k, f in enumerate(given)]
        table = explained.transplant_lesions(model, *without, 0)
        assert table["effect"].isna().all(), "images without lungs are left out"
        assert _summarise(table).left_out == COUNT


def test_a_part_and_its_control_are_one_shape_and_the_control_is_healthy() -> None:
    lesion, allowed = torch.zeros(2, 3, 20, 20, dtype=torch.bool)
    lesion[0, 2:6, 3:5] = lesion[0, 2, 3:8] = True  # an L that fits as it is
    allowed[0, 8:18, 8:18] = True
    lesion[1, 0:10, 0:10] = True  # of which a strip alone has room
    allowed[1, :, 15:18] = True
    lesion[2] = allowed[2] = True  # no healthy lung left
    pair = lesion_edits.match_controls(lesion, allowed)
    assert torch.equal(pair.lesion[0], lesion[0])
    assert pair.share.tolist() == pytest.approx([1.0, 0.3, 0.0])
    assert not (pair.control & (lesion | ~allowed)).any()
    assert not (pair.lesion & ~lesion).any()
    assert pair.lesion.flatten(1).sum(1).tolist() == pair.control.flatten(1).sum(1).tolist() == [11, 30, 0]


def test_the_healthy_grey_is_of_the_lung_outside_the_lesion() -> None:
    images, (lung, lesion) = torch.full((2, 1, 10, 10), 0.9), torch.zeros(2, 2, 10, 10, dtype=torch.bool)
    lung[:, 2:8, 2:8] = True
    images[:, :, 2:8, 2:8] = 0.3
    lesion[0, 2:5, 2:8] = True
    images[0, :, 2:5, 2:8] = 0.7
    lesion[1] = lung[1]  # all of the lung: its darkest fifth stands in
    images[1, :, 2:8, 2:8] = 0.6
    images[1, :, 2:4, 2:8] = 0.2
    assert lesion_edits.compute_healthy_grey(images, lung, lesion).flatten().tolist() == pytest.approx([0.3, 0.2])


@pytest.mark.parametrize("fill", lesion_edits.FILLS | lesion_edits.TRAINING_FILLS)
def test_a_removed_lesion_is_gone_and_nothing_far_from_it_changes(fill: str, ill: EditInputs) -> None:
    after = lesion_edits.fill_region(ill.images, ill.lesion, ill.lung, ill.lesion, fill=fill)
    bare, inside = _images("Normal").images, ill.lesion[:, None]
    assert (after - bare).abs()[inside].mean() < 0.7 * (ill.images - bare).abs()[inside].mean()
    reach = max(1, round(lesion_edits.EDGE * SIZE))
    near = nn.functional.max_pool2d(inside.float(), 2 * reach + 1, 1, reach) > 0
    assert torch.equal(after[~near], ill.images[~near])
    assert 0 <= after.min() <= after.max() <= 1


@pytest.mark.parametrize("fill", list(lesion_edits.FILLS))
def test_a_lesion_at_the_chest_wall_is_filled_with_lung_and_not_with_wall(fill: str) -> None:
    if fill == "inpaint":
        pytest.importorskip("skimage")
    lung, lesion = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool)
    lung[:, 8:40, 6:20] = lung[:, 8:40, 28:42] = True
    lesion[:, 16:26, 6:12] = True  # as far as the wall
    images = torch.where(lung, 0.3, 0.9)[:, None] + 0.3 * lesion[:, None]
    gone = lesion_edits.fill_region(images, lesion, lung, lesion, fill=fill)
    assert gone[0, 0][lesion[0]].sub(0.3).abs().max() < 0.05


def test_an_unknown_fill_or_class_is_named(ill: EditInputs) -> None:
    with pytest.raises(UserError, match="grey"):
        lesion_edits.fill_region(ill.images, ill.lesion, ill.lung, ill.lesion, fill="gray")
    for ask, count in ((explained.remove_lesions, 1), (explained.transplant_lesions, 3), (explained.measure_causes, 1)):
        with pytest.raises(UserError, match="target 7 is outside the model's 2 classes"):
            ask(_lesion_reader(), *[ill] * count, 7)


def test_the_mirrored_lung_is_that_of_the_other_side() -> None:
    images, lung, lesion = torch.zeros(1, 1, 8, 12), *torch.zeros(2, 1, 8, 12, dtype=torch.bool)
    lung[0, 2:6, 1:4] = lung[0, 2:6, 8:11] = True
    images[0, 0, 2:6, 8:11] = torch.tensor([0.2, 0.4, 0.6])
    lesion[0, 3, 1:4] = True
    found = lesion_edits.fill_mirrored(images, lesion, lung, lesion)[0, 0]
    assert found[3, 1:4].tolist() == pytest.approx([0.6, 0.4, 0.2])
    grey = float(lesion_edits.compute_healthy_grey(images, lung, lesion))
    assert found[3, 8] == pytest.approx(grey), "its mirror is the lesion"


def test_a_lesion_that_has_no_counterpart_is_left_out_and_counted(ill: EditInputs) -> None:
    for lung, lesion in ((ill.lung, ill.lung), (torch.zeros_like(ill.lung), ill.lesion)):
        table = explained.remove_lesions(_lesion_reader(), EditInputs(ill.images, lung, lesion), 0, fills=("grey",))
        found = _summarise(table[table["control"] == "lung"])
        assert (found.images, found.left_out) == (0, COUNT)
        assert found.effect.value is None or np.isnan(found.effect.value)


def test_a_map_is_judged_by_what_removing_does(ill: EditInputs) -> None:
    falls = explained.measure_causes(_lesion_reader(), ill, 0)
    bright = (ill.images - _images("Normal").images).clamp(min=0)[:, 0] * ill.lung
    by_truth = explained.rank_by_cause(bright, falls)
    by_marker = explained.rank_by_cause((ill.images - _images("COVID-19", ()).images).abs()[:, 0], falls)
    assert np.nanmean(by_truth) > 0.5
    assert abs(np.nanmean(by_marker)) < 0.2
    assert np.nanmean(explained.rank_by_cause(-bright, falls)) < -0.5
    assert explained.rank_by_cause(torch.ones(COUNT, SIZE, SIZE), falls).tolist() == [0.0] * COUNT
    outside = ~nn.functional.adaptive_max_pool2d(ill.lung.float(), explained.CELLS).bool()
    assert torch.equal(falls.isnan(), outside)


def test_the_same_place_of_a_healthy_image_is_filled_and_its_fall_is_subtracted(
    ill: EditInputs, healthy: EditInputs
) -> None:
    table = explained.remove_lesions(_lesion_reader(), ill, 0, healthy, 1, fills=("grey",))
    assert set(table["control"]) == {explained.HEALTHY_IMAGE}
    own = table["fall"] - (table["control_before"] - table["control_answer"])
    assert table["effect"].to_numpy() == pytest.approx(own.to_numpy())
    assert table["share"].between(0.3, 1).all()
    assert table["effect"].mean() > 0.1
    pair = lesion_edits.match_place(ill, healthy)
    assert pair.lesion.flatten(1).sum(1).tolist() == pair.control.flatten(1).sum(1).tolist()
    assert not (pair.lesion & ~ill.lesion).any()
    assert not (pair.control & ~healthy.lung).any()
    middles = lesion_edits._middle(pair.lesion) - lesion_edits._middle(ill.lung)
    there = lesion_edits._middle(pair.control) - lesion_edits._middle(healthy.lung)
    assert (middles - there).abs().max() <= 1, "the same place in the lungs"
    # The whole lesion is removed too.
    alone = explained.remove_lesions(_lesion_reader(), ill, 0, fills=("grey",)).query("control == 'lung'")
    assert table["whole"].to_numpy() == pytest.approx(alone["whole"].to_numpy())
    assert (table["whole"] < table["without"]).any(), "a part of the lesion alone was removed there"


def test_pairs_that_share_a_healthy_image_are_one_group() -> None:
    pairs = np.array([["a", "h1"], ["b", "h2"], ["c", "h1"], ["b", "h3"], ["d", "h3"], ["e", "h4"]])
    assert explained._join_groups(pairs).tolist() == ["a", "b", "a", "b", "b", "e"]


def test_a_model_that_any_edit_upsets_has_an_effect_but_none_over_a_healthy_image(
    ill: EditInputs, healthy: EditInputs
) -> None:
    class Upset(nn.Module):
        """Answers class 0 of the ill and class 1 of the healthy, and doubts both once they are edited."""

        def forward(self, images: Tensor) -> Tensor:
            return 4.0 * torch.stack([(images == known.images).flatten(1).all(1) for known in (ill, healthy)], 1)

    table = explained.remove_lesions(Upset(), ill, 0, healthy, 1, fills=("grey",))
    assert table["fall"].min() > 0.4
    assert table["effect"].abs().max() < 1e-6


def test_the_smaller_of_effect_and_fall_is_reported_by_the_least_favourable_fill() -> None:
    group = np.arange(4).astype(str)
    about = {"image": range(4), "flipped": 0.0, "flipped_control": 0.0}
    table = pd.DataFrame(about | {"effect": [0.5, 0.3, 0.5, 0.3], "fall": [0.1, 0.2, 0.1, 0.2]})
    found = explained.summarise_effect(table, group, resamples=50)
    assert found.least.value == found.fall.value == pytest.approx(0.15)
    swapped = explained.summarise_effect(table.rename(columns={"fall": "effect", "effect": "fall"}), group)
    assert swapped.least.value == pytest.approx(0.15)
    rows = [
        {"fill": fill, "control": control, "least": {"value": value}, "epsilon": epsilon, "images": 20, "left_out": 4}
        for fill, control, value, epsilon in (
            ("grey", "lung", 0.3, 0.0),
            ("mirror", "lung", 0.2, 0.0),
            ("grey", "healthy image", 0.25, 0.0),
            ("grey", "background", 0.1, 0.0),
            ("transplant", "healthy patch", 0.05, 0.0),
            ("grey", "lung", 0.0, 0.02),
        )
    ]
    rows.append({"fill": "inpaint", "control": "lung", "least": {"value": 0.0}, "images": 4, "left_out": 2})  # a sample
    document = RunDocument.model_validate({"lesions": rows, "model": "m", "defence": "d"})
    assert document.lesion_effect is not None
    assert (document.lesion_effect.fill, document.lesion_effect.least.value) == ("mirror", 0.2)
    (line,) = least_lesion_effects([ReportRun(document, Path(), [])]).rows
    assert line[2].value == 0.2
    assert line[3].text == "mirrored lung"
    assert RunDocument().lesion_effect is None


def test_images_without_a_control_are_reported_for_themselves(ill: EditInputs) -> None:
    full = EditInputs(ill.images, ill.lung, ill.lesion.clone())
    full.lesion[:5] = full.lung[:5]  # no healthy lung is left
    table = explained.remove_lesions(_lesion_reader(), full, 0, fills=("grey",))
    table = table.assign(group=table["image"].astype(str), condition="clean", epsilon=0.0)
    document = next(row for row in explained.summarise_effects(table, resamples=50) if row.control == "lung")
    alone = document.without_control
    assert alone is not None
    assert (alone.images, document.left_out, document.images) == (5, 5, COUNT - 5)
    assert alone.fall.value == pytest.approx((alone.before or 0) - (alone.whole or 0))
    assert (alone.fall.value or 0) > 0.1
    assert alone.flipped.value is not None


@pytest.mark.parametrize("side", [64, 100, 30])
def test_a_map_of_each_cells_own_cause_ranks_as_the_causes_at_any_size(side: int) -> None:
    shape = (side, side + 7)
    saliency = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    rows, columns = ([explained._part(index, 8, length) for index in range(8)] for length in shape)
    own = torch.stack([saliency[:, r, c].mean((1, 2)) for r in rows for c in columns], 1).view(2, 8, 8)
    assert explained.rank_by_cause(saliency, own).tolist() == pytest.approx([1, 1])


def test_a_run_is_asked_about_every_image_with_a_lesion_and_the_report_shows_it(tmp_path: Path, bars: list) -> None:
    run, data, table = _asked(tmp_path, batch_size=4)
    ill = explained.find_lesion_rows(data)
    assert len(ill) == 8
    assert bars[-1] == ("lesions of evidence-17x8-standard-s0", 4, 4), "the time that is left is said"
    for _, rows in table.groupby(["fill", "control"]):
        assert rows["image"].tolist() == ill.tolist()
        assert rows["sample_id"].tolist() == data.sample_ids[ill].tolist()
    inputs = lesion_edits.make_edit_inputs(data, ill, torch.device("cpu"))
    whole = explained.remove_lesions(run.model, inputs, torch.from_numpy(data.labels[ill]))
    ours, first = (part.query("fill == 'mirror' and control == 'lung'")["effect"].to_numpy() for part in (table, whole))
    assert ours == pytest.approx(first, abs=1e-5, nan_ok=True), "batches change nothing"

    document = explained.summarise_effects(table, resamples=100)
    assert [(row.fill, row.control) for row in document] == [
        (fill, control) for control in (*explained.CONTROLS, explained.HEALTHY_IMAGE) for fill in explained.FILLS
    ]
    shown = lesion_effects([ReportRun(RunDocument(lesions=document, model="m", defence="d"), tmp_path, [])])
    assert len(shown.rows) == 6
    assert shown.rows[0][2].text == "healthy grey"
    assert shown.rows[0][8].value == pytest.approx(document[0].effect.value)


def _asked(tmp_path: Path, **options: Any) -> tuple[Run, Any, pd.DataFrame]:
    """An untrained network asked about phantoms, as a report does it."""
    write_files.write(tmp_path, {"Test": 4}, size=SIZE, seed=0, conspicuity=2.0)
    data = load_dataset(tmp_path, split="Test", size=SIZE)
    recipe = RunRecipe(model=ModelRecipe(name="evidence-17x8", weights="none"))
    run = Run(tmp_path, models.build("evidence-17x8", classes=3).eval(), data.classes, recipe)
    return run, data, explained.lesion_effects(run, data, **options)


def test_a_sample_is_inpainted_attacked_and_put_into_healthy_images_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[EditInputs] = []
    real = explained.transplant_lesions
    monkeypatch.setattr(explained, "transplant_lesions", lambda *a, **o: given.extend(a[1:4]) or real(*a, **o))
    run, data, table = _asked(tmp_path, sample=3, epsilon=0.02)
    into, ill, well = given[:3]
    assert not (into.lesion | well.lesion).any()
    assert ill.lesion.flatten(1).any(1).all()
    assert not any(torch.equal(a, b) for a, b in zip(into.images, well.images, strict=True)), "other images"
    plain = table[(table["condition"] == "clean") & table["fill"].isin(explained.FILLS)]
    pd.testing.assert_frame_equal(plain, explained.lesion_effects(run, data))
    drawn = table[table["fill"] == "inpaint"]
    assert set(drawn["control"]) == set(explained.CONTROLS)
    assert drawn["image"].nunique() == 3
    assert set(drawn["image"]) < set(explained.find_lesion_rows(data))

    attacked = table[table["condition"] == "pgd"]
    assert set(attacked.loc[attacked["fill"] == "grey", "image"]) == set(drawn["image"])
    assert set(attacked["epsilon"]) == {0.02}
    rows = [table[(table["fill"] == "grey") & (table["condition"] == name)] for name in ("clean", "pgd")]
    clean, pgd = (some.drop_duplicates("image").set_index("image")["before"] for some in rows)
    assert (pgd < clean.loc[pgd.index]).all()

    assert set(attacked["fill"]) == {*explained.FILLS, "transplant"}
    moved = table[(table["fill"] == "transplant") & (table["condition"] == "clean")]
    assert len(moved) == moved["image"].nunique() == 3
    assert {data.classes[label] for label in data.labels[moved["image"]]} == {"Normal"}
    under = table[(table["fill"] == "transplant") & (table["condition"] == "pgd")]
    assert under["image"].tolist() == moved["image"].tolist()
    assert (under["before"].to_numpy() > moved["before"].to_numpy()).all(), "attacked away from Normal"
    assert moved["effect"].to_numpy() == pytest.approx((moved["without"] - moved["control_answer"]).to_numpy())

    document = explained.summarise_effects(table, resamples=100)
    told = [(row.condition, row.epsilon, row.fill, row.control, row.images) for row in document if row.fill != "mirror"]
    assert ("pgd", 0.02, "grey", "lung", 3) in told
    assert ("clean", 0.0, "transplant", "healthy patch", 3) in told
    assert ("pgd", 0.02, "transplant", "healthy patch", 3) in told
    shown = lesion_effects([ReportRun(RunDocument(lesions=document, model="m", defence="d"), tmp_path, [])])
    assert len(shown.rows) == len(document) == 14
    assert "PGD, epsilon 0.02" in str([row[2] for row in shown.rows])
    assert "transplanted into a healthy image" in [row[2].text for row in shown.rows]


def test_without_the_library_nothing_is_inpainted_and_the_rest_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explained, "find_spec", lambda name: None)
    _, _, table = _asked(tmp_path, sample=2)
    assert set(table["fill"]) == {"grey", "mirror", "transplant"}
    assert set(table["condition"]) == {"clean"}, "no epsilon, no attack"


def test_data_without_lesion_masks_has_no_lesion_effect(tmp_path: Path) -> None:
    assert explained.summarise_effects(pd.DataFrame()) == []
    assert lesion_effects([ReportRun(RunDocument(), tmp_path, [])]).rows == []


def test_means_are_of_the_images_that_the_effect_is_of() -> None:
    about = {"condition": "clean", "epsilon": 0.0, "fill": "grey", "control": "lung", "whole": 0.1, "lesion": 0.2}
    about |= {"flipped": 1.0, "flipped_control": 0.0, "flipped_whole": 1.0, "control_before": 0.9}
    values = {"before": [0.9, 0.1], "without": [0.2, 0.1], "control_answer": [0.8, 0.1], "share": [0.9, 0.1]}
    values |= {"effect": [0.6, np.nan], "fall": [0.7, np.nan], "image": [0, 1], "group": ["a", "b"]}
    table = pd.DataFrame(values).assign(**about)
    (found,) = explained.summarise_effects(table, resamples=100)
    assert (found.images, found.left_out) == (1, 1)
    assert found.effect.value == pytest.approx(0.6)
    assert (found.control_answer or 0) - (found.without or 0) == pytest.approx(0.6)
