"""The report of an audit: a page that a committee can read, then everything; and the model card."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trustcxr.about import NOTICE, __version__
from trustcxr.catalogue import attack_said
from trustcxr.report import audits, board, cards, single_page, words
from trustcxr.report.cards import CARD_FILE
from trustcxr.report.figures import operating, svg
from trustcxr.report.tables import audited
from trustcxr.report.tables.cells import Cell, Table, share, whole
from trustcxr.results import files, folders
from trustcxr.results.documents import AuditDocument, OperatingPoint, Share
from trustcxr.results.tables import CLEAN
from trustcxr.statistics import probability_said

_DASH = "–"


@dataclass(frozen=True)
class Part:
    """A heading of the first page, and its sentences."""

    title: str
    lines: tuple[str, ...]


def write(document: AuditDocument, out: Path) -> tuple[Path, Path]:
    """Write report.html and model_card.md into an audit's folder; their paths."""
    written = ((out / folders.REPORT_FILE, render(document)), (out / CARD_FILE, card(document)))
    for path, text in written:
        with files.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return written[0][0], written[1][0]


def render(document: AuditDocument) -> str:
    """The page as text. The same document gives the same text."""
    from markupsafe import Markup

    clean = [point for point in document.operating_points if point.attack == CLEAN]
    pairs = [(point, audits.hardest(document, point.finding)) for point in clean]
    parts = {
        "document": document,
        "notice": NOTICE,
        "version": __version__,
        "first": first_page(document),
        "gate": _gate(document),
        "attacks": _attacks(document),
        "corruptions": _corruptions(document),
        "points": _points(document.operating_points),
        "curves": [Markup(svg.inline(operating.curves(*pair), f"op{i}")) for i, pair in enumerate(pairs)],
        "divisions": [(part, _division(part.groups)) for part in document.subgroups],
        "findings": _findings(document),
        **audited.tables(document),
    }
    return single_page.filled("audit.html.j2", parts)


def first_page(document: AuditDocument) -> list[Part]:
    """What was given, what was examined, what may be relied on and what may not, in sentences."""
    given, examined = audits.given(document)
    trusted, doubted = audits.relied_on(document), audits.not_relied_on(document)
    return [
        Part("What was given", given),
        Part("What was examined", examined),
        Part("What may NOT be relied on" if document.unreliable else "What may be relied on", trusted),
        Part("What may not be relied on" if not document.unreliable else "Why not, and what else may not", doubted),
    ]


def _gate(document: AuditDocument) -> Table:
    marks = {True: ("passed", "good"), False: ("look", "bad"), None: ("not checked", "quiet")}
    rows = [
        [Cell(c.check), Cell(marks[c.passed][0], note=marks[c.passed][1]), Cell(c.text, note="prose")]
        for c in document.gate
    ]
    return Table(["check", "", "what was seen"], rows)


def _attacks(document: AuditDocument) -> Table:
    rows = [
        [
            Cell(attack_said(a.attack, a.steps)),
            Cell(f"{a.epsilon:g}" if a.epsilon is not None else _DASH, value=a.epsilon),
            share(a.accuracy),
            share(a.balanced_accuracy),
            share(a.ece),
            Cell(str(a.n or _DASH)),
            Cell(", ".join(f"{name} {count}" for name, count in a.broken_by.items()) or _DASH, note="prose"),
        ]
        for a in document.attacks
    ]
    header = ["attack", "epsilon", "accuracy, %", "balanced, %", "calibration error, %", "n", "broken by"]
    return Table(header, rows)


def _corruptions(document: AuditDocument) -> Table:
    rows = [
        [Cell(c.corruption.replace("_", " ")), Cell(str(c.severity)), share(c.accuracy), share(c.flip_rate), whole(c.n)]
        for c in document.corruptions
    ]
    return Table(["corruption", "severity", "accuracy, %", "answers changed, %", "n"], rows)


def _points(points: Iterable[OperatingPoint]) -> Table:
    rows = [
        [
            Cell(p.finding),
            _films(p),
            Cell(_DASH if p.threshold is None else probability_said(p.threshold), p.origin, value=p.threshold),
            *(share(part) for part in (p.sensitivity, p.specificity)),
            *(_ratio(part) for part in (p.likelihood_positive, p.likelihood_negative)),
            *(share(part) for part in (p.auroc, p.average_precision, p.sensitivity_at_specificity)),
            Cell(f"{p.positives} of {p.n}"),
        ]
        for p in points
    ]
    header = ["class or finding", "films", "threshold", "sensitivity, %", "specificity, %", "LR+", "LR-", "AUROC, %"]
    return Table([*header, "average precision, %", "sensitivity at 90 % specificity", "positive"], rows)


def _films(point: OperatingPoint) -> Cell:
    """What the films of a row are; under attack what that was made against."""
    if point.attack == CLEAN:
        return Cell("as it is")
    against = {"answer": "against the answer", "threshold": "against the threshold"}.get(point.aimed_at, "")
    return Cell(f"{attack_said(point.attack, point.steps)} {point.epsilon:g}", against)


def _ratio(found: Share) -> Cell:
    low, high = found.ci or (None, None)
    ends = "" if low is None else f"{low:.3g} to {'∞' if high is None else f'{high:.3g}'}"
    return Cell("∞" if found.value is None else f"{found.value:.3g}", ends, value=found.value)


def _division(groups: Iterable[object]) -> Table:
    from trustcxr.results.documents import Subgroup

    rows = [
        [
            Cell(g.name),
            *(share(part) for part in (g.accuracy, g.balanced_accuracy, g.auroc_macro, g.ece)),
            share(g.gap),
            Cell(_DASH if g.p_corrected is None else f"{g.p_corrected:.2g}", value=g.p_corrected),
            Cell("yes" if g.settled else "not settled", note="bad" if g.settled else "quiet"),
            Cell(str(g.n), "" if g.findings is None else f"AUROC of {words.plural(g.findings, 'finding')}"),
        ]
        for g in groups
        if isinstance(g, Subgroup)
    ]
    header = ["group", "accuracy, %", "balanced, %", "AUROC, %", "calibration error, %", "gap to the rest, points"]
    return Table([*header, "p, corrected", "differs", "n"], rows)


def _findings(document: AuditDocument) -> Table | None:
    rows = [
        [
            Cell(f.name),
            Cell("judged" if f.judged else f.why, note="prose"),
            Cell(str(f.positives)),
            Cell(str(f.n)),
            Cell(str(f.unknown)),
        ]
        for f in document.findings
    ]
    return Table(["finding", "", "have it", "known", "unknown, left out"], rows) if rows else None


def card(document: AuditDocument) -> str:
    """The model card in Markdown: front matter as Hugging Face's cards have it, then the items of CLAIM 2024.

    What an audit cannot know is asked for, in brackets, of whoever hands the model on.
    """
    said, given = document.model.reported, document.model
    worst = board.attacked(document)
    data = {"name": document.data.name, "split": document.split, "revision": document.data.fingerprint}
    results = cards.figures(document.clean.accuracy, document.clean.auroc_macro, worst)
    front = cards.front(given.name, [document.protocol or "no-protocol"], [cards.index(given.name, data, results)])
    body = single_page.environment().get_template("model_card.md.j2")
    text = body.render(
        document=document,
        said=said,
        notice=NOTICE,
        version=__version__,
        first=first_page(document),
        worst=worst,
        clean=[point for point in document.operating_points if point.attack == CLEAN],
        audits=audits,
    )
    return front + cards.as_markdown(text)
