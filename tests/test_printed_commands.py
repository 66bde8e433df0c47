"""Commands that are printed, to be pasted into a shell: they name the paths that are meant, whatever is in them."""

import shlex
from pathlib import Path

import pytest

from small_runs import untrained
from test_cli import complaint, run
from trustcxr.data import download
from trustcxr.errors import UserError
from trustcxr.reader import study as reading
from trustcxr.recipes.study import load_study
from trustcxr.report import markdown, study_folder, terminal
from trustcxr.results import folders
from trustcxr.results.disk import as_typed
from trustcxr.results.documents import (
    DataDescription,
    ExportDocument,
    StudyDocument,
    TrainingDocument,
    VerifiedDocument,
)
from trustcxr.study import audit, dry_run, run_folder, verifying

ODD = "a  b 'q\" $x; ü"


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder whose name no shell takes as it is."""
    folder = tmp_path / ODD
    folder.mkdir()
    return folder


def command(text: str, after: str = "") -> list[str]:
    """The words, as a shell has them, of the one command in a text; `after`: what stands behind it."""
    assert text.count("trustcxr ") == 1, text
    found = text[text.index("trustcxr ") :]
    assert after in found, text
    return shlex.split(found[: found.index(after)] if after else found)


def test_a_path_is_quoted_only_where_it_must_be() -> None:
    for plain in ("out/run", "/data/COVID-QU-Ex", "./-o2", "hf://owner/name", "a.b_c=d,e@f%g+h:i"):
        assert as_typed(plain) == plain
    assert as_typed(Path("out a b")) == "'out a b'"
    assert shlex.split(as_typed(f"~/{ODD}")) == [f"~/{ODD}"]
    assert as_typed(Path("-o2")) == "./-o2"
    assert as_typed("-o 2") == "'./-o 2'"


@pytest.mark.parametrize(("out", "typed"), [("out a  b", "out a  b"), ("-o2", "./-o2"), ("out", "out")])
def test_train_says_how_to_evaluate(out: str, typed: str, odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "train", lambda *_, **__: TrainingDocument(epochs=1, monitor="val_accuracy"))
    done = run("train", "--data", odd, "--model", "test_resnet", f"--out={out}")
    said = done.stdout.splitlines()[-1]
    assert said.startswith("next: ")
    assert command(said) == ["trustcxr", "evaluate", typed, "--data", str(odd)]


def test_a_download_says_how_to_check_it(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "download_covidqu", lambda _: odd)
    said = run("data", "download", "covidqu", "--to", odd).stdout.splitlines()[-1]
    assert command(said) == ["trustcxr", "data", "check", str(odd)]


@pytest.mark.parametrize("name", ["b's.yaml", "-b.yaml"])
def test_an_export_says_how_to_audit_it(name: str) -> None:
    found = ExportDocument(model_file=name, largest=0.0, allowed=1e-4)
    (said,) = (line for line in terminal.exported(found) if "trustcxr " in line)
    model = {"-b.yaml": "./-b.yaml"}.get(name, name)
    assert command(said) == ["trustcxr", "audit", model, "--data", "PATH", "--out", "DIR"]


def test_a_bare_model_says_how_to_begin_its_model_file(odd: Path) -> None:
    (odd / "m.onnx").touch()
    for said in (complaint("audit", odd / "m.onnx", "--data", odd, "--out", odd / "out"), _refusal(odd / "m.onnx")):
        model = odd / "m.onnx"
        assert command(said) == ["trustcxr", "audit", str(model), "--init", ">", str(odd / "model.yaml")]


def _refusal(model: Path) -> str:
    with pytest.raises(UserError) as refused:
        audit.open_model(model)
    return str(refused.value)


def test_evaluate_says_how_to_audit_what_is_no_run(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(odd)
    Path("-m.yaml").touch()
    said = complaint("evaluate", "--data", odd, "--", "-m.yaml")
    assert command(said) == ["trustcxr", "audit", "./-m.yaml", "--data", str(odd), "--out", "DIR"]


def test_a_run_that_is_not_tested_says_how(odd: Path) -> None:
    said = complaint("report", untrained(odd / "run"))
    assert command(said, after="`") == ["trustcxr", "evaluate", str(odd / "run"), "--data", "PATH"]


def test_a_dry_run_over_another_study_says_what_tells_of_it(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run.planned, "recipe_of", lambda _: load_study("paper"))
    monkeypatch.setattr(dry_run, "left_out", lambda *_: False)
    with pytest.raises(UserError, match="another recipe") as refused:
        dry_run._refuse_another(odd, load_study("quick"))
    assert command(str(refused.value)) == ["trustcxr", "status", str(odd)]


def test_verify_says_how_to_write_a_page(odd: Path) -> None:
    for version in ("", "0.0"):
        found = VerifiedDocument(written_by=version)
        if version:
            (odd / folders.REPORT_FILE).touch()
        verifying._page(found, odd, lambda _: "")
        (said,) = found.unchecked
        assert command(said, after="`") == ["trustcxr", "report", str(odd)]


def test_a_reader_study_without_readers_says_how_to_name_them(odd: Path) -> None:
    pytest.importorskip("fastapi")
    (odd / folders.STUDY_RESULTS).write_text("{}")
    with pytest.raises(UserError) as refused:
        reading.serve(odd, reading.Asked(), [], host="127.0.0.1", port=0)
    assert command(str(refused.value), after=",") == ["trustcxr", "reader", str(odd), "--reader", "NAME"]


def test_the_page_in_markdown_says_how_it_is_made(odd: Path) -> None:
    recipe = load_study("quick")
    study = StudyDocument(study="quick", recipe=recipe.model_dump(mode="json"), data=DataDescription(root_name=ODD))
    first = markdown.render(study_folder.StudyFolder(odd, study, [], [])).splitlines()[2]
    _, again, _, shown, _ = first.split("`")
    assert command(again) == ["trustcxr", "study", "quick", "--data", ODD, "--out", ODD]
    assert command(shown) == ["trustcxr", "report", ODD, "--markdown"]
