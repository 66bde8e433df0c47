"""Images with emptied lungs, to which an even answer is asked."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small_networks import SIDE, SmallNet, images_and_labels, one_thread
from trustcxr import registry
from trustcxr.defences import backgrounds, base

DEFENCE_OPTIONS = {name: entry.options for name, entry in registry.DEFENCES.items()}


@pytest.fixture
def model() -> SmallNet:
    torch.manual_seed(0)
    model = SmallNet().train()
    model.body[-1].p = 0.0
    return model


def test_emptied_lungs_are_one_grey_and_the_rest_is_as_it_was() -> None:
    torch.manual_seed(3)
    images, lungs = torch.rand(12, 1, 8, 8), torch.zeros(12, 1, 8, 8)
    lungs[2:, :, 2:6, 1:7] = 1
    emptied = backgrounds.emptied(images, lungs)
    assert emptied.shape == (3, 1, 8, 8), "a quarter of the batch"
    inside = lungs[2:5].bool()
    assert torch.equal(emptied[~inside], images[2:5][~inside]), "the first that have lungs"
    greys = emptied[inside].view(3, -1)
    assert torch.equal(greys, greys[:, :1].expand_as(greys))
    assert len(greys[:, 0].unique()) == 3
    assert backgrounds.emptied(images, torch.zeros_like(lungs)).shape == (0, 1, 8, 8)
    assert backgrounds.emptied(images[:1], lungs[:1] + 1).shape == (1, 1, 8, 8), "one at least"


def test_a_learner_answers_for_emptied_lungs_apart_and_in_training_alone() -> None:
    torch.manual_seed(0)
    learner = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    images, emptied = torch.rand(6, 1, 8, 8), torch.rand(2, 1, 8, 8)
    beside = backgrounds.WithEmptiedLungs(learner.train(), emptied)
    logits = beside(images)
    whole = learner(torch.cat([images, emptied]))
    assert torch.allclose(logits, whole[:6], atol=1e-6)
    assert torch.allclose(beside.answer, whole[6:], atol=1e-6)
    even = torch.full((2, 3), 1 / 3)
    wanted = F.kl_div(beside.answer.log_softmax(1), even, reduction="batchmean")
    assert torch.allclose(beside.confusion_loss(), wanted, atol=1e-6)
    beside.answer = torch.full((2, 3), 4.0)
    assert float(beside.confusion_loss()) == pytest.approx(0, abs=1e-6)
    shown: list[int] = []
    hook = learner.register_forward_pre_hook(lambda _, given: shown.append(len(given[0])))
    assert torch.equal(beside.eval()(images), learner(images))
    assert shown == [6, 6], "an attack's passes cost nothing more"
    hook.remove()
    assert backgrounds.WithEmptiedLungs(learner.eval(), emptied).training is False, "as the learner is"


def test_what_lies_beside_the_lungs_no_longer_tells_the_class() -> None:
    """A spot in the corner gives the class away, and so does a pattern in the lungs: which is the answer by?"""
    inside = torch.zeros(1, 1, SIDE, SIDE)
    inside[..., 4:16, 4:16] = 1

    def marked(count: int, seed: int) -> tuple[Tensor, Tensor]:
        images, labels = images_and_labels(count, seed=seed)
        images = inside * images + (1 - inside) * 0.5
        for k in range(3):
            images[labels == k, :, :3, 6 * k : 6 * k + 3] = 1.0
        return images, labels

    confidence, right = {}, {}
    for background in ("full", "emptied"):
        torch.manual_seed(0)
        with one_thread():
            model = SmallNet().train()
            optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
            for step in range(60):
                images, labels = marked(48, seed=step)
                lungs = inside.expand_as(images)
                learner = backgrounds.WithEmptiedLungs(model, backgrounds.emptied(images, lungs))
                loss, _ = base.standard(model if background == "full" else learner, images, labels)
                loss = loss if background == "full" else loss + learner.confusion_loss()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            images, labels = marked(90, seed=99)
            empty = images * (1 - inside) + 0.3 * inside
            with torch.no_grad():
                confidence[background] = float(model.eval()(empty).softmax(1).amax(1).mean())
                right[background] = float((model(images).argmax(1) == labels).float().mean())
    assert confidence["full"] > 0.8
    assert confidence["emptied"] < 0.5
    assert min(right.values()) > 0.9
