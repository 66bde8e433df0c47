"""Write the page of an audit and its model card."""

from pathlib import Path

from trustcxr.report import html, model_card, terminal
from trustcxr.report.figures import charts, pictures, svg
from trustcxr.report.tables import audit_rows
from trustcxr.storage import atomic, layout
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AuditDocument, OperatingPoint
from trustcxr.version import NOTICE

_LOOKS = {True: "good", False: "bad", None: "open"}


def write(document: AuditDocument, out: Path) -> tuple[Path, Path]:
    """Write report.html, model_card.md and checklist.md into an audit's folder; return the first two paths."""
    checklist = audit_rows.build_checklist(document).markdown()
    page, card = out / layout.REPORT_FILE, out / model_card.CARD_FILE
    atomic.write_text(page, render(document, out))
    atomic.write_text(card, render_card(document))
    atomic.write_text(out / "checklist.md", f"# Checklist of {document.model.name}\n\n**{NOTICE}**\n\n{checklist}\n")
    return page, card


def render(document: AuditDocument, folder: Path | None = None) -> str:
    """Return the page as text, with the pictures of an audit's folder. The same document gives the same text."""
    points = [(point, terminal.find_hardest(document, point.finding)) for point in _clean_points(document)]
    parts = {
        "document": document,
        "soundness": terminal.describe_soundness(document),
        "answers": [(*terminal.split_statement(row), _LOOKS[row.met]) for row in document.verdict.model],
        "changes": pictures.draw_smallest_changes(document, folder),
        "failure_panels": pictures.draw_failures(document, folder),
        "summary": _summarise(document),
        **svg.render_all("worst", [charts.worst_curve(audit_rows.as_run(document))]),
        **svg.render_all("curves", (charts.draw_curves(*pair) for pair in points)),
        **audit_rows.tables(document),
    }
    return html.fill_template("audit.html.j2", parts)


def _clean_points(document: AuditDocument) -> list[OperatingPoint]:
    return [point for point in document.operating_points if point.attack == CLEAN]


def _summarise(document: AuditDocument) -> dict[str, tuple[str, ...]]:
    model, images = terminal.describe_model(document)
    return {
        "Model": model,
        "Data and protocol": (images,),
        "Results": terminal.describe_results(document),
        "Limits": terminal.describe_limits(document),
    }


def render_card(document: AuditDocument) -> str:
    """Return the model card in Markdown: front matter as on Hugging Face, then the items of CLAIM 2024.

    Brackets mark what an audit cannot know.
    """
    model = document.model
    data = {"name": document.data.name, "split": document.split, "revision": document.data.fingerprint}
    parts = {
        "document": document,
        "reported": model.reported,
        "soundness": terminal.describe_soundness(document),
        "answers": [(terminal.title_question(row.question), row) for row in document.verdict.model],
        "summary": _summarise(document),
        "clean": _clean_points(document),
        "audits": terminal,
    }
    tag, results = document.protocol or "no-protocol", model_card.list_results(document)
    return model_card.fill_card("model_card.md.j2", parts, model.name, tag, data, results)
