"""`trustcxr explain --finding` of a model with one sigmoid a finding: its maps, and its answer without the lesion."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from foreign_models import CLASSES, Sigmoids, exported, small
from test_cli import complaint, run
from trustcxr.audit.formats import load
from trustcxr.data.phantom import write_files
from trustcxr.evaluation import operating_points
from trustcxr.explain import method
from trustcxr.storage import atomic

SIZE = 64
QUICK = ("--sample", 2, "--corruption", "jpeg", "--method", "gradcam")
WHOLE = f"input: {{size: {SIZE}, channels: 3, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}"
FINDINGS = ("Opacity", "Effusion", "Nodule")
LABELS = ("--label", "COVID-19=Opacity", "--label", "Non-COVID=Effusion")


class Bright(nn.Module):
    """Says how bright the lungs' places are: a lesion, which is brighter than lung, makes it surer."""

    def forward(self, images: Tensor) -> Tensor:
        middle = images[:, :1, SIZE // 4 : 3 * SIZE // 4].flatten(1).mean(1)
        return torch.stack([20 * middle - 6, -middle, torch.zeros_like(middle)], 1)


def bright() -> nn.Module:
    return Sigmoids(Bright())


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files.write(
        tmp_path_factory.mktemp("finding") / "images", {"Train": 1, "Val": 3, "Test": 4}, size=SIZE
    )


def model_file(folder: Path, source: str, kind: str, classes: tuple[str, ...], name: str, more: str = "") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(f"{source}\n{WHOLE}\noutput: {{kind: {kind}, classes: [{', '.join(classes)}]{more}}}\n")
    return path


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
    classes = model_file(tmp_path, "source: classes.pt2", "logits", CLASSES, "classes")
    many = model_file(tmp_path, "source: findings.pt2", "sigmoid", FINDINGS, "many", ", thresholds: [0.3, 0.5, 0.5]")
    run("explain", classes, "--data", radiographs, "--out", tmp_path / "own", "--trust-code", *QUICK)
    typed = ("--data", radiographs, "--out", tmp_path / "one", "--trust-code", *QUICK, *LABELS, "--finding")
    done = run("explain", many, *typed, "opacity", "--json")
    document = json.loads(done.stdout)
    assert document["finding"] == "Opacity"
    assert document["run"] == "many, Opacity"
    assert document["classes"] == ["absent", "present"]
    assert document["saliency"]["gradcam"]["n"] == 4, "the images that have it, and no other"
    first, second = clean_rows(tmp_path / "own"), clean_rows(tmp_path / "one")
    assert len(second)
    np.testing.assert_allclose(second, first.loc[second.index], atol=1e-4)
    (note,) = [note for note in document["notes"] if "operating point" in note or "from 0.3 on" in note]
    assert "Opacity is explained on the images that have it" in note
    assert note in done.stderr
    removed = pd.read_parquet(tmp_path / "one" / "lesion_effects.parquet")
    assert {"grey", "mirror", "transplant"} <= set(removed["fill"])
    # The probability is counted from the operating point: at 0.3 of the model's own it is 0.5.
    plain = load(tmp_path / "findings.pt2", classes=FINDINGS, output="sigmoid", trust_code=True, **_rgb())
    assert plain.model is not None
    one = plain.model.of_finding(0, operating_points.cut(0.3))
    images = torch.rand(2, 1, SIZE, SIZE)
    with torch.no_grad():
        logits = plain.model(images)[:, 0]
        torch.testing.assert_close(one(images)[:, 1], logits - np.log(0.3 / 0.7).astype("float32"))
        assert one(images)[:, 0].eq(0).all()
    other = complaint("explain", many, *typed, "Effusion")
    assert "other model, images, finding or version" in other


def _rgb() -> dict[str, object]:
    return {"size": SIZE, "channels": 3, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.slow
def test_a_map_of_one_finding_is_that_of_its_logit(tmp_path: Path) -> None:
    exported(Sigmoids(small()), tmp_path / "m.pt2", SIZE)
    model = load(tmp_path / "m.pt2", classes=FINDINGS, output="sigmoid", trust_code=True, **_rgb()).model
    assert model is not None
    images = torch.rand(2, 1, SIZE, SIZE)
    for name in ("gradcam", "layercam", "integrated-gradients"):
        for place in range(3):
            wanted = method(name)(model, images, place)
            torch.testing.assert_close(method(name)(model.of_finding(place, 0.7), images, 1), wanted)


@pytest.mark.slow
def test_a_finding_that_is_read_off_the_lesion_falls_without_it(radiographs: Path, tmp_path: Path) -> None:
    model = model_file(tmp_path, "python: test_explain_finding:bright", "sigmoid", FINDINGS, "bright")
    typed = ("--data", radiographs, "--out", tmp_path / "out", "--trust-code", *QUICK[:4], "--method", "occlusion")
    document = json.loads(
        run("explain", model, *typed, "--finding", "Opacity", "--label", "COVID-19=Opacity", "--label",
            "Non-COVID=Normal", "--json").stdout
    )  # fmt: skip
    effect = {(row["fill"], row["control"]): row for row in document["lesions"] if row["condition"] == "clean"}
    assert effect["grey", "lung"]["effect"]["value"] > 0
    assert effect["grey", "lung"]["images"] == 4
    assert any("chosen on validation" in note for note in document["notes"])


def notes_of(model: Path, radiographs: Path, out: Path, *more: str) -> list[str]:
    """What is said before the maps of Opacity, and that it was said at once."""
    typed = ("--data", radiographs, "--out", out, "--trust-code", *QUICK[:4], "--method", "occlusion")
    labels = ("--label", "COVID-19=Opacity", "--label", "Non-COVID=Normal")
    done = run("explain", model, *typed, "--finding", "Opacity", *labels, *more, "--json")
    notes: list[str] = json.loads(done.stdout)["notes"]
    assert all(note in done.stderr for note in notes)
    return [*notes, *(line for line in done.stderr.splitlines() if line.startswith("no threshold is tuned"))]


@pytest.mark.slow
def test_what_is_said_of_a_finding_before_its_maps(radiographs: Path, tmp_path: Path) -> None:
    """Of `bright` with its operating point at 1 but for a millionth: it says that no image has the finding."""
    source, thresholds = "python: test_explain_finding:bright", ", thresholds: [0.999999, 0.5, 0.5]"
    high = model_file(tmp_path, source, "sigmoid", FINDINGS, "high", thresholds)
    notes = notes_of(high, radiographs, tmp_path / "high")
    assert "it counts as there from 0.999999 on, of the model file" in notes[0]
    assert notes[1] == (
        "Opacity: accuracy (66.7%) is no better than that of a constant answer (always absent: 66.7%), so its maps are "
        "not informative"
    )
    chosen = model_file(tmp_path, source, "sigmoid", FINDINGS, "chosen")
    notes = notes_of(chosen, radiographs, tmp_path / "chosen")
    table = pd.read_parquet(tmp_path / "chosen" / "predictions.parquet")
    right = (np.stack(table["logits"]).argmax(1) == table["label"]).mean()
    assert any("constant answer" in note for note in notes) == (right <= 2 / 3)
    # Where the validation images are those that are explained, nothing can be chosen on them.
    (note, *others) = notes_of(chosen, radiographs, tmp_path / "val", "--split", "Val")
    assert note.split(", and probabilities")[0].endswith(
        "from 0.5 on, taken for want of another: the model file has none, and validation images are the images "
        "looked at"
    )
    assert "no threshold is tuned: validation images are the images looked at" in others


@pytest.mark.slow
def test_which_finding_is_asked_for_where_images_do_not_say(radiographs: Path, tmp_path: Path) -> None:
    exported(Sigmoids(small()), tmp_path / "m.pt2", SIZE)
    model, out = model_file(tmp_path, "source: m.pt2", "sigmoid", FINDINGS, "many"), ("--out", tmp_path / "out")
    typed = ("explain", model, "--data", radiographs, "--trust-code", *out, *QUICK)
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
    classes = model_file(tmp_path, "source: c.pt2", "logits", CLASSES, "classes")
    refused = complaint("explain", classes, "--data", radiographs, *out, "--finding", "Opacity", "--trust-code")
    assert "--finding Opacity: classes answers with one of its classes" in refused
    assert not (tmp_path / "out").exists()
    alone = ("--label", "COVID-19=Opacity", "--label", "Non-COVID=Normal", "--json")
    assert json.loads(run(*typed, *alone).stdout)["finding"] == "Opacity"
    assert atomic.read_json(tmp_path / "out" / "metrics.json")["finding"] == "Opacity"
