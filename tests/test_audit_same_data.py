"""Two audits of one version on one data set compare, whatever size their models want and in whichever order they name
the classes; audits of other images do not."""

# ruff: noqa: F401, F811

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from small_networks import write_onnx
from test_audit_command import CLASSES, Brightness, _short, few_steps, greys, model_file
from test_audit_tables import table as scores_file
from test_cli import complaint
from trustcxr.audit import compare
from trustcxr.audit import run_audit as audits
from trustcxr.audit.audit_data import read_submitted
from trustcxr.data import load_dataset
from trustcxr.data.phantom import write_files
from trustcxr.errors import UserError
from trustcxr.report import leaderboard
from trustcxr.report.terminal import describe_pairs
from trustcxr.storage import atomic
from trustcxr.storage.schemas import AuditDocument, read_schema


def network(folder: Path, size: int = 16, order: tuple[int, ...] = (0, 1, 2)) -> Path:
    """A network that tells images by their mean, at a size and with its classes in an order."""
    return model_file(folder, Brightness(order), tuple(CLASSES[place] for place in order), size)


@pytest.fixture(scope="module")
def first(greys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The audit of a network of 16 pixels."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch)
        audits.audit(network(folder / "model"), greys, folder / "audit")
    return folder / "audit"


def changed(folder: Path, to: Path, **data: Any) -> Path:
    """A copy of an audit with something else under `data`; without what is None."""
    shutil.copytree(folder, to)
    content = atomic.read_json(to / "audit.json")
    about = {key: value for key, value in (content["data"] | data).items() if value is not None}
    atomic.write_json(to / "audit.json", content | {"data": about})
    return to


def rows(one: Path, other: Path) -> dict[str, tuple[float | None, float | None, int | None]]:
    return {row.measure: (row.first, row.second, row.n) for row in compare.compare(one, other, resamples=100).rows}


def right(folder: Path) -> float:
    """The share of images that are answered rightly, from the logits and the classes' names."""
    document = atomic.read_json(folder / "audit.json")
    table = atomic.read_table(folder / "predictions.parquet")
    table = table[table["attack"] == "clean"]
    answered = [document["classes"][place] for place in np.stack(table["logits"]).argmax(1)]
    return float((np.array(answered) == table["class"].to_numpy()).mean())


def test_the_order_of_the_classes_does_not_matter(first: Path, greys: Path, tmp_path: Path) -> None:
    turned, out = (2, 0, 1), tmp_path / "out"
    audits.audit(network(tmp_path / "model", order=turned), greys, out / "turned")
    shutil.copytree(first, out / "straight")
    assert atomic.read_json(out / "turned" / "audit.json")["classes"] != list(CLASSES)
    found = rows(out / "straight", out / "turned")["clean accuracy"]
    assert found == (right(first), right(out / "turned"), 36)
    assert found[0] == found[1] > 0.9
    assert len(leaderboard.gather_audits(out).entries) == 2


def test_a_table_of_scores_compares_with_a_network_of_another_size(first: Path, greys: Path, tmp_path: Path) -> None:
    names = [(k, f"{name}{number}.png") for k, name in enumerate(CLASSES) for number in range(12)]
    likely = [np.where(np.arange(3) == (k + (n % 12 < 3)) % 3, 0.6, 0.2) for n, (k, _) in enumerate(names)]
    table = pd.DataFrame(likely, columns=list(CLASSES)).assign(image=[name for _, name in names])
    table.to_csv(tmp_path / "scores.csv", index=False)
    content = {"predictions": "scores.csv", "output": {"kind": "probabilities", "classes": list(CLASSES)}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(content | {"input": {"size": 40}}))
    document = audits.audit(tmp_path / "model.yaml", greys, tmp_path / "out" / "scores")
    assert document.data.fingerprint != atomic.read_json(first / "audit.json")["data"]["fingerprint"]
    assert rows(first, tmp_path / "out" / "scores") == {"clean accuracy": (right(first), 0.75, 36)}
    assert not [line for line in describe_pairs(compare.compare(first, first, resamples=100)) if "size" in line]
    shutil.copytree(first, tmp_path / "out" / "network")
    assert len(leaderboard.gather_audits(tmp_path / "out").entries) == 2


@pytest.mark.slow
def test_other_images_of_the_same_names_are_refused(first: Path, greys: Path, tmp_path: Path) -> None:
    others = Path(shutil.copytree(greys, tmp_path / greys.name))
    (others / "dark" / "dark0.png").write_bytes((others / "dark" / "dark1.png").read_bytes())
    audits.audit(network(tmp_path / "model"), others, tmp_path / "out" / "others")
    said = complaint("compare", first, tmp_path / "out" / "others")
    assert "not the same images (images, 36; images, 36): their names, labels or files differ" in said
    for name in ("one", "two"):
        shutil.copytree(first, tmp_path / "out" / name)
    found = leaderboard.gather_audits(tmp_path / "out")
    assert dict(found.refused)["others"].startswith("not the same images as the others (images, 36; images, 36): their")


def test_adversarial_images_for_a_model_of_one_size_are_refused_for_one_of_another(greys: Path, tmp_path: Path) -> None:
    small, large = (load_dataset(greys, size=size) for size in (16, 24))
    images = {str(small.sample_ids[0]): torch.from_numpy(np.array(small.images[0])).float() / 255}
    save_file(images, str(tmp_path / "a.safetensors"), metadata={"epsilon": "0.1", "by": "somebody"})
    assert read_submitted(tmp_path / "a.safetensors", small).epsilon == 0.1
    with pytest.raises(UserError, match=r"but the image is a float image \(1, 24, 24\)"):
        read_submitted(tmp_path / "a.safetensors", large)


@pytest.mark.slow
def test_an_audit_on_one_data_set_takes_the_place_of_none_on_another(
    first: Path, greys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few_steps(monkeypatch)
    out, others = tmp_path / "audit", tmp_path / "others"
    shutil.copytree(first, out)
    shutil.copytree(greys, others)
    next(others.rglob("*.png")).unlink()
    before = (out / "audit.json").read_bytes()
    with pytest.raises(UserError, match=r"audit: holds the audit on images, not on others; choose another --out"):
        audits.audit(first.parent / "model" / "model.yaml", others, out)
    assert (out / "audit.json").read_bytes() == before
    again = shutil.copytree(others, tmp_path / "images")  # the same data set, of which an image is gone
    audits.audit(first.parent / "model" / "model.yaml", again, out)
    assert "model, data or options changed: examined again" in capsys.readouterr().err
    assert atomic.read_json(out / "audit.json")["data"]["n"] == 35


def test_without_checksums_of_files_audits_of_one_size_compare(first: Path, tmp_path: Path) -> None:
    bare = changed(first, tmp_path / "bare", files=None, lungs=None)
    assert rows(first, bare)["clean accuracy"][2] == 36
    other = changed(first, tmp_path / "other", files=None, fingerprint="0")
    for pair in ((first, other), (bare, other)):
        said = complaint("compare", *pair)
        assert "or not read at the same size, and not both audits have a checksum of the images' files" in said


def test_findings_in_another_order_are_the_same_findings(greys: Path, tmp_path: Path) -> None:
    random, out = np.random.default_rng(0), tmp_path / "out"
    scores = {f"{name}{n}.png": random.random(2) for name in CLASSES for n in range(12)}
    for size, names in ((16, ["dark", "bright"]), (24, ["bright", "dark"])):
        turned = {name: row[:: 1 if size == 16 else -1] for name, row in scores.items()}
        model = scores_file(tmp_path / str(size), turned, kind="sigmoid", classes=names, thresholds=0.5)
        model.write_text(model.read_text().replace("size: 16", f"size: {size}"))
        audits.audit(model, greys, out / str(size), labels={"dark": "dark", "bright": "bright", "grey": "Normal"})
    documents = [read_schema(AuditDocument, out / name / "audit.json") for name in ("16", "24")]
    assert documents[0].data.truth == documents[1].data.truth != ""
    found = rows(out / "16", out / "24")["clean accuracy"]
    assert found[0] == found[1] == documents[0].clean.accuracy.value
    assert found[2] == 72
    assert len(leaderboard.gather_audits(out).entries) == 2


def test_images_are_known_by_their_files_whatever_link_leads_there(greys: Path, tmp_path: Path) -> None:
    linked = Path(shutil.copytree(greys, tmp_path / "linked"))
    (linked / "dark" / "dark0.png").unlink()
    (linked / "dark" / "dark0.png").symlink_to(greys / "dark" / "dark0.png")
    whole = load_dataset(greys, size=16)
    assert load_dataset(linked, size=16).files_fingerprint == whole.files_fingerprint
    assert load_dataset(greys, size=24).files_fingerprint == whole.files_fingerprint
    renamed = {"dark": "zz", "grey": "grey", "bright": "bright"}
    assert load_dataset(greys, size=16, labels=renamed).files_fingerprint != whole.files_fingerprint


@pytest.mark.slow
def test_images_changed_by_other_lung_masks_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_files.write(tmp_path / "phantom", {"Test": 4}, size=32)
    few_steps(monkeypatch)

    def audit(name: str, size: int) -> None:
        path = network(tmp_path / name, size)
        content = yaml.safe_load(path.read_text())
        content["output"]["classes"] = ["COVID-19", "Non-COVID", "Normal"]
        path.write_text(yaml.safe_dump(content))
        audits.audit(path, images, tmp_path / "out" / name)

    audit("first", 32)
    audit("larger", 48)
    of_before = rows(tmp_path / "out" / "first", tmp_path / "out" / "larger")
    pair = compare.compare(tmp_path / "out" / "first", tmp_path / "out" / "larger", resamples=100)
    assert any("at different sizes" in line for line in describe_pairs(pair))
    assert len([name for name in of_before if name.startswith("lungs_")]) > 5
    for mask in images.rglob("lung masks/*.png"):  # those in the folder of infections too
        Image.fromarray(np.roll(np.asarray(Image.open(mask)), 2, axis=1)).save(mask)
    audit("again", 48)
    pair = compare.compare(tmp_path / "out" / "first", tmp_path / "out" / "again", resamples=100)
    kept = {row.measure for row in pair.rows}
    assert set(of_before) - kept == set(pair.other_lungs) >= {"lungs_blacked_out accuracy", "lungs_only accuracy"}
    assert set(of_before) > kept > {"clean accuracy", "fgsm accuracy @0.01"}
    said = "Not compared, since by other lung masks in one of them: lungs_blacked_out accuracy, "
    assert any(line.startswith(said) for line in describe_pairs(pair))


def test_images_that_cannot_be_read_again_cheaply_have_no_such_checksum(
    greys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = Path(shutil.copytree(greys, tmp_path / "some"))
    opened = load_dataset(some, size=16)
    (some / "dark" / "dark0.png").unlink()
    assert opened.files_fingerprint == ""
    monkeypatch.setattr("trustcxr.data.dataset._MAX_HASHED", 100)
    assert load_dataset(greys, size=16).files_fingerprint == ""


def test_no_lead_is_settled_over_a_model_that_alone_was_attacked_with_images_handed_in(
    first: Path, tmp_path: Path
) -> None:
    """Of the copy the worst case is all wrong: a lead that both interval and test call sure."""
    other = Path(shutil.copytree(first, tmp_path / "other"))
    table = atomic.read_table(other / "predictions.parquet")
    wrong = [np.eye(3, dtype=np.float32)[(label + 1) % 3] for label in table["label"]]
    worst = (table["attack"] == "worst-case").to_numpy()
    logits = [w if yes else own for w, yes, own in zip(wrong, worst, table["logits"], strict=True)]
    atomic.write_table(other / "predictions.parquet", table.assign(logits=logits))

    def settled(one: Path, two: Path) -> bool:
        (row,) = [r for r in compare.compare(one, two, resamples=200).rows if r.measure.startswith("worst-case")]
        assert abs(row.difference.value or 0) > 0.5
        return row.settled

    assert settled(first, other)
    assert settled(other, first)
    content = atomic.read_json(other / "audit.json")
    by = {"by": "Ada", "sha256": "0", "epsilon": 0.02, "n": 36, "found_alone": 1, "missed": 0}
    by["accuracy"] = {"value": 0.0}
    atomic.write_json(other / "audit.json", content | {"submitted": [by]})
    assert not settled(first, other), "the one attacked with less leads"
    assert not settled(other, first)
    pair = compare.compare(first, other, resamples=200)
    assert pair.submitted == [[], ["Ada"]]
    (line,) = [line for line in describe_pairs(pair) if "submitted" in line]
    assert line.startswith(f"Only the worst case of {pair.second} counts images submitted by Ada")
    # The one that was attacked with more may lead: that is settled.
    content = atomic.read_json(first / "audit.json")
    better = Path(shutil.copytree(first, tmp_path / "better"))
    atomic.write_json(better / "audit.json", content | {"submitted": [by]})
    atomic.write_json(other / "audit.json", atomic.read_json(other / "audit.json") | {"submitted": []})
    assert settled(better, other)


def test_images_handed_in_count_for_their_own_finding_and_from_their_radius_on() -> None:
    def audit(*handed: tuple[str, float, int]) -> AuditDocument:
        rows = [{"by": by, "epsilon": epsilon, "n": 9, "found_alone": alone} for by, epsilon, alone in handed]
        return AuditDocument.model_validate({"submitted": rows})

    names, plain = ("Edema", "Mass"), audit()
    edema = audit(("Ada (Edema)", 0.02, 2), ("Ada (Mass)", 0.02, 0))
    assert compare.attacked_more([plain, edema], "worst-case accuracy @0.02, Edema", names) == 1
    assert compare.attacked_more([edema, plain], "worst-case accuracy @0.02", names) == 0
    assert compare.attacked_more([plain, edema], "worst-case accuracy @0.02, Mass", names) is None
    assert compare.attacked_more([plain, edema], "worst-case accuracy @0.01, Edema", names) is None
    assert compare.attacked_more([plain, edema], "clean accuracy, Edema", names) is None
    mass = audit(("Bo (Mass)", 0.02, 1))
    assert compare.attacked_more([mass, edema], "worst-case accuracy @0.02, Edema", names) == 1
    assert compare.attacked_more([mass, edema], "worst-case accuracy @0.02", names) is None
