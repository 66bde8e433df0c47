"""Entries of the leaderboard: an audit becomes one, each fault has a line, and pages are made of them."""

import hashlib
import json
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from browser import SIZES, opened, sideways, violations
from test_audit_report import audit
from test_cli import complaint, run
from trustcxr.apps.dicom.studies_on_disk import write_table
from trustcxr.audit.compare import compare
from trustcxr.audit.formats.loading import read_scores
from trustcxr.audit.formats.model_file import OutputSpec
from trustcxr.report import leaderboard
from trustcxr.report.leaderboard import compare_rows
from trustcxr.storage import atomic
from trustcxr.storage.schemas import ImageAnswer

SUBMIT = ("--licence", "MIT", "--source", "https://example.org/ada/model@0123abc", "--run-by", "Ada")
FACTS = {"date": "2026-01-01", "versions": {"trustcxr": "0.2.0"}, "hardware": {"processor": "a processor", "cores": 2}}
WORST = {"attack": "worst-case", "epsilon": 0.02, "steps": 30, "queries": 300, "n": 40}


def whole(folder: Path, weights: bytes = b"one", **changes: Any) -> Path:
    """An audit with all that an entry needs; the model's checksum is that of `weights`."""
    digest = hashlib.sha256(weights).hexdigest()
    model = {"name": folder.name, "kind": "ONNX", "path": f"/home/ada/{folder.name}.onnx", "bytes": len(weights)}
    content = {
        "version": 2,
        "model": model | {"sha256": digest} | changes.pop("model", {}),
        "verdict": {"sound": True},
        "attacks": [WORST | {"accuracy": {"value": 0.3, "ci": [0.2, 0.4]}}],
        "facts": FACTS | {"patients": 7, "characteristics": [{"column": "sex", "value": "F"}]},
        "failures": [{"sample_id": "patient-1"}],
    }
    return audit(folder, **content | changes)


def entry(tmp_path: Path, name: str = "net", *options: object, **changes: Any) -> Path:
    """The file of an entry that the command wrote."""
    board = tmp_path / "leaderboard"
    done = run("leaderboard", board, "--add", whole(tmp_path / name, **changes), *SUBMIT, *options, "--json")
    return Path(json.loads(done.stdout)["entry"])


def answered(folder: Path, clean: str, worst: str, groups: str, **changes: Any) -> Path:
    """An audit of as many images as there are characters, right where there is a 1, with its predictions."""
    shares = [{"value": text.count("1") / len(text.replace("-", ""))} for text in (clean, worst)]
    content = {"clean": {"accuracy": shares[0], "n": len(clean)}, "attacks": [WORST | {"accuracy": shares[1]}]}
    whole(folder, **content | changes)
    rows = [
        {"sample_id": f"{n:03}.png", "group": groups[n], "split": "Test", "label": 0, "attack": attack, "steps": 0}
        | {"epsilon": epsilon, "severity": 0, "logits": [1.0, 0.0] if text[n] == "1" else [0.0, 1.0]}
        for attack, epsilon, text in (("clean", 0.0, clean), ("worst-case", 0.02, worst))
        for n in reversed(range(len(text)))
        if text[n] != "-"
    ]
    atomic.write_table(folder / "predictions.parquet", pd.DataFrame(rows))
    return folder


def change(path: Path, key: str, value: object) -> None:
    """Write another value at a key such as audit.clean.n."""
    content = json.loads(path.read_text())
    *parts, last = key.split(".")
    reduce(dict.__getitem__, parts, content)[last] = value
    path.write_text(json.dumps(content))


def faults(path: Path, *options: object) -> list[str]:
    """The lines of `--check`, which exits with 2, without the last, which counts them."""
    *lines, last = run("leaderboard", path, "--check", *options, expect=2).stdout.splitlines()
    assert f"faults {len(lines)}" in last
    return lines


def test_an_entry_has_the_figures_and_nothing_private(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text("source: /home/ada/net.onnx\ninput: {size: 64}\n")
    path = entry(tmp_path, "net", "--model-file", tmp_path / "net.yaml")
    digest = hashlib.sha256(b"one").hexdigest()
    assert path == tmp_path / "leaderboard" / "images" / f"net-{digest[:8]}.json"
    content = json.loads(path.read_text())
    assert content["command"] == "trustcxr audit net.yaml --data images --protocol exam-1 --out DIR"
    assert content["model_file"] == {"source": "net.onnx", "input": {"size": 64}}
    assert content["audit"]["attacks"][0]["accuracy"] == {"value": 0.3, "ci": [0.2, 0.4]}
    assert (content["audit"]["model"]["sha256"], content["audit"]["facts"]) == (digest, FACTS)
    assert not [word for word in ("/home", "patient") if word in path.read_text()]
    assert run("leaderboard", tmp_path / "leaderboard", "--check").stdout.endswith("entries 1, faults 0\n")


def test_the_entries_of_the_repository_have_no_fault_and_their_models_are_unchanged() -> None:
    root = Path(__file__).parents[1]
    said = run("leaderboard", root / "leaderboard", "--check", "--models", root / "src/trustcxr/zoo").stdout.strip()
    count, ours = (len([*(root / "leaderboard").glob(name)]) for name in ("*/*.json", "*/covid-*.json"))
    assert f"entries {count}, faults 0, unchanged models" in said
    assert said.endswith(f"src/trustcxr/zoo {ours}")


def test_an_entry_has_right_and_wrong_of_each_image_without_names_if_its_figures_are_those(tmp_path: Path) -> None:
    board, folder = tmp_path / "leaderboard", answered(tmp_path / "net", "11010", "10-00", "bbaac")
    table = atomic.read_table(folder / "predictions.parquet")
    atomic.write_table(folder / "predictions.parquet", table[:-1])
    run("leaderboard", board, "--add", folder, *SUBMIT)
    (path,) = board.rglob("*.json")
    assert "image_results" not in json.loads(path.read_text())
    atomic.write_table(folder / "predictions.parquet", table)
    run("leaderboard", board, "--add", folder, *SUBMIT)
    results = json.loads(path.read_text())["image_results"]
    assert len(results.pop("images")) == 64
    assert results == {"new_group": "10101", "clean": "01110", "worst_case": "-0100"}  # a, then b, then c
    assert ".png" not in path.read_text()
    assert run("leaderboard", board, "--check").stdout.endswith("entries 1, faults 0\n")
    change(path, "image_results.worst_case", "-1100")
    (line,) = faults(board)
    assert "image_results.worst_case: its share of right images is 0.5, but the audit's accuracy 0.25" in line
    change(path, "image_results.worst_case", "-010")
    assert "image_results.worst_case: it is not one of 0, 1, - for each of 5 images" in faults(board)[0]


def test_two_rows_are_compared_image_by_image_as_by_the_command(tmp_path: Path) -> None:
    board, groups = tmp_path / "leaderboard", "aabbccddeeffgghhiijj"
    for name, clean, worst in (
        ("one", "11111111110000110111", "11110000000000110111"),
        ("two", "10110011110000111111", "-0110011011000000001"),
    ):
        folder = answered(tmp_path / name, clean, worst, groups, weights=name.encode())
        run("leaderboard", board, "--add", folder, *SUBMIT)
    ranked = leaderboard.gather_audits(board)
    one, two = (row.results for row in ranked.entries)
    pair = compare_rows([one, two, None])["0 1"]
    rows = {row.measure: row for row in compare(tmp_path / "one", tmp_path / "two").rows}
    assert [document.model.name for _, document, *_ in ranked.entries] == ["one", "two"]
    for key, measure, alone in (("clean", "clean accuracy", [3, 1]), ("attacked", "worst-case accuracy @0.02", [5, 4])):
        figures, row = pair[key], rows[measure]
        assert figures is not None
        assert figures[:3] == pytest.approx([row.difference.value, *row.difference.interval], abs=1e-6)
        assert figures[3:] == [*alone, row.n]
    assert list(compare_rows([one, two.model_copy(update={"images": "f" * 64}), None])) == []
    beside = leaderboard.gather_audits(whole(tmp_path / "one").parent)  # an audit's own table, changed under it
    unknown = {row.name: row.results is None for row in beside.entries if row.entry is None}
    assert unknown == {"one": True, "two": False}


def test_gradients_that_fail_are_marked(tmp_path: Path) -> None:
    texts = {"vanish": "40.0% of images have no gradient", "sound": ""}
    for name, text in texts.items():
        checks = [{"check": "gradients", "passed": not text, "text": text}]
        entry(tmp_path, name, weights=name.encode(), entry_checks=checks)
    entry(tmp_path, "none", weights=b"3", model={"gradients": "none"})
    entry(tmp_path, "masked", weights=b"4", masking={"masked": True, "reasons": ["black box beats white box"]})
    texts |= {"none": "the model gives none, so attacks did without", "masked": "black box beats white box"}
    board = leaderboard.gather_audits(tmp_path / "leaderboard")
    assert {one.model.name: leaderboard.describe_gradients(one) for _, one, *_ in board.entries} == texts
    cells = [row[2] for row in leaderboard.make_table(board).rows]
    assert sorted(cell.text for cell in cells) == ["sound"] + ["sound, gradients fail"] * 3
    rows = leaderboard.to_json(board)["rows"]
    assert {row["gradients fail"] for row in rows} == {text or None for text in texts.values()}  # type: ignore[attr-defined]


def test_old_entries_stay_and_none_is_replaced(tmp_path: Path) -> None:
    first = entry(tmp_path)
    before = first.read_bytes()
    assert entry(tmp_path) == first  # the same audit once more
    assert entry(tmp_path, weights=b"a new revision") != first
    assert first.read_bytes() == before
    other = whole(tmp_path / "net", attacks=[WORST | {"accuracy": {"value": 0.9}}])
    message = complaint("leaderboard", tmp_path / "leaderboard", "--add", other, *SUBMIT)
    assert f"{first}: another entry of these bytes is there" in message
    assert first.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"protocol": None}, SUBMIT, "audited with other options than a protocol's"),
        ({"model": {"sha256": None}}, SUBMIT, "audit.model.sha256: None is no SHA-256"),
        ({"facts": {}}, SUBMIT, "audit.facts: version, date or machine is missing"),
        ({}, (), "run_by: it is missing. Add it."),
        ({}, (*SUBMIT, "--source", "https://example.org"), "'https://example.org' is not ADDRESS@COMMIT"),
    ],
)
def test_what_is_no_entry_is_refused(tmp_path: Path, changes: Any, options: tuple[str, ...], words: str) -> None:
    assert words in complaint("leaderboard", tmp_path / "board", "--add", whole(tmp_path / "net", **changes), *options)
    assert not (tmp_path / "board").exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("badge", "gold", "badge: 'gold' is unknown"),
        ("badge", "scores only", "badge: 'scores only' does not fit a model of kind 'ONNX'. Use 'run here'."),
        ("stars", 5, "stars: Extra inputs are not permitted"),
        ("version", 1, "it has version 1"),
        ("audit.protocol", "exam-0", "audit.protocol: 'exam-0' is unknown"),
        ("audit.clean.accuracy", {"value": 1.2}, "audit.clean.accuracy: 1.2 is no share of one"),
        ("audit.clean.accuracy", {"value": 0.9, "ci": [0.91, 0.95]}, "0.9 is outside its interval [0.91, 0.95]"),
        ("audit.attacks", [WORST | {"accuracy": {"value": -0.1}}], "audit.attacks[0].accuracy: -0.1 is no share"),
        ("audit.model.name", "other", "file name: it does not fit data, name and sha256. Rename it to images/other-"),
        ("audit.model.sha256", "f" * 64, "Rename it to images/net-ffffffff.json."),
        ("audit.data.name", "others", "Rename it to others/net-"),
    ],
)
def test_each_fault_has_a_line(tmp_path: Path, key: str, value: object, words: str) -> None:
    path = entry(tmp_path)
    change(path, key, value)
    (line,) = faults(tmp_path / "leaderboard")
    assert line.startswith(f"{path}: ")
    assert words in line


def test_duplicates_and_files_of_another_kind_are_faults(tmp_path: Path) -> None:
    first, second = entry(tmp_path, "a"), entry(tmp_path, "b")
    (first.parent / "damaged.json").write_text("{")
    lines = faults(tmp_path / "leaderboard")
    assert len(lines) == 2
    assert "damaged.json: not readable as JSON" in lines[0]
    assert lines[1] == f"{second}: duplicate: the same model, images and protocol as {first}. Remove one of them."
    assert "no entry (*.json) in it" in complaint("leaderboard", whole(tmp_path / "c"), "--check")


def test_a_changed_byte_of_a_model_is_noticed(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "run").mkdir(parents=True)
    (models / "net.onnx").write_bytes(b"one")
    (models / "run" / "model.safetensors").write_bytes(b"two")
    path = entry(tmp_path)
    trained = entry(tmp_path, "trained", weights=b"two", model={"kind": "run", "path": "out/run"})
    entry(tmp_path, "elsewhere", weights=b"three")
    done = run("leaderboard", tmp_path / "leaderboard", "--check", "--models", models)
    assert done.stdout.endswith(f"entries 3, faults 0, unchanged models in {models} 2\n")
    (models / "net.onnx").write_bytes(b"onE")
    (models / "run" / "model.safetensors").write_bytes(b"twO")
    lines = faults(tmp_path / "leaderboard", "--models", models)
    assert [line.split(" has changed: ")[0] for line in lines] == [
        f"{path}: model: {models / 'net.onnx'}",
        f"{trained}: model: {models / 'run' / 'model.safetensors'}",
    ]
    assert hashlib.sha256(b"onE").hexdigest() in lines[0]
    assert "--models needs --check" in complaint("leaderboard", tmp_path / "leaderboard", "--models", models)
    assert "need --add AUDIT" in complaint("leaderboard", tmp_path / "leaderboard", *SUBMIT)


def test_a_page_has_a_table_for_each_protocol_data_set_and_effort_and_scores_alone_join_none(tmp_path: Path) -> None:
    entry(tmp_path, "strong", attacks=[WORST | {"accuracy": {"value": 0.6, "ci": [0.5, 0.7]}}])
    entry(tmp_path, "weak", weights=b"2")
    reasons = ["the gradients vanish"]
    entry(tmp_path, "masked", weights=b"3", verdict={"sound": False, "reasons": reasons}, attacks=[WORST])
    entry(tmp_path, "shorter", weights=b"4", attacks=[WORST | {"steps": 10, "accuracy": {"value": 0.9}}])
    entry(tmp_path, "quick", weights=b"5", protocol="exam-quick-1")
    entry(tmp_path, "abroad", "--reported", weights=b"6", data={"name": "abroad", "fingerprint": "2", "n": 40})
    entry(tmp_path, "scores", weights=b"7", model={"kind": "predictions"}, attacks=[])
    board = leaderboard.gather_audits(tmp_path / "leaderboard")
    tables = [[document.model.name for _, document, *_ in one.entries] for one in (board, *board.others)]
    assert tables[0] == ["strong", "weak", "scores", "masked"]
    assert sorted(tables[1:]) == [["abroad"], ["quick"], ["shorter"]]
    contents = [json.loads(path.read_text()) for path in (tmp_path / "leaderboard").rglob("*.json")]
    badges = {content["audit"]["model"]["name"]: content["badge"] for content in contents}
    assert badges == dict.fromkeys(badges, "run here") | {"scores": "scores only", "abroad": "reported"}
    done = run("leaderboard", tmp_path / "leaderboard", "--out", tmp_path / "page")
    assert done.stdout.count("on images (40 images)") == 3
    page = (tmp_path / "page" / "leaderboard.html").read_text()
    assert page.count("<table") == 4
    words = ("NOT SOUND", "the gradients vanish", "run here", "by Ada", "ada/model@0123abc", "licence MIT")
    assert [text for text in ("7 audits in 4 tables", *words) if text not in page] == []
    row = leaderboard.to_json(board)["rows"][0]  # type: ignore[index]
    assert (row["badge"], row["attacked_ci"], row["run_by"]) == ("run here", [0.5, 0.7], "Ada")
    assert (tmp_path / "page" / "leaderboard.csv").read_text().count("\n") == 8


def test_faulty_entries_are_not_ranked_and_own_audits_stand_beside_entries(tmp_path: Path) -> None:
    good, bad = entry(tmp_path, "good"), entry(tmp_path, "bad", weights=b"2")
    change(bad, "audit.clean.accuracy", {"value": 0.9, "ci": [0.1, 0.2]})
    whole(tmp_path / "leaderboard" / "mine", weights=b"3")
    board = leaderboard.gather_audits(tmp_path / "leaderboard")
    assert {name for name, *_ in board.entries} == {f"images/{good.stem}", "mine"}
    ((name, why),) = board.refused
    assert name == f"images/{bad.stem}"
    assert "0.9 is outside its interval" in why
    table = leaderboard.make_table(board)
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert atomic.read_json(good)["badge"] in {cell.text for row in table.rows for cell in row}


def test_the_table_of_predict_is_a_table_of_scores(tmp_path: Path) -> None:
    images = [ImageAnswer(image=f"/a/{n}.png", probabilities={"x": n / 4, "y": 1 - n / 4}) for n in range(3)]
    scores, _ = read_scores(write_table(images, tmp_path), OutputSpec(kind="probabilities", classes=("x", "y")))
    assert list(scores["sample_id"]) == ["/a/0.png", "/a/1.png", "/a/2.png"]
    assert [int(row.argmax()) for row in scores["logits"]] == [1, 1, 0]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of five entries in two tables; two of them have results of single images, one is not sound."""
    folder = tmp_path_factory.mktemp("page")
    board = folder / "leaderboard"
    run("leaderboard", board, "--add", answered(folder / "one", "1111011100", "1101010000", "abcdefghij"), *SUBMIT)
    other = answered(folder / "two", "1111111110", "1000000000", "abcdefghij", weights=b"2")
    run("leaderboard", board, "--add", other, *SUBMIT, "--licence", "none")
    entry(folder, "three", "--run-by", "Bo", weights=b"3", clean={"accuracy": {"value": 0.6}, "n": 40})
    unsound = {"sound": False, "reasons": ["it counts"]}
    entry(folder, "four", "--reported", weights=b"4", verdict=unsound, model={"gradients": "none"})
    entry(folder, "far", weights=b"5", protocol="exam-quick-1")
    run("leaderboard", board)
    return board / "leaderboard.html"


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_sorts_filters_and_compares_two_rows(browser: Any, page: Path, size: str, dark: bool) -> None:
    def names(seen: Any) -> list[str]:
        return [text.split()[0] for text in seen.page.locator("table.sorts tbody tr:visible th").all_inner_texts()]

    with opened(browser, page, size=size, dark=dark) as seen:
        assert names(seen) == ["one", "three", "two", "four", "far"]
        if size == "phone":
            seen.page.get_by_role("combobox", name="Sort by").first.select_option("clean, %")
        else:
            seen.page.locator("thead").first.get_by_text("clean, %").click()
        assert names(seen) == ["two", "four", "one", "three", "far"]
        assert seen.page.locator("tr", has_text="four").get_by_text("gradients fail").is_visible()
        for name, value, left in (
            ("protocol", "exam-quick-1", ["far"]),
            ("badge", "reported", ["four"]),
            ("licence", "none", ["two"]),
            ("run by", "Bo", ["three"]),
        ):
            field = seen.page.get_by_role("combobox", name=name, exact=True)
            field.select_option(value)
            assert names(seen) == left
            assert seen.page.locator(".ranked:visible").count() == 1
            assert seen.page.get_by_text("1 of 5 rows").is_visible()
            field.select_option("all")
        seen.page.get_by_label("only sound").check()
        assert names(seen) == ["two", "one", "three", "far"]
        seen.page.get_by_label("Filter:").first.fill("by Bo")
        assert names(seen) == ["three", "far"]
        seen.page.get_by_label("Filter:").first.fill("")
        seen.page.get_by_text("Compare two rows").click()
        choose = [seen.page.get_by_role("combobox", name=name, exact=True) for name in ("First", "Second")]
        choose[0].select_option("two")
        choose[1].select_option("one")
        compared = [row.split("\t") for row in seen.page.locator(".compare table tr").all_inner_texts()]
        difference = next(cells for cells in compared if cells[0] == "two less one, paired")
        assert [cell.split(" ")[0] for cell in difference[1:]] == ["+20.0", "−30.0"]
        assert [cells[1:] for cells in compared[-3:]] == [["0", "3"], ["2", "0"], ["10", "10"]]
        choose[1].select_option("four")
        text = seen.page.locator(".compare").inner_text()
        for words in ("not known", "four: it has no results of single images.", "four: its measurement is not sound."):
            assert words in text
        assert seen.complaints == []
        assert sideways(seen.page) == 0
        assert violations(seen.page, impacts=("minor", "moderate", "serious", "critical")) == []
