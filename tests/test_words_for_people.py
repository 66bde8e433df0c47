"""What people read: a short repr, hints that can be followed, the words of a list, any module."""

from pathlib import Path

import torch

import trustcxr as tx
from small_runs import recipe
from trustcxr.cli import options
from trustcxr.data.images import dicom
from trustcxr.evaluation.run import Run
from trustcxr.models import factory


def test_the_repr_of_a_run_is_one_short_line() -> None:
    run = Run(Path("out/run"), factory.build("test_resnet", classes=2), ("a", "b"), recipe())
    assert repr(run) == "Run(test_resnet-standard-s0, 32 pixels, classes a, b, in out/run)"


def test_hints_name_an_installation_that_exists() -> None:
    assert dicom.INSTALL == "pip install '.[dicom]'"
    sources = Path(tx.__file__).parent.rglob("*.py")
    assert not [path.name for path in sources if "pip install 'trustcxr[" in path.read_text(encoding="utf-8")]


def test_the_words_of_a_list_are_in_the_help() -> None:
    told = options.Columns.__metadata__[0].help  # type: ignore[attr-defined]
    for word in ("path", "class", "split", "patient", "group", "source", "view", "lung_mask", "infection_mask"):
        assert word in told


def test_attacks_and_saliency_take_any_module() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten())
    model.append(torch.nn.Linear(4 * 64, 3))
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    assert tx.attacks.pgd(model, images, labels, epsilon=0.02, steps=2).shape == images.shape
    assert tx.explain.grad_cam(model, images, layer="1").shape == (2, 8, 8)
