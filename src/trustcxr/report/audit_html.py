"""Page of an audit, which a committee can read, and the model card."""

from pathlib import Path

from trustcxr.report import audit_text, html, leaderboard, model_card
from trustcxr.report.figures import roc, svg
from trustcxr.report.model_card import CARD_FILE
from trustcxr.report.tables import audit_rows
from trustcxr.storage import atomic, layout
from trustcxr.storage.prediction_table import CLEAN
from trustcxr.storage.schemas import AuditDocument, OperatingPoint
from trustcxr.version import NOTICE, __version__


def write(document: AuditDocument, out: Path) -> tuple[Path, Path]:
    """Write report.html and model_card.md into an audit's folder; return their paths."""
    written = ((out / layout.REPORT_FILE, render(document)), (out / CARD_FILE, card(document)))
    for path, text in written:
        with atomic.atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return written[0][0], written[1][0]


def render(document: AuditDocument) -> str:
    """Return the page as text. The same document gives the same text."""
    from markupsafe import Markup

    pairs = [(point, audit_text.find_hardest(document, point.finding)) for point in _clean_points(document)]
    parts = {
        "document": document,
        "notice": NOTICE,
        "version": __version__,
        "first": first_page(document),
        "curves": [Markup(svg.render_inline(roc.curves(*pair), f"op{i}")) for i, pair in enumerate(pairs)],
        **audit_rows.tables(document),
    }
    return html.fill_template("audit.html.j2", parts)


def _clean_points(document: AuditDocument) -> list[OperatingPoint]:
    return [point for point in document.operating_points if point.attack == CLEAN]


def first_page(document: AuditDocument) -> dict[str, tuple[str, ...]]:
    """Return by heading what was given, what was examined, what may be relied on and what may not."""
    given, examined = audit_text.describe_model(document)
    not_relied_on = "Why not, and what else may not" if document.unreliable else "What may not be relied on"
    return {
        "What was given": given,
        "What was examined": examined,
        f"What may {'NOT ' if document.unreliable else ''}be relied on": audit_text.describe_results(document),
        not_relied_on: audit_text.describe_limits(document),
    }


def card(document: AuditDocument) -> str:
    """Return the model card in Markdown: front matter as Hugging Face's cards have it, then the items of CLAIM 2024.

    What an audit cannot know is asked for, in brackets, of whoever hands the model on.
    """
    model = document.model
    data = {"name": document.data.name, "split": document.split, "revision": document.data.fingerprint}
    results = model_card.list_results(
        document.clean.accuracy, document.clean.auroc_macro, leaderboard.find_worst_attack(document)
    )
    front = model_card.front_matter(
        model.name, [document.protocol or "no-protocol"], [model_card.index_results(model.name, data, results)]
    )
    text = (
        html.load_templates()
        .get_template("model_card.md.j2")
        .render(
            document=document,
            said=model.reported,
            notice=NOTICE,
            version=__version__,
            first=first_page(document),
            clean=_clean_points(document),
            audits=audit_text,
        )
    )
    return front + model_card.as_markdown(text)
