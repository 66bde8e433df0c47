"""What the pages of results/ that were written before the statistics were mended no longer state.

    python -m benchmarks.findings.withdrawn

The networks of these pages are not kept, so what was reckoned otherwise then cannot be reckoned anew. What a mended
judge would not state is taken out: of the pages the verdict on masked gradients, hit rates of maps with too few cells
to hit, and comparisons that say nothing of the networks; in the CSV files beside them the figures stay, with the reason
in the column `withdrawn`, and without a verdict. On the page of other hospitals the row of all hospitals is put
together from theirs. Run again, it changes nothing.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.findings import elsewhere
from trustcxr.catalogue.saliency import CONTROLS, Method
from trustcxr.report import markdown

RESULTS = Path(__file__).resolve().parents[2] / "results"
PAGES = (
    "robustness-covidqu-mini",
    "localisation-covidqu-mini",
    "side-by-side-without-refit-covidqu-mini",
    "side-by-side-covidqu-mini",
    "lungs-without-refit-covidqu-mini",
    "lungs-covidqu-mini",
    "ct-ct-mini",
)
COLUMN, CELL = "withdrawn", "withdrawn"
ELSEWHERE = "elsewhere-external-cxr"
OF_HOSPITALS = (
    "All hospitals together, each by its own network: at home and fall were reckoned wrongly before (a network counted "
    "at home for classes of which its hospital sent nothing) and are the mean of the hospitals' rows, by their films. "
    "The networks are not kept, so their ends are put together from those of the hospitals, as if all erred together "
    "at home."
)
FEW_CELLS = "the map has 2 x 2 cells at 64 pixels, of which the best would hit less than chance"
GATE = "gated against ungated by a map of the gate or of the pixels: what the gate hides has no gradient"
COARSE = {"gradcam", "gradcam++", "hirescam", "layercam"}  # at the last layer, which is what a bare name means
OF_LESIONS = (
    "**Withdrawn on this page.** Infection given lung, less control: a share of energy hangs on how sharp a map is, "
    "and no control was as sharp as the map; a power of the film's brightness would be far above the brightness "
    "itself. The effect by inpainting: it drew the bright chest wall into lesions at the edge of the lungs, which "
    "were so not removed. Both are mended in the code; the networks are not kept. Film, lesion gone, control gone and"
    " all gone are means over all films with a mask, the lesion effect over those with a counterpart: it is not their"
    " difference."
)
OF_CAUSES = (
    "**Withdrawn on this page.** The effect by mirrored lung: the other side of a control is often the lesion, and "
    "then took the healthy grey, so that part and control were filled unlike. The effect against background: that took "
    "the grey of lungs, a greater change than the lesion's; a model that reads the texture of lungs alone has it. Both "
    "are mended in the code. Inpainting is near to a fill that training used (`surroundings`), which was not said. "
    "Networks trained on counterfactual films were taught patches of healthy lung with chest wall in them (a sixth of "
    "their pixels), as training is mended since too."
)
_OF_LESIONS = "lesions-val-covidqu-midi.md"
_OF_CAUSES = (_OF_LESIONS, "lesions-val-later-covidqu-midi.md")
_ENDS = ("low", "high")
_MASKED = re.compile(r" `masked`: the verdict on the gradients, whose reason stands in each run's metrics\.json\.")
_EVERY = re.compile(r"^Every row with its figures is in (?P<file>\S+-comparisons\.csv)[.;:].*$", re.MULTILINE)
_LISTED = re.compile(r"^- (?:Yes|No|Neither|Not settled): ", re.MULTILINE)
_BULLET = re.compile(r"^- (?:Yes|No|Neither|Not settled): (?P<measure>[a-z ]+) \((?P<method>\S+)\) ")
_AGAINST = re.compile(r"^### \S+: (?P<background>\S+) background, ")


def main() -> None:
    for path, text in texts().items():
        path.write_bytes(text.encode())
        print(path.relative_to(RESULTS.parent))


def texts() -> dict[Path, str]:
    """Every file with what is withdrawn taken out or marked, as it must stand: its path and its text."""
    written = {}
    for stem in PAGES:
        figures, compared, page = (RESULTS / f"{stem}{end}" for end in (".csv", "-comparisons.csv", ".md"))
        written[figures] = marked(figures.read_bytes().decode())
        if compared.is_file():
            written[compared] = marked(compared.read_bytes().decode())
        written[page] = _counted("\n".join(lines(page.read_text(encoding="utf-8"))), written.get(compared, ""))
    return written | of_other_hospitals() | of_lesions()


def of_lesions() -> dict[Path, str]:
    """The pages of lesions on validation, with what is withdrawn said, and taken out of their tables.

    Those whose networks could be measured anew have all their figures again.
    """
    texts = {name: (RESULTS / name).read_text(encoding="utf-8") for name in _OF_CAUSES}
    texts[_OF_LESIONS] = "\n".join(lines_of_lesions(texts[_OF_LESIONS]))
    texts = {name: "\n".join(lines_of_lesions(text, OF_CAUSES)) for name, text in texts.items()}
    return {RESULTS / name: text for name, text in texts.items()}


def lines_of_lesions(text: str, why: str = OF_LESIONS) -> Iterator[str]:
    """The lines of a page of lesions without what is withdrawn, which is said once, above its tables."""
    gone: list[int] = []
    said = why in text
    for line in text.split("\n"):
        if line.startswith("## ") and not said:
            said = True
            yield from (why, "")
        if not line.startswith("|"):
            gone = []
            yield line
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if why == OF_LESIONS and "map" in cells and "infection given lung" in cells:
            gone = [cells.index("infection given lung") + 1]
        elif "inpaint" in cells:
            gone = [
                cells.index(name) for name in (["inpaint"] if why == OF_LESIONS else ["mirror", "against background"])
            ]
        elif not cells[0].startswith("---"):
            cells = [CELL if place in gone else cell for place, cell in enumerate(cells)]
        yield markdown.row(cells)


def of_other_hospitals() -> dict[Path, str]:
    """The table of other hospitals with its rows of all of them put together anew, and the page's part of that."""
    path, page = (RESULTS / f"{ELSEWHERE}{end}" for end in (".csv", ".md"))
    before = pd.read_csv(path, keep_default_na=False, na_values=[""])
    table = put_together(before)
    text = page.read_text(encoding="utf-8")
    old, new = ("\n".join(elsewhere.page(each, "covidqu-midi", "external-cxr", "", [])[4:]) for each in (before, table))
    if old not in text:
        raise ValueError(f"{page.name} does not say what {path.name} says")
    return {path: table.to_csv(index=False), page: text.replace(old, new)}


def put_together(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the rows of all hospitals, each by the network that was chosen for it, as the mean of theirs."""
    table = table.assign(corrected=table.get("corrected", ""))
    table["corrected"] = table["corrected"].astype(object).fillna("")
    for _, rows in table[table["run"].str.endswith(elsewhere.IN_TURN)].groupby("run"):
        whole, parts = rows[rows["films"] == "all"].iloc[0], rows[rows["films"] != "all"]
        if parts["n"].sum() != whole["n"]:
            raise ValueError(f"{whole['run']}: the hospitals have {parts['n'].sum()} of {whole['n']} films")
        shares = parts["n"] / whole["n"]
        home = float((shares * parts["at_home"]).sum())
        if abs(home - whole["at_home"]) < 1e-9:
            continue
        below, above = (float((shares * (parts[f"at_home_{end}"] - parts["at_home"]).abs()).sum()) for end in _ENDS)
        there = float(whole["elsewhere"])
        lower, upper = (abs(float(whole[f"elsewhere_{end}"]) - there) for end in _ENDS)
        fall = home - there
        mended: dict[str, float | str] = {
            "at_home": home,
            "at_home_low": home - below,
            "at_home_high": home + above,
            "fall": fall,
            "fall_low": fall - float(np.hypot(below, upper)),
            "fall_high": fall + float(np.hypot(above, lower)),
            "corrected": OF_HOSPITALS,
        }
        table.loc[table.index == whole.name, list(mended)] = list(mended.values())
    return table


def reason(measure: str, method: str, background: str = "full") -> str:
    """Why a figure is no longer stated, or nothing: of one run, or of a run of that background against the standard."""
    if method in COARSE and "hit" in measure:
        return FEW_CELLS
    said = Method.parse(method)
    of_pixels = said.control is None  # every map of a layer has a control there, what that layer lets through
    compares = background.startswith("gate") and method and said.base not in CONTROLS
    return GATE if compares and (said.at_gate or of_pixels) else ""


def marked(text: str) -> str:
    """A CSV file of figures or of comparisons with the reason in its last column, and no verdict where there is one.

    As it was where nothing of it is withdrawn.
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    for row in rows:
        row[COLUMN] = reason(row["measure"], row.get("method", row.get("condition", "")), row.get("background", "full"))
        if row[COLUMN] and "verdict" in row:
            row["verdict"] = "Withdrawn"
    if not any(row[COLUMN] for row in rows):
        return text
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\r\n" if "\r\n" in text else "\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def lines(text: str) -> Iterator[str]:
    """The lines of a page without what is withdrawn."""
    method, background, hit, masked = "", "full", None, None
    for line in _MASKED.sub("", text).split("\n"):
        if line.startswith("##"):
            method, found = line.removeprefix("### "), _AGAINST.match(line)
            background = found["background"] if found else "full"
        if not line.startswith("|"):
            hit = masked = None
            bullet = _BULLET.match(line)
            if not (bullet and reason(bullet["measure"], bullet["method"], background)):
                yield line
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if cells[0] == "run":
            hit = cells.index("hit rate") if "hit rate" in cells and method in COARSE else None
            masked = cells.index("masked") if "masked" in cells else None
        elif hit is not None and not cells[0].startswith(("*", "---")):
            cells[hit] = CELL
        yield markdown.row([cell for place, cell in enumerate(cells) if place != masked])


def _counted(page: str, compared: str) -> str:
    """The page with how many rows of its file of comparisons, of this text, it does not list."""
    rows = list(csv.DictReader(io.StringIO(compared)))
    gone = sum(bool(row.get(COLUMN)) for row in rows)
    others = len(rows) - gone - len(_LISTED.findall(page))
    said = (
        rf"Every row with its figures is in \g<file>: of its {len(rows)}, {gone} are withdrawn (its column `{COLUMN}` "
        f"says why) and {others} more, of steadiness and the like, are not listed here."
    )
    return _EVERY.sub(said, page)


if __name__ == "__main__":
    main()
