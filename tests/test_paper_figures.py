"""Figures: told apart by the colour-blind, never cut, with their values; as files for a journal."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from study_fixture import make_study
from test_cli import complaint, run
from trustcxr.registry import ATTACKS, DEFENCES
from trustcxr.report import load, study_html
from trustcxr.report.figures import svg
from trustcxr.report.figures.charts import accuracy_dots, training_curve
from trustcxr.report.key_findings import choose_headline

color = pytest.importorskip("skimage.color", reason="scikit-image is not installed: colours were not compared")

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB: what the colour-blind see.
SEEN = {
    "by all cones": "1 0 0 0 1 0 0 0 1",
    "without long": "0.152286 1.052583 -0.204868 0.114503 0.786281 0.099216 -0.003882 -0.048116 1.051998",
    "without medium": "0.367322 0.860646 -0.227968 0.280085 0.672501 0.047413 -0.011820 0.042940 0.968881",
    "without short": "1.255528 -0.076749 -0.178779 -0.078411 0.930809 0.147602 0.004733 0.691367 0.303900",
}
TOLD_APART = 9.0  # CIEDE2000: 2 can just be seen side by side
SETS = {
    "defences": {name: entry.colour for name, entry in DEFENCES.items()},
    "attacks": {"clean": svg.CLEAN_STYLE[0], "other": svg.attack_style("?")[0]}
    | {name: entry.style[0] for name, entry in ATTACKS.items() if entry.style},
    "outcomes": {"better": svg.BETTER, "worse": svg.WORSE, "not settled": svg.QUIET},
}


def _parts(colour: str) -> np.ndarray:
    return np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])


def _hex(parts: np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in np.clip(parts, 0, 1))


def _linear(colour: str) -> np.ndarray:
    parts = _parts(colour)
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def _seen(colour: str, matrix: str) -> str:
    linear = np.clip(np.array(matrix.split(), float).reshape(3, 3) @ _linear(colour), 0, 1)
    return _hex(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((float(_linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def on_dark(colour: str) -> str:
    """What a browser makes of single_page._ON_DARK, which is in CSS, clipped to what a screen can show."""
    light, a, b = color.rgb2lab(_parts(colour))
    return _hex(color.lab2rgb([100 - 0.94 * light, a, b]))


@pytest.mark.parametrize("chosen", SETS)
def test_colours_are_told_apart_without_any_kind_of_cone_and_stand_out_from_the_page(chosen: str) -> None:
    for page, colours in (("#ffffff", SETS[chosen]), ("#10161d", {n: on_dark(c) for n, c in SETS[chosen].items()})):
        for who, matrix in SEEN.items():
            for (one, x), (other, y) in itertools.combinations(colours.items(), 2):
                far = color.deltaE_ciede2000(*(color.rgb2lab(_parts(_seen(c, matrix))) for c in (x, y)))
                assert far >= TOLD_APART, f"{one} and {other} on {page}, seen {who}: {far:.1f}"
        assert [name for name, colour in colours.items() if _contrast(colour, page) < 3] == [], page


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("ResNet18", "tf_efficientnet_lite0-with-a-long-name-that-ends-in-a")
    return make_study(tmp_path_factory.mktemp("study"), models=names, images=30, panels=1, resamples=20, epochs=3)


def test_titles_are_whole_and_marks_say_their_values(study: Path) -> None:
    found = load.load_report(study)
    one = found.runs[2]
    drawing = training_curve(one)
    assert drawing is not None
    drawn = svg.render_inline(drawing, "k")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    title = "".join(texts).replace(" ", "")
    assert one.label.replace(" ", "") in title, "in two lines, none of it cut"
    assert all(f"epoch {epoch}: " in drawn for epoch in (1, 2, 3))
    head = choose_headline(found.study, found.runs)
    dots = svg.render_inline(accuracy_dots(found.runs, head), "d")
    for run_ in found.runs:
        share = run_.clean.accuracy
        assert f"{run_.label}, clean: {100 * (share.value or 0):.1f}\u00a0% (95\u00a0% CI" in dots
    assert not re.search(r"#[0-9a-f]{6}", re.sub(r"var\(--c\w+\)", "", dots.replace('"#', "")).split("<defs")[0])


def test_what_is_no_format_or_width_is_refused_in_a_line(study: Path, tmp_path: Path) -> None:
    assert "valid: pdf, svg, png" in complaint("report", study, "--figures", tmp_path, "--format", "jpg")
    assert "did you mean single?" in complaint("report", study, "--figures", tmp_path, "--width", "singel")
    assert "--width needs --figures" in complaint("report", study, "--width", "single")
    assert "study.json" in complaint("report", tmp_path, "--figures", tmp_path)


@pytest.mark.sample("single-89")
@pytest.mark.slow
@pytest.mark.parametrize(("width", "millimetres"), [("single", 89), ("double", 183)])
def test_figures_are_vector_legible_and_of_the_width(study: Path, tmp_path: Path, width: str, millimetres: int) -> None:
    said = run("report", study, "--figures", tmp_path, "--format", "svg", "--width", width).stdout.split("\n")
    drawn = {Path(line).stem: Path(line) for line in said if line.endswith(".svg")}
    assert {"accuracy", "epsilon-ResNet18", "localisation", "heatmaps"} <= set(drawn)
    assert any(name.startswith("training-") for name in drawn)
    assert any(line.endswith("report-tables/leaderboard.csv") for line in said)
    for name, path in drawn.items():
        text = path.read_text()
        points = re.search(r'<svg[^>]* width="([\d.]+)pt"', text)
        assert points is not None
        assert float(points[1]) == pytest.approx(millimetres / 25.4 * 72, abs=0.1), name
        sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:\w+ )?([\d.]+)px", text)]
        assert sizes, name
        assert min(sizes) >= 5, name
        assert ("<image" in text) == (name == "heatmaps"), f"{name}: only images are pictures"


@pytest.mark.slow
def test_a_pdf_holds_its_letters_and_is_the_same_each_time(study: Path, tmp_path: Path) -> None:
    for place in ("one", "two"):
        assert "accuracy.pdf" in run("report", study, "--figures", tmp_path / place).stdout
    first = (tmp_path / "one" / "accuracy.pdf").read_bytes()
    assert first == (tmp_path / "two" / "accuracy.pdf").read_bytes()
    box = re.search(rb"/MediaBox \[\s*0 0 ([\d.]+) ([\d.]+)\s*\]", first)
    assert box is not None
    assert float(box[1]) == pytest.approx(89 / 25.4 * 72, abs=0.1)
    assert b"/FontFile2" in first, "TrueType, as journals ask"
    assert b"/Type3" not in first
    names = {path.name for path in (tmp_path / "one").glob("*.pdf")}
    assert len(names) == len(list(study_html.drawings(load.load_report(study), narrow=True)))
