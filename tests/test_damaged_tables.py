"""Predictions that were damaged since they were written are told by one check, before anything is computed of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from study_fixture import make_study
from trustcxr.errors import UserError
from trustcxr.storage import atomic, prediction_table

PATH = Path("there") / "predictions.parquet"


@pytest.fixture
def predictions(tmp_path: Path) -> pd.DataFrame:
    study = make_study(tmp_path / "study", models=("ResNet18",), defences=("fgsm",), images=30, resamples=20, panels=0)
    return atomic.read_table(study / "runs" / "resnet18-fgsm-s0" / "predictions.parquet")


def test_predictions_as_they_are_written_are_whole(predictions: pd.DataFrame) -> None:
    for count in (3, None):
        prediction_table.check_table(predictions, PATH, count)
    prediction_table.check_table(predictions.query("attack == 'clean'"), PATH)


def _label(table: pd.DataFrame, label: float) -> pd.DataFrame:
    return table.assign(label=[label, *table["label"].iloc[1:]])


def _first_logits(table: pd.DataFrame, row: object) -> pd.DataFrame:
    return table.assign(logits=[row, *table["logits"].iloc[1:]])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda t: t.drop(columns="label"), "no column label"),
        (lambda t: t.drop(columns=["group", "logits"]), "no column group, logits"),
        (lambda t: t[:0], "no rows"),
        (lambda t: t[t["attack"] != "clean"], "images without a row of the image as it is, such as Test/"),
        (lambda t: t.drop(index=t.index[t["attack"] == "clean"][0]), "1 images without a row of the image as it is"),
        (lambda t: pd.concat([t, t]), "330 of 660 rows there twice, of one image under one condition"),
        (lambda t: _label(t, 99), "the label 99, of 3 classes numbered from 0"),
        (lambda t: _label(t, np.nan), "rows without label"),
        (lambda t: t.assign(label="Normal"), "no numbers in label"),
        (lambda t: t.assign(epsilon=None), "rows without epsilon"),
        (lambda t: _first_logits(t, [1.0, 2.0]), "2 and 3 logits in a row; expected 3 in each row"),
        (lambda t: _first_logits(t, [1.0, np.nan, 2.0]), "1 of 330 rows hold NaN"),
        (lambda t: _first_logits(t, ["a", "b", "c"]), "no numbers in logits"),
    ],
)
def test_damage_is_one_line_that_names_the_file(
    damage: Callable[[pd.DataFrame], pd.DataFrame], said: str, predictions: pd.DataFrame
) -> None:
    with pytest.raises(UserError) as refused:
        prediction_table.check_table(damage(predictions), PATH, 3)
    assert str(refused.value).startswith(f"{PATH}: damaged: ")
    assert said in str(refused.value)
    assert str(refused.value).endswith("; restore it, or make it anew")


def test_where_the_classes_are_not_known_they_are_as_many_as_the_logits(predictions: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="the label 99, of 3 classes"):
        prediction_table.check_table(_label(predictions, 99), PATH)
    with pytest.raises(UserError, match="expected 2 in each row, as many as there are classes"):
        prediction_table.check_table(predictions, PATH, 2)
