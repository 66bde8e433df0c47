"""An audit's report shows all that audit.json holds, which is as its schema says, and what a committee asks for."""

# ruff: noqa: F401, F811

import json
import re
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from browser import chromium, opened
from test_audit_command import CLASSES, Brightness, _short, few_steps, greys, model_file
from test_audit_tables import Scores, answers, table
from test_cli import run
from test_report import Page
from trustcxr.audit import facts
from trustcxr.audit import run_audit as audits
from trustcxr.audit.multilabel import STATES
from trustcxr.data import load_dataset
from trustcxr.data.phantom import render_image, write_files
from trustcxr.report import audit_html
from trustcxr.report.tables.audit_rows import GUIDELINES, MAKER, NOT_MEASURED, build_checklist
from trustcxr.statistics import ratio_interval, wilson
from trustcxr.storage import layout
from trustcxr.storage.schemas import AuditDocument, OperatingPoint, Share, read_schema

SCHEMA = Path(__file__).parents[1] / "docs" / "schema" / "audit.schema.json"


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """audit.json by name: of a network, of a table of scores, and of the scores of two findings; on masked images."""
    root = tmp_path_factory.mktemp("masked")
    images = write_files.write(root / "phantom", {"Train": 1, "Val": 1, "Test": 8}, size=32)
    random, ids = np.random.default_rng(0), load_dataset(images, "Test", 16).sample_ids
    scores = {str(name): random.dirichlet([1, 1, 1]) for name in ids}
    findings = {"kind": "sigmoid", "classes": ["Ill", "Severe"], "thresholds": 0.5}
    models = {
        "network": model_file(root / "a", Brightness(), classes=render_image.CLASSES),
        "scores": table(root / "b", scores, classes=list(render_image.CLASSES)),
        "findings": table(root / "c", {name: row[:2] for name, row in scores.items()}, **findings),
    }
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch)
        audits.audit(models["network"], images, root / "network", attacks=["fgsm", "pgd"], epsilons=[0.02])
        audits.audit(models["scores"], images, root / "scores")
        labels = {"COVID-19": "Ill|Severe", "Non-COVID": "Ill", "Normal": "Normal"}
        audits.audit(models["findings"], images, root / "findings", labels=labels)
    return {name: root / name / "audit.json" for name in models}


def section(page: Page, title: str, until: str) -> str:
    """The words between two headings."""
    return " ".join(page.text.rpartition(f"\n{title}\n")[2].partition(f"\n{until}\n")[0].split())


@pytest.mark.parametrize("name", ["network", "scores", "findings"])
def test_an_audit_is_as_its_schema_says(name: str, masked: dict[str, Path]) -> None:
    content, schema = json.loads(masked[name].read_text()), json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    checks = jsonschema.Draft202012Validator(schema)
    assert [f"{found.json_path}: {found.message}" for found in checks.iter_errors(content)] == []
    assert content.keys() <= schema["properties"].keys(), "what stands there is described"
    wrong = {"entry_checks": {}, "attacks": [1], "clean": [], "verdict": {"sound": "maybe"}, "model": "resnet"}
    assert [part for part in wrong if checks.is_valid(content | {part: wrong[part]})] == []


@pytest.mark.parametrize("name", ["network", "scores", "findings"])
def test_the_images_as_they_are_have_all_their_figures(name: str, masked: dict[str, Path]) -> None:
    document = read_schema(AuditDocument, masked[name])
    page, clean = Page(audit_html.render(document)), document.clean
    assert not page.open
    _, (_, accuracy, balanced, constant, f1, auroc, error, plug_in, n) = page.tables["Unperturbed images"]
    figures = [clean.accuracy, clean.balanced_accuracy, clean.f1_macro, clean.auroc_macro, clean.ece]
    assert [cell[0] for cell in (accuracy, balanced, f1, auroc, error)] == [found.value for found in figures]
    assert (constant, plug_in, n) == ([clean.constant_answer], [clean.ece_plug_in], [clean.n])
    words = section(page, "Unperturbed images", "Operating points")
    for found in figures[:2]:
        low, high = found.interval or (0, 0)
        assert f"{100 * low:.1f} to {100 * high:.1f}" in words
    _, *rows, mean = page.tables[f"Per class, {document.model.name}"]
    for found, row in zip(clean.per_class.values(), rows, strict=True):
        assert row[1:] == [[figure] for figure in (found.precision.value, found.recall.value, found.f1.value, found.n)]
    assert mean[-1] == [clean.n]
    assert "does not show the certainty on one image" in words
    answers = STATES if name == "findings" else render_image.CLASSES
    matrix = r"<tr><th scope=\"row\">([^<]*)</th>((?:<td style=[^>]*>\d+ <small>[^<]*</small></td>)+)</tr>"
    rows = re.findall(matrix, audit_html.render(document))
    counts = [[int(count) for count in re.findall(r">(\d+) <small>", cells)] for _, cells in rows]
    assert ([name for name, _ in rows], counts) == (list(answers), clean.confusion)
    assert ("Each finding on each image is one decision" in words) == (name == "findings")


def test_whether_robustness_is_real_and_what_is_read_without_lungs_stand_there(masked: dict[str, Path]) -> None:
    document = read_schema(AuditDocument, masked["network"])
    page = Page(audit_html.render(document))
    under, reasons = section(page, "Under attack", "Corrupted images"), "; ".join(document.masking.reasons)
    for words in ("Are the gradients masked?", reasons[0].upper() + reasons[1:], "“No sign” is no proof"):
        assert words in under
    assert len(document.shortcuts) > 5
    _, whole, *rows = page.tables["Shortcuts"]
    assert whole[1][0] == document.clean.accuracy.value
    parts = [[p.accuracy, p.balanced_accuracy, p.constant_answer, p.n] for p in document.shortcuts.values()]
    assert [[cell[0] for cell in row[1:]] for row in rows] == [[a.value, b.value, c, n] for a, b, c, n in parts]
    told = section(page, "Shortcuts", "Subgroups")
    for accuracy, *_ in parts:
        low, high = accuracy.interval
        assert f"{100 * low:.1f} to {100 * high:.1f}" in told
    assert "a fall alone does not show that the model reads the lungs" in told
    document.masking = document.masking.model_copy(update={"masked": None, "reasons": ["withdrawn: it missed all"]})
    under = section(Page(audit_html.render(document)), "Under attack", "Corrupted images")
    assert "Withdrawn: it missed all" in under
    assert "not checked" in under


@pytest.mark.parametrize("name", ["scores", "findings"])
def test_what_was_not_measured_has_no_part(name: str, masked: dict[str, Path]) -> None:
    page = Page(audit_html.render(read_schema(AuditDocument, masked[name])))
    assert "Are the gradients masked?" not in page.text
    assert not {"Shortcuts", "Verdict on masked gradients"} & page.tables.keys()
    page = Page(audit_html.render(AuditDocument.model_validate({"classes": ["A", "B"]})))
    assert not {"Unperturbed images", "Per class, ", "Shortcuts"} & page.tables.keys()
    assert "Confusion matrix" not in page.text


@pytest.fixture
def document(audited: Path) -> AuditDocument:
    return read_schema(AuditDocument, audited / "audit.json")


@pytest.fixture
def audited(greys: Path, tmp_path: Path, answers: Scores) -> Path:
    """The audit of a list with patients, sex and age, two other splits, a broken image and one of another class."""
    rows, folder = [], Path(shutil.copytree(greys, tmp_path / "images"))
    for k, name in enumerate(answers):
        shade = name.rstrip(".png0123456789")
        row = {"path": f"{shade}/{name}", "class": shade, "split": "Val" if k % 12 == 11 else "Test"}
        rows.append(row | {"patient": f"p{k // 2}", "sex": "FM"[k % 2], "age": 20 + k, "view": "PA"})
    (folder / "dark" / "broken.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "dark" / "odd.png")
    rows += [rows[0] | {"path": "dark/broken.png"}, rows[0] | {"path": "dark/odd.png", "class": "odd", "patient": None}]
    pd.DataFrame(rows).to_csv(folder / "list.csv", index=False)
    model = table(tmp_path / "model", {name: row for name, row in answers.items() if name != "bright1.png"})
    audits.audit(model, folder / "list.csv", tmp_path / "out", labels={"odd": None})
    return tmp_path / "out"


def test_the_flow_counts_every_image_and_table_1_has_age_sex_and_view(document: AuditDocument) -> None:
    found = document.facts
    assert [(step.n, step.left_out) for step in found.flow] == [(38, 0), (35, 3), (34, 1), (33, 1), (32, 1)]
    assert [step.why for step in found.flow][1:3] == ["in another split", "label left out, or unlike any class"]
    assert (found.patients, found.without_patient, found.classes) == (18, 0, dict.fromkeys(CLASSES, 11))
    assert len(found.date) == 10
    assert {"trustcxr", "torch"} <= found.versions.keys()
    assert found.hardware.cores
    by = {(row.column, row.value): row for row in found.characteristics}
    assert by["sex", "F"].by_class == {"dark": 6, "grey": 6, "bright": 6}
    assert by["view", "PA"].n == 33
    assert tuple(by["age", "median"].quartiles["dark"]) == (22.5, 25, 27.5)
    assert sum(row.n for row in found.characteristics if row.column == "age" and row.by_class) == 33
    assert len(Page(audit_html.render(document)).tables["Table 1"]) == len(found.characteristics) + 1


def test_predictive_values_at_the_images_own_prevalence_are_those_of_the_images(document: AuditDocument) -> None:
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
    random, hits, draws = np.random.default_rng(0), np.zeros(2), 1000
    for _ in range(draws):
        found, cleared = random.binomial(100, 0.8) / 100, random.binomial(100, 0.9) / 100
        ends = [wilson(share, 100) for share in (found, 1 - cleared, 1 - found, cleared)]
        up = ratio_interval(found, ends[0], 1 - cleared, ends[1])
        down = ratio_interval(1 - found, ends[2], cleared, ends[3])
        shares = {"sensitivity": Share(value=found), "specificity": Share(value=cleared)}
        shares |= {"likelihood_positive": Share(ci=tuple(up)), "likelihood_negative": Share(ci=tuple(down))}
        point = OperatingPoint(finding="a", attack="clean", **shares)
        (row,) = facts.predictive_values([point], {"a": 0.1})
        for k, (share, truth) in enumerate(((row.ppv, 8 / 17), (row.npv, 81 / 83))):
            hits[k] += share.interval[0] <= truth <= share.interval[1]
    assert hits / draws == pytest.approx([0.95, 0.95], abs=0.02)


@pytest.mark.slow
def test_wrong_answers_are_listed_the_surest_first(audited: Path, document: AuditDocument, tmp_path: Path) -> None:
    wrong = document.failures
    assert [f.probability for f in wrong] == sorted((f.probability for f in wrong), reverse=True)
    assert all(f.label != f.answer for f in wrong)
    assert len(wrong) == sum(sum(row) for row in document.clean.confusion) - np.trace(document.clean.confusion)
    with np.load(audited / layout.FAILURES_FILE) as arrays:
        assert set(arrays["sample_id"]) == {f.sample_id for f in wrong}
        assert arrays["image"].shape == (len(wrong), 16, 16)
    assert audit_html.render(document, audited).count('<img src="data:image/png') == len(wrong)
    command = (
        "audit",
        tmp_path / "model" / "model.yaml",
        "--data",
        tmp_path / "images" / "list.csv",
        "--out",
        audited,
        "--label",
        "odd=",
    )
    run(*command, "--no-pictures")
    assert not (audited / layout.FAILURES_FILE).exists()
    assert "<img" not in (audited / "report.html").read_text()
    run(*command)
    assert (audited / "report.html").read_text().count("<img") == len(wrong)


@pytest.mark.slow
def test_the_checklist_has_a_figure_or_asks_the_maker(audited: Path, document: AuditDocument) -> None:
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
    content = json.loads((audited / "audit.json").read_text())
    content["model"]["reported"] = {"clean": 0.99}
    _, row = Page(audit_html.render(AuditDocument.model_validate(content))).tables["Claims"]
    assert [cell[0] for cell in row[1:3]] == [0.99, document.clean.accuracy.value]


@pytest.mark.slow
def test_the_page_prints_on_a4_with_page_numbers_and_what_is_folded(audited: Path, tmp_path: Path) -> None:
    audit_html.write(read_schema(AuditDocument, audited / "audit.json"), audited)
    rules = "[...document.styleSheets].flatMap(s => [...s.cssRules]).flatMap(r => [...(r.cssRules ?? [])])"
    rules += ".filter(r => r instanceof CSSPageRule).map(r => r.cssText).join()"
    with chromium() as browser, opened(browser, (audited / "report.html").as_uri()) as found:
        folded = found.page.locator("details.printed table")
        assert folded.count() > 2
        assert not any(folded.nth(k).is_visible() for k in range(folded.count()))
        found.page.emulate_media(media="print")
        assert all(folded.nth(k).is_visible() for k in range(folded.count()))
        assert {"page", "pages"} <= set(re.findall(r"counter\((\w+)\)", found.page.evaluate(rules)))
        found.page.pdf(path=str(tmp_path / "page.pdf"), prefer_css_page_size=True)
    boxes = set(re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", (tmp_path / "page.pdf").read_bytes()))
    assert [tuple(round(float(side) / 72 * 25.4) for side in box) for box in boxes] == [(210, 297)]
