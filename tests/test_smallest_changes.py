"""The first screen of an audit's page: the smallest changes that flip an answer, and the curve over epsilon."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pack import Pack
from test_audit_command import few_steps
from test_audit_verdict import GOOD
from trustcxr.audit.facts import HIGHEST, SMALLEST_CHANGES
from trustcxr.report import audit_html
from trustcxr.report.figures.charts import worst_curve
from trustcxr.report.figures.pictures import draw_smallest_changes
from trustcxr.report.tables.audit_rows import as_run
from trustcxr.storage.schemas import AuditDocument, read_schema


@pytest.fixture(scope="module")
def audited(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an audit of a model that measures brightness."""
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch)
        yield Path(shutil.copytree(pack.audits(), tmp_path_factory.mktemp("changes") / "audits")) / "good"


def test_the_smallest_changes_are_of_right_answers_and_as_large_as_said(audited: Path) -> None:
    document = read_schema(AuditDocument, audited / "audit.json")
    rows = document.smallest_changes
    assert len(rows) == SMALLEST_CHANGES
    assert {row.label for row in rows} == set(document.classes), "the classes in turn"
    with np.load(audited / "smallest_changes.npz", allow_pickle=False) as arrays:
        sizes = np.abs(arrays["changed"] - arrays["image"]).max((1, 2))
        names = arrays["sample_id"].tolist()
    assert names == [row.sample_id for row in rows]
    assert sizes == pytest.approx([row.epsilon or 0.0 for row in rows], abs=1e-6)
    flipped = [row for row in rows if row.epsilon is not None]
    assert flipped
    assert all(0 < (row.epsilon or 0) <= HIGHEST and row.answer != row.label for row in flipped)


def test_the_page_shows_each_change_as_three_pictures_and_none_without_the_file(audited: Path) -> None:
    document = read_schema(AuditDocument, audited / "audit.json")
    page = (audited / "report.html").read_text()
    assert page.count("<img src=") == 3 * SMALLEST_CHANGES
    drawn = zip(document.smallest_changes, draw_smallest_changes(document, audited), strict=True)
    row, (pictures, size, _) = next((row, change) for row, change in drawn if row.epsilon)
    epsilon = row.epsilon or 0.0
    assert size == f"{255 * epsilon:.2g} of 255 grey levels"
    assert [text for _, text in pictures][2] == f"The change, {0.5 / epsilon:.0f} times magnified"
    assert "<img" not in audit_html.render(document)
    document.smallest_changes = [row.model_copy(update={"epsilon": None})]
    assert draw_smallest_changes(document, audited)[0][1] == "No change found"
    (audited / "smallest_changes.npz").write_text("damaged")
    assert draw_smallest_changes(document, audited) == []


def test_the_curve_has_the_lowest_accuracy_at_each_epsilon_and_what_is_proved() -> None:
    document = AuditDocument.model_validate(GOOD | {"certified": [{"epsilon": 0.01, "accuracy": {"value": 0.5}}]})
    page = audit_html.render(document)
    assert "under attack, at most, epsilon 0.02: 84.0" in page
    assert "proved, at least, epsilon 0.01: 50.0" in page
    curve = worst_curve(as_run(document))
    assert [key.text for key in curve.legend] == ["under attack, at most", "proved, at least", "a constant answer"]
    assert worst_curve(as_run(AuditDocument.model_validate(GOOD | {"attacks": []}))) is None
