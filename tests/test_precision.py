"""Less than float32 only where the machine computes in it: a processor that imitates it takes many times as long."""

from typing import Any

import pytest
import torch

from small_networks import accuracy, images_and_labels, trained
from trustcxr import attacks
from trustcxr.training import environment


@pytest.mark.parametrize(
    ("processor", "asked", "device", "used"),
    [
        ("no_bfloat16", "32-true", "cpu", "32-true"),
        ("no_bfloat16", "bf16-mixed", "cpu", "32-true"),
        ("no_bfloat16", "16-mixed", "cpu", "32-true"),
        ("no_bfloat16", "bf16-mixed", "cuda", "bf16-mixed"),
        ("no_bfloat16", "16-mixed", "cuda", "16-mixed"),
        ("bfloat16", "bf16-mixed", "cpu", "bf16-mixed"),
        ("bfloat16", "16-mixed", "cpu", "bf16-mixed"),
    ],
)
def test_what_is_used_in_its_place_is_said(
    processor: str, asked: environment.Precision, device: str, used: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(processor)
    assert environment.supported_precision(asked, device) == used
    needs = {"16-mixed": "a GPU", "bf16-mixed": "a processor that computes in bfloat16"}
    told = "" if used == asked else f"{asked} needs {needs[asked]}: using {used} instead"
    assert environment.describe_substitute(asked, device) == told
    assert (environment.autocast_dtype(asked, device) is None) == (used == "32-true")


@pytest.mark.parametrize(
    ("has", "computes"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "arm64", "neon": True, "bf16": True}, True),
        ({"architecture": "arm64", "neon": True, "bf16": False}, False),
    ],
)
def test_processors_that_imitate_bfloat16(has: dict[str, Any], computes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert attacks.computes_in_bfloat16("cpu") == computes
    assert attacks.computes_in_bfloat16("cuda")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    for machine, where, name in (
        ("x86_64", torch.cpu, "_is_avx512_bf16_supported"),
        ("aarch64", torch.ops.mkldnn, "_is_mkldnn_bf16_supported"),
    ):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        for older in (True, False):
            monkeypatch.setattr(where, name, lambda older=older: older, raising=False)
            assert attacks.computes_in_bfloat16("cpu") == older


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("name", ["fgsm", "fgsm-rs"])
def test_a_pass_in_bf16_gives_the_same_signs(name: str, request: pytest.FixtureRequest) -> None:
    images, labels = images_and_labels(300, seed=5)
    model = trained("fgsm")
    full, half = (attacks.get(name)(model, images, labels, epsilon=0.03, precision=p) for p in (None, "bf16"))
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert float(((full - images).sign() == (half - images).sign()).float().mean()) > 0.95
    assert abs(accuracy(model, full, labels) - accuracy(model, half, labels)) <= 0.01
    request.getfixturevalue("no_bfloat16")
    imitated = attacks.get(name)(model, images, labels, epsilon=0.03, precision="bf16")
    assert torch.equal(imitated, full), "in float32 there"


@pytest.mark.sample("apgd-ce-0.01")
@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize(("name", "loss"), [("pgd", 0.01), ("apgd-ce", 0.01), ("apgd-margin", 0.01), ("square", 0.04)])
def test_a_search_in_bf16_claims_nothing_that_is_not_so(name: str, loss: float) -> None:
    images, labels = (t[:150] for t in images_and_labels(300, seed=5))
    model = trained("fgsm")
    option: dict[str, Any] = {"queries": 100} if name == "square" else {"steps": 20}
    option |= {"stop_when_wrong": True} if name == "pgd" else {}
    full, half = (attacks.get(name)(model, images, labels, epsilon=0.04, precision=p, **option) for p in (None, "bf16"))
    assert not torch.equal(full, half)
    assert accuracy(model, half, labels) <= accuracy(model, full, labels) + loss
    report = attacks.worst_case_report(model, images, labels, epsilon=0.04, precision="bf16", steps=10, queries=60)
    assert report.accuracy == pytest.approx(accuracy(model, report.images, labels))
