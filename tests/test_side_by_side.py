"""Batches that are worked on side by side: the same bits as one by one, and nothing left running."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from test_audit_command import CLASSES, Brightness, greys  # noqa: F401
from trustcxr.console import Progress
from trustcxr.data import load_dataset
from trustcxr.evaluation import parallel, predictions
from trustcxr.evaluation.trained_run import ModelUnderTest
from trustcxr.recipes.evaluation_recipe import CorruptionsRecipe


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Seen(Brightness):
    """Brightness, which notes the threads that ask it, and with how many threads torch works there."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[tuple[int, int]] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.asked.add((threading.get_ident(), torch.get_num_threads()))
        time.sleep(0.001)  # long enough for the other thread to begin
        return super().forward(images)


def table(model: nn.Module, images: Path, **options: object) -> pd.DataFrame:
    dataset = load_dataset(images, size=16, classes=CLASSES)
    asked = predictions.conditions(["fgsm", "pgd", "square", "worst-case"], [0.05], steps=2, queries=2)
    examined = ModelUnderTest("brightness", model.eval(), CLASSES, torch.device("cpu"))
    corruptions = CorruptionsRecipe(names=("gaussian_noise",), severities=(3,))
    return predictions.predict(examined, dataset, asked, corruptions=corruptions, batch_size=12, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_two_batches_at_once_have_the_bits_of_one_by_one(greys: Path, two_cores: None) -> None:  # noqa: F811
    both, alone = Seen(), Seen()
    torch.manual_seed(1)
    found, state = table(both, greys), torch.get_rng_state()
    assert torch.get_num_threads() == 2
    assert not both._forward_pre_hooks
    mine = {(threading.get_ident(), 2)}  # what is looked at before a batch is worked on
    assert len(both.asked - mine) == 2
    assert {cores for _, cores in both.asked - mine} == {1}
    torch.manual_seed(1)
    one_by_one = table(alone, greys, at_once=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert alone.asked == mine
    pd.testing.assert_frame_equal(found, one_by_one, check_exact=True)


def test_what_cannot_share_is_worked_on_one_by_one(two_cores: None) -> None:
    class Random(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images + 0.1 * torch.rand_like(images))

    images = torch.full((8, 1, 16, 16), 0.5)
    assert parallel.threads_for(Brightness(), images, 5) == 2
    assert parallel.threads_for(Brightness(), images, 1) == 1
    assert parallel.threads_for(Random(), images, 5) == 1
    assert parallel.threads_for(Brightness(), torch.zeros(1).expand(64, 1, 224, 224), 5) == 1, "memory"
    torch.set_num_threads(1)
    assert parallel.threads_for(Brightness(), images, 5) == 1


def test_a_batch_that_fails_ends_the_others_at_their_next_pass(two_cores: None) -> None:
    model, passes = Brightness(), []

    def work(number: int) -> int:
        if number == 1:
            raise KeyboardInterrupt
        for step in range(1000):
            model(torch.zeros(1, 1, 4, 4))
            passes.append(step)
            time.sleep(0.002)
        return number

    with pytest.raises(KeyboardInterrupt):
        list(parallel.parallel_map(work, [1, 0, 2, 3], threads=2, model=model))
    assert len(passes) < 900
    assert not model._forward_pre_hooks
    assert torch.get_num_threads() == 2


def test_what_was_skipped_takes_no_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Progress("evaluating", 100) as bar:
        bar.skip(80)
        clock[0] = 20.0
        bar.advance(10)  # two seconds each
    assert "90/100, about 20 s left" in capsys.readouterr().err
