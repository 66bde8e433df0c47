"""Two audits that are compared: predictions that are not those of the audit beside them are refused, in one line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pack import Pack
from test_cli import complaint
from trustcxr.storage import atomic

TABLE = "predictions.parquet"
Change = Callable[[pd.DataFrame], pd.DataFrame]


def changed(folder: Path, to: Path, change: Change) -> Path:
    shutil.copytree(folder, to)
    atomic.write_table(to / TABLE, change(atomic.read_table(to / TABLE)))
    return to


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table[:0], "damaged: no rows; restore it"),
        (lambda table: pd.concat([table, table]), "rows there twice, of one image under one condition; restore it"),
        (lambda table: table.drop(columns="label"), "damaged: no column label; restore it"),
        (lambda table: table.assign(label=None), "damaged: rows without label; restore it"),
        (lambda table: table.assign(logits=1.0), "damaged: 1 logits in a row; expected 3 in each row"),
    ],
)
def test_a_damaged_table_is_refused_in_one_line(pack: Pack, tmp_path: Path, change: Change, words: str) -> None:
    damaged = changed(pack.audits() / "good", tmp_path / "damaged", change)
    said = complaint("compare", pack.audits() / "good", damaged)
    assert f"{damaged / TABLE}: " in said
    assert words in said


@pytest.mark.slow
def test_other_names_of_images_are_refused(pack: Pack, tmp_path: Path) -> None:
    made = pack.audits()
    first = min(atomic.read_table(made / "bad" / TABLE)["sample_id"])
    for name, change in {
        "all": lambda table: table.assign(sample_id="x" + table["sample_id"]),
        "one": lambda table: table.replace({"sample_id": {first: "x"}}),
    }.items():
        other = changed(made / "bad", tmp_path / name, change)
        assert "are named otherwise than in that of the other" in complaint("compare", made / "good", other)
