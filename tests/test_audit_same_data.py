"""Audits on the same data compare and stand, whatever size and order of classes their models have; others do not."""

# ruff: noqa: F401, F811

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pack import Pack
from test_audit_command import CLASSES, Brightness, _short, greys, model_file
from test_audit_tables import table as scores_file
from test_cli import complaint
from trustcxr.audit import audit_data, compare
from trustcxr.audit import run_audit as audits
from trustcxr.audit.subject import load_subject
from trustcxr.data import load_dataset
from trustcxr.data.phantom import render_image, write_files
from trustcxr.errors import UserError
from trustcxr.recipes.protocol import load_exam
from trustcxr.report import leaderboard
from trustcxr.report.terminal import describe_pairs
from trustcxr.runs.test_data import Source
from trustcxr.storage import atomic
from trustcxr.storage.schemas import AuditDocument

TWO = ("dark", "bright")


@pytest.fixture(scope="module")
def first(pack: Pack) -> Path:
    """The audit of a network of 16 pixels."""
    return pack.audits() / "good"


def rows(one: Path, other: Path) -> dict[str, tuple[float | None, float | None, int | None]]:
    return {row.measure: (row.first, row.second, row.n) for row in compare.compare(one, other, resamples=100).rows}


def right(folder: Path) -> float:
    """The share of images that are answered rightly, from the logits and the classes' names."""
    document = atomic.read_json(folder / "audit.json")
    table = atomic.read_table(folder / "predictions.parquet")
    table = table[table["attack"] == "clean"]
    answered = [document["classes"][place] for place in np.stack(table["logits"]).argmax(1)]
    return float((np.array(answered) == table["class"].to_numpy()).mean())


def test_the_order_of_the_classes_or_findings_does_not_matter(first: Path, greys: Path, tmp_path: Path) -> None:
    out, random = tmp_path / "out", np.random.default_rng(0)
    turned = model_file(tmp_path / "model", Brightness((2, 0, 1)), (CLASSES[2], CLASSES[0], CLASSES[1]))
    audits.audit(turned, greys, out / "turned")
    shutil.copytree(first, out / "straight")
    assert atomic.read_json(out / "turned" / "audit.json")["classes"] != list(CLASSES)
    found = rows(out / "straight", out / "turned")["clean accuracy"]
    assert found == (right(first), right(out / "turned"), 36)
    assert found[0] == found[1] > 0.9
    assert len(leaderboard.gather_audits(out).entries) == 2
    scores, documents = {f"{name}{n}.png": random.random(2) for name in CLASSES for n in range(12)}, []
    for size, step, names in ((16, 1, ["dark", "bright"]), (24, -1, ["bright", "dark"])):
        turned = {name: row[::step] for name, row in scores.items()}
        model = scores_file(tmp_path / str(size), turned, kind="sigmoid", classes=names, thresholds=0.5)
        model.write_text(model.read_text().replace("size: 16", f"size: {size}"))
        labels = {"dark": "dark", "bright": "bright", "grey": "Normal"}
        documents.append(audits.audit(model, greys, tmp_path / "findings" / str(size), labels=labels))
    assert documents[0].data.truth == documents[1].data.truth != ""
    accuracy = documents[0].clean.accuracy.value
    assert rows(*(tmp_path / "findings" / size for size in ("16", "24")))["clean accuracy"] == (accuracy, accuracy, 72)
    assert len(leaderboard.gather_audits(tmp_path / "findings").entries) == 2


def test_a_table_of_scores_compares_with_a_network_of_another_size(first: Path, greys: Path, tmp_path: Path) -> None:
    names = [(k, n, f"{name}{n}.png") for k, name in enumerate(CLASSES) for n in range(12)]
    likely = {name: np.where(np.arange(3) == (k + (n < 3)) % 3, 0.6, 0.2) for k, n, name in names}
    model, out = scores_file(tmp_path, likely), tmp_path / "out"
    model.write_text(model.read_text().replace("size: 16", "size: 40"))
    document = audits.audit(model, greys, out / "scores")
    assert document.data.fingerprint != atomic.read_json(first / "audit.json")["data"]["fingerprint"]
    assert rows(first, out / "scores") == {"clean accuracy": (right(first), 0.75, 36)}
    assert not [line for line in describe_pairs(compare.compare(first, first, resamples=100)) if "size" in line]
    shutil.copytree(first, out / "network")
    assert len(leaderboard.gather_audits(out).entries) == 2


@pytest.mark.slow
def test_other_images_of_the_same_names_are_refused(first: Path, greys: Path, tmp_path: Path) -> None:
    others = Path(shutil.copytree(greys, tmp_path / greys.name))
    (others / "dark" / "dark0.png").write_bytes((others / "dark" / "dark1.png").read_bytes())
    audits.audit(model_file(tmp_path / "model", Brightness()), others, tmp_path / "out" / "others")
    said = complaint("compare", first, tmp_path / "out" / "others")
    assert "not the same images (images, 36; images, 36): their names, labels or files differ" in said
    for name in ("one", "two"):
        shutil.copytree(first, tmp_path / "out" / name)
    found = leaderboard.gather_audits(tmp_path / "out")
    assert dict(found.refused)["others"].startswith("not the same images as the others (images, 36; images, 36): their")


@pytest.mark.slow
def test_an_audit_takes_the_place_of_none_on_other_data(first: Path, greys: Path, tmp_path: Path, capsys: Any) -> None:
    model = Path(atomic.read_json(first / "audit.json")["model"]["path"]).with_name("model.yaml")
    out, others = tmp_path / "audit", tmp_path / "others"
    shutil.copytree(first, out)
    shutil.copytree(greys, others)
    next(others.rglob("*.png")).unlink()
    before = (out / "audit.json").read_bytes()
    with pytest.raises(UserError, match=r"audit: holds the audit on images, not on others; choose another --out"):
        audits.audit(model, others, out)
    assert (out / "audit.json").read_bytes() == before
    again = shutil.copytree(others, tmp_path / "images")  # the same data set, of which an image is gone
    audits.audit(model, again, out)
    assert "model, data or options changed: examined again" in capsys.readouterr().err
    assert atomic.read_json(out / "audit.json")["data"]["n"] == 35


def test_without_checksums_of_files_audits_of_one_size_compare(first: Path, tmp_path: Path) -> None:
    def changed(name: str, **data: Any) -> Path:
        """A copy of the audit with something else under `data`; without what is None."""
        content = atomic.read_json(Path(shutil.copytree(first, tmp_path / name)) / "audit.json")
        about = {key: value for key, value in (content["data"] | data).items() if value is not None}
        atomic.write_json(tmp_path / name / "audit.json", content | {"data": about})
        return tmp_path / name

    bare, other = changed("bare", files=None, lungs=None), changed("other", files=None, fingerprint="0")
    assert rows(first, bare)["clean accuracy"][2] == 36
    for pair in ((first, other), (bare, other)):
        said = complaint("compare", *pair)
        assert "or not read at the same size, and not both audits have a checksum of the images' files" in said


def test_images_are_known_by_their_files(greys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked = Path(shutil.copytree(greys, tmp_path / "linked")) / "dark" / "dark0.png"
    linked.unlink()
    linked.symlink_to(greys / "dark" / "dark0.png")
    whole, opened = load_dataset(greys, size=16), load_dataset(tmp_path / "linked", size=16)
    assert load_dataset(tmp_path / "linked", size=16).files_fingerprint == whole.files_fingerprint
    assert load_dataset(greys, size=24).files_fingerprint == whole.files_fingerprint
    renamed = {"dark": "zz", "grey": "grey", "bright": "bright"}
    assert load_dataset(greys, size=16, labels=renamed).files_fingerprint != whole.files_fingerprint
    linked.unlink()
    assert opened.files_fingerprint == ""
    monkeypatch.setattr("trustcxr.data.dataset._MAX_HASHED", 100)
    assert load_dataset(greys, size=16).files_fingerprint == ""


@pytest.mark.slow
def test_images_changed_by_other_lung_masks_are_not_compared(tmp_path: Path) -> None:
    images, out = write_files.write(tmp_path / "phantom", {"Test": 4}, size=32), tmp_path / "out"

    def audit(name: str, size: int) -> None:
        audits.audit(model_file(tmp_path / name, Brightness(), render_image.CLASSES, size), images, out / name)

    audit("first", 32)
    audit("larger", 48)
    pair = compare.compare(out / "first", out / "larger", resamples=100)
    of_before = {row.measure for row in pair.rows}
    assert any("at different sizes" in line for line in describe_pairs(pair))
    assert len([name for name in of_before if name.startswith("lungs_")]) > 5
    for mask in images.rglob("lung masks/*.png"):  # those in the folder of infections too
        Image.fromarray(np.roll(np.asarray(Image.open(mask)), 2, axis=1)).save(mask)
    audit("again", 48)
    pair = compare.compare(out / "first", out / "again", resamples=100)
    kept = {row.measure for row in pair.rows}
    assert of_before - kept == set(pair.other_lungs) >= {"lungs_blacked_out accuracy", "lungs_only accuracy"}
    assert of_before > kept > {"clean accuracy", "fgsm accuracy @0.01"}
    said = "Not compared, since by other lung masks in one of them: lungs_blacked_out accuracy, "
    assert any(line.startswith(said) for line in describe_pairs(pair))


def test_no_lead_is_settled_over_a_model_that_alone_had_images_handed_in(first: Path, tmp_path: Path) -> None:
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
    content = atomic.read_json(first / "audit.json")
    by = {"by": "Ada", "sha256": "0", "epsilon": 0.02, "n": 36, "found_alone": 1, "missed": 0}
    submitted = content | {"submitted": [by | {"accuracy": {"value": 0.0}}]}
    atomic.write_json(other / "audit.json", submitted)
    assert not settled(first, other), "the one attacked with less leads"
    assert not settled(other, first)
    pair = compare.compare(first, other, resamples=200)
    assert pair.submitted == [[], ["Ada"]]
    (line,) = [line for line in describe_pairs(pair) if "submitted" in line]
    assert line.startswith(f"Only the worst case of {pair.second} counts images submitted by Ada")
    # The one that was attacked with more may lead: that is settled.
    better = Path(shutil.copytree(first, tmp_path / "better"))
    atomic.write_json(better / "audit.json", submitted)
    atomic.write_json(other / "audit.json", content | {"submitted": []})
    assert settled(better, other)


def test_images_handed_in_count_for_their_own_finding_and_from_their_radius_on() -> None:
    def audit(*handed: tuple[str, float, int]) -> AuditDocument:
        rows = [{"by": by, "epsilon": epsilon, "n": 9, "found_alone": alone} for by, epsilon, alone in handed]
        return AuditDocument.model_validate({"submitted": rows})

    plain, mass = audit(), audit(("Bo (Mass)", 0.02, 1))
    edema = audit(("Ada (Edema)", 0.02, 2), ("Ada (Mass)", 0.02, 0))
    for pair, measure, more in (
        ([plain, edema], "worst-case accuracy @0.02, Edema", 1),
        ([edema, plain], "worst-case accuracy @0.02", 0),
        ([plain, edema], "worst-case accuracy @0.02, Mass", None),
        ([plain, edema], "worst-case accuracy @0.01, Edema", None),
        ([plain, edema], "clean accuracy, Edema", None),
        ([mass, edema], "worst-case accuracy @0.02, Edema", 1),
        ([mass, edema], "worst-case accuracy @0.02", None),
    ):
        assert compare.attacked_more(pair, measure, ("Edema", "Mass")) == more, measure


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Images of two classes in two splits with lung masks, their list, scores of all of them, and two model files."""
    root, random, rows, scores = tmp_path / "listed", np.random.default_rng(0), [], []
    root.mkdir()
    for number in range(48):
        pixels = random.integers(0, 255, (16, 16)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number:03}.png")
        Image.fromarray(np.where(pixels > 0, 255, 0).astype(np.uint8)).save(root / f"mask{number:03}.png")
        bright = number % 2
        about = {"path": f"{number:03}.png", "class": TWO[bright], "split": "Val" if number >= 32 else "Test"}
        about |= {"patient_id": f"p{number // 4}", "sex": "FM"[number // 2 % 2], "lung_mask": f"mask{number:03}.png"}
        rows.append(about | {"Bright": str(bright)})
        likely = float(np.clip(0.3 + 0.4 * bright + 0.2 * random.standard_normal(), 0.01, 0.99))
        scores.append({"path": f"{number:03}.png", "dark": 1 - likely, "bright": likely, "Bright": likely})
    pd.DataFrame(rows).to_csv(root / "list.csv", index=False)
    pd.DataFrame(scores).to_csv(root / "scores.csv", index=False)
    classes, findings = "probabilities, classes: [dark, bright]", "sigmoid, classes: [Bright], thresholds: 0.5"
    for name, output in (("classes", classes), ("findings", findings)):
        text = f"predictions: scores.csv\ninput: {{size: 16}}\noutput: {{kind: {output}}}\n"
        (root / f"{name}.yaml").write_text(text)
    return root


def key(model: Path, data: Path, *, trust_code: bool = False) -> str:
    """What an audit of that model on those data would say that it examined."""
    subject = load_subject(model, trust_code=trust_code)
    return audit_data.Audit(subject, audit_data.open_images(subject, Source(data)), load_exam()).key


CHANGES = {
    "a finding": ("Bright", lambda table: 1 - table["Bright"].astype(int)),
    "patients": ("patient_id", lambda table: table["patient_id"].where(table.index > 3, "another")),
    "a column that divides images": ("sex", lambda table: table["sex"].where(table.index > 3, "M")),
    "labels of validation": ("class", lambda table: table["class"].where(table["split"] == "Test", TWO[0])),
}


@pytest.mark.parametrize("change", [*CHANGES, "lung masks"])
def test_images_of_which_something_else_is_known_are_others(change: str, listed: Path) -> None:
    model, data = listed / "classes.yaml", listed / "list.csv"
    before = key(model, data)
    assert key(model, data) == before
    if change == "lung masks":
        Image.fromarray(np.tri(16, dtype=np.uint8) * 255).save(listed / "mask000.png")
    else:
        table, (column, changed) = pd.read_csv(data, dtype=str), CHANGES[change]
        table.assign(**{column: changed(table)}).to_csv(data, index=False)
    assert key(model, data) != before


def test_what_the_list_lacks_is_said(listed: Path, tmp_path: Path, capsys: Any) -> None:
    table = pd.read_csv(listed / "list.csv", dtype=str)
    pd.concat([table, table[:1].assign(path="gone.png")]).to_csv(listed / "list.csv", index=False)
    document = audits.audit(listed / "classes.yaml", listed / "list.csv", tmp_path / "out")
    assert capsys.readouterr().err.count("gone.png") == 1
    assert sum("gone.png" in note for note in document.notes) == 1


def test_an_audit_takes_no_place_but_that_of_its_own_model(listed: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out", listed / "list.csv"
    audits.audit(listed / "classes.yaml", data, out)
    before = (out / "audit.json").read_bytes()
    shutil.copy(listed / "scores.csv", listed / "other.csv")
    text = (listed / "classes.yaml").read_text()
    (listed / "other.yaml").write_text(text.replace("scores.csv", "other.csv"))
    at = ["--data", data, "--out"]
    refused = complaint("audit", listed / "other.yaml", *at, out)
    assert f"{out}: holds the audit of another model, classes; choose another --out" in refused
    elsewhere = Path(shutil.copytree(listed, tmp_path / "elsewhere"))
    scores = pd.read_csv(elsewhere / "scores.csv")
    scores.assign(dark=0.5, bright=0.5).to_csv(elsewhere / "scores.csv", index=False)
    assert "the audit of another model" in complaint("audit", elsewhere / "classes.yaml", *at, out), "of that name"
    assert (out / "audit.json").read_bytes() == before
    scores.to_csv(listed / "scores.csv", index=False, float_format="%.3f")
    audits.audit(listed / "classes.yaml", data, out)
    assert (out / "audit.json").read_bytes() != before, "the same model's file was changed: anew"
    for name in ("study.yaml", "study.json", "metrics.json", "run.yaml"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("{}")
        assert "; choose another --out" in complaint("audit", listed / "classes.yaml", *at, tmp_path / name)
        assert [path.name for path in (tmp_path / name).iterdir()] == [name]


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("asked", "helping")]:
        del sys.modules[name]
    importlib.invalidate_caches()


FORMS = {
    "a module": ("asked.py", "asked:answers", "asked.py"),
    "a module beside it": ("asked.py", "asked:answers", "helping.py"),
    "a package": ("asked/inside/answering.py", "asked.inside.answering:answers", "asked/helper.py"),
}


@pytest.mark.parametrize("form", FORMS)
def test_other_code_is_a_new_model(form: str, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, target, changed = FORMS[form]
    path, folder = tmp_path / "code" / file, tmp_path / "code"
    path.parent.mkdir(parents=True)
    (folder / "helping.py").write_text("SCALE = 1\n")
    (folder / "unasked.py").write_text("\n")
    if path.parent != folder:
        (folder / "asked" / "__init__.py").touch()
        (folder / "asked" / "helper.py").touch()
    forget()
    code = "from helping import SCALE\n\ndef answers(images):\n    return SCALE * images[..., 0, :2].flatten(1)\n"
    path.write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    model = listed / "code.yaml"
    model.write_text(f"python: {target}\ninput: {{size: 16}}\noutput: {{classes: [dark, bright]}}\n")
    before = key(model, listed / "list.csv", trust_code=True)
    (folder / "unasked.py").write_text("import this\n")
    forget()
    assert key(model, listed / "list.csv", trust_code=True) == before
    (folder / changed).write_text((folder / changed).read_text() + "# changed\n")
    forget()
    assert key(model, listed / "list.csv", trust_code=True) != before


def test_a_finding_turned_round_is_examined_anew_and_so_is_all_by_another_version(
    listed: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, out = listed / "findings.yaml", listed / "list.csv", tmp_path / "board"

    def area(document: AuditDocument) -> float:
        return document.operating_points[0].auroc.value or 0.0

    first = audits.audit(model, data, out / "first")
    shutil.copytree(out / "first", out / "same")
    assert area(audits.audit(model, data, out / "same")) == area(first) > 0.8
    assert "already examined" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(audit_data, "AUDIT_VERSION", 0)
        audits.audit(model, data, Path(shutil.copytree(out / "first", tmp_path / "old")))
    assert "already examined" not in capsys.readouterr().err
    table = pd.read_csv(data, dtype=str)
    table.assign(Bright=1 - table["Bright"].astype(int)).to_csv(data, index=False)
    turned = audits.audit(model, data, out / "turned")
    assert area(audits.audit(model, data, out / "first")) == area(turned) < 0.2
    assert turned.data.fingerprint == first.data.fingerprint
    assert "labels of findings" in complaint("compare", out / "same", out / "turned")
    found = leaderboard.gather_audits(out)
    assert len(found.entries) == 2
    assert dict(found.refused)["same"].startswith("not the same labels of findings")
