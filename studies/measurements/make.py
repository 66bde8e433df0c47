"""Make the tables of small measurements, one for each CSV file."""

from studies.build import Tables, markdown


def make_tables(tables: Tables) -> dict[str, str]:
    """Return each file as a table; columns X, X low and X high become one, and so do shares with low and high."""
    made = {}
    for name, table in tables.items():
        if name == "out-of-distribution":
            made[name] = _refusals(table)
            continue
        head = [column for column in table if not str(column).endswith((" low", " high"))]
        rows = []
        for _, row in table.astype(str).replace("nan", "-").iterrows():
            cells = []
            for column in head:
                ends = [row.get(f"{column} {end}", "-") for end in ("low", "high")]
                cells.append(row[column] if "-" in ends else f"{row[column]} [{ends[0]}, {ends[1]}]")
            rows.append(cells)
        made[name] = markdown([str(column) for column in head], rows)
    return made


def _refusals(table: object) -> str:
    import pandas as pd

    assert isinstance(table, pd.DataFrame)
    shown = table[table["method"] == "the score"]
    rows = [
        [row["kind"], row["n"], f"{100 * row['refused']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"]
        for _, row in shown.iterrows()
    ]
    return markdown(("images", "n", "unlike the training images, %"), rows)
