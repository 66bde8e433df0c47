"""Less than float32 only where the machine computes in it: a processor that imitates it takes many times as long."""

import pytest
import torch

from small_networks import images_and_labels, trained
from trustcxr import attacks
from trustcxr.training import environment


@pytest.mark.usefixtures("no_bfloat16")
@pytest.mark.parametrize(
    ("asked", "device", "used"),
    [
        ("32-true", "cpu", "32-true"),
        ("bf16-mixed", "cpu", "32-true"),
        ("16-mixed", "cpu", "32-true"),
        ("bf16-mixed", "cuda", "bf16-mixed"),
        ("16-mixed", "cuda", "16-mixed"),
    ],
)
def test_what_is_used_in_its_place_is_said(asked: environment.Precision, device: str, used: str) -> None:
    assert environment.supported_precision(asked, device) == used
    told = environment.describe_substitute(asked, device)
    assert told == "" if used == asked else (asked in told and f"{used} instead" in told)
    assert (environment.autocast_dtype(asked, device) is None) == (used == "32-true")


@pytest.mark.usefixtures("no_bfloat16")
def test_an_attack_asks_the_network_in_float32_there() -> None:
    seen = []
    network = trained()
    handle = network.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    images, labels = images_and_labels(4)
    found = attacks.fgsm(network, images, labels, epsilon=0.02, precision="bf16")
    handle.remove()
    assert seen
    assert not any(seen)
    assert torch.equal(found, attacks.fgsm(network, images, labels, epsilon=0.02))


@pytest.mark.usefixtures("bfloat16")
def test_where_there_is_no_such_doubt_it_is_used() -> None:
    assert environment.supported_precision("bf16-mixed", "cpu") == "bf16-mixed"
    assert "16-mixed needs a GPU: using bf16-mixed" in environment.describe_substitute("16-mixed", "cpu")
