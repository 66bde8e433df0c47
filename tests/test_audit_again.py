"""An audit started again: what was examined stands while nothing of it has changed; audits of one truth compare."""

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from test_cli import complaint
from trustcxr.audit import run_audit as audits
from trustcxr.audit.audit_data import Audit, open_images
from trustcxr.audit.subject import load_subject
from trustcxr.recipes.protocol import load_exam
from trustcxr.report import leaderboard
from trustcxr.runs.test_data import Source
from trustcxr.storage.schemas import AuditDocument

CLASSES = ("dark", "bright")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    short = load_exam().model_copy(update={"bootstrap": 100})
    monkeypatch.setattr(audits, "load_exam", lambda *_: short)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes in two splits with lung masks, their list, scores of all of them, and two model files."""
    root, random = tmp_path_factory.mktemp("listed"), np.random.default_rng(0)
    rows, scores = [], []
    for number in range(48):
        pixels = random.integers(0, 255, (16, 16)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number:03}.png")
        Image.fromarray(np.where(pixels > 0, 255, 0).astype(np.uint8)).save(root / f"mask{number:03}.png")
        bright = number % 2
        about = {"path": f"{number:03}.png", "class": CLASSES[bright], "split": "Val" if number >= 32 else "Test"}
        about |= {"patient_id": f"p{number // 4}", "sex": "FM"[number // 2 % 2], "lung_mask": f"mask{number:03}.png"}
        rows.append(about | {"Bright": str(bright)})
        likely = float(np.clip(0.3 + 0.4 * bright + 0.2 * random.standard_normal(), 0.01, 0.99))
        scores.append({"path": f"{number:03}.png", "dark": 1 - likely, "bright": likely, "Bright": likely})
    pd.DataFrame(rows).to_csv(root / "list.csv", index=False)
    pd.DataFrame(scores).to_csv(root / "scores.csv", index=False)
    for name, output in (
        ("classes", "{kind: probabilities, classes: [dark, bright]}"),
        ("findings", "{kind: sigmoid, classes: [Bright], thresholds: 0.5}"),
    ):
        (root / f"{name}.yaml").write_text(f"predictions: scores.csv\ninput: {{size: 16}}\noutput: {output}\n")
    return root


@pytest.fixture
def listed(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "listed"))


def key(model: Path, data: Path, *, trust_code: bool = False) -> str:
    """What an audit of that model on those data would say that it examined."""
    subject = load_subject(model, trust_code=trust_code)
    return Audit(subject, open_images(subject, Source(data)), load_exam()).key


CHANGES = {
    "a finding": ("Bright", lambda table: 1 - table["Bright"].astype(int)),
    "patients": ("patient_id", lambda table: table["patient_id"].where(table.index > 3, "another")),
    "a column that divides images": ("sex", lambda table: table["sex"].where(table.index > 3, "M")),
    "labels of validation": ("class", lambda table: table["class"].where(table["split"] == "Test", CLASSES[0])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_images_of_which_something_else_is_known_are_others(change: str, listed: Path) -> None:
    before, data = key(listed / "classes.yaml", listed / "list.csv"), listed / "list.csv"
    assert key(listed / "classes.yaml", data) == before
    table = pd.read_csv(data, dtype=str)
    column, changed = CHANGES[change]
    table.assign(**{column: changed(table)}).to_csv(data, index=False)
    assert key(listed / "classes.yaml", data) != before


def test_other_lung_masks_are_another_examination(listed: Path) -> None:
    before = key(listed / "classes.yaml", listed / "list.csv")
    Image.fromarray(np.tri(16, dtype=np.uint8) * 255).save(listed / "mask000.png")
    assert key(listed / "classes.yaml", listed / "list.csv") != before


def test_what_the_list_lacks_is_said_and_stands_in_the_document(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


@pytest.fixture
def _forgotten() -> Iterator[None]:
    forget()
    yield
    forget()


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
@pytest.mark.usefixtures("_forgotten")
def test_other_code_of_the_makers_is_another_model(
    form: str, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, target, changed = FORMS[form]
    path, folder = tmp_path / "code" / file, tmp_path / "code"
    path.parent.mkdir(parents=True)
    (folder / "helping.py").write_text("SCALE = 1\n")
    (folder / "unasked.py").write_text("\n")
    if path.parent != folder:
        (folder / "asked" / "__init__.py").touch()
        (folder / "asked" / "helper.py").touch()
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


def test_a_finding_turned_round_is_examined_anew_and_compares_with_no_other(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, out = listed / "findings.yaml", listed / "list.csv", tmp_path / "board"

    def area(document: AuditDocument) -> float:
        return document.operating_points[0].auroc.value or 0.0

    first = audits.audit(model, data, out / "first")
    shutil.copytree(out / "first", out / "same")
    assert area(audits.audit(model, data, out / "same")) == area(first) > 0.8
    assert "already examined" in capsys.readouterr().err
    table = pd.read_csv(data, dtype=str)
    table.assign(Bright=1 - table["Bright"].astype(int)).to_csv(data, index=False)
    turned = audits.audit(model, data, out / "turned")
    assert area(audits.audit(model, data, out / "first")) == area(turned) < 0.2
    assert turned.data.fingerprint == first.data.fingerprint
    assert "labels of findings" in complaint("compare", out / "same", out / "turned")
    found = leaderboard.gather_audits(out)
    assert len(found.entries) == 2
    assert dict(found.refused)["same"].startswith("not the same labels of findings")
