"""What a run's training images are like: what is accepted, what is called unlike, and whose weights it belongs to."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import served
from trustcxr.data.images.chest_network import fit_components
from trustcxr.errors import UserError
from trustcxr.evaluation.trained_run import Run, load_run
from trustcxr.explain import ood, predict
from trustcxr.explain.ood import OodModel


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(served.untrained_run(tmp_path_factory.mktemp("run")), on="cpu")


@pytest.fixture(scope="module")
def known(run: Run, radiographs: tuple) -> OodModel:
    return ood.fit(run, *radiographs)


def pixels(data: object) -> torch.Tensor:
    return torch.cat(list(ood.batches(data)))  # type: ignore[arg-type]


def test_95_percent_of_validation_images_are_accepted_and_pictures_of_other_things_are_not(
    run: Run, radiographs: tuple, known: OodModel
) -> None:
    accepted = (known.score(run, pixels(radiographs[1])) <= known.threshold).double().mean()
    assert 0.95 <= float(accepted) < 1
    torch.manual_seed(0)
    foreign = {
        "noise": torch.rand(20, 1, 32, 32),
        "one grey level": torch.linspace(0, 1, 9)[:, None, None, None].expand(-1, 1, 32, 32),
        "on its side": pixels(radiographs[1]).rot90(1, (2, 3)),
    }
    for name, images in foreign.items():
        refused = (known.score(run, images) > known.threshold).double().mean()
        assert float(refused) >= 0.9, name


def test_a_image_has_one_score_alone_and_among_others(run: Run, radiographs: tuple, known: OodModel) -> None:
    images = pixels(radiographs[1])[:6]
    together = known.score(run, images)
    alone = torch.cat([known.score(run, image[None]) for image in images])
    assert together.numpy() == pytest.approx(alone.numpy(), abs=1e-4)
    assert not run.model.training


def test_each_view_sees_what_it_is_for(run: Run, radiographs: tuple, known: OodModel) -> None:
    brighter = (pixels(radiographs[1]) * 0.5 + 0.4).clamp(0, 1)
    views = known.views(run, brighter) - known.views(run, pixels(radiographs[1]))
    assert float(views[:, 1].abs().max()) < 0.5  # the image's own view is of even contrast
    assert float(views[:, 0].abs().mean()) > 1


def test_distances_are_those_of_the_density() -> None:
    torch.manual_seed(0)
    rows = torch.randn(4000, 5, dtype=torch.float64) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.5])
    found = fit_components(rows, 3)
    covariance = torch.diag(torch.tensor([9.0, 4.0, 1.0, 0.25, 0.25], dtype=torch.float64))
    expected = torch.einsum("ni,ij,nj->n", rows, covariance.inverse(), rows)
    assert float((found.distance(rows) / expected).mean()) == pytest.approx(1, abs=0.05)
    assert found.distance(found.mean[None]).item() == pytest.approx(0, abs=1e-9)


def test_it_is_stored_as_tensors_and_belongs_to_its_weights(run: Run, known: OodModel, tmp_path: Path) -> None:
    folder = served.untrained_run(tmp_path)
    ood.save(known, folder)
    (folder / "like-any-other").touch()
    modes = {(folder / name).stat().st_mode for name in ("ood.safetensors", "like-any-other")}
    assert len(modes) == 1, "whoever may read the run may read this too"
    again = ood.load(folder)
    assert again is not None
    x = torch.rand(3, 1, 32, 32)
    assert again.score(run, x).numpy() == pytest.approx(known.score(run, x).numpy())
    assert again.threshold == known.threshold
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b" ")
    with pytest.raises(UserError, match="other weights"):
        ood.load(folder)
    (folder / "ood.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not readable"):
        ood.load(folder)
    (folder / "ood.safetensors").unlink()
    assert ood.load(folder) is None


def test_predict_warns_of_what_is_unlike_and_poor(run: Run, known: OodModel, tmp_path: Path) -> None:
    ood.save(known, run.folder)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    for name, picture in (("image", Image.open(served.io.BytesIO(served.image(3, 64)))), ("noise", noise)):
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image.save(tmp_path / f"{name}.png")
    small = served.packed(np.asarray(Image.fromarray(noise).resize((20, 20))))
    (tmp_path / "small.png").write_bytes(small)
    paths = [tmp_path / f"{name}.png" for name in ("image", "noise", "small")]
    answers = predict.predict(run.folder, paths, out=tmp_path / "out", anyway=True)
    radiograph, foreign, tiny = (" | ".join(answer.warnings) for answer in answers)
    assert "unlike" not in radiograph
    assert "unlike the images that the network was trained on" in foreign
    assert "grainy" in foreign
    assert "fewer than the network's 32" in tiny
    assert answers[1].rarer_than == 1.0
    json.dumps([answer.plain() for answer in answers])
    (run.folder / "ood.safetensors").unlink()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.full((1, 1, 32, 32), 0.5), "hardly any contrast"),
        ((torch.rand(1, 1, 32, 32) > 0.5).float(), "little between black and white"),
    ],
)
def test_poor_quality_is_said_in_words(known: OodModel, image: torch.Tensor, said: str) -> None:
    assert any(said in words for words in ood.describe_quality(known, image))


def test_two_classes_nearly_as_likely_are_a_border() -> None:
    assert predict._border({"a": 0.55, "b": 0.40, "c": 0.05}) == "near the decision border: a 55.0%, b 40.0%"
    assert predict._border({"a": 0.70, "b": 0.25, "c": 0.05}) is None


def test_dark_are_the_two_darkest_levels_and_bright_the_three_brightest() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1).expand(-1, 1, 8, 8)
    found = ood.signs(levels.float().div_(255))
    assert found[:, 2].nonzero().flatten().tolist() == [0, 1]
    assert found[:, 3].nonzero().flatten().tolist() == [253, 254, 255]
