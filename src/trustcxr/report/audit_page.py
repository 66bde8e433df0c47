"""Page of an audit, which a committee can read, and the model card."""

from pathlib import Path

from trustcxr.about import NOTICE, __version__
from trustcxr.report import audits, board, cards, single_page
from trustcxr.report.cards import CARD_FILE
from trustcxr.report.figures import operating, svg
from trustcxr.report.tables import audited
from trustcxr.results import files, folders
from trustcxr.results.documents import AuditDocument, OperatingPoint
from trustcxr.results.tables import CLEAN


def write(document: AuditDocument, out: Path) -> tuple[Path, Path]:
    """Write report.html and model_card.md into an audit's folder; return their paths."""
    written = ((out / folders.REPORT_FILE, render(document)), (out / CARD_FILE, card(document)))
    for path, text in written:
        with files.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return written[0][0], written[1][0]


def render(document: AuditDocument) -> str:
    """Return the page as text. The same document gives the same text."""
    from markupsafe import Markup

    pairs = [(point, audits.hardest(document, point.finding)) for point in _clean_points(document)]
    parts = {
        "document": document,
        "notice": NOTICE,
        "version": __version__,
        "first": first_page(document),
        "curves": [Markup(svg.inline(operating.curves(*pair), f"op{i}")) for i, pair in enumerate(pairs)],
        **audited.tables(document),
    }
    return single_page.filled("audit.html.j2", parts)


def _clean_points(document: AuditDocument) -> list[OperatingPoint]:
    return [point for point in document.operating_points if point.attack == CLEAN]


def first_page(document: AuditDocument) -> dict[str, tuple[str, ...]]:
    """Return by heading what was given, what was examined, what may be relied on and what may not."""
    given, examined = audits.given(document)
    not_relied_on = "Why not, and what else may not" if document.unreliable else "What may not be relied on"
    return {
        "What was given": given,
        "What was examined": examined,
        f"What may {'NOT ' if document.unreliable else ''}be relied on": audits.relied_on(document),
        not_relied_on: audits.not_relied_on(document),
    }


def card(document: AuditDocument) -> str:
    """Return the model card in Markdown: front matter as Hugging Face's cards have it, then the items of CLAIM 2024.

    What an audit cannot know is asked for, in brackets, of whoever hands the model on.
    """
    model = document.model
    data = {"name": document.data.name, "split": document.split, "revision": document.data.fingerprint}
    results = cards.figures(document.clean.accuracy, document.clean.auroc_macro, board.attacked(document))
    front = cards.front(model.name, [document.protocol or "no-protocol"], [cards.index(model.name, data, results)])
    text = (
        single_page.environment()
        .get_template("model_card.md.j2")
        .render(
            document=document,
            said=model.reported,
            notice=NOTICE,
            version=__version__,
            first=first_page(document),
            clean=_clean_points(document),
            audits=audits,
        )
    )
    return front + cards.as_markdown(text)
