"""Networks that only look robust, through a whole audit: is each found out, and broken as its bare network is?

    python -m benchmarks.findings.liars RUN --data PATH --out DIR [--images N] [--twins] [--further] [--only NAME ...]

RUN: a folder of `trustcxr train` of one timm network, trained as usual. It is hidden in every way of benchmarks.liars,
and each is audited with FGSM, PGD and worst-case of exam-1 on the validation images: N of each class, all unless said.
Beside what the audit leaves stands what plain PGD leaves, as a test that does not look at the model would print it.
With --twins, of a liar that answers by chance also what is left of its twin: the mean over draws that are all known,
which hides nothing, and what of the images that mislead it is left on draws that they were not made for; with
--further the bare network and what answers by chance also at twice the epsilon. An audit that was made before, in DIR,
is read. With --twins-anew nothing is audited: the twins alone are attacked, and take their place in the table that
there is. Written: results/liars-<data>.csv and .md.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.findings.audits import first_images
from benchmarks.liars import LIARS, TWINS, FewerNoises
from trustcxr import attacks
from trustcxr.about import NOTICE
from trustcxr.attacks.adaptive import adaptive
from trustcxr.attacks.stand_ins import Attackable
from trustcxr.catalogue import JUDGED
from trustcxr.data import load_dataset
from trustcxr.data.batches import to_pixels
from trustcxr.evaluation.run import load_run
from trustcxr.models.untouched import undisturbed
from trustcxr.report import markdown
from trustcxr.results import files
from trustcxr.results.documents import AuditDocument, Share
from trustcxr.study.audit import audit

RESULTS = Path(__file__).resolve().parents[2] / "results"
ATTACKS = ("fgsm", "pgd", "worst-case")
EPSILON, FURTHER, STEPS = 0.02, 0.04, 20
BARE = "bare"
DIGITS = 8  # of the CSV file: with as few as the page shows, a figure would be rounded twice
POINTS = 0.03  # how far above its bare network's a liar's examined accuracy may be
_DRAWS = (
    "What answers at random counts as right in the worst case where each of {judged} draws is right, for whoever "
    "attacks may hand a film in again; clean it is judged by the mean of as many. In percent, of films as they are "
    "right in each draw, one answer on average, and one answer under the audit's worst case: {drawn}. So a part of the "
    "fall is the network's own chance, without any attack, and one answer alone is right more often than all of them."
)
_TWIN = (
    "Twin: the mean over {draws} draws of the same network, all known to the attack (PGD and APGD, begun from what "
    "misleads the bare network), so that nothing is hidden or left to chance. A network that blurs its answer over "
    "draws is truly somewhat harder to mislead within this epsilon. What one answer is worth under the audit's worst "
    "case, less what is left of its twin, in points: {beside}."
)
_FRESH = (
    " But {draws} draws that are known by heart are easier to mislead than all that may come: the images made for the "
    "twin, each by a climb that ends once the twin is misled, leave to the mean over {judged} fresh draws, by which "
    "the audit judges too, in percent: {fresh}."
)
_RUN, _LIAR = "TRUSTCXR_BENCHMARK_RUN", "TRUSTCXR_BENCHMARK_LIAR"


def network() -> nn.Module:
    """The run's network hidden as the environment says, for `python: benchmarks.findings.liars:network`."""
    return hidden(Path(os.environ[_RUN]), os.environ[_LIAR])


def hidden(run: Path, name: str) -> nn.Module:
    """The network of a run, bare or as that liar has it; it takes images in [0, 1], for liars change those."""
    inner = load_run(run, on="cpu").model.eval()
    return inner if name == BARE else LIARS[name](inner)


def rows(
    run: Path, data: Path, out: Path, names: Sequence[str], *, epsilon: float = EPSILON, twins: bool = False
) -> list[dict[str, object]]:
    """Of the bare network and of each liar: what the audit says, what plain PGD leaves, and what of its twin."""
    loaded = load_run(run, on="cpu")
    films = load_dataset(data, None, loaded.size, classes=loaded.classes)
    images, labels = to_pixels(torch.from_numpy(films.images.copy())), torch.from_numpy(films.labels)
    os.environ[_RUN], found = str(run.resolve()), []
    for name in (BARE, *names):
        os.environ[_LIAR] = name
        stem = name.replace(" ", "-").replace("(", "-").replace(")", "")
        model = out / f"{stem}.yaml"
        model.write_text(
            f"python: benchmarks.findings.liars:network\nname: {stem}\ninput: {{size: {loaded.size}}}\n"
            f"output: {{kind: logits, classes: [{', '.join(loaded.classes)}]}}\n"
        )
        begun, place = time.perf_counter(), out / "audits" / (stem if epsilon == EPSILON else f"{stem}-{epsilon:g}")
        said = audit(model, data, place, attacks=ATTACKS, epsilons=(epsilon,), trust_code=True)
        print(f"{name}, {epsilon:g}: {time.perf_counter() - begun:.0f} s", flush=True)
        path = place / "beside.json"  # what was measured of it and is no part of an audit
        more: dict[str, object] = files.read_json(path) if path.is_file() else {}
        if "plain_pgd" not in more:
            more["plain_pgd"] = plainly(hidden(run, name), images, labels, epsilon)
        if twins and "twin_fresh" not in more:
            more |= known(name, hidden(run, BARE), images, labels)
        files.write_json(path, more)
        found.append({"epsilon": epsilon} | _NO_TWIN | row(name, said) | more)
        print(f"{name}, {epsilon:g}: {found[-1]['worst_case']} left, twin {found[-1]['twin']}", flush=True)
    return found


def row(name: str, said: AuditDocument) -> dict[str, object]:
    """What stands in the table of one network."""
    worst = next((one.accuracy for one in said.attacks if one.attack == "worst-case"), None)
    return {
        "network": name,
        **_share("clean", said.clean.accuracy),
        **_share("worst_case", worst),
        **{key: value for name, share in _drawn(said).items() for key, value in _share(name, share).items()},
        "n": said.clean.n,
        "withdrawn": said.withdrawn or "",
        "flagged": "; ".join(check.check for check in said.gate if check.passed is False),
    }


def _drawn(said: AuditDocument) -> dict[str, Share | None]:
    """Of a network that answers at random: what one answer is worth, and how often each of the draws is right."""
    worst = next((one.draws for one in said.attacks if one.attack == "worst-case"), None)
    clean = said.clean.draws
    if clean is None or worst is None:
        return dict.fromkeys(_DRAWN)
    return {"clean_one": clean.one, "clean_each": clean.each, "worst_one": worst.one}


def _share(name: str, found: Share | None) -> dict[str, float | None]:
    low, high = (found and found.interval) or (None, None)
    return {name: found.value if found else None, f"{name}_low": low, f"{name}_high": high}


def plainly(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> float:
    """Accuracy on what PGD finds on the model as it stands, its answers taken once."""
    right = 0
    torch.manual_seed(0)
    for some, true in zip(images.split(32), labels.split(32), strict=True):
        tried = attacks.pgd(model, some, true, epsilon=epsilon, steps=STEPS)
        with undisturbed(model):
            right += int((model(tried).argmax(1) == true).sum())
    return right / len(labels)


_NO_TWIN: dict[str, float | None] = {"twin": None, "twin_fresh": None}
_DRAWN = ("clean_each", "clean_one", "worst_one")


def known(name: str, bare: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Accuracy that attacks leave of the liar with all its draws known, and of the liar itself on what misleads that.

    None where it always answers the same.
    """
    if name not in TWINS:
        return _NO_TWIN
    twin, fresh, right = TWINS[name](bare), Attackable(LIARS[name](bare), draws=JUDGED), [0, 0]
    for some, true in zip(images.split(32), labels.split(32), strict=True):
        start = [attacks.pgd(bare, some, true, epsilon=EPSILON, steps=STEPS)]
        found = adaptive(twin, some, true, epsilon=EPSILON, start=start, steps=STEPS)
        for place, judge in enumerate((twin, fresh)):
            torch.manual_seed(0)
            with undisturbed(judge), torch.no_grad():
                right[place] += int((judge(found).argmax(1) == true).sum())
        print(f"{name}: {right} of {len(labels)}", flush=True)
    return {"twin": right[0] / len(labels), "twin_fresh": right[1] / len(labels)}


def twins_anew(table: pd.DataFrame, run: Path, data: Path, names: Sequence[str]) -> pd.DataFrame:
    """The table with what attacks leave of the twins of these liars, as measured now."""
    loaded = load_run(run, on="cpu")
    films = load_dataset(data, None, loaded.size, classes=loaded.classes)
    images, labels = to_pixels(torch.from_numpy(films.images.copy())), torch.from_numpy(films.labels)
    table = table.assign(**{column: table.get(column) for column in _NO_TWIN}).astype(dict.fromkeys(_NO_TWIN, float))
    for name in [name for name in names if name in TWINS]:
        here = (table["network"] == name) & (table.get("epsilon", EPSILON) == EPSILON)
        if int(table.loc[here, "n"].iloc[0]) != len(labels):
            raise SystemExit(f"{name}: audited on {table.loc[here, 'n'].iloc[0]} films, and these are {len(labels)}")
        for column, value in known(name, hidden(run, BARE), images, labels).items():
            table.loc[here, column] = value
    return table


def page(table: pd.DataFrame, data: str, run: str) -> list[str]:
    """The Markdown page of a table."""
    # A table of one epsilon, without twins or without networks that answer at random, lacks these columns.
    for column, value in ({"epsilon": EPSILON} | _NO_TWIN | dict.fromkeys(_DRAWN)).items():
        if column not in table:
            table = table.assign(**{column: value})
    table = table.astype({"flagged": object, "withdrawn": object}).fillna({"flagged": "", "withdrawn": ""})
    near, far = (table[table["epsilon"] == epsilon] for epsilon in (EPSILON, FURTHER))
    liars = near[near["network"] != BARE]
    caught = int((liars["flagged"] != "").sum())
    return [
        f"# Networks that only look robust, through a whole audit of {data}",
        "",
        f"`python -m benchmarks.findings.liars RUN --data {data} --out DIR [--images N] [--twins]`; RUN: {run}, "
        f"one seed, trained as usual. {int(near['n'].iloc[0])} validation images, the first of each class; percent "
        f"answered rightly at epsilon {EPSILON:g}, L-infinity, with 95 % intervals where the audit has them. Plain "
        f"PGD: {STEPS} steps on the network as it stands, as a test prints that does not look at what it attacks. "
        f"Examined: what the audit leaves, worst case of exam-1. {NOTICE}",
        "",
        f"Of {len(liars)} liars {caught} are flagged, and {within(near)} are left with at most {100 * POINTS:.0f} "
        "points more than the bare network.",
        "",
        *([_DRAWS.format(judged=JUDGED, drawn=drawn(near)), ""] if drawn(near) else []),
        *([_TWIN.format(draws=FewerNoises.draws, beside=beside(near)) + fresh(near), ""] if beside(near) else []),
        *shown(near),
        *further(far),
    ]


HEAD = ["network", "clean", "plain PGD", "examined", "over the bare one", "its twin", "flagged at the door"]


def further(table: pd.DataFrame) -> list[str]:
    """What stands of those that answer by chance at the larger epsilon, if that was measured."""
    if len(table) < 2:
        return []
    count = len(table) - 1
    return [
        "",
        f"At {FURTHER:g}, {within(table)} of the {count} that answer by chance are left with at most "
        f"{100 * POINTS:.0f} points more than the bare network:",
        "",
        *shown(table),
    ]


def shown(table: pd.DataFrame) -> list[str]:
    """The page's table; without a column for twins where none was attacked."""
    rows = [HEAD, *cells(table)]
    if not table["twin"].notna().any():
        rows = [[cell for place, cell in enumerate(row) if place != HEAD.index("its twin")] for row in rows]
    return list(markdown.table(rows[0], rows[1:]))


def _bare(table: pd.DataFrame) -> float:
    return float(table.loc[table["network"] == BARE, "worst_case"].iloc[0])


def within(table: pd.DataFrame) -> int:
    """How many liars are left with hardly more than the bare network at the same epsilon."""
    liars = table[table["network"] != BARE]
    return int((liars["worst_case"] <= _bare(table) + POINTS).sum())


def beside(table: pd.DataFrame) -> str:
    """How far each is from its twin, of those that have one."""
    left = table["worst_one"].fillna(table["worst_case"]) if "worst_one" in table else table["worst_case"]
    random = table.assign(left=left)[table["twin"].notna()]
    return ", ".join(f"{one['network']} {100 * (one['left'] - one['twin']):+.1f}" for _, one in random.iterrows())


def drawn(table: pd.DataFrame) -> str:
    """What one answer of those that answer at random is worth, and all of them, where that was measured."""
    random = table[table["worst_one"].notna()]
    return "; ".join(
        f"{one['network']} {', '.join(_percent(one, key) for key in _DRAWN)}" for _, one in random.iterrows()
    )


def fresh(table: pd.DataFrame) -> str:
    """What of the twins' images is left on draws that they were not made for, where that was measured."""
    random = table[table["twin_fresh"].notna()]
    said = ", ".join(f"{one['network']} {100 * one['twin_fresh']:.1f}" for _, one in random.iterrows())
    return _FRESH.format(draws=FewerNoises.draws, judged=JUDGED, fresh=said) if said else ""


def _percent(one: pd.Series, key: str) -> str:
    """A share of a row with its interval."""
    if pd.isna(one[key]):
        return "withdrawn"
    return f"{100 * one[key]:.1f} [{100 * one[f'{key}_low']:.1f}, {100 * one[f'{key}_high']:.1f}]"


def cells(table: pd.DataFrame) -> list[list[str]]:
    """The rows of the page's table."""
    lines = []
    for _, one in table.iterrows():
        over = 100 * (one["worst_case"] - _bare(table))
        gap = "-" if one["network"] == BARE or pd.isna(over) else f"{over:+.1f}"
        twin = "-" if pd.isna(one["twin"]) else f"{100 * one['twin']:.1f}"
        shares = [_percent(one, "clean"), f"{100 * one['plain_pgd']:.1f}", _percent(one, "worst_case")]
        lines.append([one["network"], *shares, gap, twin, one["flagged"] or "nothing"])
    return lines


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, help="of each class; all unless said")
    parser.add_argument("--twins", action="store_true", help="also attack the mean over draws that are all known")
    parser.add_argument("--twins-anew", action="store_true", help="attack the twins alone, for the table that there is")
    parser.add_argument("--further", action="store_true", help="also at twice the epsilon, where that says something")
    parser.add_argument("--only", nargs="*", choices=list(LIARS), default=list(LIARS))
    asked = parser.parse_args()
    loaded = load_run(asked.run, on="cpu")
    films = first_images(asked.data, asked.out / "films", loaded, asked.images, split=loaded.trained_by.data.splits.val)
    stem, recipe = f"liars-{asked.data.name}", loaded.trained_by
    if asked.twins_anew:
        table = twins_anew(pd.read_csv(RESULTS / f"{stem}.csv"), asked.run, films, asked.only).round(DIGITS)
    else:
        found = rows(asked.run, films, asked.out, asked.only, twins=asked.twins)
        if asked.further:
            found += rows(asked.run, films, asked.out, [one for one in asked.only if one in TWINS], epsilon=FURTHER)
        table = pd.DataFrame(found).round(DIGITS)  # as the CSV file has it, so that page and file say the same
    table.to_csv(RESULTS / f"{stem}.csv", index=False, float_format=f"%.{DIGITS}f")
    run = f"{recipe.model.called} at {loaded.size} pixels"
    files_text = "\n".join(page(table, asked.data.name, run)) + "\n"
    (RESULTS / f"{stem}.md").write_text(files_text, encoding="utf-8")
    print(files_text)


if __name__ == "__main__":
    main()
