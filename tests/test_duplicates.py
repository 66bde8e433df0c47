"""Copies of an image are found however they were changed, and other images are not taken for copies."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from benchmarks.speed.duplicates import CHANGES, Pixels, pictures, read, recalls
from PIL import Image

from trustcxr.data import read_manifest
from trustcxr.data.checks import duplicates
from trustcxr.data.checks.row_file import RowFile
from trustcxr.data.checks.scan import _without_borders, scan
from trustcxr.data.phantom import render_image
from trustcxr.data.phantom.render_image import render


@pytest.fixture(scope="module")
def synthetic() -> list[Pixels]:
    return [render(render_image.CLASSES[i % 3], i, 192).image for i in range(36)]


def found_among(radiographs: list[Pixels], digests: list[str | None] | None = None) -> pd.DataFrame:
    names = [str(i) for i in range(len(radiographs))] if digests is None else digests
    return duplicates.find_duplicates(names, *pictures(radiographs))


@pytest.mark.sample("mirrored", "moved by 3 pixels")
@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_of_synthetic_images_are_found(change: str, synthetic: list[Pixels]) -> None:
    share, wrong = recalls(synthetic, pictures(synthetic), {change: np.arange(0, 36, 2)})[change]
    assert share >= 0.9
    assert not wrong


@pytest.mark.slow
def test_copies_are_found_among_all_the_real_images(covidqu: Path) -> None:
    """Sixty of each change, each of another image, in one data set: what is looked for beside them is 2,850 images."""
    radiographs = read(covidqu)
    chosen = np.random.default_rng(0).permutation(len(radiographs))[: 60 * len(CHANGES)].reshape(len(CHANGES), -1)
    found = recalls(radiographs, pictures(radiographs), dict(zip(CHANGES, chosen, strict=True)))
    assert {name: share for name, (share, _) in found.items() if share < 0.9} == {}
    assert sum(len(wrong) for _, wrong in found.values()) < 0.01 * len(radiographs)


def test_what_was_done_to_a_copy_is_said(synthetic: list[Pixels]) -> None:
    first, second, third, fourth = synthetic[:4]
    copies = [first[:, ::-1], 255 - second, 255 - third[:, ::-1], np.pad(fourth, 9)]
    found = found_among([*synthetic, *copies])
    turned = {(r.first, r.second): (r.mirrored, r.inverted) for r in found.itertuples()}
    assert turned == {(0, 36): (True, False), (1, 37): (False, True), (2, 38): (True, True), (3, 39): (False, False)}
    assert not found["exact"].any()


def test_the_very_same_pixels_are_exact_and_paired_with_the_first(synthetic: list[Pixels]) -> None:
    radiographs = [*synthetic[:5], synthetic[2], synthetic[2]]
    found = found_among(radiographs, ["a", "b", "c", "d", None, "c", "c"])
    assert found[["first", "second"]].to_numpy().tolist() == [[2, 5], [2, 6]]
    assert found["exact"].all()


def test_few_images_none_and_blank_ones_are_no_error(synthetic: list[Pixels]) -> None:
    thumbs, trimmed = pictures(synthetic[:2])
    for count in (0, 1, 2):
        found = duplicates.find_duplicates([str(i) for i in range(count)], thumbs[:count], trimmed[:count])
        assert len(found) == 0
        assert {"first", "second", "exact", "mirrored", "inverted", "correlation"} <= set(found.columns)
    found = found_among([synthetic[0], synthetic[0][:, ::-1]])
    assert found[["first", "second"]].to_numpy().tolist() == [[0, 1]], "two alone that are one"
    blank = found_among([np.full((64, 64), level, np.uint8) for level in (0, 9, 255)])
    assert len(set(zip(blank["first"], blank["second"], strict=True))) <= 3


def test_hundreds_of_images_that_are_all_alike_hang_together_in_bounded_work() -> None:
    radiograph = render("Normal", 0, 64).image
    thumbs = np.broadcast_to(radiograph, (400, 64, 64))
    found = duplicates.find_duplicates([str(i) for i in range(400)], thumbs, thumbs)
    assert len(found) <= 10 * 400
    assert len(set(duplicates.find_clusters(400, found[["first", "second"]].to_numpy()))) == 1


@pytest.mark.slow
def test_work_does_not_grow_with_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that are looked at closely: four times the images, at most some six times the pairs."""
    looked_at: list[int] = []
    pairs, cosines = [], duplicates._cosines
    monkeypatch.setattr(duplicates, "_cosines", lambda *given: pairs.append(len(given[2])) or cosines(*given))
    random = np.random.default_rng(0)
    for count in (1000, 4000):
        described = random.normal(size=(count, 63)).astype(np.float32)
        list(duplicates._candidates(described, np.arange(count)))
        looked_at.append(sum(pairs) - sum(looked_at))
    assert 0 < looked_at[1] < 6 * looked_at[0]


def test_ranks_are_the_same_at_any_brightness_and_turned_over_when_inverted() -> None:
    radiograph = np.random.default_rng(0).integers(0, 128, (1, 64, 64)).astype(np.uint8)
    ranks = duplicates.equalise(radiograph)
    assert np.allclose(ranks, duplicates.equalise(radiograph * 2))
    assert np.allclose(ranks, -duplicates.equalise(255 - radiograph), atol=1e-6)
    assert abs(ranks.mean()) < 1e-4


def test_even_borders_are_taken_off_and_nothing_else() -> None:
    radiograph = np.random.default_rng(0).integers(0, 255, (90, 80)).astype(np.uint8)
    assert np.array_equal(_without_borders(np.pad(radiograph, ((3, 9), (0, 20)), constant_values=200)), radiograph)
    assert np.array_equal(_without_borders(radiograph), radiograph)
    assert _without_borders(np.zeros((64, 64), np.uint8)).shape == (64, 64)


def test_pictures_are_what_the_audit_reads(tmp_path: Path, synthetic: list[Pixels]) -> None:
    padded = [np.pad(radiograph, 7) for radiograph in synthetic[:6]]
    (tmp_path / "a").mkdir()
    for i, radiograph in enumerate(padded):
        Image.fromarray(radiograph).save(tmp_path / "a" / f"{i}.png")
    read_back = scan(read_manifest(tmp_path), workers=1)
    thumbs, trimmed = pictures(padded)
    assert np.array_equal(read_back.thumbs[:], thumbs)
    assert np.array_equal(read_back.trimmed[:], trimmed)
    assert not np.array_equal(thumbs, trimmed)


@pytest.mark.parametrize("rows", [slice(None), [5, 4, 5], np.arange(8) % 3 == 0, np.array([], int), slice(2, 7)])
def test_rows_of_a_file_are_those_of_an_array(rows: Any) -> None:
    array = np.random.default_rng(0).normal(size=(8, 2, 3)).astype(np.float32)
    file = RowFile(8, (2, 3), np.float32)
    for first in (6, 0, 3):  # in any order
        file.write(first, array[first : first + 3])
    assert np.array_equal(file[rows], array[rows])
    assert len(file) == 8


@pytest.mark.parametrize("number", range(6))
def test_tangents_are_the_change_by_a_small_map(number: int, synthetic: list[Pixels]) -> None:
    smooth = duplicates._blurred(duplicates.equalise(pictures(synthetic[:4])[0]), 2)
    maps = duplicates._unmoved(4)
    forth, back = (
        duplicates.warp(smooth, maps + step * np.eye(6, dtype=np.float32)[number])[0] for step in (1e-2, -1e-2)
    )
    changed = (duplicates._describe(forth)[0] - duplicates._describe(back)[0])[:, duplicates._LOW] / 2e-2
    tangents = duplicates._describe(smooth)[1][:, number]
    assert np.linalg.norm(tangents - changed) < 0.1 * np.linalg.norm(changed)


@pytest.mark.parametrize("change", [(False, False), (True, False), (False, True), (True, True)])
def test_copies_pass_the_tangent_distance_and_most_others_do_not(
    change: tuple[bool, bool], synthetic: list[Pixels]
) -> None:
    radiographs = duplicates.equalise(pictures(synthetic)[0])
    maps = np.tile(np.array([1.05, 0.05, 0.08, -0.05, 0.95, -0.08], np.float32), (36, 1))
    copies = duplicates.warp(duplicates._turned(radiographs, *change), maps)[0]
    described, tangents = (
        np.concatenate(both)
        for both in zip(duplicates._describe(radiographs), duplicates._describe(copies), strict=True)
    )
    same, others = (np.stack([np.arange(36), 36 + np.roll(np.arange(36), by)], axis=1) for by in (0, 1))
    cosines = duplicates._compare(described, tangents, change, same)[0]
    assert (cosines >= duplicates.MIN_TANGENT_COSINE).all()
    assert (duplicates._compare(described, tangents, change, others)[0] < cosines.min()).mean() > 0.8


def test_an_even_area_gives_a_correlation() -> None:
    random = np.random.default_rng(0)
    pictures = random.random((64, 64, 64), np.float32)
    pictures[:, :40] = random.random((64, 1, 1), np.float32)
    assert np.isfinite(duplicates.correlate(pictures, np.roll(pictures, 1, axis=2), duplicates._unmoved(64))).all()
