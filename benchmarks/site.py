"""Pages of the site written as it is built, from the catalogue and results/: nothing is copied, nothing drifts.

A hook of MkDocs (mkdocs.yml). `measures.md` is read off the catalogue and the docstrings; the findings are the pages of
results/ with a figure drawn from the CSV file beside each; every other page of docs/ that mkdocs.yml does not name
stands under "More".
"""

import inspect
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import pandas as pd  # noqa: E402

from trustcxr import registry  # noqa: E402
from trustcxr.registry import Attack, Measure  # noqa: E402
from trustcxr.report import formatting, leaderboard  # noqa: E402
from trustcxr.report.tables.table import markdown_rows  # noqa: E402
from trustcxr.version import NOTICE  # noqa: E402

RESULTS = ROOT / "results"
BETTER = {"higher": "more", "lower": "less", None: "neither: it is no matter of better or worse"}
CHANCE = {"share": "the mask’s share of the area", "half": "0.5", "pixels": "as many random pixels"}
# Pages written from files of the repository. Those of docs/ link the files, so that the links work in a clone too.
WRITTEN_FROM = {
    "CONTRIBUTING.md": "contributing.md",
    "src/trustcxr/registry/measures.yaml": "measures.md",
    "results/README.md": "findings/index.md",
}
OUTSIDE = re.compile(r"\]\(((?:\.\./)+[^)\s]+)\)")
LINK = re.compile(r"`((?:results/)?([a-z0-9-]+)\.(md|csv))`")


def on_config(config: Any) -> Any:
    """Pages of docs/ that the navigation does not name, and the findings, are added to it."""
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    more = [path for path in sorted((ROOT / "docs").rglob("*.md")) if _address(path) not in named]
    config.nav = [
        *config.nav,
        {"Findings": _found()},
        {
            "More": [
                *({_title(path.read_text("utf-8")): _address(path)} for path in more),
                {"Contributing": "contributing.md"},
            ]
        },
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """The written pages, beside those of docs/."""
    from mkdocs.structure.files import File

    for address, content in {**written(), **findings()}.items():
        files.append(File.generated(config, address, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files of the repository become links to the pages written from them."""
    return link_pages(markdown, page.file.src_uri)


def link_pages(markdown: str, address: str) -> str:
    """Replace links out of docs/, of the page at this address, by those of the pages written from these files."""
    folder = ROOT / "docs" / Path(address).parent

    def link(match: re.Match[str]) -> str:
        file = os.path.relpath(os.path.normpath(folder / match[1]), ROOT)
        written = WRITTEN_FROM.get(file) or re.sub(r"^results/", "findings/", file)
        return match[0] if written == file else f"]({os.path.relpath(ROOT / 'docs' / written, folder)})"

    return OUTSIDE.sub(link, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """A table wider than the window scrolls in a region of its own, which the keyboard reaches."""
    around = r'<div class="scrolls" role="region" aria-label="Table" tabindex="0">\g<0></div>'
    return re.sub(r"<table>.*?</table>", around, html, flags=re.DOTALL)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The theme's search is a dialog without a name, which a screen reader cannot announce."""
    return _named(output)


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """The same of the page for an address that is none."""
    return _named(output_content)


def _named(page: str) -> str:
    return page.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def written() -> dict[str, str | bytes]:
    """Pages from the catalogue and from the root of the repository."""
    board = leaderboard.gather_audits(ROOT / "leaderboard")
    return {
        "measures.md": measures(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text("utf-8"),
        "leaderboard.md": _leaderboard(board),
        "board.html": leaderboard.render(board),
    }


def _leaderboard(board: leaderboard.Board) -> str:
    """The entries as a table, with a link to the page that sorts."""
    which = (
        f"{len(board.entries)} audits by {board.protocol} on {board.data}, {board.n} images, best under attack first."
    )
    overlap = "The models were trained on images of the same collections."
    links = "[The page that sorts](board.html), [how to submit](howto/submit.md)."
    table = leaderboard.make_table(board).markdown()
    return f"# Leaderboard\n\n*{NOTICE}* {which} {overlap} {links}\n\n{table}\n"


def _found() -> list[dict[str, str]]:
    """The findings by title; of two that are called alike each with its file's name."""
    titles = {path.name: _title(path.read_text("utf-8")) for path in sorted(RESULTS.glob("[!R]*.md"))}
    alike = [title for title in titles.values() if list(titles.values()).count(title) > 1]
    named = {name: f"{title} ({name[:-3]})" if title in alike else title for name, title in titles.items()}
    return [{"What was found": "findings/index.md"}, *({title: f"findings/{name}"} for name, title in named.items())]


def _address(path: Path) -> str:
    return path.relative_to(ROOT / "docs").as_posix()


def _title(text: str | bytes) -> str:
    return str(text).split("\n", 1)[0].lstrip("# ").strip()


# --- what is measured ------------------------------------------------------------------------------------------------


def measures() -> str:
    """What each measure means and does not mean, from the catalogue and the docstrings."""
    rows = [_measure(entry) for entry in registry.MEASURES.values()]
    attacks = [[f"`{a.name}`", a.label, a.paper, _attack(a)] for a in registry.ATTACKS.values()]
    defences = [[f"`{d.name}`", d.paper or formatting.DASH, _defence(d)] for d in registry.DEFENCES.values()]
    corruptions = [[f"`{c.name}`", c.about] for c in registry.CORRUPTIONS.values()]
    methods = [[f"`{s.name}`", s.label, s.paper or formatting.DASH] for s in registry.SALIENCY.values()]
    parts = [
        "# What each measure means, and does not mean",
        f"Written from the catalogue of the program. {NOTICE}",
        "## Accuracy under attack",
        "Accuracy under an attack is an upper bound: a stronger attack may leave less. What is certified is a lower "
        "bound. Epsilon is the L-infinity radius with pixels in [0, 1]: 0.02 is 5.1 grey levels of 255.",
        markdown_rows(("name", "in tables", "paper", "what it is"), attacks),
        "## Of a heatmap, and of images with parts hidden",
        "A figure against masks means nothing without what chance, a centre prior, the image’s own brightness and the "
        "same network with random weights have: each stands beside it.",
        *rows,
        "## Ways to train",
        markdown_rows(("name", "paper", "what it is"), defences),
        "## Saliency methods",
        markdown_rows(("name", "in tables", "paper"), methods),
        "## What goes wrong with images",
        markdown_rows(("name", "what went wrong"), corruptions),
    ]
    return "\n\n".join(parts) + "\n"


def _measure(entry: Measure) -> str:
    means = entry.about or _first(registry.load_function("explain", str(entry.function)))
    lines = [
        f"### {formatting.capital(entry.label)}",
        f"`{entry.name}`{f', {entry.paper}' if entry.paper else ''}",
        means,
    ]
    lines.append(f"*It does not mean:* {entry.beware}")
    by_chance = f" A map that knows nothing has {CHANCE[entry.chance]}." if entry.mask else ""
    return "\n\n".join([*lines, f"Better: {BETTER[entry.better]}.{by_chance}"])


def _attack(entry: Attack) -> str:
    return _first(registry.load_function("attacks", entry.function))


def _defence(entry: Any) -> str:
    return _first(registry.load_function("defences", entry.function))


def _first(function: Any) -> str:
    """The first paragraph of a docstring in one line; what tables would take for a column's end is let go."""
    text = (inspect.getdoc(function) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", "/").replace("[", "\\[")


# --- findings --------------------------------------------------------------------------------------------------------


def findings() -> dict[str, str | bytes]:
    """Every page of results/ under findings/, its CSV files, and a figure of each that has one: address to content."""
    found: dict[str, str | bytes] = {"findings/index.md": _index()}
    for path in sorted(RESULTS.glob("*.csv")):
        found[f"findings/{path.name}"] = path.read_bytes()
        if drawing := figure(pd.read_csv(path)):
            found[f"findings/{path.stem}.svg"] = drawing
    for path in sorted(RESULTS.glob("[!R]*.md")):
        found[f"findings/{path.name}"] = _finding(path, f"findings/{path.stem}.svg" in found)
    return found


def _index() -> str:
    """What was found, with links to the pages."""
    return _linked((RESULTS / "README.md").read_text("utf-8"), f"*{NOTICE}*\n")


def _finding(path: Path, drawn: bool) -> str:
    title, _, rest = path.read_text("utf-8").partition("\n")
    picture = (
        f"![Accuracy of each run with 95 % intervals; the numbers stand in the tables]({path.stem}.svg)\n"
        if drawn
        else ""
    )
    return _linked(f"{title}\n\n{picture}{rest}", "")


def _linked(text: str, end: str) -> str:
    """Names of files of results/ as links."""

    def link(match: re.Match[str]) -> str:
        file = f"{match[2]}.{match[3]}"
        return f"[`{file}`]({file})" if (RESULTS / file).is_file() else match[0]

    return LINK.sub(link, text) + f"\n{end}"


def figure(table: pd.DataFrame) -> bytes | None:
    """Accuracy of every run, clean and under each attack at the largest epsilon, with intervals, as SVG."""
    points = pd.DataFrame(_points(table))
    if points.empty:
        return None
    from matplotlib.figure import Figure

    runs, conditions = list(points["run"].unique()), list(points["condition"].unique())
    drawing = Figure(figsize=(7.5, 0.9 + 0.32 * len(runs)), layout="constrained")
    axes = drawing.subplots()
    for k, condition in enumerate(conditions):
        mine = points[points["condition"] == condition]
        entry = registry.ATTACKS.get(condition)
        colour, marker = (entry.style[0], entry.style[1]) if entry and entry.style else ("#4b5563", "o")
        y = [runs.index(run) + 0.12 * (k - (len(conditions) - 1) / 2) for run in mine["run"]]
        error = [mine["value"] - mine["low"], mine["high"] - mine["value"]]
        label = f"{formatting.attack(condition)} {formatting.epsilon(mine['epsilon'].iloc[0])}" if entry else condition
        axes.errorbar(mine["value"], y, xerr=error, fmt=marker, color=colour, ms=4.5, lw=1.2, label=label)
    axes.set_yticks(range(len(runs)), runs, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("accuracy, 95 % interval")
    axes.grid(axis="x", color="#d1d5db", lw=0.5)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16 - 0.6 / len(runs)), ncols=4)
    out = io.BytesIO()
    drawing.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _points(table: pd.DataFrame) -> Iterator[dict[str, object]]:
    """run, condition, epsilon, value, low, high: of a study's figures, or of what is certified."""
    if {"condition", "measure"} <= set(table):
        shown = table[(table["measure"] == "accuracy") & table["condition"].isin(["clean", *registry.HEADLINE_ATTACKS])]
        shown = shown[(shown["split"] == "Test") & shown["low"].notna()]
        largest = shown["epsilon"].max()
        yield from (dict(row) for _, row in shown[shown["epsilon"].isin([0, largest])].iterrows())
    elif "certified" in table:
        mean = table[(table["seed"] == "mean") & (table["epsilon"] == table["epsilon"].max())]
        for _, row in mean.iterrows():
            for name in ("clean", "certified", "worst_case"):
                said = {"worst_case": registry.WORST_CASE}.get(name, name)
                ends = {end: row[f"{name}_{end}"] for end in ("low", "high")}
                yield {"run": row["run"], "condition": said, "epsilon": row["epsilon"], "value": row[name], **ends}
