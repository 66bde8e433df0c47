"""Write the tables of results/ from a finished study: every figure as CSV, and a page to read.

    trustcxr study robustness --data COVID-QU-Ex --out out/robustness
    python -m benchmarks.tables out/robustness --external external-cxr
    trustcxr study localisation --data COVID-QU-Ex --out out/localisation
    python -m benchmarks.tables out/localisation --localisation
    trustcxr study lungs --data COVID-QU-Ex --out out/lungs
    python -m benchmarks.tables out/lungs --localisation
    trustcxr study side-by-side --data COVID-QU-Ex --out out/side-by-side
    python -m benchmarks.tables out/side-by-side

No number is typed by hand: each is read from study.json or metrics.json, with its interval and its count.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trustcxr import catalogue
from trustcxr.results import files, folders
from trustcxr.results.documents import BeyondControl
from trustcxr.study import comparison, run_folder

RESULTS = Path(__file__).resolve().parents[1] / "results"
HEAD = ["run", "split", "condition", "epsilon", "effort", "measure", "value", "low", "high", "chance", "n"]
REFIT = (
    "Epochs: those on the training images, in which validation chose the best one, + those of a training anew on "
    "training and validation images together, to the epoch chosen. What is tested is the latter; what is chosen or "
    "fitted on validation is of the former. Minutes are of both."
)
SHOWN = ("lungs_blacked_out", "lungs_on_another_film")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--external", type=Path, help="data from elsewhere, on which every run is evaluated too")
    parser.add_argument("--note", default="", help="what the figures do not tell, such as how the study was run")
    parser.add_argument("--localisation", action="store_true", help="saliency against the masks, compared run by run")
    given = parser.parse_args()
    folder = folders.check_study(given.study)
    study = files.read_json(folder / folders.STUDY_RESULTS)
    outside = external(folder, study, given.external) if given.external else {}
    name = f"{study['study']}-{study['data']['root_name']}"
    write_rows(study, RESULTS / f"{name}.csv", outside)
    told = f" --external {given.external.name}" if given.external else ""
    told += " --localisation" if given.localisation else ""
    text = page(study, outside, given.external.name if given.external else "", given.note, told)
    if given.localisation:
        parts = [*localisation(study["runs"]), *beyond(folder, study["runs"]), *compared(study)]
        text += "\n" + "\n".join(parts) + "\n"
        write_comparisons(study, RESULTS / f"{name}-comparisons.csv")
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def external(folder: Path, study: dict[str, Any], data: Path) -> dict[str, dict[str, Any]]:
    """Each run's metrics on the data from elsewhere: clean, FGSM and PGD at the largest epsilon of the study."""
    epsilon = max(a["epsilon"] for a in study["runs"][0]["attacks"])
    found = {}
    for run in study["runs"]:
        home = folder / "runs" / run["run"]
        done = home / "evaluations" / f"{data.resolve().name}-all" / folders.METRICS_FILE
        found[run["run"]] = (
            files.read_json(done)
            if done.is_file()
            else run_folder.evaluate(home, data, attacks=["fgsm", "pgd"], epsilons=[epsilon])[0].plain()
        )
    return found


def percent(part: dict[str, Any], key: str = "accuracy") -> str:
    """A share with its interval, in percent."""
    low, high = (100 * end for end in part[f"{key}_ci"])
    return f"{100 * part[key]:.1f} [{low:.1f}, {high:.1f}]"


def attacked(run: dict[str, Any], name: str, epsilon: float) -> dict[str, Any] | None:
    """What a run has under an attack, of several numbers of steps the lowest; None where it was not tried."""
    found = [a for a in run["attacks"] if a["attack"] == name and a["epsilon"] == epsilon]
    return min(found, key=lambda a: a["accuracy"], default=None)


def page(study: dict[str, Any], outside: dict[str, dict[str, Any]], outside_name: str, note: str, told: str) -> str:
    """The study's robustness in Markdown; `told` are the options of the command that wrote it."""
    every = sorted({a["epsilon"] for a in study["runs"][0]["attacks"]})
    first, hardware = study["runs"][0], study["hardware"]
    lines = [
        f"# {study['title'] or study['study']}",
        "",
        f"`trustcxr study {study['study']} --data {study['data']['root_name']} --out out/{study['study']}`, then "
        f"`python -m benchmarks.tables out/{study['study']}{told}`.",
        "",
        f"{first['clean']['n']} {first['split']} images of {study['data']['root_name']}, "
        f"{study['data']['size']} pixels; "
        "one seed; percent of images answered rightly, with 95 % intervals over "
        f"{first['clean']['groups']} patients or groups of images. A constant answer has "
        f"{100 / len(first['classes']):.1f}. Epsilon is L-infinity in pixel space. Training time in minutes on "
        f"{hardware['cores']} cores ({hardware['processor']}). Research software, not for diagnosis.",
        "",
        *([note, ""] if note else []),
        *robustness(study["runs"], every[-1]),
        "",
        *([REFIT, ""] if any("refit" in run["training"] for run in study["runs"]) else []),
        f"Attacks at epsilon {every[-1]:g}; an empty cell was not tried. Mean: over all corruptions and "
        "severities. `masked`: the verdict on the "
        "gradients, whose reason stands in each run's metrics.json.",
        "",
    ]
    if missing := not_tried(study):
        lines += ["Of the recipe these were not tried; the command above tries them: " + "; ".join(missing) + ".", ""]
    for epsilon in every[:-1]:
        lines += [f"## Epsilon {epsilon:g}", "", *at_epsilon(study["runs"], epsilon), ""]
    if outside:
        lines += [f"## Data from elsewhere: {outside_name}", "", *elsewhere(study["runs"], outside, every[-1]), ""]
    return "\n".join(lines)


def not_tried(study: dict[str, Any]) -> list[str]:
    """For each run the attacks of the recipe that it was not tested with."""
    wanted = {a["name"]: a["epsilons"] for a in study["recipe"]["evaluation"]["attacks"]}
    found = []
    for run in study["runs"]:
        for name, epsilons in wanted.items():
            if lacks := [f"{e:g}" for e in epsilons if attacked(run, name, e) is None]:
                found.append(f"{run['run']}: {name} at {', '.join(lacks)}")
    return found


def robustness(runs_: list[dict[str, Any]], epsilon: float) -> list[str]:
    """One line a run: clean, attacks at the largest epsilon, corruptions, views, what it cost."""
    attacks = _names(runs_, epsilon)
    head = [
        "run",
        "epochs",
        "minutes",
        "clean",
        *attacks,
        "masked",
        "corruptions, mean",
        *(v.replace("_", " ") for v in SHOWN),
    ]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for run in runs_:
        training, masking = run["training"], run.get("masking") or {}
        cells = [
            run["run"],
            " + ".join(str(part["epochs"]) for part in (training, training.get("refit")) if part),
            f"{training['seconds'] / 60:.1f}",
            percent(run["clean"]),
            *_under(run, attacks, epsilon),
            {True: "yes", False: "no", None: "not looked for"}[masking["masked"]] if "masked" in masking else "",
            percent(run["corruptions_mean"]) if "corruptions_mean" in run else "",
            *(percent(run["shortcuts"][view]) if view in run["shortcuts"] else "" for view in SHOWN),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def at_epsilon(runs_: list[dict[str, Any]], epsilon: float) -> list[str]:
    """One line a run: the attacks at one epsilon."""
    attacks = _names(runs_, epsilon)
    lines = [f"| {' | '.join(['run', *attacks])} |", "| --- " * (len(attacks) + 1) + "|"]
    return lines + [f"| {' | '.join([run['run'], *_under(run, attacks, epsilon)])} |" for run in runs_]


def elsewhere(runs_: list[dict[str, Any]], outside: dict[str, dict[str, Any]], epsilon: float) -> list[str]:
    """One line a run: accuracy on other data, and how far it fell."""
    head = ["run", "clean", "n", "drop from internal", f"FGSM {epsilon:g}", f"PGD {epsilon:g}"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for run in runs_:
        found = outside[run["run"]]
        drop = next((d for d in found.get("drop_from_internal", []) if d["attack"] == "clean"), None)
        cells = [run["run"], percent(found["clean"]), str(found["clean"]["n"]), percent(drop, "drop") if drop else ""]
        lines.append(f"| {' | '.join(cells + _under(found, ['fgsm', 'pgd'], epsilon))} |")
    return lines


MEASURES = {
    "infection_energy": "infection energy",
    "infection_energy_given_lung": "infection given lung",
    "lung_energy": "lung energy",
    "pointing_hit_rate": "hit rate",
    "infection_iou_tuned": "IoU, tuned threshold",
    "infection_auroc": "pixel AUROC",
    "infection_ap": "average precision",
    "infection_rank_accuracy": "rank accuracy",
    "null_map_rate": "null maps",
}


def localisation(runs_: list[dict[str, Any]]) -> list[str]:
    """For each saliency method one line a run: the measures against the masks, under them chance and the controls."""
    first = next(iter(runs_[0]["saliency"].values()))
    lines = [
        "## Saliency against the radiologists' masks",
        "",
        f"{first['n']} images with an infection mask, the class of the label explained; means with 95 % intervals over "
        "patients or groups of images. Chance: of an even map; centre prior: a Gaussian in the middle; lung mask: the "
        "mask of the lungs as if it were the map. Of infection given lung, the energy that is inside the lungs is the "
        "whole.",
        "",
    ]
    for method in runs_[0]["saliency"]:
        lines += [f"### {method}", "", f"| {' | '.join(['run', *MEASURES.values()])} |"]
        lines.append("| --- " * (len(MEASURES) + 1) + "|")
        parts = {run["run"]: run["saliency"][method] for run in runs_ if method in run["saliency"]}
        for name, part in parts.items():
            lines.append(f"| {' | '.join([name, *(_measured(part, key) for key in MEASURES)])} |")
        part = next(iter(parts.values()))
        for reference, words in catalogue.REFERENCES.items():
            cells = [f"{part[f'{key}_{reference}']:.3f}" if f"{key}_{reference}" in part else "" for key in MEASURES]
            lines.append(f"| *{words}* | {' | '.join(cells)} |")
        lines.append("")
    return lines


def beyond(folder: Path, runs_: list[dict[str, Any]]) -> Iterator[str]:
    """What each CAM shows beyond the activation of its own layer, image by image; nothing where that is no row."""
    names = ("infection_energy", "infection_energy_given_lung", "pointing_hit_rate", "infection_ap", "lung_energy")
    head = ["run", "method", *(MEASURES[name] for name in names)]
    lines = []
    for run in runs_:
        found = comparison.beyond_activation(folder / "runs" / run["run"])
        for method in dict.fromkeys(row["method"] for row in found):
            by_name = {row["measure"]: row for row in found if row["method"] == method}
            lines.append(f"| {' | '.join([run['run'], method, *(_added(by_name.get(name)) for name in names)])} |")
    if lines:
        yield from ("## Beyond the film's own brightness", "")
        yield (
            "Behind a lung gate a CAM multiplies the gradient by what the gate lets through, and that alone, the "
            "control `activation@gate` (smoothed: `activation-smooth@gate`), may lie on opacities, being bright. This "
            "is the map less its control on the same images, with a 95 % interval over patients or groups of images: "
            "what the network adds. Where the interval reaches 0, nothing is shown."
        )
        yield from ("", f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *lines, "")


def _added(row: BeyondControl | None) -> str:
    if row is None or row.difference.interval is None:
        return ""
    low, high = row.difference.interval
    return f"{row.difference.value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _measured(part: dict[str, Any], key: str) -> str:
    if part.get(key) is None:
        return ""
    low, high = part[f"{key}_ci"]
    return f"{part[key]:.3f} [{low:.3f}, {high:.3f}]"


def compared(study: dict[str, Any]) -> Iterator[str]:
    """Every comparison of a robust run, or one with another background, with its standard run: a sentence each."""
    yield "## Standard against the others, image by image"
    yield ""
    yield "Differences with 95 % intervals; p-values corrected for all comparisons of saliency, or of accuracy (Holm)."
    yield f"Every row with its figures is in {study['study']}-{study['data']['root_name']}-comparisons.csv."
    groups: dict[str, list[str]] = {}
    for row in study["comparisons"]:
        if row["method"] is None or row["measure"] in MEASURES:
            who = f"{row['model']}: {row['background']} background, {row['defence']}, against standard"
            groups.setdefault(who, []).append(f"- {row['verdict']}")
    for who, sentences in groups.items():
        yield from ("", f"### {who}", "", *sentences)


def write_comparisons(study: dict[str, Any], path: Path) -> None:
    """Every comparison, one a row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(study["comparisons"][0]))
        writer.writeheader()
        writer.writerows(study["comparisons"])


def _names(runs_: list[dict[str, Any]], epsilon: float) -> list[str]:
    return list(dict.fromkeys(a["attack"] for run in runs_ for a in run["attacks"] if a["epsilon"] == epsilon))


def _under(run: dict[str, Any], names: list[str], epsilon: float) -> list[str]:
    return [percent(found) if (found := attacked(run, name, epsilon)) else "" for name in names]


def write_rows(study: dict[str, Any], path: Path, outside: dict[str, dict[str, Any]] | None = None) -> None:
    """Every figure of every run, one a row, with its condition, count and interval."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEAD)
        for run in study["runs"]:
            writer.writerows([run["run"], run["split"], *row] for row in rows(run))
            if found := (outside or {}).get(run["run"]):
                writer.writerows([run["run"], "external", *row] for row in rows(found))


def rows(run: dict[str, Any]) -> Iterator[list[Any]]:
    """(condition, epsilon, effort, measure, value, low, high, chance, n) of one document of metrics.json."""
    clean = run["clean"]
    for key in [k for k in clean if f"{k}_ci" in clean]:
        yield ["clean", 0, "", key, clean[key], *clean[f"{key}_ci"], "", clean["n"]]
    for view, part in run.get("shortcuts", {}).items():
        yield [view, 0, "", "accuracy", part["accuracy"], *part["accuracy_ci"], "", part["n"]]
    for a in run["attacks"]:
        effort = a.get("steps", 1)
        yield [a["attack"], a["epsilon"], effort, "accuracy", a["accuracy"], *a["accuracy_ci"], "", a["n"]]
    for c in run.get("corruptions", []):
        yield [c["corruption"], "", c["severity"], "accuracy", c["accuracy"], *c["accuracy_ci"], "", c["n"]]
    if mean := run.get("corruptions_mean"):
        yield ["corruptions_mean", "", "", "accuracy", mean["accuracy"], *mean["accuracy_ci"], "", mean["n"]]
    for d in run.get("drop_from_internal", []):
        yield [d["attack"], d["epsilon"], d.get("steps", ""), "drop", d["drop"], *d["drop_ci"], "", d["n_external"]]
    for method, part in run["saliency"].items():
        for key in [k for k in part if f"{k}_ci" in part]:
            yield [method, 0, "", key, part[key], *part[f"{key}_ci"], part.get(f"{key}_chance", ""), part["n"]]


if __name__ == "__main__":
    main()
