"""What stands beside the tables of results/: how often Test was opened, and what of a page an earlier version reckoned.

    python -m benchmarks.findings.notes

Reads results/test-openings.csv, a row each time that networks were tested, and writes the count into every page that
it names, into the README, into statistics-before-after.md and into the last column of some tables; no figure is
touched. Run again, it changes nothing.
"""

import csv
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pandas as pd

from benchmarks.findings import withdrawn
from trustcxr.report import markdown

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
FIRST, HOLDS_FIRST, IMAGES = "covidqu-mini", "covidqu-midi", 570  # the larger data hold the smaller one's Test images
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
         "twenty-one", "twenty-two", "twenty-three", "twenty-four", "twenty-five")  # fmt: skip
NOTICE = "not for diagnosis."
TIMES = "test_openings"
COUNTED = [f"{name}.csv" for name in ("lesions-covidqu-midi", "certified-covidqu-midi", "ceiling-covidqu-midi")]
COUNTED += ["elsewhere-external-cxr.csv"]
PART = re.compile(r"<!-- openings -->.*?<!-- /openings -->", re.DOTALL)
# What the versions that wrote these pages reckoned otherwise, by what stands in a page or in a file beside it. What of
# it is no longer stated is taken out by benchmarks.findings.withdrawn.
MENDED = {
    "": "The verdict on masked gradients of the earlier judge, which accused undefended networks in mid-fall and "
    "excused FGSM that overstates, is withdrawn, either way, and its column taken out.",
    "corrected p =": "p-values are of McNemar's and Wilcoxon's tests over images; today's go by patient or group.",
    ",gradcam,": "The hit rates of `gradcam`, `gradcam++`, `hirescam` and `layercam` at the last layer are withdrawn: "
    "at 64 pixels these maps have 2 x 2 cells, of which the best would hit less than chance. No map was held against "
    "the same network with random weights.",
    ",gate": "Comparisons of gated with ungated networks by a map at `@gate`, and by maps of the pixels, say "
    "nothing of the networks (what the gate hides has no gradient) and are withdrawn.",
    "lungs_blacked_out": "The lungs were hidden in black alone; other fills can leave more.",
    "| drop from internal |": "160 of the 325 external films are of collections that COVID-QU-Ex drew from too "
    "(strict_external 0) and are not apart here; a constant answer has 38.5 % on the 325, 33.3 % on Test.",
}  # fmt: skip


def main() -> None:
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


def texts() -> dict[Path, str]:
    """Every file with the count in it, as it must stand: its path and its text."""
    found = openings()
    written = {RESULTS / page: _page(page, found) for page in found["pages"].unique() if page.endswith(".md")}
    readme, before_after = ROOT / "README.md", RESULTS / "statistics-before-after.md"
    written[readme] = PART.sub(lambda _: _marked(f"{said(found)}", " "), readme.read_text(encoding="utf-8"))
    written[before_after] = _with_rows(before_after.read_text(encoding="utf-8"), list(rows(found)))
    written |= {RESULTS / page: counted((RESULTS / page).read_text(encoding="utf-8"), page, found) for page in COUNTED}
    return written


def counted(text: str, page: str, found: pd.DataFrame) -> str:
    """A table with how often Test was opened for it as its last column, every other cell as it is."""
    times = int((found["pages"] == page.replace(".csv", ".md")).sum())
    rows = list(csv.DictReader(text.splitlines()))
    head = [name for name in rows[0] if name != TIMES]
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*head, TIMES])
    writer.writerows([*(row[name] for name in head), times] for row in rows)
    return out.getvalue()


def openings() -> pd.DataFrame:
    """A row each time that networks were tested on Test images."""
    return pd.read_csv(RESULTS / "test-openings.csv", keep_default_na=False)


def count(found: pd.DataFrame) -> int:
    """How often the Test images of covidqu-mini were opened, those inside covidqu-midi too."""
    return int(found["images"].isin([FIRST, HOLDS_FIRST]).sum())


def said(found: pd.DataFrame) -> str:
    """The count as a sentence."""
    own, all_ = int((found["images"] == FIRST).sum()), count(found)
    within = f"{WORDS[all_ - own]} {'time' if all_ - own == 1 else 'times'}"
    return (
        f"**The {IMAGES} Test images of {FIRST} were opened {WORDS[all_]} times for these pages**: "
        f"{WORDS[own]} times as its own Test, and {within} among the 711 of {HOLDS_FIRST}, which "
        "hold them all (`results/test-openings.csv`)"
    )


def _page(name: str, found: pd.DataFrame) -> str:
    text = (RESULTS / name).read_text(encoding="utf-8")
    told = note(name, found, text)
    if PART.search(text):
        return PART.sub(lambda _: told, text)
    at = text.index("\n", text.index(NOTICE)) if NOTICE in text else text.index("\n")
    return f"{text[:at]}\n\n{told}{text[at:]}"


def note(name: str, found: pd.DataFrame, text: str = "") -> str:
    """What stands on a page, of that name and text, of how often Test was opened and for what."""
    mine = found[found["pages"] == name]
    if mine["images"].iloc[0] in (FIRST, HOLDS_FIRST):
        which = " and ".join(str(number) for number in mine["number"])
        lines = [f"{said(found)}; this page is of opening {which}."]
    else:
        lines = [f"The Test images of {mine['images'].iloc[0]} were opened {WORDS[len(mine)]} time for this page."]
    one = len(mine) == 1
    lines += [
        f"Of {'this opening' if one else f'opening {number}'}: {again}."
        for number, again in zip(mine["number"], mine["again"], strict=True)
        if again
    ]
    if (stem := name.removesuffix(".md")) in withdrawn.PAGES:
        beside = [text, *(path.read_text(encoding="utf-8") for path in RESULTS.glob(f"{stem}*.csv"))]
        older = [told for sign, told in MENDED.items() if any(sign in one for one in beside)]
        lines.append("Written before the statistics were mended (statistics-before-after.md). " + " ".join(older))
    return _marked(" ".join(lines), "\n")


def _marked(text: str, space: str) -> str:
    gap = space if space == "\n" else ""
    return f"<!-- openings -->{gap}{text}{gap}<!-- /openings -->"


def rows(found: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """What of item 7 could be mended and what could not: (what, before, after)."""
    times = f"{count(found)} times, in the README and in each page of it"
    yield f"Test of {FIRST}, n {IMAGES}: how often it was opened", "not said", times
    again = "; ".join(f"{row['number']}: {row['again']}" for _, row in found.iterrows() if row["again"])
    yield "- what happened beside the first look, by opening", "in notes of single pages", again
    yield (
        "- goals that were met after a miss had been seen on Test (hit rate of lungs, clean accuracy of side-by-side)",
        "claimed as met",
        "not claimed: it cannot be mended on these images; it wants images that chose nothing",
    )
    folded = pd.read_csv(RESULTS / f"folds-{HOLDS_FIRST}.csv")
    seeds = int(folded["seeds"].min())
    yield (
        "- new claims: five-fold cross-validation on Train and Val, three seeds, Test once",
        "none of it",
        f"three seeds and Test once for the pages certified-, lesions- and (one row) ceiling-{HOLDS_FIRST}.md, of "
        f"whose 711 films {IMAGES} had been opened before; cross-validation of {WORDS[len(folded)]} networks, "
        f"{WORDS[seeds]} seed{'s' * (seeds > 1)}: folds-{HOLDS_FIRST}.md",
    )


def _with_rows(text: str, new: list[tuple[str, str, str]]) -> str:
    """The table with these rows at its end, in the place of those of the same name."""
    names = {f"| {what} |" for what, _, _ in new}
    kept = [line for line in text.rstrip("\n").split("\n") if not any(line.startswith(name) for name in names)]
    return "\n".join([*kept, *map(markdown.row, new)]) + "\n"


if __name__ == "__main__":
    main()
