"""The leaderboard of results/: many audits of one protocol and data set, a row each.

    python -m benchmarks.findings.leaderboard FOLDER

FOLDER holds the audits' folders, as `trustcxr leaderboard` takes them. Writes results/leaderboard-<data>.csv and .md,
with the commands of which the rows came; then `python -m benchmarks.findings.notes` says how often Test was opened.
"""

import argparse
import csv
import shutil
import tempfile
from pathlib import Path

from trustcxr.report import board, markdown

RESULTS = Path(__file__).resolve().parents[2] / "results"
REPORTED = ("clean reported", "attacked reported")  # by the makers of a model
SHOWN = ("clean", "attacked", "corrupted", "AUROC", "calibration error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--note", default="", help="how the models were made, which the figures do not tell")
    given = parser.parse_args()
    found = board.gather(given.folder)
    stem = f"leaderboard-{found.data}"
    with tempfile.TemporaryDirectory() as place:
        _, table = board.write(found, Path(place))
        shutil.copyfile(table, RESULTS / f"{stem}.csv")
    text = page(found, RESULTS / f"{stem}.csv", given.note)
    (RESULTS / f"{stem}.md").write_text(text, encoding="utf-8")
    print(text)


def page(found: board.Board, table: Path, note: str) -> str:
    """The table with what it takes to read it."""
    about = (
        f"`trustcxr audit RUN --data {found.data} --out DIR` of each, then `trustcxr leaderboard FOLDER`: {found.n}"
        f" Test images, by {found.protocol}. Percent but for AUROC, with 95 % intervals over patients or groups of "
        "images. `attacked`: what the strongest attack leaves, an upper bound; `reported`: what a model's makers say. "
        "Research software, not for diagnosis."
    )
    title = f"# Audits of {found.data} by {found.protocol}"
    return "\n".join([title, "", about, "", *rows(table), *(["", note] if note else []), ""])


def rows(table: Path) -> list[str]:
    """The table in Markdown, with what the makers report beside what is measured."""
    with table.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    head = ["model", "threat model", "training data", *REPORTED, *SHOWN, "least under", "unreliable"]
    lines = [
        [
            *(row[name] for name in head[:3]),
            *(f"{100 * float(row[name]):.1f}" if row[name] else "-" for name in REPORTED),
            *(_cell(row, name) for name in SHOWN),
            row["by"],
            row["unreliable"],
        ]
        for row in found
    ]
    return markdown.table(head, lines)


def _cell(row: dict[str, str], name: str) -> str:
    if not row[name]:
        return "-"
    value, ends = float(row[name]), row[f"{name} interval"].replace("%", "").split(" to ")
    scale = 0.01 if name == "AUROC" else 1.0
    digits = 3 if name == "AUROC" else 1
    low, high = (f"{float(end) * scale:.{digits}f}" for end in ends)
    return f"{value * 100 * scale:.{digits}f} [{low}, {high}]"


if __name__ == "__main__":
    main()
