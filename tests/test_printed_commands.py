"""Commands that are printed can be pasted into a shell: they name the paths that are meant, whatever is in them."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from test_cli import run
from trustcxr import api
from trustcxr.recipes.run_recipe import DefenceRecipe
from trustcxr.storage.os_errors import shell_quote
from trustcxr.storage.schemas import TrainingDocument

ODD = "a  b 'q\" $x; ü"


def test_a_path_is_quoted_only_where_it_must_be() -> None:
    for plain in ("out/run", "/data/COVID-QU-Ex", "./-o2", "hf://owner/name", "a.b_c=d,e@f%g+h:i"):
        assert shell_quote(plain) == plain
    assert shell_quote(Path("out a b")) == "'out a b'"
    assert shlex.split(shell_quote(f"~/{ODD}")) == [f"~/{ODD}"]
    assert shell_quote(Path("-o2")) == "./-o2"
    assert shell_quote("-o 2") == "'./-o 2'"


@pytest.mark.parametrize(("out", "typed"), [("out a  b", "out a  b"), ("-o2", "./-o2"), ("out", "out")])
def test_train_prints_the_command_that_evaluates(
    out: str, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = SimpleNamespace(
        training=TrainingDocument(epochs=1, monitor="val_accuracy"), recipe=SimpleNamespace(defence=DefenceRecipe())
    )
    monkeypatch.setattr(api, "train", lambda *_, **__: trained)
    printed = run("train", "--data", tmp_path / ODD, "--model", "test_resnet", f"--out={out}").stdout.splitlines()[-1]
    assert shlex.split(printed.removeprefix("next: ")) == ["trustcxr", "evaluate", typed, "--data", str(tmp_path / ODD)]
