"""The findings of an audit as lines for the terminal."""

from typing import Any

from trustcxr.data.auditing.confounds import Probe

_HEADS = {"fault": "FAULT", "leak": "LEAK", "warning": "WARNING", "note": "note"}
_ORDER = {"Train": 0, "Val": 1, "Test": 2}
_SOURCES = {
    "lungs blanked": "the film without its lungs",
    "outer frame": "the outer frame of the film",
    "lung shape": "the shape of the lung mask",
    "grey levels": "the film's overall brightness",
}


def _count_table(counts: dict[str, dict[str, int]], classes: tuple[str, ...]) -> list[str]:
    rows = [["", *classes, "all"]]
    for split, of_class in sorted(counts.items(), key=lambda item: (_ORDER.get(item[0], 9), item[0])):
        rows.append([split, *(f"{of_class[c]:,}" for c in classes), f"{sum(of_class.values()):,}"])
    if len(counts) > 1:
        totals = [sum(of_class[c] for of_class in counts.values()) for c in classes]
        rows.append(["all", *(f"{t:,}" for t in totals), f"{sum(totals):,}"])
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]


def _file_lines(files: dict[str, Any]) -> list[str]:
    def listed(name: str) -> str:
        return ", ".join(f"{k} {n:,}" for k, n in list(files[name].items())[:4])

    lines = [
        f"formats: {listed('formats')}; colour modes: {listed('modes')}; "
        + (
            f"size {next(iter(files['sizes']))}"
            if files["different_sizes"] == 1
            else f"{files['different_sizes']:,} sizes, most often {listed('sizes')}"
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


def _item_line(item: dict[str, Any]) -> str:
    other = f" and {item['other_id']}" if "other_id" in item else ""
    detail = f": {item['detail']}" if item.get("detail") else ""
    return f"{item['sample_id']}{other}{detail}"
