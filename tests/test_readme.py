"""The README is short, and its numbers are those of the files that it links."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ZOO = ROOT / "src/trustcxr/zoo"


def section(name: str) -> str:
    return README.split(f"## {name}\n")[1].split("\n## ")[0]


def test_it_is_read_in_minutes() -> None:
    assert len(README.splitlines()) <= 130
    assert len(README.split()) <= 1300
    assert "Not for diagnosis" in README


def test_every_finding_links_a_study_that_has_its_numbers() -> None:
    findings = re.split(r"\n- ", "\n" + section("What was found"))[1:]
    assert len(findings) == 6
    for text in findings:
        study = ROOT / re.findall(r"\]\((studies/[^)/]+)/README.md\)", text)[0]
        held = " ".join(path.read_text(encoding="utf-8") for path in [*study.glob("*.csv"), study / "README.md"])
        cells = {float(value) for value in re.findall(r"(?<![\w.])-?\d*\.\d+", held)}
        forms = {f"{scale * cell:.{digits}f}" for cell in cells for scale in (1, 100) for digits in (1, 3)}
        numbers = set(re.findall(r"\d+\.\d+", re.sub(r"at 0\.02", "", text)))
        assert numbers, text
        assert numbers <= forms, numbers - forms


def test_the_table_of_trained_models_has_the_figures_of_their_audits() -> None:
    rows = {
        row[0].strip("` "): row
        for row in (line.strip("|").split("|") for line in README.splitlines() if "| `covid-" in line)
    }
    assert set(rows) == {path.stem for path in ZOO.glob("*.json")}
    for name, cells in rows.items():
        audit = json.loads((ZOO / f"{name}.json").read_text())["audit"]
        for cell, attack, epsilon in (
            (cells[2], "clean", 0.0),
            (cells[3], "worst-case", 0.02),
            (cells[4], "certified", 0.02),
        ):
            figures = [
                row for row in audit["figures"] if row["attack"] == attack and abs(row["epsilon"] - epsilon) < 1e-9
            ]
            if not figures:
                assert not re.findall(r"\d", cell)
                continue
            accuracy = figures[0]["accuracy"]
            expected = [f"{100 * number:.1f}" for number in (accuracy["value"], *accuracy["ci"])]
            assert re.findall(r"\d+\.\d+", cell) == expected, (name, attack)
