"""Write the page of an audit and its model card."""

from pathlib import Path

from trustcxr.report import audit_text, html, leaderboard, model_card
from trustcxr.report.audit_facts import facts_of_page
from trustcxr.report.checklist import CHECKLIST_FILE, build_checklist
from trustcxr.report.figures import accuracy, svg
from trustcxr.report.figures.audit_figures import draw_curves, draw_smallest_changes
from trustcxr.report.tables import audit_rows
from trustcxr.storage import atomic, layout
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AuditDocument, OperatingPoint
from trustcxr.version import NOTICE, __version__

_LOOKS = {True: "good", False: "bad", None: "open"}


def write(document: AuditDocument, out: Path) -> tuple[Path, Path]:
    """Write report.html, model_card.md and checklist.md into an audit's folder; return the first two paths."""
    checklist = f"# Checklist of {document.model.name}\n\n**{NOTICE}**\n\n{build_checklist(document).markdown()}\n"
    page, card = out / layout.REPORT_FILE, out / model_card.CARD_FILE
    for path, text in (page, render(document, out)), (card, render_card(document)), (out / CHECKLIST_FILE, checklist):
        atomic.write_text(path, text)
    return page, card


def render(document: AuditDocument, folder: Path | None = None) -> str:
    """Return the page as text, with the pictures of an audit's folder. The same document gives the same text."""
    from markupsafe import Markup

    pairs = [(point, audit_text.find_hardest(document, point.finding)) for point in _clean_points(document)]
    worst = accuracy.worst_curve(audit_rows.as_run(document))
    parts = {
        "document": document,
        "notice": NOTICE,
        "version": __version__,
        "soundness": audit_text.describe_soundness(document),
        "answers": [(*audit_text.split_statement(row), _LOOKS[row.met]) for row in document.verdict.model],
        "worst_curve": None if worst is None else Markup(svg.render_inline(worst, "worst")),
        "worst_legend": svg.legend([worst]),
        "changes": draw_smallest_changes(document, folder),
        "summary": _summarise(document),
        "curves": [Markup(svg.render_inline(draw_curves(*pair), f"op{i}")) for i, pair in enumerate(pairs)],
        **audit_rows.tables(document),
        **facts_of_page(document, folder),
    }
    return html.fill_template("audit.html.j2", parts)


def _clean_points(document: AuditDocument) -> list[OperatingPoint]:
    return [point for point in document.operating_points if point.attack == CLEAN]


def _summarise(document: AuditDocument) -> dict[str, tuple[str, ...]]:
    model, images = audit_text.describe_model(document)
    return {
        "Model": model,
        "Data and protocol": (images,),
        "Results": audit_text.describe_results(document),
        "Limits": audit_text.describe_limits(document),
    }


def render_card(document: AuditDocument) -> str:
    """Return the model card in Markdown: front matter as on Hugging Face, then the items of CLAIM 2024.

    Brackets mark what an audit cannot know.
    """
    model, worst = document.model, leaderboard.find_worst_attack(document)
    data = {"name": document.data.name, "split": document.split, "revision": document.data.fingerprint}
    results = model_card.list_results(document.clean.accuracy, document.clean.auroc_macro, worst)
    index = model_card.index_results(model.name, data, results)
    parts = {
        "document": document,
        "reported": model.reported,
        "notice": NOTICE,
        "version": __version__,
        "soundness": audit_text.describe_soundness(document),
        "answers": [(audit_text.title_question(row.question), row) for row in document.verdict.model],
        "summary": _summarise(document),
        "clean": _clean_points(document),
        "audits": audit_text,
    }
    body = model_card.as_markdown(html.load_templates().get_template("model_card.md.j2").render(parts))
    return model_card.front_matter(model.name, [document.protocol or "no-protocol"], [index]) + body
