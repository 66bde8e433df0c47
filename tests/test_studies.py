"""Studies and the README: pages and figures are those of their CSV files, and so is every number of every document."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from studies import build

from trustcxr.recipes.study_recipe import load_study

ROOT = Path(__file__).parents[1]
STUDIES, ZOO = ROOT / "studies", ROOT / "src/trustcxr/zoo"
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(STUDIES.rglob("README.md"))]
# Settings, not results: the level of intervals, the limits of a verdict and of an entry check.
SETTINGS = {"95", "90", "80", "50", "5"}
WITHOUT_FIGURE = {"formats", "image-checks", "measurements", "serving", "shortcuts"}  # tables alone
NUMBER = r"[+-]?\d+(?:\.\d+)?"
INTERVAL = re.compile(rf"({NUMBER}) ?(?:%|points)? ?\[({NUMBER}) ?%?, ({NUMBER}) ?%?\]")
PERCENT = re.compile(rf"(?<![\d.\w-])({NUMBER}) ?%")


def written_forms(value: object) -> set[str]:
    """Return a cell of a CSV file as a document may write it: as it is or as percent, with up to four digits."""
    try:
        number = float(str(value))
    except ValueError:
        return set(re.findall(NUMBER, str(value)))
    return {f"{scale * number:.{digits}f}".replace("-0.000", "0.000") for scale in (1, 100) for digits in range(5)}


def claims(text: str) -> Iterator[tuple[str, ...]]:
    """Yield the numbers of a text with their intervals, and those in percent, outside its code and its made tables."""
    text = re.sub(r"^\| `covid-.*$", "", text, flags=re.M)  # the trained models: see below
    text = re.sub(r"^```.*?^```$|<!-- table .*?<!-- end -->|`[^`\n]*`", "", text, flags=re.M | re.S)
    for value, low, high in INTERVAL.findall(text):
        yield value.lstrip("+"), low.lstrip("+"), high.lstrip("+")
    for value in PERCENT.findall(INTERVAL.sub("", text)):
        if value not in SETTINGS:
            yield (value,)


def unknown_claims(text: str, rows: list[list[set[str]]]) -> list[tuple[str, ...]]:
    """Return the claims of a document that no row of a CSV file holds."""

    def is_known(claim: tuple[str, ...]) -> bool:
        return any(all(any(n in cell for cell in row) for n in claim) for row in rows)

    return [claim for claim in claims(text) if not is_known(claim)]


def test_every_number_of_a_document_is_in_a_csv_file_of_a_study() -> None:
    files = list(STUDIES.glob("*/*.csv"))
    assert len(files) > 10
    tables = [pd.read_csv(path, dtype=str).fillna("") for path in files]
    rows = [[written_forms(cell) for cell in row if cell] for table in tables for row in table.itertuples(index=False)]
    texts = {page: page.read_text(encoding="utf-8") for page in DOCUMENTS}
    assert sum(len(list(claims(text))) for text in texts.values()) > 15
    wrong = {page.relative_to(ROOT).as_posix(): unknown_claims(text, rows) for page, text in texts.items()}
    assert {page: found for page, found in wrong.items() if found} == {}
    assert unknown_claims("It has 67.5 % [63.4, 71.4], and 95 % of nothing.", rows) == []
    assert unknown_claims("It has 67.5 % [63.4, 71.5] and 12.3456 %.", rows) == [("67.5", "63.4", "71.5"), ("12.3456",)]


def test_a_changed_csv_file_makes_a_page_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(STUDIES / "folds", tmp_path / "folds")
    monkeypatch.setattr(build, "STUDIES", tmp_path)
    assert build.is_current("folds")
    table = tmp_path / "folds/results.csv"
    table.write_text(table.read_text().replace("0.8234510", "0.8244510"))
    assert not build.is_current("folds")
    build.build_study("folds")
    assert build.is_current("folds")
    assert "82.4 [81.3" in (tmp_path / "folds/README.md").read_text()


@pytest.mark.parametrize("study", build.study_names())
def test_a_study_is_that_of_its_csv_files_small_and_says_what_it_does_not_show(study: str) -> None:
    assert build.is_current(study), "run: python -m studies.build"
    folder = STUDIES / study
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 60
    for part in ("**Question.**", "**Answer.**", "## What it does not show", "Not for diagnosis"):
        assert part in page, part
    assert len((folder / "make.py").read_text().splitlines()) <= 100
    assert list(folder.glob("*.csv"))
    figure = folder / "figure.png"
    assert study in WITHOUT_FIGURE or ("](figure.png)" in page and figure.stat().st_size < 60_000)
    for recipe in folder.glob("recipe.yaml"):
        assert load_study(recipe).name == study


def test_a_printed_table_becomes_the_csv_file_of_the_same_table() -> None:
    make = build.load_make("measurements")
    for name in ("audit-times", "ray-two-nodes"):
        table = pd.read_csv(STUDIES / "measurements" / f"{name}.csv", dtype=str)
        printed = make.make_tables({name: table})[name]
        assert make.read_printed(f"# A page\n\n{printed}\nThe end").equals(table), name


def test_the_studies_have_little_code_and_stand_in_the_list() -> None:
    assert sum(len(path.read_text().splitlines()) for path in STUDIES.rglob("*.py")) <= 1500
    index = (STUDIES / "README.md").read_text(encoding="utf-8")
    assert [name for name in build.study_names() if f"({name}/README.md)" not in index] == []
    openings = pd.read_csv(STUDIES / "test-openings.csv").query("images != 'ct-mini'")
    for page in STUDIES.rglob("README.md"):
        for count in re.findall(r"opened (?:\[)?(\d+) times", page.read_text(encoding="utf-8")):
            assert int(count) == len(openings), page


def test_the_readme_is_short_and_each_finding_links_a_study_that_has_its_numbers() -> None:
    assert len(README.splitlines()) <= 130
    assert len(README.split()) <= 1300
    section = README.split("## What was found\n")[1].split("\n## ")[0]
    findings = re.split(r"\n- ", "\n" + section)[1:]
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
    rows = [line.strip("|").split("|") for line in README.splitlines() if "| `covid-" in line]
    assert {row[0].strip("` ") for row in rows} == {path.stem for path in ZOO.glob("*.json")}
    for row in rows:
        audit = json.loads((ZOO / f"{row[0].strip('` ')}.json").read_text())["audit"]
        shares = {(figure["attack"], round(figure["epsilon"], 9)): figure["accuracy"] for figure in audit["figures"]}
        for cell, key in zip(row[2:], (("clean", 0), ("worst-case", 0.02), ("certified", 0.02)), strict=False):
            share = shares.get(key)
            expected = [f"{100 * number:.1f}" for number in (share["value"], *share["ci"])] if share else []
            assert re.findall(r"\d+(?:\.\d+)?", cell) == expected, (row[0], key)
