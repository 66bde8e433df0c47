"""Fill a checklist from an audit: the items of reporting guidelines, and the figure that answers each."""

from trustcxr.registry import LUNGS_HIDDEN
from trustcxr.report import formatting, html
from trustcxr.report.leaderboard import find_worst_attack
from trustcxr.report.load import find_lowest
from trustcxr.report.tables.table import Cell, Table
from trustcxr.storage.schemas import AuditDocument

CHECKLIST_FILE = "checklist.md"
GUIDELINES = ("CLAIM 2024", "TRIPOD+AI", "MI-CLAIM", "DECIDE-AI", "GMLP", "AI Act, Art. 15")
MAKER, NOT_MEASURED = "asked of the maker", "not measured by this audit"


def build_checklist(document: AuditDocument) -> Table:
    """Return the checklist as a table: a row for each topic, with the figure of this audit, if it has one."""
    parts, rows = _gather_parts(document), []
    for row in html.read_yaml("checklist.yaml"):
        text = html.fill_text(row.get("text", ""), parts)
        absent = NOT_MEASURED if "text" in row else MAKER
        measured = Cell(text, note="prose") if text else Cell(absent, note="prose quiet")
        where = Cell(row["where"] if text else formatting.DASH, note="text")
        items = (Cell(item or formatting.DASH, note="text") for item in row["items"])
        rows.append([Cell(row["topic"]), measured, where, *items])
    header = ["Topic", "What this audit measured", "Where on the page", *GUIDELINES]
    return Table("Checklist", header, rows)


def _gather_parts(document: AuditDocument) -> dict[str, object]:
    hidden = [(name, document.shortcuts[name]) for name in LUNGS_HIDDEN if name in document.shortcuts]
    divisions = [part for part in document.subgroups if part.groups]
    worse = [(g, part) for part in divisions for g in part.groups if g.settled and (g.gap.value or 0) < 0]
    return {
        "document": document,
        "model": document.model,
        "data": document.data,
        "facts": document.facts,
        "clean": document.clean,
        "columns": [part.column for part in divisions],
        "worse": [f"{group.name} by {part.column}" for group, part in worse],
        "worst": find_worst_attack(document),
        "worst_corruption": find_lowest(document.corruptions),
        "hidden": max(hidden, key=lambda item: item[1].accuracy.value or 0.0, default=None),
        "maker": MAKER,
        "f": formatting,
    }
