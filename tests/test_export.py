"""A run as one file for others: its answers, any batch, the model file beside it; and on a hub and back."""

import errno
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import trustcxr as tx
from small_runs import recipe, same, weights
from test_cli import complaint, run
from trustcxr.audit import export_run as exports
from trustcxr.audit import formats
from trustcxr.audit.subject import open_model
from trustcxr.data.phantom import write_files
from trustcxr.errors import CannotWrite, UserError
from trustcxr.evaluation.trained_run import load_before_refit
from trustcxr.models import export, factory
from trustcxr.models.factory import save_weights
from trustcxr.report import model_card
from trustcxr.storage import atomic, layout

CLASSES = ["COVID-19", "Non-COVID", "Normal"]


def made(folder: Path, *, background: str = "full", **model: object) -> Path:
    torch.manual_seed(0)
    asked = recipe("fgsm", model=dict(model), background=background)
    network = factory.build(asked.model.name, classes=len(CLASSES), **asked.network_options())
    save_weights(network, folder / layout.WEIGHTS_FILE)
    data = {"root_name": "images", "split": "Train", "images": 48, "fingerprint": "0123456789abcdef"}
    content = {"name": asked.name, "background": background, "classes": CLASSES, "data": data}
    content |= {"recipe": asked.model_dump(mode="json"), "checksums": layout.checksums(folder, CLASSES)}
    atomic.write_yaml(folder / layout.RUN_FILE, content)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("export") / "run")


def test_a_program_of_torch_export_answers_as_the_run_and_is_taken_by_an_audit(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.pt2"
    done = run("export", plain, "--format", "torch-export", "--out", out)
    assert "logits differ from the run by at most" in done.stdout
    assert "--out DIR --trust-code" in done.stdout
    given = formats.load(out.with_suffix(".yaml"), trust_code=True)
    assert (given.classes, given.size, given.origin.gradients) == (tuple(CLASSES), 32, "own")
    images = torch.rand(5, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(given.model(images), tx.load_run(plain, on="cpu").model(images), atol=1e-5)
    declared = atomic.read_yaml(out.with_suffix(".yaml"))
    assert declared["source"] == "run.pt2"
    threat, data = "L-infinity 0.02, fgsm", "images, 48 images of Train"
    assert declared["reported"] == {"threat_model": threat, "training_data": data}


def test_a_file_of_other_answers_is_not_kept(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, write = factory.build("resnet10t", classes=3), export.write
    monkeypatch.setattr(export, "write", lambda model, *rest: write(other, *rest))
    with pytest.raises(UserError, match="not written: its answers differ from the run's by"):
        exports.export(plain, "torch-export", tmp_path / "run.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_file_that_answers_nan_is_not_kept(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program agrees, and what was written of it does not."""
    monkeypatch.setattr(exports, "OnnxNet", lambda _: lambda images: torch.full((len(images), 3), torch.nan))
    with pytest.raises(UserError, match="not written: its answers differ from the run's by nan"):
        exports.export(plain, "onnx", tmp_path / "run.onnx")
    assert list(tmp_path.iterdir()) == []


def test_wrong_formats_and_endings_are_one_line(plain: Path, tmp_path: Path) -> None:
    assert "did you mean onnx" in complaint("export", plain, "--format", "onx", "--out", tmp_path / "run.onnx")
    assert "ends in .onnx" in complaint("export", plain, "--out", tmp_path / "run.pt2")
    assert "not a trained run" in complaint("export", tmp_path, "--out", tmp_path / "run.onnx")


def test_unless_said_it_goes_into_the_runs_folder(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(plain, tmp_path / "run")
    done = run("export", folder, "--format", "torch-export")
    assert done.stdout.startswith(f"{folder / 'program.pt2'}: ")
    assert atomic.read_yaml(folder / "program.yaml")["source"] == "program.pt2"
    assert tx.load_run(folder).name == tx.load_run(plain).name, "it is the run that it was"
    assert set(exports.NAMES) == set(export.FORMATS)
    assert len({Path(name).stem for name in exports.NAMES.values()}) == len(exports.NAMES), "each has its model file"
    assert "say --out FILE, such as --out model.onnx" in complaint("export", "hf://owner/name")


def test_a_file_of_the_model_files_name_is_never_replaced(plain: Path, tmp_path: Path) -> None:
    run_folder = shutil.copytree(plain, tmp_path / "run")
    command = ("export", run_folder, "--format", "torch-export", "--out")
    said = complaint(*command, run_folder / "run.pt2")
    assert "run.yaml: is there, and the model file of run.pt2 would take its place" in said
    assert (run_folder / "run.yaml").read_bytes() == (plain / "run.yaml").read_bytes()
    assert not (run_folder / "run.pt2").exists()
    (tmp_path / "theirs.pt2").write_bytes(b"theirs")
    said = complaint(*command, tmp_path / "theirs.pt2")
    assert "theirs.pt2: is there, and no model file beside it says that it was exported" in said
    assert (tmp_path / "theirs.pt2").read_bytes() == b"theirs"
    atomic.write_yaml(tmp_path / "again.yaml", {"source": "again.pt2"})  # an older one of its own is
    exports.export(plain, "torch-export", tmp_path / "again.pt2")
    assert atomic.read_yaml(tmp_path / "again.yaml")["name"] == "test_resnet-fgsm-s0"


def full(*_: object, **__: object) -> None:
    """Stand for a function that writes to a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_no_fault_of_the_model(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(CannotWrite, match=r"run\.pt2: cannot be written: no space left on the disk"):
        exports.export(plain, "torch-export", tmp_path / "run.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("kind", export.FORMATS)
@pytest.mark.parametrize("made_how", [{}, {"members": 2}, {"background": "gate"}, {"normalisation": "group"}], ids=str)
def test_every_kind_of_run_can_be_written_in_both_formats(kind: str, made_how: dict[str, Any], tmp_path: Path) -> None:
    found = exports.export(made(tmp_path / "run", **made_how), kind, tmp_path / f"run{export.FORMATS[kind]}")
    assert found.largest <= exports.ALLOWED
    assert found.gradients in ("own", "converted"), found.note
    assert (found.opset == export.OPSET) == (kind == "onnx")


@pytest.mark.slow
def test_an_onnx_file_takes_any_batch_and_agrees_on_images(plain: Path, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    radiographs = write_files.write(tmp_path / "images", {"Train": 1, "Val": 1, "Test": 3}, size=48)
    out = tmp_path / "run.onnx"
    found = exports.export(plain, "onnx", out, data=radiographs)
    assert found.images == "9 images of images"
    assert {p.name for p in tmp_path.glob("run.*")} == {"run.onnx", "run.yaml"}
    assert [o.version for o in onnx.load(str(out)).opset_import if not o.domain] == [export.OPSET]
    session = onnxruntime.InferenceSession(str(out))
    assert [i.name for i in session.get_inputs()] == ["images"]
    for batch in (1, 3, 7):
        images = np.random.default_rng(0).random((batch, 1, 32, 32), np.float32)
        assert session.run(None, {"images": images})[0].shape == (batch, 3)
    test = tmp_path / "audit"
    audited = run("audit", out.with_suffix(".yaml"), "--data", radiographs, "--out", test, "--attack", "fgsm", "--json")
    assert '"kind": "ONNX"' in audited.stdout


@dataclass
class Hub:
    """A folder that stands for a hub: what is uploaded lies in it, and is what is downloaded."""

    place: Path
    private: dict[str, bool] = field(default_factory=dict)

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        (self.place / repository).mkdir(parents=True, exist_ok=exist_ok)
        self.private[repository] = private

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str, delete_patterns: list[str]) -> None:
        for name in delete_patterns:
            (self.place / repo_id / name).unlink(missing_ok=True)
        shutil.copytree(folder_path, self.place / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        if not (self.place / repository).is_dir():
            raise FileNotFoundError(f"404: {repository}")
        return str(self.place / repository)


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def test_a_run_goes_to_a_hub_and_comes_back(plain: Path, local_hub: Hub) -> None:
    done = run("push", plain, "hf://lab/robust")
    assert 'tx.load_run("hf://lab/robust")' in done.stdout
    assert local_hub.private == {"lab/robust": True}
    sent = {path.name for path in (local_hub.place / "lab" / "robust").iterdir()}
    assert sent == {"model.safetensors", "run.yaml", "README.md"}
    back = tx.load_run("hf://lab/robust", on="cpu")
    assert back.name == "test_resnet-fgsm-s0"
    assert same(weights(back.folder), weights(plain))
    assert tx.load_run(Path("hf://lab/robust"), on="cpu").name == back.name, "also where it was taken for a path"
    assert open_model("hf://lab/robust").name == back.name, "an audit takes it too"
    with pytest.raises(UserError, match="hf://lab/none: the hub refused or cannot be reached"):
        tx.load_run(Path("hf://lab/none"))
    with pytest.raises(UserError, match="hf://lab/none@v1: the hub refused"):
        tx.load_run("hf://lab/none@v1")
    with pytest.raises(UserError, match=r"not a hub's address\. Write hf://owner/name"):
        tx.load_run("hf://robust")


def test_names_of_training_images_stay_here_and_a_full_disk_is_said(
    plain: Path, tmp_path: Path, local_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder = shutil.copytree(plain, tmp_path / "run")
    names = pd.DataFrame({"sample_id": ["Train/DOE-JANE-1970"], "image": ["0" * 32]})
    atomic.write_table(run_folder / layout.IMAGES_FILE, names)
    run("push", run_folder, "hf://lab/robust")
    sent = local_hub.place / "lab" / "robust"
    assert atomic.read_table(sent / layout.IMAGES_FILE).to_dict("list") == {"image": ["0" * 32]}
    assert not [path for path in sent.iterdir() if b"DOE-JANE" in path.read_bytes()]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(OSError, match="No space left"):
        tx.load_run("hf://lab/robust")


def test_a_folder_stands_for_a_hub(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run("push", plain, tmp_path / "owner" / "name").stdout
    assert f"is at {tmp_path / 'owner' / 'name'} (a folder of this machine); " in said
    monkeypatch.chdir(tmp_path)
    assert "for a hub write hf://lab/robust)" in run("push", plain, "lab/robust").stdout
    place, empty = tmp_path / "shared" / "robust", tmp_path / "empty"
    empty.mkdir()
    for folder in (place, empty):
        run("push", plain, folder)
        assert tx.load_run(folder, on="cpu").name == "test_resnet-fgsm-s0"
    assert "is not empty. Choose a new or an empty folder" in complaint("push", plain, place)
    assert "is not empty" in complaint("push", plain, place / "run.yaml")
    own = Path(shutil.copytree(plain, tmp_path / "own"))
    assert "is not empty" in complaint("push", own, own)
    assert not (own / "README.md").exists()


def test_the_card_of_a_run_says_what_it_is_and_what_it_does_not_know(plain: Path) -> None:
    front, body = model_card.render_card(plain).split("---\n", 2)[1:]
    assert yaml.safe_load(front)["model_name"] == "test_resnet-fgsm-s0"
    for part in ("Research software. Not for diagnosis.", "fingerprint 0123456789abcdef", "fgsm, epsilon 0.02"):
        assert part in body
    assert "Not tested yet" in body
    assert "[license]" in body


def test_a_hub_holds_the_figures_and_weights_of_one_training(plain: Path, tmp_path: Path, local_hub: Hub) -> None:
    place, again = local_hub.place / "lab" / "robust", made(tmp_path / "again", members=2)
    run("push", plain, "hf://lab/robust")
    (place / "metrics.json").write_text("{}")
    run("push", again, "hf://lab/robust")
    assert not (place / "metrics.json").exists(), "of the other training"
    assert atomic.checksum(place / "model.safetensors") == atomic.checksum(again / "model.safetensors")


def test_the_weights_that_validation_judged_go_along(plain: Path, tmp_path: Path) -> None:
    refit = shutil.copytree(plain, tmp_path / "refit")
    shutil.copytree(plain, refit / "before_refit")
    content = atomic.read_yaml(refit / "run.yaml")
    content["recipe"].setdefault("training", {})["refit"] = True
    atomic.write_yaml(refit / "run.yaml", content)
    run("push", refit, tmp_path / "shared")
    there, before = tx.load_run(tmp_path / "shared", on="cpu"), tmp_path / "shared" / "before_refit"
    assert load_before_refit(there).folder == before
    shutil.rmtree(before)
    with pytest.raises(UserError, match="validation judged"):
        load_before_refit(there)
