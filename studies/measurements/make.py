"""Make the tables of small measurements, one for each CSV file.

    python -m studies.measurements.make NAME < PAGE

reads the first Markdown table of what a benchmark printed, and writes it as NAME.csv.
"""

import re
import sys
from pathlib import Path

import pandas as pd
from studies.build import join_all_intervals

make_tables = join_all_intervals
INTERVAL = re.compile(r"^([+-]?[\d.]+)%? [\[(]([+-]?[\d.]+)%?(?:,| to) ([+-]?[\d.]+)%?[\])]$")


def read_printed(text: str) -> pd.DataFrame:
    """Return the first Markdown table of a text; a cell with an interval becomes three columns."""
    lines = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    head, rows = cells[0], [row for row in cells[2:] if len(row) == len(cells[0])]
    columns: dict[str, list[str]] = {}
    for name, values in zip(head, zip(*rows, strict=True), strict=True):
        found = [INTERVAL.match(value) for value in values]
        columns[name] = [
            match[1] if match else value.removesuffix("%") for match, value in zip(found, values, strict=True)
        ]
        if any(found):
            columns[f"{name} low"] = [match[2] if match else "" for match in found]
            columns[f"{name} high"] = [match[3] if match else "" for match in found]
    return pd.DataFrame(columns)


if __name__ == "__main__":
    read_printed(sys.stdin.read()).to_csv(Path(__file__).with_name(f"{sys.argv[1]}.csv"), index=False)
