"""`trustcxr explain` of a model file: what is measured of a run's maps, of any model."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from foreign_models import CLASSES, SIDE, onnx, small, traced
from small_runs import newest, untrained
from test_cli import complaint, run
from trustcxr.data import load_dataset
from trustcxr.data.dataset import describe_training_data
from trustcxr.data.phantom import write_files
from trustcxr.evaluation.trained_run import load_run
from trustcxr.storage import atomic, schemas

SIZE = 64  # at which the last map of the tests' network has more than one cell
QUICK = ("--sample", 3, "--corruption", "jpeg")
KEYS = ["sample_id", "method", "condition", "measure"]
RGB = f"input: {{size: {SIDE}, channels: 3, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}"


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files.write(tmp_path_factory.mktemp("given") / "images", {"Train": 1, "Val": 2, "Test": 3}, size=SIZE)


@pytest.fixture(scope="module")
def own(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = untrained(tmp_path_factory.mktemp("own") / "run", CLASSES)
    content = atomic.read_yaml(folder / "run.yaml")
    atomic.section(atomic.section(content, "recipe"), "data")["size"] = SIZE
    content["data"] = describe_training_data(load_dataset(radiographs, "Train", SIZE))
    atomic.write_yaml(folder / "run.yaml", content)
    run("explain", folder, "--data", radiographs, *QUICK)
    return folder


def model_file(folder: Path, source: str, about: str = RGB, kind: str = "logits", name: str = "model") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(f"{source}\n{about}\noutput: {{kind: {kind}, classes: [{', '.join(CLASSES)}]}}\n")
    return path


def of_run(own: Path) -> str:
    """What a model file says of the images of a run."""
    ours = load_run(own, on="cpu").model
    return f"input: {{size: {SIZE}, mean: [{float(ours.mean)}], std: [{float(ours.std)}]}}"


def tables(own: Path, out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    first, second = (
        pd.read_parquet(place / "saliency.parquet").set_index(KEYS).sort_index() for place in (newest(own), out)
    )
    return first, second


def assert_same(first: pd.DataFrame, second: pd.DataFrame) -> None:
    """The same rows and figures, but for what rounding does to a normalisation that is reckoned in another order."""
    assert first.index.equals(second.index)
    assert list(first.columns) == list(second.columns)
    for name, column in first.items():
        if column.dtype.kind == "f":
            np.testing.assert_allclose(second[name], column, atol=2e-3, err_msg=str(name))
        else:
            assert column.equals(second[name]), name


@pytest.mark.slow
def test_a_module_has_the_table_of_the_same_network_as_a_run(own: Path, radiographs: Path, tmp_path: Path) -> None:
    (tmp_path / "of_a_run.py").write_text(
        "from trustcxr.evaluation.trained_run import load_run\n"
        f"def network():\n    return load_run({str(own)!r}, on='cpu').model.net\n"
    )
    model, out = model_file(tmp_path, "python: of_a_run:network", of_run(own)), tmp_path / "out"
    done = run("explain", model, "--data", radiographs, "--out", out, "--trust-code", *QUICK)
    assert_same(*tables(own, out))
    removed = [atomic.read_table(place / "lesion_effects.parquet") for place in (newest(own), out)]
    pd.testing.assert_frame_equal(*removed, atol=1e-4)
    assert "model, gradcam: 6 annotated images" in done.stdout
    # In a terminal of 80 columns each measure has its value, and of the controls the best with its name.
    rows = [line for line in done.stdout.splitlines() if line.startswith(("infection auroc", "infection ap"))]
    assert len(rows) == 3 * 2
    assert all(len(re.findall(r"\b[01]\.\d{3}\b", row)) >= 4 for row in rows), "value, chance, control, random weights"
    assert any(name in done.stdout for name in ("brightness", "mean", "edges"))
    assert "random weights: 5 networks on 6 images" in done.stdout
    assert "Not for diagnosis" in done.stdout
    document = schemas.read_schema(schemas.RunDocument, out / "metrics.json")
    assert (document.run, document.origin, document.classes) == ("model", "given", list(CLASSES))
    assert (document.external_model.kind, document.external_model.path) == ("python", "of_a_run:network")
    assert document.external_model.sha256
    theirs = schemas.read_schema(schemas.RunDocument, newest(own) / "metrics.json")
    for name, part in theirs.saliency.items():
        assert document.saliency[name].threshold == part.threshold
        assert document.saliency[name].verdict[:30] == part.verdict[:30]
        assert (part.figures["infection_energy"].mean_mask or 0) > 0, "of the data's training images"
    assert document.clean.accuracy.value == theirs.clean.accuracy.value
    assert [row.fill for row in document.lesions] == [row.fill for row in theirs.lesions]


@pytest.mark.slow
def test_what_a_file_does_not_allow_is_left_out_and_said(own: Path, radiographs: Path, tmp_path: Path) -> None:
    net, images = load_run(own, on="cpu").model.net, torch.rand(2, 1, SIZE, SIZE)
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net, (images,), dynamic_shapes=batch), tmp_path / "m.pt2")
    model, out = model_file(tmp_path, "source: m.pt2", of_run(own)), tmp_path / "out"
    trusted = ("--trust-code", "--data", radiographs)
    done = run("explain", model, *trusted, "--out", out, *QUICK, "--json")
    first, second = tables(own, out)
    assert first["randomised"].notna().any()
    assert second["randomised"].notna().any()
    random = first.index.get_level_values("condition").str.startswith("randomised:")
    hidden = ["randomised", "randomised_spread"]
    assert_same(first[~random].drop(columns=hidden), second.drop(columns=hidden))
    document = json.loads(done.stdout)
    assert document["saliency"]["gradcam"]["verdict"]
    (note,) = [note for note in document["notes"] if "made random part by part" in note]
    assert note in done.stderr
    assert document["external_model"]["kind"] == "torch.export"
    # Neither another method's maps nor another model's are put beside it.
    more = ("--method", "integrated-gradients", "--sample", 0, "--corruption", "jpeg", "--json")
    assert "results are never mixed" in complaint("explain", model, *trusted, "--out", out, *more)
    other = model_file(tmp_path, "source: m.pt2", f"input: {{size: {SIZE}}}", name="other")
    assert "holds results of model" in complaint("explain", other, *trusted, "--out", out)
    assert "holds results of model" in complaint("explain", model, *trusted, "--out", out, "--split", "Val")
    assert f"{own}: holds a run" in complaint("explain", model, *trusted, "--out", own)


@pytest.mark.slow
def test_a_function_without_gradients_is_explained_by_what_follows_none(radiographs: Path, tmp_path: Path) -> None:
    model, out = model_file(tmp_path, "python: foreign_models:scores"), tmp_path / "out"
    typed = ("explain", model, "--data", radiographs, "--out", out, "--trust-code")
    refused = complaint(*typed)
    assert "can follow no gradients in it, and gradcam and layercam cannot do without" in refused
    assert refused.endswith("name methods that can: --method occlusion")
    assert not out.exists()
    document = json.loads(run(*typed, *QUICK, "--method", "occlusion", "--json").stdout)
    assert [row["condition"] for row in document["saliency"]["occlusion"]["stability"]] == ["jpeg"]
    assert any("stability under FGSM and PGD is not measured" in note for note in document["notes"])


@pytest.mark.slow
def test_a_network_whose_last_map_is_not_seen_is_explained_by_what_reads_none(
    radiographs: Path, tmp_path: Path
) -> None:
    traced(small(), tmp_path / "m.pt")
    model, out = model_file(tmp_path, "source: m.pt"), tmp_path / "out"
    typed = ("explain", model, "--data", radiographs, "--out", out, "--trust-code")  # then torch's own runtime has it
    refused = complaint(*typed, "--method", "gradcam")
    assert "torch sees no last feature map in it, which gradcam would read" in refused
    assert "--method integrated-gradients or --method smoothgrad or --method occlusion" in refused
    document = json.loads(run(*typed, *QUICK, "--method", "integrated-gradients", "--json").stdout)
    part = document["saliency"]["integrated-gradients"]
    assert part["n"] == part["random_weights"]["n"] == 6
    assert "sanity" not in part or not part["sanity"]
    assert any("made random part by part" in note for note in document["notes"])


def test_what_cannot_be_explained_is_refused_in_one_line(radiographs: Path, tmp_path: Path) -> None:
    onnx(small(), tmp_path / "m.onnx")
    model, out = model_file(tmp_path, "source: m.onnx"), ("--out", tmp_path / "out")
    data = ("--data", radiographs)
    assert complaint("explain", model, *data).endswith(f"explain {model}: say --out DIR; see trustcxr explain --help")
    findings = model_file(tmp_path, "source: m.onnx", kind="sigmoid", name="findings")
    assert "findings: has a sigmoid for each finding" in complaint("explain", findings, *data, *out)
    (tmp_path / "scores.csv").write_text(f"id,{','.join(CLASSES)}\nfilm,1,0,0\n")
    table = model_file(tmp_path, "predictions: scores.csv", "", name="table")
    assert "only scores of table are available" in complaint("explain", table, *data, *out)
    code = model_file(tmp_path, "python: foreign_models:a_network", name="code")
    assert "Give --trust-code" in complaint("explain", code, *data, *out)
    assert "trustcxr audit" in complaint("explain", tmp_path / "m.onnx", *data, *out)
    assert "no such model file" in complaint("explain", tmp_path / "gone.yaml", *data, *out)
    assert "unknown layer 'layer9'" in complaint("explain", model, *data, *out, "--method", "layercam@layer9")
    assert "unknown saliency method" in complaint("explain", model, *data, *out, "--method", "gradcm")
    assert not (tmp_path / "out").exists()


def test_evaluate_points_to_the_audit_with_the_command_written_out(radiographs: Path, tmp_path: Path) -> None:
    model = model_file(tmp_path, "source: m.pt2", name="their model")
    refused = complaint("evaluate", model, "--data", radiographs)
    words = refused.removesuffix(" DIR")
    assert shlex.split(words[words.index("trustcxr audit") :]) == [
        *("trustcxr", "audit", str(model), "--data", str(radiographs), "--out")
    ]


@pytest.mark.slow
def test_a_run_is_explained_into_another_folder_where_one_is_named(
    own: Path, radiographs: Path, tmp_path: Path
) -> None:
    before = set(own.glob("evaluations/*"))
    run("explain", own, "--data", radiographs, *QUICK, "--method", "gradcam", "--out", tmp_path / "out")
    assert set(own.glob("evaluations/*")) == before
    assert (tmp_path / "out" / "saliency.parquet").is_file()


@pytest.mark.slow
def test_a_run_is_not_explained_into_the_folder_of_a_given_model_of_its_name(
    own: Path, radiographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "maps"
    shutil.copytree(newest(own), out)
    atomic.write_batches(out / "predictions.parquet", [atomic.read_table(out / "predictions.parquet")], "0123")
    assert "results are never mixed" in complaint("explain", own, "--data", radiographs, "--out", out, *QUICK)


def test_the_mean_mask_is_of_no_image_that_is_explained_and_of_no_such_patient(radiographs: Path) -> None:
    from trustcxr.data import load_dataset
    from trustcxr.runs.explain_run import _mean_mask

    train, whole = load_dataset(radiographs, "Train", SIZE), load_dataset(radiographs, None, SIZE)
    test = load_dataset(radiographs, "Test", SIZE)
    mean = _mean_mask(train, test)
    assert mean is not None
    expected = np.asarray(train.masks("infection"))
    torch.testing.assert_close(mean, torch.from_numpy(expected[expected.any((1, 2))].mean(0)).float())
    assert _mean_mask(train, whole) is None, "all of them are explained"
    assert _mean_mask(None, test) is None
