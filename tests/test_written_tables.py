"""Tables of the page as CSV, LaTeX and Markdown, the page of a single run, and where runs were trained."""

import csv
import io
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from study_fixture import make_study
from test_cli import complaint, run
from trustcxr import report
from trustcxr.report import formatting, leaderboard, model_card, study_html
from trustcxr.report.load import load_report
from trustcxr.report.tables import provenance
from trustcxr.report.tables import table as cells
from trustcxr.report.tables.table import Cell, Table
from trustcxr.storage import atomic, segments
from trustcxr.storage.schemas import AuditDocument, AuditedModel, Classification, Share


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"), panels=0, models=("ResNet18",))


@pytest.fixture(scope="module")
def tables(study: Path) -> Path:
    run("report", study, "--tables")
    return study / cells.FOLDER


def test_every_table_of_the_page_is_there_as_csv_latex_and_markdown(study: Path, tables: Path) -> None:
    found = {table.name: table for table in cells.find_tables(study_html.gather_parts(load_report(study)))}
    assert {"leaderboard", "accuracy-at-each-epsilon", "training", "per-class-resnet18-fgsm"} <= set(found)
    names = [f"{name}.{ending}" for name in found for ending in ("csv", "tex")]
    assert sorted(path.name for path in tables.iterdir()) == sorted([*names, "tables.md"])
    text = (study / "report.html").read_text(encoding="utf-8")
    together = (tables / "tables.md").read_text(encoding="utf-8")
    for name, table in found.items():
        rows = list(csv.reader((tables / f"{name}.csv").open(encoding="utf-8")))
        assert len(rows) == len(table.rows) + 1
        for row, line in zip(rows[1:], table.rows, strict=True):
            large = (not title.endswith("(small print)") for title in rows[0])
            assert [cell.text for cell in line] == list(itertools.compress(row, large))
        latex = (tables / f"{name}.tex").read_text(encoding="utf-8")
        assert latex.count(r"\\") == len(table.rows) + 1
        assert all(cells.escape_latex(cell.text) in latex for line in table.rows for cell in line)
        assert f"## {table.title}\n\n{table.markdown()}\n" in together
        assert f'aria-label="{table.title}"' in text


TABLE = Table("A title: x/y", ["A_b", "Share, %"], [[Cell("x & y|z\n<b>"), Cell("82.3", "−1.0 to 84.0", "< chance")]])


def test_each_writer_escapes_what_its_format_would_take_for_its_own() -> None:
    assert TABLE.name == "a-title-x-y"
    latex = TABLE.latex()
    assert r"A\_b & Share, \% \\" in latex
    assert r"x \& y|z $<$b$>$ & 82.3 {\scriptsize $-$1.0 to 84.0; $<$ chance} \\" in latex
    assert r"\toprule" in latex
    lines = ["| --- | --- |", r"| x & y\|z &lt;b> | 82.3 (−1.0 to 84.0; < chance) |"]
    assert TABLE.markdown().splitlines()[1:] == lines
    assert "x &amp; y|z\n&lt;b&gt;" in TABLE.html()
    rows = [["A_b", "Share, %", "Share, % (small print)"], ["x & y|z\n<b>", "82.3", "−1.0 to 84.0; < chance"]]
    assert list(csv.reader(io.StringIO(TABLE.csv()))) == rows


def test_two_tables_of_one_name_are_two_files(tmp_path: Path) -> None:
    paths = cells.write_tables([TABLE, TABLE], tmp_path, page="all.md", opening="# All")
    names = ["all.md", "a-title-x-y.csv", "a-title-x-y.tex", "a-title-x-y-2.csv", "a-title-x-y-2.tex"]
    assert [path.name for path in paths] == names
    assert paths[0].read_text(encoding="utf-8").startswith("# All\n\n## A title: x/y\n\n| A_b |")


def test_a_p_value_is_on_the_side_of_0_05_on_which_it_lies() -> None:
    values = (0.2, 0.0512, 0.0496, 0.04999, 0.0046, 0.0001)
    said = ["0.20", "0.051", "0.0496", "0.04999", "0.0046", "<\u00a00.001"]
    assert list(map(formatting.p_value, values)) == said


def test_no_name_becomes_a_formula_of_a_spreadsheet_and_figures_stay_figures() -> None:
    bad = ("=HYPERLINK(1)", "@SUM(1)", "-2+3+cmd", "+1=1", "\t=1")
    figures = ("+10.0", "-0.5", "−3.0", "-1e-05", "-", "-3.0% to 4.0%", "A-B", "")
    table = Table("t", ["=A"], [[Cell(text, "=B()")] for text in (*bad, *figures)])
    head, *lines = csv.reader(io.StringIO(table.csv()))
    assert head == ["'=A", "'=A (small print)"]
    assert [line[0] for line in lines] == [*(f"'{text}" for text in bad), *figures]
    assert {line[1] for line in lines} == {"'=B()"}
    audit = AuditDocument(model=AuditedModel(name="@SUM(1)"), clean=Classification(accuracy=Share(value=-0.5)))
    whole = leaderboard.Board("", "=data", 1, (), (leaderboard.Row("=f", audit),), ())
    line = next(csv.DictReader(io.StringIO(leaderboard.to_csv(whole))))
    assert (line["model"], line["folder"], line["clean"], line["paper"]) == ("'@SUM(1)", "'=f", "-0.5", "")


@pytest.mark.slow
def test_a_single_run_has_a_page_of_its_own(study: Path, tmp_path: Path) -> None:
    one = Path(shutil.copytree(next((study / "runs").iterdir()), tmp_path / "one"))
    (one / "run.yaml").write_text("segments: [{from_epoch: 0, versions: {trustcxr: 0.1.7}}]")
    (one / "model.safetensors").touch()
    assert run("report", one).stdout.strip() == str(one / "report.html")
    text = (one / "report.html").read_text(encoding="utf-8")
    document = json.loads((one / "metrics.json").read_text())
    assert f"The run {document['run']}" in text
    assert f"{100 * document['clean']['accuracy']['value']:.1f}" in text
    assert "created" not in text, "nobody knows when"
    (one / "data-check.json").write_text('{"verdict": "3 images are in two splits."}')
    run("report", one)
    text = (one / "report.html").read_text(encoding="utf-8")
    assert "TrustCXR 0.1.7" in text
    assert "3 images are in two splits." in text, "where the page says that it will be looked for"
    assert "comes from metrics.json, data-check.json and the tables in this folder" in text
    (one / "metrics.json").unlink()
    assert f"this run is not tested yet. First run: trustcxr evaluate {one} --data PATH" in complaint("report", one)


def test_the_card_of_a_run_says_of_its_defence_what_that_uses_and_lets_no_html_through(tmp_path: Path) -> None:
    def card(**content: Any) -> str:
        (tmp_path / "run.yaml").write_text(json.dumps({"name": "m"} | content))
        return model_card.render_card(tmp_path)

    (tmp_path / "model.safetensors").touch()
    options = {"epsilon": 0.02, "steps": 3, "sigma": 0.05}
    shown = {"gaussian": "gaussian, sigma 0.05;", "pgd": "pgd, epsilon 0.02, steps 3;", "standard": "standard;"}
    for name, said in (shown | {"my-own": "my-own, epsilon 0.02;"}).items():
        assert f"- Defence: {said} background" in card(recipe={"defence": {"name": name} | options})
    classes = ["A<script>alert(1)</script>", "B & C"]
    assert "logits of A&lt;script>alert(1)&lt;/script>, B & C\n" in card(classes=classes)


def test_epochs_are_counted_from_one_in_what_people_read(study: Path) -> None:
    found = load_report(study).runs
    column = provenance.training(found).header.index("Best epoch")
    for each, row in zip(found, provenance.training(found).rows, strict=True):
        assert row[column].value == (each.metrics.training.best_epoch or 0) + 1


HERE, THERE = "Processor A", "Processor B"


def trained(run: Path, processor: str, commit: str, *more: str) -> None:
    hardware = {"processor": processor, "accelerator": "none"}
    about = {"versions": {"trustcxr": "1"}, "hardware": hardware, "source": {"commit": commit}}
    later = [about | {"from_epoch": 2, "hardware": hardware | {"processor": name}} for name in more]
    atomic.write_yaml(run / "run.yaml", {"name": run.name, "segments": [about | {"from_epoch": 0}, *later]})


def test_runs_that_were_trained_as_the_last_start_are_not_told(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("a", "b", "damaged")]
    trained(runs[0], HERE, "abcdef0123")
    for other in runs[1:]:
        other.mkdir()
    (tmp_path / "damaged" / "run.yaml").write_text("[")
    here, commit = {"processor": HERE, "accelerator": "none"}, {"commit": "abcdef0123"}
    assert segments.elsewhere(runs, here, {"commit": "fedcba0123"}) == {"from": "abcdef0 (1)"}
    assert segments.elsewhere(runs, here, commit) == {}
    assert segments.elsewhere(runs, here | {"accelerator": "a card"}, commit) == {"on": f"{HERE} (1)"}
    atomic.write_yaml(tmp_path / "b" / "run.yaml", {"name": "never trained"})
    assert segments.elsewhere(runs, here, commit) == {}, "nothing is known of it"
    trained(tmp_path / "a" / "before_refit", THERE, "abcdef0123")  # before its refit
    assert segments.elsewhere(runs, here, commit) == {"on": f"{THERE}, then {HERE} (1), not noted (1)"}


def test_the_page_says_where_its_runs_were_trained(study: Path, tmp_path: Path) -> None:
    study = Path(shutil.copytree(study, tmp_path / "study"))
    document = json.loads((study / "study.json").read_text())
    document |= {"hardware": {"processor": HERE, "accelerator": "none"}, "source": {"commit": "abcdef0123"}}
    (study / "study.json").write_text(json.dumps(document))
    standard, robust = sorted((study / "runs").iterdir(), reverse=True)
    for each in (standard, robust):
        trained(each, HERE, "abcdef0123")
    assert "Runs were trained" not in report.write(study).read_text(encoding="utf-8")
    trained(robust, HERE, "fedcba0123", THERE)
    page = report.write(study).read_text(encoding="utf-8")
    on, commits = f"{HERE} (1), {HERE}, then {THERE} (1)", "abcdef0 (1), fedcba0 (1)"
    assert page.count(on) == page.count(commits) == 2, "among the facts, and in the methods"
    assert f"this is the last start, and runs were trained on {on}, from {commits}." in page
