"""The audit finds what is planted in a data set, and nothing that is not."""

import html
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import trustcxr as tx
from trustcxr.data.checks import confounds
from trustcxr.data.checks.check import DataAudit, check_data, write_page
from trustcxr.data.checks.scan import scan
from trustcxr.data.layouts import read_manifest
from trustcxr.data.phantom import render_image, write_files
from trustcxr.errors import UserError
from trustcxr.statistics import holm

# Pairs of covidqu-mini that are one image, cropped by a little: looked at one by one, and in two splits.
REAL_LEAKS = [
    ("covid_3216.png", "covid_1427.png"),
    ("covid_4249.png", "covid_2619.png"),
    ("covid_3050.png", "covid_3952.png"),
]
PART = Path("Lung Segmentation Data", "Lung Segmentation Data")


def _png(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


def _resized(image: np.ndarray) -> np.ndarray:
    side = image.shape[0] * 3 // 4
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def _compressed(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=60)
    return np.asarray(Image.open(buffer))


CHANGES = (np.copy, _resized, _compressed, lambda image: np.clip(image * 1.1, 0, 255).astype(np.uint8))
DAMAGES: dict[str, Any] = {
    "mask_size": lambda mask: mask[: len(mask) // 2],
    "mask_not_binary": lambda mask: mask // 2 + 20,
    "mask_empty": lambda mask: mask * 0,
}


def plant(root: Path) -> SimpleNamespace:
    """Plant faults in the lung part of a COVID-QU-Ex folder, in place; return their sample ids or names of patients."""
    random, planted = np.random.default_rng(0), SimpleNamespace(leaks=set(), truncated=set(), masks={}, patients=set())
    table = read_manifest(root).table
    if "covidqu" in root.name and table["infection_mask"].isna().any():
        table = table[table["infection_mask"].isna()]
    train = list(table["sample_id"][table["split"] == "Train"])
    chosen = [str(s) for s in random.permutation(train)[:45]]

    def place(sample: str, kind: str) -> Path:
        split, name, file = sample.split("/")
        return root / PART / split / name / kind / file

    def replace(path: Path, pixels: np.ndarray) -> None:
        path.unlink(missing_ok=True)  # it may be a link to the original
        Image.fromarray(pixels).save(path)

    for i in range(20):
        sample, change = chosen.pop(), CHANGES[i % len(CHANGES)]
        _, name, file = sample.split("/")
        copy = f"{'Test' if i % 2 else 'Val'}/{name}/copy_{i}_{file}"
        replace(place(copy, "images"), change(_png(place(sample, "images"))))
        mask = _png(place(sample, "lung masks"))
        replace(place(copy, "lung masks"), _resized(mask) // 128 * 255 if change is _resized else mask)
        planted.leaks.add(copy)
    for _ in range(10):
        sample = chosen.pop()
        data = place(sample, "images").read_bytes()
        place(sample, "images").unlink()
        place(sample, "images").write_bytes(data[: int(len(data) * random.uniform(0.1, 0.8))])
        planted.truncated.add(sample)
    for kind in ("mask_missing", *DAMAGES, "mask_shared"):
        pair = [chosen.pop(), chosen.pop()]
        for path in (place(sample, "lung masks") for sample in pair):
            if kind == "mask_missing":
                path.unlink()
            elif kind == "mask_shared":
                replace(path, _png(place(pair[1], "lung masks")))
            else:
                replace(path, DAMAGES[kind](_png(path)))
        planted.masks[kind] = set(pair)
    rows = pd.read_csv(root / "manifest.csv", dtype=str, keep_default_na=False)
    test_paths = list(rows["path"][(rows["split"] == "Test") & (rows["set"] == "lung")])
    for i in range(5):
        path = place(chosen.pop(), "images").relative_to(root).as_posix()
        rows.loc[rows["path"].isin([path, test_paths[7 * i]]), "patient_id"] = f"planted:{i}"
        planted.patients.add(f"planted:{i}")
    (root / "manifest.csv").unlink()
    rows.to_csv(root / "manifest.csv", index=False)
    return planted


Audited = tuple[Path, SimpleNamespace, DataAudit]


def check(found: DataAudit, planted: SimpleNamespace) -> None:
    """Recall at least 95 % of each kind of fault, false alarms below 1 % of the samples."""
    by_kind = {f.kind: f for f in found.findings}

    def ids(*kinds: str) -> set[str]:
        items = [i for k in kinds if k in by_kind for i in by_kind[k].items]
        return {i["sample_id"] for i in items} | {i["other_id"] for i in items if "other_id" in i}

    samples = len(found.manifest.table)
    assert len(planted.leaks & ids("leak_exact", "leak_near")) >= 0.95 * len(planted.leaks)
    assert by_kind["leak_exact"].count == sum(1 for i in range(len(planted.leaks)) if i % 4 == 0)
    pairs = by_kind["leak_exact"].items + by_kind["leak_near"].items
    false_leaks = [p for p in pairs if not {p["sample_id"], p["other_id"]} & planted.leaks]
    assert len(false_leaks) < 0.01 * samples
    assert ids("unreadable") == planted.truncated
    for kind, wanted in planted.masks.items():
        got = ids(kind)
        if kind == "mask_missing":
            wanted = {s.split("/")[-1] for s in wanted}
        assert len(wanted & got) >= 0.95 * len(wanted), kind
        assert len(got - wanted) < 0.01 * samples, kind
    said = " ".join(i["detail"] for i in by_kind["leak_patient"].items)
    assert by_kind["leak_patient"].count == len(planted.patients)
    assert all(p in said for p in planted.patients)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"Train": 30, "Val": 12, "Test": 25}
    return write_files.write(tmp_path_factory.mktemp("audit") / "phantom", counts, size=96)


@pytest.fixture(scope="module")
def planted(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Audited:
    root = Path(shutil.copytree(clean, tmp_path_factory.mktemp("planted") / "phantom"))
    shutil.rmtree(root / "Infection Segmentation Data")
    faults = plant(root)
    return root, faults, check_data(root, workers=1)


def test_clean_synthetic_images_raise_no_alarm(clean: Path) -> None:
    found = check_data(clean, workers=1)
    assert [f for f in found.findings if f.severity in ("fault", "leak")] == []
    assert {f.kind for f in found.findings} <= {"confound"}
    assert found.counts["Train"] == {"COVID-19": 30, "Non-COVID": 30, "Normal": 30}
    assert found.published == []  # synthetic images are no subset of what was published
    assert found.files["masks"]["infection"] == {"n": 3 * 67, "empty": 67}


def test_every_planted_fault_is_found_and_no_other(planted: Audited) -> None:
    _, faults, found = planted
    check(found, faults)
    assert "Mend it first" in found.verdict
    assert "would flatter" in found.verdict
    assert "10 images cannot be read" in found.text()


def test_masks_that_lie_about_the_disease(clean: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(clean, tmp_path / "phantom"))
    masks = root / "Infection Segmentation Data" / "Infection Segmentation Data" / "Train"
    full, outside = np.full((96, 96), 255, np.uint8), np.zeros((96, 96), np.uint8)
    outside[:8] = 255
    for path, mask in (
        (masks / "Normal/infection masks/Normal (1).png", outside),
        (masks / "Normal/lung masks/Normal (2).png", full),
        (root / PART / "Train/Normal/lung masks/Normal (2).png", full),
        (masks / "COVID-19/infection masks/covid_1.png", outside),
        (masks / "COVID-19/infection masks/covid_2.png", outside * 0),
    ):
        Image.fromarray(mask).save(path)
    (masks / "COVID-19/infection masks/covid_3.png").write_bytes(b"PNG, said the name")
    found = check_data(root, workers=1, probes=False)
    normal, covid = "Train/Normal/Normal ({}).png", "Train/COVID-19/covid_{}.png"
    assert {f.kind: {i["sample_id"] for i in f.items} for f in found.findings} == {
        "mask_unexpected": {normal.format(1)},
        "mask_full": {normal.format(2)},
        "mask_outside": {normal.format(1), covid.format(1)},
        "mask_shared": {normal.format(1), covid.format(1)},
        "mask_empty": {covid.format(2)},
        "mask_unreadable": {covid.format(3)},
    }


def test_columns_named_as_what_is_measured_and_files_of_windows_are_no_fault(tmp_path: Path) -> None:
    root = write_files.write(tmp_path / "phantom", {"Train": 4}, size=64)
    (root / PART / "Train/Normal/images/Thumbs.db").write_bytes(b"pictures of a folder")
    rows = pd.read_csv(root / "manifest.csv", dtype=str)
    names = ("width", "height", "fault", "binary", "share", "digest", "outside", "image")
    rows.assign(**dict.fromkeys(names, "1")).to_csv(root / "manifest.csv", index=False)
    found = check_data(root, workers=1, probes=False)
    assert set(names) <= set(found.manifest.table.columns)
    assert [f for f in found.findings if f.severity in ("fault", "leak")] == []


@pytest.mark.slow
def test_source_and_view_of_a_class_are_said(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(shutil.copytree(clean, tmp_path / "phantom"))
    rows = pd.read_csv(root / "manifest.csv", dtype=str)
    rows["source_repo"] = np.where(rows["class"] == "COVID-19", "hospital A", "hospital B")
    rows.to_csv(root / "manifest.csv", index=False)
    found = check_data(root, workers=1, probes=False)
    linked = {a.column: a for a in found.associations}
    assert linked["source"].cramers_v == pytest.approx(1.0)
    assert linked["view"].cramers_v < 0.2  # drawn apart from the class
    assert [f.kind for f in found.issues_of("warning")] == ["association"]
    assert "Cramér's V 1.00" in found.verdict
    assert [p["said"] for p in found.published] == ["a subset of", "a subset of"]
    few = {
        name: dict.fromkeys(render_image.CLASSES, n) for name, n in (("COVID-QU-Ex", 10), ("its infection part", 67))
    }
    monkeypatch.setattr("trustcxr.data.layouts.folders.PUBLISHED", few)
    found = check_data(root, workers=1, probes=False)
    assert [p["said"] for p in found.published] == ["more than", "all of"]
    assert "more_than_published" in {f.kind for f in found.issues_of("warning")}


def test_images_of_one_patient_are_no_independent_evidence_of_an_association() -> None:
    groups, chance = np.repeat(np.arange(60), 8).astype(str), []
    for seed in range(60):
        random = np.random.default_rng(seed)
        view, label = (np.repeat(random.integers(0, 2, 60), 8).astype(str) for _ in range(2))
        found = confounds._association("view", view.astype(object), label, groups)
        chance.append(found is not None and found.p_value < 0.05)
    assert np.mean(chance) < 0.1, "over images it was two in three"
    alike = confounds._association("view", label.astype(object), label, groups)
    assert alike.p_value < 1e-6


def test_associations_are_corrected_for_all_columns(planted: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    corrected = [a.p_value for a in planted[2].associations]
    assert len(corrected) > 1
    monkeypatch.setattr(confounds, "holm", lambda p_values: p_values)
    alone = [a.p_value for a in check_data(planted[0], workers=1, probes=False).associations]
    np.testing.assert_allclose(corrected, holm(alone))
    assert not np.allclose(corrected, alone)


def test_the_clean_manifest_has_no_leak_and_says_what_was_dropped(planted: Audited, tmp_path: Path) -> None:
    _, faults, found = planted
    found.write_clean(tmp_path / "clean.parquet")
    again = read_manifest(tmp_path / "clean.parquet")
    kept = set(again.table["sample_id"])
    assert not kept & faults.truncated
    assert len(kept) + len(found.dropped) == len(found.manifest.table)
    assert found.dropped["dropped"].notna().all()
    rest = check_data(again, workers=1, probes=False)
    assert not rest.issues_of("leak")
    # What leaks is taken out of training; the test images that came with the data all stay.
    assert {s for s in found.manifest.table["sample_id"] if s.startswith("Test/")} <= kept
    written = pd.read_parquet(tmp_path / "clean.parquet")
    assert written["dropped"].notna().sum() == len(found.dropped)


def test_the_json_document_is_plain_and_the_page_shows_every_finding(planted: Audited, tmp_path: Path) -> None:
    root, _, found = planted
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["verdict"] == found.verdict
    assert {f["kind"] for f in document["findings"]} >= {"unreadable", "leak_exact", "mask_empty", "leak_patient"}
    page = write_page(found, tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(html.escape(f.text, quote=False) in html.unescape(page) for f in found.findings)
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched from outside
    assert page.count("<figure") > 50
    for text in (json.dumps(document), page):
        assert str(root.parent) not in text
    with pytest.raises(UserError, match="/dev/null"):
        write_page(found, "/dev/null/page.html")


@pytest.mark.slow
def test_a_planted_border_is_told_apart_without_the_lungs(tmp_path: Path) -> None:
    plain, marked = (
        check_data(write_files.write(tmp_path / name, {"Train": 60, "Test": 30}, size=64, shortcuts=cuts), workers=1)
        for name, cuts in (("plain", []), ("marked", ["border:Normal=0.95"]))
    )
    of_plain, of_marked = (next(p for p in a.probes if p.view == "outer frame") for a in (plain, marked))
    assert of_marked.accuracy > 0.6 > 0.5 > of_plain.accuracy
    assert any("outer frame" in f.text for f in marked.issues_of("warning"))
    assert "no proof that it reads the lungs" in marked.verdict


def save(path: Path, seed: int, name: str = "Normal", form: str = "PNG") -> None:
    """Write a synthetic image of a class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render_image.render(name, seed, 64).image).save(path, form)


def test_a_name_that_lies_one_split_only_and_no_images(tmp_path: Path) -> None:
    for i in range(24):
        save(tmp_path / "cts" / "ba"[i % 2] / f"{i}.png", i, render_image.CLASSES[i % 2], "JPEG" if i == 3 else "PNG")
    (tmp_path / "cts" / "b" / "broken.png").write_bytes(b"no image at all")
    found = check_data(tmp_path / "cts", workers=1)
    kinds = {f.kind: f for f in found.findings}
    assert set(kinds) <= {"name_lies", "unreadable", "confound"}
    assert kinds["name_lies"].items[0]["sample_id"] == "a/3.png"
    assert kinds["unreadable"].count == 1
    assert all(np.isclose(p.chance, 0.5) for p in found.probes)
    assert found.clean_manifest().counts() == {"All": {"a": 12, "b": 12}}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no"):
        tx.data.check_data(tmp_path / "empty")


def test_the_same_image_under_two_classes_is_dropped(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("a", 1), ("b", 2), ("b", 1)):
        save(tmp_path / "x" / name / f"{seed}.png", seed)
    found = check_data(tmp_path / "x", workers=1)
    assert [f.kind for f in found.issues_of("fault")] == ["label_conflict"]
    assert set(found.clean_manifest().table["sample_id"]) == {"a/0.png", "b/2.png"}


def test_classes_that_differ_only_in_capitals_or_blanks_are_a_finding(tmp_path: Path) -> None:
    names = {"COVID-19": 3, "covid-19": 1, "No finding": 1, "Nofinding": 2, "well": 1}
    for seed, name in enumerate(name for name, count in names.items() for _ in range(count)):
        save(tmp_path / "x" / name / f"{seed}.png", seed)
    found = check_data(tmp_path / "x", workers=1, probes=False)
    spelt = [finding for finding in found.issues_of("warning") if finding.kind == "class_spelling"]
    assert [(finding.text, finding.count) for finding in spelt] == [
        ("classes differ only in capitals or blanks: 'COVID-19' (3 images) and 'covid-19' (1 image)", 2),
        ("classes differ only in capitals or blanks: 'Nofinding' (2 images) and 'No finding' (1 image)", 2),
    ]
    assert spelt[0].text in found.verdict
    renamed = {"covid-19": "COVID-19", "No finding": "well", "Nofinding": "well"}
    mapped = check_data(found.manifest.with_labels(renamed), workers=1, probes=False)
    assert "class_spelling" not in {finding.kind for finding in mapped.findings}


def test_probe_views_are_what_they_say(clean: Path) -> None:
    read = scan(read_manifest(clean), workers=1)
    views = ("full image", "lungs blanked", "lungs only", "lung shape")
    features = [confounds.select_features(view, read, np.arange(5)) for view in (*views, "outer frame")]
    full, blanked, lungs, shape = (found.reshape(5, 32, 32) for found in features[:4])
    assert np.abs(blanked[shape == 255]).max() == 0  # deep in the lungs nothing is left
    assert np.abs(full[shape == 0] - blanked[shape == 0]).max() <= 6  # resized by two ways
    assert lungs[shape == 0].max() == 0
    assert features[4].shape == (5, 32 * 32 - 26 * 26)


@pytest.mark.slow
def test_real_images_give_the_published_confounds_and_no_false_alarm(covidqu: Path) -> None:
    found = check_data(covidqu, workers=2)
    published = {"full image": 0.70, "lungs blanked": 0.67, "outer frame": 0.60, "lung shape": 0.57}
    published |= {"lungs only": 0.59, "grey levels": 0.53}
    assert {p.view: p.accuracy for p in found.probes} == pytest.approx(published, abs=0.05)
    assert not found.issues_of("fault")
    # Its README looked without aligning the images.
    pairs = [(item["sample_id"], item["other_id"]) for leak in found.issues_of("leak") for item in leak.items]
    leaked = {frozenset(Path(name).name for name in pair) for pair in pairs}
    assert leaked <= {frozenset(pair) for pair in REAL_LEAKS}
    assert len(leaked) >= 2
    assert [p["said"] for p in found.published] == ["a subset of", "a subset of"]
    assert found.seconds < 90


@pytest.mark.slow
def test_real_images_every_planted_fault_is_found(covidqu: Path, tmp_path: Path) -> None:
    root = tmp_path / "covidqu-planted"
    shutil.copytree(covidqu, root, copy_function=lambda source, target: Path(target).symlink_to(Path(source).resolve()))
    faults = plant(root)
    check(check_data(root, workers=2, probes=False), faults)
