"""The front door: light to import, light to ask for help, and the names that it promises."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

import trustcxr as tx

HEAVY = ("torch", "pandas", "sklearn", "matplotlib", "timm", "pytorch_lightning", "scipy", "PIL")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def seconds(code: str, tries: int = 5) -> float:
    """Processor seconds of the quickest of some fresh processes; the wall clock would measure the neighbours too."""
    spent = f"import time\nstart = time.process_time()\n{code}\nprint(time.process_time() - start)"
    return min(float(python(spent).splitlines()[-1]) for _ in range(tries))


def test_import_takes_no_time() -> None:
    assert seconds("import trustcxr") < 0.5


@pytest.mark.slow
def test_help_takes_no_time() -> None:
    assert seconds(HELP) < 0.5


HELP = (
    "import sys, contextlib, io; sys.argv = ['trustcxr', '--help']\n"
    "from trustcxr import cli\n"
    "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): cli.main()\n"
)


@pytest.mark.parametrize("code", ["import trustcxr", "import trustcxr.cli", HELP], ids=["import", "cli", "help"])
def test_nothing_heavy_is_imported(code: str) -> None:
    loaded = python(f"{code}\nimport sys; print(*[m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded.strip() == ""


def test_promised_names_are_there() -> None:
    from trustcxr.data import load_dataset
    from trustcxr.evaluation.trained_run import load_run

    assert tx.load_run is load_run
    assert tx.load_dataset is load_dataset
    assert callable(tx.attacks.fgsm)
    assert callable(tx.attacks.pgd)
    assert callable(tx.explain.grad_cam)
    assert len(tx.models.PAPER_MODELS) == 21
    for name in tx.__all__:
        assert getattr(tx, name) is not None
        assert name in dir(tx)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'trustcxr' has no attribute 'atacks'"):
        _ = tx.atacks


@pytest.mark.slow
def test_lazy_names_work_in_a_fresh_process() -> None:
    code = "import trustcxr as tx; from trustcxr import load_dataset; print(tx.attacks.fgsm.__name__)"
    assert python(code).strip() == "fgsm"


def test_version_is_one_number() -> None:
    from importlib.metadata import version

    assert tx.__version__ == version("trustcxr")
    assert "Not for diagnosis" in tx.NOTICE


def test_wall_clock_of_an_import_is_short_when_the_machine_is_idle() -> None:
    """Only the quickest of several counts, so that a busy machine does not fail the test."""
    started = []
    for _ in range(5):
        before = time.perf_counter()
        python("import trustcxr")
        started.append(time.perf_counter() - before)
    bare = min(_bare() for _ in range(5))
    assert min(started) - bare < 0.5


def _bare() -> float:
    before = time.perf_counter()
    python("pass")
    return time.perf_counter() - before


@pytest.mark.parametrize("name", ["model", "attack"])
def test_an_issue_form_asks_for_what_is_needed_once_each(name: str) -> None:
    import yaml

    form = yaml.safe_load((Path(__file__).parents[1] / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert {"name", "description", "body"} <= form.keys()
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    ids = [part["id"] for part in asked]
    assert len(set(ids)) == len(ids)
    assert all(part["type"] in ("input", "textarea", "checkboxes", "dropdown") for part in asked)
    assert all(part["attributes"]["label"] for part in asked)
    assert {"model": {"model-file", "where", "training"}, "attack": {"where", "epsilon", "how"}}[name] <= set(ids)


def test_hints_name_an_extra_of_the_package_wherever_it_was_installed_from() -> None:
    import re
    from importlib.metadata import metadata

    text = "".join(path.read_text(encoding="utf-8") for path in Path(tx.__file__).parent.rglob("*.py"))
    named = set(re.findall(r"pip install[ \"\n]*'trustcxr\[(\w+)\]'", text))
    assert {"serve", "onnx", "dicom", "weights"} <= named <= set(metadata("trustcxr").get_all("Provides-Extra") or ())
    assert "'.[" not in text, "that works in a clone alone"


def test_attacks_and_saliency_take_any_module() -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten())
    model.append(torch.nn.Linear(4 * 64, 3))
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    assert tx.attacks.pgd(model, images, labels, epsilon=0.02, steps=2).shape == images.shape
    assert tx.explain.grad_cam(model, images, layer="1").shape == (2, 8, 8)
