"""An audit's page, its model card, and the leaderboard of many: what does not compare is named with the reason."""

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from browser import chromium, opened, sideways, violations
from pack import Pack
from test_audit_command import few_steps, greys  # noqa: F401
from test_cli import complaint, run
from trustcxr.attacks import computes_in_bfloat16
from trustcxr.report import audit_html, leaderboard, load, terminal
from trustcxr.report.tables import audit_rows, robustness
from trustcxr.report.terminal import describe_attacked, describe_audit, find_hardest
from trustcxr.storage import atomic
from trustcxr.storage.schemas import AuditDocument, RunDocument, Verdict, read_schema


def audit(folder: Path, **changes: Any) -> Path:
    """An audit of 40 images, its name that of its folder; without what is None among the changes."""
    content = {
        "protocol": "exam-1",
        "classes": ["x", "y"],
        "data": {"name": "images", "fingerprint": "1", "n": 40},
        "model": {"name": folder.name, "kind": "run"},
        "clean": {"accuracy": {"value": 0.9, "ci": [0.8, 1.0]}, "n": 40},
        "attacks": [{"attack": "pgd", "epsilon": 0.02, "steps": 20, "accuracy": {"value": 0.8}, "n": 40}],
    }
    kept = {key: value for key, value in (content | changes).items() if value is not None}
    atomic.write_json(folder / "audit.json", kept)
    return folder


def on_board(folder: Path) -> list[str]:
    return [name for name, *_ in leaderboard.gather_audits(folder).entries]


@pytest.fixture
def audits(pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return two audits, to change: of a model that is right, and of one that takes bright images for grey."""
    few_steps(monkeypatch)
    return Path(shutil.copytree(pack.audits(), tmp_path / "audits"))


def test_the_page_says_first_what_may_be_relied_on_and_then_everything(audits: Path) -> None:
    document = read_schema(AuditDocument, audits / "good" / "audit.json")
    page = (audits / "good" / "report.html").read_text()
    assert page.index("<h3>Model") < page.index("<h3>Data and protocol") < page.index("<h3>Results")
    assert page.index("<h3>Limits") < page.index("Entry checks")
    assert page.lower().count("research software") >= 2
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert page.count("<script") == 1, "one of its own, which it can do without"
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page), "nothing is loaded from elsewhere"
    shown = re.sub(r"<[^>]+>", "", page).replace("&#39;", "'")
    for lines in audit_html._summarise(document).values():
        for line in lines:
            assert line in shown.replace("&gt;", ">")
    for point in document.operating_points:
        assert f'<data value="{point.auroc.value}">' in page
    assert page == audit_html.render(document, audits / "good"), "the same document gives the same page"
    assert any("sensitivity" in line for line in describe_audit(document))
    assert document.facts.bfloat16 == (["PGD", "Square"] if computes_in_bfloat16("cpu") else [])
    assert ("bfloat16 for the search of PGD and Square" in page) == bool(document.facts.bfloat16)
    document.verdict = Verdict(sound=False, reasons=["the attack <b>failed</b>"])
    page = audit_html.render(document)
    assert "<li>the attack &lt;b&gt;failed&lt;/b&gt;</li>" in page
    assert page.index("NO: do not rely on") < page.index("<h3>Model")


def test_what_was_not_measured_is_not_the_worst() -> None:
    points = [("clean", 0.9), ("fgsm", None), ("pgd", 0.2)]
    content: dict[str, Any] = {
        "corruptions": [
            {"corruption": name, "severity": 1, "accuracy": {"value": value}}
            for name, value in (("noise", None), ("blur", 0.2))
        ],
        "corruptions_mean": {"accuracy": {"value": 0.2}, "conditions": 2},
        "operating_points": [
            {"finding": "A", "attack": attack, "epsilon": 0.02, "sensitivity": share, "specificity": share}
            for attack, share in ((attack, {"value": value}) for attack, value in points)
        ],
    }
    said = "\n".join(describe_audit(AuditDocument.model_validate(content)))
    assert "at worst (blur) 20.0%" in said
    assert "under PGD at epsilon 0.02: sensitivity 20.0%" in said
    of_run = RunDocument.model_validate({key: content[key] for key in ("corruptions", "corruptions_mean")})
    assert "worst blur at 1: 20.0%" in "\n".join(terminal.describe_metrics(of_run))
    table = robustness.corrupted([load.Run(of_run, Path("a"), [])])
    assert [cell.text for cell in table.rows[0]][5:7] == ["blur, severity 1", "20.0"]
    content["corruptions"].pop()
    content["operating_points"].pop()
    document = AuditDocument.model_validate(content)
    assert "at worst" not in "\n".join(describe_audit(document))
    assert find_hardest(document, "A") is None


def test_errors_of_both_kinds_have_likelihood_ratios_with_intervals_also_under_attack_in_terminal_and_card() -> None:
    about = {"finding": "ill", "origin": "validation", "threshold": 0.5, "auroc": {"value": 0.9, "ci": [0.8, 0.95]}}
    clean = {"attack": "clean", "sensitivity": {"value": 0.8}, "specificity": {"value": 1.0}}
    worst = {"attack": "pgd", "epsilon": 0.02, "steps": 20}
    worst |= {"sensitivity": {"value": 0.3}, "specificity": {"value": 0.4}}
    useless = {"sensitivity": {"value": 0.0}, "specificity": {"value": 1.0}, "likelihood_negative": {"value": 1.0}}
    low, high = {"value": 0.2, "ci": [0.1, 0.314159]}, {"value": None, "ci": [9.5, None]}
    points = [
        clean | {"likelihood_positive": high, "likelihood_negative": low},
        worst | {"likelihood_positive": {"value": 0.5, "ci": [0.25, 0.75]}, "likelihood_negative": {"value": 1.75}},
        {"attack": "fgsm", "epsilon": 0.02} | useless,
    ]
    document = AuditDocument.model_validate({"operating_points": [about | point for point in points]})
    as_it_is = "specificity 100.0% [-, -], LR+ ∞ [9.5, ∞], LR- 0.2 [0.1, 0.314], AUROC 90.0% [80.0%, 95.0%]"
    attacked = "under PGD-20 at epsilon 0.02: sensitivity 30.0% [-, -], specificity 40.0% [-, -], LR+ 0.5 [0.25, 0.75]"
    for told in ("\n".join(describe_audit(document)), audit_html.render_card(document)):
        assert as_it_is in told
        assert f"{attacked}, LR- 1.75, AUROC" in told
    table = audit_rows.operating_points(document.operating_points)
    ratios = [[cell.text for cell in row][table.header.index("LR+") :][:2] for row in table.rows]
    assert ratios == [["∞", "0.2"], ["0.5", "1.75"], ["–", "1"]], "of 0 by 0 there is no ratio"
    assert "∞" not in table.latex()
    document.operating_points = document.operating_points[::2]
    (line,) = describe_attacked(document, "ill")
    assert "specificity 100.0% [-, -], LR- 1, AUROC" in line, "of 0 by 0 there is no ratio"


def test_the_model_card_has_the_fields_of_hugging_face_and_of_claim(audits: Path) -> None:
    text = (audits / "good" / "model_card.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    document = read_schema(AuditDocument, audits / "good" / "audit.json")
    (results,) = front["model-index"][0]["results"]
    assert results["metrics"][0]["value"] == document.clean.accuracy.value
    assert results["dataset"]["revision"] == document.data.fingerprint
    headings = ("Model details", "Uses", "Training details", "Evaluation", "Bias, risks and limitations")
    items = ("intended use", "ground truth", "limitations", "statistics", "Research", "Training data: greys")
    for words in (*(f"## {heading}" for heading in headings), *items):
        assert words in text
    assert "&#" not in text


def test_a_part_of_an_examination_takes_the_place_of_no_whole_one(audits: Path, greys: Path) -> None:  # noqa: F811
    path = audits / "good" / "audit.json"
    before, content = path.read_bytes(), atomic.read_json(path)
    model = Path(content["model"]["path"]).with_name("model.yaml")
    said = complaint("audit", model, "--data", greys, "--out", audits / "good", "--attack", "fgsm")
    assert "holds a whole examination by exam-1, which one with --attack or --epsilon would replace" in said
    assert path.read_bytes() == before


def test_the_leaderboard_has_reported_beside_measured(audits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    content = atomic.read_json(audits / "bad" / "audit.json")
    model = content["model"] | {"name": "Bad", "reported": {"training_data": "NIH"}}
    changed = content | {"model": model, "verdict": {"sound": False, "reasons": ["its attack failed"]}}
    atomic.write_json(audits / "bad" / "audit.json", changed)
    sound = atomic.read_json(audits / "good" / "audit.json") | {"verdict": {"sound": True}}
    atomic.write_json(audits / "good" / "audit.json", sound)
    (audits / "broken").mkdir()
    (audits / "broken" / "audit.json").write_text("{")
    said = run("leaderboard", audits).stdout
    assert "2 audits by exam-1" in said
    assert " images)" in said
    assert re.search(r"model .* clean, % .* clean reported, %", said)
    assert re.search(r"good .* 99\.0 .* 90\.0", said)
    document = read_schema(AuditDocument, audits / "good" / "audit.json")
    clean, interval = document.clean.accuracy.value, list(document.clean.accuracy.interval or ())
    rows = list(csv.DictReader((audits / "leaderboard.csv").open()))
    assert [(row["model"], row["training data"]) for row in rows] == [("good", "greys"), ("Bad", "NIH")]
    assert [float(rows[0][f"clean{end}"]) for end in ("", " low", " high")] == [clean, *interval]
    counted = (str(document.clean.n), document.data.name, document.split, "exam-1")
    assert tuple(rows[0][name] for name in ("n", "data", "split", "protocol")) == counted
    assert (rows[0]["clean reported"], rows[0]["threat model"]) == ("0.99", "L-infinity 0.02")
    page = (audits / "leaderboard.html").read_text()
    body = page.split("</script>")[1]
    for word in ("good", "greys", "Bad", "NIH", "Reported", "99.0"):
        assert word in body
    assert "src=" not in page
    assert "aria-sort" in page
    found = json.loads(run("leaderboard", audits, "--json").stdout)
    assert (found["protocol"], found["data"], found["n"]) == ("exam-1", "images", 36)
    assert [row["folder"] for row in found["refused"]] == ["broken"]
    good, bad = found["rows"]
    assert (good["model"], good["clean"], good["clean_ci"]) == ("good", clean, interval)
    assert (good["clean reported"], good["attacked reported"], good["training data"]) == (0.99, 0.9, "greys")
    assert (good["sound"], good["reasons"]) == (True, [])
    assert (bad["model"], bad["training data"], bad["clean reported"]) == ("Bad", "NIH", None)
    assert (bad["sound"], bad["reasons"]) == (False, ["its attack failed"])
    assert [float(row["attacked"]) for row in rows] == [row["attacked"] for row in (good, bad)]


def test_what_is_not_sound_stands_last(audits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = tmp_path / "board"
    content = atomic.read_json(audits / "good" / "audit.json") | {"verdict": {"sound": True}}
    attacks = [{**attack, "accuracy": {"value": 0.0}} for attack in content["attacks"]]
    unsound = {"sound": False, "reasons": ["it never moves?"]}
    changes = {"too good": {"verdict": unsound}, "broken": {"attacks": attacks}}
    for name, change in (changes | {"not attacked": {"attacks": []}, "good": {}}).items():
        model = content["model"] | {"name": name}
        atomic.write_json(board / name / "audit.json", content | change | {"model": model})
    monkeypatch.setenv("COLUMNS", "80")
    said = run("leaderboard", board).stdout
    assert re.search(r"too good\W+NOT SOUND", said)
    rows = [row["model"] for row in csv.DictReader((board / "leaderboard.csv").open())]
    assert rows == ["good", "broken", "not attacked", "too good"]
    body = (board / "leaderboard.html").read_text().split("</script>")[1]
    assert body.count('class="unsound"') == 1
    assert body.index("not attacked") < body.index("it never moves?")


def handed(folder: Path, name: str, left: float, *more: Any, radii: tuple[float, ...] = (0.02,)) -> None:
    """An audit of 40 images whose worst case leaves so much, of it counting images: by whom, epsilon, found alone."""
    attacks = [{"attack": "worst-case", "epsilon": r, "accuracy": {"value": left}, "n": 40, "steps": 20} for r in radii]
    attacks += [{"attack": "pgd", "epsilon": 0.02, "steps": 20, "accuracy": {"value": 0.8}, "n": 40}]
    given = [{"by": by, "epsilon": e, "n": 30, "found_alone": n, "missed": 0} for by, e, n in more]
    audit(folder / name, attacks=attacks, submitted=given)


def test_audits_of_unequal_effort_do_not_share_a_leaderboard(tmp_path: Path) -> None:
    for name, queries in (("one", 50), ("two", 50), ("more", 300)):
        worst = {"attack": "worst-case", "epsilon": 0.02, "accuracy": {"value": 0.6}, "steps": 20, "queries": queries}
        audit(tmp_path / name, attacks=[worst])
    board = leaderboard.gather_audits(tmp_path)
    why = "attacked by worst-case-20/300, the others by worst-case-20/50: audit it again"
    assert board.refused == (("more", why),)
    assert "attacked by worst-case-20/50, %" in leaderboard.make_table(board).header
    rows = leaderboard.to_json(board)["rows"]
    assert {row["model"] for row in rows} == {"one", "two"}  # type: ignore[attr-defined]
    for row in rows:  # type: ignore[attr-defined]
        assert (row["by"], row["steps"], row["queries"]) == ("worst-case-20/50, epsilon 0.02", 20, 50)


def test_the_leaderboard_ranks_by_our_own_attacks_and_says_who_was_attacked_with_more(tmp_path: Path) -> None:
    handed(tmp_path, "attacked", 0.4, ("Ada", 0.01, 10))  # by ours alone 0.65
    handed(tmp_path, "plain", 0.6)
    handed(tmp_path, "untouched", 0.5, ("Ada", 0.02, 0))
    handed(tmp_path, "finding", 0.45, ("Ada (Edema)", 0.02, 1), ("Ada (Mass)", 0.02, 2))  # 0.525
    handed(tmp_path, "unknown", 0.55, ("Bo", 0.01, 8), radii=(0.01, 0.02))  # counted at 0.01 alone
    said = " ".join(run("leaderboard", tmp_path).stdout.split())
    rows = {row["model"]: row for row in csv.DictReader((tmp_path / "leaderboard.csv").open())}
    assert list(rows) == ["attacked", "plain", "unknown", "finding", "untouched"]
    words = {
        "attacked": "images submitted by Ada (10 images) mislead it but our attacks do not; its rank is by our attacks "
        "alone, which leave 65.0%",
        "finding": "images submitted by Ada (Edema) (1 image) and Ada (Mass) (2 images) mislead it but our attacks do "
        "not; its rank is by our attacks alone, which leave 52.5%",
        "unknown": "images submitted by Bo (8 images) mislead it but our attacks do not; its rank includes them, since "
        "accuracy under our attacks alone is unknown",
    }
    page = (tmp_path / "leaderboard.html").read_text().split("</script>")[1]
    for name, text in words.items():
        assert rows[name]["attacked_with_more"] == text
        assert f"{name}: {text}" in said
        assert text in page
    assert "Submitted images also count under “attacked” for attacked, unknown, finding." in page
    assert [rows[name]["attacked"] for name in rows] == ["0.4", "0.6", "0.55", "0.45", "0.5"]
    for name in ("plain", "untouched"):
        assert rows[name]["attacked_with_more"] == ""
    found = {row["model"]: row for row in json.loads(run("leaderboard", tmp_path, "--json").stdout)["rows"]}
    assert [found[name]["attacked_by_ours"] for name in rows] == [0.65, 0.6, None, 0.525, 0.5]
    assert found["attacked"]["attacked_with_more"].endswith(words["attacked"])
    assert found["plain"]["attacked_with_more"] == ""


def test_without_images_handed_in_the_leaderboard_says_nothing_of_them(tmp_path: Path) -> None:
    handed(tmp_path, "plain", 0.6)
    handed(tmp_path, "withdrawn", 0.9, ("Ada", 0.02, 4))
    path = tmp_path / "withdrawn" / "audit.json"
    content = atomic.read_json(path)
    content["attacks"][0]["accuracy"] = {"value": None}  # the board has no figure under another attack instead
    atomic.write_json(path, content)
    board = leaderboard.gather_audits(tmp_path)
    page, _ = leaderboard.write(board, tmp_path)
    assert "ubmitted" not in page.read_text().split("</script>")[1]
    assert leaderboard.list_remarks(board) == []
    assert on_board(tmp_path) == ["plain", "withdrawn"]
    row = leaderboard.make_row(leaderboard.Row("withdrawn", read_schema(AuditDocument, path)))
    assert row["attacked, %"].value is None


def test_only_audits_of_one_protocol_and_data_compare(audits: Path, tmp_path: Path) -> None:
    content = atomic.read_json(audits / "good" / "audit.json")
    changes = {"own": {"protocol": None}, "older": {"protocol": "exam-0"}, "classes": {"classes": ["a", "b", "c"]}}
    changes["elsewhere"] = {"data": content["data"] | {"fingerprint": "0", "files": "0"}}
    for name, change in changes.items():
        atomic.write_json(audits / name / "audit.json", content | change)
    found = leaderboard.gather_audits(audits)
    assert {name for name, *_ in found.entries} == {"good", "bad"}
    why = dict(found.refused)
    assert set(why) == set(changes)
    words = {"older": "audited by exam-0", "elsewhere": "not the same images", "own": "other options"}
    for name, text in words.items():
        assert text in why[name]
    said = run("leaderboard", audits, "--out", tmp_path / "page").stdout
    assert "not compared: older" in said
    assert "not compared" in (tmp_path / "page" / "leaderboard.html").read_text().lower()
    assert "no audit.json" in complaint("leaderboard", tmp_path / "page")


def test_audits_behind_links_are_found_each_once_and_circles_end(tmp_path: Path) -> None:
    audit(tmp_path / "elsewhere" / "fair")
    audit(tmp_path / "elsewhere" / "deep" / "down")
    audit(tmp_path / "audits" / "own")
    links = {"a link": "../elsewhere/fair", "another link": "../elsewhere/fair", "deep": "../elsewhere/deep"}
    for name, target in (links | {"a circle": ".", "before": "own", "nowhere": "../gone"}).items():
        (tmp_path / "audits" / name).symlink_to(target)
    assert sorted(on_board(tmp_path / "audits")) == ["a link", "deep/down", "own"]
    (tmp_path / "board").symlink_to("audits")
    assert sorted(on_board(tmp_path / "board")) == ["a link", "deep/down", "own"]


def test_folders_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit(tmp_path / "open")
    audit(tmp_path / "shut" / "inside")
    real = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert on_board(tmp_path) == ["open"]
    assert leaderboard.gather_audits(tmp_path).refused == (("shut", "this folder cannot be read: permission denied"),)


def test_unknown_images_are_nobodys(tmp_path: Path) -> None:
    for name in ("one", "two"):
        audit(tmp_path / name, data=None)
    assert "unknown images" in complaint("leaderboard", tmp_path)
    audit(tmp_path / "known")
    assert on_board(tmp_path) == ["known"]
    why = "unknown images: no checksum of them in its audit.json"
    assert dict(leaderboard.gather_audits(tmp_path).refused) == dict.fromkeys(("one", "two"), why)


def test_a_place_that_is_no_folder_or_cannot_be_written_to_is_called_what_it_is(tmp_path: Path) -> None:
    path, file = audit(tmp_path / "audits" / "one") / "audit.json", tmp_path / "file"
    advice = "Give the folder that contains the folders of audits."
    assert f"{tmp_path / 'nowhere'}: no such folder. {advice}" in complaint("leaderboard", tmp_path / "nowhere")
    assert f"{path}: this is a file. {advice}" in complaint("leaderboard", path)
    file.write_text("mine")
    said = complaint("leaderboard", tmp_path / "audits", "--out", file)
    assert f"{file}/leaderboard.html: cannot be written: a file is where a folder should be" in said
    assert file.read_text() == "mine"


CLEAN = {"accuracy": {"value": 0.9, "ci": [0.8, 1.0]}, "n": 40}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": []}, "no classes in it"),
        ({"clean": {}}, "no clean accuracy in it"),
        ({"clean": CLEAN | {"accuracy": {"value": 0.9, "ci": [0.8, 95]}}}, "a clean accuracy of 95, which is no share"),
        ({"clean": CLEAN | {"accuracy": {"value": float("nan")}}}, "no clean accuracy in it"),
        ({"attacks": [{"attack": "pgd", "accuracy": {"value": 2}}]}, "a pgd accuracy of 2, which is no share"),
        ({"attacks": [{"attack": "pgd", "epsilon": "x"}]}, "attacks.0.epsilon: Input should be a valid number"),
    ],
)
def test_damaged_audits_are_named_with_the_reason(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    audit(tmp_path / "whole")
    path = audit(tmp_path / "damaged", **changes) / "audit.json"
    if changes.get("clean"):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))  # NaN as it is
    assert on_board(tmp_path) == ["whole"]
    ((name, why),) = leaderboard.gather_audits(tmp_path).refused
    assert name == "damaged"
    assert why.startswith(f"{path}: damaged: {words}")
    assert why.endswith(("; audit the model again, into a new folder", atomic.REMAKE))
    assert f"{path}: damaged: {words}" in complaint("compare", tmp_path / "whole", tmp_path / "damaged")


def test_audits_of_one_name_are_told_apart_in_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, sha256 in (("ada", "1"), ("bo", "2")):
        audit(tmp_path / place / "good", model={"name": "good", "sha256": sha256})
    audit(tmp_path / "other")
    rows = leaderboard.terminal_table(leaderboard.gather_audits(tmp_path)).rows
    assert {row[0].text for row in rows} == {"good (ada/good)", "good (bo/good)", "other"}
    monkeypatch.setenv("COLUMNS", "200")
    said = run("leaderboard", tmp_path).stdout
    assert all(name in said for name in ("good (ada/good)", "good (bo/good)"))
    assert "same figures" not in said + (tmp_path / "leaderboard.html").read_text()


def test_a_copied_audit_is_said_to_be_one(tmp_path: Path) -> None:
    for name, more in {"one": {}, "two": {}, "worse": {"clean": CLEAN | {"accuracy": {"value": 0.85}}}}.items():
        audit(tmp_path / name, model={"name": name, "sha256": "1"}, **more)
    for name in ("unknown", "nor this"):
        audit(tmp_path / name)
    line = "one and two: the same model with the same figures, so 2 rows are one audit"
    assert leaderboard.list_remarks(leaderboard.gather_audits(tmp_path)) == [line]
    assert line in run("leaderboard", tmp_path).stdout
    assert f"<p>{line}.</p>" in (tmp_path / "leaderboard.html").read_text()
    assert json.loads(run("leaderboard", tmp_path, "--json").stdout)["copies"] == [["one", "two"]]


@pytest.mark.slow
def test_its_pages_can_be_used_by_everybody(audits: Path) -> None:
    run("leaderboard", audits)
    with chromium() as browser:
        for page in (audits / "good" / "report.html", audits / "leaderboard.html"):
            for size, dark in (("desktop", False), ("tablet", False), ("phone", True)):
                with opened(browser, page, size=size, dark=dark) as seen:
                    assert seen.complaints == []
                    assert seen.elsewhere(page.as_uri()) == []
                    assert sideways(seen.page) == 0
                    assert violations(seen.page) == []
                    if page.name == "leaderboard.html":
                        region = "e => e.scrollWidth - e.clientWidth"
                        assert seen.page.locator('[aria-label="Leaderboard"]').evaluate(region) == 0 or size == "tablet"
                        head = seen.page.locator("thead th").nth(4)
                        head.locator("button").dispatch_event("click")
                        assert head.get_attribute("aria-sort") == "descending"
