"""Every claim of the README and of results/ has its row: read again, the row bears what is claimed."""

import re
from pathlib import Path

import pandas as pd
import pytest
from benchmarks.findings import between, ceiling, claims, elsewhere, folds, lesions, liars, notes, withdrawn

from trustcxr.report import markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
REGISTER = claims.register()


def plain(path: str) -> str:
    return " ".join((ROOT / path).read_text(encoding="utf-8").split())


@pytest.mark.parametrize("claim", REGISTER, ids=lambda claim: claim["claim"][:40])
def test_a_claim_has_its_row_and_stands_where_it_is_said_to(claim: dict) -> None:
    assert [said for said, true in claims.holds(claim) if not true] == []
    assert claim["verdict"] in claims.VERDICTS
    if claim.get("quote", True):
        stands = [claim["claim"] in plain(where) for where in claim["in"]]
        assert stands == [claim["verdict"] != "withdrawn"] * len(stands)
    if claim["verdict"] != "withdrawn":
        assert claim.get("rows") or claim.get("found"), "no row, and nothing said"


def test_the_page_is_what_the_rows_say() -> None:
    written = list(claims.rows_of((RESULTS / "claims.md").read_text(encoding="utf-8")))
    assert [list(row.values()) for row in written] == [
        [" ".join(cell.split()).replace("|", "\\|") for cell in claims.line(claim)] for claim in REGISTER
    ]


def test_a_row_that_is_gone_is_an_error() -> None:
    with pytest.raises(LookupError, match="0 rows of quick"):
        claims.figure({"file": "quick-covidqu-mini.csv", "where": {"run": "another"}})
    with pytest.raises(LookupError, match="0 cells"):
        claims.figure({"file": "certified-covidqu-midi.md", "where": {"change": "none"}, "column": "accuracy"})


def test_a_withdrawn_row_bears_no_claim() -> None:
    where = {"run": "resnet18-standard-s0", "condition": "gradcam", "measure": "pointing_hit_rate"}
    claim = {"rows": [{"file": "localisation-covidqu-mini.csv", "where": where}]}
    [(said, true)] = claims.holds(claim | {"verdict": "holds"})
    assert "is withdrawn: the map has 2 x 2 cells" in said
    assert not true
    assert all(true for _, true in claims.holds(claim | {"verdict": "withdrawn"}))
    cell = {"file": "localisation-covidqu-mini.md", "where": {"run": where["run"]}, "under": "gradcam"}
    found = list(claims.holds({"rows": [cell | {"column": "hit rate"}], "verdict": "holds"}))
    assert [true for _, true in found] == [False]


def test_what_earlier_statistics_stated_is_taken_out_of_every_page() -> None:
    for path, text in withdrawn.texts().items():
        assert path.read_bytes().decode() == text, f"python -m benchmarks.findings.withdrawn writes {path.name}"
    for stem in withdrawn.PAGES:
        text = (RESULTS / f"{stem}.md").read_text(encoding="utf-8")
        assert "| masked |" not in text
        assert not re.search(r"^- .*pointing hit rate \((gradcam|hirescam|layercam)\)", text, re.MULTILINE)
        for method in withdrawn.COARSE:
            cells = [row["hit rate"] for row in claims.rows_of(text, method) if not row["run"].startswith("*")]
            assert set(cells) <= {withdrawn.CELL}
        for gated in re.findall(r"^### \S+: gate\S* background, .*?(?=^### |\Z)", text, re.MULTILINE | re.DOTALL):
            assert "accuracy" in gated
            assert not re.search(r"@gate\)|\(integrated-gradients\)", gated)


OLD = """Mean: over all. `masked`: the verdict on the gradients, whose reason stands in each run's metrics.json.

| run | clean | masked | worst-case |
| --- | --- | --- | --- |
| a | 80.0 | yes | 1.0 |

### gradcam

| run | hit rate | IoU |
| --- | --- | --- |
| a | 0.038 | 0.1 |
| *chance* | 0.121 | 0.1 |

### layercam@-2

| run | hit rate |
| --- | --- |
| a | 0.2 |

### a: full background, fgsm, against standard

- Yes: clean accuracy rises by 0.1.
- Not settled: pointing hit rate (gradcam) changes by 0.0.
- No: infection energy (layercam@gate) falls by 0.1.

### a: gate-emptied background, fgsm, against standard

- Yes: infection energy (layercam@gate) rises by 0.1.
- Yes: infection energy (integrated-gradients) rises by 0.1.
- Yes: infection energy (gradcam) rises by 0.1."""


def test_a_page_of_earlier_statistics_loses_what_is_withdrawn_and_nothing_else() -> None:
    text = "\n".join(withdrawn.lines(OLD))
    assert "masked" not in text
    assert "| a | 80.0 | 1.0 |" in text
    assert "| a | withdrawn | 0.1 |" in text
    assert "| *chance* | 0.121 | 0.1 |" in text
    assert "| a | 0.2 |" in text
    said = [line for line in text.split("\n") if line.startswith("- ")]
    assert said == [
        "- Yes: clean accuracy rises by 0.1.",
        "- No: infection energy (layercam@gate) falls by 0.1.",
        "- Yes: infection energy (gradcam) rises by 0.1.",
    ]
    assert "\n".join(withdrawn.lines(text)) == text


def test_withdrawing_takes_a_verdict_and_leaves_the_figure() -> None:
    table = pd.read_csv(RESULTS / "localisation-covidqu-mini-comparisons.csv", keep_default_na=False)
    gone = table[table["withdrawn"] != ""]
    assert set(gone["verdict"]) == {"Withdrawn"}
    assert pd.to_numeric(gone["difference"]).notna().all()
    gated = gone[(gone["background"] == "gate") & ~gone["method"].isin(withdrawn.COARSE)]
    assert set(gated["method"]) == {"layercam@gate", "integrated-gradients"}
    assert set(gone.loc[gone["background"] == "full", "measure"]) == {"pointing_hit_rate"}
    assert "Withdrawn" not in set(table.loc[table["withdrawn"] == "", "verdict"])


def test_every_page_of_results_is_among_the_claims_or_only_lists() -> None:
    named = {row["file"] for claim in REGISTER for row in claim.get("rows", ())}
    named |= {Path(where).name for claim in REGISTER for where in claim["in"]}
    lists = {"claims.md", "trials-certified-covidqu-midi.md", "lungs-covidqu-mini-comparisons.csv"}
    lists |= {"lungs-without-refit-covidqu-mini-comparisons.csv"}
    lists |= {"lesions-val-covidqu-midi.md", "lesions-val-later-covidqu-midi.md"}  # of validation, without a sentence
    lists |= {"lesions-val-smaller-covidqu-midi.md"}  # likewise
    lists |= {"between-val-covidqu-midi.csv", "between-val-covidqu-midi.md"}  # a test below holds them together
    lists |= {"lesions-covidqu-midi.csv", "lesions-covidqu-midi.md"}  # a test below holds them together
    lists |= {"folds-covidqu-midi.md"}  # a test below holds it and its table together
    lists |= {"trials-ceiling-covidqu-midi.md"}  # of validation, without a sentence
    lists |= {"ceiling-covidqu-midi.csv", "ceiling-covidqu-midi.md"}  # a test below holds them together
    lists |= {"leaderboard-covidqu-mini.csv", "leaderboard-covidqu-mini.md"}  # rows of audits, without a sentence
    lists |= {"audit-formats-covidqu-mini.md"}  # of validation, without a sentence
    lists |= {"liars-covidqu-mini.csv", "liars-covidqu-mini.md"}  # of validation; the next test holds them together
    lists |= {"twenty-one-covidqu-midi.md"}  # test_twenty_one.py holds it and its table together
    lists |= {"out-of-distribution-covidqu-mini.csv"}  # the rows of the page beside it, which a test compares
    assert {path.name for path in RESULTS.glob("*covidqu*")} - named - lists == set()


def test_the_page_of_lesions_says_of_its_goals_what_its_table_says() -> None:
    table = pd.read_csv(RESULTS / "lesions-covidqu-midi.csv")
    page = (RESULTS / "lesions-covidqu-midi.md").read_text(encoding="utf-8")
    assert all(markdown.row(cells) in page for cells in lesions.means_rows(table))
    assert lesions.nearest(table) in page
    flattered = table.assign(worst_case=table["worst_case"] + 0.1)
    assert lesions.nearest(flattered) not in page


def test_the_page_of_other_hospitals_says_what_its_table_says() -> None:
    table = pd.read_csv(RESULTS / "elsewhere-external-cxr.csv")
    page = (RESULTS / "elsewhere-external-cxr.md").read_text(encoding="utf-8")

    def body(table: pd.DataFrame) -> list[str]:
        """The page from its goal on, without what it was trained by; before that stands the count of openings."""
        whole = elsewhere.page(table, "covidqu-midi", "external-cxr", "711 Test images of covidqu-midi", [])
        assert whole[2] in page
        return whole[4:]

    assert "\n".join(body(table)) in page
    assert "\n".join(body(table.assign(fall=table["fall"] - 0.05))) not in page


def test_the_page_of_the_ceiling_says_what_its_table_says() -> None:
    table = pd.read_csv(RESULTS / "ceiling-covidqu-midi.csv")
    page = (RESULTS / "ceiling-covidqu-midi.md").read_text(encoding="utf-8")

    def body(table: pd.DataFrame) -> str:
        """From the table on; before it stands the count of openings."""
        return "\n".join(ceiling.page(table, "covidqu-midi", "Test", [])[4:])

    assert body(table) in page
    assert body(table.assign(worst_case=table["worst_case"] + 0.01)) not in page
    means = table[table["seed"] == "mean"]
    assert means["seeds"].max() >= 3
    assert (means["n"] == 711).all()


def test_the_page_between_proof_and_attack_says_what_its_table_says() -> None:
    table = pd.read_csv(RESULTS / "between-val-covidqu-midi.csv")
    page = (RESULTS / "between-val-covidqu-midi.md").read_text(encoding="utf-8")
    assert "\n".join(between.page(table, "covidqu-midi", [])) in page
    assert "\n".join(between.page(table.assign(share=table["share"] + 0.01), "covidqu-midi", [])) not in page
    assert (table["proved_and_broken"] == 0).all(), "no attack took what is proved"


def test_the_page_of_folds_says_what_its_table_says_and_what_test_gave() -> None:
    table = pd.read_csv(RESULTS / "folds-covidqu-midi.csv")
    page = (RESULTS / "folds-covidqu-midi.md").read_text(encoding="utf-8")

    def body(table: pd.DataFrame) -> str:
        return "\n".join(folds.page(table, "covidqu-midi", {}, folds.on_test("covidqu-midi")))

    assert body(table) in page
    assert body(table.assign(worst_case=table["worst_case"] + 0.01)) not in page
    assert (table["n"] == 4503).all()


def test_the_page_of_liars_says_what_its_table_says() -> None:
    table = pd.read_csv(RESULTS / "liars-covidqu-mini.csv")
    page = (RESULTS / "liars-covidqu-mini.md").read_text(encoding="utf-8")
    assert page == "\n".join(liars.page(table, "covidqu-mini", "resnet18 at 96 pixels")) + "\n"
    films = table["worst_case"] * table["n"]
    assert ((films - films.round()).abs() < 1e-4).all(), "not rounded before the page rounds"
    flattered = table.assign(worst_case=table["worst_case"] - 0.05)
    assert "\n".join(liars.page(flattered, "covidqu-mini", "resnet18 at 96 pixels")) + "\n" != page


def test_a_liar_that_answers_by_chance_stands_beside_its_twin_and_further_out() -> None:
    row = {"clean": 0.7, "plain_pgd": 0.3, "n": 120, "flagged": "", "withdrawn": "", "twin": None}
    row |= {f"{key}_{end}": 0.5 for key in ("clean", "worst_case") for end in ("low", "high")}
    left = [(0.02, "bare", 0.0, None), (0.02, "noise", 0.12, 0.10), (0.02, "jpeg", 0.03, None)]
    left += [(0.04, "bare", 0.01, None), (0.04, "noise", 0.05, None)]
    keys = ("epsilon", "network", "worst_case", "twin")
    table = pd.DataFrame([row | dict(zip(keys, values, strict=True)) for values in left])
    text = "\n".join(liars.page(table, "films", "a network"))
    assert "Of 2 liars 0 are flagged, and 1 are left with at most 3 points more" in text
    assert "in points: noise +2.0." in text
    assert "At 0.04, 0 of the 1 that answer by chance" in text
    near = "\n".join(liars.page(table[table["epsilon"] == 0.02], "films", "a network"))
    assert "0.04" not in near


def test_the_page_of_unlike_films_says_what_its_table_says() -> None:
    stem = "out-of-distribution-covidqu-mini"
    pages = {row["pictures"]: row for row in claims.rows_of((RESULTS / f"{stem}.md").read_text(encoding="utf-8"))}
    table = pd.read_csv(RESULTS / f"{stem}.csv")
    assert len(table) == sum(len(row) - 2 for row in pages.values())
    for row in table.itertuples():
        low, high, value = (f"{100 * figure:.1f}" for figure in (row.low, row.high, row.refused))
        assert pages[row.kind][row.method] == f"{value} [{low}, {high}]"
        assert pages[row.kind]["n"] == str(row.n)


def test_how_often_test_was_opened_stands_wherever_it_was_opened() -> None:
    for path, text in notes.texts().items():
        assert path.read_text(encoding="utf-8") == text, f"python -m benchmarks.findings.notes writes {path.name}"
    found = pd.read_csv(RESULTS / "test-openings.csv")
    times = notes.WORDS[notes.count(found)]
    tested = [path for path in RESULTS.glob("*covidqu*.md") if re.search(r"\d Test images", path.read_text("utf-8"))]
    assert {path.name for path in tested} <= set(found["pages"])
    assert all(f"were opened {times} times" in path.read_text("utf-8") for path in [*tested, ROOT / "README.md"])


def test_the_rows_of_the_readme_are_those_of_the_table() -> None:
    cells = {(row["model"], row["training"]): row for row in claims.rows_of((ROOT / "README.md").read_text("utf-8"))
             if "training" in row}  # fmt: skip
    assert len(cells) == 6
    for claim in REGISTER[:6]:
        clean, fgsm, pgd, energy = (claims.figure(row).text for row in claim["rows"])
        found = re.fullmatch(r"table of quick: (.+)-(standard|fgsm)-s0", claim["claim"])
        assert found is not None
        model, training = found.groups()
        row = list(cells[model, training].values())[2:]
        assert [cell.replace(" %", "") for cell in row[:3]] == [text.replace(" %", "") for text in (clean, fgsm, pgd)]
        assert row[3].startswith(energy)


def test_what_is_withdrawn_of_lesions_stands_on_no_page() -> None:
    """That of Test and that of causes alone and together were measured anew; of the others the networks are gone."""
    text = (RESULTS / "lesions-val-covidqu-midi.md").read_text(encoding="utf-8")
    assert text.count(withdrawn.OF_LESIONS) == 1
    for name in (f"lesions-val{which}-covidqu-midi.md" for which in ("", "-later")):
        page = (RESULTS / name).read_text(encoding="utf-8")
        assert page.count(withdrawn.OF_CAUSES) == 1
        assert list(withdrawn.lines_of_lesions(page, withdrawn.OF_CAUSES)) == page.split("\n")
        assert page.count("| withdrawn |") >= 2
    assert list(withdrawn.lines_of_lesions(text)) == text.split("\n")
    anew = RESULTS / "lesions-val-alone-together-covidqu-midi.md"
    table, page = (RESULTS / f"lesions-covidqu-midi{end}" for end in (".csv", ".md"))
    assert not [path for path in (anew, page) if "withdrawn |" in path.read_text(encoding="utf-8")]
    found = pd.read_csv(table)
    assert (
        found[found["run"] != "segmenter"][["infection_given_lung_less_control", "lesion_effect_inpaint"]]
        .notna()
        .all(None)
    )
    assert not [name for name in found if "withdrawn" in name]


@pytest.mark.parametrize("page", sorted(RESULTS.glob("*.md")), ids=lambda page: page.name)
def test_the_command_of_a_page_has_only_options_that_its_module_takes(page: Path) -> None:
    for module, typed in re.findall(r"`python -m (benchmarks\.[\w.]+)([^`]*)`", page.read_text(encoding="utf-8")):
        place = RESULTS.parent / Path(*module.split(".")).with_suffix(".py")
        taken = set(re.findall(r"\"(--[\w-]+)\"", place.read_text(encoding="utf-8")))
        assert set(re.findall(r"--[\w-]+", typed)) <= taken, f"{page.name}: {module}"
