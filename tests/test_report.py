"""The report: self-contained, honest about what is missing, and with the numbers of study.json."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from study_fixture import CLASSES, make_study
from trustcxr import report
from trustcxr.errors import UserError
from trustcxr.report import formatting, key_findings, load
from trustcxr.report.figures import pictures
from trustcxr.report.tables import accuracy
from trustcxr.storage.schemas import Alarm, StudyDocument


class Page(HTMLParser):
    """Collects tags with their attributes, tables by their region's label, and the visible text."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[list[float]]]] = {}
        self.ids: list[str] = []
        self.open: list[str] = []
        self.source, self.text, self._label = text, "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in self.VOID:
            self.open.append(tag)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if found.get("role") == "region":
            self._label = str(found["aria-label"])
        if tag == "tr":
            self.tables.setdefault(self._label, []).append([])
        if tag in ("td", "th") and self._label in self.tables:
            self.tables[self._label][-1].append([])
        if tag == "data":
            self.tables[self._label][-1][-1].append(float(str(found["value"])))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [str(v) for k, v in attrs if k == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(study: Path) -> Page:
    return rendered(study)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A study of one network, standard and by FGSM, that a test may change."""
    return make_study(tmp_path / "s", models=("ResNet18",), panels=0, images=30, resamples=20)


def _document(study: Path) -> dict[str, Any]:
    return json.loads((study / "study.json").read_text())


def rendered(study: Path, document: dict[str, Any] | None = None) -> Page:
    """The page of a study, whose study.json has this content from now on."""
    if document is not None:
        (study / "study.json").write_text(json.dumps(document))
    return Page(report.write(study).read_text(encoding="utf-8"))


def test_page_is_self_contained(page: Page) -> None:
    text = page.source
    assert len(text.encode()) < 5_000_000
    assert not re.search(r"(https?|ftp|wss?|file):", text, re.I)
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base")
        assert tag != "script" or not attributes, "a script of its own, within the page"
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert "url(" not in (attributes.get("style") or "").replace("url(#", "")
    styles = re.findall(r"<style[^>]*>(.*?)</style>", text, re.S)
    assert len(styles) == 2
    assert not re.search(r"url\(|@import|javascript:", "".join(styles))
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in str(policy), "or it would not run"
    assert not re.search(r"fetch|XMLHttp|WebSocket|import\(|eval|innerHTML", script)
    assert "<metadata" not in text


def test_page_is_well_formed_and_described(page: Page) -> None:
    assert not page.open
    assert len(page.ids) == len(set(page.ids)), "an id stands twice"
    anchors = [str(a["href"])[1:] for t, a in page.tags if t in ("a", "use") and str(a.get("href")).startswith("#")]
    anchors += re.findall(r"url\(#([^)]+)\)", page.source)
    assert anchors
    assert set(anchors) <= set(page.ids)
    scopes = [a.get("scope") for t, a in page.tags if t == "th"]
    assert set(scopes) == {"row", "col"}, "a screen reader says of each figure whose it is"
    images = [a for t, a in page.tags if t == "img"]
    assert len(images) == 2 * (1 + 4)
    assert all(a.get("alt") for a in images)
    assert all(a.get("aria-label") or a.get("aria-hidden") for t, a in page.tags if t == "svg")
    assert page.text.count("Research software. Not for diagnosis.") == 2
    assert page.text.index("Research software") < page.text.rindex("Summary\n")


def test_tables_have_the_numbers_of_study_json(study: Path, page: Page) -> None:
    document, tables = _document(study), page.tables
    runs, expected = document["runs"], set()
    for run in runs:
        clean = run["clean"]
        attacked = {a["attack"]: a["accuracy"]["value"] for a in run["attacks"] if a["epsilon"] == 0.02}
        others = [clean[name]["value"] for name in ("balanced_accuracy", "f1_macro", "auroc_macro", "ece")]
        expected.add((clean["accuracy"]["value"], attacked["fgsm"], attacked["pgd"], *others, float(clean["n"])))
    header, *rows = tables["Leaderboard"]
    assert len(header) == 10
    assert {tuple(v for cell in row for v in cell) for row in rows} == expected
    low, high = runs[0]["clean"]["accuracy"]["ci"]
    assert f"{100 * low:.1f} to {100 * high:.1f}" in page.text
    differences = [row[5][0] for row in tables["Standard against robust"][1:]]
    assert differences == [c["difference"]["value"] for c in document["comparisons"]]
    energies = sorted(row[3][0] for row in tables["Explanations"][1:])
    assert energies == sorted(r["saliency"]["gradcam"]["infection_energy"]["value"] for r in runs)
    sweep = sorted(v for row in tables["Accuracy at each epsilon"][1:] for cell in row[3:-1] for v in cell)
    assert sweep == sorted(a["accuracy"]["value"] for r in runs for a in r["attacks"])
    counts = [v for cell in tables["Images per split and class"][1] for v in cell]
    assert counts == [600, 600, 600, 1800, 400]
    assert [row[2][0] for row in tables["Training"][1:]] == [3_374_275] * 4


def test_confusion_under_attack_is_counted_from_the_predictions(study: Path) -> None:
    found = load.load_report(study)
    head = key_findings.choose_headline(found.study, found.runs)
    for run in found.runs:
        counted = accuracy.under_attack(run, head, len(CLASSES))
        share = np.trace(counted) / np.sum(counted)
        assert share == pytest.approx(run.attacked("pgd", 0.02).accuracy.value)


@pytest.mark.slow
def test_page_is_the_same_each_time(study: Path, page: Page) -> None:
    assert rendered(study).source == page.source
    assert not list(study.glob(".report*"))


def test_missing_parts_leave_dashes_not_crashes(tmp_path: Path) -> None:
    bare = make_study(tmp_path / "bare", attacks=(), saliency=False, panels=0, models=("ResNet18",))
    words_shown = rendered(bare).text
    masked = "failing gradients in 2 runs: the verdict of each gives the reason"
    parts = ("nothing is known about robustness", "No explanations were measured", masked, formatting.DASH)
    assert [part for part in parts if part not in words_shown] == []
    assert "None" not in words_shown
    assert "nan" not in words_shown.split()
    for file in (*bare.glob("runs/*/history.csv"), *bare.glob("runs/*/predictions.parquet")):
        file.unlink()
    assert "No training history was found" in rendered(bare).text


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"runs": [{"run": "a", "attacks": [{"attack": "fgsm"}], "saliency": {"gradcam": {}}}]},
        {"runs": [{"clean": {"accuracy": {"value": float("nan"), "ci": [None, 1]}, "confusion": [[1]]}}]},
        {"comparisons": [{}], "alarms": [{}], "failures": [{}], "runs": [{"saliency": {"x": {"perturbed": {}}}}]},
        {"recipe": {"defences": ["fgsm", {"name": "fgsm", "training": "x"}], "data": "x", "models": "y"}},
        {"recipe": {"defence": "fgsm", "defences": {"name": "fgsm"}, "data": {"add": ["x"]}}},
    ],
)
def test_any_gap_in_study_json_is_survived(tmp_path: Path, document: dict[str, Any]) -> None:
    assert "Provenance" in rendered(tmp_path, document).text
    report.print_study(StudyDocument.model_validate(document))


def test_broken_files_are_named_on_the_page(small: Path) -> None:
    for name in ("history.csv", "predictions.parquet", "example_maps.npz"):
        (small / "runs" / "resnet18-fgsm-s0" / name).write_bytes(b"\x00broken")
    pickled = np.array([{"code": 1}], dtype=object)  # must not be loaded
    np.savez(small / "runs" / "resnet18-standard-s0" / "example_maps.npz", image=pickled)
    shown = rendered(small).text
    for name in ("fgsm-s0/predictions.parquet", "fgsm-s0/example_maps.npz", "standard-s0/example_maps.npz"):
        assert f"resnet18-{name} could not be read" in shown
    assert "No heatmaps were saved" in shown


def test_a_missing_or_damaged_study_is_one_line(small: Path) -> None:
    document = _document(small)
    document["runs"][0]["attacks"][0]["steps"] = ["many"]
    with pytest.raises(UserError, match=r"study\.json: damaged: runs\.0\.attacks\.0\.steps: "):
        rendered(small, document)
    for spoil in (lambda path: path.write_text("{"), Path.unlink):
        spoil(small / "study.json")
        with pytest.raises(UserError, match=r"^[^\n]*study\.json[^\n]*\Z"):
            report.write(small)


def test_values_are_escaped(tmp_path: Path) -> None:
    classes = ("<b>bold</b>", '$x_1$ & "q"', "<img src=x onerror=alert(1)>")
    path = make_study(tmp_path / "s", models=("<script>alert(1)</script>",), classes=classes)
    document = _document(path)
    document |= {"title": "</title><script>alert(2)</script>", "alarms": [{"kind": "<i>", "text": "<u>u</u>"}]}
    document["recipe"]["name"] = "</pre><script>"
    document["runs"][0]["alarms"] = [{"kind": "</style>", "text": "<u>v</u>"}]
    shown = rendered(path, document)
    assert {tag for tag, _ in shown.tags}.isdisjoint({"u", "pre script"})
    assert [tag for tag, _ in shown.tags].count("script") == 1, "the page's own"
    assert "<b>bold" not in shown.source
    assert not any(a.get("src") == "x" or "onerror" in a for _, a in shown.tags)
    for value in ("<b>bold</b>", '$x_1$ & "q"', "<script>alert(1)</script>"):
        assert value in shown.text


def test_recorded_alarms_are_shown_once(study: Path, page: Page) -> None:
    document = _document(study)
    assert {a["kind"] for a in document["alarms"]} == {"fgsm_overstates"}
    shown = " ".join(page.text.split())
    for text in {a["text"] for a in document["alarms"]}:
        assert shown.count(f": {text}") == sum(a["text"] == text for a in document["alarms"])
    found = load.load_report(study)
    counted = key_findings.gather_alarms(found, found.runs)["count_text"]
    assert counted == f"{len(document['alarms'])} alarms", "as many as the terminal says"
    found.study.alarms = [Alarm(kind="new", text="said by the study alone")]
    groups = key_findings.gather_alarms(found, found.runs)["groups"]
    assert [g.lines for g in groups if g.kind == "new"] == [["said by the study alone"]]


def test_failed_runs_seeds_and_shortcuts_are_told(small: Path) -> None:
    assert accuracy.shortcuts(load.load_report(small).runs) is None
    document = _document(small)
    document["failures"] = [{"run": "vgg16-fgsm-s0", "reason": "train: out of memory"}]
    document["runs"].append(document["runs"][0] | {"seed": 1, "run": "resnet18-standard-s1"})
    document["runs"][1]["background"] = "swap"
    document["runs"][0]["shortcuts"] = {
        "lungs_blacked_out": {"accuracy": {"value": 0.57, "ci": [0.53, 0.61]}, "n": 90},
        "border_only": {"accuracy": {"value": 0.4}},
    }
    shown = rendered(small, document)
    words = ("vgg16-fgsm-s0: train: out of memory", "ResNet18 · standard (seed 1)", "ResNet18 · fgsm (background swap)")
    assert [part for part in (*words, "53.0 to 61.0") if part not in shown.text] == []
    rows = [row for row in shown.tables["Shortcuts"][1:] if row[3]]
    assert [row[3:5] for row in rows] == [[[0.57], [0.4]]]


def test_overlay_is_fixed_and_leaves_unlit_pixels_grey() -> None:
    image = np.full((4, 4), 200, np.uint8)
    shown = pictures.overlay(image, np.zeros((4, 4), np.float32))
    assert np.ptp(shown, axis=2).max() < 0.01
    half, full = (pictures.overlay(image, np.full((4, 4), v, np.float32)) for v in (0.5, 1.0))
    assert full.sum() > half.sum() > shown.sum()


def test_the_terminal_shows_each_run_with_its_alarms_and_cuts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_study(tmp_path / "s", models=("InceptionResNetV2", "[bold]x"), panels=0, images=30, resamples=20)
    monkeypatch.setenv("COLUMNS", "80")
    report.print_study(load.load_report(path).study)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert shown.count("[bold]x") == 2
    for run in _document(path)["runs"]:
        assert f"{100 * run['clean']['accuracy']['value']:.1f}" in shown


@pytest.mark.parametrize("column", ["", ",val_certified_accuracy"], ids=["no column", "an empty column"])
def test_of_one_run_there_is_no_leaderboard_and_the_legend_has_the_lines_drawn(column: str, tmp_path: Path) -> None:
    path = make_study(tmp_path / "s", models=("ResNet18",), defences=("standard",), panels=0, images=30, resamples=20)
    (file,) = path.glob("runs/*/history.csv")
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header + column, *(row + column[:1] for row in rows)]) + "\n")
    page = rendered(path).source
    absent = ("Leaderboard", "Standard against robust", "validation, certified")
    assert [words for words in absent if words in page] == [], "no such line is drawn, and nothing is compared"
    assert "validation, PGD" in page


def test_the_page_is_folded_by_question_and_its_first_part_answers(page: Page) -> None:
    text = page.source
    first, *questions = text.split('<details class="question"')
    assert len(questions) == 7
    assert not re.search(r'<details class="question"[^>]* open', text)
    headings = ("Compared", "Doubtful", "Unperturbed", "Under attack", "Where they look")
    assert [heading for heading in headings if f"<dt>{heading}</dt>" not in first] == []
    assert "6 runs" not in first
    assert "4 runs of 2 networks, on 90 images of the split “Test”." in first
    assert first.index("alarm brief") < first.index("most accurate"), "before anything that flatters"
    listed = re.findall(r'<li><a href="#([a-z]+)"', first)
    assert listed == ["summary", *re.findall(r'(?:<details class="question"|<section) id="([a-z]+)"', text)[1:]]
