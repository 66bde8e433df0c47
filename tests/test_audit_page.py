"""Behind its first page an audit's report shows all that audit.json holds; and that is as its schema says."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from test_audit_command import Brightness, few_steps, model_file
from test_audit_tables import table
from test_report import Page
from trustcxr.audit import run_audit as audits
from trustcxr.audit.multilabel import STATES
from trustcxr.data import load_dataset
from trustcxr.data.phantom import write_files
from trustcxr.report import audit_html
from trustcxr.storage import atomic
from trustcxr.storage.schemas import AuditDocument, read_schema

SCHEMA = Path(__file__).parents[1] / "docs" / "schema" / "audit.schema.json"
FINDINGS = ("Ill", "Severe")
PHANTOM = ("COVID-19", "Non-COVID", "Normal")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """audit.json by name: of a network, of a table of scores, and of the scores of two findings; on masked images."""
    root = tmp_path_factory.mktemp("audited")
    images = write_files.write(root / "phantom", {"Train": 1, "Val": 1, "Test": 8}, size=32)
    random, ids = np.random.default_rng(0), load_dataset(images, "Test", 16).sample_ids
    scores = {str(name): random.dirichlet([1, 1, 1]) for name in ids}
    findings = {"kind": "sigmoid", "classes": list(FINDINGS), "thresholds": 0.5}
    models = {
        "network": model_file(root / "a", Brightness(), classes=PHANTOM),
        "scores": table(root / "b", scores, classes=list(PHANTOM)),
        "findings": table(root / "c", {name: row[:2] for name, row in scores.items()}, **findings),
    }
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch)
        audits.audit(models["network"], images, root / "network", attacks=["fgsm", "pgd"], epsilons=[0.02])
        audits.audit(models["scores"], images, root / "scores")
        labels = {"COVID-19": "Ill|Severe", "Non-COVID": "Ill", "Normal": "Normal"}
        audits.audit(models["findings"], images, root / "findings", labels=labels)
    return {name: root / name / "audit.json" for name in models}


def shown(document: AuditDocument) -> Page:
    """The page, read."""
    return Page(audit_html.render(document))


def section(page: Page, title: str, until: str) -> str:
    """The words between two headings."""
    return " ".join(page.text.rpartition(f"\n{title}\n")[2].partition(f"\n{until}\n")[0].split())


@pytest.mark.parametrize("name", ["network", "scores", "findings"])
def test_an_audit_is_as_its_schema_says(name: str, audited: dict[str, Path]) -> None:
    content, schema = json.loads(audited[name].read_text()), json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    checks = jsonschema.Draft202012Validator(schema)
    assert [f"{found.json_path}: {found.message}" for found in checks.iter_errors(content)] == []
    assert content.keys() <= schema["properties"].keys(), "what stands there is described"
    wrong = {"entry_checks": {}, "attacks": [1], "clean": [], "verdict": {"sound": "maybe"}, "model": "resnet"}
    for part in wrong:
        assert not checks.is_valid(content | {part: wrong[part]}), part


@pytest.mark.parametrize("name", ["network", "scores", "findings"])
def test_the_images_as_they_are_have_all_their_figures(name: str, audited: dict[str, Path]) -> None:
    document = read_schema(AuditDocument, audited[name])
    page, clean = shown(document), document.clean
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
    answers = STATES if name == "findings" else PHANTOM
    matrix = r"<tr><th scope=\"row\">([^<]*)</th>((?:<td style=[^>]*>\d+ <small>[^<]*</small></td>)+)</tr>"
    rows = re.findall(matrix, audit_html.render(document))
    counts = [[int(count) for count in re.findall(r">(\d+) <small>", cells)] for _, cells in rows]
    assert ([name for name, _ in rows], counts) == (list(answers), clean.confusion)
    assert ("Each finding on each image is one decision" in words) == (name == "findings")


def test_whether_robustness_is_real_and_what_is_read_without_lungs_stand_there(audited: dict[str, Path]) -> None:
    document = read_schema(AuditDocument, audited["network"])
    page = shown(document)
    under = section(page, "Under attack", "Corrupted images")
    assert "Are the gradients masked?" in under
    reasons = "; ".join(document.masking.reasons)
    assert reasons[0].upper() + reasons[1:] in under
    assert "“No sign” is no proof" in under
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


@pytest.mark.parametrize("name", ["scores", "findings"])
def test_what_was_not_measured_has_no_part(name: str, audited: dict[str, Path]) -> None:
    page = shown(read_schema(AuditDocument, audited[name]))
    assert "Are the gradients masked?" not in page.text
    assert not {"Shortcuts", "Verdict on masked gradients"} & page.tables.keys()
    empty = AuditDocument.model_validate({"classes": ["A", "B"]})
    page = shown(empty)
    assert not {"Unperturbed images", "Per class, ", "Shortcuts"} & page.tables.keys()
    assert "Confusion matrix" not in page.text


def test_a_verdict_that_was_withdrawn_is_not_made_anew(audited: dict[str, Path]) -> None:
    content: dict[str, Any] = atomic.read_json(audited["network"])
    withdrawn = {"masked": None, "reasons": ["withdrawn: it missed all"], "looked_for": []}
    document = AuditDocument.model_validate(content | {"masking": withdrawn})
    under = section(shown(document), "Under attack", "Corrupted images")
    assert "Withdrawn: it missed all" in under
    assert "not checked" in under
