"""`trustcxr audit`: any model through the examination, and what is said of it."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from pack import Pack
from small_networks import write_onnx
from test_cli import complaint, run
from trustcxr.attacks.adaptive import distil
from trustcxr.audit import attack_runner, compare, second_instance
from trustcxr.audit import run_audit as audits
from trustcxr.audit.entry_checks import Check, EntryReport, run_entry_checks
from trustcxr.evaluation import predictions
from trustcxr.evaluation.trained_run import load_run
from trustcxr.recipes import protocol
from trustcxr.runs import run_folder
from trustcxr.storage import atomic, schemas

CLASSES = ("dark", "grey", "bright")
GREYS = (0.3, 0.5, 0.7)
REPORTED = "reported: {clean: 0.99, attacked: 0.9, threat_model: L-infinity 0.02, training_data: greys, paper: none}\n"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    few_steps(monkeypatch)


def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol with few steps; what is equal and what is said does not hang on them."""
    real = protocol.load_exam()
    few = [a.model_copy(update={"steps": a.steps and 3, "queries": a.queries and 3}) for a in real.attacks]
    entry_checks = real.entry_checks.model_copy(update={"planted": 4})
    blind = [a.model_copy(update={"steps": a.steps and 3, "queries": 20}) for a in real.without_gradients]
    changed = {"attacks": tuple(few), "without_gradients": tuple(blind), "entry_checks": entry_checks, "bootstrap": 200}
    changed["guards"] = real.guards.model_copy(update={"images": 8, "queries": 20, "large_images": 4})
    short = real.model_copy(update=changed)
    monkeypatch.setattr(audits, "load_exam", lambda *_: short)
    monkeypatch.setattr(attack_runner, "distil", partial(distil, steps=20))
    # In this process, without the seconds that another takes to import torch.
    monkeypatch.setattr(second_instance, "run_elsewhere", second_instance.answer_request)


class Brightness(nn.Module):
    """Tells images by their mean: logits are highest for the nearest grey of the classes."""

    def __init__(self, order: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        greys = torch.tensor([GREYS[k] for k in order])
        self.layer = nn.Linear(1, 3)
        self.layer.weight.data, self.layer.bias.data = 100 * 2 * greys[:, None], -100 * greys**2

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.mean((2, 3)))


@pytest.fixture(scope="module")
def greys(pack: Pack) -> Path:
    return pack.greys()


def write_greys(root: Path) -> None:
    """Write three classes of noisy images that differ in brightness."""
    random = np.random.default_rng(0)
    for name, grey in zip(CLASSES, GREYS, strict=True):
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = 255 * (grey + 0.04 * random.standard_normal() + 0.1 * random.standard_normal((16, 16)))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{name}{number}.png")


def model_file(folder: Path, net: nn.Module, classes: tuple[str, ...] = CLASSES, size: int = 16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_onnx(net, folder / "net.onnx", size)
    text = f"source: net.onnx\ninput: {{size: {size}}}\noutput: {{kind: logits, classes: [{', '.join(classes)}]}}\n"
    (folder / "model.yaml").write_text(text)
    return folder / "model.yaml"


def python_file(folder: Path, name: str) -> Path:
    """A model file of code in this module."""
    text = f"python: test_audit_command:{name}\ninput: {{size: 16}}\noutput: {{classes: [{', '.join(CLASSES)}]}}\n"
    (folder / "model.yaml").write_text(text)
    return folder / "model.yaml"


@pytest.mark.slow
@pytest.mark.usefixtures("no_bfloat16")
def test_the_audit_of_a_run_has_the_figures_of_its_evaluation(pack: Pack, tmp_path: Path) -> None:
    folder = shutil.copytree(pack.run("standard"), tmp_path / "run")
    images = pack.folder / "training-images" / "phantom"

    def figures(document: Any) -> dict[tuple[str, float], float]:
        attacks = [row for row in document["attacks"] if row["attack"] in ("fgsm", "pgd")]
        rows = [{"attack": "clean", "epsilon": 0.0} | document["clean"], *attacks]
        return {(row["attack"], row["epsilon"]): row["accuracy"]["value"] for row in rows}

    own, _ = run_folder.evaluate(folder, images, attacks=["fgsm", "pgd"], epsilons=[0.005, 0.01, 0.02], steps=3)
    done = run("audit", folder, "--data", images, "--out", tmp_path / "audit", "--json")
    document = json.loads(done.stdout)
    assert figures(document).items() <= figures(own.plain()).items()
    assert len(figures(document)) == 6, "clean, FGSM at two epsilons, PGD at three"
    assert (document["protocol"], document["model"]["kind"], len(document["corruptions"])) == ("exam-1", "run", 15)
    assert "bfloat16" not in document["facts"]
    assert schemas.read_schema(schemas.AuditDocument, tmp_path / "audit" / "audit.json").plain() == document
    # The same network as a file of weights, without anything of ours beside it.
    ours = load_run(folder).model
    save_file({k: v.contiguous() for k, v in ours.net.state_dict().items()}, tmp_path / "weights.safetensors")
    about = f"input: {{size: 32, mean: [{float(ours.mean)}], std: [{float(ours.std)}]}}"
    output = f"output: {{kind: logits, classes: [{', '.join(document['classes'])}]}}"
    (tmp_path / "model.yaml").write_text(f"source: weights.safetensors\ntimm: test_resnet\n{about}\n{output}\n")
    given = audits.audit(tmp_path / "model.yaml", images, tmp_path / "given").plain()
    assert (given["model"]["kind"], given["data"]) == ("weights", document["data"])
    assert figures(given) == pytest.approx(figures(document))


@pytest.mark.slow
def test_an_honest_model_may_be_relied_on_and_is_not_examined_twice(greys: Path, tmp_path: Path) -> None:
    model, out = model_file(tmp_path / "model", Brightness()), tmp_path / "audit"
    done = run("audit", model, "--data", greys, "--out", out)
    document = atomic.read_json(out / "audit.json")
    assert (document["verdict"]["sound"], document["verdict"]["reasons"]) == (True, [])
    assert document["clean"]["accuracy"]["value"] > 0.9
    assert all(check["passed"] is not False for check in document["entry_checks"])
    assert "Results:" in done.stdout
    assert "Research" in done.stdout
    assert not (out / ".parts").exists()
    again = run("audit", model, "--data", greys, "--out", out)
    assert "already examined" in again.stderr
    changed = audits.audit(model, greys, tmp_path / "other", attacks=["fgsm"], epsilons=[0.05])
    assert changed.plain()["protocol"] is None
    assert [(row["attack"], row["epsilon"]) for row in changed.plain()["attacks"]] == [("fgsm", 0.05)]


def test_two_audits_compare_image_by_image_or_it_is_said_why_not(pack: Pack, tmp_path: Path) -> None:
    out = Path(shutil.copytree(pack.audits(), tmp_path / "audits"))
    good, bad = out / "good", out / "bad"
    found = compare.compare(good, bad, resamples=200)
    clean = found.plain()["rows"][0]
    assert clean["measure"] == "clean accuracy"
    tables = [atomic.read_table(folder / "predictions.parquet").query("attack == 'clean'") for folder in (good, bad)]
    right = [np.stack(table["logits"]).argmax(1) == table["label"] for table in tables]
    assert clean["difference"]["value"] == pytest.approx(float(right[1].mean() - right[0].mean()))
    assert clean["difference"]["value"] < -0.2
    assert clean["settled"]
    assert not any(row["settled"] for row in compare.compare(good, good, resamples=200).plain()["rows"])
    assert {"less", "Research"} <= set(re.findall(r"\w+", run("compare", good, bad).stdout))
    assert "no audit.json" in complaint("compare", good, tmp_path)
    content = atomic.read_json(good / "audit.json")
    for exam, words in ((None, "other options"), ("exam-0", "examined by exam-1 and by exam-0")):
        atomic.write_json(bad / "audit.json", content | {"protocol": exam})
        assert words in complaint("compare", good, bad)


def test_code_of_the_makers_is_refused_unless_it_is_trusted(greys: Path, tmp_path: Path) -> None:
    model = python_file(tmp_path, "Brightness")
    at = ["audit", model, "--data", greys, "--out", tmp_path / "audit", "--attack", "fgsm"]
    assert "--trust-code" in complaint(*at)
    assert not (tmp_path / "audit").exists()
    run(*at, "--trust-code")
    assert atomic.read_json(tmp_path / "audit" / "audit.json")["model"]["kind"] == "python"


@pytest.mark.slow
def test_what_was_cut_off_goes_on(greys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = audits.load_exam().model_copy(update={"batch_size": 12})
    monkeypatch.setattr(audits, "load_exam", lambda *_: short)
    model, real, asked = model_file(tmp_path / "model", Brightness()), predictions._attacked, []

    def cut(*args: object, seed: int, **options: object) -> object:
        if seed == 2 and not asked.count(2):
            asked.append(2)
            raise KeyboardInterrupt
        asked.append(seed)
        return real(*args, seed=seed, **options)

    monkeypatch.setattr(predictions, "_attacked", cut)
    monkeypatch.setattr(audits.Audit, "parallel", False)  # of two at once either may come first
    with pytest.raises(KeyboardInterrupt):
        audits.audit(model, greys, tmp_path / "audit", attacks=["fgsm"])
    document = audits.audit(model, greys, tmp_path / "audit", attacks=["fgsm"])
    assert asked == [0, 1, 2, 2], "finished batches are not attacked again"
    whole = audits.audit(model, greys, tmp_path / "whole", attacks=["fgsm"])
    assert whole == document


@pytest.mark.slow
def test_an_attack_that_misses_is_withdrawn(greys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missed(*args: Any, **options: Any) -> EntryReport:
        found = run_entry_checks(*args, **options)
        kept = [check for check in found.checks if check.check != "active test"]
        return replace(found, checks=(*kept, Check("active test", False, "it missed all", grave=True)))

    monkeypatch.setattr(audits, "run_entry_checks", missed)
    done = run("audit", model_file(tmp_path / "model", Brightness()), "--data", greys, "--out", tmp_path / "audit")
    document = atomic.read_json(tmp_path / "audit" / "audit.json")
    left = {row["attack"] for row in document["attacks"] if row["accuracy"]["value"] is not None}
    assert left == {"square"}, "it needed no gradient"
    assert not document["verdict"]["sound"]
    assert document["withdrawn"]
    assert "withdrawn: FGSM, PGD-3, worst-case-3/" in done.stdout
    assert "under PGD" not in done.stdout
    schemas.AuditDocument.model_validate(document)


class Quantised(Brightness):
    """Brightness of an image of a few grey levels, so without a gradient of its own."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((images * 15).round() / 15)


def test_gradients_that_are_stopped_do_not_save_a_model(greys: Path, tmp_path: Path) -> None:
    model = model_file(tmp_path / "model", Quantised())
    document = audits.audit(model, greys, tmp_path / "audit", attacks=["pgd"], epsilons=[0.2])
    assert next(check for check in document.entry_checks if check.check == "gradients").passed is False
    assert document.clean.accuracy.value > 0.9
    assert document.attacks[0].accuracy.value < 0.2
    assert not [reason for reason in document.verdict.reasons if reason.startswith("gradients:")]


def blind(images: Tensor) -> Any:
    """Scores in numpy, through which nothing leads back."""
    mean = images.numpy().mean((2, 3))
    return 200 * mean * np.array(GREYS, dtype=np.float32) - 100 * np.array(GREYS, dtype=np.float32) ** 2


def test_without_gradients_it_is_attacked_without_them_and_that_is_said(greys: Path, tmp_path: Path) -> None:
    model = python_file(tmp_path, "blind")
    document = audits.audit(model, greys, tmp_path / "audit", epsilons=[0.2], trust_code=True)
    assert {row.attack for row in document.attacks} == {"square", "worst-case"}
    assert min(row.accuracy.value for row in document.attacks) < document.clean.accuracy.value
    assert not document.verdict.sound
    assert "attacks without gradients can only overestimate" in "; ".join(document.verdict.reasons)


def test_init_prints_a_model_file_with_questions_or_json_where_it_is_asked_for(tmp_path: Path) -> None:
    model_file(tmp_path, Brightness())
    printed = run("audit", tmp_path / "net.onnx", "--init").stdout
    draft = json.loads(run("audit", tmp_path / "net.onnx", "--init", "--json").stdout)
    assert (draft["source"], draft["input"]["resize"]) == ("net.onnx", "squeeze")
    questions = draft.pop("questions")
    assert "resize: squeeze  # ? how an image becomes a square: squeeze, pad or crop" in questions
    assert draft == yaml.safe_load(printed)
    assert len(questions) == printed.count("# ?")
    assert "--data" in complaint("audit", tmp_path / "model.yaml")
    for bare, place in ((tmp_path / "net.onnx", tmp_path / "model.yaml"), ("their_module:make", "model.yaml")):
        refused = complaint("audit", bare, "--data", "x", "--out", "y")
        assert refused.endswith(
            f"{bare}: needs a model file that describes its input and output. Create one: "
            f"trustcxr audit {bare} --init > {place}"
        )


def test_a_run_is_not_examined_on_images_that_it_was_trained_on(greys: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = ["--model", "test_resnet", "--size", "16", "--epochs", "1", "--set", "model.weights=none"]
    run("train", "--data", greys, *small, "--out", out)
    document = audits.audit(out, greys, tmp_path / "audit", attacks=["fgsm"])
    assert document.split == "Test"
    assert document.clean.n < 12
    reported = document.model.reported
    assert (reported.training_data, reported.threat_model) == ("images", "standard")
    assert (tmp_path / "audit" / "validation.parquet").is_file()
    assert {p.origin for p in document.operating_points} != {"the highest class is the answer"}
