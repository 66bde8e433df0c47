"""What a committee asks for: images left out, Table 1, predictive values, wrong answers, the checklist."""

# ruff: noqa: F401, F811

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from browser import chromium, opened
from pack import Pack
from test_audit_command import CLASSES, _short, greys
from test_audit_tables import answers, table
from test_cli import complaint, run
from test_report import Page
from trustcxr.attacks import computes_in_bfloat16
from trustcxr.audit import facts, subgroups
from trustcxr.audit import run_audit as audits
from trustcxr.report import audit_html
from trustcxr.report.tables.audit_rows import GUIDELINES, MAKER, NOT_MEASURED, build_checklist
from trustcxr.storage import layout
from trustcxr.storage.schemas import AuditDocument, OperatingPoint, Share, read_schema

PAGE_RULE = """[...document.styleSheets].flatMap(s => [...s.cssRules]).flatMap(r => [...(r.cssRules ?? [])])
    .filter(r => r instanceof CSSPageRule).map(r => r.cssText).join()"""


@pytest.fixture
def listed(greys: Path, tmp_path: Path, answers: dict[str, np.ndarray]) -> Path:
    """A list of the greys with patients, sex and age, two other splits, a broken image and one of another class."""
    rows, folder = [], tmp_path / "images"
    shutil.copytree(greys, folder)
    for k, name in enumerate(answers):
        shade = name.rstrip(".png0123456789")
        row = {"path": f"{shade}/{name}", "class": shade, "split": "Val" if k % 12 == 11 else "Test"}
        rows.append(row | {"patient": f"p{k // 2}", "sex": "FM"[k % 2], "age": 20 + k, "view": "PA"})
    (folder / "dark" / "broken.png").write_bytes(b"no image")
    rows.append(rows[0] | {"path": "dark/broken.png", "patient": "p0"})
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "dark" / "odd.png")
    rows.append(rows[0] | {"path": "dark/odd.png", "class": "odd", "patient": None})
    pd.DataFrame(rows).to_csv(folder / "list.csv", index=False)
    return folder / "list.csv"


@pytest.fixture
def audited(listed: Path, tmp_path: Path, answers: dict[str, np.ndarray]) -> Path:
    model = table(tmp_path / "model", {name: row for name, row in answers.items() if name != "bright1.png"})
    audits.audit(model, listed, tmp_path / "out", labels={"odd": None})
    return tmp_path / "out"


def test_the_flow_counts_every_image_that_was_left_out_and_why(audited: Path) -> None:
    found = read_schema(AuditDocument, audited / "audit.json").facts
    assert [(step.n, step.left_out) for step in found.flow] == [(38, 0), (35, 3), (34, 1), (33, 1), (32, 1)]
    assert [step.why for step in found.flow][1:3] == ["in another split", "label left out, or unlike any class"]
    assert found.patients == 18
    assert found.without_patient == 0
    assert found.classes == dict.fromkeys(CLASSES, 11)
    assert len(found.date) == 10
    assert {"trustcxr", "torch"} <= found.versions.keys()
    assert found.hardware.cores


def test_attacks_that_searched_in_bfloat16_are_named(pack: Pack) -> None:
    expected = ["PGD", "Square"] if computes_in_bfloat16("cpu") else []
    assert read_schema(AuditDocument, pack.audits() / "good" / "audit.json").facts.bfloat16 == expected
    page = (pack.audits() / "good" / "report.html").read_text()
    assert ("bfloat16 for the search of PGD and Square" in page) == bool(expected)


@pytest.mark.slow
def test_table_1_has_age_sex_and_view_by_class(audited: Path) -> None:
    rows = read_schema(AuditDocument, audited / "audit.json").facts.characteristics
    by = {(row.column, row.value): row for row in rows}
    assert by["sex", "F"].by_class == {"dark": 6, "grey": 6, "bright": 6}
    assert by["view", "PA"].n == 33
    low, middle, high = by["age", "median"].quartiles["dark"]
    assert (low, middle, high) == (22.5, 25, 27.5)
    ages = [row for row in rows if row.column == "age" and row.by_class]
    assert sum(row.n for row in ages) == 33
    shown = Page(audit_html.render(read_schema(AuditDocument, audited / "audit.json"))).tables["Table 1"]
    assert len(shown) == len(rows) + 1


def test_predictive_values_at_the_images_own_prevalence_are_those_of_the_images(audited: Path) -> None:
    document = read_schema(AuditDocument, audited / "audit.json")
    point = next(p for p in document.operating_points if p.finding == "dark")
    (found,) = facts.predictive_values([point], {"dark": point.positives / point.n})
    matrix = np.array(document.clean.confusion)
    assert found.ppv.value == pytest.approx(matrix[0, 0] / matrix[:, 0].sum())
    assert found.npv.value == pytest.approx(matrix[1:, 1:].sum() / matrix[:, 1:].sum())
    for share in (found.ppv, found.npv):
        assert share.interval[0] < share.value < share.interval[1]
    (rare,) = facts.predictive_values([point], {"dark": 0.01})
    assert rare.ppv.value < found.ppv.value
    assert rare.npv.value > found.npv.value


def test_the_interval_of_predictive_values_holds_the_truth_at_its_rate() -> None:
    """Sensitivity 0.8 and specificity 0.9 of 100 images each, prevalence 0.1: PPV is 8/17, NPV 81/83."""
    from trustcxr.statistics import ratio_interval, wilson

    random, hits = np.random.default_rng(0), np.zeros(2)
    draws = 1000
    for _ in range(draws):
        found, cleared = random.binomial(100, 0.8) / 100, random.binomial(100, 0.9) / 100
        ends = [wilson(share, 100) for share in (found, 1 - cleared, 1 - found, cleared)]
        up = ratio_interval(found, ends[0], 1 - cleared, ends[1])
        down = ratio_interval(1 - found, ends[2], cleared, ends[3])
        point = OperatingPoint(
            finding="a",
            attack="clean",
            sensitivity=Share(value=found),
            specificity=Share(value=cleared),
            likelihood_positive=Share(ci=(up[0], up[1])),
            likelihood_negative=Share(ci=(down[0], down[1])),
        )
        (row,) = facts.predictive_values([point], {"a": 0.1})
        for k, (share, truth) in enumerate(((row.ppv, 8 / 17), (row.npv, 81 / 83))):
            hits[k] += share.interval[0] <= truth <= share.interval[1]
    assert hits / draws == pytest.approx([0.95, 0.95], abs=0.02)


@pytest.mark.slow
def test_wrong_answers_are_listed_the_surest_first_and_shown_unless_no_pictures_are_wanted(
    audited: Path, listed: Path, tmp_path: Path
) -> None:
    document = read_schema(AuditDocument, audited / "audit.json")
    wrong = document.failures
    assert [f.probability for f in wrong] == sorted((f.probability for f in wrong), reverse=True)
    assert all(f.label != f.answer for f in wrong)
    assert len(wrong) == sum(sum(row) for row in document.clean.confusion) - np.trace(document.clean.confusion)
    with np.load(audited / layout.FAILURES_FILE) as arrays:
        assert set(arrays["sample_id"]) == {f.sample_id for f in wrong}
        assert arrays["image"].shape == (len(wrong), 16, 16)
    assert audit_html.render(document, audited).count('<img src="data:image/png') == len(wrong)
    command = ("audit", tmp_path / "model" / "model.yaml", "--data", listed, "--out", audited, "--label", "odd=")
    run(*command, "--no-pictures")
    assert not (audited / layout.FAILURES_FILE).exists()
    assert "<img" not in (audited / "report.html").read_text()
    run(*command)
    assert (audited / "report.html").read_text().count("<img") == len(wrong)


@pytest.mark.slow
def test_the_checklist_has_a_figure_or_asks_the_maker(audited: Path) -> None:
    document = read_schema(AuditDocument, audited / "audit.json")
    table = build_checklist(document)
    texts = {row[0].text: row[1].text for row in table.rows}
    assert texts["Changes after release"] == MAKER
    assert f"n\u00a0=\u00a0{document.clean.n}" in texts["Accuracy with intervals over patients"]
    assert texts["Number of images, and those left out"].startswith("32 of 38 images")
    assert texts["Attacks, and what is proved"] == NOT_MEASURED
    assert table.header[3:] == list(GUIDELINES)
    empty = {row[0].text: row[1].text for row in build_checklist(AuditDocument()).rows}
    assert set(empty.values()) - {MAKER, NOT_MEASURED} == {empty["Model: version, checksum, input"]}
    audit_html.write(document, audited)
    assert (audited / "checklist.md").read_text().count("\n| ") == len(table.rows) + 2


@pytest.mark.slow
def test_the_makers_claim_stands_beside_what_was_measured(audited: Path) -> None:
    content = json.loads((audited / "audit.json").read_text())
    content["model"]["reported"] = {"clean": 0.99}
    page = Page(audit_html.render(AuditDocument.model_validate(content)))
    _, row = page.tables["Claims"]
    assert [cell[0] for cell in row[1:3]] == [0.99, content["clean"]["accuracy"]["value"]]


def test_sex_and_age_are_crossed_where_both_are_known() -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"Patient Sex": random.choice(["F", "M", ""], 300), "age": random.integers(20, 80, 300)})
    crossed = subgroups.columns_of(frame)["by_Patient Sex and age"]
    known = frame["Patient Sex"] != ""
    assert (crossed[~known] == subgroups.UNKNOWN).all()
    assert set(crossed[known]) == {f"{sex}, {band}" for sex in "FM" for band in ("20 to 39", "40 to 59", "60 to 79")}
    assert not any("and" in name for name in subgroups.columns_of(frame.drop(columns="age")))


@pytest.mark.slow
def test_the_page_prints_on_a4_with_page_numbers_and_what_is_folded(audited: Path, tmp_path: Path) -> None:
    audit_html.write(read_schema(AuditDocument, audited / "audit.json"), audited)
    with chromium() as browser, opened(browser, (audited / "report.html").as_uri()) as found:
        folded = found.page.locator("details.printed table")
        assert folded.count() > 2
        assert not any(folded.nth(k).is_visible() for k in range(folded.count()))
        found.page.emulate_media(media="print")
        assert all(folded.nth(k).is_visible() for k in range(folded.count()))
        rule = found.page.evaluate(PAGE_RULE)
        assert "counter(page)" in rule
        assert "counter(pages)" in rule
        found.page.pdf(path=str(tmp_path / "page.pdf"), prefer_css_page_size=True)
    boxes = set(re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", (tmp_path / "page.pdf").read_bytes()))
    assert [tuple(round(float(side) / 72 * 25.4) for side in box) for box in boxes] == [(210, 297)]
