"""The findings of an audit as lines for the terminal."""

from typing import TypedDict

from trustcxr.data.auditing.confounds import Probe
from trustcxr.data.auditing.findings import Item
from trustcxr.data.manifest import place_of

_HEADS = {"fault": "FAULT", "leak": "LEAK", "warning": "WARNING", "note": "note"}
_SOURCES = {
    "lungs blanked": "the film without its lungs",
    "outer frame": "the outer frame of the film",
    "lung shape": "the shape of the lung mask",
    "grey levels": "the film's overall brightness",
}


class MaskSummary(TypedDict):
    """How many masks of a kind there are, and how many of them are empty."""

    n: int
    empty: int


class FileSummary(TypedDict):
    """What the images are: name of a format, colour mode or size -> how many; and the masks by their kind."""

    formats: dict[str, int]
    modes: dict[str, int]
    sizes: dict[str, int]
    different_sizes: int
    masks: dict[str, MaskSummary]


def _count_table(counts: dict[str, dict[str, int]], classes: tuple[str, ...]) -> list[str]:
    rows = [["", *classes, "all"]]
    for split, of_class in sorted(counts.items(), key=lambda item: place_of(item[0])):
        rows.append([split, *(f"{of_class[c]:,}" for c in classes), f"{sum(of_class.values()):,}"])
    if len(counts) > 1:
        totals = [sum(of_class[c] for of_class in counts.values()) for c in classes]
        rows.append(["all", *(f"{t:,}" for t in totals), f"{sum(totals):,}"])
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]


def _file_lines(files: FileSummary) -> list[str]:
    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{k} {n:,}" for k, n in list(counts.items())[:4])

    lines = [
        f"formats: {listed(files['formats'])}; colour modes: {listed(files['modes'])}; "
        + (
            f"size {next(iter(files['sizes']))}"
            if files["different_sizes"] == 1
            else f"{files['different_sizes']:,} sizes, most often {listed(files['sizes'])}"
        )
    ]
    lines += [f"{kind} masks: {m['n']:,}, {m['empty']:,} of them empty" for kind, m in files["masks"].items()]
    return lines


def _probe_table(probes: list[Probe]) -> list[str]:
    head = f"A linear probe tells the classes apart ({probes[0].how}; balanced accuracy, chance {probes[0].chance:.2f})"
    width = max(len(p.view) for p in probes)
    rows = [
        f"  {p.view.ljust(width)}  {p.accuracy:.2f}  [{p.accuracy_ci[0]:.2f}, {p.accuracy_ci[1]:.2f}]" for p in probes
    ]
    return [head, *rows]


def _item_line(item: Item) -> str:
    other = f" and {item['other_id']}" if "other_id" in item else ""
    detail = f": {item['detail']}" if item.get("detail") else ""
    return f"{item['sample_id']}{other}{detail}"
