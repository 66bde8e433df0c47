"""Options of a training as they are typed and as batches meet them."""

import numpy as np
import pytest

from trustcxr.data.loader import BatchRows
from trustcxr.errors import UserError
from trustcxr.recipes.run_recipe import RunRecipe
from trustcxr.runs import run_folder


def test_each_batch_comes_so_many_times_in_a_row() -> None:
    labels = np.zeros(10, dtype=int)
    once = list(BatchRows(labels, 4, shuffle=True, seed=3))
    thrice = BatchRows(labels, 4, shuffle=True, seed=3, repeats=3)
    assert len(thrice) == 9
    assert list(thrice) == [rows for rows in once for _ in range(3)]
    assert len(BatchRows(labels, 4, repeats=3, drop_last=True)) == 6
    assert len(list(BatchRows(labels, 4, repeats=3, drop_last=True))) == 6


def typed(*options: str, defence: str = "trades") -> RunRecipe:
    return run_folder.recipe(
        model="resnet18",
        weights="none",
        defence={"name": defence, "epsilon": 0.02, "ramp": 0.0, "clean_weight": 0.0},
        size=64,
        seed=0,
        training={},
        options=options,
    )


def test_any_key_can_be_typed() -> None:
    run = typed("defence.beta=3", "training.augment.flip=0.5", "model.normalisation=group", "training.balanced=true")
    assert (run.defence.beta, run.training.augment.flip, run.model.normalisation) == (3.0, 0.5, "group")
    assert run.training.balanced is True
    assert run.training.augment.rotation == 10.0
    assert typed("seed=3", "defence.epsilon=0.01").defence.epsilon == 0.01


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("defence.bta=3", "unknown key 'defence.bta': did you mean beta"),
        ("defence.beta", "write KEY=VALUE"),
        ("defence.beta=[", "not readable as YAML"),
        ("defence.beta.more=3", None),
        ("seed.more=3", "'seed' holds a value, not keys"),
        ("defence=fgsm", "key 'defence'"),
        ("training.balanced_by=source", "balanced_by: source does nothing without training.balanced"),
    ],
)
def test_what_is_typed_wrong_is_one_line(option: str, complaint: str | None) -> None:
    with pytest.raises(UserError) as problem:
        typed(option)
    assert (complaint or "defence.beta") in str(problem.value)
    assert "\n" not in str(problem.value)
