"""The command line as a user meets it: what it prints, what it leaves behind, how it complains, its bars and tables."""

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from small_runs import newest
from trustcxr import api, cli, console, registry, report
from trustcxr.console import Progress
from trustcxr.data import load_dataset
from trustcxr.data.checks import check
from trustcxr.data.phantom import write_files
from trustcxr.errors import CannotWrite
from trustcxr.recipes.run_recipe import DefenceRecipe
from trustcxr.storage import atomic
from trustcxr.storage.os_errors import shell_quote
from trustcxr.storage.schemas import TrainingDocument

QUICK = ("--model", "test_resnet", "--weights", "none", "--size", "32", "--batch-size", "12")


class Done(NamedTuple):
    stdout: str
    stderr: str


def run(*arguments: object, expect: int = 0) -> Done:
    """The command as a user starts it, in this process: starting Python and torch anew each time would take minutes."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["trustcxr", *(str(a) for a in arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = before
    assert (ended.value.code or 0) == expect, out.getvalue() + err.getvalue()
    return Done(out.getvalue(), err.getvalue())


def complaint(*arguments: object) -> str:
    """The one line with which a wrong input is refused."""
    done = run(*arguments, expect=2)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("trustcxr: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.strip().endswith(lines[0])
    return lines[0]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic data set in COVID-QU-Ex's layout."""
    return write_files.write(tmp_path_factory.mktemp("images") / "phantom", {"Train": 12, "Val": 4, "Test": 5}, size=64)


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained for a moment through the command line."""
    out = tmp_path_factory.mktemp("runs") / "run"
    done = run("train", "--data", images, *QUICK, "--epochs", "4", "--out", out)
    assert "best val_accuracy" in done.stdout
    return out


def test_a_robust_accuracy_is_said_with_its_epsilon(images: Path, tmp_path: Path) -> None:
    fgsm = ("--epochs", "1", "--defence", "fgsm", "--epsilon", "0.01")
    done = run("train", "--data", images, *QUICK, *fgsm, "--out", tmp_path / "run")
    assert re.search(r"best val_pgd_accuracy \d+\.\d% at epsilon 0\.01 after 1 epoch", done.stdout)
    assert re.search(r"best val_pgd_accuracy \d+\.\d% at epsilon 0\.01, at epoch 1", done.stderr)


def test_evaluate_prints_the_metrics_document(trained: Path, images: Path) -> None:
    done = run("evaluate", trained, "--data", images, "--epsilon", 0.01, "--epsilon", 0.05, "--steps", 3, "--json")
    document = json.loads(done.stdout)
    assert document == atomic.read_json(newest(trained) / "metrics.json")
    assert {"run", "classes", "split", "clean", "attacks", "corruptions", "saliency"} <= set(document)
    assert document["clean"]["n"] == 15
    rows = [(row["attack"], row["epsilon"]) for row in document["attacks"]]
    assert rows == [("fgsm", 0.01), ("fgsm", 0.05), ("pgd", 0.01), ("pgd", 0.05)]
    table = pd.read_parquet(newest(trained) / "predictions.parquet")
    counts = {"clean": 15, "fgsm": 30, "pgd": 30, **dict.fromkeys(registry.VIEWS, 15)}
    assert table["attack"].value_counts().to_dict() == counts


@pytest.mark.slow
def test_explain_measures_against_masks_here_and_elsewhere(trained: Path, images: Path, tmp_path: Path) -> None:
    def explain(data: Path, *options: object) -> dict[str, Any]:
        document = json.loads(
            run("explain", trained, "--data", data, "--corruption", "jpeg", *options, "--json").stdout
        )
        return document["saliency"]

    quick = ("--sample", 2, "--corruption", "letters")
    maps = explain(images, *quick)
    assert list(maps) == ["gradcam", "layercam", "random"]
    flat = maps["gradcam"]
    assert (flat["n"], flat["without_mask"], flat["cells"]) == (10, 5, "1 x 1")
    assert flat["withheld"].startswith("no map: what is read has one cell")
    assert "infection_energy" not in flat
    part = explain(images, "--method", "gradcam@-3", *quick)["gradcam@-3"]
    assert (part["n"], part["without_mask"]) == (10, 5)
    table = pd.read_parquet(newest(trained) / "saliency.parquet")
    of_gradcam = table[(table["method"] == "gradcam@-3") & (table["condition"] == "clean")]
    energy = of_gradcam[of_gradcam["measure"] == "infection_energy"]["value"]
    assert part["infection_energy"]["value"] == pytest.approx(energy.mean())
    assert [row["condition"] for row in part["stability"]] == ["fgsm", "jpeg", "letters", "pgd"]
    other = write_files.write(tmp_path / "elsewhere", {"Train": 1, "Val": 1, "Test": 3}, size=64, seed=5)
    there = explain(other, "--split", "Test", "--sample", 0, "--method", "gradcam@-3")["gradcam@-3"]
    assert there["threshold"] == part["threshold"] > 0, "that of the run's own data"
    assert there["n"] == 6


@pytest.mark.slow
def test_phantom_and_report_help_and_models() -> None:
    listed = json.loads(run("models", "--json").stdout)["architectures"]
    assert len(listed) == 21
    assert {"model": "ResNet50", "timm": "resnet50", "parameters": 25_557_032 - 2_049_000 + 6_147 - 6_272} in listed
    words = run("models").stdout
    assert all(name in words for name in ("ResNet50", "plain3", "evidence-33", "any other timm name")), words
    for command in cli.app.registered_commands:
        name = (command.name or command.callback.__name__).replace("_", "-")
        text = CliRunner().invoke(cli.app, [name, "--help"]).stdout
        assert f"Example: trustcxr {name}" in " ".join(text.split())


@pytest.mark.parametrize("words", [(), ("data",)])
def test_without_a_command_the_help_is_shown_and_one_line_says_why(words: tuple[str, ...]) -> None:
    done = run(*words, expect=2)
    assert done.stderr.startswith("trustcxr: no command is given: say which; see ")
    assert done.stderr.endswith(f"{' '.join(('', *words, '--help'))}\n")
    assert done.stderr.count("\n") == 1
    assert "COMMAND [ARGS]" in done.stdout


def test_wrong_input_is_one_line_and_code_2(trained: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "notes.txt").write_text("sun")
    out = tmp_path / "never"
    train, evaluate = ("train", "--out", out, "--data"), ("evaluate", trained, "--data", images)
    wrong_data = complaint(*train, tmp_path / "holiday", "--model", "resnet18", "--weights", "none")
    assert "notes.txt" in wrong_data
    assert "Lung Segmentation Data" in wrong_data
    assert "ResNet50" in complaint(*train, images, "--model", "ResNet5")
    assert "valid: standard, fgsm" in complaint(*train, images, "--model", "resnet18", "--defence", "fsgm")
    assert "beside a +" in complaint(*train, images, "--model", "resnet10t+")
    assert "outside [0, 1]" in complaint(*evaluate, "--epsilon", "5")
    assert "valid: fgsm, fgsm-rs, pgd, " in complaint(*evaluate, "--attack", "pdg")
    explain = ("explain", *evaluate[1:])
    every = complaint(*explain, "--corruption", "all", "--method", "layercam@-9")
    assert "unknown layer -9" in every, "all is a word here as it is of evaluate"
    assert "unknown corruption 'fog'" in complaint(*explain, "--corruption", "fog")
    assert "severity" in complaint(*explain, "--severity", 9)
    transfer = complaint("audit", *evaluate[1:], "--out", out, "--attack", "transfer")
    assert "--attack transfer: an audit has no surrogate to attack in its place; choose of fgsm, " in transfer
    assert "transfer" not in run("audit", "--help").stdout, "what cannot be carried out is not offered"
    (tmp_path / "study.yaml").write_text("recipe: {}\n")
    assert "holds a study" in complaint("train", "--data", images, "--model", "test_resnet", "--out", tmp_path)
    assert "not a trained run" in complaint("evaluate", images, "--data", images)
    assert "Missing" in complaint("train", "--data", images)
    assert "no such image" in complaint("predict", trained, tmp_path / "gone.png")
    assert "did you mean quick? valid: ct, demo," in complaint("study", "quik", "--data", images, "--out", out)
    for jobs in ("0", "-1"):
        assert "--jobs" in complaint("demo", "--jobs", jobs, "--out", out)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\nmodels: [resnet18]\ntraining: {epoch: 3}\n")
    unknown_key = complaint("study", recipe, "--data", images, "--out", out)
    assert re.search(r"mine\.yaml.*training\.epoch.*did you mean epochs", unknown_key)
    assert not out.exists()


def test_a_refusal_names_the_option_that_mends_it(trained: Path, images: Path, tmp_path: Path) -> None:
    """What a message advises is what the command line takes."""
    evaluated = "evaluate", trained, "--data"
    listed = tmp_path / "list.csv"
    image = next(images.rglob("Test/Normal/images/*.png"))
    listed.write_text(f"path,class,split\n{image},well,Test\n{image.with_stem('gone')},well,Test\n")
    assert "--label 'well=CLASS' or --label 'well='" in complaint(*evaluated, listed, "--label", "ill=Normal")
    mistyped = complaint(*evaluated, listed, "--label", "well=Norml")
    assert "did you mean Normal? map the labels, as by --label 'Norml=CLASS'" in mistyped
    listed.write_text(f"one,two\n{image},well\n")
    assert "--column path='Image Index' --column class=" in complaint(*evaluated, listed)
    assert "needs a surrogate (--surrogate)" in complaint(*evaluated, images, "--attack", "transfer")
    too_much = complaint(*evaluated, images, "--corruption", "all", "--severity", "9")
    assert "expected a number less than or equal to 5, not 9" in too_much
    many = ("--model", "test_resnet", "--out", tmp_path / "run", "--set", "training.epochs=many")
    assert "expected a valid integer, not 'many'" in complaint("train", "--data", images, *many)
    assert "holds the images; choose another --out" in complaint("audit", trained, "--data", images, "--out", images)
    assert not list(images.glob("*.json"))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    assert "1 file that is no image" in complaint("predict", trained, tmp_path / "texts")
    assert "per-class" in complaint("data", "phantom", tmp_path / "phantom", "--per-class", "0")


@pytest.mark.parametrize(
    "typed",
    [
        "evaluate gone --data .", "explain gone --data .", "certify gone --data .", "export gone --data .",
        "predict gone .", "verify nowhere", "compare nowhere nowhere", "audit gone --data . --out audit",
        "audit gone.yaml --data nowhere --out audit", "study quick --data nowhere --out study",
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_before_torch_is_loaded(typed: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("run.yaml", "model.safetensors"):
        (tmp_path / "run" / name).touch()
    other = {"gone": "run", ".": "nowhere"}
    for words in (typed.split(), [other.get(part, part) for part in typed.split()]):
        code = (
            "import sys; from trustcxr.cli import app; from trustcxr.errors import UserError\n"
            f"try: app({words!r}, standalone_mode=False)\n"
            "except UserError as problem: print(problem, 'torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert re.search(r"\bno (such|audit\.json here)", done.stdout), done.stdout
        assert done.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--epochs 3 --set training.epochs=1", "--epochs and --set training.epochs=1 both say training.epochs"),
        ("--set 'defence={name: fgsm}' --defence pgd", "--defence and --set defence={name: fgsm} both say"),
        ("--set training.epochs=2 --set training.epochs=1", "--set training.epochs and --set training.ep"),
        ("--set training.augment.flip=0.5 --set 'training.augment={scale: 0}'", "both say training.augment.f"),
        ("--label a=Normal --label a=COVID-19", "--label a= is there twice"),
        ("--column path=a --column path=b", "--column path= is there twice"),
        (
            "--set training.counterfactuals.healthy_class=x",
            "options: counterfactuals.healthy_class: x does nothing without counterfactuals",
        ),
    ],
)
def test_what_would_be_lost_without_a_word_is_refused(typed: str, said: str) -> None:
    """Two words for one key, of which one would win, and a key that nothing reads."""
    command = ("train", "--data", "x", "--model", "test_resnet", "--out", "y")
    assert said in complaint(*command, *shlex.split(typed))


def test_data_check_reads_nothing_for_a_file_that_it_could_not_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for option, place, why in (
        ("--clean", "out.txt", "Give a name that ends in .csv or .parquet"),
        ("--html", "file/x.html", "a file is where a folder should be"),
        ("--html", "", "is a directory"),
        ("--clean", "file/x/y.csv", "a file is where a folder should be"),
    ):
        assert why in complaint("data", "check", "no-such-data", option, tmp_path / place)


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_data_check_prints_first(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: list[str]) -> None:
    def refused(*_: object) -> None:
        raise CannotWrite("no space left")

    monkeypatch.setattr(check, "write_page", refused)
    done = run("data", "check", images, "--no-probes", "--html", tmp_path / "x.html", *how, expect=2)
    assert "no space left" in done.stderr
    assert (json.loads(done.stdout)["verdict"] if how else done.stdout.split("Verdict  ")[1]).strip()


@pytest.mark.slow
def test_a_list_is_checked_trained_and_evaluated(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load_dataset(images, size=32).table
    table = pd.DataFrame({"Picture": rows["path"], "Diagnosis read": rows["class"], "Fold": rows["split"].str.lower()})
    listed = tmp_path / "hospital.csv"
    table.to_csv(listed, index=False)
    how = ["--images", images, "--column", "path=Picture", "--column", "class=Diagnosis read", "--column", "split=Fold"]
    checked = json.loads(run("data", "check", listed, *how, "--no-probes", "--json").stdout)
    assert checked["images"] == len(rows)
    out = tmp_path / "run"
    options = [*QUICK, "--epochs", "1", "--out", out]
    run("train", "--data", listed, *how, *options)
    # Begun again from where the images' folder is typed otherwise, it is that run; with other images in it, it is not.
    monkeypatch.chdir(images.parent)
    typed_here = ["train", "--data", listed, "--images", images.name, *how[2:], *options]
    assert "already trained" in run(*typed_here).stderr
    others = shutil.copytree(images, tmp_path / "others")
    Image.new("L", (40, 40), 99).save(others / rows[rows["split"] == "Train"]["path"].iloc[0])
    typed_here[4] = others
    assert f"was trained on other images or classes than those of {listed}" in complaint(*typed_here)
    # The run knows how its list is read, and tests on its own test split alone.
    document = json.loads(run("evaluate", out, "--data", listed, "--attack", "fgsm", "--json").stdout)
    assert (document["split"], document["clean"]["n"]) == ("Test", 15)
    assert "write word=column" in complaint("data", "check", listed, "--column", "path=Picture", "--column", "Fold")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("train --data '' --out x", "what follows --data"),
        ("train --data x --out ''", "what follows --out"),
        ("train --data= --out x", "--data"),
        ("evaluate '' --data x", "one of the words"),
        ("serve x --dicom A@b:1 --dicom-host=", "--dicom-host"),
    ],
)
def test_a_variable_of_the_shell_that_is_not_set_is_not_this_folder(words: str, what: str) -> None:
    assert complaint(*shlex.split(words)) == f"trustcxr: {what} is empty: is a variable of the shell not set?"


ODD = "a  b 'q\" $x; ü"


def test_a_path_is_quoted_only_where_it_must_be() -> None:
    for plain in ("out/run", "/data/COVID-QU-Ex", "./-o2", "hf://owner/name", "a.b_c=d,e@f%g+h:i"):
        assert shell_quote(plain) == plain
    assert shell_quote(Path("out a b")) == "'out a b'"
    assert shlex.split(shell_quote(f"~/{ODD}")) == [f"~/{ODD}"]
    assert shell_quote(Path("-o2")) == "./-o2"
    assert shell_quote("-o 2") == "'./-o 2'"


@pytest.mark.parametrize(("out", "typed"), [("out a  b", "out a  b"), ("-o2", "./-o2"), ("out", "out")])
def test_train_prints_the_next_command(out: str, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = SimpleNamespace(
        training=TrainingDocument(epochs=1, monitor="val_accuracy"), recipe=SimpleNamespace(defence=DefenceRecipe())
    )
    monkeypatch.setattr(api, "train", lambda *_, **__: trained)
    printed = run("train", "--data", tmp_path / ODD, "--model", "test_resnet", f"--out={out}").stdout.splitlines()[-1]
    assert shlex.split(printed.removeprefix("next: ")) == ["trustcxr", "evaluate", typed, "--data", str(tmp_path / ODD)]


LONG = "evaluating a-network-whose-name-has-forty-four-letters-in-it on 570 images"


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("timed", [True, False])
def test_numbers_of_a_bar_are_whole_however_long_its_words_are(
    width: int, timed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", str(width))):
        monkeypatch.setenv(name, value)
    with Progress(LONG, 10_000, timed=timed) as bar:
        bar.advance(9_000, note="worst-case [0.02] of a long name")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).replace("\r", "\n").splitlines()
    line = next(line for line in lines if "9000" in line)
    assert re.search(r" 9000/10000 elapsed 0:00:0\d " + ("left -:--:-- " if timed else ""), line), line
    assert line.startswith(LONG if width == 200 else "eva")
    assert ("…" in line) == (width < 200)
    assert len(line.rstrip()) <= width
    if width == 200:
        assert "[0.02]" in line


def test_long_words_are_broken_and_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    letters = "".join(chr(97 + n % 26) for n in range(100))
    report.print_rows("long words", [{"folder": letters, "why": letters.upper(), "n": 570}])
    shown = capsys.readouterr().out
    assert min(sum(map(shown.count, set(part))) for part in (letters, letters.upper())) >= 100
    assert "570" in shown
    assert max(map(len, shown.splitlines())) <= 60


def test_a_notebook_has_a_bar_that_goes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert not console.in_notebook()
    shell = SimpleNamespace(kernel=None, config={})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert console.in_notebook()
    with Progress("evaluating", 10) as bar:
        bar.skip(6)
        time.sleep(0.15)  # tqdm draws at most ten times a second
        bar.advance(4, note="pgd 0.02")
    shown = capsys.readouterr().err
    assert all(words in shown for words in ("evaluating: 100%", "4/4", "pgd 0.02")), shown
    assert shown.split("\r")[-1].strip() == ""
    before = console.redirect(lambda text: None)
    try:
        with Progress("evaluating", 10) as bar:
            bar.advance(10)
    finally:
        console.redirect(before)
    assert capsys.readouterr().err == ""
