"""Fixtures shared by all tests. Real data is used in place and never copied into the repository."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pack import Pack

os.environ.setdefault("OMP_NUM_THREADS", "2")
DATA = Path(os.environ.get("TRUSTCXR_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


# While everything is imported there is no garbage to look for, over and over: a fifth of the time. What was imported
# stays to the end, and is not looked through again.
gc.disable()


def pytest_collection_finish() -> None:
    """Look for garbage from now on, in what tests make."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the cases as `full` that `sample` leaves out or that are `expensive`."""
    named: dict[str, set[str]] = {}
    for item in items:
        test, _, case = item.nodeid.removesuffix("]").partition("[")
        sample, expensive = item.get_closest_marker("sample"), item.get_closest_marker("expensive")
        if (sample and case not in sample.args) or (expensive and case in expensive.args):
            item.add_marker(pytest.mark.full)
        for marker in filter(None, (sample, expensive)):
            named.setdefault(test, set(marker.args)).discard(case)
    lost = {test: cases for test, cases in named.items() if cases}
    if lost and not any("::" in arg for arg in config.args):
        raise pytest.UsageError(f"sample and expensive name cases that do not exist: {lost}. Name others.")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep decoded images of the tests out of the user's cache; one cache a test session, for all that it shares."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUSTCXR_CACHE", str(tmp_path_factory.getbasetemp() / "trustcxr-cache"))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Give each test the same random numbers in each run: what fails once fails again."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Inputs that all processes of this session share."""
    base = tmp_path_factory.getbasetemp()
    return Pack((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pack")


@pytest.fixture(scope="module")
def radiographs(pack: Pack) -> tuple[object, object]:
    """48 images to train on and 24 to validate, 32 pixels."""
    return pack.training_images()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from browser import chromium

    with chromium() as found:
        yield found


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 is used where it is asked for, also by a processor that only imitates it."""
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)


@pytest.fixture
def no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 is used nowhere."""
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """The progress bars that were closed so far: what they say, how much was done and of how much."""
    from trustcxr.console import Progress

    found: list[tuple[str, int, int]] = []
    closed = Progress.__exit__

    def note(bar: Progress, *problem: object) -> None:
        found.append((bar.description, bar.done, bar.total))
        closed(bar, *problem)

    monkeypatch.setattr(Progress, "__exit__", note)
    return found


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without their drawings, for tests that ask for words and tables: matplotlib takes seconds for each page."""
    from trustcxr.report.figures import svg

    monkeypatch.setattr(svg, "render_inline", lambda *_: "")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds covidqu-mini, external-cxr, ct-mini and raw-samples."""
    if not (DATA / "covidqu-mini").is_dir():
        pytest.skip(f"real X-rays are not at {DATA}: set TRUSTCXR_DATA")
    return DATA


@pytest.fixture(scope="session")
def covidqu(real_data: Path) -> Path:
    """The real COVID-QU-Ex subset."""
    return real_data / "covidqu-mini"
