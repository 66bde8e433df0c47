"""`trustcxr explain` of a model file: what is measured of a run's maps, of any model; of a finding of several too."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from foreign_models import CLASSES, IMAGENET, SIDE, Sigmoids, exported, onnx, small, traced
from small_runs import newest, untrained
from test_cli import complaint, run
from trustcxr.audit.formats import load
from trustcxr.data import load_dataset
from trustcxr.data.dataset import describe_training_data
from trustcxr.data.phantom import write_files
from trustcxr.evaluation import operating_points
from trustcxr.evaluation.trained_run import load_run
from trustcxr.explain import method
from trustcxr.runs.explain_run import _mean_mask
from trustcxr.storage import atomic, schemas

SIZE = 64  # at which the last map of the tests' network has more than one cell
QUICK = ("--sample", 3, "--corruption", "jpeg")
KEYS = ["sample_id", "method", "condition", "measure"]
RGB = "input: {{size: {}, channels: 3, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}"


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


def model_file(
    folder: Path, source: str, about: str = RGB.format(SIDE), kind: str = "logits", name: str = "model",
    classes: tuple[str, ...] = CLASSES, more: str = "",
) -> Path:  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(f"{source}\n{about}\noutput: {{kind: {kind}, classes: [{', '.join(classes)}]{more}}}\n")
    return path


def of_run(own: Path) -> str:
    """What a model file says of the images of a run."""
    ours = load_run(own, on="cpu").model
    return f"input: {{size: {SIZE}, mean: [{float(ours.mean)}], std: [{float(ours.std)}]}}"


def tables(own: Path, out: Path) -> list[pd.DataFrame]:
    files = [place / "saliency.parquet" for place in (newest(own), out)]
    return [pd.read_parquet(file).set_index(KEYS).sort_index() for file in files]


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
    assert all(table["randomised"].notna().any() for table in (first, second))
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
def test_a_network_whose_last_map_is_not_seen_is_explained_otherwise(radiographs: Path, tmp_path: Path) -> None:
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
    command = shlex.split(refused[refused.index("trustcxr audit") :])
    assert command == ["trustcxr", "audit", str(model), "--data", str(radiographs), "--out", "DIR"]


@pytest.mark.slow
def test_a_run_is_explained_into_another_folder_but_not_into_that_of_a_given_model_of_its_name(
    own: Path, radiographs: Path, tmp_path: Path
) -> None:
    before, out = set(own.glob("evaluations/*")), tmp_path / "out"
    typed = ("explain", own, "--data", radiographs, *QUICK, "--method", "gradcam", "--out", out)
    run(*typed)
    assert set(own.glob("evaluations/*")) == before
    assert (out / "saliency.parquet").is_file()
    atomic.write_batches(out / "predictions.parquet", [atomic.read_table(out / "predictions.parquet")], "0123")
    assert "results are never mixed" in complaint(*typed)


def test_the_mean_mask_is_of_no_image_that_is_explained_and_of_no_such_patient(radiographs: Path) -> None:
    train, whole, test = (load_dataset(radiographs, split, SIZE) for split in ("Train", None, "Test"))
    mean = _mean_mask(train, test)
    assert mean is not None
    expected = np.asarray(train.masks("infection"))
    torch.testing.assert_close(mean, torch.from_numpy(expected[expected.any((1, 2))].mean(0)).float())
    assert _mean_mask(train, whole) is None, "all of them are explained"
    assert _mean_mask(None, test) is None


QUICK_CAM = (*QUICK, "--method", "gradcam")
FINDINGS = ("Opacity", "Effusion", "Nodule")
LABELS = ("--label", "COVID-19=Opacity", "--label", "Non-COVID=Effusion")
ALONE = ("--label", "COVID-19=Opacity", "--label", "Non-COVID=Normal")


def finding_file(folder: Path, source: str, name: str, more: str = "") -> Path:
    return model_file(folder, source, RGB.format(SIZE), "sigmoid", name, FINDINGS, more)


def bright() -> nn.Module:
    return Sigmoids(Bright())


class Bright(nn.Module):
    """Says how bright the lungs' places are: a lesion, which is brighter than lung, makes it surer."""

    def forward(self, images: Tensor) -> Tensor:
        middle = images[:, :1, SIZE // 4 : 3 * SIZE // 4].flatten(1).mean(1)
        return torch.stack([20 * middle - 6, -middle, torch.zeros_like(middle)], 1)


def clean_rows(out: Path) -> pd.Series:
    """Of each image with a lesion of the first class, what the map of it has against the masks."""
    table = pd.read_parquet(out / "saliency.parquet")
    table = table[(table["method"] == "gradcam") & (table["condition"] == "clean")]
    table = table[~table["measure"].str.contains("random|tuned|insertion|deletion|road|cause")]
    return table.set_index(["sample_id", "measure"])["value"].sort_index()


@pytest.mark.slow
def test_a_findings_maps_are_those_of_the_same_networks_class(radiographs: Path, tmp_path: Path) -> None:
    net = small()
    exported(net, tmp_path / "classes.pt2", SIZE)
    exported(Sigmoids(net), tmp_path / "findings.pt2", SIZE)
    classes = model_file(tmp_path, "source: classes.pt2", RGB.format(SIZE), name="classes")
    many = finding_file(tmp_path, "source: findings.pt2", "many", ", thresholds: [0.3, 0.5, 0.5]")
    run("explain", classes, "--data", radiographs, "--out", tmp_path / "own", "--trust-code", *QUICK_CAM)
    typed = ("--data", radiographs, "--out", tmp_path / "one", "--trust-code", *QUICK_CAM, *LABELS, "--finding")
    done = run("explain", many, *typed, "opacity", "--json")
    document = json.loads(done.stdout)
    assert (document["finding"], document["run"]) == ("Opacity", "many, Opacity")
    assert document["classes"] == ["absent", "present"]
    assert document["saliency"]["gradcam"]["n"] == 3, "the images that have it, and no other"
    first, second = clean_rows(tmp_path / "own"), clean_rows(tmp_path / "one")
    assert len(second)
    np.testing.assert_allclose(second, first.loc[second.index], atol=1e-4)
    (note,) = [note for note in document["notes"] if "operating point" in note or "from 0.3 on" in note]
    assert "Opacity is explained on the images that have it" in note
    assert note in done.stderr
    removed = pd.read_parquet(tmp_path / "one" / "lesion_effects.parquet")
    assert {"grey", "mirror", "transplant"} <= set(removed["fill"])
    # The probability is counted from the operating point: at 0.3 of the model's own it is 0.5.
    plain = loaded(tmp_path / "findings.pt2")
    one = plain.of_finding(0, operating_points.cut(0.3))
    images = torch.rand(2, 1, SIZE, SIZE)
    with torch.no_grad():
        logits = plain(images)[:, 0]
        torch.testing.assert_close(one(images)[:, 1], logits - np.log(0.3 / 0.7).astype("float32"))
        assert one(images)[:, 0].eq(0).all()
    other = complaint("explain", many, *typed, "Effusion")
    assert "other model, images, finding or version" in other


def loaded(file: Path) -> Any:
    return load(file, classes=FINDINGS, output="sigmoid", trust_code=True, **IMAGENET | {"size": SIZE}).model


@pytest.mark.slow
def test_a_map_of_one_finding_is_that_of_its_logit(tmp_path: Path) -> None:
    model = loaded(exported(Sigmoids(small()), tmp_path / "m.pt2", SIZE))
    images = torch.rand(2, 1, SIZE, SIZE)
    for name in ("gradcam", "layercam", "integrated-gradients"):
        for place in range(3):
            wanted = method(name)(model, images, place)
            torch.testing.assert_close(method(name)(model.of_finding(place, 0.7), images, 1), wanted)


def explained(model: Path, radiographs: Path, out: Path, *more: str) -> tuple[dict[str, Any], list[str]]:
    """The document of the maps of Opacity, and what is said before them, at once."""
    typed = ("--data", radiographs, "--out", out, "--trust-code", *QUICK, "--method", "occlusion")
    done = run("explain", model, *typed, "--finding", "Opacity", *ALONE, *more, "--json")
    document = json.loads(done.stdout)
    notes = document["notes"]
    assert all(note in done.stderr for note in notes)
    return document, [*notes, *(line for line in done.stderr.splitlines() if line.startswith("no threshold is tuned"))]


@pytest.mark.slow
def test_what_is_said_of_a_finding_before_its_maps_and_it_falls_without_the_lesion(
    radiographs: Path, tmp_path: Path
) -> None:
    """Of `bright` with its operating point at 1 but for a millionth: it says that no image has the finding."""
    source, thresholds = "python: test_explain_given:bright", ", thresholds: [0.999999, 0.5, 0.5]"
    high = finding_file(tmp_path, source, "high", thresholds)
    _, notes = explained(high, radiographs, tmp_path / "high")
    assert "it counts as there from 0.999999 on, of the model file" in notes[0]
    assert notes[1] == (
        "Opacity: accuracy (66.7%) is no better than that of a constant answer (always absent: 66.7%), so its maps are "
        "not informative"
    )
    chosen = finding_file(tmp_path, source, "chosen")
    document, notes = explained(chosen, radiographs, tmp_path / "chosen")
    effect = {(row["fill"], row["control"]): row for row in document["lesions"] if row["condition"] == "clean"}
    assert effect["grey", "lung"]["effect"]["value"] > 0, "what is read off the lesion falls without it"
    assert effect["grey", "lung"]["images"] == 3
    assert any("chosen on validation" in note for note in document["notes"])
    table = pd.read_parquet(tmp_path / "chosen" / "predictions.parquet")
    right = (np.stack(table["logits"]).argmax(1) == table["label"]).mean()
    assert any("constant answer" in note for note in notes) == (right <= 2 / 3)
    # Where the validation images are those that are explained, nothing can be chosen on them.
    _, (note, *others) = explained(chosen, radiographs, tmp_path / "val", "--split", "Val")
    assert note.split(", and probabilities")[0].endswith(
        "from 0.5 on, taken for want of another: the model file has none, and validation images are the images "
        "looked at"
    )
    assert "no threshold is tuned: validation images are the images looked at" in others


@pytest.mark.slow
def test_which_finding_is_asked_for_where_images_do_not_say(radiographs: Path, tmp_path: Path) -> None:
    exported(Sigmoids(small()), tmp_path / "m.pt2", SIZE)
    model, out = finding_file(tmp_path, "source: m.pt2", "many"), ("--out", tmp_path / "out")
    typed = ("explain", model, "--data", radiographs, "--trust-code", *out, *QUICK_CAM)
    both = complaint(*typed, *LABELS)
    assert both.endswith(
        "many: has a sigmoid for each finding, and images with a mask have Opacity and Effusion: say which with "
        "--finding NAME"
    )
    assert "no image with a mask is known to have any" in complaint(
        *typed, "--label", "COVID-19=Normal", "--label", "Non-COVID=Normal"
    )
    assert "unknown finding 'Opacty': did you mean Opacity?" in complaint(*typed, *LABELS, "--finding", "Opacty")
    assert "of no image it is known that it has Nodule" in complaint(*typed, *LABELS, "--finding", "Nodule")
    exported(small(), tmp_path / "c.pt2", SIZE)
    classes = model_file(tmp_path, "source: c.pt2", RGB.format(SIZE), name="classes")
    refused = complaint("explain", classes, "--data", radiographs, *out, "--finding", "Opacity", "--trust-code")
    assert "--finding Opacity: classes answers with one of its classes" in refused
    assert not (tmp_path / "out").exists()
    assert json.loads(run(*typed, *ALONE, "--json").stdout)["finding"] == "Opacity"
    assert atomic.read_json(tmp_path / "out" / "metrics.json")["finding"] == "Opacity"
