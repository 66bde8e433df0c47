"""The command line as a user meets it: what it prints, what it leaves behind, how it complains."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from small_runs import newest
from trustcxr import cli, registry
from trustcxr.data import load_dataset
from trustcxr.data.checks import check
from trustcxr.data.phantom import write_files
from trustcxr.errors import CannotWrite
from trustcxr.storage import atomic


@dataclass
class Done:
    """What a command printed."""

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


@pytest.mark.slow
def test_python_minus_m_is_the_command() -> None:
    command = [sys.executable, "-m", "trustcxr", "report", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("trustcxr: nowhere: no such study folder")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic data set in COVID-QU-Ex's layout."""
    return write_files.write(tmp_path_factory.mktemp("images") / "phantom", {"Train": 12, "Val": 4, "Test": 5}, size=64)


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained for a moment through the command line."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--model", "test_resnet", "--weights", "none", "--size", "32", "--epochs", "4", "--batch-size", "12"]
    done = run("train", "--data", images, *options, "--out", out)
    assert "best val_accuracy" in done.stdout
    return out


def test_a_robust_accuracy_is_said_with_its_epsilon(images: Path, tmp_path: Path) -> None:
    options = ["--model", "test_resnet", "--weights", "none", "--size", "32", "--epochs", "1", "--batch-size", "12"]
    done = run("train", "--data", images, *options, "--defence", "fgsm", "--epsilon", "0.01", "--out", tmp_path / "run")
    assert re.search(r"best val_pgd_accuracy \d+\.\d% at epsilon 0\.01 after 1 epoch", done.stdout)
    assert re.search(r"best val_pgd_accuracy \d+\.\d% at epsilon 0\.01, at epoch 1", done.stderr)


def test_a_study_trains_its_runs_itself(images: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("recipe: {}\n")
    assert "holds a study" in complaint("train", "--data", images, "--model", "test_resnet", "--out", tmp_path)


def test_evaluate_prints_the_metrics_document(trained: Path, images: Path) -> None:
    done = run("evaluate", trained, "--data", images, "--epsilon", 0.01, "--epsilon", 0.05, "--steps", 3, "--json")
    document = json.loads(done.stdout)
    assert document == atomic.read_json(newest(trained) / "metrics.json")
    assert {"run", "classes", "split", "clean", "attacks", "corruptions", "saliency"} <= set(document)
    assert document["clean"]["n"] == 15
    asked = [(attack, epsilon) for attack in ("fgsm", "pgd") for epsilon in (0.01, 0.05)]
    assert [(a["attack"], a["epsilon"]) for a in document["attacks"]] == asked
    table = pd.read_parquet(newest(trained) / "predictions.parquet")
    counts = {"clean": 15, "fgsm": 30, "pgd": 30, **dict.fromkeys(registry.VIEWS, 15)}
    assert table["attack"].value_counts().to_dict() == counts


@pytest.mark.slow
def test_explain_measures_against_masks(trained: Path, images: Path) -> None:
    quick = ("--sample", 2, "--corruption", "jpeg", "--corruption", "letters")
    document = json.loads(run("explain", trained, "--data", images, *quick, "--json").stdout)
    assert list(document["saliency"]) == ["gradcam", "layercam", "random"]
    flat = document["saliency"]["gradcam"]
    assert (flat["n"], flat["without_mask"], flat["cells"]) == (10, 5, "1 x 1")
    assert flat["withheld"].startswith("no map: what is read has one cell")
    assert "infection_energy" not in flat
    found = json.loads(run("explain", trained, "--data", images, "--method", "gradcam@-3", *quick, "--json").stdout)
    part = found["saliency"]["gradcam@-3"]
    assert (part["n"], part["without_mask"]) == (10, 5)
    table = pd.read_parquet(newest(trained) / "saliency.parquet")
    of_gradcam = table[(table["method"] == "gradcam@-3") & (table["condition"] == "clean")]
    energy = of_gradcam[of_gradcam["measure"] == "infection_energy"]["value"]
    assert part["infection_energy"]["value"] == pytest.approx(energy.mean())
    assert [row["condition"] for row in part["stability"]] == ["fgsm", "jpeg", "letters", "pgd"]


@pytest.mark.slow
def test_explain_on_other_data_uses_the_thresholds_of_the_runs_own(trained: Path, images: Path, tmp_path: Path) -> None:
    quick = ("--sample", 0, "--corruption", "jpeg", "--method", "gradcam@-3")
    own = json.loads(run("explain", trained, "--data", images, *quick, "--json").stdout)["saliency"]["gradcam@-3"]
    other = write_files.write(tmp_path / "elsewhere", {"Train": 1, "Val": 1, "Test": 3}, size=64, seed=5)
    found = json.loads(run("explain", trained, "--data", other, "--split", "Test", *quick, "--json").stdout)
    assert found["saliency"]["gradcam@-3"]["threshold"] == own["threshold"] > 0
    assert found["saliency"]["gradcam@-3"]["n"] == 6


def test_explain_refuses_what_is_not_there(trained: Path, images: Path) -> None:
    data = ("--data", images)
    every = complaint("explain", trained, *data, "--corruption", "all", "--method", "layercam@-9")
    assert "unknown layer -9" in every, "all is a word here as it is of evaluate"
    assert "unknown corruption 'fog'" in complaint("explain", trained, *data, "--corruption", "fog")
    assert "severity" in complaint("explain", trained, *data, "--severity", 9)


def test_an_audit_offers_no_attack_that_it_cannot_carry_out(trained: Path, images: Path, tmp_path: Path) -> None:
    refused = complaint("audit", trained, "--data", images, "--out", tmp_path / "a", "--attack", "transfer")
    assert "--attack transfer: an audit has no surrogate to attack in its place; choose of fgsm, " in refused
    assert "transfer" not in run("audit", "--help").stdout


def test_predict_answers_and_leaves_a_heatmap_and_a_table(trained: Path, images: Path, tmp_path: Path) -> None:
    source = next((images / "Lung Segmentation Data").rglob("Test/COVID-19/images/*.png"))
    image = tmp_path / "chest image.png"
    shutil.copy(source, image)
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:200])
    out = tmp_path / "out"
    done = run("predict", trained, image, "--json", "--out", out)
    (answer,) = json.loads(done.stdout)["images"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["predicted"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert set(answer["survives"]) == {"fgsm", "pgd-20"}
    assert {path.name for path in out.iterdir()} == {"chest image.heatmap.png", "predictions.csv"}
    with Image.open(out / "chest image.heatmap.png") as heatmap:
        assert heatmap.size == Image.open(image).size
    refused = run("predict", trained, image, broken, "--out", out, expect=2)
    assert re.fullmatch(rf"trustcxr: {broken}: not read: .+ Give chest images as PNG, .+\n", refused.stderr)
    (answer,) = json.loads(run("predict", trained, broken, "--json", "--out", out, expect=2).stdout)["images"]
    assert answer["error"] in refused.stderr
    words = refused.stdout
    assert "Not for diagnosis" in words
    assert "broken.png: not read" in words
    assert "chest image.png: " in words


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
    wrong_data = complaint(
        "train", "--data", tmp_path / "holiday", "--model", "resnet18", "--weights", "none", "--out", out
    )
    assert "notes.txt" in wrong_data
    assert "Lung Segmentation Data" in wrong_data
    assert "ResNet50" in complaint("train", "--data", images, "--model", "ResNet5", "--out", out)
    assert "valid: standard, fgsm" in complaint(
        "train", "--data", images, "--model", "resnet18", "--defence", "fsgm", "--out", out
    )
    assert "outside [0, 1]" in complaint("evaluate", trained, "--data", images, "--epsilon", "5")
    assert "valid: fgsm, fgsm-rs, pgd, " in complaint("evaluate", trained, "--data", images, "--attack", "pdg")
    assert "not a trained run" in complaint("evaluate", images, "--data", images)
    assert "Missing" in complaint("train", "--data", images)
    assert "no such image" in complaint("predict", trained, tmp_path / "gone.png")
    assert "did you mean quick? valid: ct, demo," in complaint("study", "quik", "--data", images, "--out", out)
    for jobs in ("0", "-1"):
        assert "--jobs" in complaint("demo", "--jobs", jobs, "--out", out)
    assert not out.exists(), "before an image is drawn"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\nmodels: [resnet18]\ntraining: {epoch: 3}\n")
    unknown_key = complaint("study", recipe, "--data", images, "--out", out)
    assert re.search(r"mine\.yaml.*training\.epoch.*did you mean epochs", unknown_key)
    recipe.write_text("name: [mine\n")
    assert "not readable as YAML" in complaint("study", recipe, "--data", images, "--out", out)
    assert "beside a +" in complaint("train", "--data", images, "--model", "resnet10t+", "--out", out)
    assert not out.exists()


def test_what_is_typed_wrongly_is_said_with_the_option_that_mends_it(
    trained: Path, images: Path, tmp_path: Path
) -> None:
    """What a message advises is what the command line takes."""
    evaluated = "evaluate", trained, "--data"
    listed = tmp_path / "list.csv"
    image = next(images.rglob("Test/Normal/images/*.png"))
    listed.write_text(f"path,class,split\n{image},well,Test\n{image.with_stem('gone')},well,Test\n")
    assert "--label 'well=CLASS' or --label 'well='" in complaint(*evaluated, listed, "--label", "ill=Normal")
    assert "did you mean Normal? map the labels, as by --label 'Norml=CLASS'" in complaint(
        *evaluated, listed, "--label", "well=Norml"
    )
    listed.write_text(f"one,two\n{image},well\n")
    assert "--column path='Image Index' --column class=" in complaint(*evaluated, listed)
    assert "needs a surrogate (--surrogate)" in complaint(*evaluated, images, "--attack", "transfer")
    too_much = complaint(*evaluated, images, "--corruption", "all", "--severity", "9")
    assert "expected a number less than or equal to 5, not 9" in too_much
    assert "expected a valid integer, not 'many'" in complaint(
        "train", "--data", images, "--model", "test_resnet", "--out", tmp_path / "run", "--set", "training.epochs=many"
    )
    assert "holds the images; choose another --out" in complaint("audit", trained, "--data", images, "--out", images)
    assert not list(images.glob("*.json"))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    assert "1 file that is no image" in complaint("predict", trained, tmp_path / "texts")
    assert "per-class" in complaint("data", "phantom", tmp_path / "phantom", "--per-class", "0")


@pytest.mark.parametrize(
    "typed",
    [
        ["evaluate", "gone", "--data", "."],
        ["explain", "gone", "--data", "."],
        ["certify", "gone", "--data", "."],
        ["predict", "gone", "."],
        ["export", "gone", "--data", "."],
        ["audit", "gone", "--data", ".", "--out", "audit"],
        ["audit", "gone.yaml", "--data", "nowhere", "--out", "audit"],
        ["study", "quick", "--data", "nowhere", "--out", "study"],
        ["verify", "nowhere"],
        ["compare", "nowhere", "nowhere"],
    ],
)
def test_what_is_not_there_is_said_before_torch_is_loaded(typed: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").touch()
    (tmp_path / "run" / "model.safetensors").touch()
    places = [part if part != "gone" else "run" for part in typed]
    for words in (typed, [part if part != "." else "nowhere" for part in places]):
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
        (
            ["--epochs", 3, "--set", "training.epochs=1"],
            "--epochs and --set training.epochs=1 both say training.epochs",
        ),
        (["--set", "defence={name: fgsm}", "--defence", "pgd"], "--defence and --set defence={name: fgsm} both say"),
        (["--set", "training.epochs=2", "--set", "training.epochs=1"], "--set training.epochs and --set training.ep"),
        (["--set", "training.augment.flip=0.5", "--set", "training.augment={scale: 0}"], "both say training.augment.f"),
        (["--label", "a=Normal", "--label", "a=COVID-19"], "--label a= is there twice"),
        (["--column", "path=a", "--column", "path=b"], "--column path= is there twice"),
        (
            ["--set", "training.counterfactuals.healthy_class=x"],
            "options: counterfactuals.healthy_class: x does nothing without counterfactuals",
        ),
    ],
)
def test_what_would_be_lost_without_a_word_is_refused(typed: list[object], said: str) -> None:
    """Two words for one key, of which one would win, and a key that nothing reads."""
    assert said in complaint("train", "--data", "x", "--model", "test_resnet", "--out", "y", *typed)


def test_data_check_reads_nothing_for_a_file_that_it_could_not_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for option, place, why in (
        ("--clean", "out.txt", "Give a name that ends in .csv or .parquet"),
        ("--html", "file/x.html", "a file is where a folder should be"),
        ("--html", "", "is a directory"),
        ("--clean", "file/x/y.csv", "a file is where a folder should be"),
    ):
        assert why in complaint("data", "check", "no-such-data", option, tmp_path / place)


@pytest.mark.parametrize("how", [(), ("--json",)])
def test_data_check_says_what_it_found_before_it_writes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: tuple[str, ...]
) -> None:
    def refused(*_: object) -> None:
        raise CannotWrite("no space left")

    monkeypatch.setattr(check, "write_page", refused)
    done = run("data", "check", images, "--no-probes", "--html", tmp_path / "x.html", *how, expect=2)
    assert "no space left" in done.stderr
    assert (json.loads(done.stdout)["verdict"] if how else done.stdout.split("Verdict  ")[1]).strip()


@pytest.mark.slow
def test_a_list_with_columns_of_its_own_from_the_check_to_the_evaluation(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = load_dataset(images, size=32).table
    table = pd.DataFrame({"Picture": rows["path"], "Diagnosis read": rows["class"], "Fold": rows["split"].str.lower()})
    listed = tmp_path / "hospital.csv"
    table.to_csv(listed, index=False)
    how = ["--images", images]
    for pair in ("path=Picture", "class=Diagnosis read", "split=Fold"):
        how += ["--column", pair]
    checked = json.loads(run("data", "check", listed, *how, "--no-probes", "--json").stdout)
    assert checked["images"] == len(rows)
    out = tmp_path / "run"
    options = ["--model", "test_resnet", "--weights", "none", "--size", "32", "--epochs", "1", "--batch-size", "12"]
    run("train", "--data", listed, *how, *options, "--out", out)
    # Begun again from where the images' folder is typed otherwise, it is that run; with other images in it, it is not.
    monkeypatch.chdir(images.parent)
    typed_here = ["train", "--data", listed, "--images", images.name, *how[2:], *options, "--out", out]
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
        (("train", "--data", "", "--out", "x"), "what follows --data"),
        (("train", "--data", "x", "--out", ""), "what follows --out"),
        (("train", "--data=", "--out", "x"), "--data"),
        (("evaluate", "", "--data", "x"), "one of the words"),
        (("serve", "x", "--dicom", "A@b:1", "--dicom-host="), "--dicom-host"),
    ],
)
def test_a_variable_of_the_shell_that_is_not_set_is_not_this_folder(words: tuple[str, ...], what: str) -> None:
    assert complaint(*words) == f"trustcxr: {what} is empty: is a variable of the shell not set?"
