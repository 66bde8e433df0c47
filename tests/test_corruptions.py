"""Corruptions: the contract, what each does by another way to it, and artefacts where they say they are."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import exposure as tones
from torch import Tensor

from test_cli import run
from trustcxr import corruptions
from trustcxr.corruptions import acquisition, artefact, corrupt, preview
from trustcxr.data.phantom import render_image
from trustcxr.data.phantom.render_image import render
from trustcxr.errors import UserError

NAMES = tuple(corruptions.CORRUPTIONS)


def images(count: int = 3, size: int = 64) -> Tensor:
    pixels = np.stack([render(render_image.CLASSES[i % 3], i, size).image for i in range(count)])
    return torch.from_numpy(pixels).float().div(255)[:, None]


IMAGES = images()
shrunk = torch.nn.functional.avg_pool2d


@pytest.mark.parametrize("name", NAMES)
def test_every_severity_is_a_image_and_more_than_the_one_before(name: str) -> None:
    before, moved = IMAGES.clone(), []
    for severity in corruptions.SEVERITIES:
        changed = corrupt(IMAGES, name, severity, seed=1)
        assert (changed.shape, changed.dtype) == (IMAGES.shape, torch.float32)
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
        moved.append(float((changed - IMAGES).abs().mean()))
    assert torch.equal(IMAGES, before), "the images given are left alone"
    assert moved[0] > 1e-4
    assert moved == sorted(moved), moved
    assert moved[4] > 1.5 * moved[0]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_the_same_alone_and_in_company(name: str) -> None:
    keys = ["a", "b", "c"]
    together = corrupt(IMAGES, name, 3, keys=keys)
    assert torch.equal(corrupt(IMAGES, name, 3.0, keys=keys), together)  # type: ignore[arg-type]
    for place, key in enumerate(keys):
        alone = corrupt(IMAGES[place : place + 1], name, 3, keys=[key])
        assert torch.allclose(alone[0], together[place], atol=1e-6)
    turned = corrupt(IMAGES.flip(0), name, 3, keys=keys[::-1])
    assert torch.allclose(turned.flip(0), together, atol=1e-6)


DRAWN = [name for name in NAMES if name not in ("defocus_blur", "resolution", "jpeg")]


@pytest.mark.parametrize("name", DRAWN)
def test_seed_and_key_decide_the_draw(name: str) -> None:
    copies = IMAGES[:1].expand(12, -1, -1, -1)
    first = corrupt(copies, name, 4, seed=0)
    assert torch.equal(first, corrupt(copies, name, 4, seed=0))
    assert torch.equal(first, corrupt(copies, name, 4, seed=0, keys=range(12)))
    assert len({image.numpy().tobytes() for image in first}) > 1, "twelve images, and all had the same draw"
    assert not torch.equal(first, corrupt(copies, name, 4, seed=1))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    corrupt(copies, name, 4)
    assert torch.equal(state, torch.get_rng_state()), "the global random state is left alone"


@pytest.mark.parametrize("name", NAMES)
def test_small_odd_and_oblong_images_half_precision_and_empty_batches(name: str) -> None:
    for shape in ((2, 1, 33, 47), (1, 1, 16, 16), (0, 1, 32, 32)):
        assert corrupt(torch.rand(shape), name, 5).shape == shape
    for value in (0.0, 1.0):
        assert corrupt(torch.full((1, 1, 32, 32), value), name, 5).isfinite().all()
    half = corrupt(IMAGES.bfloat16(), name, 2)
    assert half.dtype == torch.bfloat16
    with torch.inference_mode():
        corrupt(IMAGES, name, 1)
    assert not corrupt(IMAGES.clone().requires_grad_(), name, 1).requires_grad


def test_noise_is_the_same_at_every_size_and_another_in_each_corruption() -> None:
    large, noises = torch.full((1, 1, 224, 224), 0.5), []
    for name in ("gaussian_noise", "poisson_noise"):
        noises.append((corrupt(large, name, 3) - large).flatten())
        spread = float(corrupt(shrunk(large, 4), name, 3).std())
        assert float(shrunk(corrupt(large, name, 3), 4).std()) == pytest.approx(spread, rel=0.06)
    assert abs(np.corrcoef(*noises)[0, 1]) < 0.2


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "rotation", "contrast", "exposure"])
@pytest.mark.parametrize("severity", [3, 5])
def test_a_image_made_smaller_looks_the_same(name: str, severity: int) -> None:
    large = images(2, 224)
    small = shrunk(large, 2)
    found = corrupt(small, name, severity)
    expected = shrunk(corrupt(large, name, severity), 2)
    assert float((found - expected).abs().mean()) < 0.15 * float((found - small).abs().mean())


@pytest.mark.parametrize("name", corruptions.ARTEFACTS)
def test_an_artefact_covers_the_same_share_at_every_size(name: str) -> None:
    shares = [float(artefact(images(3, size), name, 5)[1].float().mean()) for size in (96, 224)]
    # At 96 pixels a thin stroke touches more pixels than its width.
    assert 0.9 < shares[0] / shares[1] < 2


@pytest.mark.parametrize("severity", corruptions.SEVERITIES)
def test_noise_has_the_spread_of_the_table(severity: int) -> None:
    grey = torch.full((4, 1, 224, 224), 0.5)
    noise = corrupt(grey, "gaussian_noise", severity) - grey
    assert float(noise.std()) == pytest.approx(acquisition.NOISE[severity - 1], rel=0.02)
    assert abs(float(noise.mean())) < 1e-3
    counted = corrupt(grey, "poisson_noise", severity)
    quanta = acquisition.QUANTA[severity - 1]
    theirs = np.random.default_rng(0).poisson(0.5 * quanta, 100_000) / quanta
    assert float(counted.mean()) == pytest.approx(theirs.clip(0, 1).mean(), abs=2e-3)
    assert float(counted.std()) == pytest.approx(theirs.clip(0, 1).std(), rel=0.02)
    dark = corrupt(grey / 5, "poisson_noise", severity)
    assert float(dark.std()) < 0.6 * float(counted.std())
    assert not corrupt(0 * grey, "poisson_noise", severity).any(), "no quanta, no noise"


@pytest.mark.parametrize("severity", corruptions.SEVERITIES)
def test_jpeg_is_what_pillow_writes_and_reads(severity: int) -> None:
    image = render("COVID-19", 3, 224).image
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=int(acquisition.QUALITY[severity - 1]))
    expected = np.asarray(Image.open(file)).astype(float)
    found = corrupt(torch.from_numpy(image).float().div(255)[None, None], "jpeg", severity)
    off = np.abs(found[0, 0].numpy() * 255 - expected)
    assert np.abs(expected - image).mean() > 1
    assert off.mean() < 0.15, "grey levels"
    assert np.mean(off > 1.01) < 0.04, "a coefficient on the edge of a step may fall to the other side"


def test_blurs_are_convolutions_with_a_round_disc_or_a_line_in_its_direction() -> None:
    picture = IMAGES[0, 0].numpy()
    for kernel in (acquisition.disc_kernel(2.3), acquisition.line_kernels(6.0, torch.tensor([0.4]))):
        assert float(kernel.sum()) == pytest.approx(1)
        expected = ndimage.convolve(picture, kernel[0, 0].numpy(), mode="nearest")
        found = acquisition.convolve(IMAGES[:1], kernel)[0, 0].numpy()
        assert np.abs(found - expected).max() < 1e-5
    area = acquisition.disc_kernel(4.0)[0, 0]
    assert float(1 / area[5, 5]) == pytest.approx(np.pi * 16, rel=0.03)
    assert torch.allclose(area, area.T, atol=1e-6)
    assert 0.6 < float(acquisition.disc_kernel(0.3)[0, 0, 1, 1]) < 0.9, "smaller than a pixel, and yet it blurs"
    flat, upright = (acquisition.line_kernels(8.0, torch.tensor([angle]))[0, 0] for angle in (0.0, np.pi / 2))
    assert float(upright[:, 5].sum()) > 0.999
    assert torch.allclose(flat, upright.T, atol=1e-5)


def test_tones_are_those_of_scikit_image() -> None:
    for severity in corruptions.SEVERITIES:
        power = acquisition.GAMMA[severity - 1]
        ways = [tones.adjust_gamma(IMAGES[0, 0].numpy(), g) for g in (power, 1 / power)]
        found = corrupt(IMAGES[:1], "gamma", severity)[0, 0].numpy()
        assert min(np.abs(found - way).max() for way in ways) < 1e-5
    grey = torch.linspace(0.4, 0.6, 64).reshape(1, 1, 8, 8).expand(40, -1, -1, -1)
    contrast, exposure = (corrupt(grey, name, 2) for name in ("contrast", "exposure"))
    assert torch.allclose(contrast.mean((1, 2, 3)), grey.mean((1, 2, 3)), atol=1e-6)
    for steps in (
        (contrast.std((1, 2, 3)) / grey.std((1, 2, 3))).log() / np.log(acquisition.CONTRAST[1]),
        (exposure - grey).mean((1, 2, 3)) / acquisition.EXPOSURE[1],
    ):
        assert torch.allclose(steps.abs(), torch.ones(40), atol=1e-4)
        assert 5 < int((steps > 0).sum()) < 35, "both ways are drawn"


def test_rotation_turns_by_the_table() -> None:
    for severity in (1, 4):
        angle = acquisition.ROTATION[severity - 1]
        found = corrupt(IMAGES[:1], "rotation", severity)[0, 0].numpy()
        ways = [ndimage.rotate(IMAGES[0, 0].numpy(), a, reshape=False, order=1) for a in (angle, -angle)]
        assert min(np.abs(found - way).mean() for way in ways) < 0.004


def test_resolution_leaves_no_detail_finer_than_its_pixels() -> None:
    noise = torch.rand(1, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    found = corrupt(noise, "resolution", 5)[0, 0].numpy()
    power = np.abs(np.fft.fft2(found - found.mean())) ** 2
    frequency = np.abs(np.fft.fftfreq(224))
    fine = (frequency[:, None] > 1 / 5.5) | (frequency[None] > 1 / 5.5)
    assert power[fine].sum() < 0.02 * power.sum()


@pytest.mark.parametrize("name", corruptions.ARTEFACTS)
@pytest.mark.parametrize("severity", [1, 5])
def test_an_artefact_changes_what_its_mask_covers_and_nothing_else(name: str, severity: int) -> None:
    pictures = images(6, 224)
    changed, masks = artefact(pictures, name, severity)
    assert (masks.shape, masks.dtype) == ((6, 224, 224), torch.bool)
    assert torch.equal(changed, corrupt(pictures, name, severity))
    moved = (changed - pictures).abs()[:, 0]
    assert float(moved[~masks].max()) <= 0.05
    assert masks.any(dim=(1, 2)).all()
    assert float(moved[masks].mean()) > 0.05
    assert 0.0005 < float(masks.float().mean()) < 0.55


def test_a_border_is_at_the_border_and_a_marker_in_a_corner() -> None:
    pictures = images(8, 96)
    _, border = artefact(pictures, "collimation_border", 3)
    assert border[:, 0].all()
    assert border[:, :, 0].all()
    assert not border[:, 24:72, 24:72].any()
    _, marker = artefact(pictures, "letters", 1)
    assert not marker[:, 32:].any()
    sides = [bool(m[:, :48].any()) for m in marker]
    assert [bool(m[:, 48:].any()) for m in marker] == [not side for side in sides]
    assert len(set(sides)) == 2, "both sides are marked, now one, now the other"


def test_the_same_draw_at_every_severity() -> None:
    picture = images(4, 224)
    for name in ("arrows", "leads_and_tubes"):
        before = artefact(picture, name, 1)[1]
        after = artefact(picture, name, 5)[1]
        assert float((before & after).sum() / before.sum()) > 0.6, name


def test_bad_input_is_one_line() -> None:
    wrong = [
        (lambda: corrupt(IMAGES, "gausian_noise", 1), "unknown corruption 'gausian_noise': did you mean"),
        (lambda: corrupt(IMAGES, "jpeg", 6), "severity 6: choose a whole number from 1 to 5"),
        (lambda: corrupt(IMAGES * 255, "jpeg", 1), r"must lie in \[0, 1\]"),
        (lambda: corrupt(torch.full((1, 1, 32, 32), 1 + 2e-7), "jpeg", 1), r"1\.0000002.*; clamp them"),
        (lambda: corrupt(IMAGES * torch.nan, "jpeg", 1), r"must lie in \[0, 1\]"),
        (lambda: corrupt(IMAGES[:, 0], "jpeg", 1), r"floats \(B, 1, H, W\)"),
        (lambda: corrupt(IMAGES.byte(), "jpeg", 1), "floats"),
        (lambda: corrupt(IMAGES, "jpeg", 1, keys=["a"]), "3 images but 1 keys"),
        (lambda: artefact(IMAGES, "jpeg", 1), "unknown artefact 'jpeg'"),
    ]
    for call, text in wrong:
        with pytest.raises(UserError, match=text) as problem:
            call()
        assert "\n" not in str(problem.value)


def test_the_sheet_shows_all_and_takes_the_place_of_no_image(tmp_path: Path) -> None:
    image = render("COVID-19", 0, 64).image
    page = preview.draw(image)
    assert page.size == (150 + 6 * 196, 24 + 15 * 196)
    first = np.asarray(page)[24 : 24 + 192, 150 : 150 + 192]
    assert np.array_equal(first[::3, ::3], image)
    out, own = tmp_path / "images" / "sheet.png", tmp_path / "image.png"
    run("data", "corruptions", out, "--size", 32)
    assert Image.open(out).size == (150 + 6 * 164, 24 + 15 * 164)
    Image.fromarray(render("COVID-19", 0, 32).image).save(own)
    before, drawn = own.read_bytes(), out.read_bytes()
    for to, shown, said in (
        (out, tmp_path / "nothing.png", r"nothing\.png: cannot be read"),
        (tmp_path / "sheet.nothing", None, r"path that ends in \.png"),
        (own, own, r"image\.png: another file with this name exists. Choose another OUT"),
    ):
        with pytest.raises(UserError, match=said):
            preview.write(to, size=32, image=shown)
    assert own.read_bytes() == before
    assert preview.write(out, size=32, image=own, seed=1).read_bytes() != drawn
