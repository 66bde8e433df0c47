"""Networks that only look robust, through a whole audit: is each found out, and broken as its bare network is?

    python -m benchmarks.findings.liars RUN --data PATH --out DIR [--images N] [--only NAME ...]

RUN: a folder of `trustcxr train` of one timm network, trained as usual. It is hidden in every way of benchmarks.liars,
and each is audited with FGSM, PGD and worst-case of exam-1 on the validation images: N of each class, all unless said.
Beside what the audit leaves stands what plain PGD leaves, as a test that does not look at the model would print it.
An audit that was made before, in DIR, is read. Written: results/liars-<data>.csv and .md.
"""

import argparse
import os
import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.findings.audits import first_images
from benchmarks.liars import LIARS
from trustcxr import attacks
from trustcxr.about import NOTICE
from trustcxr.data import load_dataset
from trustcxr.data.batches import to_pixels
from trustcxr.evaluation.run import load_run
from trustcxr.models.untouched import undisturbed
from trustcxr.report import markdown
from trustcxr.results.documents import AuditDocument, Share
from trustcxr.study.audit import audit

RESULTS = Path(__file__).resolve().parents[2] / "results"
ATTACKS = ("fgsm", "pgd", "worst-case")
EPSILON, STEPS = 0.02, 20
BARE = "bare"
POINTS = 0.03  # how far above its bare network's a liar's examined accuracy may be
_RUN, _LIAR = "TRUSTCXR_BENCHMARK_RUN", "TRUSTCXR_BENCHMARK_LIAR"


def network() -> nn.Module:
    """The run's network hidden as the environment says, for `python: benchmarks.findings.liars:network`."""
    return hidden(Path(os.environ[_RUN]), os.environ[_LIAR])


def hidden(run: Path, name: str) -> nn.Module:
    """The network of a run, bare or as that liar has it; it takes images in [0, 1], for liars change those."""
    inner = load_run(run, on="cpu").model.eval()
    return inner if name == BARE else LIARS[name](inner)


def rows(run: Path, data: Path, out: Path, names: list[str]) -> list[dict[str, object]]:
    """Of the bare network and of each liar: what the audit says, and what plain PGD leaves."""
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
        begun = time.perf_counter()
        said = audit(model, data, out / "audits" / stem, attacks=ATTACKS, epsilons=(EPSILON,), trust_code=True)
        seconds = time.perf_counter() - begun
        print(f"{name}: {seconds:.0f} s", flush=True)
        found.append(row(name, said, plainly(hidden(run, name), images, labels)))
    return found


def row(name: str, said: AuditDocument, plain: float) -> dict[str, object]:
    """What stands in the table of one network."""
    worst = next((one.accuracy for one in said.attacks if one.attack == "worst-case"), None)
    return {
        "network": name,
        **_share("clean", said.clean.accuracy),
        "plain_pgd": plain,
        **_share("worst_case", worst),
        "n": said.clean.n,
        "withdrawn": said.withdrawn or "",
        "flagged": "; ".join(check.check for check in said.gate if check.passed is False),
    }


def _share(name: str, found: Share | None) -> dict[str, float | None]:
    low, high = (found and found.interval) or (None, None)
    return {name: found.value if found else None, f"{name}_low": low, f"{name}_high": high}


def plainly(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy on what PGD finds on the model as it stands, its answers taken once."""
    right = 0
    torch.manual_seed(0)
    for some, true in zip(images.split(32), labels.split(32), strict=True):
        tried = attacks.pgd(model, some, true, epsilon=EPSILON, steps=STEPS)
        with undisturbed(model):
            right += int((model(tried).argmax(1) == true).sum())
    return right / len(labels)


def page(table: pd.DataFrame, data: str, run: str) -> list[str]:
    """The Markdown page of a table."""
    table = table.fillna({"flagged": "", "withdrawn": ""})
    bare = table.loc[table["network"] == BARE].iloc[0]

    def percent(one: pd.Series, key: str) -> str:
        if pd.isna(one[key]):
            return "withdrawn"
        return f"{100 * one[key]:.1f} [{100 * one[f'{key}_low']:.1f}, {100 * one[f'{key}_high']:.1f}]"

    lines = []
    for _, one in table.iterrows():
        over = 100 * (one["worst_case"] - bare["worst_case"])
        gap = "-" if one["network"] == BARE or pd.isna(over) else f"{over:+.1f}"
        plain = f"{100 * one['plain_pgd']:.1f}"
        shares = [percent(one, "clean"), plain, percent(one, "worst_case")]
        lines.append([one["network"], *shares, gap, one["flagged"] or "nothing"])
    head = ["network", "clean", "plain PGD", "examined", "over the bare one", "flagged at the door"]
    liars = table[table["network"] != BARE]
    within = int((liars["worst_case"] <= bare["worst_case"] + POINTS).sum())
    caught = int((liars["flagged"] != "").sum())
    return [
        f"# Networks that only look robust, through a whole audit of {data}",
        "",
        f"`python -m benchmarks.findings.liars RUN --data {data} --out DIR [--images N]`; RUN: {run}, one seed, "
        f"trained as usual. {int(bare['n'])} validation images, the first of each class; percent answered rightly at "
        f"epsilon {EPSILON:g}, L-infinity, with 95 % intervals where the audit has them. Plain PGD: {STEPS} steps on "
        "the network as it stands, as a test prints that does not look at what it attacks. Examined: what the audit "
        f"leaves, worst case of exam-1. {NOTICE}",
        "",
        f"Of {len(liars)} liars {caught} are flagged, and {within} are left with at most {100 * POINTS:.0f} points "
        "more than the bare network.",
        "",
        *markdown.table(head, lines),
    ]


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, help="of each class; all unless said")
    parser.add_argument("--only", nargs="*", choices=list(LIARS), default=list(LIARS))
    asked = parser.parse_args()
    loaded = load_run(asked.run, on="cpu")
    films = first_images(asked.data, asked.out / "films", loaded, asked.images, split=loaded.trained_by.data.splits.val)
    table = pd.DataFrame(rows(asked.run, films, asked.out, asked.only))
    stem, recipe = f"liars-{asked.data.name}", loaded.trained_by
    table.to_csv(RESULTS / f"{stem}.csv", index=False, float_format="%.4f")
    run = f"{recipe.model.called} at {loaded.size} pixels"
    files_text = "\n".join(page(table, asked.data.name, run)) + "\n"
    (RESULTS / f"{stem}.md").write_text(files_text, encoding="utf-8")
    print(files_text)


if __name__ == "__main__":
    main()
