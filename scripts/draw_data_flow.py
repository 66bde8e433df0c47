"""Draw the way of the data through the package as SVG, for docs/figures/data-flow.svg (scripts/write_reference.py)."""

from xml.sax.saxutils import escape

WIDE, HIGH, ACROSS, DOWN = 150, 52, 178, 88  # a box, and the steps of the grid that boxes are on
KINDS = {"files": "#e0f2fe", "code": "#f1f5f9", "result": "#dcfce7"}
BOXES = {  # name: column, row, kind, first line, second line
    "images": (0, 1, "files", "images, masks", "PNG, JPEG, DICOM"),
    "manifest": (1, 1, "code", "manifest", "class, split, patient"),
    "store": (2, 1, "code", "pixel store", "grey, one size"),
    "check": (1, 0, "result", "data-check.json", "faults, leaks"),
    "training": (3, 1, "code", "training", "defence, monitor"),
    "run": (4, 1, "files", "run", "weights, run.yaml"),
    "model": (4, 2, "files", "external model", "model.yaml"),
    "answer": (5, 0, "result", "one answer", "predict, serve, DICOM"),
    "tables": (5, 1, "files", "tables (parquet)", "answers, maps, proofs"),
    "checks": (5, 2, "code", "entry checks", "is it measurable?"),
    "report": (6, 1, "result", "metrics.json", "report.html"),
    "audit": (6, 2, "result", "audit.json", "verdict, leaderboard"),
}
ARROWS = (
    *(("images", "manifest"), ("manifest", "check"), ("manifest", "store"), ("store", "training"), ("training", "run")),
    *(("run", "answer"), ("run", "tables"), ("run", "checks"), ("model", "checks"), ("tables", "report")),
    *(("checks", "audit"), ("tables", "audit")),
)


def draw_box(name: str) -> str:
    """Return a box with its two lines."""
    column, row, kind, first, second = BOXES[name]
    x, y = 20 + column * ACROSS, 46 + row * DOWN
    middle = x + WIDE / 2
    return (
        f'<rect x="{x}" y="{y}" width="{WIDE}" height="{HIGH}" rx="6" fill="{KINDS[kind]}" stroke="#475569"/>'
        f'<text x="{middle}" y="{y + 22}" font-weight="600">{escape(first)}</text>'
        f'<text x="{middle}" y="{y + 40}" font-size="12">{escape(second)}</text>'
    )


def draw_arrow(start: str, end: str) -> str:
    """Return an arrow from one box to another: along a row, along a column, or aslant."""
    (a, b), (c, d) = BOXES[start][:2], BOXES[end][:2]
    x, y = 20 + a * ACROSS, 46 + b * DOWN
    u, v = 20 + c * ACROSS, 46 + d * DOWN
    if a == c:
        x, u = x + WIDE // 2, u + WIDE // 2
        y, v = (y + HIGH, v) if d > b else (y, v + HIGH)
    else:
        x, y, v = x + WIDE, y + HIGH // 2, v + HIGH // 2
    return f'<line x1="{x}" y1="{y}" x2="{u}" y2="{v}"/>'


def draw_data_flow() -> str:
    """Return the diagram."""
    width, height = 20 + 7 * ACROSS, 46 + 3 * DOWN - 10
    legend = "blue: files, grey: steps, green: what people read"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            "<title>The way of the data, from images to report and audit</title>",
            '<defs><marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 8 4 0 8z" fill="#475569"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
            '<g stroke="#475569" stroke-width="1.5" marker-end="url(#end)">',
            *(draw_arrow(*arrow) for arrow in ARROWS),
            '</g><g font-family="sans-serif" font-size="14" text-anchor="middle" fill="#0f172a">',
            *(draw_box(name) for name in BOXES),
            f'<text x="20" y="26" text-anchor="start" font-size="13">{legend}</text>',
            "</g></svg>\n",
        ]
    )
