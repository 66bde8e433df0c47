"""The scripts in examples/ run, and are short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXPECTED = {
    "attack_my_model": "answers that stay under PGD-20 at epsilon 0.02",
    "audit_onnx": "fgsm",
    "robust_model": "the class stays within epsilon 0.02 under",
    "heatmap_against_mask": "of the map lies inside the infection mask",
    "certify": "answers are proved not to change",
}


def test_each_example_is_tested_and_has_at_most_25_lines() -> None:
    scripts = {path.stem: path for path in (ROOT / "examples").glob("*.py")}
    assert set(scripts) == set(EXPECTED)
    for path in scripts.values():
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        assert len(lines) <= 25, path


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, ROOT / "examples" / f"{name}.py"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert EXPECTED[name] in result.stdout, result.stdout
